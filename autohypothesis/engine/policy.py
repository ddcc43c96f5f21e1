"""The decision about one finished experiment: evidence in, verdict out, nothing else touched.

This is the ratchet. Better than the reference by at least `min_delta` is kept; an equal score from
fewer lines is kept where the policy says so; all else is discarded. What failed through no fault
of its own is no evidence, and goes back to the queue. Where the task asks for replicates, a better
score is no decision before it was met again at further seeds (confirmation.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autohypothesis.engine.confirmation import (
    Pair,
    UnconfirmedError,
    failed_of,
    missing_of,
    weighed,
)
from autohypothesis.errors import SettleError
from autohypothesis.schema import Confirmation, Direction, FailureKind

_EXACT = 1e-12
"""Differences of measured numbers are this far from what they are on paper."""
_NO_EVIDENCE: tuple[FailureKind, ...] = ("infra", "contended")
MOST_LOST = 5
"""Runs of one hypothesis that infrastructure may lose; the next loss is taken for its own doing."""
_NEVER_NEGATIVE = ("val_bpb",)


@dataclass(frozen=True)
class Measured:
    """A metric that the task limits, and its limits."""

    value: float | None
    soft: float | None = None
    hard: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on.

    Attributes:
        value: the official score; None when the experiment has none.
        reference_value: that of the reference on the same platform, at the same seed.
        lines_changed: added minus removed; None when unknown.
        base_is_reference: whether the change was made to what is the reference now.
        unattested: whether nobody vouches for a score that an evaluator could have vouched for.
        by_hand: whether somebody made the run by hand: only such runs are compared with it.
        seed: of the run; scores compare at one seed only.
        other_seeds: whether the reference has a value on this platform, at whatever seed.
        last_improvement: the value of the last keep that was not a simplification, which a chain
            of simplifications is measured against; None: the reference is that keep.
        comes_back: whether a failure that says nothing about the change may be tried again.
        flag: what is to be said about the value.
        replicates: further pairs that a better score needs before it is kept.
        pairs: those there are, complete or not; the first one, `value` against `reference_value`,
            is not among them.
    """

    value: float | None
    reference_value: float | None
    direction: Direction = "minimize"
    min_delta: float = 0.0
    metric: str = "val_bpb"
    failure: FailureKind | None = None
    failure_detail: str = ""
    lines_changed: int | None = None
    constraints: Mapping[str, Measured] = field(default_factory=dict)
    base_is_reference: bool = True
    is_baseline: bool = False
    is_replicate: bool = False
    unattested: bool = False
    by_hand: bool = False
    seed: int | None = None
    other_seeds: bool = False
    last_improvement: float | None = None
    keep: Literal["improve", "simpler"] = "simpler"
    comes_back: bool = True
    flag: str = ""
    replicates: int = 0
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What is decided, and why. `improvement` is positive when better, whatever the direction."""

    decision_status: Literal["keep", "discard", "crash", "replicate"]
    reason: str
    detail: str = ""
    improvement: float | None = None
    simplification: bool = False
    requeue: bool = False
    confirmation: Confirmation = "none"


def decide(evidence: Evidence) -> Verdict:
    """The verdict of the ratchet.

    Raises:
        UnconfirmedError: it is a win, and runs are missing that would confirm it.
        SettleError: there is a score, and nothing on this platform, or at this seed, to compare
            it with.
    """
    if evidence.failure is not None:
        return _failed(evidence, evidence.failure)
    value = _usable(evidence)
    if value is None:
        return Verdict("crash", "no_metric", f"{evidence.metric} is {evidence.value!r}")
    noted = [*_over(evidence, "soft"), *([evidence.flag] if evidence.flag else [])]
    if evidence.is_baseline:
        return Verdict("keep", "baseline", _sentence([f"{evidence.metric} {value:.6g}", *noted]))
    if evidence.is_replicate:
        return _replicate(evidence, value, noted)
    if evidence.reference_value is None:
        raise _nothing_to_compare_with(evidence)
    return _compared(evidence, value, evidence.reference_value, noted)


def _failed(evidence: Evidence, kind: FailureKind) -> Verdict:
    """A crash; one that says nothing about the change comes back, until it has too often."""
    if kind == "nothing_new":
        return Verdict("discard", kind, evidence.failure_detail)
    if kind not in _NO_EVIDENCE or evidence.comes_back:
        return Verdict("crash", kind, evidence.failure_detail, requeue=kind in _NO_EVIDENCE)
    said = ["lost too often to be tried again", evidence.failure_detail]
    return Verdict("crash", kind, _sentence([words for words in said if words]))


def _nothing_to_compare_with(evidence: Evidence) -> SettleError:
    run = "python orchestrator.py run-experiment --baseline"
    if evidence.by_hand:
        return SettleError(
            f"no run of the reference by hand has a {evidence.metric}",
            hint="train the reference as it is, and record that first:"
            " python orchestrator.py record run.log --commit COMMIT",
        )
    if evidence.other_seeds:
        return SettleError(
            f"the reference has no {evidence.metric} at seed {evidence.seed}",
            hint=f"run it at that seed: `{run} --seed {evidence.seed} --settle`",
        )
    return SettleError(
        f"no reference has a {evidence.metric} on this platform", hint=f"run the baseline: `{run}`"
    )


def _replicate(evidence: Evidence, value: float, noted: list[str]) -> Verdict:
    """A run again: it tells how much a value is worth, and decides nothing.

    Its reason says what it is not good for: a pair of somebody's win, or within the limits.
    """
    said, improvement = f"{evidence.metric} {value:.6g}", None
    if evidence.reference_value is not None:
        improvement = better_by(value, evidence.reference_value, evidence.direction)
        said += f" against {evidence.reference_value:.6g}"
    broken = _over(evidence, "hard")
    reason = "constraint" if broken else "unattested" if evidence.unattested else "replicate"
    return Verdict("replicate", reason, _sentence([*broken, said, *noted]), improvement)


def _compared(evidence: Evidence, value: float, reference: float, noted: list[str]) -> Verdict:
    improvement = better_by(value, reference, evidence.direction)
    said = f"{evidence.metric} {value:.6g} against {reference:.6g}"
    broken = _over(evidence, "hard")
    if broken:
        return Verdict("discard", "constraint", _sentence([*broken, said]), improvement)
    improved = improvement > 0 and improvement >= evidence.min_delta - _EXACT
    simpler = not improved and _is_simplification(evidence, value, improvement)
    if not improved and not simpler:
        within = abs(improvement) < evidence.min_delta - _EXACT or improvement == 0
        reason = "within_noise" if within else "worse"
        return Verdict("discard", reason, _sentence([said, *noted]), improvement)
    if evidence.unattested:
        detail = _sentence(["nobody vouches for it: run it with run-experiment", said, *noted])
        return Verdict("discard", "unattested", detail, improvement)
    if not evidence.base_is_reference:
        detail = _sentence(["the reference moved while it ran", said, *noted])
        return Verdict("discard", "stale_base", detail, improvement, simpler, requeue=True)
    if simpler:
        # Nothing is said to be better here, so there is no luck to be found out by more runs; and
        # how far a chain of these may drift is limited by the last real improvement.
        said = f"{-(evidence.lines_changed or 0)} fewer lines, {said}"
    elif evidence.replicates:
        return _again(evidence, improvement, said, noted)
    return Verdict(
        "keep",
        "simpler" if simpler else "improved",
        _sentence([said, *noted]),
        improvement,
        simplification=simpler,
        confirmation="provisional",
    )


def best_first(values: Mapping[str, float | None], direction: Direction) -> list[str]:
    """Names in the order in which to decide what ran side by side: the first keep takes the place
    that all of them were made for. What has no value comes last; of equals the one named first."""
    sign = 1.0 if direction == "minimize" else -1.0
    return sorted(
        values,
        key=lambda name: math.inf if (value := values[name]) is None else sign * value,
    )


def _again(evidence: Evidence, improvement: float, said: str, noted: list[str]) -> Verdict:
    """A win is kept if it is met again at further seeds, and refuted otherwise."""
    failed = failed_of(evidence.pairs)
    if failed is not None:
        broken = failed.failure == "constraint"
        why = f"run again at seed {failed.seed}: {failed.failure}"
        why += f": {failed.failure_detail}" if failed.failure_detail else ""
        reason = "constraint" if broken else "not_confirmed"
        detail = _sentence([why, said, *noted])
        return Verdict("discard", reason, detail, improvement, confirmation="refuted")
    wanted, missing = evidence.replicates, missing_of(evidence.pairs)
    if len(evidence.pairs) < wanted:
        raise SettleError(
            f"its base fails at too many seeds to confirm it: {said}, on one seed",
            hint="decide it by hand: python orchestrator.py decide ID keep, or discard",
        )
    if missing:
        raise UnconfirmedError(said, missing, 2 * wanted)
    further = [
        better_by(pair.value, pair.base_value, evidence.direction)
        for pair in evidence.pairs
        if pair.value is not None and pair.base_value is not None
    ]
    found = weighed(improvement, further, evidence.min_delta - _EXACT)
    detail = _sentence([found.words, said, *noted])
    if found.holds:
        return Verdict("keep", "improved", detail, found.mean, confirmation="confirmed")
    return Verdict("discard", "not_confirmed", detail, found.mean, confirmation="refuted")


def better_by(value: float, reference: float, direction: Direction) -> float:
    """How much better `value` is: positive is better."""
    return reference - value if direction == "minimize" else value - reference


def _usable(evidence: Evidence) -> float | None:
    """The score, when it can be one."""
    value = evidence.value
    if value is None or not math.isfinite(value):
        return None
    return None if evidence.metric in _NEVER_NEGATIVE and value <= 0 else value


def _is_simplification(evidence: Evidence, value: float, improvement: float) -> bool:
    """An equal score from fewer lines, not drifted away from the last real improvement."""
    if evidence.keep != "simpler" or (evidence.lines_changed or 0) >= 0:
        return False
    if abs(improvement) >= evidence.min_delta - _EXACT and improvement != 0:
        return False
    if evidence.last_improvement is None:
        return True
    drift = better_by(value, evidence.last_improvement, evidence.direction)
    return drift > -evidence.min_delta + _EXACT or drift >= 0


def _over(evidence: Evidence, which: Literal["soft", "hard"]) -> list[str]:
    """The limits of one kind that are exceeded, or, for hard ones, were not measured."""
    words = []
    for name, measured in sorted(evidence.constraints.items()):
        limit = measured.soft if which == "soft" else measured.hard
        if limit is None:
            continue
        if measured.value is None or not math.isfinite(measured.value):
            if which == "hard":
                words.append(f"{name} was not measured, its hard limit is {limit:g}")
        elif measured.value > limit:
            words.append(f"{name} {measured.value:g} is over its {which} limit {limit:g}")
    return words


def _sentence(parts: list[str]) -> str:
    return "; ".join(parts)
