"""The supervisor: starts the processes of a fleet, restarts what died, and ends them in order.

It owns its children's processes and `research/live/supervisor.json`, and knows nothing of what
they do: a role that was refused, failed or killed is started again after a pause that doubles, and
one that left on its own account is not. It may be killed at any instant: its children notice and
go, trainings go on under their shims, and the next `up` takes them over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from subprocess import Popen
from typing import Any, Literal, NamedTuple

from autohypothesis.engine import shim
from autohypothesis.engine.experiment import RunSpec
from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.supervisor.process_specs import (
    SUPERVISOR_ROLE,
    WORKER,
    ProcessSpec,
    exit_reason,
    last_sync,
    start_process,
    stop_stage,
)
from autohypothesis.records import locks
from autohypothesis.records.bundles import uncollected
from autohypothesis.records.files import load, load_or_none
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process, hold
from autohypothesis.schema import Manifest, finite, now, whole
from autohypothesis.system import host_name, process_start, signal_process, wait_for_end

Outcome = Literal["finished", "stopped", "failed"]

LOOK_S = 0.2
LOCK_S = 2.0
OBSERVER_FAILED = 3
"""Exit code of an observer that found that nothing can be searched."""
FIRST_PAUSE_S = 1.0
"""Pause before the first restart; it doubles with each."""
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
"""A role that lived so long begins anew with the first pause."""
PATIENCE_S = 180.0
"""Seconds for the roles of one stage to exit; then they are killed."""
SYNC_EXIT_S = 3.0
"""Seconds for the sync process to exit; then it is killed, since its files can be made again."""
LAST_SYNC_S = 8.0
"""Seconds for the last sync after a Ctrl-C; the next `up` or `sync` makes what is missing."""
ORPHANS_S = 20.0
"""Seconds for the children of a killed supervisor to exit; then they are killed."""
SHIM_S = 60.0
"""Seconds for a cancelled training to end and to write its exit."""
_POLL_S = 0.1


@dataclass(slots=True)
class ManagedProcess:
    """A role's process, or the pause before its next one."""

    spec: ProcessSpec
    process: Popen[bytes] | None = None
    start: float = 0.0
    began: float = 0.0
    restarts: int = 0
    failures: int = 0
    """Failures in a row."""
    due: float | None = None
    """When it is to be started again, on the monotonic clock; None: it runs, or has left."""
    ending: str = ""
    """Message about the end of the last process."""

    @property
    def state(self) -> str:
        if self.process is not None:
            return "running"
        return "waiting" if self.due is not None else "ended"

    def status(self) -> dict[str, Any]:
        """Return it as `supervisor.json` has it."""
        pid, start = (self.process.pid, self.start) if self.process is not None else (None, None)
        counted = {"restarts": self.restarts, "said": self.ending}
        return {"state": self.state, "pid": pid, "process_start": start, **counted}


