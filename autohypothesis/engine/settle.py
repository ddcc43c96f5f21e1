"""Decide finished experiments: the only place where a decision is recorded and a reference moves.

decisions.jsonl is the truth. A decision is appended first, with the reference it leads to; then
the reference moves by compare-and-swap; then the copy in result.json is stamped. A kill between
any two of these is mended by the next settle, which finishes the last decision's move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from autohypothesis.engine.confirmation import UnconfirmedError
from autohypothesis.engine.contention import lane_speed, restored, void
from autohypothesis.engine.evidence import Case, as_it_counts, finished, gather, read_model
from autohypothesis.engine.past import Settled
from autohypothesis.engine.policy import Evidence, Verdict, better_by, decide
from autohypothesis.engine.project import Project, reference_ref, refuse_checked_out, run_ids
from autohypothesis.engine.replicates import repeats_of
from autohypothesis.engine.task import Constraint
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, SettleError, describe
from autohypothesis.records import bundles, locks
from autohypothesis.records.files import require_writable
from autohypothesis.schema import Confirmation, Decision, Metadata, Result, now

HandMade = Literal["keep", "discard", "crash"]


class Refused(NamedTuple):
    """An experiment that could not be decided, and why."""

    experiment_id: str
    error: AutohypothesisError


class ByHand(NamedTuple):
    """A person's decision, and the reason given for it."""

    status: HandMade
    reason: str


def settle(project: Project, experiment_ids: Iterable[str], *, decided_by: str) -> list[Decision]:
    """Decide each experiment that is not decided yet, in the order given.

    One that waits for its replicates has those decided first which have ended.

    Raises:
        UnconfirmedError: an experiment is a win, and runs are missing that would confirm it.
        SettleError: an experiment is unfinished, or there is nothing to compare it with.
        FleetError: the reference would move, and somebody has its branch checked out.
        RecordError: a file of its bundle is damaged.
        LockError: somebody else is settling and does not finish.
    """
    with locks.hold(project.layout, "settle", doing="deciding experiments"):
        past = repair(project)
        decisions: list[Decision] = []
        for experiment_id in experiment_ids:
            decisions += _settle_asked(project, past, experiment_id, decided_by)
        return decisions


def _settle_asked(
    project: Project, past: Settled, experiment_id: str, decided_by: str
) -> list[Decision]:
    """One experiment, and before it the ended replicates that it waits for."""
    try:
        decision = _settle_one(project, past, experiment_id, decided_by, None)
        return [] if decision is None else [decision]
    except UnconfirmedError as awaits:
        wanted = {(one.commit, one.seed) for one in awaits.repeats}
        ended = [
            name
            for name, metadata in _waiting(project, past)[0]
            if metadata.run.replicates and (metadata.runtime.commit, metadata.run.seed) in wanted
        ]
        decisions, _ = _settle_each(project, past, ended, decided_by)
        if not decisions:
            raise
    return [*decisions, *_settle_asked(project, past, experiment_id, decided_by)]


def settle_waiting(
    project: Project,
    *,
    decided_by: str,
    may: Callable[[str], None] = lambda experiment_id: None,
    limits: Mapping[str, Constraint] | None = None,
    order: Callable[[list[str]], list[str]] = lambda waiting: waiting,
) -> tuple[list[Decision], list[Refused]]:
    """Decide everything that waits; what cannot be decided stands in nobody's way.

    A win that is not confirmed yet is refused with `UnconfirmedError`, which says what to run.

    Args:
        may: raises for an experiment that is not to be decided.
        limits: upper limits on metrics beside those of the task.
        order: in which to decide; they come in the order in which they were recorded.

    Raises:
        LockError: somebody else is settling and does not finish.
    """
    with locks.hold(project.layout, "settle", doing="deciding experiments"):
        past = repair(project)
        waiting, damaged = _waiting(project, past)
        names = order([name for name, _ in waiting])
        decisions, refused = _settle_each(project, past, names, decided_by, may, limits)
        taken: list[Decision] = decisions
        while taken:  # a replicate ends after the win that waits for it, and may be the last one
            names = [one.experiment_id for one in refused if _awaits(one)]
            taken, again = _settle_each(project, past, names, decided_by, may, limits)
            decisions = [*decisions, *taken]
            refused = [*(one for one in refused if not _awaits(one)), *again]
    return decisions, [*damaged, *refused]


