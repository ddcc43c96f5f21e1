"""From one finished run to what the policy may look at. Reads its bundle and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autohypothesis.engine import contention
from autohypothesis.engine.collect import finish_collection
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.experiment import further_seed
from autohypothesis.engine.failures import is_interruption
from autohypothesis.engine.policy import MOST_LOST, Evidence, Measured, Pair
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import BY_HAND, Constraint, Task
from autohypothesis.errors import RecordError, SettleError
from autohypothesis.records.files import load
from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.ids import slug
from autohypothesis.schema import Decision, Metadata, Result, finite

MOST_PASSED_OVER = 3
"""Seeds at which a base may fail before it is too shaky to confirm anything with."""


@dataclass(frozen=True, slots=True)
class Case:
    """One finished experiment, and the task that it was made with.

    Attributes:
        flag: a remark about a result that counts although something is wrong with it.
        submitted: whether the engine ran it, so that it can run it again.
    """

    experiment_id: str
    result: Result
    metadata: Metadata
    task: Task
    flag: str = ""
    submitted: bool = True

    @property
    def base(self) -> str:
        """The commit that it changed; its own, where it changed none."""
        return self.result.parent_commit or self.result.commit


def read_case(project: Project, experiment_id: str) -> Case:
    """Read the experiment to decide.

    Raises:
        SettleError: it is unfinished, unknown, or another tag's.
        RecordError: one of its files is damaged, or of another run; the message names the file.
    """
    run = project.layout.run(experiment_id)
    if not run.result.exists():
        raise SettleError(
            f"{experiment_id} has no result yet",
            hint=f"see how it stands: python orchestrator.py show {experiment_id}",
        )
    submitted = run.run_spec.exists()
    if submitted and not finish_collection(project.layout, experiment_id):
        raise SettleError(
            f"{experiment_id} is not collected yet, and {run.result} is not from its collector",
            hint="run `python orchestrator.py sync`, which collects what has ended",
        )
    if not run.metadata.exists():
        raise SettleError(f"{experiment_id} has no metadata.json: its tag and platform are unknown")
    metadata = load(Metadata, run.metadata)
    if (named := metadata.run.experiment_id) and slug(named) != experiment_id:
        raise RecordError(
            f"{run.metadata} is of experiment {named!r}, not of {experiment_id}",
            hint="a bundle keeps its name; move the run's folder away",
        )
    if metadata.run.tag not in ("", project.tag):
        raise SettleError(
            f"{experiment_id} belongs to tag {metadata.run.tag!r}, not to {project.tag!r}",
            hint=f"run `python orchestrator.py decide {experiment_id} --tag {metadata.run.tag}`",
        )
    task = load(RunSpec, run.run_spec).task if submitted else project.task
    result = load(Result, run.result)
    return Case(experiment_id, result, metadata, task, submitted=submitted)


def with_contention(past: DecisionHistory, case: Case) -> Case:
    """Return the case as its cpu slot lets it count: contaminated, flagged, or as it is."""
    result, flag = contention.judged(past, case.metadata, case.result)
    return replace(case, result=result, flag=flag)


def with_decided_values(case: Case, before: Decision | None) -> Case:
    """Return the case with the values that were decided before, whatever its bundle says by now.

    Raises:
        SettleError: its result.json is the copy of a decision that was never recorded.
    """
    if before is None:
        if case.result.decision_id is not None:
            raise SettleError(
                f"result.json of {case.experiment_id} names the decision"
                f" {case.result.decision_id!r}, and decisions.jsonl has none about it",
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


def gather(
    past: DecisionHistory,
    case: Case,
    reference: str,
    limits: Mapping[str, Constraint] | None = None,
) -> Evidence:
    """Collect everything that the policy may look at.

    Args:
        past: the decisions about the other experiments.
        limits: upper limits beside the task's, the stricter of two counts.
    """
    result, metadata, task = case.result, case.metadata, case.task
    key, seed, base = metadata.runtime.platform_key, metadata.run.seed, case.base
    failed, unchanged = result.status == "failed", result.parent_commit is None
    metrics = result.metrics.model_dump()
    repeated = bool(metadata.run.replicates)
    kept = any(run.decision_status == "keep" for run in past.runs_of(base, key))
    # The engine cannot repeat what it did not run: its value stays provisional.
    wanted = task.policy.replicates if not unchanged and case.submitted else 0
    added, removed = metadata.runtime.lines_added, metadata.runtime.lines_removed
    return Evidence(
        value=None if failed else result.metric_value,
        reference_value=_compared_with(past, case, reference),
        direction=result.direction,
        min_delta=task.objective.min_delta,
        metric=result.metric_name,
        failure=(result.failure_kind or "code_error") if failed else None,
        failure_detail=result.failure_detail,
        lines_changed=None if added is None or removed is None else added - removed,
        constraints={
            name: Measured(finite(metrics.get(name)), limit.soft, limit.hard)
            for name, limit in _stricter(task.constraints, limits or {}).items()
        },
        base_is_reference=base == reference,
        is_baseline=unchanged and not repeated and not kept,
        is_replicate=repeated or unchanged,
        unattested=task.scorer.type == "model"
        and not (result.attested or metadata.runtime.is_unconfined),
        by_hand=key.startswith(BY_HAND),
        seed=seed,
        other_seeds=bool(past.runs_of(base, key) or past.runs_of(reference, key)),
        last_improvement=past.anchor(key, seed),
        keep=task.policy.keep,
        may_retry=_may_retry(past, metadata.run.hypothesis_id, result),
        flag=case.flag,
        replicates=wanted,
        pairs=tuple(_pairs(past, case, wanted)),
    )


def _pairs(past: DecisionHistory, case: Case, wanted: int) -> list[Pair]:
    """The pairs at the seeds after the first, complete or not.

    They are derived from the decisions each time, so nothing is lost with the process that ordered
    a run, and the runs of a base serve every change that was made to it. A seed at which the base
    itself fails makes no pair, and is passed over; when that happens too often there are fewer.
    """
    key, first = case.metadata.runtime.platform_key, case.metadata.run.seed
    pairs: list[Pair] = []
    for number in range(1, wanted + MOST_PASSED_OVER + 1):
        if len(pairs) == wanted:
            break
        seed = further_seed(first, number)
        of_base = past.again_at(case.base, key, seed)
        if of_base is None or of_base.metric_value is not None:
            of_change = past.again_at(case.result.commit, key, seed)
            pairs.append(_pair(seed, of_change, of_base.metric_value if of_base else None))
    return pairs


def _pair(seed: int, of_change: Decision | None, base_value: float | None) -> Pair:
    if of_change is None:
        return Pair(seed, base_value=base_value)
    value = of_change.metric_value
    if value is None or of_change.reason == "constraint":
        return Pair(seed, value, base_value, of_change.reason, of_change.detail)
    return Pair(seed, value, base_value)


def _may_retry(past: DecisionHistory, hypothesis_id: str, result: Result) -> bool:
    if result.failure_kind == "contended":
        return len(past.with_reason(hypothesis_id, "contended")) < contention.MOST_CONTAMINATED
    if result.failure_kind == "infra" and not is_interruption(result.failure_detail):
        lost = past.with_reason(hypothesis_id, "infra")
        return sum(not is_interruption(decision.detail) for decision in lost) < MOST_LOST
    return True


def _stricter(
    own: Mapping[str, Constraint], more: Mapping[str, Constraint]
) -> dict[str, Constraint]:
    def least(*values: float | None) -> float | None:
        return min((value for value in values if value is not None), default=None)

    merged = dict(own)
    for name, limit in more.items():
        known = [limit, *filter(None, [own.get(name)])]
        hard = least(*(constraint.hard for constraint in known))
        soft = least(*(constraint.soft for constraint in known), hard)
        merged[name] = Constraint(soft=soft, hard=hard)
    return merged


def _compared_with(past: DecisionHistory, case: Case, reference: str) -> float | None:
    """The value of the run's own base at its seed, else the reference's at its seed.

    A run of a commit as it stands is seen beside that commit's first run, whatever its seed.
    """
    key, seed = case.metadata.runtime.platform_key, case.metadata.run.seed
    for commit in (case.base, reference):
        value = past.value_of(commit, key, seed)
        if value is not None:
            return value
        runs = past.runs_of(commit, key)
        if case.result.parent_commit is None and runs:
            return runs[0].metric_value
    return None
