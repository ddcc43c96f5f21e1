"""The hypotheses of one worker: what it claims, gives back and finishes, and the next candidate.

A candidate is made in a side worktree while the device trains the one before it. A queue step that
cannot be written now (a full disk, a held lock) is tried again; after a kill the worker's successor
finds the same on disk.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from autohypothesis.engine import runner
from autohypothesis.engine.candidate import settings_of
from autohypothesis.engine.experiment import Experiment, Resources, RunSpec
from autohypothesis.engine.mutator import RecordedRefusalError
from autohypothesis.engine.project import Project
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    LockError,
    PreflightError,
    QueueError,
    RecordError,
)
from autohypothesis.fleet.hub_sync.incoming import ClaimService, claim_change
from autohypothesis.fleet.live import steering
from autohypothesis.fleet.live.quarantine import device_kind
from autohypothesis.fleet.queue.states import Closed, Queue
from autohypothesis.records.git import Repository
from autohypothesis.schema import Hypothesis, Steering, Worker

RETRY_S = 2.0
STEERING_HINT = "see program.md and research/steering.md"


class WorkerQueue:
    """The hypotheses of one worker, and the steps that could not be written yet."""

    def __init__(self, project: Project, worker: str) -> None:
        self._project = project
        self._worker = worker
        self._queue = Queue(project.layout, project.active())
        self._steps: deque[Callable[[], None]] = deque()
        self._not_before = 0.0
        self._refused = ""
        """Why the last step was not taken; empty when all were."""
        self._unrecoverable_runs: list[str] = []

    @property
    def problem(self) -> str:
        """Return why the last step was not taken, and which runs are left alone; "" for neither."""
        return "; ".join(filter(None, (self._refused, *self._unrecoverable_runs)))

    def claimed(self) -> list[Hypothesis]:
        return self._queue.running(self._worker)[self._worker]

    def are_waiting(self) -> bool:
        """Return whether there may be something to claim; a listing, and no lock."""
        with suppress(OSError):
            names = os.listdir(self._project.layout.hypotheses("dispatched", self._worker))
            return any(name.endswith(".json") for name in names)
        return False

    def holds(self, hypothesis_id: str) -> bool:
        """Return whether a claim still stands: the hypothesis may have been taken away."""
        if not hypothesis_id:
            return False
        return os.path.lexists(
            self._project.layout.hypothesis(hypothesis_id, "running", self._worker)
        )

    def take(self) -> Hypothesis | None:
        """Claim the best of what waits; None where there is none, or it cannot be claimed now."""
        self._refused = ""
        try:
            return self._queue.claim(self._worker)
        except (AutohypothesisError, OSError) as error:
            self._refused = str(error)
            return None

    def give_back(
        self, hypothesis_id: str, experiment_id: str | None = None, *, problem: str = ""
    ) -> None:
        """Forget the plan of what was never begun, and let the hypothesis wait again.

        Args:
            problem: reported for as long as this worker lives.
        """
        if problem:
            self._unrecoverable_runs.append(problem)
        if experiment_id:
            with suppress(OSError):
                runner.forget(self._project, experiment_id)
        self._steps.append(partial(self._queue.release, hypothesis_id, self._worker))
        self.flush()

    def finish(self, hypothesis_id: str, closed: Closed, outcome: str) -> None:
        self._steps.append(
            partial(self._queue.finish, hypothesis_id, self._worker, closed=closed, outcome=outcome)
        )
        self.flush()

    def withdraw_all(self) -> None:
        """Let other workers have everything that waits for this one."""
        with suppress(AutohypothesisError, OSError):
            for hypothesis in self._queue.dispatched(self._worker)[self._worker]:
                with suppress(QueueError):
                    self._queue.withdraw(hypothesis.hypothesis_id)

    def flush(self) -> None:
        """Write the steps that were not written yet, in their order."""
        while self._steps and time.monotonic() >= self._not_before:
            self._refused = ""
            try:
                self._steps[0]()
            except QueueError as error:
                self._refused = str(error)  # it is elsewhere, or cannot get there
            except (LockError, RecordError, OSError) as error:
                self._refused = str(error)
                self._not_before = time.monotonic() + RETRY_S
                return
            self._steps.popleft()


class Preparation:
    """One claimed hypothesis on its way to a candidate, in a thread of its own.

    It holds no device and touches no worktree but `<worker>-next`. A process that ends in the
    middle leaves a claim without a run, which the next worker gives back.
    """

    def __init__(
        self,
        project: Project,
        worker: Worker,
        hypothesis: Hypothesis,
        *,
        label: str = "",
        rights: ClaimService | None = None,
    ) -> None:
        self.hypothesis = hypothesis
        self.spec: RunSpec | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self._worker, self._label, self._rights = worker, label, rights
        self._rules = Steering()
        """The steering that the candidate was checked against."""
        # A repository object is one thread's.
        self._project = replace(project, repository=Repository(project.repository.root))
        self._thread = threading.Thread(target=self._run, name="preparing", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for the end, `timeout` seconds at most; return whether it is over."""
        self._thread.join(timeout)
        return self.is_over

    @property
    def refusal(self) -> str:
        """Return why the change was refused; empty where it was not, or something else failed."""
        refused = isinstance(self.error, (ChangeError, PreflightError))
        return str(self.error) if refused else ""

    @property
    def closed(self) -> Closed:
        """Return how a refused hypothesis ends: one that has a record was completed."""
        return "completed" if isinstance(self.error, RecordedRefusalError) else "abandoned"

    def steering_violation(self) -> str:
        """Return what today's steering forbids about the candidate, which the earlier one allowed.

        Only after the end. git is asked only if the steering has changed.

        Raises:
            GitError: a script of the candidate cannot be read.
        """
        rules = steering.current_steering(self._project.layout)
        if self.spec is None or rules == self._rules:
            return ""
        problem = violation_by(self.spec, rules, self._project)
        self._rules = rules
        return problem

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self.spec = self._plan()
        except Exception as error:
            # The boundary of the thread: whatever a change provokes must not end the worker.
            self.error = error
        self.seconds = time.monotonic() - began

    def _plan(self) -> RunSpec:
        wanted, worker = self.hypothesis, self._worker
        spec = runner.plan(
            self._project,
            Experiment.of(wanted, label=self._label),
            worker.worker_id,
            workspace=f"{worker.worker_id}-next",
            resources=Resources(kind=device_kind(worker), device=worker.device or None),
            check=self._check,
        )
        if self._rights is not None:
            claim_change(self._rights, self._project, wanted, spec)
        return spec

    def _check(self, spec: RunSpec) -> None:
        self._rules = steering.current_steering(self._project.layout)
        if problem := violation_by(spec, self._rules, self._project):
            raise ChangeError(problem, hint=STEERING_HINT)


def violation_by(spec: RunSpec, rules: Steering, project: Project) -> str:
    """Return how a candidate violates the steering, however its change was written down."""
    if spec.parent_commit is None or not (rules.frozen or rules.ranges):
        return ""
    before, after = (
        settings_of(project.repository, project.task, commit)
        for commit in (spec.parent_commit, spec.commit)
    )
    return steering.violation(rules, before, after)