def waits_for(project: Project, experiment_id: str) -> UnconfirmedError | None:
    """What an experiment waits for, with what is decided by now; nothing is decided here.

    Raises:
        SettleError: it is unfinished, or there is nothing to compare it with.
        RecordError: a file of its bundle is damaged.
    """
    past = Settled.of_tag(project.layout, project.tag)
    if past.of(experiment_id) is not None:
        return None
    case = as_it_counts(past, finished(project, experiment_id))
    try:
        _verdict(past, case, gather(past, case, project.reference()))
    except UnconfirmedError as awaits:
        return awaits
    return None


def _awaits(one: Refused) -> bool:
    return isinstance(one.error, UnconfirmedError)


def _settle_each(
    project: Project,
    past: Settled,
    names: Iterable[str],
    decided_by: str,
    may: Callable[[str], None] = lambda experiment_id: None,
    limits: Mapping[str, Constraint] | None = None,
) -> tuple[list[Decision], list[Refused]]:
    """What was decided of `names`, and what could not be."""
    decisions, refused = [], []
    for experiment_id in names:
        try:
            may(experiment_id)
            decision = _settle_one(project, past, experiment_id, decided_by, None, limits)
        except AutohypothesisError as error:
            refused.append(Refused(experiment_id, error))
            continue
        except RECOVERABLE_ERRORS as error:
            problem = f"{experiment_id} cannot be judged: {describe(error)}"
            refused.append(Refused(experiment_id, SettleError(problem)))
            past.reference = ""  # wherever it stands by now
            continue
        if decision is not None:
            decisions.append(decision)
    return decisions, refused


def settle_by_hand(
    project: Project, experiment_id: str, status: HandMade, *, reason: str, decided_by: str
) -> Decision:
    """Record a person's decision, which may differ from the policy's and replace an earlier one.

    Overruling a keep takes the reference back to where it was before that keep.

    Raises:
        SettleError: unfinished; or a keep of something without a metric, or on another base; or
            a later keep was built on the one to overrule.
    """
    with locks.hold(project.layout, "settle", doing=f"deciding {experiment_id} by hand"):
        past = repair(project)
        return _by_hand(project, past, experiment_id, ByHand(status, reason), decided_by)


def _by_hand(
    project: Project, past: Settled, experiment_id: str, said: ByHand, decided_by: str
) -> Decision:
    decision = _settle_one(project, past, experiment_id, decided_by, said)
    if decision is None:
        raise SettleError(f"{experiment_id} is decided as {said.status!r} already")
    return decision


def take_hand_edits(
    project: Project, edits: Iterable[tuple[str, str]]
) -> tuple[list[Decision], list[str]]:
    """Decisions that somebody stamped into result.json, as older protocols ask.

    Returns what was recorded, and a line for each edit that was refused. A refused edit comes
    again with every sync, until somebody takes it back; decisions.jsonl is read once for all.
    """
    taken: list[Decision] = []
    refused: list[str] = []
    try:
        with locks.hold(project.layout, "settle", doing="taking decisions from result.json"):
            past = repair(project)
            for experiment_id, status in edits:
                try:
                    said = ByHand(_hand_made(status), "stamped into result.json")
                    taken.append(_by_hand(project, past, experiment_id, said, "result.json"))
                except AutohypothesisError as error:
                    refused.append(f"{experiment_id} as {status!r}: {error}")
    except AutohypothesisError as error:
        refused.append(f"all of them: {error}")
    return taken, refused


def _hand_made(status: str) -> HandMade:
    for known in get_args(HandMade):
        if status == known:
            return known  # type: ignore[no-any-return]
    raise SettleError(f"a person decides {', '.join(get_args(HandMade))}, not {status!r}")


