"""Runs whose starter was killed, or whose shim is stopped: found by liveness, collected once.

The shim keeps the deadline of its run; here is the deadline of those who wait for it. A stopped
shim is named while it is stopped, and ended when it is far past its limits, so that no process
waits for ever. Times are monotonic: a machine that is suspended makes no run late.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from autohypothesis import system
from autohypothesis.engine import guard, shim
from autohypothesis.engine.collect import LOCAL_LIMIT, collect
from autohypothesis.engine.devices import experiments_of
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.shim import utc_now
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, LaunchError, RecordError
from autohypothesis.records.files import load, read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import ID, Layout, RunPaths

STOPPED = ("T", "t")
"""States of a process that was stopped, by a signal or by a debugger."""
KILLED_S = 5.0
"""How long a killed shim may take to be gone."""


def stopped(run: RunPaths) -> str:
    """What a person should know of a run whose shim is stopped; empty for any other run."""
    known = _living(run)
    state = system.process_state(known["pid"]) if known else ""
    if not known or state not in STOPPED:
        return ""
    pid, left = known["pid"], _left(run, known)
    then = "" if left is None else f"; else it is ended in {max(left, 0.0):.0f} s"
    return (
        f"its owner process {pid} is stopped (state {state}): `kill -CONT {pid}` resumes it{then}"
    )


def standing_still(layout: Layout) -> list[str]:
    """The runs of a repository whose shim is stopped, a line each, as far as a lock names them."""
    names = [name for name in experiments_of(str(layout.root)) if ID.fullmatch(name)]
    return [f"{name} stands still: {text}" for name in names if (text := stopped(layout.run(name)))]


def end_overdue(run: RunPaths) -> bool:
    """Kill the shim of a run that is past all its limits, and record that; whether it was.

    The kernel ends the training with it, and the collector what the training has started.
    """
    known = _living(run)
    left = _left(run, known) if known else None
    if not known or left is None or left > 0:
        return False
    pid, start = known["pid"], known["start"]
    state = system.process_state(pid)
    system.signal_process(pid, start, signal.SIGKILL)
    until = time.monotonic() + KILLED_S
    while system.is_alive(pid, start):
        if time.monotonic() >= until:
            return False  # the kernel does not let it go, out of a write to a lost disk say
        system.wait_for_end(pid, 0.1)
    if not run.exit.exists():
        _record(run, known, f"was stopped (state {state})" if state in STOPPED else "hung")
    return True


def _record(run: RunPaths, known: Mapping[str, Any], why: str) -> None:
    """exit.json in the place of the dead shim; on a full disk the run is one without a record."""
    error = (
        f"its owner process {known['pid']} {why} and did not end the run"
        f" {_deadline(run, known):.0f} s after its begin, so it was killed"
    )
    document = {"experiment_id": known["experiment_id"], "status": "infra", "ended_at": utc_now()}
    with suppress(AutohypothesisError):
        write_json(run.exit, {**document, "error": error})


def _living(run: RunPaths) -> dict[str, Any] | None:
    """shim.json of a shim that lives on this machine."""
    known = shim.identity(str(run.folder))
    if not known or known["host"] != system.host_id() or known["boot"] != system.boot_id():
        return None
    return known if system.is_alive(known["pid"], known["start"]) else None


def _left(run: RunPaths, known: Mapping[str, Any]) -> float | None:
    """Seconds until it is ended by those who wait; None where its limits are not known."""
    limit = _deadline(run, known)
    return None if limit is None else limit - (time.monotonic() - known["began"])


def _deadline(run: RunPaths, known: Mapping[str, Any]) -> float | None:
    limits = known["overdue_after"]
    return limits[run.score_log.exists()] if limits else None


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
    """Whether nobody works on a run any more: no shim lives, and nobody is about to start one.

    A shim that is past all its limits is ended.
    """
    state = shim.status(str(run.folder))
    if state != "absent":
        return state != "running" or end_overdue(run)
    if _starter_lives(run):
        return False
    # Its starter was killed; a shim that it may have begun finds the folder taken and goes.
    return shim.forbid(str(run.folder))


def _starter_lives(run: RunPaths) -> bool:
    try:
        starter = read_json(run.local, LOCAL_LIMIT)["starter"]
        return system.is_alive(int(starter["pid"]), float(starter["start"]))
    except (FileNotFoundError, RecordError, KeyError, TypeError, ValueError, OverflowError):
        return False


def is_readable(run: RunPaths) -> bool:
    """Whether a result can be made of a run that has ended: else no waiting helps."""
    try:
        load(RunSpec, run.run_spec)
        local = read_json(run.local, LOCAL_LIMIT)
        guard.Before.model_validate(local["before"])
        return bool(local["checkout"])
    except (FileNotFoundError, RecordError, ValueError, KeyError, TypeError):
        return False


def busy_workers(layout: Layout) -> set[str]:
    """Workers whose worktree is needed: by a run that lives, or to judge one that has ended.

    The evidence of an ended run lies in its worktree until it is collected. One that can never be
    collected, since its record is damaged, keeps nobody waiting.
    """
    busy = set()
    for experiment_id in uncollected(layout):
        run = layout.run(experiment_id)
        try:
            worker = load(RunSpec, run.run_spec).worker_id
        except (FileNotFoundError, RecordError):
            continue
        if _may_live(run) or is_readable(run):
            busy.add(worker)
    return busy


def _may_live(run: RunPaths) -> bool:
    """Whether a shim lives, as far as that can be told from this machine."""
    try:
        return shim.status(str(run.folder)) == "running"
    except LaunchError:
        return True


def collect_ended(repository: Repository, layout: Layout) -> list[str]:
    """Collect every experiment that ended without anybody there; their ids.

    One that cannot be collected (its folder is damaged, or read-only) stays for the fold to name.
    """
    collected = []
    for experiment_id in uncollected(layout):
        try:
            if is_over(layout.run(experiment_id)):
                collect(repository, layout, experiment_id)
                collected.append(experiment_id)
        except RECOVERABLE_ERRORS:
            continue
    return collected
