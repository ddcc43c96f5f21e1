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

from autohypothesis.engine import recovery, shim
from autohypothesis.engine.executor import RunSpec
from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.supervisor.process_specs import (
    SUPERVISOR_ROLE,
    ProcessSpec,
    exit_reason,
    exit_words,
    start_process,
)
from autohypothesis.records import locks
from autohypothesis.records.files import load, load_or_none
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process, hold
from autohypothesis.schema import Manifest, now
from autohypothesis.system import host_name, process_start, signal_process, wait_for_end

Outcome = Literal["finished", "stopped", "failed"]

LOOK_S = 0.2
LOCK_S = 2.0
OBSERVER_FAILED = 3
"""Exit code of an observer that found that nothing can be searched."""
KEEPER_S = 3.0
"""For a niced role to leave; then it is killed, as what it makes can be made again."""
LAST_SYNC_S = 8.0
"""For the last sync after a Ctrl-C; the next `up` or `sync` makes what is missing."""
ORPHANS_S = 20.0
"""How long the children of a killed supervisor may take to notice; then they are killed."""
SHIM_S = 60.0
"""For a training that was cancelled to end, its processes gone and its exit written."""
_POLL_S = 0.1
_WORKER = presence.worker_lock("")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Seconds."""

    first_pause: float = 1.0
    """Before the first restart; it doubles with each."""
    longest_pause: float = 60.0
    steady: float = 60.0
    """A role that lived so long begins anew with the first pause."""
    patience: float = 180.0
    """For the roles of one stage to leave; then they are killed."""


@dataclass(slots=True)
class ManagedProcess:
    """A role's process, or the pause before its next one."""

    role: ProcessSpec
    process: Popen[bytes] | None = None
    start: float = 0.0
    began: float = 0.0
    restarts: int = 0
    failures: int = 0
    """In a row."""
    due: float | None = None
    """When it is to be started again, on the monotonic clock; None: it runs, or has left."""
    said: str = ""
    """How the last one ended."""

    @property
    def state(self) -> str:
        if self.process is not None:
            return "running"
        return "waiting" if self.due is not None else "ended"

    def document(self) -> dict[str, Any]:
        pid = self.process.pid if self.process is not None else None
        return {
            "state": self.state,
            "pid": pid,
            "process_start": self.start if pid is not None else None,
            "restarts": self.restarts,
            "said": self.said,
        }


