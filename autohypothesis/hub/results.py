"""An experiment of ours as others are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autohypothesis.engine.identity import short_device_name
from autohypothesis.errors import UsageError
from autohypothesis.hub.line import Mark, ResultLine

TOLD = ("keep", "discard", "crash", "replicate")
"""What a row says of an experiment that is over and decided."""
_MARKS: dict[str, Mark] = {"discard": "DISCARD", "crash": "CRASH"}


def result_line(row: Mapping[str, Any]) -> ResultLine:
    """A row of the ledger as the protocol's line. A failed run has no numbers.

    Raises:
        UsageError: it is not decided, or there was no commit.
    """
    name, status = row["id"], str(row.get("status"))
    if status not in TOLD or not row.get("commit"):
        raise UsageError(
            f"{name} is {status}, and only what is decided is told to others",
            hint=f"see how it stands: python orchestrator.py show {name}",
        )
    mark = _MARKS.get(status, "")
    failed = status == "crash"
    told = str(row.get("description") or name)
    if row.get("replicates"):
        told = f"{told} [seed {row.get('seed')}, repeats {row['replicates']}]"
    return ResultLine(
        commit=str(row["commit"])[:7],
        platform=short_device_name(str(row.get("gpu_name") or "")),
        value=None if failed else row.get("metric_value"),
        memory_gb=None if failed else row.get("peak_vram_gb"),
        description=told,
        mark=mark,
        reason=_reason(row) if mark else "",
        metric=str(row.get("metric_name") or "val_bpb"),
    )


def _reason(row: Mapping[str, Any]) -> str:
    kind = str(row.get("failure_kind") or "").replace("_", " ")
    if kind in ("oom", "nan"):
        return kind.upper()
    return kind or ("refuted" if row.get("confirmation") == "refuted" else "")
