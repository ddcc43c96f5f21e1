"""The protocol's one line about a result, written and read by client and server alike.

    commit:<7-char-hash> platform:<gpu> val_bpb:<value> vram_gb:<value> | <description>

A failed experiment has `---` for its numbers and says DISCARD or CRASH in its description. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autohypothesis.engine.task import short_device_name
from autohypothesis.errors import UsageError
from autohypothesis.fleet.hub_sync.outgoing import REPORTED_STATUSES
from autohypothesis.hub.protocol import LARGEST
from autohypothesis.plain import table_text
from autohypothesis.records.outcomes import shown_as
from autohypothesis.schema import finite

Mark = Literal["", "DISCARD", "CRASH"]
"""Empty: no failure."""
MARKS: dict[str, Mark] = {"discard": "DISCARD", "crash": "CRASH"}
"""The mark for each status of a result."""

METRIC = "val_bpb"
NOTHING = "---"
LINE_LIMIT = 2_000
"""Characters of a line that may still be one."""

_REASON, _METRIC, _PLATFORM = 200, 80, 63
"""Characters that a hub takes."""

_NAMED = {"commit", "platform", "vram_gb"}
"""The fields beside the metric."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*):(\S+)")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?")
_SPOKEN = re.compile(r"\b(DISCARD|CRASH)(?:ED)?\b")
_MARKED = re.compile(r"(?:^|\s)\((DISCARD|CRASH)(?::\s*([^()]*))?\)$")


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One result, as the line can hold it: values are made to fit."""

    commit: str
    platform: str
    value: float | None
    """None where the run has none."""
    memory_gb: float | None
    description: str = ""
    mark: Mark = ""
    reason: str = ""
    """The reason of a failure, in a word or two: OOM."""
    metric: str = METRIC

    def __post_init__(self) -> None:
        spoken = _SPOKEN.sub(lambda match: match[0].lower(), table_text(self.description))
        platform = "-".join(table_text(self.platform.replace("|", "-")).split())
        reason = table_text(re.sub(r"[()]", " ", self.reason))[:_REASON].strip()
        fit = {
            "platform": platform[:_PLATFORM] or "device",
            "value": _rounded(self.value, 6),
            "memory_gb": _rounded(self.memory_gb, 1),
            "description": table_text(spoken),
            "reason": reason if self.mark else "",
            "metric": _metric_name(self.metric)[:_METRIC],
        }
        for name, value in fit.items():
            object.__setattr__(self, name, value)


def write(line: ResultLine) -> str:
    """`line` as it is posted."""
    value = NOTHING if line.value is None else f"{line.value:.6f}"
    memory = NOTHING if line.memory_gb is None else f"{line.memory_gb:.1f}"
    mark = f"({line.mark}: {line.reason})" if line.reason else f"({line.mark})"
    told = " ".join(word for word in (line.description, mark if line.mark else "") if word)
    numbers = f"{line.metric}:{value} vram_gb:{memory}"
    return f"commit:{line.commit} platform:{line.platform} {numbers} | {told}".rstrip()


def parse(text: str) -> ResultLine | None:
    """The result in one line of a post; None where there is none.

    People and agents write these by hand: the fields may come in any order, in back-ticks or as an
    item of a list, and the mark may stand anywhere in the description.
    """
    if len(text) > LINE_LIMIT:
        return None
    text = text.strip().lstrip("-* ")
    if text.startswith("`"):
        text = text.strip("` ")
    head, _, told = text.partition("|")
    found = [_FIELD.fullmatch(word) for word in head.split()]
    fields = {match[1]: match[2] for match in found if match}
    metric = next((name for name in fields if name not in _NAMED), "")
    if len(fields) != len(found) or fields.keys() - _NAMED != {metric}:
        return None
    if "platform" not in fields or not _COMMIT.fullmatch(fields.get("commit", "")):
        return None
    try:
        value, memory = _number(fields[metric]), _number(fields.get("vram_gb", NOTHING))
    except ValueError:
        return None
    description, mark, reason = _marked(told.strip())
    return ResultLine(
        fields["commit"], fields["platform"], value, memory, description, mark, reason, metric
    )


def results_in(post: str) -> list[ResultLine]:
    """The results in the lines of a post; a quoted line is a result of another agent."""
    lines = (line for line in post.splitlines() if not line.lstrip().startswith(">"))
    return [result for line in lines if (result := parse(line)) is not None]


def _marked(told: str) -> tuple[str, Mark, str]:
    """Description, mark and reason."""
    end = _MARKED.search(told)
    spoken = end or _SPOKEN.search(told)
    if spoken is None:
        return told, "", ""
    mark: Mark = "CRASH" if spoken[1] == "CRASH" else "DISCARD"
    if end is None:
        return told, mark, ""
    return told[: end.start()], mark, (end[2] or "").strip()


def _number(text: str) -> float | None:
    """None for `---`; ValueError for what is no measurement: signs, NaN, infinities."""
    if set(text) == {"-"}:
        return None
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _metric_name(name: str) -> str:
    """`name` in one word, which is none of the other fields'."""
    word = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return word if re.match(r"[A-Za-z]", word) and word not in _NAMED else f"metric_{word}"


def _rounded(value: float | None, digits: int) -> float | None:
    """Return the value with the digits of the line; None if it is below zero, NaN or infinite."""
    if value is None or not math.isfinite(value) or value < 0:
        return None
    return round(value, digits)


# ── from a row of the ledger ────────────────────────────────────────────────────────────────


def result_line(row: Mapping[str, Any]) -> ResultLine:
    """The protocol's line for a row of the ledger. A failed run has no numbers.

    Raises:
        UsageError: it is not decided, or has no commit.
    """
    name, status = row["id"], shown_as(str(row.get("status")), row.get("failure_kind"))
    if status not in REPORTED_STATUSES or not row.get("commit"):
        raise UsageError(
            f"{name} is {status}, and only what is decided is told to others",
            hint=f"see how it stands: python orchestrator.py show {name}",
        )
    mark = MARKS.get(status, "")
    failed = status == "crash"
    said = table_text(str(row.get("description") or name))
    if row.get("replicates"):
        said = f"{said} [seed {row.get('seed')}, repeats {row['replicates']}]"
    return ResultLine(
        commit=str(row["commit"])[:7],
        platform=short_device_name(str(row.get("gpu_name") or "")),
        value=None if failed else row.get("metric_value"),
        memory_gb=None if failed else row.get("peak_vram_gb"),
        description=said,
        mark=mark,
        reason=_reason(row) if mark else "",
        metric=str(row.get("metric_name") or METRIC),
    )


def typed_result(row: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a typed result for a row of the ledger.

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
        "description": line.description,
        "reason": (line.reason or str(row.get("outcome") or ""))[:_REASON],
        "verifies": row.get("verifies"),
    }


def _hash(value: object) -> str:
    """Empty for what is no SHA-256: the key of a run by hand compares with nothing."""
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else ""


def _integer(value: object) -> int | None:
    """None for what 64 bits do not hold."""
    return value if isinstance(value, int) and abs(value) <= LARGEST else None


def _reason(row: Mapping[str, Any]) -> str:
    kind = str(row.get("failure_kind") or "").replace("_", " ")
    if kind in ("oom", "nan"):
        return kind.upper()
    return kind or ("refuted" if row.get("confirmation") == "refuted" else "")
