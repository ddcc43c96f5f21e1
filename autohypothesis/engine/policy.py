"""The decision about one finished experiment: evidence in, verdict out. Pure.

Better than the reference by at least `min_delta` is kept; an equal score from fewer lines is kept
where the task says so; all else is discarded. An infrastructure failure is no
evidence, and the hypothesis is requeued. Where the task asks for replicates, a better score is kept
only after the change and its base were run again in pairs, each at a further seed.

The first pair was selected for being good (winner's curse), so it does not count: the others have
to be better by `min_delta` on their own average, and that average is what is reported. A near miss,
better by less than that, may be run again in the same way when a person asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple

from autohypothesis.errors import SettleError
from autohypothesis.records.comparison import EXACT, Comparison, value_words
from autohypothesis.schema import Confirmation, Direction, FailureKind, finite

if TYPE_CHECKING:
    from autohypothesis.engine.task import Constraint

_NO_EVIDENCE: tuple[FailureKind, ...] = ("infra", "contended", "cancelled")
STALE = "the reference moved while it ran"
MAX_INFRA_RETRIES = 5
"""Infrastructure failures of one hypothesis; the next one counts as a crash."""
_NEVER_NEGATIVE = ("val_bpb",)


@dataclass(frozen=True, slots=True)
class Pair:
    """The change and its base, run again at one further seed; None: that run is missing.

    Attributes:
        failure: of the change's run, by its own fault: a failure kind, or `constraint`.
    """

    seed: int
    value: float | None = None
    base_value: float | None = None
    failure: str = ""
    failure_detail: str = ""


class Missing(NamedTuple):
    side: Literal["change", "base"]
    seed: int


@dataclass(frozen=True)
class Evidence:
    """Everything a decision rests on.

    Attributes:
        value: the official score; None when the experiment has none.
        reference_value: the score of its base on the same platform, at the same seed.
        constraints: limits on `metrics`, the other numbers of the run.
        lines_changed: added minus removed; None when unknown.
        base_is_reference: whether the change was made to what is the reference now.
        unattested: whether an evaluator could have vouched for the score, and did not.
        by_hand: whether a person made the run: only such runs are compared with it.
        seed: of the run; scores compare at one seed only.
        other_seeds: whether its base has a value on this platform, at whatever seed.
        last_improvement: the value of the last keep that was not a simplification, which a chain
            of simplifications is measured against; None: the reference is that keep.
        may_retry: whether a failure that says nothing about the change sends it back to the queue.
        flag: a remark about the value, for the record.
        replicates: further pairs that a better score needs before it is kept.
        is_near_miss: whether it was decided as one, and is judged again by further pairs.
        pairs: the further pairs, complete or not; the first one, `value` against
            `reference_value`, is not among them.
    """

    value: float | None
    reference_value: float | None
    direction: Direction = "minimize"
    min_delta: float = 0.0
    metric: str = "val_bpb"
    failure: FailureKind | None = None
    failure_detail: str = ""
    lines_changed: int | None = None
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)
    base_is_reference: bool = True
    is_baseline: bool = False
    is_replicate: bool = False
    unattested: bool = False
    by_hand: bool = False
    seed: int | None = None
    other_seeds: bool = False
    last_improvement: float | None = None
    keep: Literal["improve", "simpler"] = "simpler"
    may_retry: bool = True
    flag: str = ""
    replicates: int = 0
    is_near_miss: bool = False
    pairs: tuple[Pair, ...] = ()

    @property
    def improvement(self) -> float | None:
        """Return the improvement over the reference's value; None when one of them is missing."""
        if self.value is None or self.reference_value is None:
            return None
        return better_by(self.value, self.reference_value, self.direction)

    @property
    def least(self) -> float:
        """The noise threshold: smaller differences are noise."""
        return self.min_delta - EXACT

    def compared(self, improvement: float) -> str:
        """Return an improvement in words, with the threshold."""
        return Comparison(improvement, self.min_delta).words


class Verdict(NamedTuple):
    """A decision and its reason.

    Attributes:
        improvement: positive when better, in either direction; of a run that was repeated in
            pairs, the mean over `pairs` further ones.
    """

    decision_status: Literal["keep", "discard", "crash", "replicate", "cancelled"]
    reason: str
    detail: str = ""
    improvement: float | None = None
    pairs: int = 0
    simplification: bool = False
    requeue: bool = False
    confirmation: Confirmation = "none"


