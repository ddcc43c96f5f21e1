"""Who is at work in a repository, by locks and living processes; never by the age of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from autohypothesis import system
from autohypothesis.engine import recovery
from autohypothesis.engine.project import is_running
from autohypothesis.errors import FleetError
from autohypothesis.fleet.live import roles
from autohypothesis.fleet.live.heartbeat import read_all
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.locks import held

__all__ = ["held"]

LOOP = "loop"
"""A search on one machine by one process: its lock and its status have this name."""
SOLO = "solo"
"""Its one worker."""
ROLES = (LOOP, "supervisor", "observer", "tool-builder", "courier")
LEFT = ("stopped", "finished", "failed")
"""States of somebody who has left."""


def worker_lock(worker: str) -> str:
    return f"worker-{worker}"


def refuse_beside_loop(layout: Layout) -> None:
    """A loop observes and works by itself: nobody else can meanwhile.

    Raises:
        FleetError: one is at work; the message says who it is and how far.
    """
    if holder := held(layout, LOOP):
        status = roles.read_role(layout, LOOP)
        how_far = f", {status.last_action}" if status and roles.lives(status) else ""
        raise FleetError(
            f"a loop is at work in {layout.root}: {holder}{how_far}",
            hint="watch it: python orchestrator.py monitor, or end it: python orchestrator.py down",
        )


def refuse_beside_fleet(layout: Layout) -> None:
    """A loop needs the search for itself; a tool-builder is in nobody's way.

    Raises:
        FleetError: a supervisor, an observer or a worker is at work, each with who plays it.
    """
    names = ("supervisor", "observer", *worker_locks(layout))
    if busy := [f"{name} ({holder})" for name in names if (holder := held(layout, name))]:
        raise FleetError(
            f"a fleet is at work in {layout.root}: {', '.join(busy[:4])}"
            + (f" and {len(busy) - 4} more" if len(busy) > 4 else ""),
            hint="watch it: python orchestrator.py monitor, or end it: python orchestrator.py down",
        )


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
    """Roles, workers and experiments of a fleet that live, each in a few words."""
    found = []
    for name in (*(one for one in ROLES if one != LOOP), *worker_locks(layout)):
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
    places = (worktree, layout.export(worktree.name))
    pid = next((pid for place in places for pid in _inside(place)), None)
    return f"pid {pid}, whose current directory it is" if pid is not None else ""


def worker_locks(layout: Layout) -> list[str]:
    """Names of the workers' locks. What has no id for a name is none of ours."""
    names = (path.stem for path in layout.locks.glob("worker-*.lock"))
    return sorted(filter(ID.fullmatch, names))


def _inside(folder: Path) -> Iterator[int]:
    """Processes whose current directory is in `folder`, as far as this user may see."""
    place = os.path.realpath(folder)
    for pid in system.all_pids():
        with suppress(OSError):
            here = os.readlink(f"/proc/{pid}/cwd") if system.LINUX else ""
            if here == place or here.startswith(place + os.sep):
                yield pid