@dataclass(slots=True)
class Supervisor:
    """The processes of one fleet. `run` returns when all of them have ended."""

    layout: Layout
    roles: Sequence[ProcessSpec]
    final: Sequence[str] = ()
    """What to run once everything has ended: the last sync and snapshot."""
    hurried: Sequence[str] = ()
    """The same where a person waits: without what takes long to draw."""
    tick: Callable[[], None] = lambda: None
    """Called about every `LOOK_S`, to show the progress."""
    pace: RestartPolicy = field(default_factory=RestartPolicy)
    notes: Sequence[str] = ()
    """What a person should know from the start; part of the problems in the status."""
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
            self.children = [ManagedProcess(role, due=0.0) for role in self.roles]
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
            if all(child.state == "ended" for child in self.children):
                return "stopped"
            if stop.wait(LOOK_S):
                return "stopped"

    # ── one look ──────────────────────────────────────────────────────────────────────────

    def _look(self) -> Outcome | None:
        """Take in what ended and start what is due; return an outcome once the search is over."""
        changed, outcome = False, None
        for child in self.children:
            if child.process is not None and (code := child.process.poll()) is not None:
                outcome = self._take(child, code) or outcome
                changed = True
            if outcome is None and child.due is not None and child.due <= time.monotonic():
                self._start(child)
                changed = True
        if changed:
            self._report("working", self._news())
        return outcome

    def _start(self, child: ManagedProcess) -> None:
        child.due = None
        try:
            child.process = start_process(self.layout, child.role)
        except OSError as error:
            self._pause(child, f"cannot be started: {error.strerror}")
            return
        child.start = process_start(child.process.pid) or 0.0
        child.began = time.monotonic()

    def _take(self, child: ManagedProcess, code: int) -> Outcome | None:
        """Handle the end of a role: for good, or to be started again."""
        assert child.process is not None
        state = self._state(child.role, child.process.pid) if code == 0 else ""
        child.process = None
        if time.monotonic() - child.began > self.pace.steady:
            child.failures = 0
        if child.role.name == "observer" and code == OBSERVER_FAILED:
            status = presence.read_role(self.layout, "observer")
            lines = [*status.problems, status.last_action] if status else []
            self.message = "\n".join(filter(None, lines)) or "the observer has failed"
            return "failed"
        if state:
            child.said = state
            return "finished" if child.role.name == "observer" and state == "finished" else None
        self._pause(child, exit_reason(self.layout, child.role.name, code))
        return None

    def _state(self, role: ProcessSpec, pid: int) -> str:
        """Return how a role that exited with 0 reports that it left; empty where it did not."""
        if not role.reports:
            return "stopped"
        if role.worker is not None:
            beat = presence.read_heartbeat(self.layout, role.worker)
            return "stopped" if beat and beat.pid == pid and beat.state == "stopped" else ""
        status = presence.read_role(self.layout, role.name)
        ended = status is not None and status.pid == pid
        return status.state if status and ended and status.state in ("finished", "stopped") else ""

    def _pause(self, child: ManagedProcess, said: str) -> None:
        pause = self.pace.first_pause * 2 ** min(child.failures, 30)
        child.due = time.monotonic() + min(self.pace.longest_pause, pause)
        child.failures += 1
        child.restarts += 1
        child.said = said

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def _end(self, stop: Stop) -> None:
        """End the roles stage by stage; a second Ctrl-C ends everything at once."""
        patience = self.pace.patience
        for child in self.children:
            child.due = None
        if stop.abandoned:
            self._signal(self.children, signal.SIGHUP)
            self._wait(self.children, lambda: stop.hard, patience)
        for stage in sorted({child.role.stage for child in self.children}):
            staged = [child for child in self.children if child.role.stage == stage]
            if not stop.hard:
                self._report("stopping", f"asks {_names(staged)} to stop")
                self._signal(staged, signal.SIGTERM)
                for slow, seconds in ((False, patience), (True, min(KEEPER_S, patience))):
                    group = [child for child in staged if bool(child.role.nice) is slow]
                    self._wait(group, lambda: stop.hard, seconds)
            self._signal(self.children if stop.hard else staged, signal.SIGKILL)
            self._wait(staged, lambda: False, patience)
            if any(child.role.worker for child in staged) and not stop.abandoned:
                workers = {str(child.role.worker) for child in staged}
                cancel_runs(self.layout, workers, 0.0 if stop.hard else SHIM_S)
        if self.final and not stop.hard:
            self._report("stopping", "the last sync")
            words = self.hurried if stop.requested and self.hurried else self.final
            last = ManagedProcess(ProcessSpec("sync", tuple(words), 9))
            self._start(last)
            self._wait([last], lambda: stop.hard, LAST_SYNC_S if stop.requested else patience)
            self._signal([last], signal.SIGKILL)

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
                    child.process, child.said = None, exit_words(code)
            left = next((child for child in children if child.process is not None), None)
            if left is None:
                return
            assert left.process is not None
            wait_for_end(left.process.pid, LOOK_S)
            self.tick()

    # ── the status ──────────────────────────────────────────────────────────────────────

    def _news(self) -> str:
        waiting = [child for child in self.children if child.state == "waiting"]
        if not waiting:
            return f"{_names(self.children)} at work"
        last = max(waiting, key=lambda child: child.due or 0.0)
        return f"{last.role.name} {last.said}"

    def _report(self, state: str, action: str) -> None:
        """Best effort: a full disk must not end the fleet."""
        problems = [
            f"{child.role.name} {child.said}; tried again, {child.restarts} times by now"
            for child in self.children
            if child.state == "waiting" and child.failures > 1
        ]
        known = {child.role.name: child.document() for child in self.children}
        with suppress(AutohypothesisError, OSError):
            status = presence.own_status(
                SUPERVISOR_ROLE, state=state, started_at=self.began, last_action=action,
                last_action_at=now(), details={"children": known},
                problems=[*self.notes, *problems, *([self.message] if self.message else [])],
            )  # fmt: skip
            presence.write_role(self.layout, status)


def _names(children: Sequence[ManagedProcess]) -> str:
    return ", ".join(child.role.name for child in children) or "nothing"


class LiveProcess(NamedTuple):
    """A process of the fleet that lives, and its role."""

    name: str
    process: Process

    @property
    def stage(self) -> int:
        """Its place in the order of stopping: workers, tool-builder, observer, the rest."""
        if self.name.startswith(_WORKER) or self.name == presence.LOOP:
            return 0
        return {"tool-builder": 1, "observer": 2}.get(self.name, 3)

    @property
    def words(self) -> str:
        return f"{self.name} (pid {self.process.pid})"


