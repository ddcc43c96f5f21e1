"""The single loop: an observer in one thread, a worker in another, until its session ends.

Both do what they do in a fleet; nothing of an iteration is here. The loop holds the locks `loop`
and `observer`, and its worker the worker's, so a fleet and a loop are never on one search at once.
It may be killed at any instant: the next one takes over what runs, and finishes the session.

`research/live/loop.json` holds the session, so that the next call can finish it. The same call
again goes on with a session that was not finished, however it was ended and however long ago; any
other call begins another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from subprocess import Popen, TimeoutExpired
from typing import Any, TextIO

from pydantic import ValidationError

from autohypothesis.engine import local_executor
from autohypothesis.engine.experiment import Resources
from autohypothesis.engine.inputs import locate_inputs
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, LockError
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.fleet.live.presence import LOOP, LOOP_WORKER
from autohypothesis.fleet.live.stop import Stop, StopRequest
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.fleet.observer.scheduling import ALL_RUN, SearchLimits
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.roster.roster import begin_single
from autohypothesis.fleet.supervisor import process_specs
from autohypothesis.fleet.supervisor.supervisor import SYNC_EXIT_S, Outcome
from autohypothesis.fleet.worker.worker import FleetWorker
from autohypothesis.plain import table_text
from autohypothesis.records.git import Repository
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Decision, Identifier, Time, Tolerant, now, rfc3339
from autohypothesis.schema import Worker as Entry

LOCK_S = 2.0
OBSERVER_S = 10.0
"""An observer that was just ended may still be leaving."""
PATIENCE_S = 180.0
"""Seconds for the worker to end its training, collect it and exit."""
REPORT_S = 1.0
"""Interval of reporting progress."""
WORKTREES = (LOOP_WORKER, f"{LOOP_WORKER}-next")
"""The checkouts for training and for preparation."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
"""A worker that lived so long begins anew with the first pause."""
NAME_LENGTH = 80


class LoopSession(Tolerant):
    """A number of experiments, from where the tag stood when they were asked for."""

    tag: Identifier
    name: str = ""
    """Prefix of the title of each experiment."""
    most: int | None = None
    """Experiments, the baseline included where it has to run; None: until stopped."""
    first: int = 0
    """Number of counted experiments of the tag before this session."""
    begun: Time

    @property
    def limit(self) -> int | None:
        """How many experiments of the tag may count at its end."""
        return None if self.most is None else self.first + self.most

    def decisions(self, history: LiveHistory) -> list[Decision]:
        """Return its decisions so far, in order; what was lost to infrastructure is left out."""
        # By their first decisions: one of before that is overruled now is none of this session.
        names = dict.fromkeys(decision.experiment_id for decision in history.decisions)
        counted = [name for name in names if not is_lost(history.latest[name])]
        return [history.latest[name] for name in counted[self.first :]]

    def progress_text(self, history: LiveHistory) -> str:
        """Return `3 of 6 experiments`."""
        done = len(self.decisions(history))
        total = "" if self.most is None else f" of {self.most}"
        return f"{done}{total} experiment{'s' * (done != 1 or self.most is not None)}"


def open_session(
    layout: Layout, history: LiveHistory, *, name: str, most: int | None
) -> tuple[LoopSession, bool]:
    """Return the session of a call, and whether an earlier call began it.

    Raises:
        RecordError: it cannot be written down, so nothing may begin.
    """
    name = table_text(name)[:NAME_LENGTH].strip()  # one short line, for tables and commits
    asked, done = (history.tag, name, most), history.counted()
    before, status = None, presence.read_role(layout, LOOP)
    if status is not None and status.state not in ("finished", "failed"):
        with suppress(ValidationError):  # a damaged one is over
            before = LoopSession.model_validate(status.details.get("session"))
    if (
        before is not None
        and most is not None
        and (before.tag, before.name, before.most) == asked
        and before.first <= done
    ):
        return before, True
    session = LoopSession(tag=history.tag, name=name, most=most, first=done, begun=now())
    write_session(layout, session, "starting", session.progress_text(history))
    return session, False


