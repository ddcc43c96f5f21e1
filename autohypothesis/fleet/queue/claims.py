"""Claims: which experiment a claim names, how that stands, and how a dead worker's claim ends.

Only the experiment of the newest plan of a claimed hypothesis is ever collected. That is the fence
against late writers: a worker that still runs an older one writes into a folder that is not read.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from autohypothesis.engine import recovery, runner
from autohypothesis.engine.executor import Executor, RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.errors import LaunchError
from autohypothesis.fleet.queue.files import newest_attempt
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import load_or_none
from autohypothesis.records.ids import experiment_stem
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.schema import Hypothesis, Result

Stands = Literal["never_begun", "running", "ended", "recorded", "damaged"]


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed hypothesis and the experiment that its claim names."""

    hypothesis_id: str
    """Empty for a run of this worker's whose claim is gone: it is only waited for."""
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
    run = layout.run(newest)
    return None if run.run_spec.exists() or run.result.exists() else newest


def examine_claim(
    layout: Layout, executor: Executor, hypothesis: Hypothesis, worker: str
) -> tuple[Job, Stands]:
    """Return the experiment of a hypothesis that `worker` had claimed, and how it stands.

    A run on another machine, which cannot be seen from here, counts as damaged: it is left alone,
    and the job's `problem` says what a person can do about it.
    """
    name = hypothesis.hypothesis_id
    experiment_id = experiment_of(layout, hypothesis)
    if experiment_id is None:
        return Job(name, ""), "never_begun"
    run = layout.run(experiment_id)
    job = Job(name, experiment_id, spec_of(run))
    if run.result.exists() and not recovery.is_to_be_collected(run):
        return job, "recorded"
    if not run.run_spec.exists():
        return job, "never_begun"
    try:
        if _is_running(executor, job):
            return job, "running"
    except LaunchError as error:
        why = f"{worker} runs {name} anew, and leaves {experiment_id} alone: {error}"
        return replace(job, problem=why), "damaged"
    if recovery.is_readable(run):
        return job, "ended"
    # A process that has just collected it has left a result, which is all that is needed.
    return job, "recorded" if run.result.exists() else "damaged"


def _is_running(executor: Executor, job: Job) -> bool:
    state = executor.poll(job.experiment_id)
    if state == "absent":
        executor.cancel(job.experiment_id)  # a shim that was about to begin finds the folder taken
        state = executor.poll(job.experiment_id)
    return state == "running"


def unclaimed_runs(
    layout: Layout, executor: Executor, worker: str, known: set[str]
) -> Iterator[Job]:
    """Yield living runs of `worker` whose claim is gone: its worktree must not be touched yet."""
    for experiment_id in recovery.uncollected(layout):
        if experiment_id in known:
            continue
        spec = spec_of(layout.run(experiment_id))
        if spec is not None and spec.worker_id == worker:
            job = Job("", experiment_id, spec)
            with suppress(LaunchError):  # it is on another machine: nothing of ours uses it
                if executor.poll(job.experiment_id) == "running":
                    yield job


def outcome_of(layout: Layout, job: Job) -> str:
    """Return the outcome of the recorded run of `job`, a line; empty where it cannot be read."""
    result = load_or_none(Result, layout.run(job.experiment_id).result)
    return result.outcome if result is not None else ""


def spec_of(run: RunPaths) -> RunSpec | None:
    """Return what was to be run; None where that is absent or damaged."""
    return load_or_none(RunSpec, run.run_spec)


# ── claims of dead workers ──────────────────────────────────────────────────────────────────


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
