"""Decide finished experiments: the only place where a decision is recorded and a reference moves.

decisions.jsonl is the truth. A decision is appended first, with the reference it leads to; then
the reference moves by compare-and-swap; then the copy in result.json is stamped; what a settle has
appended is anchored at its end (records/chain.py). A kill between any two of these is mended by the
next settle, which finishes the last decision's move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from autohypothesis.engine.attestation import hash_of
from autohypothesis.engine.evidence import (
    Case,
    contaminated,
    gather,
    read_case,
    require_known,
    restored,
    slot_speed,
    with_contention,
    with_decided_values,
)
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.policy import Evidence, Missing, Verdict, verdict_of
from autohypothesis.engine.project import Project, run_ids
from autohypothesis.engine.reference import catch_up, move_reference, reference_ref
from autohypothesis.engine.task import Constraint
from autohypothesis.engine.verify import refuse_unverified
from autohypothesis.engine.weights import trim_weights
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, SettleError, describe
from autohypothesis.records import bundles, locks
from autohypothesis.records.bundles import is_of_no_search
from autohypothesis.records.chain import DecisionChain
from autohypothesis.records.comparison import is_near_miss
from autohypothesis.records.files import load, load_or_none, require_writable
from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.layout import Layout
from autohypothesis.records.tables import HandEdit
from autohypothesis.schema import Confirmation, Decision, Metadata, Result, now

StatusByHand = Literal["keep", "discard", "crash"]


@dataclass(frozen=True)
class NeedsRuns:
    """A win that cannot be decided before it was run again.

    Attributes:
        runs: the missing ones, the change's before its base's; `base` is the commit to run again.
        platform_key: where they have to run.
        wanted: how many runs confirm it, those that were made included.
        words: the comparison that makes it a win.
    """

    experiment_id: str
    runs: tuple[Experiment, ...]
    platform_key: str
    wanted: int
    words: str

    @property
    def error(self) -> SettleError:
        return SettleError(
            f"it awaits {len(self.runs)} of {self.wanted} runs that confirm it: {self.words},"
            " on one seed",
            hint="run what is missing: `python orchestrator.py run-experiment --replicate"
            f" {self.experiment_id}`",
        )


@dataclass
class Settlement:
    """The outcome of one settle: each experiment is decided, needs more runs, or is refused."""

    decisions: list[Decision] = field(default_factory=list)
    """The decisions, in the order in which they were made."""
    needs_runs: list[NeedsRuns] = field(default_factory=list)
    refused: dict[str, AutohypothesisError] = field(default_factory=dict)
    """Experiments that cannot be decided, and why."""

    def decisions_or_raise(self) -> list[Decision]:
        """Return the decisions; raise the error of the first experiment that has none."""
        for error in self.undecided.values():
            raise error
        return self.decisions

    @property
    def undecided(self) -> dict[str, AutohypothesisError]:
        return {**self.refused, **{win.experiment_id: win.error for win in self.needs_runs}}


def settle(
    project: Project,
    experiment_ids: Iterable[str] | None = None,
    *,
    decided_by: str,
    check: Callable[[str], None] = lambda experiment_id: None,
    limits: Mapping[str, Constraint] | None = None,
    order: Callable[[list[str]], list[str]] = lambda waiting: waiting,
    again: Mapping[str, int] | None = None,
) -> Settlement:
    """Decide experiments; one that cannot be decided does not stop the others.

    Args:
        experiment_ids: those to decide, in this order, and before a win the ended runs that
            confirm it; None: all that wait, in the order in which they were recorded. What is
            decided already is left out.
        check: raises for an experiment that is not to be decided now.
        limits: upper limits on metrics beside those of the task.
        order: sorts what waits.
        again: near miss -> the further pairs by which it is judged again; see `pairs_of_near_miss`.

    Raises:
        LockError: another process is settling and does not finish.
    """
    with locks.hold(project.layout, "settle", doing="deciding experiments"):
        settling = _Settling(project, repair(project), decided_by, check, limits or {}, again or {})
        if experiment_ids is None:
            waiting, damaged = _waiting(project, settling.past)
            settling.decide(order([name for name, _ in waiting]))
            settling.settlement.refused = {**damaged, **settling.settlement.refused}
        else:
            settling.decide(experiment_ids)
        settling.chain.advance()
        return settling.settlement


def settle_by_hand(
    project: Project, experiment_id: str, status: StatusByHand, *, reason: str, decided_by: str
) -> Decision:
    """Record a person's decision, which may differ from the policy's and replace an earlier one.

    Overruling a keep takes the reference back to where it was before that keep.

    Raises:
        SettleError: it is unfinished, or decided so already; or a keep of something without a
            metric, or on another base; or a later keep was built on the one to overrule.
    """
    with locks.hold(project.layout, "settle", doing=f"deciding {experiment_id} by hand"):
        settling = _Settling(project, repair(project), decided_by)
        decision = settling.decide_one(experiment_id, Verdict(status, "by_hand", reason))
        if not isinstance(decision, Decision):
            raise SettleError(f"{experiment_id} is decided as {status!r} already")
        settling.chain.advance()
        return decision


def pairs_of_near_miss(project: Project, experiment_id: str, seeds: int) -> int:
    """Return the pairs by which a near miss is to be judged, if it is run at `seeds` more seeds.

    Raises:
        SettleError: it is no near miss; or its base is not the reference any more; or the engine
            did not run it, and cannot repeat it.
    """
    decision = DecisionHistory.of_tag(project.layout, project.tag).of(experiment_id)
    if decision is None or not is_near_miss(vars(decision)):
        require_known(project.layout, experiment_id)
        found = f"a {decision.decision_status} ({decision.reason})" if decision else "not decided"
        raise SettleError(
            f"{experiment_id} is {found}, and only a near miss is run at more seeds",
            hint="`python orchestrator.py runs` names the near misses",
        )
    run = project.layout.run(experiment_id)
    if not run.run_spec.exists():
        raise SettleError(
            f"{experiment_id} was run by hand, and cannot be repeated",
            hint="run its commit: python orchestrator.py run-experiment --patch FILE --decide",
        )
    if decision.base_commit != project.reference():
        raise SettleError(
            f"{experiment_id} was made on a commit that is no longer the reference",
            hint="run its change on the current one: python orchestrator.py run-experiment --decide"
            f" --patch {run.diff}",
        )
    return (decision.pairs or 0) + seeds


def edits_in_results(layout: Layout, edits: Iterable[HandEdit]) -> list[str]:
    """Return remarks about decisions in a result.json of ours: they decide nothing.

    What another tool wrote into its own bundles is history, and needs no remark.
    """
    return [
        f"result.json of {edit.experiment_id} says {edit.status!r}, which decides nothing; the"
        f" command does: python orchestrator.py decide {edit.experiment_id} {edit.status}"
        for edit in edits
        if layout.run(edit.experiment_id).run_spec.exists()
    ]


def repair(project: Project) -> DecisionHistory:
    """Finish what a killed settle began: the move of the reference, then the stamp.

    Returns the decisions of the tag, with where its reference stands.

    Raises:
        UnwritableError: a decision could not be recorded as a whole.
    """
    require_writable(project.layout.research, project.layout.runs)
    past = DecisionHistory.of_tag(project.layout, project.tag)
    past.reference = reference = project.reference()
    catch_up(project.repository, project.active(), reference)
    dangling = past.dangling_move(reference)
    if dangling is not None and not _is_copied(project, dangling):
        past.reference = ""
        after = str(dangling.reference_after)
        move_reference(project.repository, project.active(), after, reference)
    if past.decisions:
        _stamp(project, past.decisions[-1])
    return past


def _is_copied(project: Project, decision: Decision) -> bool:
    """Return whether its copy was made, so that its move was too: a person has moved back since."""
    result = load_or_none(Result, project.layout.run(decision.experiment_id).result)
    return result is not None and result.decision_id == decision.decision_id


@dataclass
class _Settling:
    """One settle, under the lock: decides one experiment after another, and adds it to `past`."""

    project: Project
    past: DecisionHistory
    decided_by: str
    check: Callable[[str], None] = lambda experiment_id: None
    limits: Mapping[str, Constraint] = field(default_factory=dict)
    again: Mapping[str, int] = field(default_factory=dict)
    settlement: Settlement = field(default_factory=Settlement)

    def __post_init__(self) -> None:
        self.chain = DecisionChain(self.project.repository, self.project.layout)
        self.chain.begin()

    def decide(self, names: Iterable[str]) -> None:
        """Decide `names`; a win that needs runs again whenever one of these was decided."""
        self._decide_each(names)
        settlement, known = self.settlement, 0
        while settlement.needs_runs:
            refused = dict(settlement.refused)
            self._decide_each(self._ended_replicates())
            settlement.refused = refused  # of replicates that the caller did not name
            if len(settlement.decisions) == known:
                return
            known = len(settlement.decisions)
            wins, settlement.needs_runs = settlement.needs_runs, []
            self._decide_each(win.experiment_id for win in wins)

    def _decide_each(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self.check(name)
                outcome = self.decide_one(name)
                if isinstance(outcome, NeedsRuns):
                    self.settlement.needs_runs.append(outcome)
                elif outcome is not None:
                    self.settlement.decisions.append(outcome)
            except AutohypothesisError as error:
                self.settlement.refused[name] = error
            except RECOVERABLE_ERRORS as error:
                problem = SettleError(f"{name} cannot be judged: {describe(error)}")
                self.settlement.refused[name] = problem
                self.past.reference = ""  # unknown: it is read again before the next decision

    def _ended_replicates(self) -> list[str]:
        """Return the undecided experiments that are runs which a win needs."""
        wins = self.settlement.needs_runs
        needed = {(run.base, run.seed) for win in wins for run in win.runs}
        return [
            name
            for name, metadata in _waiting(self.project, self.past)[0]
            if metadata.run.replicates
            and name not in self.settlement.refused
            and (metadata.runtime.commit, metadata.run.seed) in needed
        ]

    def decide_one(
        self, experiment_id: str, by_hand: Verdict | None = None
    ) -> Decision | NeedsRuns | None:
        """Decide, record and carry out; return None when it is decided so already."""
        project, past = self.project, self.past
        case = read_case(project, experiment_id)
        copied_id = case.result.decision_id
        before = past.of(experiment_id)
        wanted = by_hand.decision_status if by_hand else None
        further = self.again.get(experiment_id, 0)
        if before is not None and not further and wanted in (None, before.decision_status):
            _stamp(project, before)
            return None
        case = with_decided_values(case, before)
        reference = past.reference or project.reference()
        others = past.without(experiment_id)
        if by_hand is None:
            if before is None:
                case = with_contention(others, case)
            evidence = gather(others, case, reference, self.limits, further)
            verdict = verdict_of(evidence)
        else:
            evidence = gather(others, case, reference, self.limits)
            verdict = _verdict_by_hand(experiment_id, evidence, by_hand)
            if before is not None and before.pairs:
                verdict = verdict._replace(improvement=before.improvement, pairs=before.pairs)
        if not isinstance(verdict, Verdict):
            runs = tuple(_missing_runs(others, case, verdict.missing))
            key = case.metadata.runtime.platform_key
            return NeedsRuns(experiment_id, runs, key, verdict.wanted, verdict.words)
        if by_hand is None and verdict.decision_status in ("keep", "replicate"):
            refuse_unverified(project.repository, project.layout, experiment_id, before)
        after = _reference_after(project, past, before, case, verdict, reference)
        number = past.highest_number() + 1
        if copied_id == _decision_id(number, experiment_id):
            number += 1  # that one's line is damaged
        decision = _record(
            others,
            case,
            verdict,
            evidence,
            decision_id=_decision_id(number, experiment_id),
            tag=project.active(),
            decided_by=self.decided_by,
            reference_before=reference,
            reference_after=after,
            attestation=hash_of(project.layout.run(experiment_id)),
        )
        self.chain.append(decision)
        past.add(decision)
        past.reference = ""  # until it has moved; a kill from here on is mended by `repair`
        tag, to = project.active(), str(after)
        if after != reference and not move_reference(project.repository, tag, to, reference):
            raise SettleError(
                f"{reference_ref(tag)} was moved by another process while {experiment_id} was"
                " decided",
                hint=f"see where it is: git log -1 {reference_ref(tag)}",
            )
        past.reference = after
        _stamp(project, decision)
        if project.layout.run(experiment_id).weights.exists():
            trim_weights(project.layout, past)
        return decision


def _decision_id(number: int, experiment_id: str) -> str:
    return f"d-{number:06d}-{experiment_id}"


def undecided_baselines(project: Project) -> list[str]:
    """Return the baselines of the active tag that have a result and no decision."""
    waiting, _ = _waiting(project, DecisionHistory.of_tag(project.layout, project.tag))
    mine = f"{baseline_id(project.active())}-"
    return [name for name, _ in waiting if name.startswith(mine)]


def _waiting(
    project: Project, past: DecisionHistory
) -> tuple[list[tuple[str, Metadata]], dict[str, AutohypothesisError]]:
    """Return the experiments of the active tag that have a result and no decision, and errors.

    Those are of experiments whose metadata is damaged; the others come oldest first.

    A folder whose name is no id is none of ours.
    """
    waiting = []
    refused: dict[str, AutohypothesisError] = {}
    for experiment_id in run_ids(project.layout):
        run = project.layout.run(experiment_id)
        if past.of(experiment_id) is not None or not run.result.exists() or is_of_no_search(run):
            continue
        try:
            metadata = load(Metadata, run.metadata)
        except FileNotFoundError:
            continue
        except AutohypothesisError as error:
            refused[experiment_id] = error
            continue
        if metadata.run.tag == project.tag:
            waiting.append((experiment_id, metadata))
    return sorted(waiting, key=lambda pair: (pair[1].recorded_at, pair[0])), refused


def _missing_runs(
    others: DecisionHistory, case: Case, missing: Iterable[Missing]
) -> Iterator[Experiment]:
    name, key = case.experiment_id, case.metadata.runtime.platform_key
    for side, seed in missing:
        of_change = side == "change"
        commit = case.result.commit if of_change else case.base
        subject = name if of_change else f"the base of {name}"
        yield Experiment(
            Change(),
            title=f"{subject} again, at seed {seed}",
            rationale=f"{name} is kept when it is better at further seeds as well",
            # An earlier try that was lost is continued: how often it may be is counted by it.
            hypothesis_id=others.lost_hypothesis_at(commit, seed) or "",
            seed=seed,
            replicates=name if of_change else others.original_of(case.base, key),
            base=commit,
        )


def _verdict_by_hand(experiment_id: str, evidence: Evidence, by_hand: Verdict) -> Verdict:
    """Complete a person's verdict. A keep needs a metric, and the reference as base."""
    keeps = by_hand.decision_status == "keep"
    if keeps and evidence.value is None:
        raise SettleError(
            f"{experiment_id} has no {evidence.metric}, so it cannot be kept",
            hint=f"see why: python orchestrator.py show {experiment_id}",
        )
    if keeps and not evidence.base_is_reference and not evidence.is_baseline:
        raise SettleError(
            f"{experiment_id} was made on a commit that is no longer the reference",
            hint="run its change again on the current one: run-experiment --patch change.diff",
        )
    confirmation: Confirmation = "provisional" if keeps else "none"
    return by_hand._replace(improvement=evidence.improvement, confirmation=confirmation)


