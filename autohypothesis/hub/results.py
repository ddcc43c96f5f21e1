"""An experiment of ours as others are told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autohypothesis.engine.task import short_device_name
from autohypothesis.errors import UsageError
from autohypothesis.fleet.hub_sync.outgoing import REPORTED_STATUSES
from autohypothesis.hub.client.wire import LARGEST
from autohypothesis.hub.line import Mark, ResultLine
from autohypothesis.records.tables import harmless
from autohypothesis.schema import finite

DESCRIPTION, REASON, METRIC, PLATFORM = 2_000, 200, 80, 63
"""Characters that a hub takes."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MARKS: dict[str, Mark] = {"discard": "DISCARD", "crash": "CRASH"}


def result_line(row: Mapping[str, Any]) -> ResultLine:
    """A row of the ledger as the protocol's line. A failed run has no numbers.

    Raises:
        UsageError: it is not decided, or there was no commit.
    """
    name, status = row["id"], str(row.get("status"))
    if status not in REPORTED_STATUSES or not row.get("commit"):
        raise UsageError(
            f"{name} is {status}, and only what is decided is told to others",
            hint=f"see how it stands: python orchestrator.py show {name}",
        )
    mark = _MARKS.get(status, "")
    failed = status == "crash"
    said = harmless(str(row.get("description") or name))
    if row.get("replicates"):
        said = f"{said} [seed {row.get('seed')}, repeats {row['replicates']}]"
    return ResultLine(
        commit=str(row["commit"])[:7],
        platform=short_device_name(str(row.get("gpu_name") or ""))[:PLATFORM],
        value=None if failed else row.get("metric_value"),
        memory_gb=None if failed else row.get("peak_vram_gb"),
        description=said,
        mark=mark,
        reason=_reason(row) if mark else "",
        metric=str(row.get("metric_name") or "val_bpb")[:METRIC],
    )


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a typed result, with all that makes two of them comparable.

    Raises:
        UsageError: as `result_line`.
    """
    line = result_line(row)
    return {
        "name": f"{row['id']}:{str(row['commit'])[:12]}",  # a search begun anew has the same ids
        "commit": str(row["commit"]),
        "platform": line.platform,
        "platform_key": _hash(row.get("platform_key")),
        "task_hash": _hash(row.get("task_hash")),
        "metric": line.metric,
        "value": None if line.mark == "CRASH" else finite(row.get("metric_value")),
        "status": str(row["status"]),
        "confirmation": str(row.get("confirmation") or "none"),
        "seed": _integer(row.get("seed")),
        "budget_seconds": finite(row.get("budget_seconds")),
        "steps": _integer(row.get("num_steps")),
        "memory_gb": line.memory_gb,
        "log_hash": _hash(row.get("log_hash")),
        "tree": str(row.get("tree") or ""),
        "description": line.description[:DESCRIPTION],
        "reason": (line.reason or str(row.get("outcome") or ""))[:REASON],
        "verifies": row.get("verifies"),
    }


def _hash(value: object) -> str:
    """What is no SHA-256 is not told: the key of a run by hand, say, compares with nothing."""
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else ""


def _integer(value: object) -> int | None:
    """As a hub can store it: 64 bits hold it, or it is not told."""
    return value if isinstance(value, int) and abs(value) <= LARGEST else None


def _reason(row: Mapping[str, Any]) -> str:
    kind = str(row.get("failure_kind") or "").replace("_", " ")
    if kind in ("oom", "nan"):
        return kind.upper()
    return kind or ("refuted" if row.get("confirmation") == "refuted" else "")
