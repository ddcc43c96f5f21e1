"""What a worker's predecessor left: which experiment a claim names, and how that stands.

Only the experiment of the newest plan of a claimed hypothesis is ever collected. That is the fence
against late writers: whoever still works on an older one writes into a folder that nobody asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from autohypothesis.engine import recovery
from autohypothesis.engine.collect import LOCAL_LIMIT
from autohypothesis.engine.executor import Executor, Handle, RunSpec
from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_json
from autohypothesis.records.ids import experiment_stem
from autohypothesis.records.layout import Layout, RunPaths
from schema import Hypothesis, Result

Stands = Literal["never_begun", "running", "ended", "recorded", "damaged"]


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed hypothesis and the experiment that its claim names."""

    hypothesis_id: str
    """Empty for a run of this worker's whose claim is gone: it is only waited for."""
    experiment_id: str
    spec: RunSpec | None = None

    @property
    def handle(self) -> Handle:
        return Handle(self.experiment_id)


def newest_experiment(layout: Layout, hypothesis_id: str) -> str | None:
    """The id that the current claim of a hypothesis names; None if there was never one."""
    stem = experiment_stem(hypothesis_id)
    form = re.compile(re.escape(stem) + r"-(\d{1,9})\.json")
    with suppress(OSError):
        numbers = (
            int(found[1]) for name in os.listdir(layout.plans) if (found := form.fullmatch(name))
        )
        number = max(numbers, default=0)
        return f"{stem}-{number}" if number else None
    return None


def found(
    layout: Layout, executor: Executor, hypothesis: Hypothesis, worker: str
) -> tuple[Job, Stands]:
    """The experiment of a hypothesis that `worker` had claimed, and how it stands.

    Raises:
        LaunchError: it runs on another machine.
    """
    name = hypothesis.hypothesis_id
    experiment_id = newest_experiment(layout, name)
    if experiment_id is None:
        return Job(name, ""), "never_begun"
    run = layout.run(experiment_id)
    job = Job(name, experiment_id, spec_of(run))
    if run.result.exists():
        earlier = _ended_before_claim(layout, run, name, worker)
        return (Job(name, ""), "never_begun") if earlier else (job, "recorded")
    if not run.run_spec.exists():
        return job, "never_begun"
    state = executor.poll(job.handle)
    if state == "running":
        return job, "running"
    if state == "absent":
        executor.cancel(job.handle)  # a shim that was about to begin finds the folder taken
        if executor.poll(job.handle) == "running":
            return job, "running"
    return job, "ended" if is_readable(run) else "damaged"


def _ended_before_claim(layout: Layout, run: RunPaths, hypothesis_id: str, worker: str) -> bool:
    """Whether a recorded run belongs to an earlier claim: the file was moved here after its end."""
    try:
        claimed_at = os.stat(layout.hypothesis(hypothesis_id, "running", worker)).st_ctime
        result = Result.model_validate(read_json(run.result))
    except (OSError, RecordError, ValidationError):
        return False
    return result.recorded_at.timestamp() < claimed_at - 1e-3


def others(layout: Layout, executor: Executor, worker: str, known: set[str]) -> Iterator[Job]:
    """Living runs in the worktree of `worker` whose claim is gone: it must not be touched yet."""
    for experiment_id in recovery.uncollected(layout):
        if experiment_id in known:
            continue
        spec = spec_of(layout.run(experiment_id))
        if spec is not None and spec.worker_id == worker:
            job = Job("", experiment_id, spec)
            if executor.poll(job.handle) == "running":
                yield job


def outcome_of(layout: Layout, job: Job) -> str:
    """What the recorded run of `job` came to, in a line."""
    try:
        return Result.model_validate(read_json(layout.run(job.experiment_id).result)).outcome
    except (FileNotFoundError, RecordError, ValidationError):
        return ""


def spec_of(run: RunPaths) -> RunSpec | None:
    """What was to be run; None where that is absent or damaged."""
    try:
        return RunSpec.model_validate(read_json(run.run_spec))
    except (FileNotFoundError, RecordError, ValidationError):
        return None


def is_readable(run: RunPaths) -> bool:
    """Whether a result can be made of it: else no waiting helps."""
    try:
        local = read_json(run.local, LOCAL_LIMIT)
    except (FileNotFoundError, RecordError):
        return False
    return spec_of(run) is not None and isinstance(local, dict) and "before" in local
