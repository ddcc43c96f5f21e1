"""A run that another process slowed down is contaminated: no evidence, and run again.

On a GPU the shim sees foreign compute by itself. On a CPU slot nothing is visible but time: the
shim times a fixed kernel before and after the training, and here that is held against what the slot
took lately. Runs of the same diff on the same base and slot are compared by their speed as well;
unlike runs never are. A contaminated run comes back, twice at most; a third is kept
as it is and flagged, since a machine that is always disturbed is the machine there is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autohypothesis.records.history import DecisionHistory
from autohypothesis.schema import Decision, Metadata, Result, finite

MOST_CONTAMINATED = 2
ALLOWED = 0.10
"""Share by which a run may be slower than its like."""
SPREADS = 3.0
ENOUGH = 3
"""Runs of a slot before it has a usual time."""
RECENT = 9
"""Runs of a slot that make its usual time. One that became slower for good costs a few runs, until
those that were kept all the same have made the new speed a usual one."""


class SlotSpeed(NamedTuple):
    """How fast the slot of one run was."""

    slot: str
    kernel_ms: float | None
    """Of the fixed kernel, the faster of before and after: what disturbs a run is there at both
    ends, and a moment is no reason to run it again."""
    tokens_per_second: float | None
    """Of the training, on its budget's clock."""


def slot_speed(metadata: Metadata, result: Result) -> SlotSpeed:
    """Return what shim and training measured; no speed of a run that was not on a CPU slot."""
    said = result.evidence.get("contention")
    found = said if isinstance(said, Mapping) else {}
    times = [finite(found.get(f"kernel_{when}_ms")) for when in ("before", "after")]
    known = [time for time in times if time is not None]
    tokens, seconds = result.metrics.total_tokens_M, result.metrics.training_seconds
    rate = tokens * 1e6 / seconds if known and tokens and seconds else None
    return SlotSpeed(metadata.run.gpu_id, min(known, default=None), finite(rate))


def judged(past: DecisionHistory, metadata: Metadata, result: Result) -> tuple[Result, str]:
    """Return the result as it counts, and what is to be said about it."""
    was_contended = result.failure_kind == "contended"
    if result.status == "failed" and not was_contended:
        return result, ""
    reason = result.failure_detail if was_contended else _slowed(past, metadata, result)
    if not reason:
        return result, ""
    if len(past.with_reason(metadata.run.hypothesis_id, "contended")) < MOST_CONTAMINATED:
        return contaminated(result, reason), ""
    return restored(result), f"contended, and kept because it was contaminated twice: {reason}"


def contaminated(result: Result, reason: str) -> Result:
    """Return `result` as no evidence; its value stays in `evidence` under `voided_value`."""
    if result.failure_kind == "contended":
        return result
    return result.model_copy(
        update={
            "status": "failed",
            "failure_kind": "contended",
            "failure_detail": reason,
            "metric_value": None,
            "evidence": {**result.evidence, "voided_value": result.metric_value},
            "metrics": result.metrics.model_copy(update={result.metric_name: None}),
        }
    )


def restored(result: Result) -> Result:
    """Return a contaminated result with its value again; unchanged when it never had one."""
    value = finite(result.evidence.get("voided_value"))
    if result.failure_kind != "contended" or value is None:
        return result
    return result.model_copy(
        update={
            "status": "completed",
            "failure_kind": None,
            "failure_detail": "",
            "metric_value": value,
            "metrics": result.metrics.model_copy(update={result.metric_name: value}),
        }
    )


def _slowed(past: DecisionHistory, metadata: Metadata, result: Result) -> str:
    """Return how its slot was slower than usual, in words; empty when it was not."""
    now, key = slot_speed(metadata, result), metadata.runtime.platform_key
    recent = [one for one in past.on_slot(key, now.slot) if one.reason != "contended"]
    kernel = [float(one.lane_kernel_ms) for one in recent if one.lane_kernel_ms][-RECENT:]
    if now.kernel_ms is not None and len(kernel) >= ENOUGH:
        usual = statistics.median(kernel)
        if now.kernel_ms > usual + _allowance(usual, kernel):
            return f"{now.slot} took {now.kernel_ms:.2f} ms for what usually takes {usual:.2f} ms"
    like = [
        float(one.tokens_per_second)
        for one in recent
        if one.tokens_per_second and _alike(one, metadata, result)
    ]
    if now.tokens_per_second is not None and like:
        usual = statistics.median(like)
        if now.tokens_per_second < usual - _allowance(usual, like):
            return (
                f"{now.tokens_per_second:,.0f} tokens a second on {now.slot}, where the same "
                f"change made {usual:,.0f}"
            )
    return ""


def _alike(one: Decision, metadata: Metadata, result: Result) -> bool:
    """Return whether a decision was about the same diff on the same base."""
    if result.parent_commit is None:
        return one.base_commit is None and one.commit == result.commit
    same_base = one.base_commit == result.parent_commit
    return same_base and one.diff_hash == metadata.runtime.diff_hash


def _allowance(usual: float, values: Sequence[float]) -> float:
    """Return what is not yet slow: ten per cent, or three spreads where the values spread more.

    The standard deviation and no robust one: a core that shares its silicon with another has two
    speeds, and both are usual.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return max(ALLOWED * usual, SPREADS * spread)