def repair(project: Project) -> Settled:
    """Finish what a killed settle began: the move of the reference, then the stamp; the past.

    Raises:
        UnwritableError: a decision could not be recorded as a whole.
    """
    require_writable(project.layout.research, project.layout.runs)
    past = Settled.of_tag(project.layout, project.tag)
    past.reference = reference = project.reference()
    dangling = past.dangling_move(reference)
    if dangling is not None:
        refuse_checked_out(project.repository, project.active())
        past.reference = ""
        project.repository.compare_and_swap(
            reference_ref(project.active()), str(dangling.reference_after), reference
        )
    if past.decisions:
        with suppress(AutohypothesisError):  # one damaged bundle is not in the others' way
            _stamp(project, past.decisions[-1])
    return past


def _settle_one(
    project: Project,
    past: Settled,
    experiment_id: str,
    decided_by: str,
    said: ByHand | None,
    limits: Mapping[str, Constraint] | None = None,
) -> Decision | None:
    """Decide one experiment and add it to `past`; None when it is decided so already."""
    case = finished(project, experiment_id)
    before = past.of(experiment_id)
    if before is not None and (said is None or before.decision_status == said.status):
        _stamp(project, before)
        return None
    case = _as_recorded(case, before, experiment_id)
    reference = past.reference or project.reference()
    others = past.without(experiment_id)
    case = as_it_counts(others, case) if said is None else case
    evidence = gather(others, case, reference, limits)
    verdict = (
        _verdict(others, case, evidence)
        if said is None
        else _verdict_by_hand(experiment_id, evidence, said)
    )
    decision = _decision(project, others, case, verdict, evidence).model_copy(
        update={
            "decision_id": f"d-{len(past.decisions) + 1:06d}-{experiment_id}",
            "experiment_id": experiment_id,
            "decided_by": decided_by,
            "reference_before": reference,
            "reference_after": _reference_after(past, before, case, verdict, reference),
        }
    )
    if decision.reference_after != reference:
        refuse_checked_out(project.repository, project.active())
    bundles.append_decision(project.layout, decision)
    past.add(decision)
    past.reference = ""
    _carry_out(project, decision, reference)
    past.reference = str(decision.reference_after)
    return decision


def _as_recorded(case: Case, before: Decision | None, experiment_id: str) -> Case:
    """`case` with what was decided about it before, whatever its bundle says by now.

    Raises:
        SettleError: its result.json is the copy of a decision that nobody recorded.
    """
    if before is None:
        if case.result.decision_id is not None:
            raise SettleError(
                f"result.json of {experiment_id} names the decision {case.result.decision_id!r},"
                " and decisions.jsonl has none about it",
                hint="move the run's folder away; to have it decided, take decision_id out of it",
            )
        return case
    decided: dict[str, object] = {"metric_value": before.metric_value}
    if before.metric_value is not None:
        decided |= {"status": "completed", "failure_kind": None}
    if before.commit:
        decided |= {"commit": before.commit, "parent_commit": before.base_commit}
    if before.direction:
        decided["direction"] = before.direction
    if before.metric_name:
        decided["metric_name"] = before.metric_name
    return replace(case, result=case.result.model_copy(update=decided))


def _verdict(others: Settled, case: Case, evidence: Evidence) -> Verdict:
    """The policy's word; who waits for replicates is told whose those are."""
    try:
        return decide(evidence)
    except UnconfirmedError as awaits:
        repeats = repeats_of(others, case.result.commit, case.base, case.metadata, awaits.missing)
        raise awaits.of(case.metadata.run.experiment_id, repeats) from None


def _carry_out(project: Project, decision: Decision, reference: str) -> None:
    """What follows from a record; a kill in between is mended by `repair`."""
    if decision.reference_after != reference:
        _move(project, decision, reference)
    _stamp(project, decision)
    if decision.decision_status in ("discard", "crash"):
        # Nobody builds on it, and its commit and seed make the weights again.
        project.layout.run(decision.experiment_id).weights.unlink(missing_ok=True)


def _reference_after(
    past: Settled, before: Decision | None, case: Case, verdict: Verdict, reference: str
) -> str:
    """Where a decision leads: to a change that is kept, back from a keep that is overruled."""
    if verdict.decision_status == "keep":
        # A run of a commit as it stands says what that is worth, and moves nothing.
        return reference if case.result.parent_commit is None else case.result.commit
    if before is not None and before.decision_status == "keep":
        return past.reference_without(before, reference)
    return reference


