"""The next candidate, made in a side worktree while the device trains the one before it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace

from autohypothesis.engine import runner
from autohypothesis.engine.candidate import config_of
from autohypothesis.engine.change import Change
from autohypothesis.engine.constants import read_constants
from autohypothesis.engine.executor import Resources, RunSpec
from autohypothesis.engine.failures import room_in
from autohypothesis.engine.project import Project
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    LeaseError,
    LockError,
    PreflightError,
    UnwritableError,
)
from autohypothesis.fleet.live import steering
from autohypothesis.fleet.live.hindrance import kind_of
from autohypothesis.fleet.worker.sharing import Sharing
from autohypothesis.records.git import Repository
from autohypothesis.schema import Hypothesis, Setting, Steering, Worker

SEE = "see program.md and research/steering.md"


def make_worktree(project: Project, worker: Worker) -> None:
    """The worktree of a worker with a branch, for people and agents, unless it is there.

    Runs have checkouts of their own, so that none is made is no reason not to work.
    """
    if worker.branch:
        place = Workspace.named(
            project.repository, worker.worker_id, branch=worker.branch, fleet=project.active()
        )
        with suppress(AutohypothesisError):
            place.ensure(project.reference())


def is_of_the_machine(error: Exception | None) -> bool:
    """Whether a failed preparation says nothing of its hypothesis: a lock, a lease, a full disk."""
    known = (LockError, UnwritableError, LeaseError, OSError)
    return isinstance(error, known) or room_in(str(error)) != ""


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
        sharing: Sharing | None = None,
    ) -> None:
        self.hypothesis = hypothesis
        self._sharing = sharing
        self.spec: RunSpec | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self._worker = worker
        self._label = label
        self._rules = Steering()
        """What the candidate was held against."""
        # A repository object is one thread's.
        self._project = replace(project, repository=Repository(project.repository.root))
        self._thread = threading.Thread(target=self._run, name="preparing", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for the end, `timeout` seconds at most; whether it is over."""
        self._thread.join(timeout)
        return self.is_over

    @property
    def refusal(self) -> str:
        """Why the change itself is no good; empty if it is, or if something else failed."""
        refused = isinstance(self.error, (ChangeError, PreflightError))
        return str(self.error) if refused else ""

    def against_steering(self) -> str:
        """What the steering of now forbids about the candidate, which that of then allowed.

        For whoever has waited for the end: git is asked only if the steering has changed.

        Raises:
            GitError: a script of the candidate cannot be read.
        """
        rules = steering.combined(self._project.layout)
        if self.spec is None or rules == self._rules:
            return ""
        problem = self._violation(self.spec, rules)
        self._rules = rules
        return problem

    def forget(self) -> None:
        """Take back the plan of a candidate that is not to be begun."""
        if self.spec is None:
            return
        with suppress(OSError):
            runner.forget(self._project, self.spec.experiment_id)

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
        request = runner.Request(
            Change.of(wanted),
            title=f"{self._label}: {wanted.title}" if self._label else wanted.title,
            rationale=wanted.rationale,
            hypothesis_id=wanted.hypothesis_id,
            seed=wanted.seed,
            replicates=wanted.replicates,
            prediction=wanted.prediction,
        )
        spec = runner.plan(
            self._project,
            request,
            worker.worker_id,
            workspace=f"{worker.worker_id}-next",
            resources=Resources(kind=kind_of(worker), device=worker.device or None),
        )
        self._rules = steering.combined(self._project.layout)
        if problem := self._violation(spec, self._rules):
            runner.forget(self._project, spec.experiment_id)
            raise ChangeError(problem, hint=SEE)
        if self._sharing is not None:
            self._sharing.claim(self._project, wanted, spec)
        return spec

    def _violation(self, spec: RunSpec, rules: Steering) -> str:
        """What a candidate does that it may not, however its change was written down."""
        if spec.parent_commit is None or not (rules.frozen or rules.ranges):
            return ""
        before, after = (
            _literals(self._project, commit) for commit in (spec.parent_commit, spec.commit)
        )
        return steering.violation(rules, before, after)


def _literals(project: Project, commit: str) -> dict[str, Setting]:
    """The constants of the artifacts of `commit`, as far as they can be read without running it."""
    repository = project.repository
    settings: dict[str, Setting] = {}
    for path in project.task.artifacts_in(repository.entries(commit)):
        if path.endswith(".py"):
            settings |= config_of(read_constants(repository.show_file(commit, path)), None)
    return settings