@dataclass(slots=True)
class Supervisor:
    """The processes of one fleet. `run` returns when all of them have ended."""

    layout: Layout
    specs: Sequence[ProcessSpec]
    tick: Callable[[], None] = lambda: None
    """Called about every `LOOK_S`, to show the progress."""
    notes: Sequence[str] = ()
    """Notes for the user from the start; part of the problems in the status."""
    began: datetime = field(default_factory=now)
    children: list[ManagedProcess] = field(default_factory=list)
    message: str = ""
    """Why the observer failed."""

    def run(self, stop: Stop) -> Outcome:
        """Run until asked to stop, or until the observer has finished or failed.

        Raises:
            LockError: another supervisor is at work; the message names it.
        """
        with hold(self.layout, SUPERVISOR_ROLE, doing="up", timeout=LOCK_S):
            former = children_of(self.layout)
            self._report("starting", "waits for what an ended supervisor left")
            for process in await_gone([live.process for live in former], ORPHANS_S):
                _send(process, signal.SIGKILL)
            self.children = [ManagedProcess(spec, due=0.0) for spec in self.specs]
            outcome = self._watch(stop)
            self._end(stop)
            self._report(outcome, self.message or f"the fleet has {outcome}")
            return outcome

    def _watch(self, stop: Stop) -> Outcome:
        while True:
            outcome = self._look()
            self.tick()
            if outcome is not None:
                return outcome
            if all(child.state == "ended" for child in self.children) or stop.wait(LOOK_S):
                return "stopped"

    def _look(self) -> Outcome | None:
        """Take in what ended and start what is due; return an outcome once the search is over."""
        changed, outcome = False, None
        for child in self.children:
            if child.process is not None and (code := child.process.poll()) is not None:
                outcome = self._on_exit(child, code) or outcome
                changed = True
            if outcome is None and child.due is not None and child.due <= time.monotonic():
                self._start(child)
                changed = True
        if changed:
            waiting = [child for child in self.children if child.state == "waiting"]
            last = max(waiting, key=lambda child: child.due or 0.0, default=None)
            news = f"{last.spec.name} {last.ending}" if last else f"{_names(self.children)} at work"
            self._report("working", news)
        return outcome

    def _start(self, child: ManagedProcess) -> None:
        child.due = None
        try:
            child.process = start_process(self.layout, child.spec)
        except OSError as error:
            self._pause(child, f"cannot be started: {error.strerror}")
            return
        child.start = process_start(child.process.pid) or 0.0
        child.began = time.monotonic()

    def _on_exit(self, child: ManagedProcess, code: int) -> Outcome | None:
        """Handle the end of a role: for good, or to be started again."""
        assert child.process is not None
        left = self._clean_exit_state(child.spec, child.process.pid) if code == 0 else ""
        child.process = None
        if time.monotonic() - child.began > STEADY_S:
            child.failures = 0
        if child.spec.name == "observer" and code == OBSERVER_FAILED:
            status = presence.read_role(self.layout, "observer")
            lines = [*status.problems, status.last_action] if status else []
            self.message = "\n".join(filter(None, lines)) or "the observer has failed"
            return "failed"
        if left:
            child.ending = left
            return "finished" if child.spec.name == "observer" and left == "finished" else None
        self._pause(child, exit_reason(self.layout, child.spec.name, code))
        return None

    def _clean_exit_state(self, spec: ProcessSpec, pid: int) -> str:
        """Return how a role that exited with 0 reports that it left; empty where it did not."""
        if spec.nice:
            return "stopped"
        report = (
            presence.read_heartbeat(self.layout, spec.worker)
            if spec.worker
            else presence.read_role(self.layout, spec.name)
        )
        left = report is not None and report.pid == pid and report.state in ("finished", "stopped")
        return report.state if report is not None and left else ""

    def _pause(self, child: ManagedProcess, ending: str) -> None:
        pause = FIRST_PAUSE_S * 2 ** min(child.failures, 30)
        child.due = time.monotonic() + min(LONGEST_PAUSE_S, pause)
        child.failures += 1
        child.restarts += 1
        child.ending = ending

    def _end(self, stop: Stop) -> None:
        """End the roles stage by stage; a second Ctrl-C ends everything at once."""
        for child in self.children:
            child.due = None
        if stop.abandoned:
            self._signal(self.children, signal.SIGHUP)
            self._wait(self.children, lambda: stop.hard, PATIENCE_S)
        for _, group in groupby(sorted(self.children, key=_stage), key=_stage):
            self._end_stage(list(group), stop)
        if not stop.hard:
            self._report("stopping", "the last sync")
            last = ManagedProcess(last_sync(self.layout, hurried=stop.requested))
            self._start(last)
            self._wait([last], lambda: stop.hard, LAST_SYNC_S if stop.requested else PATIENCE_S)
            self._signal([last], signal.SIGKILL)

    def _end_stage(self, staged: list[ManagedProcess], stop: Stop) -> None:
        if not stop.hard:
            self._report("stopping", f"asks {_names(staged)} to stop")
            self._signal(staged, signal.SIGTERM)
            for slow, seconds in ((False, PATIENCE_S), (True, SYNC_EXIT_S)):
                group = [child for child in staged if bool(child.spec.nice) is slow]
                self._wait(group, lambda: stop.hard, seconds)
        self._signal(self.children if stop.hard else staged, signal.SIGKILL)
        self._wait(staged, lambda: False, PATIENCE_S)
        workers = {child.spec.worker for child in staged if child.spec.worker}
        if workers and not stop.abandoned:
            cancel_runs(self.layout, workers, 0.0 if stop.hard else SHIM_S)

    def _signal(self, children: Iterable[ManagedProcess], number: int) -> None:
        for child in children:
            if child.process is not None:
                signal_process(child.process.pid, child.start, number)

    def _wait(
        self, children: Sequence[ManagedProcess], given_up: Callable[[], bool], seconds: float
    ) -> None:
        """Wait until all of them have ended, `seconds` at most."""
        until = time.monotonic() + seconds
        while not given_up() and time.monotonic() < until:
            for child in children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process = None
                    child.ending = exit_reason(self.layout, child.spec.name, code)
            running = [child.process for child in children if child.process is not None]
            if not running:
                return
            wait_for_end(running[0].pid, LOOK_S)
            self.tick()

    def _report(self, state: str, action: str) -> None:
        """Best effort: a full disk must not end the fleet."""
        problems = [
            f"{child.spec.name} {child.ending}; tried again, {child.restarts} times by now"
            for child in self.children
            if child.state == "waiting" and child.failures > 1
        ]
        known = {child.spec.name: child.status() for child in self.children}
        with suppress(AutohypothesisError, OSError):
            status = presence.own_status(
                SUPERVISOR_ROLE, state=state, started_at=self.began, last_action=action,
                last_action_at=now(), details={"children": known},
                problems=[*self.notes, *problems, *([self.message] if self.message else [])],
            )  # fmt: skip
            presence.write_role(self.layout, status)


def _stage(child: ManagedProcess) -> int:
    return stop_stage(child.spec.name)


def _names(children: Sequence[ManagedProcess]) -> str:
    return ", ".join(child.spec.name for child in children) or "nothing"


