"""The loop: an observer in the main thread and one worker in another, until the session is done.

Each does what it does in a fleet; nothing of an iteration is here. It holds the locks `loop` and
`observer`, and its worker the worker's, so a fleet and a loop are never on one search at once. It
may be killed at any instant: the next one takes over what runs, and finishes the session.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from subprocess import Popen, TimeoutExpired
from typing import Literal, TextIO

from autohypothesis.engine import local_executor
from autohypothesis.engine.executor import Resources
from autohypothesis.engine.inputs import locate_inputs
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, FleetError, LockError
from autohypothesis.fleet.live import bench, presence
from autohypothesis.fleet.live.presence import LOOP, SOLO
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.observer.ending import ALL_RUN, Limits
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.roster.roster import begin_alone
from autohypothesis.fleet.solo.companion import Companion, entry
from autohypothesis.fleet.solo.session import Session, write
from autohypothesis.fleet.supervisor import launching, muster
from autohypothesis.fleet.supervisor.supervisor import KEEPER_S
from autohypothesis.records.locks import hold
from autohypothesis.schema import now, rfc3339

Outcome = Literal["finished", "stopped", "failed"]

LOCK_S = 2.0
OBSERVER_S = 10.0
"""An observer that was just ended may still be leaving."""
PATIENCE_S = 180.0
"""For the worker to end its training, collect it and leave."""
REPORT_S = 1.0
"""Between two looks at how far it is."""
PLACES = (SOLO, f"{SOLO}-next")
"""Its worktrees: where it trains, and where it prepares."""
__all__ = ["Loop", "Outcome", "alone"]


@contextmanager
def alone(project: Project, tag: str | None) -> Iterator[tuple[Project, list[str]]]:
    """The project on its tag, begun or taken up again, and what a person should know of that.

    Raises:
        FleetError: a loop or a fleet is at work here, or something of somebody else's is in the
            way; nothing was begun.
        LaunchError: the data cannot be located.
        LeaseError: there is no device of the kind that it needs.
    """
    layout, wanted = project.layout, tag or project.usual_tag()
    presence.refuse_another_machine(layout)
    with ExitStack() as stack:
        presence.refuse_beside_loop(layout)
        _take(stack, project, LOOP, wanted, LOCK_S)
        presence.refuse_beside_fleet(layout)
        project, notes = begin_alone(project, wanted, PLACES)
        _refuse_without_script(project)
        _refuse_without_device(project)
        _take(stack, project, "observer", wanted, OBSERVER_S)
        yield project, notes


def _take(stack: ExitStack, project: Project, name: str, tag: str, seconds: float) -> None:
    doing = f"run-loop of {tag}"
    try:
        stack.enter_context(hold(project.layout, name, doing=doing, timeout=seconds))
    except LockError:  # somebody was quicker; say who, as one who came later is told
        presence.refuse_beside_loop(project.layout)
        presence.refuse_beside_fleet(project.layout)
        raise


def _refuse_without_script(project: Project) -> None:
    commit = project.reference()
    if not project.task.artifacts_in(project.repository.entries(commit)):
        wanted = ", ".join(project.task.artifacts)
        raise FleetError(
            f"commit {commit[:12]}, which {project.active()} begins at, has no {wanted}",
            hint="commit it, and begin another search: python orchestrator.py run-loop --tag NAME",
        )


def _refuse_without_device(project: Project) -> None:
    """A device that somebody holds now may come free; one that is not there never comes."""
    root = project.layout.root
    inputs = locate_inputs(project.task, root, root, os.environ)
    local_executor.offered(Resources(), inputs)


@dataclass
class Loop:
    """One call of the loop, inside `alone`."""

    project: Project
    proposers: Sequence[Proposer]
    session: Session
    until: datetime | None = None
    waits: bool = False
    """When nobody has an idea left it waits: a person may have one."""
    tick: Callable[[], None] = lambda: None
    """Called often, for whoever shows how it goes."""
    ended: str = ""
    """Why it has ended, in a few words; lines where it failed."""

    def __post_init__(self) -> None:
        self._started = now()
        self._said: tuple[object, ...] = ()
        self._due = 0.0
        self._how_far = ""

    def run(self, stop: Stop) -> Outcome:
        """Until the session is done, the search has failed, or somebody asks it to stop.

        What runs then is ended, recorded and queued again; after a SIGHUP it goes on by itself,
        and the next loop takes it over.
        """
        layout = self.project.layout
        with suppress(AutohypothesisError):
            bench.clear(layout)
        with launching.log_of(layout, LOOP).open("a", encoding="utf-8") as log:
            companion = Companion(self.project, stop, label=self.session.name)
            observer = self._observer(log)
            beside = self._start_keeper()
            observer.turn()  # so that what a killed one left waits in its order again
            companion.start()
            try:
                said = observer.run(_Turns(self, observer, companion, stop))
            finally:
                companion.leave()
                self._await(companion, stop)
                _end(beside)
            return self._outcome(observer, said)

    def _observer(self, log: TextIO) -> Observer:
        def say(line: str) -> None:
            with suppress(OSError, ValueError):  # a full disk costs the line
                log.write(f"{rfc3339(now())} {line}\n")
                log.flush()

        limits = Limits(max_experiments=self.session.limit, until=self.until, ideas=not self.waits)
        return Observer(
            self.project, self.proposers, limits=limits, say=say, workers=[entry(self.project)],
            command="run-loop",
        )  # fmt: skip

    def _start_keeper(self) -> Popen[bytes] | None:
        """A fleet's niced child, which draws and keeps; a loop does without where none starts."""
        with suppress(OSError):
            return launching.start(self.project.layout, muster.keeper(self.project.layout))
        return None

    def _await(self, companion: Companion, stop: Stop) -> None:
        until = time.monotonic() + PATIENCE_S
        while not companion.join(0.1) and time.monotonic() < until and not stop.abandoned:
            self.tick()

    def _outcome(self, observer: Observer, said: str) -> Outcome:
        status, limit = observer.status, self.session.limit
        self._how_far = self.session.how_far(observer.chronicle)
        if said == "failed":
            lines = [*status.problems, status.last_action]
            self.ended = "\n".join(line for line in lines if line) or "the search has failed"
            return "failed"
        if said == "finished" or (limit is not None and observer.chronicle.counted() >= limit):
            self.ended = observer.ended or ALL_RUN
            return "finished"
        self.ended = "it was stopped"
        return "stopped"

    def close(self, outcome: Outcome) -> None:
        """The very last step: a loop that is killed before this is not done, and goes on."""
        problems = [self.ended] if outcome == "failed" else []
        action = f"{self._how_far}; {self.ended}"[:500]
        with suppress(AutohypothesisError):
            write(self.project.layout, self.session, outcome, action,
                  problems=problems, started=self._started, durable=True)  # fmt: skip

    def look(self, observer: Observer, companion: Companion) -> None:
        """Says how far it is, when that is news."""
        self.tick()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + REPORT_S
        saying = (self.session.how_far(observer.chronicle), companion.problem)
        if saying != self._said:
            problems = [companion.problem] if companion.problem else []
            with suppress(AutohypothesisError):  # a full disk costs the news
                write(self.project.layout, self.session, "working", saying[0],
                      problems=problems, started=self._started)  # fmt: skip
                self._said = saying


@dataclass(frozen=True)
class _Turns:
    """What the observer asks between two turns: it leaves after the worker, to decide its last."""

    loop: Loop
    observer: Observer
    companion: Companion
    stop: Stop

    @property
    def requested(self) -> bool:
        return self.hard or self.abandoned or (self.stop.requested and not self.companion.lives)

    @property
    def abandoned(self) -> bool:
        return self.stop.abandoned

    @property
    def hard(self) -> bool:
        return self.stop.hard

    def wait(self, seconds: float) -> bool:
        self.loop.look(self.observer, self.companion)
        if self.stop.requested:
            self.companion.join(seconds)
        else:
            self.stop.wait(seconds)
        return self.requested


def _end(process: Popen[bytes] | None) -> None:
    """Ends what draws; it is made again at the end, and by the next.

    It is niced, so on a busy machine it may take minutes to leave by itself.
    """
    if process is None:
        return
    process.terminate()
    try:
        process.wait(KEEPER_S)
    except TimeoutExpired:
        process.kill()
        process.wait()
