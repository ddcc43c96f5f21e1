"""A claim whose worker is gone for good: what was run to its end counts, all else begins anew."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal

from autohypothesis.engine import recovery, runner
from autohypothesis.engine.collect import collect
from autohypothesis.engine.project import Project
from autohypothesis.errors import LaunchError
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.queue.takeover import Job, experiment_of, outcome_of
from autohypothesis.schema import Hypothesis

Fate = Literal["running", "ended", "never_begun", "lost"]


def end_claim(
    project: Project, queue: Queue, claimed: Hypothesis, worker: str, decided: Container[str]
) -> str:
    """Finish or requeue what `worker` had claimed; a line, or nothing while its run lives on.

    A run that nobody can judge, since its record is damaged or on another machine, stays where it
    is; the hypothesis is run anew.

    Args:
        decided: experiments that have a decision: their plans are never forgotten.

    Raises:
        One of `RECOVERABLE_ERRORS`: it cannot be done now; nothing is lost.
    """
    name = claimed.hypothesis_id
    experiment_id = experiment_of(project.layout, claimed)
    if experiment_id is None:
        queue.requeue(name)
        return f"{name} is queued again: {worker} is gone, and had not begun it"
    fate, why = _fate(project, experiment_id, decided)
    if fate == "running":
        return ""
    if fate == "ended":
        queue.finish(name, worker, outcome=outcome_of(project.layout, Job(name, experiment_id)))
        return f"{name} is done: {worker} is gone, and had run it"
    if fate == "never_begun":
        runner.forget(project, experiment_id)
    queue.requeue(name)
    return f"{name} is queued again: {worker} is gone, and {why}"


def _fate(project: Project, experiment_id: str, decided: Container[str]) -> tuple[Fate, str]:
    """What became of an experiment, collected if it has ended, and why it is lost if it is."""
    run = project.layout.run(experiment_id)
    if run.result.exists() or experiment_id in decided:
        return "ended", ""
    if not run.run_spec.exists():
        return "never_begun", "had not begun it"
    try:
        if not recovery.is_over(run):
            return "running", ""
    except LaunchError as error:
        return "lost", f"left {error}"
    if not recovery.is_readable(run) and not run.result.exists():
        return "lost", f"left {run.folder} damaged"
    collect(project.repository, project.layout, experiment_id)
    return "ended", ""