# ── which processes live ────────────────────────────────────────────────────────────────────


def find_supervisor(layout: Layout) -> Process | None:
    """Return the supervisor, where one lives."""
    found = _role_processes(layout, SUPERVISOR_ROLE)
    return found[0].process if found else None


def children_of(layout: Layout) -> list[LiveProcess]:
    """Return the living processes that the last supervisor wrote down."""
    status = presence.read_role(layout, SUPERVISOR_ROLE)
    children = status.details.get("children") if status else None
    if status is None or not isinstance(children, dict):
        return []
    found = []
    for name, child in children.items():
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # a damaged entry
            pid, start = int(child["pid"]), float(child["process_start"])
            found += _living(str(name), pid, start, status.node_id)
    return found


def live_processes(layout: Layout) -> list[LiveProcess]:
    """Return every role's process in the order of stopping, the supervisor left out."""
    found = children_of(layout)
    for name in (presence.LOOP, "tool-builder", "observer"):
        found += _role_processes(layout, name)
    for beat in presence.read_heartbeats(layout):
        if beat.state != "stopped":
            name = presence.worker_lock(beat.worker_id)
            found += _living(name, beat.pid, beat.process_start, beat.node_id or "")
    for name in presence.worker_locks(layout):
        found += _lock_holder(layout, name)
    once = {(live.process.pid, live.process.start): live for live in reversed(found)}
    return sorted(once.values(), key=lambda live: (live.stage, live.name))


def _living(name: str, pid: int | None, start: float | None, host: str) -> list[LiveProcess]:
    if not pid or pid <= 0 or start is None:
        return []
    process = Process(pid, start, host or host_name())
    return [LiveProcess(name, process)] if process.lives() else []


def _role_processes(layout: Layout, name: str) -> list[LiveProcess]:
    """Return the process of a role by its status, and by its lock."""
    status, found = presence.read_role(layout, name), []
    if status is not None and status.state not in ("stopped", "finished"):
        found = _living(name, status.pid, status.process_start, status.node_id)
    return found + _lock_holder(layout, name)


def _lock_holder(layout: Layout, name: str) -> list[LiveProcess]:
    """Return the holder of a lock that is held now: its note alone names the last holder."""
    holder = locks.holder(layout, name) if locks.held(layout, name) else None
    return [LiveProcess(name, holder.process)] if holder and holder.process.lives() else []


# ── ending them ─────────────────────────────────────────────────────────────────────────────


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
    for _, group in groupby(everything, key=lambda live: live.stage):
        staged = list(group)
        for live in staged:
            say(f"stops {live.words}")
            _send(live.process, signal.SIGTERM)
        left = await_gone([live.process for live in staged], until - time.monotonic())
        if left:
            names = ", ".join(live.words for live in staged if live.process in left)
            raise FleetError(
                f"still there after {seconds:g} s: {names}",
                hint="run `python orchestrator.py down --timeout 600`, or `kill -9` them",
            )
    workers = {live.name.removeprefix(_WORKER) for live in everything if live.stage == 0}
    runs = cancel_runs(layout, workers | worker_ids(layout), max(0.0, until - time.monotonic()))
    return [live.name for live in everything] + runs


def worker_ids(layout: Layout) -> set[str]:
    """Return the ids of the manifest's workers, as far as it can be read, and of a loop's."""
    manifest = load_or_none(Manifest, layout.manifest)
    workers = manifest.workers if manifest else ()
    return {presence.LOOP_WORKER, *(worker.worker_id for worker in workers)}


def cancel_runs(layout: Layout, workers: Collection[str], seconds: float) -> list[str]:
    """Ask the shims of `workers` to end their runs, and wait; return the experiments' ids."""
    asked = []
    for experiment_id in recovery.uncollected(layout):
        run = layout.run(experiment_id)
        try:
            spec = load(RunSpec, run.run_spec)
            handle = shim.attach(run) if spec.worker_id in workers else None
        except (FileNotFoundError, AutohypothesisError):
            continue
        if handle is not None and shim.cancel(handle):
            asked.append((experiment_id, handle))
    until = time.monotonic() + seconds
    for _, handle in asked:
        shim.wait(handle, max(0.0, until - time.monotonic()))
    return [name for name, _ in asked]


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
