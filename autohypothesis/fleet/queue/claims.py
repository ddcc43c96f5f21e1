"""Claims: which experiment a claim names, how that stands, and how a dead worker's claim ends.

Only the experiment of the newest plan of a claimed hypothesis is ever collected. That is the fence
against late writers: a worker that still runs an older one writes into a folder that is not read.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from autohypothesis.engine import runner
from autohypothesis.engine.collect import is_readable
from autohypothesis.engine.experiment import Executor, RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.errors import LaunchError
from autohypothesis.fleet.queue.states import Queue, newest_attempt
from autohypothesis.records.bundles import is_begun, is_to_be_collected, uncollected
from autohypothesis.records.files import load_or_none
from autohypothesis.records.ids import experiment_stem
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis, Result

ClaimState = Literal["never_begun", "running", "ended", "recorded", "lost"]


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed hypothesis and the experiment that its claim names."""

    hypothesis_id: str
    """Empty for a run of this worker whose claim is gone: it is followed, not collected."""
    experiment_id: str
    spec: RunSpec | None = None
    problem: str = ""
    """Why its run is left alone, and what a person can do about that."""


def newest_experiment(layout: Layout, hypothesis_id: str) -> str | None:
    """Return the newest experiment of a hypothesis; None if there was never one."""
    number = newest_attempt(layout, hypothesis_id)
    return f"{experiment_stem(hypothesis_id)}-{number}" if number else None


def experiment_of(layout: Layout, claimed: Hypothesis) -> str | None:
    """Return the experiment that a claim names; None if it names none yet.

    A run from before the hypothesis was last queued again belongs to an earlier claim. That is
    told by its number alone: times do not survive a restore or a copy.
    """
    newest = newest_experiment(layout, claimed.hypothesis_id)
    if newest is None or int(newest.rpartition("-")[2]) > claimed.tried:
        return newest
    return None if is_begun(layout.run(newest)) else newest


def examine_claim(
    layout: Layout, executor: Executor, hypothesis: Hypothesis
) -> tuple[Job, ClaimState]:
    """Return the experiment of a claimed hypothesis, and its state.

    A run that is damaged, or on another machine and cannot be seen from here, is `lost`: it is left
    alone, and the job's `problem` says what a person can do about it.
    """
    name = hypothesis.hypothesis_id
    experiment_id = experiment_of(layout, hypothesis)
    if experiment_id is None:
        return Job(name, ""), "never_begun"
    run = layout.run(experiment_id)
    job = Job(name, experiment_id, load_or_none(RunSpec, run.run_spec))
    if run.result.exists() and not is_to_be_collected(run):
        return job, "recorded"
    if not run.run_spec.exists():
        return job, "never_begun"
    try:
        if _is_running(executor, experiment_id):
            return job, "running"
    except LaunchError as error:
        return replace(job, problem=f"{experiment_id} is left alone: {error}"), "lost"
    if is_readable(run):
        return job, "ended"
    # A process that has just collected it has left a result, which is all that is needed.
    if run.result.exists():
        return job, "recorded"
    return replace(job, problem=f"{experiment_id} is left alone: {run.folder} is damaged"), "lost"


def _is_running(executor: Executor, experiment_id: str) -> bool:
    state = executor.poll(experiment_id)
    if state == "absent":
        executor.cancel(experiment_id)  # a shim that was about to begin finds the folder taken
        state = executor.poll(experiment_id)
    return state == "running"


def unclaimed_runs(
    layout: Layout, executor: Executor, worker: str, known: set[str]
) -> Iterator[Job]:
    """Yield living runs of `worker` whose claim is gone: its worktree must not be touched yet."""
    for experiment_id in uncollected(layout):
        if experiment_id in known:
            continue
        spec = load_or_none(RunSpec, layout.run(experiment_id).run_spec)
        if spec is not None and spec.worker_id == worker:
            with suppress(LaunchError):  # it is on another machine: nothing of ours uses it
                if executor.poll(experiment_id) == "running":
                    yield Job("", experiment_id, spec)


def outcome_of(layout: Layout, experiment_id: str) -> str:
    """Return the outcome of a recorded run, a line; empty where it cannot be read."""
    result = load_or_none(Result, layout.run(experiment_id).result)
    return result.outcome if result is not None else ""


def end_claim(
    project: Project, queue: Queue, claimed: Hypothesis, worker: str, decided: Container[str]
) -> str:
    """End the claim of a worker that is gone for good; return a line, or "" while its run lives on.

    A finished run counts. One that cannot be judged, since its record is damaged or on another
    machine, stays where it is, and the hypothesis is run anew.

    Args:
        decided: experiments that have a decision: their plans are never forgotten.

    Raises:
        One of `RECOVERABLE_ERRORS`: it cannot be done now; nothing is lost.
    """
    name = claimed.hypothesis_id
    executor = LocalExecutor(project.repository, project.layout)
    job, state = examine_claim(project.layout, executor, claimed)
    if job.experiment_id in decided:
        state = "recorded"
    if state == "running":
        return ""
    if state == "ended":
        executor.collect(job.experiment_id)
    if state in ("ended", "recorded"):
        queue.finish(name, worker, outcome=outcome_of(project.layout, job.experiment_id))
        return f"{name} is done: {worker} is gone, and had run it"
    if state == "never_begun" and job.experiment_id:
        runner.forget(project, job.experiment_id)
    queue.requeue(name)
    why = job.problem or f"{worker} had not begun it"
    return f"{name} is queued again, since {worker} is gone: {why}"
