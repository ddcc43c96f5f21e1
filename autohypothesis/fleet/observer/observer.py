"""The observer: decides what has ended, keeps the queue full and every worker supplied.

It is the only process that decides while it runs, and it owns the brief, the summary, the search
model and the knowledge base. All it knows it derives from files at each turn, so a kill at any
instant costs nothing but time. Proposers run in threads, so a turn never waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from autohypothesis.engine.project import Project
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, describe
from autohypothesis.fleet.hub_sync.incoming import FeedReader, hub_connection, summarize_feed
from autohypothesis.fleet.hub_sync.outgoing import HubReporter, Outbox
from autohypothesis.fleet.live import presence, steering
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.fleet.observer.deciding import (
    Decider,
    ReplicateScheduler,
    RequeuePolicy,
    awaiting,
)
from autohypothesis.fleet.observer.proposals import (
    ProposalIntake,
    ProposerPool,
    needs_implementing,
)
from autohypothesis.fleet.observer.publishing import NoiseEstimator, Publishing
from autohypothesis.fleet.observer.scheduling import (
    ALL_RUN,
    AvailableWorkers,
    BaselineSchedule,
    Dispatcher,
    SearchLimits,
    StopCriteria,
)
from autohypothesis.fleet.observer.search_state import ExperimentIndex, Reference, SearchState
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.queue import inbox
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import shortened
from autohypothesis.records.files import file_stamp
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.problems import problem_lines
from autohypothesis.schema import Hypothesis, RoleStatus, Steering, Worker, now

TURN_INTERVAL_S = 0.1
"""Interval of turns: a worker has one hypothesis waiting, so none is idle meanwhile."""
IDLE_TURN_INTERVAL_S = 1.0
"""Interval of turns when no cheap check has seen a change."""
DAMAGE_CHECK_S = 5.0
"""Interval of checking for damaged files of the queue."""
ENDED = ("finished", "failed", "stopped")
MAX_PROBLEM_CHARS = 1_500


class Observer:
    """The observer of one search. The process that runs it holds the lock `observer`.

    Args:
        workers: the workers to give work to; none: the manifest's.
        command: what begins another search of this kind, for hints.
        sharing: with others, by way of a hub.
    """

    def __init__(
        self,
        project: Project,
        proposers: Sequence[Proposer],
        *,
        limits: SearchLimits,
        say: Callable[[str], None] = lambda line: None,
        workers: Sequence[Worker] = (),
        command: str = "init-fleet",
        sharing: bool = False,
    ) -> None:
        layout, tag = project.layout, project.active()
        self.project = project
        self.queue = Queue(layout, tag)
        self.history = LiveHistory(layout, tag)
        self.index = ExperimentIndex(project, self.history)
        self.decider = Decider(project, self.history)
        self.requeue = RequeuePolicy(project, self.history, self.queue)
        self.baseline = BaselineSchedule(layout, self.queue, self.history, command)
        self.replicates = ReplicateScheduler(self.queue, self.history)
        self.pool = ProposerPool(proposers)
        self.background = NoiseEstimator(project, self.history)
        self.publishing = Publishing(project, self.queue, self.index)
        self.reporter = HubReporter(project, self.queue, Outbox(layout)) if sharing else None
        self.proposals = ProposalIntake(project.task, self.queue, self.pool)
        self.criteria = StopCriteria(limits, self.queue, self.index)
        self.available = AvailableWorkers(layout, tag, workers)
        self.dispatcher = Dispatcher(self.queue, self.requeue, self.available, self.index.platforms)
        self.steering = Steering()
        self.reference: Reference | None = None
        self.status: RoleStatus = presence.own_status("observer", state="starting")
        self.ended = ""
        """Why the search is finished."""
        self._steering_files = steering.SteeringFiles(layout)
        self._feed = FeedReader(layout)
        self._say = say
        self._state: tuple[str, list[str]] = ("starting", [])
        """State and what a person must know, of this turn."""
        self._closing = False
        self._failed: dict[str, str] = {}
        """Step of the turn -> why it could not be taken."""
        self._notes: list[str] = []
        self._seen: tuple[object, ...] = ()
        self._damage: list[str] = []
        self._next_damage = 0.0

    # ── turns ─────────────────────────────────────────────────────────────────────────────

    def run(self, stop: StopRequest) -> str:
        """Take turns until the search is `finished`, has `failed`, or is `stopped`."""
        try:
            return self._turns(stop)
        finally:
            self.pool.close()

    def _turns(self, stop: StopRequest) -> str:
        last = float("-inf")
        while not stop.requested:
            seen = self._change_signature()
            if seen != self._seen or time.monotonic() - last >= IDLE_TURN_INTERVAL_S:
                if not self.turn():
                    return self.status.state
                self._seen, last = seen, time.monotonic()
            stop.wait(TURN_INTERVAL_S)
        if not stop.abandoned:
            self.last_turn()
        return "stopped"

    def turn(self) -> bool:
        """Take one turn; return whether there is something to do or to wait for.

        A step that cannot be taken now (a full disk, a lock) is a problem in the status, and is
        tried again with the next turn; the other steps are taken all the same.
        """
        self._attempt(self._look, self._take_in, self._decide, self._requeue)
        self._state = ("waiting", [])  # while it is not known whether anything may begin
        self._attempt(self._update_state)
        state, problems = self._state
        if state == "working":
            self._attempt(
                self._schedule_baseline,
                self._schedule_replicates,
                self._queue_proposals,
                self._validate_proposals,
                self._dispatch,
                self._ask_proposers,
            )
        else:
            self._attempt(self._take_back_all)
        self._attempt(self._start_background_tasks)
        self._publish(state, problems)
        return state not in ENDED

    def last_turn(self) -> None:
        """Decide what has ended and requeue what is to run again, before exiting.

        What waits for a worker that has left goes back too: the next search takes the best first.
        """
        self._attempt(self._look, self._take_in, self._decide, self._requeue, self._take_back)
        self._publish("stopped", [], all=True)

    def _change_signature(self) -> tuple[object, ...]:
        """Return what can be seen without reading a file; the rest is seen with the next turn."""
        layout = self.project.layout
        names = [worker.worker_id for worker in self.available.workers]
        given = [str(layout.hypotheses(state)) for state in ("dispatched", "running")]
        paths = (
            layout.plans, layout.runs, layout.decisions, layout.inbox, layout.brief,
            layout.program, layout.steering, layout.benched,
            layout.hypotheses("pending"), layout.hypotheses("done"),
            *given, *(f"{folder}/{name}" for folder in given for name in names),
        )  # fmt: skip
        stamps = (file_stamp(str(path)) for path in paths)
        return (*stamps, *self.history.fresh(), self.pool.answered)

    def _attempt(self, *steps: Callable[[], None]) -> None:
        """Take each step; note why one cannot be taken."""
        for step in steps:
            name = step.__name__.strip("_").replace("_", " ")
            try:
                step()
                self._failed.pop(name, None)
            except RECOVERABLE_ERRORS as error:
                reason = describe(error)
                if self._failed.get(name) != reason:
                    self._log(f"could not {name}: {reason}")
                self._failed[name] = reason

    # ── looking ───────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        self.steering = self._steering_files.combined()
        self.available.look()
        self.history.refresh()
        self.index.refresh()
        self._look_at_reference()
        if self.reporter is not None:
            connection = hub_connection(self.project.layout)
            self.dispatcher.hub_unreachable = not connection.is_open

    def _look_at_reference(self) -> None:
        self.reference = Reference.of(self.index, self.project.reference())
        self.proposals.state = SearchState(self.index, self.reference, self.steering)

    def _take_in(self) -> None:
        for taken in inbox.take_inbox(self.queue):
            self._log(f"{taken.hypothesis_id} came through the inbox")

    # ── decisions ─────────────────────────────────────────────────────────────────────────

    def _decide(self) -> None:
        limits = steering.steering_limits(self.steering)
        for decision in self.decider.turn(limits, begun=len(self.index.runs)):
            detail = f", {decision.detail}" if decision.detail else ""
            outcome = f"{decision.decision_status}, {decision.reason}{detail}"
            self._log(f"{decision.experiment_id}: {outcome}")
            self.pool.reset_after_decision()
            self._look_at_reference()
        undecidable, reference = self._undecidable(), self.reference
        if undecidable and reference:
            first, commit = reference.experiment_id, reference.commit
            self._log(*self.baseline.queue_references(undecidable, first, commit))

    def _requeue(self) -> None:
        """Bring back what is lost, and end the claims of workers that are gone for good.

        Those are workers that the manifest names no more, and that live no more.
        """
        self._log(*self.requeue.turn())
        known = {worker.worker_id for worker in self.available.workers}
        known |= {
            beat.worker_id for beat in self.available.heartbeats if presence.worker_lives(beat)
        }
        for worker, claimed in self.queue.running().items():
            if not self.available.workers or worker in known:
                continue
            for hypothesis in claimed:
                self._log(*self.requeue.end_dead_claim(hypothesis.hypothesis_id, worker))

    def _undecidable(self) -> dict[str, AutohypothesisError]:
        # What only waits for the baseline can be decided.
        return self.decider.refused if self.history.has_reference() else {}

    # ── whether to go on ──────────────────────────────────────────────────────────────────

    def _update_state(self) -> None:
        """Set the state: `working`, `waiting`, `failed` or `finished`, and what a person must know.

        Workers are told when the search is over: what they have prepared is not begun any more.
        """
        settings = (self.reference.settings if self.reference else None) or {}
        if failure := self.baseline.failure(settings):
            self._closing, self._state = True, ("failed", failure)
            return
        criteria = self.criteria
        self.ended = criteria.why_over()
        self._closing = bool(self.ended)
        state = "waiting" if self.steering.stop else "working"
        # Room last: a claim that a worker refuses in between makes room again.
        if self._closing or (not criteria.has_assigned_work() and criteria.room() == 0):
            self.ended = self.ended or ALL_RUN
            self._attempt(self._take_back_all)
            busy = criteria.has_assigned_work() or self._has_to_decide()
            state = "working" if busy else "finished"
        elif criteria.limits.ideas and not self.steering.stop and self._has_no_idea_left():
            words = len(self.queue.pending())
            rest = f"; {words} ideas are words that wait for an implementation" if words else ""
            self.ended = f"no proposer has an idea left on this evidence{rest}"
            self._closing, state = True, "finished"
        self._state = (state, [])

    def _has_to_decide(self) -> bool:
        return any(name in self.index.runs for name in self.decider.waits())

    def _has_no_idea_left(self) -> bool:
        """Return whether everything has ended, nothing waits, and no proposer has an idea."""
        return (
            self.history.has_reference()
            and self.pool.is_exhausted
            and not self.criteria.has_assigned_work()
            and not self._has_to_decide()
            and all(map(self._needs_implementation, self.queue.pending()))
        )

    def _needs_implementation(self, hypothesis: Hypothesis) -> bool:
        return needs_implementing(hypothesis, self.project.task)

    # ── work for the workers ──────────────────────────────────────────────────────────────

    def _schedule_baseline(self) -> None:
        if self.baseline.queue_baseline():
            self._log("the baseline is queued")
        if self.reference is not None:
            self._log(*self.baseline.queue_unmeasured(self.index, self.reference))
        room, idle = self.criteria.room(), len(self.dispatcher.idle())
        idle = idle if room is None else min(idle, room)
        if added := self.baseline.queue_repeats(idle):
            self._log(f"{added} repeat{'s' * (added > 1)} of the baseline for idle devices")

    def _schedule_replicates(self) -> None:
        """Wins are run again before anything new is: on them the reference waits."""
        if "decide" not in self._failed:  # else it is not known which wins wait
            self._log(*self.replicates.turn(self.decider.needs_runs))

    def _queue_proposals(self) -> None:
        self._log(*self.proposals.collect())

    def _validate_proposals(self) -> None:
        for line in self.proposals.validate():
            self._log(line)
            self._notes = [*self._notes, line][-20:]  # for the next briefs

    def _dispatch(self) -> None:
        self._take_back()
        self._log(*self.dispatcher.give(self.proposals.may_begin, self.criteria.room()))

    def _take_back(self) -> None:
        self._log(*self.dispatcher.take_back())

    def _take_back_all(self) -> None:
        self._log(*self.dispatcher.take_back(all=True))

    def _ask_proposers(self) -> None:
        """Ask for ideas when fewer are pending than there are workers to take them."""
        dispatcher = self.dispatcher
        pending = [
            idea
            for idea in self.queue.pending()
            if not self._needs_implementation(idea) and dispatcher.has_taker(idea)
        ]
        idle = [
            worker
            for worker in dispatcher.idle()
            if not any(dispatcher.suits(idea, worker) for idea in pending)
        ]
        room = self.criteria.room()
        count = max(self.available.capacity - len(pending), len(idle))
        if room is not None:
            count = min(count, room - len(pending))
        self.proposals.ask(count, device_idle=bool(idle), brief=self.publishing.complete_brief)

    def _start_background_tasks(self) -> None:
        self.background.turn()

    # ── reports ───────────────────────────────────────────────────────────────────────────

    def _log(self, *lines: str) -> None:
        for line in lines:
            self._say(line)
            update = {"last_action": line, "last_action_at": now()}
            self.status = self.status.model_copy(update=update)

    def _publish(self, state: str, problems: Sequence[str], *, all: bool = False) -> None:
        self._failed.pop("publish", None)
        try:
            self.publishing.turn(
                self.proposals.state,
                steering=self.steering,
                available=self.available,
                noise=self.background.noise,
                notes=self._all_notes(),
                others=summarize_feed(self._feed.heard()) if self.reporter else None,
                all=all or state in ENDED,
            )
            if self.reporter:
                self.reporter.turn(self.publishing.rows)
        except RECOVERABLE_ERRORS as error:
            self._failed["publish"] = describe(error)
        self._report(state, [*problems, *self._problems()])

    def _all_notes(self) -> list[str]:
        notes = [*self._notes, *self.decider.edits]
        notes += [
            f"{win.experiment_id} awaits {len(win.runs)} of {win.wanted} runs that confirm it:"
            f" {win.words}"
            for win in self.decider.needs_runs
        ]
        if words := [
            idea.hypothesis_id for idea in self.queue.pending() if self._needs_implementation(idea)
        ]:
            names = ", ".join(words[:5])
            notes.append(
                f"{len(words)} hypotheses are words that wait for an implementation: {names}"
            )
        return notes

    def _problems(self) -> list[str]:
        names = list(self.reference.names) if self.reference else []
        lines = [
            *self._steering_files.problems(),
            *(steering.unknown_names(self.steering, names) if names else []),
            *self.pool.problems(),
            *self._damaged(),
            *self.requeue.problems(),
            *self.replicates.problems(self.decider.needs_runs),
            *(f"{name} is not decided: {error}" for name, error in self._undecidable().items()),
            *self.decider.edits,
            *(f"could not {step}: {why}" for step, why in self._failed.items()),
            *([self.background.problem] if self.background.problem else []),
            *(self.reporter.problems if self.reporter else []),
        ]
        return [shortened(line, MAX_PROBLEM_CHARS) for line in lines[:30]]

    def _damaged(self) -> list[str]:
        """Return the damaged files of the queue; a look opens each, so not every turn."""
        if time.monotonic() >= self._next_damage:
            self._damage = problem_lines(self.queue.problems)
            self._next_damage = time.monotonic() + DAMAGE_CHECK_S
        return self._damage

    def _report(self, state: str, problems: list[str]) -> None:
        details = {
            **self.history.tally(),
            "closing": self._closing,
            "proposed": self.proposals.proposed,
            "refused": self.proposals.refused,
            "experiments": self.history.counted(),
            "max_experiments": self.criteria.max_experiments,
            "until": self.criteria.limits.until,
            "best": self.publishing.best(),
            "awaiting": awaiting(self.decider.needs_runs),
            "thinking": self.pool.thinking,
            "steering": self.steering.model_dump(mode="json"),
            "queue": self.publishing.counts,
        }
        status = self.status.model_copy(
            update={"state": state, "problems": problems, "details": details}
        )
        age = (now() - self.status.updated_at).total_seconds()
        if status != self.status or age >= 2.0:
            self.status = status.model_copy(update={"updated_at": now()})
            try:
                presence.write_role(self.project.layout, self.status)
            except RECOVERABLE_ERRORS as error:
                self._failed["report"] = describe(error)
