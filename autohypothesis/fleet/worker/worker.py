"""A worker: one device, one process. It claims, prepares, executes and reports.

While an experiment trains, the next hypothesis is claimed and prepared in a side worktree, so that
between the end of one and the start of the next there is only what cannot be done before: to judge
the checkout of the one, and to make that of the other.

Everything that a successor needs lies on disk before it matters: the claim in the queue, the plan
under its id, the run in its folder. So a worker may be killed at any instant.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from contextlib import suppress

from autohypothesis.engine import runner
from autohypothesis.engine.collect import is_readable
from autohypothesis.engine.experiment import Executor
from autohypothesis.engine.failures import room_in
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import (
    RECOVERABLE_ERRORS,
    AutohypothesisError,
    LaunchError,
    LeaseError,
    LockError,
    UnwritableError,
    describe,
)
from autohypothesis.fleet.hub_sync.incoming import ClaimService
from autohypothesis.fleet.live import presence, quarantine, steering
from autohypothesis.fleet.live.presence import HeartbeatWriter
from autohypothesis.fleet.live.quarantine import device_problem
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.fleet.queue.claims import Job, examine_claim, outcome_of, unclaimed_runs
from autohypothesis.fleet.worker.preparation import (
    STEERING_HINT,
    Preparation,
    WorkerQueue,
)
from autohypothesis.records import locks
from autohypothesis.records.files import load_or_none
from autohypothesis.schema import Metadata, Result, WorkerState
from autohypothesis.schema import Worker as Entry

POLL_S = 0.2
"""Poll interval; the end of a training ends the wait at once."""
LOOK_S = 1.0
"""Interval of checking the device, the quarantine, the steering and stopped runs."""
PREPARATION_S = 5.0  # for what is being prepared, when a worker leaves
LOCK_S = 5.0
"""Seconds that a successor waits for its predecessor to exit."""
SLOT_TIMING_S = 0.3
"""A training that has just begun is left alone for so long: its slot is being timed."""
HELD_S = 60.0
"""Seconds of waiting for a device in foreign use before its hypotheses go to other workers."""
FRESH_S = 5.0  # between two looks whether what is prepared still stands on the reference
LONGEST_PAUSE_S, TRIES = 30.0, 3


class FleetWorker:
    """The process behind one entry of the manifest.

    Args:
        executor: None: this machine's, on the entry's device. Any other has devices of its own.
        label: goes in front of the title of everything that is begun.
        rights: tells whether another fleet tries a change already; None: there are no others.
    """

    def __init__(
        self,
        project: Project,
        worker: Entry,
        *,
        executor: Executor | None = None,
        label: str = "",
        rights: ClaimService | None = None,
    ) -> None:
        self.project = project
        self.rights = rights
        self.label = label
        self.entry = worker
        self.name = worker.worker_id
        self.pulse = HeartbeatWriter(project.layout, worker)
        self.claims = WorkerQueue(project, self.name)
        self.current: Job | None = None
        self.next: Preparation | None = None
        self._on_own_device = executor is None
        self.executor = executor or LocalExecutor(project.repository, project.layout)
        if self._on_own_device and worker.branch:
            # For people and agents: runs have checkouts of their own, so it may fail.
            with suppress(AutohypothesisError):
                Workspace(
                    project.repository, self.name, branch=worker.branch, fleet=project.active()
                ).ensure(project.reference())
        self._notice_at, self._stands_still = 0.0, False
        self._device = worker.device or worker.worker_id
        self._inherited: deque[Job] = deque()
        """Runs that a predecessor left, still to be followed or collected."""
        self._started_at = self._last_duration = 0.0
        self._look_at = self._fresh_at = self._begin_at = self._claim_at = self._collect_at = 0.0
        self._blocked = False
        self._held_since: float | None = None
        self._looked = False
        self._failures = self._uncollected = 0
        self._leave_by = math.inf
        self._tries: Counter[str] = Counter()

    def run(self, stop: StopRequest) -> None:
        """Work until asked to stop.

        A stop ends the training and collects it; when `abandoned` the training goes on under its
        shim, and the next worker takes it over.

        Raises:
            LockError: another process is this worker.
        """
        doing = f"worker {self.name}"
        lock = presence.worker_lock(self.name)
        with locks.hold(self.project.layout, lock, doing=doing, timeout=LOCK_S):
            try:
                self.pulse.begin()
                self._recover()
                while not stop.requested:
                    self._turn(stop)
                self._shut_down(stop)
            except BaseException as error:
                self.pulse.enter("stopped", f"ended by {error!r}")
                raise

    def _turn(self, stop: StopRequest) -> None:
        if not self._is_blocked():
            self._prepare_next()
        if self.current is not None:
            self._follow(self.current)
        elif self._blocked or not self._begin():
            self._idle(stop)
        self.claims.flush()
        self.pulse.tick(self._next_id())

    def _idle(self, stop: StopRequest) -> None:
        if self.next is not None and not self.next.is_over:
            self._report_state("preparing", self.claims.problem)
            self.next.join(POLL_S)
            return
        is_pausing = self._failures > 0 and time.monotonic() < self._claim_at
        if not self._blocked and self._held_since is None and not is_pausing:
            self._report_state("idle", self.claims.problem)
        stop.wait(POLL_S)

    def _report_state(self, state: WorkerState, notes: str = "") -> None:
        self.pulse.enter(state, notes, next_hypothesis_id=self._next_id())

    def _next_id(self) -> str | None:
        return self.next.hypothesis.hypothesis_id if self.next is not None else None

    # ── what a predecessor left ───────────────────────────────────────────────────────────

    def _recover(self) -> None:
        """Finish, follow or give back every claim that the last worker left open."""
        layout, known = self.project.layout, set()
        for hypothesis in self.claims.claimed():
            name = hypothesis.hypothesis_id
            if hypothesis.closed is not None:
                self.claims.finish(name, hypothesis.closed, hypothesis.outcome)
                continue
            job, state = examine_claim(layout, self.executor, hypothesis)
            known.add(job.experiment_id)
            if state in ("running", "ended"):
                self._inherited.append(job)
            elif state == "recorded":
                self.claims.finish(name, "completed", outcome_of(layout, job.experiment_id))
            else:
                planned = job.experiment_id if state == "never_begun" else None
                self.claims.give_back(name, planned, problem=job.problem)
        self._inherited += unclaimed_runs(layout, self.executor, self.name, known)
        self._take_over()

    def _take_over(self) -> None:
        self.current = self._inherited.popleft() if self._inherited else None
        if self.current is not None:
            self._started_at = time.monotonic()
            self._report_running(self.current, "taken over")
            if not self.current.hypothesis_id:
                self._cancel(self.current)

    # ── claim and prepare ─────────────────────────────────────────────────────────────────

    def _prepare_next(self) -> None:
        """Claim and prepare the hypothesis after the one that runs."""
        if self.next is not None:
            if self.next.is_over:
                self._take_preparation(self.next)
            return
        if time.monotonic() < self._claim_at or not self.claims.are_waiting():
            return
        hypothesis = self.claims.take()
        if hypothesis is None:
            self._claim_at = time.monotonic() + LOOK_S
            return
        self.next = Preparation(
            self.project, self.entry, hypothesis, label=self.label, rights=self.rights
        )
        if self.current is None:
            self._report_state("preparing")
        else:  # the report about the one that runs stays
            self._report_state(self.pulse.state, self.pulse.heartbeat.notes)

    def _take_preparation(self, prepared: Preparation) -> None:
        name = prepared.hypothesis.hypothesis_id
        if prepared.spec is not None:
            self._discard_if_stale(prepared)
            return
        if prepared.refusal:
            self._return_prepared()
            return
        self.next = None
        # A lock, a lease, a full disk or data that is gone says nothing of the hypothesis.
        of_machine = isinstance(
            prepared.error, (LockError, UnwritableError, LeaseError, LaunchError, OSError)
        ) or room_in(str(prepared.error))
        self._tries[name] += not of_machine
        if self._tries[name] >= TRIES:
            why = f"it cannot be prepared, and was tried {TRIES} times: {prepared.error!r}"
            self.claims.finish(name, "abandoned", why)
            self._failures, self._claim_at = 0, 0.0  # it was the hypothesis, and nothing else
            return
        self.claims.give_back(name)
        self._pause(f"{name} could not be prepared: {prepared.error}")

    def _discard_if_stale(self, prepared: Preparation) -> None:
        """Give back a candidate of an older reference, where there is time to make it anew."""
        moment, spec = time.monotonic(), prepared.spec
        if self.current is None or spec is None or spec.parent_commit is None:
            return
        left = self._last_duration - (moment - self._started_at)
        if moment < self._fresh_at or left < 2 * prepared.seconds + LOOK_S:
            return
        self._fresh_at = moment + FRESH_S
        with suppress(AutohypothesisError, OSError):
            if self.project.reference() != spec.parent_commit:
                self._return_prepared()

    def _return_prepared(self) -> bool:
        """Give the prepared hypothesis back; False while it is still being prepared."""
        prepared = self.next
        if prepared is None:
            return True
        if not prepared.is_over:
            return False
        self.next = None
        spec = prepared.spec
        name = prepared.hypothesis.hypothesis_id
        if prepared.refusal:
            self.claims.finish(name, prepared.closed, prepared.refusal)
        else:
            self.claims.give_back(name, spec.experiment_id if spec else None)
        return True

    def _pause(self, why: str) -> None:
        """Claim nothing for a while: something failed that is not the hypothesis' fault."""
        self._failures += 1
        self._claim_at = time.monotonic() + min(0.5 * 2**self._failures, LONGEST_PAUSE_S)
        if self._failures >= TRIES:
            self.claims.withdraw_all()
        self._report_state("idle" if self.current is None else self.pulse.state, why)

    # ── the device ────────────────────────────────────────────────────────────────────────

    def _is_blocked(self) -> bool:
        """Return whether nothing may be claimed: by the device's state, or since the search stops.

        Looks about once a second, at the device itself only when it would be used.
        """
        if time.monotonic() < self._look_at:
            return self._blocked
        self._look_at = time.monotonic() + LOOK_S
        reason = quarantine.quarantined(self.project.layout).get(self._device, "")
        if not reason and (halt := self._reason_not_to_begin()):
            self._return_prepared()
            if self.current is None:
                self._report_state("idle", halt)
            self._blocked = True
            return True
        behind = self._held_since is not None
        wanted = behind or not self._looked or self.next is not None or self.claims.are_waiting()
        ask = self._on_own_device and not reason and self.current is None and wanted
        problem = device_problem(self.entry) if ask else None
        self._looked = True
        if problem is not None and problem.kind == "gone":
            reason = problem.reason
            with suppress(AutohypothesisError):
                quarantine.quarantine(self.project.layout, self._device, reason)
        self._blocked = bool(reason) or problem is not None
        if reason:
            if self._return_prepared():
                self.claims.withdraw_all()  # to other workers, until it is over
            if self.current is None:
                self._report_state("benched", reason)
        elif problem is not None:
            self._wait_for_holder(problem.reason)
        elif self.next is None:
            self._held_since = None
        return self._blocked

    def _wait_for_holder(self, reason: str) -> None:
        """Wait for the holder of the device; after `HELD_S` other workers get what waits for it."""
        moment = time.monotonic()
        self._held_since = self._held_since or moment
        long = moment - self._held_since > HELD_S
        if long and self._return_prepared():
            self.claims.withdraw_all()
        self._report_state("benched" if long else "idle", reason)

    # ── execute ───────────────────────────────────────────────────────────────────────────

    def _begin(self) -> bool:
        """Start what is prepared; return whether something was started."""
        prepared = self.next
        if prepared is None or not prepared.is_over or prepared.spec is None:
            return False
        if time.monotonic() < self._begin_at or not self._may_begin(prepared):
            return False
        spec = prepared.spec
        job = Job(prepared.hypothesis.hypothesis_id, spec.experiment_id, spec)
        try:
            self.executor.submit(spec)
        except LeaseError as error:
            self._begin_at = time.monotonic() + LOOK_S
            self._look_at = 0.0
            self._wait_for_holder(error.problem)
            return False
        except RECOVERABLE_ERRORS as error:
            self._undo(job, f"{spec.experiment_id} could not be started: {describe(error)}")
            return False
        self.next, self.current = None, job
        self._failures, self._held_since = 0, None
        self._started_at = time.monotonic()
        self._claim_at = self._started_at + SLOT_TIMING_S
        self._fresh_at = self._started_at + FRESH_S
        self._report_running(job)
        return True

    def _reason_not_to_begin(self) -> str:
        """Return why nothing may begin now; empty when it may.

        A person, or the observer, may end the search. A dead observer belonged to an earlier one.
        """
        layout = self.project.layout
        if steering.current_steering(layout).stop:
            return "the steering says stop"
        observer = presence.read_role(layout, "observer")
        is_closing = observer is not None and observer.details.get("closing") is True
        if observer is not None and is_closing and presence.role_lives(observer):
            return "the search is over"
        return ""

    def _may_begin(self, prepared: Preparation) -> bool:
        """Return whether a candidate may still run; else close it or give it back."""
        if self._reason_not_to_begin():
            self._return_prepared()
            self._look_at = 0.0  # to stand aside before anything is claimed again
            return False
        try:
            forbidden = prepared.steering_violation()
        except RECOVERABLE_ERRORS as error:
            self._return_prepared()
            self._pause(
                f"{prepared.hypothesis.hypothesis_id} cannot be looked at: {describe(error)}"
            )
            return False
        if forbidden and prepared.spec is not None:
            self.next = None
            with suppress(OSError):
                runner.forget(self.project, prepared.spec.experiment_id)
            outcome = f"{forbidden}; {STEERING_HINT}"
            self.claims.finish(prepared.hypothesis.hypothesis_id, "abandoned", outcome)
        return not forbidden

    def _undo(self, job: Job, why: str) -> None:
        """Take back a start that failed; a run that left its record is ended and collected."""
        if self.project.layout.run(job.experiment_id).run_spec.exists():
            self.next, self.current = None, job
            self._cancel(job)
            self._report_running(job, why)
        else:
            self._return_prepared()
        self._pause(why)

    def _report_running(self, job: Job, notes: str = "") -> None:
        """Report the run that goes on from now on."""
        run, spec = self.project.layout.run(job.experiment_id), job.spec
        given = {}
        if not self.entry.device:
            metadata = load_or_none(Metadata, run.metadata)
            given["gpu_id"] = metadata.run.gpu_id if metadata else ""
        self.pulse.runs(
            {"run": str(run.folder), "log": str(run.log)},
            notes,
            run_id=job.experiment_id,
            hypothesis_id=job.hypothesis_id or None,
            next_hypothesis_id=None,
            title=spec.title if spec else None,
            commit=spec.commit if spec else "",
            diff_stat=spec.diff_stat if spec else "",
            **given,
        )

    def _cancel(self, job: Job) -> None:
        with suppress(*RECOVERABLE_ERRORS):
            self.executor.cancel(job.experiment_id)

    def _follow(self, job: Job) -> None:
        self.executor.wait(job.experiment_id, POLL_S)
        if self.executor.poll(job.experiment_id) == "running":
            if job.hypothesis_id and not self.claims.holds(job.hypothesis_id):
                self._cancel(job)  # its claim was taken away
                self.current = Job("", job.experiment_id, job.spec)
            self._report_stall(job)
        elif time.monotonic() < self._collect_at:
            time.sleep(POLL_S)
        else:
            self._end(job)

    def _report_stall(self, job: Job) -> None:
        """Report why a run stands still, and that it goes on again."""
        if time.monotonic() < self._notice_at:
            return
        self._notice_at = time.monotonic() + LOOK_S
        text = self.executor.stall(job.experiment_id)
        if text or self._stands_still:
            self._report_state(self.pulse.state, text)
        self._stands_still = bool(text)

    # ── report ────────────────────────────────────────────────────────────────────────────

    def _end(self, job: Job, *, go_on: bool = True) -> None:
        """Collect what has ended, start the next, and only then report.

        The checkout of the one is judged before the other's takes its place.
        """
        self.pulse.rests()
        result: Result | None = None
        if self.claims.holds(job.hypothesis_id):
            try:
                result = self.executor.collect(job.experiment_id)
            except RECOVERABLE_ERRORS as error:
                if is_readable(self.project.layout.run(job.experiment_id)):
                    self._collect_at = time.monotonic() + LOOK_S
                    self._uncollected += 1
                    self._report_state(
                        "reporting", f"{job.experiment_id} cannot be collected: {describe(error)}"
                    )
                    return  # a full disk, say; its worktree is needed until then
                self._pause(f"{job.experiment_id} is damaged: {describe(error)}")
                self.claims.give_back(job.hypothesis_id)
        self._last_duration = time.monotonic() - self._started_at
        self.current = None
        is_quarantined = False
        if result is not None:
            with suppress(AutohypothesisError):
                is_quarantined = bool(
                    quarantine.count_device_failure(self.project.layout, self._device, result)
                )
        if is_quarantined:
            self._look_at = 0.0
        elif go_on and not self._inherited:
            self._begin()
        if result is not None:
            if self.current is None:
                self._report_state("reporting")
            self.claims.finish(job.hypothesis_id, "completed", result.outcome)
        if go_on and self.current is None:
            self._take_over()

    # ── leave ─────────────────────────────────────────────────────────────────────────────

    def _shut_down(self, stop: StopRequest) -> None:
        """End the run, unless it is to go on by itself, and give back what does not run."""
        if self.current is not None and not stop.abandoned:
            self._cancel(self.current)
        self._uncollected = 0
        self._leave_by = time.monotonic() + PREPARATION_S
        while not stop.abandoned and not stop.hard and self._is_leaving():
            self.pulse.tick()
        until = time.monotonic() + LOOK_S
        while not self._return_prepared() and self.next is not None and time.monotonic() < until:
            self.next.join(POLL_S)
        self.claims.flush()
        left = "left its training to the next worker" if self.current is not None else ""
        self._report_state("stopped", left)

    def _is_leaving(self) -> bool:
        """Wait a little; return whether there is still something to wait for."""
        if self.current is None:
            self._take_over()
            if self.current is not None:
                self._cancel(self.current)
        if self.current is not None:
            self.executor.wait(self.current.experiment_id, POLL_S)
            if self.executor.poll(self.current.experiment_id) != "running":
                self._end(self.current, go_on=False)
            return self.current is None or self._uncollected < TRIES
        if self.next is None or time.monotonic() > self._leave_by:
            return False  # what is still being prepared is given back by the next worker
        return not self.next.join(POLL_S)