class LiveProcess(NamedTuple):
    """A process of the fleet that lives, and its role."""

    name: str
    process: Process

    def __str__(self) -> str:
        return f"{self.name} (pid {self.process.pid})"


def find_supervisor(layout: Layout) -> Process | None:
    """Return the supervisor, where one lives."""
    return _lock_holder(layout, SUPERVISOR_ROLE)


def children_of(layout: Layout) -> list[LiveProcess]:
    """Return the living processes that the last supervisor wrote down."""
    status = presence.read_role(layout, SUPERVISOR_ROLE)
    if status is None:
        return []
    found = []
    children = status.details.get("children")
    for name, child in children.items() if isinstance(children, dict) else ():
        known = child if isinstance(child, dict) else {}
        pid, start = whole(known.get("pid")), finite(known.get("process_start"))
        if pid and pid > 0 and start:
            found.append(LiveProcess(name, Process(pid, start, status.node_id)))
    return [live for live in found if live.process.lives()]


def live_processes(layout: Layout) -> list[LiveProcess]:
    """Return every role's process in the order of stopping, the supervisor left out.

    One that was started alone, or that a killed supervisor left, is known by the lock of its role.
    """
    found = children_of(layout)
    roles = (role for role in presence.ROLES if role != SUPERVISOR_ROLE)
    for name in (*roles, *presence.worker_locks(layout)):
        if (process := _lock_holder(layout, name)) is not None:
            found.append(LiveProcess(name, process))
    once = {(live.process.pid, live.process.start): live for live in reversed(found)}
    return sorted(once.values(), key=lambda live: (stop_stage(live.name), live.name))


def _lock_holder(layout: Layout, name: str) -> Process | None:
    """Return the holder of a lock that is held now: its note alone names the last holder."""
    holder = locks.holder(layout, name) if locks.held(layout, name) else None
    return holder.process if holder and holder.process.lives() else None


def end_supervisor(layout: Layout, seconds: float, say: Callable[[str], None]) -> list[str]:
    """Ask the supervisor to end its fleet, and wait; return the names of what has ended.

    Raises:
        FleetError: it is still there after `seconds`.
    """
    process = find_supervisor(layout)
    if process is None:
        return []
    names = [live.name for live in children_of(layout)]
    say(f"asks the supervisor (pid {process.pid}) to stop {', '.join(names) or 'what it has'}")
    _send(process, signal.SIGTERM)
    if await_gone([process], seconds):
        raise FleetError(
            f"the supervisor (pid {process.pid}) is still there after {seconds:g} s",
            hint="run `python orchestrator.py status`, then down again with a longer --timeout",
        )
    return [*names, SUPERVISOR_ROLE]


def end_all(layout: Layout, seconds: float, say: Callable[[str], None]) -> list[str]:
    """Stop every role in order, then trainings that have no worker; return their names.

    Raises:
        FleetError: some are still there after `seconds`.
    """
    until = time.monotonic() + seconds
    everything = live_processes(layout)
    for _, group in groupby(everything, key=lambda live: stop_stage(live.name)):
        staged = list(group)
        for live in staged:
            say(f"stops {live}")
            _send(live.process, signal.SIGTERM)
        left = await_gone([live.process for live in staged], until - time.monotonic())
        if left:
            names = ", ".join(str(live) for live in staged if live.process in left)
            raise FleetError(
                f"still there after {seconds:g} s: {names}",
                hint="run `python orchestrator.py down --timeout 600`, or `kill -9` them",
            )
    workers = {live.name.removeprefix(WORKER) for live in everything} | worker_ids(layout)
    runs = cancel_runs(layout, workers, max(0.0, until - time.monotonic()))
    return [live.name for live in everything] + runs


def worker_ids(layout: Layout) -> set[str]:
    """Return the ids of the manifest's workers, as far as it can be read, and of a loop's."""
    manifest = load_or_none(Manifest, layout.manifest)
    workers = manifest.workers if manifest else ()
    return {presence.LOOP_WORKER, *(worker.worker_id for worker in workers)}


def cancel_runs(layout: Layout, workers: Collection[str], seconds: float) -> list[str]:
    """Ask the shims of `workers` to end their runs, and wait; return the experiments' ids."""
    asked = []
    for experiment_id in uncollected(layout):
        run = layout.run(experiment_id)
        try:
            spec = load(RunSpec, run.run_spec)
        except (FileNotFoundError, AutohypothesisError):
            continue
        if spec.worker_id in workers and shim.cancel(run):
            asked.append(experiment_id)
    until = time.monotonic() + seconds
    for experiment_id in asked:
        shim.wait(layout.run(experiment_id), max(0.0, until - time.monotonic()))
    return asked


def await_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait for the end of all; return those that live after `seconds`."""
    until = time.monotonic() + seconds
    left = list(processes)
    while (left := [process for process in left if process.lives()]) and time.monotonic() < until:
        wait_for_end(left[0].pid, min(_POLL_S, max(0.0, until - time.monotonic())))
    return left


def _send(process: Process, number: int) -> None:
    if process.host == host_name():
        signal_process(process.pid, process.start, number)