def write_session(
    layout: Layout, session: LoopSession, state: str, action: str, **more: Any
) -> None:
    """Write the status of the loop; `more` are fields of `RoleStatus`.

    Raises:
        RecordError: the disk is full.
    """
    status = presence.own_status(
        LOOP,
        state=state,
        last_action=action,
        last_action_at=now(),
        details={"session": session.model_dump(mode="json")},
        **more,
    )
    presence.write_role(layout, status, durable=state != "working")


def loop_worker_entry(project: Project) -> Entry:
    """Return the entry of the one worker, which takes whichever device is free."""
    path = project.layout.worktree(LOOP_WORKER)
    return Entry(worker_id=LOOP_WORKER, gpu_id="any", worktree_path=str(path))


@contextmanager
def exclusive_search(project: Project, tag: str | None) -> Iterator[tuple[Project, list[str]]]:
    """Hold the search for a loop: yield the project on its tag, and notes for a person.

    Raises:
        FleetError: a loop or a fleet is at work here, or a file or branch of another
            owner is in the way; nothing was begun.
        LaunchError: the data cannot be located.
        LeaseError: there is no device of the kind that it needs.
    """
    layout, wanted = project.layout, tag or project.default_tag()
    presence.refuse_another_machine(layout)
    with ExitStack() as stack:
        presence.refuse_beside_loop(layout)
        _take(stack, project, LOOP, wanted, LOCK_S)
        presence.refuse_beside_fleet(layout)
        project, notes = begin_single(project, wanted, WORKTREES)
        # A device that is held now may come free; one that is not there never comes.
        inputs = locate_inputs(project.task, layout.root, layout.root, os.environ)
        local_executor.offered(Resources(), inputs)
        _take(stack, project, "observer", wanted, OBSERVER_S)
        yield project, notes


def _take(stack: ExitStack, project: Project, name: str, tag: str, seconds: float) -> None:
    doing = f"run-loop of {tag}"
    try:
        stack.enter_context(hold(project.layout, name, doing=doing, timeout=seconds))
    except LockError:  # another process was quicker: name it
        presence.refuse_beside_loop(project.layout)
        presence.refuse_beside_fleet(project.layout)
        raise


@dataclass(frozen=True)
class LinkedStop:
    """The `StopRequest` of one thread, which follows that of the process."""

    stop: StopRequest
    is_requested: Callable[[], bool]
    pause: Callable[[float], object]

    @property
    def requested(self) -> bool:
        return self.is_requested()

    @property
    def abandoned(self) -> bool:
        return self.stop.abandoned

    @property
    def hard(self) -> bool:
        return self.stop.hard

    def wait(self, seconds: float) -> bool:
        self.pause(seconds)
        return self.requested


