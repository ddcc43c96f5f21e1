"""A run that another process slowed down is contaminated: no evidence, and run again.

On a GPU the shim sees foreign compute by itself. On a CPU slot nothing is visible but time: the
shim times a fixed kernel before and after the training, and here that is held against what the slot
took lately. Runs of the same diff on the same base and slot are compared by their speed as well;
unlike runs never are. A contaminated run comes back, twice at most; a third is kept
as it is and flagged, since a machine that is always slow is the machine there is.
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
    """Of the fixed kernel, the faster of before and after: what slows a run is there at both ends,
    and a moment is no reason to run it again."""
    tokens_per_second: float | None
    """Of the training, on its budget's clock."""


def slot_speed(metadata: Metadata, result: Result) -> SlotSpeed:
    """Return what shim and training measured; no speed of a run that was not on a CPU slot."""
    evidence = result.evidence.get("contention")
    if not isinstance(evidence, Mapping):
        evidence = {}
    measured = [finite(evidence.get(f"kernel_{when}_ms")) for when in ("before", "after")]
    times = [time for time in measured if time is not None]
    tokens, seconds = result.metrics.total_tokens_M, result.metrics.training_seconds
    rate = tokens * 1e6 / seconds if times and tokens and seconds else None
    return SlotSpeed(metadata.run.gpu_id, min(times, default=None), finite(rate))


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
    evidence = {**result.evidence, "voided_value": result.metric_value}
    failure = {"status": "failed", "failure_kind": "contended", "failure_detail": reason}
    return _with_value(result, None, evidence=evidence, **failure)


def restored(result: Result) -> Result:
    """Return a contaminated result with its value again; unchanged when it never had one."""
    value = finite(result.evidence.get("voided_value"))
    if result.failure_kind != "contended" or value is None:
        return result
    return _with_value(result, value, status="completed", failure_kind=None, failure_detail="")


def _with_value(result: Result, value: float | None, **changes: object) -> Result:
    metrics = result.metrics.model_copy(update={result.metric_name: value})
    return result.model_copy(update={**changes, "metric_value": value, "metrics": metrics})


def _slowed(past: DecisionHistory, metadata: Metadata, result: Result) -> str:
    """Return how its slot was slower than usual, in words; empty when it was not."""
    now, key = slot_speed(metadata, result), metadata.runtime.platform_key
    recent = [
        decision for decision in past.on_slot(key, now.slot) if decision.reason != "contended"
    ]
    times = [float(each.lane_kernel_ms) for each in recent if each.lane_kernel_ms][-RECENT:]
    if now.kernel_ms is not None and len(times) >= ENOUGH:
        usual = statistics.median(times)
        if now.kernel_ms > usual + _allowance(usual, times):
            return f"{now.slot} took {now.kernel_ms:.2f} ms for what usually takes {usual:.2f} ms"
    rates = [
        float(decision.tokens_per_second)
        for decision in recent
        if decision.tokens_per_second and _is_same_change(decision, metadata, result)
    ]
    if now.tokens_per_second is not None and rates:
        usual = statistics.median(rates)
        if now.tokens_per_second < usual - _allowance(usual, rates):
            return (
                f"{now.tokens_per_second:,.0f} tokens a second on {now.slot}, where the same "
                f"change made {usual:,.0f}"
            )
    return ""


def _is_same_change(decision: Decision, metadata: Metadata, result: Result) -> bool:
    """Return whether a decision was about the same diff on the same base."""
    if result.parent_commit is None:
        return decision.base_commit is None and decision.commit == result.commit
    same_base = decision.base_commit == result.parent_commit
    return same_base and decision.diff_hash == metadata.runtime.diff_hash


def _allowance(usual: float, values: Sequence[float]) -> float:
    """Return what is not yet slow: ten per cent, or three spreads where the values spread more.

    The standard deviation and no robust one: a core that shares its silicon with another has two
    speeds, and both are usual.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return max(ALLOWED * usual, SPREADS * spread)