class NeedsConfirmation(NamedTuple):
    """A win on one seed, which is no decision before it was run again.

    Attributes:
        words: the comparison that makes it a win.
        missing: the runs to make, the change's before its base's.
        wanted: how many runs confirm it, those that were made included.
    """

    words: str
    missing: tuple[Missing, ...]
    wanted: int


def verdict_of(evidence: Evidence) -> Verdict | NeedsConfirmation:
    """Judge one experiment.

    Raises:
        SettleError: there is a score, and nothing on this platform, or at this seed, to compare
            it with; or its base fails at too many seeds to confirm anything.
    """
    if evidence.failure is not None:
        return _failed(evidence, evidence.failure)
    value = evidence.value
    if value is None or not _is_score(evidence.metric, value):
        return Verdict("crash", "no_metric", f"{evidence.metric} is {value!r}")
    notes = [*_limits_exceeded(evidence, "soft"), *([evidence.flag] if evidence.flag else [])]
    if evidence.is_baseline:
        words = f"{evidence.metric} {value_words(value)}"
        return Verdict("keep", "baseline", "; ".join([words, *notes]))
    if evidence.is_replicate:
        return _replicate(evidence, value, notes)
    if evidence.improvement is None:
        if evidence.base_is_reference:
            raise _nothing_to_compare_with(evidence)
        why = f"{STALE}, and its base has no {evidence.metric} at seed {evidence.seed}"
        words = f"{evidence.metric} {value_words(value)}"
        return Verdict("discard", "stale_base", "; ".join([why, words, *notes]), requeue=True)
    return _compared(evidence, value, evidence.improvement, notes)


def better_by(value: float, reference: float, direction: Direction) -> float:
    """Return how much better `value` is: positive is better."""
    return reference - value if direction == "minimize" else value - reference


def _failed(evidence: Evidence, kind: FailureKind) -> Verdict:
    """Return a crash; infrastructure failures are requeued up to the limit of retries.

    What a person stopped is no crash, and comes back however often.
    """
    if kind == "cancelled":
        return Verdict("cancelled", kind, evidence.failure_detail, requeue=True)
    if kind == "nothing_new":
        return Verdict("discard", kind, evidence.failure_detail)
    if kind not in _NO_EVIDENCE or evidence.may_retry:
        return Verdict("crash", kind, evidence.failure_detail, requeue=kind in _NO_EVIDENCE)
    words = ["lost too often to be tried again", evidence.failure_detail]
    return Verdict("crash", kind, "; ".join(filter(None, words)))


def _is_score(metric: str, value: float) -> bool:
    return math.isfinite(value) and not (metric in _NEVER_NEGATIVE and value <= 0)


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
            hint=f"run it at that seed: `{run} --seed {evidence.seed} --decide`",
        )
    return SettleError(
        f"no reference has a {evidence.metric} on this platform", hint=f"run the baseline: `{run}`"
    )


def _replicate(evidence: Evidence, value: float, notes: list[str]) -> Verdict:
    """Return the verdict of a replicate, which is recorded and moves nothing.

    Its reason is `constraint` or `unattested` where it may not be used as a pair.
    """
    words = f"{evidence.metric} {value_words(value, evidence.reference_value)}"
    broken = _limits_exceeded(evidence, "hard")
    reason = "constraint" if broken else "unattested" if evidence.unattested else "replicate"
    detail = "; ".join([*broken, words, *notes])
    return Verdict("replicate", reason, detail, evidence.improvement)


def _compared(
    evidence: Evidence, value: float, improvement: float, notes: list[str]
) -> Verdict | NeedsConfirmation:
    words = f"{evidence.metric} {value_words(value, evidence.reference_value)}"
    words += f", {evidence.compared(improvement)}"

    def discard(reason: str, *first: str, requeue: bool = False) -> Verdict:
        detail = "; ".join([*first, words, *notes])
        return Verdict(
            "discard", reason, detail, improvement,
            simplification=simpler and requeue, requeue=requeue,
        )  # fmt: skip

    improved = improvement > 0 and improvement >= evidence.least
    simpler = not improved and _is_simplification(evidence, value, improvement)
    if broken := _limits_exceeded(evidence, "hard"):
        return Verdict("discard", "constraint", "; ".join([*broken, words]), improvement)
    if not improved and not simpler and not evidence.is_near_miss:
        within = abs(improvement) < evidence.least or improvement == 0
        return discard("within_noise" if within else "worse")
    if evidence.unattested:
        return discard("unattested", "no evaluator vouches for it: run it with run-experiment")
    if not evidence.base_is_reference and not evidence.is_near_miss:
        return discard("stale_base", STALE, requeue=True)
    if (improved or evidence.is_near_miss) and evidence.replicates:
        return _confirmed(evidence, improvement, words, notes)
    if simpler:
        # Nothing is claimed to be better here, so there is no luck to be found out by more runs;
        # how far a chain of these may drift is limited by the last real improvement.
        words = f"{-(evidence.lines_changed or 0)} fewer lines, {words}"
    reason, detail = "simpler" if simpler else "improved", "; ".join([words, *notes])
    return Verdict(
        "keep", reason, detail, improvement, simplification=simpler, confirmation="provisional"
    )


