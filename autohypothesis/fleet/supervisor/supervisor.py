"""The supervisor: starts the processes of a fleet, restarts what died, and ends them in order.

It owns its children's processes and `research/live/supervisor.json`, and knows nothing of what
they do: a role that was refused, failed or killed is started again after a pause that doubles, and
one that left on its own account is not. It may be killed at any instant: its children notice and
go, trainings go on under their shims, and the next `up` takes them over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from subprocess import Popen
from typing import Any, Literal

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.live import heartbeat, roles
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.supervisor import shutdown
from autohypothesis.fleet.supervisor.launching import Role, how, how_it_ended, start
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import now
from autohypothesis.system import process_start, signal_process, wait_for_end

Outcome = Literal["finished", "stopped", "failed"]

NAME = "supervisor"
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
class Pace:
    """Seconds."""

    first_pause: float = 1.0
    """Before the first restart; it doubles with each."""
    longest_pause: float = 60.0
    steady: float = 60.0
    """A role that lived so long begins anew with the first pause."""
    patience: float = 180.0
    """For the roles of one stage to leave; then they are killed."""


@dataclass(slots=True)
class Child:
    """A role's process, or the pause before its next one."""

    role: Role
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
    roles: Sequence[Role]
    final: Sequence[str] = ()
    """What to run once everything has ended: the last sync and snapshot."""
    hurried: Sequence[str] = ()
    """The same for somebody who waits: without what takes long to draw."""
    tick: Callable[[], None] = lambda: None
    """Called about every `LOOK_S`, for whoever shows how it goes."""
    pace: Pace = field(default_factory=Pace)
    notes: Sequence[str] = ()
    """What a person should know from the start; part of the problems in the status."""
    began: datetime = field(default_factory=now)
    children: list[Child] = field(default_factory=list)
    message: str = ""
    """Why it failed, in the observer's words."""

    def run(self, stop: Stop) -> Outcome:
        """Until asked to stop, or until the observer has finished or failed.

        Raises:
            LockError: another supervisor is at work; the message names it.
        """
        with hold(self.layout, NAME, doing="up", timeout=LOCK_S):
            former = shutdown.children_of(self.layout)
            self._report("starting", "waits for what an ended supervisor left")
            shutdown.await_end(former, ORPHANS_S)
            self.children = [Child(role, due=0.0) for role in self.roles]
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

    def _start(self, child: Child) -> None:
        child.due = None
        try:
            child.process = start(self.layout, child.role)
        except OSError as error:
            self._pause(child, f"cannot be started: {error.strerror}")
            return
        child.start = process_start(child.process.pid) or 0.0
        child.began = time.monotonic()

    def _take(self, child: Child, code: int) -> Outcome | None:
        """A role has ended: for good, or to be started again."""
        assert child.process is not None
        state = self._state(child.role, child.process.pid) if code == 0 else ""
        child.process = None
        if time.monotonic() - child.began > self.pace.steady:
            child.failures = 0
        if child.role.name == "observer" and code == OBSERVER_FAILED:
            status = roles.read_role(self.layout, "observer")
            said = [*status.problems, status.last_action] if status else []
            self.message = "\n".join(line for line in said if line) or "the observer has failed"
            return "failed"
        if state:
            child.said = state
            return "finished" if child.role.name == "observer" and state == "finished" else None
        self._pause(child, how(self.layout, child.role.name, code))
        return None

    def _state(self, role: Role, pid: int) -> str:
        """How a role that exited with 0 says it left; empty when it did not say."""
        if not role.reports:
            return "stopped"
        if role.worker is not None:
            beat = heartbeat.read(self.layout, role.worker)
            return "stopped" if beat and beat.pid == pid and beat.state == "stopped" else ""
        status = roles.read_role(self.layout, role.name)
        ended = status is not None and status.pid == pid
        return status.state if status and ended and status.state in ("finished", "stopped") else ""

    def _pause(self, child: Child, said: str) -> None:
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
                shutdown.cancel_runs(self.layout, workers, 0.0 if stop.hard else shutdown.SHIM_S)
        if self.final and not stop.hard:
            self._report("stopping", "the last sync")
            words = self.hurried if stop.requested and self.hurried else self.final
            last = Child(Role("sync", tuple(words), 9))
            self._start(last)
            seconds = LAST_SYNC_S if stop.requested else self.pace.patience
            self._wait([last], lambda: stop.hard, seconds)
            self._signal([last], signal.SIGKILL)

    def _signal(self, children: Iterable[Child], number: int) -> None:
        for child in children:
            if child.process is not None:
                signal_process(child.process.pid, child.start, number)

    def _wait(
        self, children: Sequence[Child], given_up: Callable[[], bool], seconds: float
    ) -> None:
        """Until all of them have ended, `seconds` at most."""
        until = time.monotonic() + seconds
        while not given_up() and time.monotonic() < until:
            for child in children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process, child.said = None, how_it_ended(code)
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
            status = roles.own(
                NAME, state=state, started_at=self.began, last_action=action,
                last_action_at=now(), details={"children": known},
                problems=[*self.notes, *problems, *([self.message] if self.message else [])],
            )  # fmt: skip
            roles.report(self.layout, status)


def _names(children: Sequence[Child]) -> str:
    return ", ".join(child.role.name for child in children) or "nobody"
