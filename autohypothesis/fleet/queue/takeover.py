"""What a worker's predecessor left: which experiment a claim names, and how that stands.

Only the experiment of the newest plan of a claimed hypothesis is ever collected. That is the fence
against late writers: whoever still works on an older one writes into a folder that nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from autohypothesis.engine import recovery
from autohypothesis.engine.executor import Executor, Handle, RunSpec
from autohypothesis.errors import LaunchError, RecordError
from autohypothesis.fleet.queue.files import newest_attempt
from autohypothesis.records.files import load, load_or_none
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

    @property
    def handle(self) -> Handle:
        return Handle(self.experiment_id)


def newest_experiment(layout: Layout, hypothesis_id: str) -> str | None:
    """The newest experiment of a hypothesis; None if there was never one."""
    number = newest_attempt(layout, hypothesis_id)
    return f"{experiment_stem(hypothesis_id)}-{number}" if number else None


def experiment_of(layout: Layout, claimed: Hypothesis) -> str | None:
    """The experiment that a claim names; None if it names none yet.

    A run from before the hypothesis was last queued again belongs to an earlier claim. That is
    told by its number alone: times do not survive a restore or a copy.
    """
    newest = newest_experiment(layout, claimed.hypothesis_id)
    if newest is None or int(newest.rpartition("-")[2]) > claimed.tried:
        return newest
    run = layout.run(newest)
    return None if run.run_spec.exists() or run.result.exists() else newest


def found(
    layout: Layout, executor: Executor, hypothesis: Hypothesis, worker: str
) -> tuple[Job, Stands]:
    """The experiment of a hypothesis that `worker` had claimed, and how it stands.

    One on another machine, where nobody can look, counts as damaged: it is left alone, and the
    job's `problem` says what a person can do about it.
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
    if is_readable(run):
        return job, "ended"
    # Whoever has just collected it has left a result, and no more than that needs.
    return job, "recorded" if run.result.exists() else "damaged"


def _is_running(executor: Executor, job: Job) -> bool:
    state = executor.poll(job.handle)
    if state == "absent":
        executor.cancel(job.handle)  # a shim that was about to begin finds the folder taken
        state = executor.poll(job.handle)
    return state == "running"


def others(layout: Layout, executor: Executor, worker: str, known: set[str]) -> Iterator[Job]:
    """Living runs in the worktree of `worker` whose claim is gone: it must not be touched yet."""
    for experiment_id in recovery.uncollected(layout):
        if experiment_id in known:
            continue
        spec = spec_of(layout.run(experiment_id))
        if spec is not None and spec.worker_id == worker:
            job = Job("", experiment_id, spec)
            with suppress(LaunchError):  # it is on another machine: nothing of ours uses it
                if executor.poll(job.handle) == "running":
                    yield job


def outcome_of(layout: Layout, job: Job) -> str:
    """What the recorded run of `job` came to, in a line."""
    try:
        return load(Result, layout.run(job.experiment_id).result).outcome
    except (FileNotFoundError, RecordError):
        return ""


def spec_of(run: RunPaths) -> RunSpec | None:
    """What was to be run; None where that is absent or damaged."""
    return load_or_none(RunSpec, run.run_spec)


def is_readable(run: RunPaths) -> bool:
    """Whether a result can be made of it: else no waiting helps."""
    return recovery.is_readable(run)
