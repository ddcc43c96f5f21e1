"""A claim whose worker is gone for good: what was run to its end counts, all else begins anew."""

from __future__ import annotations

from collections.abc import Container

from autohypothesis.engine import recovery, runner
from autohypothesis.engine.project import Project
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.queue.takeover import Job, experiment_of, outcome_of
from autohypothesis.schema import Hypothesis


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
    fate, why = "ended", ""
    if experiment_id not in decided:
        fate, why = recovery.recover(project.repository, project.layout, experiment_id)
    if fate == "running":
        return ""
    if fate == "ended":
        queue.finish(name, worker, outcome=outcome_of(project.layout, Job(name, experiment_id)))
        return f"{name} is done: {worker} is gone, and had run it"
    if fate == "never_begun":
        runner.forget(project, experiment_id)
    queue.requeue(name)
    return f"{name} is queued again: {worker} is gone, and {why}"