def _verdict_by_hand(experiment_id: str, evidence: Evidence, said: ByHand) -> Verdict:
    """A person's word in the policy's place. A keep needs a metric, and the reference as base."""
    improvement = None
    if evidence.value is not None and evidence.reference_value is not None:
        improvement = better_by(evidence.value, evidence.reference_value, evidence.direction)
    keeps = said.status == "keep"
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
    return Verdict(said.status, "by_hand", said.reason, improvement, confirmation=confirmation)


def _decision(
    project: Project, others: Settled, case: Case, verdict: Verdict, evidence: Evidence
) -> Decision:
    """The record, but for its place among the others and what becomes of the reference."""
    result, run, key = case.result, case.metadata.run, case.metadata.runtime.platform_key
    best, speed = others.best(key, evidence.direction), lane_speed(case.metadata, result)
    return Decision(
        decision_id="",
        recorded_at=now(),
        tag=project.active(),
        experiment_id=run.experiment_id,
        hypothesis_id=run.hypothesis_id,
        commit=result.commit,
        base_commit=result.parent_commit,
        decision_status=verdict.decision_status,
        reason=verdict.reason,
        detail=verdict.detail,
        seed=evidence.seed,
        metric_value=evidence.value,
        reference_value=evidence.reference_value,
        improvement=verdict.improvement,
        delta=evidence.value - best if evidence.value is not None and best is not None else None,
        confirmation=verdict.confirmation,
        platform_key=key,
        lines_changed=evidence.lines_changed,
        diff_hash=case.metadata.runtime.diff_hash,
        lane=speed.lane,
        lane_kernel_ms=speed.kernel_ms,
        tokens_per_second=speed.tokens_per_second,
        metric_name=evidence.metric,
        direction=evidence.direction,
        simplification=verdict.simplification,
        requeue=verdict.requeue,
    )


def _move(project: Project, decision: Decision, reference: str) -> None:
    """Move the reference to where a decision leads.

    Raises:
        SettleError: somebody moved it meanwhile, past this module; the decision stays recorded.
    """
    ref = reference_ref(project.active())
    if not project.repository.compare_and_swap(ref, str(decision.reference_after), reference):
        raise SettleError(
            f"{ref} was moved by somebody else while {decision.experiment_id} was decided",
            hint=f"see where it is: git log -1 {ref}",
        )


def _stamp(project: Project, decision: Decision) -> None:
    """Copy a decision into its result.json; the copy names the record it was made from."""
    run = project.layout.run(decision.experiment_id)
    if not run.result.exists():
        return
    result = read_model(Result, run.result)
    if result.decision_id == decision.decision_id:
        return
    if decision.reason == "contended":
        result = void(result, decision.detail)
    elif decision.metric_value is not None:
        result = restored(result)
    stamped = result.model_copy(
        update={
            "decision_status": decision.decision_status,
            "decision_id": decision.decision_id,
            "confirmation": decision.confirmation,
            "outcome": f"{decision.reason}: {decision.detail}"
            if decision.detail
            else decision.reason,
        }
    )
    bundles.write_result(run, stamped)


def _waiting(project: Project, past: Settled) -> tuple[list[tuple[str, Metadata]], list[Refused]]:
    """Experiments of the active tag that have a result and no decision, oldest first.

    A folder whose name is no id is none of ours; one whose metadata is damaged may be.
    """
    found, refused = [], []
    for experiment_id in run_ids(project.layout):
        if past.of(experiment_id) is not None:
            continue
        run = project.layout.run(experiment_id)
        if not run.result.exists() or not run.metadata.exists():
            continue
        try:
            metadata = read_model(Metadata, run.metadata)
        except AutohypothesisError as error:
            refused.append(Refused(experiment_id, error))
            continue
        if metadata.run.tag == project.tag:
            found.append((experiment_id, metadata))
    return sorted(found, key=lambda one: (one[1].recorded_at, one[0])), refused
