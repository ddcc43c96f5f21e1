"""From one finished run to what the policy may look at. Reads its bundle and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from autohypothesis.engine import contention
from autohypothesis.engine.collect import is_collected
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.failures import is_nobodys_fault
from autohypothesis.engine.identity import BY_HAND
from autohypothesis.engine.past import Settled
from autohypothesis.engine.policy import MOST_LOST, Evidence, Measured
from autohypothesis.engine.project import Project
from autohypothesis.engine.replicates import pairs_of
from autohypothesis.engine.task import Constraint, Task
from autohypothesis.errors import RecordError, SettleError
from autohypothesis.records.files import read_json
from autohypothesis.records.ids import slug
from autohypothesis.records.layout import RunPaths
from autohypothesis.records.usual import canonical_value
from autohypothesis.schema import Metadata, Result, finite

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Case:
    """One finished experiment, and the task that it was made with."""

    result: Result
    metadata: Metadata
    task: Task
    flag: str = ""
    """What is to be said about a result that counts although something is wrong with it."""
    submitted: bool = True
    """Whether the engine ran it, so that it can run it again."""

    @property
    def base(self) -> str:
        """The commit that it changed; its own, where it changed none."""
        return self.result.parent_commit or self.result.commit


def finished(project: Project, experiment_id: str) -> Case:
    """The experiment to decide.

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
    if run.run_spec.exists() and not is_collected(run):
        raise SettleError(
            f"{experiment_id} is not collected yet, and {run.result} is not from its collector",
            hint="run `python orchestrator.py sync`, which collects what has ended",
        )
    if not run.metadata.exists():
        raise SettleError(f"{experiment_id} has no metadata.json: its tag and platform are unknown")
    metadata = read_model(Metadata, run.metadata)
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
    result, submitted = read_model(Result, run.result), run.run_spec.exists()
    return Case(result, metadata, _task_of(project, run), submitted=submitted)


def as_it_counts(past: Settled, case: Case) -> Case:
    """`case` after what its lane says about it: voided, flagged, or as it is."""
    result, flag = contention.judged(past, case.metadata, case.result)
    return replace(case, result=result, flag=flag)


def read_model(model: type[Model], path: Path) -> Model:
    """The document at `path`.

    Raises:
        RecordError: naming the file and what is wrong with it.
    """
    value = read_json(path)
    try:
        canonical_value(model, value)  # for its words; the keys that it adds are not wanted
        return model.model_validate(value)
    except ValueError as error:
        raise RecordError(
            f"{path} {error}", hint="mend it, or move the run's folder away"
        ) from None


def _task_of(project: Project, run: RunPaths) -> Task:
    """The task of the run itself; the one of today for a run that nobody submitted."""
    return read_model(RunSpec, run.run_spec).task if run.run_spec.exists() else project.task


def gather(
    past: Settled, case: Case, reference: str, limits: Mapping[str, Constraint] | None = None
) -> Evidence:
    """Everything that the policy may look at; `past` is that of the other experiments.

    Args:
        limits: upper limits beside the task's, the stricter of two counts.
    """
    result, metadata, task = case.result, case.metadata, case.task
    key, seed, base = metadata.runtime.platform_key, metadata.run.seed, case.base
    failed = result.status == "failed"
    metrics = result.metrics.model_dump()
    repeated = bool(metadata.run.replicates)
    kept = [one for one in past.runs_of(base, key) if one.decision_status == "keep"]
    first = result.parent_commit is None and not repeated and not kept
    # The engine cannot repeat what it did not run: its value stays provisional.
    wanted = task.policy.replicates if result.parent_commit and case.submitted else 0
    return Evidence(
        value=None if failed else result.metric_value,
        reference_value=_compared_with(past, case, base, reference),
        direction=result.direction,
        min_delta=task.objective.min_delta,
        metric=result.metric_name,
        failure=(result.failure_kind or "code_error") if failed else None,
        failure_detail=result.failure_detail,
        lines_changed=_lines(metadata),
        constraints={
            name: Measured(finite(metrics.get(name)), limit.soft, limit.hard)
            for name, limit in _stricter(task.constraints, limits or {}).items()
        },
        base_is_reference=base == reference,
        is_baseline=first,
        is_replicate=repeated or result.parent_commit is None,
        unattested=task.scorer.type == "model"
        and not (result.attested or metadata.runtime.is_unconfined),
        by_hand=key.startswith(BY_HAND),
        seed=seed,
        other_seeds=bool(past.runs_of(base, key) or past.runs_of(reference, key)),
        last_improvement=past.anchor(key, seed),
        keep=task.policy.keep,
        comes_back=_comes_back(past, metadata.run.hypothesis_id, result),
        flag=case.flag,
        replicates=wanted,
        pairs=pairs_of(past, result.commit, base, metadata, wanted),
    )


def _comes_back(past: Settled, hypothesis_id: str, result: Result) -> bool:
    """Whether a failure that says nothing about the change may be tried again."""
    if result.failure_kind == "contended":
        return past.voided(hypothesis_id) < contention.MOST_VOIDED
    if result.failure_kind == "infra" and not is_nobodys_fault(result.failure_detail):
        return past.lost(hypothesis_id) < MOST_LOST
    return True


def _stricter(
    own: Mapping[str, Constraint], more: Mapping[str, Constraint]
) -> dict[str, Constraint]:
    def least(one: float | None, other: float | None) -> float | None:
        return min((limit for limit in (one, other) if limit is not None), default=None)

    merged = dict(own)
    for name, limit in more.items():
        there = merged.get(name)
        hard = least(there.hard if there else None, limit.hard)
        soft = least(least(there.soft if there else None, limit.soft), hard)
        merged[name] = Constraint(soft=soft, hard=hard)
    return merged


def _compared_with(past: Settled, case: Case, base: str, reference: str) -> float | None:
    """The value of the run's own base at its seed, else that of the reference at its seed.

    A run of a commit as it stands is seen beside that commit's first run, whatever its seed.
    """
    key, seed = case.metadata.runtime.platform_key, case.metadata.run.seed
    for commit in (base, reference):
        value = past.value_of(commit, key, seed)
        if value is not None:
            return value
        runs = past.runs_of(commit, key)
        if case.result.parent_commit is None and runs:
            return runs[0].metric_value
    return None


def _lines(metadata: Metadata) -> int | None:
    added, removed = metadata.runtime.lines_added, metadata.runtime.lines_removed
    return None if added is None or removed is None else added - removed
