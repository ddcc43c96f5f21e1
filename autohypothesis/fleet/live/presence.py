"""Who is at work in a repository, by locks and living processes; never by the age of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from autohypothesis import system
from autohypothesis.engine import recovery
from autohypothesis.engine.lab import is_running
from autohypothesis.errors import FleetError
from autohypothesis.fleet.live import roles
from autohypothesis.fleet.live.heartbeat import read_all
from autohypothesis.records import locks
from autohypothesis.records.layout import Layout

ROLES = ("supervisor", "observer", "tool-builder")
LEFT = ("stopped", "finished", "failed")
"""States of somebody who has left."""


def worker_lock(worker: str) -> str:
    return f"worker-{worker}"


def held(layout: Layout, name: str) -> str:
    """Who holds the lock `name`, in words; empty when nobody does."""
    path = layout.lock(name)
    if not path.is_file():
        return ""
    lock = FileLock(path, timeout=0, mode=0o644, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return str(locks.holder(layout, name) or "a process that left no name")
    lock.release()
    return ""


def refuse_another_machine(layout: Layout) -> None:
    """One fleet is one machine: whether a process of another one lives, nobody here can tell.

    Raises:
        FleetError: somebody of another machine works here, or never said that it left.
    """
    statuses = [status for name in ROLES if (status := roles.read_role(layout, name))]
    said = [(one.role, one.node_id, one.state, one.updated_at) for one in statuses]
    said += [(one.worker_id, one.node_id, one.state, one.updated_at) for one in read_all(layout)]
    for name, node, state, seen in said:
        if node and node != system.host_name() and state not in LEFT:
            raise FleetError(
                f"{name} of another machine, {node}, is at work in {layout.research} (last heard"
                f" of at {seen:%Y-%m-%d %H:%M} UTC)",
                hint=f"stop it there with `down`; if {node} is gone: rm -r {layout.live}",
            )


def at_work(layout: Layout) -> list[str]:
    """Roles, workers and experiments that live, each in a few words."""
    found = []
    for name in (*ROLES, *_worker_locks(layout)):
        if holder := held(layout, name):
            found.append(f"{name} ({holder})")
    running = (name for name in recovery.uncollected(layout) if is_running(layout, name))
    return found + [f"experiment {name}" for name in running]


def users_of(layout: Layout, worker: str, worktree: Path) -> str:
    """What needs the worktree of `worker` now: a role, a run, a shell; empty when nothing does."""
    for name in (worker_lock(worker), f"worktree-{worker}"):
        if holder := held(layout, name):
            return holder
    if worker in recovery.busy_workers(layout):
        return "an experiment that is not collected yet"
    pid = next(_inside(worktree), None)
    return f"pid {pid}, whose current directory it is" if pid is not None else ""


def _worker_locks(layout: Layout) -> list[str]:
    return sorted(path.stem for path in layout.locks.glob("worker-*.lock"))


def _inside(folder: Path) -> Iterator[int]:
    """Processes whose current directory is in `folder`, as far as this user may see."""
    place = os.path.realpath(folder)
    for pid in system.all_pids():
        with suppress(OSError):
            here = os.readlink(f"/proc/{pid}/cwd") if system.LINUX else ""
            if here == place or here.startswith(place + os.sep):
                yield pid
