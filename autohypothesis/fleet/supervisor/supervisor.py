"""The supervisor: starts the processes of a fleet, restarts what died, and ends them in order.

It owns its children's processes and `research/live/supervisor.json`, and knows nothing of what
they do: a role that was refused, failed or killed is started again after a pause that doubles, and
one that left on its own account is not. It may be killed at any instant: its children notice and
go, trainings go on under their shims, and the next `up` takes them over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
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
from autohypothesis.records.locks import hold
from autohypothesis.records.processes import Process
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
    """The same for somebody who waits: without what takes long to draw."""
    tick: Callable[[], None] = lambda: None
    """Called about every `LOOK_S`, for whoever shows how it goes."""
    pace: RestartPolicy = field(default_factory=RestartPolicy)
    notes: Sequence[str] = ()
    """What a person should know from the start; part of the problems in the status."""
    began: datetime = field(default_factory=now)
    children: list[ManagedProcess] = field(default_factory=list)
    message: str = ""
    """Why it failed, in the observer's words."""

    def run(self, stop: Stop) -> Outcome:
        """Until asked to stop, or until the observer has finished or failed.

        Raises:
            LockError: another supervisor is at work; the message names it.
        """
        with hold(self.layout, SUPERVISOR_ROLE, doing="up", timeout=LOCK_S):
            former = children_of(self.layout)
            self._report("starting", "waits for what an ended supervisor left")
            await_or_kill(former, ORPHANS_S)
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
        """Takes in who ended, starts who is due; an outcome once there is nothing to go on for."""
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
        """A role has ended: for good, or to be started again."""
        assert child.process is not None
        state = self._state(child.role, child.process.pid) if code == 0 else ""
        child.process = None
        if time.monotonic() - child.began > self.pace.steady:
            child.failures = 0
        if child.role.name == "observer" and code == OBSERVER_FAILED:
            status = presence.read_role(self.layout, "observer")
            said = [*status.problems, status.last_action] if status else []
            self.message = "\n".join(line for line in said if line) or "the observer has failed"
            return "failed"
        if state:
            child.said = state
            return "finished" if child.role.name == "observer" and state == "finished" else None
        self._pause(child, exit_reason(self.layout, child.role.name, code))
        return None

    def _state(self, role: ProcessSpec, pid: int) -> str:
        """How a role that exited with 0 says it left; empty when it did not say."""
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
        """Ends the roles stage by stage; a second Ctrl-C ends everything at once."""
        for child in self.children:
            child.due = None
        if stop.abandoned:
            self._signal(self.children, signal.SIGHUP)
            self._wait(self.children, lambda: stop.hard, self.pace.patience)
        for stage in sorted({child.role.stage for child in self.children}):
            staged = [child for child in self.children if child.role.stage == stage]
            if not stop.hard:
                self._report("stopping", f"asks {_names(staged)} to stop")
                self._signal(staged, signal.SIGTERM)
                slow = [child for child in staged if child.role.nice]
                quick = [child for child in staged if not child.role.nice]
                self._wait(quick, lambda: stop.hard, self.pace.patience)
                self._wait(slow, lambda: stop.hard, min(KEEPER_S, self.pace.patience))
            self._signal(self.children if stop.hard else staged, signal.SIGKILL)
            self._wait(staged, lambda: False, self.pace.patience)
            if any(child.role.worker for child in staged) and not stop.abandoned:
                workers = {str(child.role.worker) for child in staged}
                cancel_runs(self.layout, workers, 0.0 if stop.hard else SHIM_S)
        if self.final and not stop.hard:
            self._report("stopping", "the last sync")
            words = self.hurried if stop.requested and self.hurried else self.final
            last = ManagedProcess(ProcessSpec("sync", tuple(words), 9))
            self._start(last)
            seconds = LAST_SYNC_S if stop.requested else self.pace.patience
            self._wait([last], lambda: stop.hard, seconds)
            self._signal([last], signal.SIGKILL)

    def _signal(self, children: Iterable[ManagedProcess], number: int) -> None:
        for child in children:
            if child.process is not None:
                signal_process(child.process.pid, child.start, number)

    def _wait(
        self, children: Sequence[ManagedProcess], given_up: Callable[[], bool], seconds: float
    ) -> None:
        """Until all of them have ended, `seconds` at most."""
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

    # ── what it says ──────────────────────────────────────────────────────────────────────

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
    return ", ".join(child.role.name for child in children) or "nobody"


SHIM_S = 60.0
"""For a training that was cancelled to end, its processes gone and its exit written."""
_LOOK_S = 0.1
_WORKER = presence.worker_lock("")


class LiveProcess(NamedTuple):
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


def find_supervisor(layout: Layout) -> Process | None:
    """The supervisor, where one lives."""
    found = [*_role("supervisor", layout), *_holder("supervisor", layout)]
    return next((one.process for one in found), None)


def children_of(layout: Layout) -> list[LiveProcess]:
    """Living processes that the last supervisor wrote down."""
    status = presence.read_role(layout, "supervisor")
    known = status.details.get("children") if status else None
    found = []
    for name, child in known.items() if isinstance(known, dict) else ():
        process = _process(child, (status.node_id if status else "") or host_name())
        if process is not None and process.lives():
            found.append(LiveProcess(str(name), process))
    return found


def live_processes(layout: Layout) -> list[LiveProcess]:
    """Every role that is played, whoever started it; the supervisor is not among them."""
    found = children_of(layout)
    for name in (presence.LOOP, "tool-builder", "observer"):
        found += [*_role(name, layout), *_holder(name, layout)]
    for beat in presence.read_heartbeats(layout):
        if presence.worker_lives(beat) and beat.pid and beat.process_start is not None:
            process = Process(beat.pid, beat.process_start, beat.node_id or host_name())
            found.append(LiveProcess(presence.worker_lock(beat.worker_id), process))
    for name in presence.worker_locks(layout):
        found += _holder(name, layout)
    once = {(one.process.pid, one.process.start): one for one in reversed(found)}
    return sorted(once.values(), key=lambda one: (one.stage, one.name))


def _role(name: str, layout: Layout) -> Iterator[LiveProcess]:
    status = presence.read_role(layout, name)
    if status is None or not presence.role_lives(status) or status.state in ("stopped", "finished"):
        return
    if status.pid is not None and status.process_start is not None:
        host = status.node_id or host_name()
        yield LiveProcess(name, Process(status.pid, status.process_start, host))


def _holder(name: str, layout: Layout) -> Iterator[LiveProcess]:
    """Whoever holds a lock now: its note alone says who held it last."""
    if locks.held(layout, name):
        holder = locks.holder(layout, name)
        if holder is not None and holder.process.lives():
            yield LiveProcess(name, holder.process)


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
    process = find_supervisor(layout)
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
    everybody = live_processes(layout)
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
    runs = cancel_runs(layout, workers | worker_ids(layout), max(0.0, until - time.monotonic()))
    return [one.name for one in everybody] + runs


def worker_ids(layout: Layout) -> set[str]:
    """The ids of the fleet's workers, as far as they can be read, and of a loop's."""
    manifest = load_or_none(Manifest, layout.manifest)
    return {
        presence.LOOP_WORKER,
        *(worker.worker_id for worker in (manifest.workers if manifest else ())),
    }


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


def await_or_kill(former: Sequence[LiveProcess], seconds: float) -> None:
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