@dataclass
class SingleLoop:
    """One call of the loop, inside `exclusive_search`."""

    project: Project
    proposers: Sequence[Proposer]
    session: LoopSession
    until: datetime | None = None
    waits: bool = False
    """True: it waits when no proposals are left, since a person may add one."""
    tick: Callable[[], None] = lambda: None
    """Called often, to show the progress."""
    ended: str = ""
    """Why it has ended, in a few words; lines where it failed."""

    def __post_init__(self) -> None:
        self._started = now()
        self._reported: tuple[object, ...] = ()
        self._report_at = 0.0
        self._how_far = ""
        self._worker_leaves = threading.Event()
        self._worker_problem = ""
        """Failure of the last worker; empty while it works."""

    def run(self, stop: Stop) -> Outcome:
        """Run until the session is done, the search has failed, or a stop is asked for.

        What runs then is ended, recorded and queued again; after a SIGHUP it goes on by itself,
        and the next loop takes it over.
        """
        layout = self.project.layout
        with suppress(AutohypothesisError):
            quarantine.clear_quarantine(layout)
        worker = threading.Thread(target=self._work, args=(stop,), name=LOOP_WORKER, daemon=True)

        def is_requested() -> bool:
            """The observer leaves after the worker, to decide its last run."""
            return stop.hard or stop.abandoned or (stop.requested and not worker.is_alive())

        def pause(seconds: float) -> None:
            self._report(observer)
            if stop.requested:
                worker.join(seconds)
            else:
                stop.wait(seconds)

        with process_specs.open_log(layout, LOOP).open("a", encoding="utf-8") as log:
            observer = self._observer(log)
            keeper: Popen[bytes] | None = None
            with suppress(OSError):  # draws and keeps; without it the loop works all the same
                keeper = process_specs.start_process(layout, process_specs.sync_process(layout))
            observer.turn()  # so that what a killed one left waits in its order again
            worker.start()
            try:
                state = observer.run(LinkedStop(stop, is_requested, pause))
            finally:
                self._worker_leaves.set()
                until = time.monotonic() + PATIENCE_S
                while worker.is_alive() and time.monotonic() < until and not stop.abandoned:
                    worker.join(0.1)
                    self.tick()
                _end(keeper)
            return self._outcome(observer, state)

    def _work(self, stop: Stop) -> None:
        """Run the worker. One that fails is made anew after a pause that doubles, as in a fleet.

        It finds on disk what the one before it left.
        """
        own_stop = LinkedStop(
            stop, lambda: self._worker_leaves.is_set() or stop.requested, stop.wait
        )
        failures = 0
        while not own_stop.requested:
            began = time.monotonic()
            try:
                # A repository object is one thread's.
                project = replace(self.project, repository=Repository(self.project.layout.root))
                self._worker_problem = ""
                entry = loop_worker_entry(project)
                FleetWorker(project, entry, label=self.session.name).run(own_stop)
            except Exception as error:
                # The boundary of the thread: whatever it was, the search goes on.
                if time.monotonic() - began > STEADY_S:
                    failures = 0
                self._worker_problem = f"the worker ended by {error!r}, and is made anew"
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 30))
                failures += 1
                self._worker_leaves.wait(pause)

    def _observer(self, log: TextIO) -> Observer:
        def say(line: str) -> None:
            with suppress(OSError, ValueError):  # a full disk costs the line
                log.write(f"{rfc3339(now())} {line}\n")
                log.flush()

        limits = SearchLimits(
            max_experiments=self.session.limit, until=self.until, ideas=not self.waits
        )
        return Observer(
            self.project,
            self.proposers,
            limits=limits,
            say=say,
            workers=[loop_worker_entry(self.project)],
            command="run-loop",
        )

    def _outcome(self, observer: Observer, state: str) -> Outcome:
        status, limit = observer.status, self.session.limit
        self._how_far = self.session.progress_text(observer.history)
        if state == "failed":
            lines = [*status.problems, status.last_action]
            self.ended = "\n".join(line for line in lines if line) or "the search has failed"
            return "failed"
        if state == "finished" or (limit is not None and observer.history.counted() >= limit):
            self.ended = observer.ended or ALL_RUN
            return "finished"
        self.ended = "it was stopped"
        return "stopped"

    def close(self, outcome: Outcome) -> None:
        """Close the session: a loop that is killed before this goes on with it."""
        problem = self.ended if outcome == "failed" else ""
        self._write(outcome, f"{self._how_far}; {self.ended}"[:500], problem)

    def _report(self, observer: Observer) -> None:
        """Report how far it is, when that is news."""
        self.tick()
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + REPORT_S
        news = (self.session.progress_text(observer.history), self._worker_problem)
        if news != self._reported and self._write("working", *news):
            self._reported = news

    def _write(self, state: str, action: str, problem: str) -> bool:
        """Write the status; a full disk costs the news."""
        more = {"problems": [problem] if problem else [], "started_at": self._started}
        with suppress(AutohypothesisError):
            write_session(self.project.layout, self.session, state, action, **more)
            return True
        return False


def _end(process: Popen[bytes] | None) -> None:
    """End the process that draws; the pictures are made again at the end.

    It is niced, so on a busy machine it may take minutes to leave by itself.
    """
    if process is None:
        return
    process.terminate()
    try:
        process.wait(SYNC_EXIT_S)
    except TimeoutExpired:
        process.kill()
        process.wait()