def _confirmed(
    evidence: Evidence, first: float, words: str, notes: list[str]
) -> Verdict | NeedsConfirmation:
    """A win is kept if it is met again at further seeds, and refuted otherwise.

    A near miss that is better there by less than it takes stays one.

    Args:
        first: the improvement of the first pair.
    """
    pairs = sorted(evidence.pairs, key=lambda pair: pair.seed)
    failed = next((pair for pair in pairs if pair.failure), None)
    if failed is not None:
        why = f"run again at seed {failed.seed}: {failed.failure}"
        why += f": {failed.failure_detail}" if failed.failure_detail else ""
        reason = "constraint" if failed.failure == "constraint" else "not_confirmed"
        detail = "; ".join([why, words, *notes])
        return Verdict("discard", reason, detail, first, confirmation="refuted")
    if len(pairs) < evidence.replicates:
        raise SettleError(
            f"its base fails at too many seeds to confirm it: {words}, on one seed",
            hint="decide it by hand: python orchestrator.py decide ID keep, or discard",
        )
    if missing := tuple(_missing(pairs)):
        return NeedsConfirmation(words, missing, 2 * evidence.replicates)
    further = [
        better_by(pair.value, pair.base_value, evidence.direction)
        for pair in pairs
        if pair.value is not None and pair.base_value is not None
    ]
    mean, number = fmean(further), len(further)
    average = f"{number} further pair{'s' * (number > 1)}: {evidence.compared(mean)}"
    average += f", spread {stdev(further):.2g}" if number > 1 else ""
    detail = "; ".join([average, f"first {words}", *notes])
    if mean > 0 and mean >= evidence.least:
        if not evidence.base_is_reference:
            detail = "; ".join([STALE, detail])
            return Verdict("discard", "stale_base", detail, mean, number, requeue=True)
        return Verdict("keep", "improved", detail, mean, number, confirmation="confirmed")
    if evidence.is_near_miss and mean > 0:
        return Verdict("discard", "within_noise", detail, mean, number)
    return Verdict("discard", "not_confirmed", detail, mean, number, confirmation="refuted")


def _missing(pairs: Sequence[Pair]) -> Iterator[Missing]:
    """Yield pair by pair, the change first: if that fails, its base need not be run."""
    for pair in pairs:
        if pair.value is None:
            yield Missing("change", pair.seed)
        if pair.base_value is None:
            yield Missing("base", pair.seed)


def _is_simplification(evidence: Evidence, value: float, improvement: float) -> bool:
    """Return whether it is an equal score from fewer lines, near the last real improvement."""
    if evidence.keep != "simpler" or (evidence.lines_changed or 0) >= 0:
        return False
    if abs(improvement) >= evidence.least and improvement != 0:
        return False
    if evidence.last_improvement is None:
        return True
    drift = better_by(value, evidence.last_improvement, evidence.direction)
    return drift > -evidence.least or drift >= 0


def _limits_exceeded(evidence: Evidence, which: Literal["soft", "hard"]) -> list[str]:
    """Return the limits of one kind that are exceeded, or, for hard ones, were not measured."""
    words = []
    for name, constraint in sorted(evidence.constraints.items()):
        limit = constraint.soft if which == "soft" else constraint.hard
        if limit is None:
            continue
        value = finite(evidence.metrics.get(name))
        if value is None:
            if which == "hard":
                words.append(f"{name} was not measured, its hard limit is {limit:g}")
        elif value > limit:
            words.append(f"{name} {value:g} is over its {which} limit {limit:g}")
    return words
