"""Decide finished experiments: the only place where a decision is recorded and a reference moves.

decisions.jsonl is the truth. A decision is appended first, with the reference it leads to; then
the reference moves by compare-and-swap; then the copy in result.json is stamped. A kill between
any two of these is mended by the next settle, which finishes the last keep's move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from autohypothesis.engine.lab import Lab, reference_ref, run_ids
from autohypothesis.engine.policy import Evidence, Measured, Verdict, better_by, decide
from autohypothesis.errors import AutohypothesisError, SettleError
from autohypothesis.records import bundles, locks
from autohypothesis.records.files import read_json
from schema import Confirmation, Decision, Metadata, Result, finite, now

HandMade = Literal["keep", "discard", "crash"]


@dataclass(frozen=True, slots=True)
class Settled:
    """The past of one tag, replayed from decisions.jsonl."""

    decisions: Sequence[Decision]

    def of(self, experiment_id: str) -> Decision | None:
        """The latest decision about one experiment."""
        found = [d for d in self.decisions if d.experiment_id == experiment_id]
        return found[-1] if found else None

    def value_of(self, commit: str, platform_key: str) -> float | None:
        """The metric of a kept commit on one platform; experiments compare there only."""
        for decision in reversed(self.decisions):
            same = decision.commit == commit and decision.platform_key == platform_key
            if same and decision.decision_status == "keep" and decision.metric_value is not None:
                return decision.metric_value
        return None

    def anchor(self, platform_key: str) -> float | None:
        """The metric of the last keep that was no simplification: what a chain may not undo."""
        for decision in reversed(self.decisions):
            if (
                decision.decision_status == "keep"
                and not decision.simplification
                and decision.platform_key == platform_key
            ):
                return decision.metric_value
        return None

    def best(self, platform_key: str, direction: str) -> float | None:
        """The best kept value so far on one platform."""
        values = [
            decision.metric_value
            for decision in self.decisions
            if decision.decision_status == "keep"
            and decision.metric_value is not None
            and decision.platform_key == platform_key
        ]
        if not values:
            return None
        return min(values) if direction == "minimize" else max(values)

    def dangling_keep(self, reference: str) -> Decision | None:
        """The last keep, when it was recorded but its reference has not moved yet."""
        moves = [d for d in self.decisions if d.reference_after and d.decision_status == "keep"]
        last = moves[-1] if moves else None
        if last is None or last.reference_before != reference:
            return None
        return last if last.reference_after != reference else None


def settle(lab: Lab, experiment_ids: Iterable[str], *, decided_by: str) -> list[Decision]:
    """Decide each experiment that is not decided yet, in the order given.

    Raises:
        SettleError: an experiment is unfinished, or there is no baseline to compare it with.
        LockError: somebody else is settling and does not finish.
    """
    with locks.hold(lab.layout, "settle", doing="deciding experiments"):
        repair(lab)
        return [
            decision
            for experiment_id in experiment_ids
            if (decision := _settle_one(lab, experiment_id, decided_by, None, "")) is not None
        ]


def settle_by_hand(
    lab: Lab, experiment_id: str, status: HandMade, *, reason: str, decided_by: str
) -> Decision:
    """Record a person's decision, which may differ from the policy's and replace an earlier one.

    Raises:
        SettleError: unfinished; or a keep of something without a metric, or on another base.
    """
    with locks.hold(lab.layout, "settle", doing=f"deciding {experiment_id} by hand"):
        repair(lab)
        decision = _settle_one(lab, experiment_id, decided_by, status, reason)
        if decision is None:
            raise SettleError(f"{experiment_id} is decided as {status!r} already")
        return decision


def take_hand_edits(lab: Lab, edits: Iterable[tuple[str, str]]) -> tuple[list[Decision], list[str]]:
    """Decisions that somebody stamped into result.json, as older protocols ask.

    Returns what was recorded, and a line for each edit that was refused.
    """
    taken, refused = [], []
    for experiment_id, status in edits:
        try:
            decision = settle_by_hand(
                lab, experiment_id, _hand_made(status), reason="stamped into result.json",
                decided_by="result.json",
            )  # fmt: skip
            taken.append(decision)
        except AutohypothesisError as error:
            refused.append(f"{experiment_id} as {status!r}: {error}")
    return taken, refused


def _hand_made(status: str) -> HandMade:
    for known in get_args(HandMade):
        if status == known:
            return known  # type: ignore[no-any-return]
    raise SettleError(f"a person decides {', '.join(get_args(HandMade))}, not {status!r}")


def repair(lab: Lab) -> None:
    """Finish what a killed settle began: the move of the reference, then the stamps."""
    past = _past(lab)
    reference = lab.reference()
    dangling = past.dangling_keep(reference)
    if dangling is not None and dangling.reference_after is not None:
        lab.repository.compare_and_swap(
            reference_ref(lab.active()), dangling.reference_after, reference
        )
    if past.decisions:
        _stamp(lab, past.decisions[-1])


def _past(lab: Lab) -> Settled:
    decisions, _ = bundles.read_decisions(lab.layout)
    return Settled([decision for decision in decisions if decision.tag == lab.tag])


def _settle_one(
    lab: Lab, experiment_id: str, decided_by: str, by_hand: HandMade | None, reason: str
) -> Decision | None:
    result, metadata = _finished(lab, experiment_id)
    past = _past(lab)
    before = past.of(experiment_id)
    if before is not None and (by_hand is None or before.decision_status == by_hand):
        _stamp(lab, before)
        return None
    reference = lab.reference()
    evidence = gather(lab, past, result, metadata, reference)
    if by_hand is None:
        verdict = decide(evidence)
    else:
        verdict = _verdict_by_hand(experiment_id, evidence, by_hand, reason)
    decision = _decision(lab, past, result, metadata, verdict, evidence, reference, decided_by)
    bundles.append_decision(lab.layout, decision)
    if decision.reference_after and decision.reference_after != reference:
        _move(lab, decision, reference)
    _stamp(lab, decision)
    if decision.decision_status in ("discard", "crash"):
        # Nobody builds on it, and its commit and seed make the weights again.
        lab.layout.run(experiment_id).weights.unlink(missing_ok=True)
    return decision


def _finished(lab: Lab, experiment_id: str) -> tuple[Result, Metadata]:
    run = lab.layout.run(experiment_id)
    if not run.result.exists():
        raise SettleError(
            f"{experiment_id} has no result yet",
            hint=f"see how it stands: python orchestrator.py show {experiment_id}",
        )
    if not run.metadata.exists():
        raise SettleError(f"{experiment_id} has no metadata.json: its tag and platform are unknown")
    result = Result.model_validate(read_json(run.result))
    metadata = Metadata.model_validate(read_json(run.metadata))
    if metadata.run.tag not in ("", lab.tag):
        raise SettleError(
            f"{experiment_id} belongs to tag {metadata.run.tag!r}, not to {lab.tag!r}",
            hint=f"run `python orchestrator.py decide {experiment_id} --tag {metadata.run.tag}`",
        )
    return result, metadata


def gather(lab: Lab, past: Settled, result: Result, metadata: Metadata, reference: str) -> Evidence:
    """Everything that the policy may look at."""
    task, runtime = lab.task, metadata.runtime
    key = runtime.platform_key
    base = result.parent_commit or result.commit
    failed = result.status == "failed"
    metrics = result.metrics.model_dump()
    compared = past.value_of(base, key)
    return Evidence(
        value=None if failed else result.metric_value,
        reference_value=past.value_of(reference, key) if compared is None else compared,
        direction=result.direction,
        min_delta=task.objective.min_delta,
        metric=result.metric_name,
        failure=(result.failure_kind or "code_error") if failed else None,
        failure_detail=result.failure_detail,
        lines_changed=_lines(metadata),
        constraints={
            name: Measured(finite(metrics.get(name)), limit.soft, limit.hard)
            for name, limit in task.constraints.items()
        },
        base_is_reference=base == reference,
        is_baseline=result.parent_commit is None and compared is None,
        is_replicate=bool(metadata.run.replicates) or (result.parent_commit is None),
        last_improvement=past.anchor(key),
        keep=task.policy.keep,
    )


def _lines(metadata: Metadata) -> int | None:
    added, removed = metadata.runtime.lines_added, metadata.runtime.lines_removed
    return None if added is None or removed is None else added - removed


def _verdict_by_hand(
    experiment_id: str, evidence: Evidence, status: HandMade, reason: str
) -> Verdict:
    """A person's word in the policy's place. A keep needs a metric, and the reference as base."""
    improvement = None
    if evidence.value is not None and evidence.reference_value is not None:
        improvement = better_by(evidence.value, evidence.reference_value, evidence.direction)
    if status == "keep" and evidence.value is None:
        raise SettleError(
            f"{experiment_id} has no {evidence.metric}, so it cannot be kept",
            hint=f"see why: python orchestrator.py show {experiment_id}",
        )
    if status == "keep" and not evidence.base_is_reference and not evidence.is_baseline:
        raise SettleError(
            f"{experiment_id} was made on a commit that is no longer the reference",
            hint="run its change again on the current one: run-experiment --patch change.diff",
        )
    confirmation: Confirmation = "provisional" if status == "keep" else "none"
    return Verdict(status, "by_hand", reason, improvement, confirmation=confirmation)


def _decision(
    lab: Lab,
    past: Settled,
    result: Result,
    metadata: Metadata,
    verdict: Verdict,
    evidence: Evidence,
    reference: str,
    decided_by: str,
) -> Decision:
    run, key = metadata.run, metadata.runtime.platform_key
    best = past.best(key, evidence.direction)
    keeps = verdict.decision_status == "keep"
    return Decision(
        decision_id=f"d-{len(past.decisions) + 1:06d}-{run.experiment_id}",
        recorded_at=now(),
        tag=lab.active(),
        experiment_id=run.experiment_id,
        hypothesis_id=run.hypothesis_id,
        commit=result.commit,
        base_commit=result.parent_commit,
        decision_status=verdict.decision_status,
        reason=verdict.reason,
        detail=verdict.detail,
        metric_value=evidence.value,
        reference_value=evidence.reference_value,
        improvement=verdict.improvement,
        delta=evidence.value - best if evidence.value is not None and best is not None else None,
        confirmation=verdict.confirmation,
        reference_before=reference,
        reference_after=result.commit if keeps else reference,
        platform_key=key,
        lines_changed=evidence.lines_changed,
        direction=evidence.direction,
        simplification=verdict.simplification,
        requeue=verdict.requeue,
        decided_by=decided_by,
    )


def _move(lab: Lab, decision: Decision, reference: str) -> None:
    """Move the reference to what was kept.

    Raises:
        SettleError: somebody moved it meanwhile, past this module; the keep stays recorded.
    """
    ref = reference_ref(lab.active())
    if not lab.repository.compare_and_swap(ref, str(decision.reference_after), reference):
        raise SettleError(
            f"{ref} was moved by somebody else while {decision.experiment_id} was decided",
            hint=f"see where it is: git log -1 {ref}",
        )


def _stamp(lab: Lab, decision: Decision) -> None:
    """Copy a decision into its result.json; the copy names the record it was made from."""
    run = lab.layout.run(decision.experiment_id)
    if not run.result.exists():
        return
    result = Result.model_validate(read_json(run.result))
    if result.decision_id == decision.decision_id:
        return
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


def waiting(lab: Lab) -> list[str]:
    """Experiments of the active tag that have a result and no decision, oldest first."""
    past = {decision.experiment_id for decision in _past(lab).decisions}
    found = []
    for experiment_id in run_ids(lab.layout):
        run = lab.layout.run(experiment_id)
        if experiment_id in past or not run.result.exists() or not run.metadata.exists():
            continue
        metadata = Metadata.model_validate(read_json(run.metadata))
        if metadata.run.tag == lab.tag:
            found.append((metadata.recorded_at, experiment_id))
    return [experiment_id for _, experiment_id in sorted(found)]
