"""The observer: decides what has ended, keeps the queue full and every worker supplied.

It is the only one that decides while it runs, and it owns the brief, the summary, the search model
and the knowledge base. All it knows it derives from files at each turn, so a kill at any instant
costs nothing but time. It never waits for a thought: proposers think in threads of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from autohypothesis.engine.project import Project
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, describe
from autohypothesis.fleet.live import presence, steering
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.fleet.observer.confirming import Confirming, awaiting
from autohypothesis.fleet.observer.crew import Crew, CrewWatch
from autohypothesis.fleet.observer.deciding import Deciding
from autohypothesis.fleet.observer.ending import ALL_RUN, Ending, Limits
from autohypothesis.fleet.observer.errands import Errands
from autohypothesis.fleet.observer.handout import Handout
from autohypothesis.fleet.observer.ideas import Ideas
from autohypothesis.fleet.observer.opening import Opening
from autohypothesis.fleet.observer.publishing import Publishing
from autohypothesis.fleet.observer.refill import Refill
from autohypothesis.fleet.observer.requeue import Returns
from autohypothesis.fleet.observer.society import Society
from autohypothesis.fleet.observer.tried import Library, Reference
from autohypothesis.fleet.observer.vetting import needs_somebody
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.queue import inbox
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.bundles import signature_of
from autohypothesis.schema import RoleStatus, Steering, Worker, now

__all__ = ["Limits", "Observer"]

TURN_S = 0.1
"""Between two turns: a worker has one hypothesis waiting, so nobody stands idle meanwhile."""
FULL_S = 1.0
"""Between two turns when nothing has changed that can be seen cheaply."""
DAMAGE_S = 5.0
"""Between two looks for damaged files of the queue."""
ENDED = ("finished", "failed", "stopped")


class Observer:
    """One search, observed. One process at a time: whoever runs it holds the lock `observer`.

    Args:
        workers: whom to give work to; none: the manifest's.
        command: what begins another search of this kind, for hints.
        sharing: with others, by way of a hub.
    """

    def __init__(
        self,
        project: Project,
        proposers: Sequence[Proposer],
        *,
        limits: Limits,
        say: Callable[[str], None] = lambda line: None,
        workers: Sequence[Worker] = (),
        command: str = "init-fleet",
        sharing: bool = False,
    ) -> None:
        tag = project.active()
        self.project = project
        self.queue = Queue(project.layout, tag)
        self.chronicle = Chronicle(project.layout, tag)
        self.library = Library(project, self.chronicle)
        self.deciding = Deciding(project, self.chronicle)
        self.returns = Returns(project.layout, self.chronicle, self.queue)
        self.opening = Opening(project.layout, self.queue, self.chronicle, command)
        self.confirming = Confirming(self.queue, self.chronicle)
        self.refill = Refill(proposers)
        self.errands = Errands(project, self.chronicle)
        self.publishing = Publishing(project, self.queue, self.chronicle, self.library)
        self.society = Society(project, self.queue) if sharing else None
        self.ideas = Ideas(project, self.queue, self.chronicle, self.library, self.refill)
        self.ending = Ending(limits, project.task, self.queue, self.chronicle, self.library)
        self.crew = Crew()
        self.steering = Steering()
        self.reference: Reference | None = None
        self.status: RoleStatus = presence.own_status("observer", state="starting")
        self.ended = ""
        """Why the search is finished."""
        self._steering = steering.SteeringFiles(project.layout)
        self._crew = CrewWatch(project.layout, tag, workers)
        self._say = say
        self._stand: tuple[str, list[str]] = ("starting", [])
        self._closing = False
        self._failed: dict[str, str] = {}
        """Step of the turn -> why it could not be taken."""
        self._notes: list[str] = []
        self._seen: tuple[object, ...] = ()
        self._damage: list[str] = []
        self._next_damage = 0.0

    # ── turns ─────────────────────────────────────────────────────────────────────────────

    def run(self, stop: StopRequest) -> str:
        """Turn after turn, until the search is `finished`, has `failed`, or is `stopped`."""
        try:
            return self._turns(stop)
        finally:
            self.ideas.refill.close()

    def _turns(self, stop: StopRequest) -> str:
        last = float("-inf")
        while not stop.requested:
            sight = self._sight()
            if sight != self._seen or time.monotonic() - last >= FULL_S:
                if not self.turn():
                    return self.status.state
                self._seen, last = sight, time.monotonic()
            stop.wait(TURN_S)
        if not stop.abandoned:
            self.last_turn()
        return "stopped"

    def turn(self) -> bool:
        """One turn; True while there is something to do or to wait for.

        A step that cannot be taken now (a full disk, a lock) is a problem in the status, and is
        tried again with the next turn; the other steps are taken all the same.
        """
        for step in (self._look, self._take_in, self._decide, self._requeue):
            self._attempt(step)
        self._stand = ("waiting", [])  # while it is not known whether anything may begin
        self._attempt(self._look_out)
        state, problems = self._stand
        if state == "working":
            for step in (
                self._open,
                self._confirm,
                self._take_ideas,
                self._vet,
                self._hand_out,
                self._ask,
            ):
                self._attempt(step)
        else:
            self._attempt(self._take_back_all)
        self._attempt(self.errands.turn)
        self._publish(state, problems)
        return state not in ENDED

    def _sight(self) -> tuple[object, ...]:
        """What a glance shows: no file is read. What it misses is seen with the next full turn."""
        layout = self.project.layout
        files = (layout.plans, layout.runs, layout.decisions, layout.inbox, layout.brief)
        steering = (layout.program, layout.steering, layout.benched)
        paths = [*map(str, files), *map(str, steering), *self._queue_folders()]
        return (*map(signature_of, paths), *self.chronicle.fresh(), self.refill.answered)

    def _queue_folders(self) -> Iterator[str]:
        for state in ("pending", "done"):
            yield str(self.project.layout.hypotheses(state))
        for state in ("dispatched", "running"):
            folder = str(self.project.layout.hypotheses(state))
            yield folder
            yield from (f"{folder}/{one.worker_id}" for one in self.crew.workers)

    def last_turn(self) -> None:
        """Before it leaves: what has ended is decided, and what is to come back has come back.

        What waits for a worker that has left goes back too: the next search takes the best first.
        """
        for step in (self._look, self._take_in, self._decide, self._requeue, self._take_back):
            self._attempt(step)
        self._publish("stopped", [], all=True)

    def _attempt(self, step: Callable[[], None]) -> None:
        name = step.__name__.strip("_").replace("_", " ")
        try:
            step()
            self._failed.pop(name, None)
        except RECOVERABLE_ERRORS as error:
            said = describe(error)
            if self._failed.get(name) != said:
                self._did(f"could not {name}: {said}")
            self._failed[name] = said

    # ── what there is ─────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        self.steering = self._steering.combined()
        self.crew = self._crew.look()
        self.chronicle.refresh()
        self.library.refresh()
        self._look_at_reference()

    def _look_at_reference(self) -> None:
        commit = self.project.reference()
        if (
            self.reference is None
            or self.reference.commit != commit
            or (self.reference.settings is None and self.library.of_commit(commit) is not None)
        ):
            self.reference = Reference.of(self.project, self.library, commit)
        self.ideas.reference, self.ideas.steering = self.reference, self.steering

    def _take_in(self) -> None:
        for one in inbox.take_inbox(self.queue):
            self._did(f"{one.hypothesis_id} came through the inbox")

    # ── decisions ─────────────────────────────────────────────────────────────────────────

    def _decide(self) -> None:
        for one in self.deciding.turn(
            steering.steering_limits(self.steering), begun=len(self.library.runs)
        ):
            detail = f", {one.detail}" if one.detail else ""
            self._did(f"{one.experiment_id}: {one.decision_status}, {one.reason}{detail}")
            self.refill.news()
            self._look_at_reference()
        lost = [name for name, _ in self._undecidable()]
        if lost and self.reference:
            for line in self.opening.queue_references(
                lost, self.reference.experiment_id, self.reference.commit
            ):
                self._did(line)

    def _requeue(self) -> None:
        for line in self.returns.carry_out():
            self._did(line)
        self._end_strangers()

    def _end_strangers(self) -> None:
        """What a worker had claimed that is in the manifest no more, and lives no more."""
        known = {one.worker_id for one in self.crew.workers} | set(self.crew.alive)
        at_work = {one.worker_id for one in self.crew.heartbeats if presence.worker_lives(one)}
        for worker, claimed in self.queue.running().items():
            if not self.crew.workers or worker in known or worker in at_work:
                continue
            for one in claimed:
                if line := self.returns.end_stranger(self.project, one.hypothesis_id, worker):
                    self._did(line)

    # ── whether to go on ──────────────────────────────────────────────────────────────────

    def _look_out(self) -> None:
        self._stand = self._outlook()

    def _outlook(self) -> tuple[str, list[str]]:
        """`working`, `waiting`, `failed` or `finished`, and what a person has to know.

        Workers are told when the search is over: what they have prepared is not begun any more.
        """
        settings = (self.reference.settings if self.reference else None) or {}
        if failed := self.opening.failure(settings):
            self._closing = True
            return "failed", failed
        ending = self.ending
        self.ended = ending.why_over()
        self._closing = bool(self.ended)
        if self._closing or (ending.room() == 0 and not ending.is_given_out()):
            self.ended = self.ended or ALL_RUN
            self._attempt(self._take_back_all)
            busy = ending.is_given_out() or self._has_to_decide()
            return ("working" if busy else "finished"), []
        if ending.limits.ideas and not self.steering.stop and self._has_no_idea_left():
            self.ended, self._closing = self._why_no_idea(), True
            return "finished", []
        return ("waiting" if self.steering.stop else "working"), []

    def _has_to_decide(self) -> bool:
        """Whether something of this search has ended, and may still be decided."""
        return any(name in self.library.runs for name in self.deciding.waits())

    def _has_no_idea_left(self) -> bool:
        """Whether everything has ended, nothing waits, and nobody knows what to try next."""
        return (
            self.chronicle.has_reference()
            and self.refill.is_exhausted
            and not self.ending.is_given_out()
            and not self._has_to_decide()
            and all(needs_somebody(one, self.project.task) for one in self.queue.pending())
        )

    def _why_no_idea(self) -> str:
        words = len(self.queue.pending())
        rest = f"; {words} ideas are words that somebody has to implement" if words else ""
        return f"no proposer has an idea left on this evidence{rest}"

    # ── work for everybody ────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        if self.opening.queue_baseline():
            self._did("the baseline is queued")
        room, idle = self.ending.room(), len(self._handout().idle())
        idle = idle if room is None else min(idle, room)
        if added := self.opening.queue_repeats(idle):
            self._did(f"{added} repeat{'s' * (added > 1)} of the baseline for idle devices")

    def _confirm(self) -> None:
        """Wins are run again before anything new is: on them the reference waits."""
        for line in self.confirming.turn(self.deciding.needs_runs):
            self._did(line)

    def _hand_out(self) -> None:
        handout = self._handout()
        said = handout.take_back()
        for line in [*said, *handout.give(self.ideas.may_begin, self.ending.room())]:
            self._did(line)

    def _take_back(self) -> None:
        for line in self._handout().take_back():
            self._did(line)

    def _handout(self) -> Handout:
        alone = self.society is not None and self.society.is_alone()
        return Handout(self.queue, self.returns, self.crew, self.library.platforms, alone)

    def _take_back_all(self) -> None:
        for line in self._handout().take_back(all=True):
            self._did(line)

    def _take_ideas(self) -> None:
        for line in self.ideas.collect():
            self._did(line)

    def _vet(self) -> None:
        for line in self.ideas.vet():
            self._note(line)

    def _ask(self) -> None:
        """Has proposers think when fewer ideas are pending than there are workers to take them."""
        handout = self._handout()
        pending = [
            one
            for one in self.queue.pending()
            if not needs_somebody(one, self.project.task) and handout.has_taker(one)
        ]
        hungry = [
            idle for idle in handout.idle() if not any(handout.suits(one, idle) for one in pending)
        ]
        room, count = self.ending.room(), max(self.crew.capacity - len(pending), len(hungry))
        if room is not None:
            count = min(count, room - len(pending))
        self.ideas.ask(count, hungry=bool(hungry), brief=self.publishing.brief)

    # ── what is said ──────────────────────────────────────────────────────────────────────

    def _did(self, line: str) -> None:
        self._say(line)
        self.status = self.status.model_copy(update={"last_action": line, "last_action_at": now()})

    def _note(self, line: str) -> None:
        """For the next briefs as well."""
        self._did(line)
        self._notes = [*self._notes, line][-20:]

    def _publish(self, state: str, problems: Sequence[str], *, all: bool = False) -> None:
        self._failed.pop("publish", None)
        try:
            self.publishing.turn(
                reference=self.reference, steering=self.steering, crew=self.crew,
                noise=self.errands.noise, notes=self._notes_of_all(), all=all or state in ENDED,
                others=self.society.said() if self.society else None,
            )  # fmt: skip
            if self.society:
                self.society.tell(self.publishing.rows)
        except RECOVERABLE_ERRORS as error:
            self._failed["publish"] = describe(error)
        self._report(state, [*problems, *self._problems()])

    def _notes_of_all(self) -> list[str]:
        notes = list(self._notes)
        notes += [
            f"{one['experiment_id']} awaits {one['missing']} of {one['wanted']} runs that confirm"
            f" it: {one['found']}"
            for one in awaiting(self.deciding.needs_runs)
        ]
        task, pending = self.project.task, self.queue.pending()
        if needs := [one for one in pending if needs_somebody(one, task)]:
            names = ", ".join(one.hypothesis_id for one in needs[:5])
            notes.append(
                f"{len(needs)} hypotheses are words that somebody has to implement: {names}"
            )
        return notes

    def _problems(self) -> list[str]:
        names = list(self.reference.names) if self.reference else []
        found = [
            *self._steering.problems(),
            *(steering.unknown_names(self.steering, names) if names else []),
            *self.refill.problems(),
            *self._damaged(),
            *self.returns.problems(),
            *self.confirming.problems(self.deciding.needs_runs),
            *(f"{name} is not decided: {error}" for name, error in self._undecidable()),
            *self.deciding.edits,
            *(f"could not {step}: {why}" for step, why in self._failed.items()),
            *([self.errands.problem] if self.errands.problem else []),
            *(self.society.problems if self.society else []),
        ]
        return [line[:500] for line in found[:30]]

    def _damaged(self) -> list[str]:
        """Files of the queue that are of no use; to find them looks at each, so not every turn."""
        if time.monotonic() >= self._next_damage:
            self._damage = [f"{one.path}: {one.reason}" for one in self.queue.problems]
            self._next_damage = time.monotonic() + DAMAGE_S
        return self._damage

    def _undecidable(self) -> list[tuple[str, AutohypothesisError]]:
        """What could not be decided; what only waits for the baseline can be."""
        return list(self.deciding.refused.items()) if self.chronicle.has_reference() else []

    def _report(self, state: str, problems: list[str]) -> None:
        best = self.publishing.best
        status = self.status.model_copy(
            update={
                "state": state,
                "problems": problems,
                "details": {
                    **self.chronicle.tally(),
                    "closing": self._closing,
                    "proposed": self.ideas.proposed,
                    "refused": self.ideas.refused,
                    "experiments": self.chronicle.counted(),
                    "max_experiments": self.ending.most,
                    "until": self.ending.limits.until,
                    "best": best,
                    "awaiting": awaiting(self.deciding.needs_runs),
                    "thinking": self.refill.thinking,
                    "steering": self.steering.model_dump(mode="json"),
                    "queue": self.publishing.counts,
                },
            }
        )
        before = self.status.model_copy(update={"updated_at": status.updated_at})
        age = (now() - self.status.updated_at).total_seconds()
        if status != before or age >= 2.0:
            self.status = status.model_copy(update={"updated_at": now()})
            try:
                presence.write_role(self.project.layout, self.status)
            except RECOVERABLE_ERRORS as error:
                self._failed["report"] = describe(error)
