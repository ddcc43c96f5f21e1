"""Runs a recorded experiment again, at its commit and seed, and compares the two values."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from autohypothesis.engine import runner
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment, Outcome, RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.engine.verify import Finding
from autohypothesis.errors import UsageError
from autohypothesis.records.files import load, load_or_none
from autohypothesis.schema import Metadata, Result


class Rerun(NamedTuple):
    """The second run of an experiment."""

    experiment_id: str
    """Its own id."""
    value: float | None
    first_value: float
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
