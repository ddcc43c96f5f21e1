"""Runs a recorded experiment again, or scores its weights again, and compares the two values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from autohypothesis.engine import runner
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment, Outcome, RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.verify import Finding
from autohypothesis.errors import UsageError
from autohypothesis.records.files import load, load_or_none, read_object
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import Metadata, Result, finite


class Rerun(NamedTuple):
    """The second run of an experiment."""

    experiment_id: str
    """Of the second run; of the first, where its weights were scored again."""
    value: float | None
    first_value: float | None
    finding: Finding | None
    """None: the values differ by less than `min_delta`."""


def rerun(project: Project, experiment_id: str, watch: runner.ProgressListener) -> Rerun:
    """Run the commit of an experiment again with its task and seed, and decide it as a repeat.

    Raises:
        UsageError: it has no value, or the engine did not run it.
        ChangeError, LeaseError: the run cannot be made.
    """
    first = project.layout.run(experiment_id)
    result, spec = load_or_none(Result, first.result), load_or_none(RunSpec, first.run_spec)
    if spec is None or result is None or result.metric_value is None:
        raise UsageError(
            f"{experiment_id} was run by hand, or has no value to compare with",
            hint="run `python orchestrator.py runs` for those that have one",
        )
    own = replace(project, task=spec.task)
    again = Experiment(
        Change(),
        title=f"{experiment_id} again, to verify it",
        rationale="its value is compared with that of its record",
        seed=spec.seed,
        replicates=experiment_id,
        base=spec.commit,
    )
    made = runner.run(own, again, watch=watch)
    settle(own, [made.experiment_id], decided_by="verify")
    problem = _difference(own, experiment_id, result, made)
    finding = Finding(experiment_id, first.result.name, problem) if problem else None
    return Rerun(made.experiment_id, made.result.metric_value, result.metric_value, finding)


def rescore(project: Project, experiment_id: str) -> Rerun:
    """Have the pristine evaluator score the kept weights of an experiment again.

    On one machine that is the same number, to the last digit.

    Raises:
        UsageError: it has no weights that an evaluator scores.
        LeaseError, LaunchError: they cannot be scored now.
    """
    first = project.layout.run(experiment_id)
    result, spec = load_or_none(Result, first.result), load_or_none(RunSpec, first.run_spec)
    model = spec is not None and spec.task.scorer.type == "model"
    if spec is None or result is None or not model or not first.weights.exists():
        raise UsageError(
            f"{experiment_id} has no weights here that an evaluator scores",
            hint=f"run it again: python orchestrator.py verify {experiment_id} --rerun",
        )
    own = replace(project, task=spec.task)
    with runner.free_worker(own) as worker:
        executor = LocalExecutor(own.repository, own.layout)
        record = executor.rescore(spec.model_copy(update={"worker_id": worker}), first)
    name, score = spec.task.objective.metric, record.get("score") or {}
    value = finite((score.get("result") or {}).get(name))
    problem = ""
    if value is None:
        why = (score.get("result") or {}).get("error") or score.get("error") or record.get("error")
        problem = f"says {result.metric_value}, and its weights could not be scored: {why}"
    elif value != result.metric_value:
        problem = (
            f"says {result.metric_value!r}, and its weights score {value!r}{_where(first, record)}"
        )
    finding = Finding(experiment_id, first.result.name, problem) if problem else None
    return Rerun(experiment_id, value, result.metric_value, finding)


def _where(first: RunPaths, record: Mapping[str, Any]) -> str:
    """Return the two devices, where they differ."""
    names = [(each.get("device") or {}).get("name") for each in (read_object(first.exit), record)]
    return "" if names[0] == names[1] else f", on another device: {names[1]}, not {names[0]}"


def _difference(project: Project, experiment_id: str, first: Result, made: Outcome) -> str:
    """Return how the second run contradicts the first, in words that follow its file; or ""."""
    name, value = made.experiment_id, made.result.metric_value
    keys = [
        load(Metadata, project.layout.run(each).metadata).runtime.platform_key
        for each in (experiment_id, name)
    ]
    if value is None or first.metric_value is None:
        return (
            f"says {first.metric_value}, and {name}, the same again, failed: {made.result.outcome}"
        )
    if keys[0] != keys[1]:
        return f"cannot be compared: {name} ran on another device, data or budget"
    least = project.task.objective.min_delta
    if abs(value - first.metric_value) > least:
        return (
            f"says {first.metric_value:.9g}, and {name}, the same again, has {value:.9g}: they"
            f" differ by more than min_delta {least:g}"
        )
    return ""
