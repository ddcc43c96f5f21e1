"""Ending a fleet, also one whose supervisor is gone: who lives is found, and ended in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from autohypothesis.engine import recovery, shim
from autohypothesis.engine.executor import RunSpec
from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.fleet.live import heartbeat, presence, roles
from autohypothesis.records import locks
from autohypothesis.records.files import load, load_or_none
from autohypothesis.records.layout import Layout
from autohypothesis.records.processes import Process
from autohypothesis.schema import Manifest
from autohypothesis.system import host_name, signal_process, wait_for_end

SHIM_S = 60.0
"""For a training that was cancelled to end, its processes gone and its exit written."""
_LOOK_S = 0.1
_WORKER = presence.worker_lock("")


class Living(NamedTuple):
    """A process of the fleet that lives, and what it plays."""

    name: str
    process: Process

    @property
    def stage(self) -> int:
        """In which order they are stopped: workers, tool-builder, observer, what folds."""
        if self.name.startswith(_WORKER) or self.name == presence.LOOP:
            return 0
        return {"tool-builder": 1, "observer": 2}.get(self.name, 3)


# ── who lives ───────────────────────────────────────────────────────────────────────────────


def supervisor(layout: Layout) -> Process | None:
    """The supervisor, where one lives."""
    found = [*_role("supervisor", layout), *_holder("supervisor", layout)]
    return next((one.process for one in found), None)


def children_of(layout: Layout) -> list[Living]:
    """Living processes that the last supervisor wrote down."""
    status = roles.read_role(layout, "supervisor")
    known = status.details.get("children") if status else None
    found = []
    for name, child in known.items() if isinstance(known, dict) else ():
        process = _process(child, (status.node_id if status else "") or host_name())
        if process is not None and process.lives():
            found.append(Living(str(name), process))
    return found


def living(layout: Layout) -> list[Living]:
    """Every role that is played, whoever started it; the supervisor is not among them."""
    found = children_of(layout)
    for name in (presence.LOOP, "tool-builder", "observer"):
        found += [*_role(name, layout), *_holder(name, layout)]
    for beat in heartbeat.read_all(layout):
        if heartbeat.at_work(beat) and beat.pid and beat.process_start is not None:
            process = Process(beat.pid, beat.process_start, beat.node_id or host_name())
            found.append(Living(presence.worker_lock(beat.worker_id), process))
    for name in presence.worker_locks(layout):
        found += _holder(name, layout)
    once = {(one.process.pid, one.process.start): one for one in reversed(found)}
    return sorted(once.values(), key=lambda one: (one.stage, one.name))


def _role(name: str, layout: Layout) -> Iterator[Living]:
    status = roles.read_role(layout, name)
    if status is None or not roles.lives(status) or status.state in ("stopped", "finished"):
        return
    if status.pid is not None and status.process_start is not None:
        host = status.node_id or host_name()
        yield Living(name, Process(status.pid, status.process_start, host))


def _holder(name: str, layout: Layout) -> Iterator[Living]:
    """Whoever holds a lock now: its note alone says who held it last."""
    if presence.held(layout, name):
        holder = locks.holder(layout, name)
        if holder is not None and holder.process.lives():
            yield Living(name, holder.process)


def _process(document: Any, host: str) -> Process | None:
    try:
        return Process(int(document["pid"]), float(document["process_start"]), host)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


# ── ending them ─────────────────────────────────────────────────────────────────────────────


def end_supervisor(layout: Layout, seconds: float, said: Callable[[str], None]) -> list[str]:
    """Asks the supervisor to end its fleet, and waits; the names of who left with it.

    Raises:
        FleetError: it is still there after `seconds`.
    """
    process = supervisor(layout)
    if process is None:
        return []
    names = [one.name for one in children_of(layout)]
    said(f"asks the supervisor (pid {process.pid}) to stop {', '.join(names) or 'what it has'}")
    _send(process, signal.SIGTERM)
    if await_gone([process], seconds):
        raise FleetError(
            f"the supervisor (pid {process.pid}) is still there after {seconds:g} s",
            hint="run `python orchestrator.py status`, then down again with a longer --timeout",
        )
    return [*names, "supervisor"]


def end_all(layout: Layout, seconds: float, said: Callable[[str], None]) -> list[str]:
    """Stops every role that is played, in order, and the trainings that nobody follows; names.

    Raises:
        FleetError: some are still there after `seconds`.
    """
    until = time.monotonic() + seconds
    everybody = living(layout)
    for stage in sorted({one.stage for one in everybody}):
        staged = [one for one in everybody if one.stage == stage]
        for one in staged:
            said(f"stops {one.name} (pid {one.process.pid})")
            _send(one.process, signal.SIGTERM)
        left = await_gone([one.process for one in staged], until - time.monotonic())
        if left:
            names = ", ".join(f"{one.name} (pid {one.process.pid})" for one in staged
                              if one.process in left)  # fmt: skip
            raise FleetError(
                f"still there after {seconds:g} s: {names}",
                hint="run `python orchestrator.py down --timeout 600`, or `kill -9` them",
            )
    workers = {one.name.removeprefix(_WORKER) for one in everybody if one.stage == 0}
    runs = cancel_runs(layout, workers | roster(layout), max(0.0, until - time.monotonic()))
    return [one.name for one in everybody] + runs


def roster(layout: Layout) -> set[str]:
    """The ids of the fleet's workers, as far as they can be read, and of a loop's."""
    manifest = load_or_none(Manifest, layout.manifest)
    return {presence.SOLO, *(worker.worker_id for worker in (manifest.workers if manifest else ()))}


def cancel_runs(layout: Layout, workers: Collection[str], seconds: float) -> list[str]:
    """Asks the shims that run something for `workers` to end it; names, after `seconds` at most."""
    asked = []
    for experiment_id in recovery.uncollected(layout):
        run = layout.run(experiment_id)
        try:
            spec = load(RunSpec, run.run_spec)
            handle = shim.attach(str(run.folder)) if spec.worker_id in workers else None
        except (FileNotFoundError, AutohypothesisError):
            continue
        if handle is not None and shim.cancel(handle):
            asked.append((experiment_id, handle))
    until = time.monotonic() + seconds
    for _, handle in asked:
        shim.wait(handle, max(0.0, until - time.monotonic()))
    return [name for name, _ in asked]


def await_end(former: Sequence[Living], seconds: float) -> None:
    """Until they have gone by themselves; who is still there after `seconds` is killed."""
    for process in await_gone([one.process for one in former], seconds):
        _send(process, signal.SIGKILL)


def await_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Waits for the end of all; those that live after `seconds`."""
    until = time.monotonic() + seconds
    left = list(processes)
    while (left := [one for one in left if one.lives()]) and time.monotonic() < until:
        wait_for_end(left[0].pid, min(_LOOK_S, max(0.0, until - time.monotonic())))
    return left


def _send(process: Process, number: int) -> None:
    if process.host == host_name():
        signal_process(process.pid, process.start, number)