def _reference_after(
    project: Project,
    past: DecisionHistory,
    before: Decision | None,
    case: Case,
    verdict: Verdict,
    reference: str,
) -> str:
    """Return the reference after a decision: a kept change, or what an overruled keep left."""
    if verdict.decision_status == "keep":
        # A kept baseline or replicate does not move the reference.
        return reference if case.result.parent_commit is None else case.result.commit
    if before is not None and before.decision_status == "keep":
        return past.reference_without(before, reference, project.repository.is_ancestor)
    return reference


def _record(
    others: DecisionHistory, case: Case, verdict: Verdict, evidence: Evidence, **about: Any
) -> Decision:
    result, run, key = case.result, case.metadata.run, case.metadata.runtime.platform_key
    best = others.best_value(key, evidence.direction)
    speed = slot_speed(case.metadata, result)
    return Decision(
        recorded_at=now(),
        experiment_id=case.experiment_id,
        hypothesis_id=run.hypothesis_id,
        commit=result.commit,
        base_commit=result.parent_commit,
        seed=evidence.seed,
        metric_value=evidence.value,
        reference_value=evidence.reference_value,
        min_delta=evidence.min_delta,
        delta=evidence.value - best if evidence.value is not None and best is not None else None,
        platform_key=key,
        lines_changed=evidence.lines_changed,
        diff_hash=case.metadata.runtime.diff_hash,
        tree_hash=case.metadata.runtime.tree_hash,
        lane=speed.slot,
        lane_kernel_ms=speed.kernel_ms,
        tokens_per_second=speed.tokens_per_second,
        metric_name=evidence.metric,
        direction=evidence.direction,
        **verdict._asdict(),
        **about,
    )


def _stamp(project: Project, decision: Decision) -> None:
    """Copy a decision into its result.json; the copy names the record it was made from.

    The decision stands without it, so a damaged result or a full disk is no error.
    """
    run = project.layout.run(decision.experiment_id)
    result = load_or_none(Result, run.result)
    if result is None or result.decision_id == decision.decision_id:
        return
    if decision.reason == "contended":
        result = contaminated(result, decision.detail)
    elif decision.metric_value is not None:
        result = restored(result)
    outcome = ": ".join(filter(None, (decision.reason, decision.detail)))
    stamped = result.model_copy(
        update={
            "decision_status": decision.decision_status,
            "decision_id": decision.decision_id,
            "confirmation": decision.confirmation,
            "outcome": outcome,
        }
    )
    with suppress(AutohypothesisError, OSError):
        bundles.write_result(run, stamped)
