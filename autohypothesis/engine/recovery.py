"""Runs whose starter was killed, or whose shim is stopped: found by liveness, collected once.

The shim keeps the deadline of its run; here is the deadline of those who wait for it. A stopped
shim is named while it is stopped, and ended when it is far past its limits, so that no process
waits for ever. Times are monotonic: a machine that is suspended makes no run late.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from autohypothesis import system
from autohypothesis.engine import shim
from autohypothesis.engine.collect import LOCAL_LIMIT, collect
from autohypothesis.engine.devices import experiments_of
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.workspace import Before
from autohypothesis.errors import (
    RECOVERABLE_ERRORS,
    AutohypothesisError,
    LaunchError,
)
from autohypothesis.records.files import load_or_none, read_object, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import ID, Layout, RunPaths

KILLED_S = 5.0
"""How long a killed shim may take to be gone."""


class _LivingShim(NamedTuple):
    """A shim that lives on this machine; `limit_s` after its begin it is ended."""

    pid: int
    start: float
    stopped: bool
    limit_s: float
    left_s: float


def _living(run: RunPaths) -> _LivingShim | None:
    known = shim.read_record(run)
    if not known or not known.lives:
        return None
    limits = known.overdue_after
    limit = limits[run.score_log.exists()] if limits else math.inf
    left = limit - (time.monotonic() - known.began)
    return _LivingShim(known.pid, known.start, system.is_stopped(known.pid), limit, left)


def stopped_shim(run: RunPaths) -> str:
    """Return what a person should know of a run whose shim is stopped; empty for any other run."""
    owner = _living(run)
    if owner is None or not owner.stopped:
        return ""
    then = (
        f"; else it is ended in {max(owner.left_s, 0.0):.0f} s" if owner.limit_s < math.inf else ""
    )
    return (
        f"its owner process {owner.pid} is stopped (state T):"
        f" `kill -CONT {owner.pid}` resumes it{then}"
    )


def stalled_runs(layout: Layout) -> list[str]:
    """Return a line for each run of a repository whose shim is stopped, as far as locks name it."""
    names = [name for name in experiments_of(str(layout.root)) if ID.fullmatch(name)]
    return [
        f"{name} stands still: {text}" for name in names if (text := stopped_shim(layout.run(name)))
    ]


def end_overdue(run: RunPaths) -> bool:
    """Kill the shim of a run that is past all its limits, and record that; return whether it was.

    The kernel ends the training with it, and the collector what the training has started.
    """
    owner = _living(run)
    if owner is None or owner.left_s > 0:
        return False
    system.signal_process(owner.pid, owner.start, signal.SIGKILL)
    until = time.monotonic() + KILLED_S
    while system.is_alive(owner.pid, owner.start):
        if time.monotonic() >= until:
            return False  # the kernel does not let it go, out of a write to a lost disk say
        system.wait_for_end(owner.pid, 0.1)
    if run.exit.exists():
        return True
    why = "was stopped (state T)" if owner.stopped else "hung"
    error = (
        f"its owner process {owner.pid} {why} and did not end the run"
        f" {owner.limit_s:.0f} s after its begin, so it was killed"
    )
    document = {"status": "infra", "ended_at": shim.utc_now(), "error": error}
    with suppress(AutohypothesisError):  # on a full disk the run is one without a record
        write_json(run.exit, {"experiment_id": run.folder.name, **document})
    return True


def uncollected(layout: Layout) -> Iterator[str]:
    """Yield the experiments that `is_to_be_collected` holds for."""
    if not layout.runs.is_dir():
        return
    for folder in sorted(layout.runs.iterdir()):
        if ID.fullmatch(folder.name) and is_to_be_collected(layout.run(folder.name)):
            yield folder.name


def is_to_be_collected(run: RunPaths) -> bool:
    """Return whether a run that was begun has no result, or one that may be its own.

    `collect` deletes the homes of a run last: a result beside them was written by the run, or by
    a process that was killed before it had cleaned up.
    """
    homes = (run.scoring_home, run.home)
    return run.run_spec.exists() and (
        not run.result.exists() or any(home.exists() for home in homes)
    )


def is_over(run: RunPaths) -> bool:
    """Return whether a run has ended: no shim lives, and no process is about to start one.

    A shim that is past all its limits is ended. Raises LaunchError if it is on another machine.
    """
    state = shim.status(run)
    if state != "absent":
        return state != "running" or end_overdue(run)
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        starter = read_object(run.local, LOCAL_LIMIT)["starter"]
        if system.is_alive(int(starter["pid"]), float(starter["start"])):
            return False
    # Its starter was killed; a shim that it may have begun finds the folder taken and goes.
    return shim.claim(run)


def is_readable(run: RunPaths) -> bool:
    """Return whether a result can be made of a run that has ended: else no waiting helps."""
    local = read_object(run.local, LOCAL_LIMIT)
    try:
        Before.model_validate(local.get("before"))
    except ValueError:
        return False
    return bool(local.get("checkout")) and load_or_none(RunSpec, run.run_spec) is not None


def busy_workers(layout: Layout) -> set[str]:
    """Return the workers whose checkout is needed: by a run that lives, or to judge one.

    The evidence of an ended run lies in its checkout until it is collected. One that can never be
    collected, since its record is damaged, makes no worker wait.
    """
    busy = set()
    for run in map(layout.run, uncollected(layout)):
        spec = load_or_none(RunSpec, run.run_spec)
        if spec is not None and (_may_live(run) or is_readable(run)):
            busy.add(spec.worker_id)
    return busy


def _may_live(run: RunPaths) -> bool:
    try:
        return shim.status(run) == "running"
    except LaunchError:
        return True  # on another machine


def collect_ended(
    repository: Repository, layout: Layout, experiment_ids: Iterable[str] | None = None
) -> list[str]:
    """Collect every experiment that ended while no process waited for it; return their ids.

    One that cannot be collected (its folder is damaged, or read-only) stays for the fold to name.

    Args:
        experiment_ids: those to look at; default: all.
    """
    collected = []
    for experiment_id in uncollected(layout) if experiment_ids is None else experiment_ids:
        with suppress(*RECOVERABLE_ERRORS):
            if is_over(layout.run(experiment_id)):
                collect(repository, layout, experiment_id)
                collected.append(experiment_id)
    return collected
