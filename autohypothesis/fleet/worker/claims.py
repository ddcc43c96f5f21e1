"""One worker's dealings with the queue: what it takes, gives back and finishes.

What cannot be written down now (a full disk, a held lock) is tried again; a kill before that is
mended by the worker's successor, who finds the same on disk.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from autohypothesis.engine import runner
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, LockError, QueueError, RecordError
from autohypothesis.fleet.queue.states import Closed, Queue
from autohypothesis.schema import Hypothesis

RETRY_S = 2.0


class Claims:
    """The hypotheses of one worker."""

    def __init__(self, project: Project, worker: str) -> None:
        self._project = project
        self._worker = worker
        self._queue = Queue(project.layout, project.active())
        self._steps: deque[Callable[[], None]] = deque()
        self._not_before = 0.0
        self._refused = ""
        """Why the last step was not taken; empty when all were."""
        self._left_alone: list[str] = []

    @property
    def problem(self) -> str:
        """Why the last step was not taken, and which runs are left alone; empty if all is well."""
        return "; ".join(filter(None, (self._refused, *self._left_alone)))

    # ── what there is ─────────────────────────────────────────────────────────────────────

    def claimed(self) -> list[Hypothesis]:
        """What this worker, or one before it, has taken and not finished."""
        return self._queue.running(self._worker)[self._worker]

    def are_waiting(self) -> bool:
        """Whether there may be something to take; a listing, and no lock."""
        try:
            with os.scandir(self._project.layout.hypotheses("dispatched", self._worker)) as entries:
                return any(entry.name.endswith(".json") for entry in entries)
        except OSError:
            return False

    def holds(self, hypothesis_id: str) -> bool:
        """Whether a claim still stands: nobody took the hypothesis away meanwhile."""
        if not hypothesis_id:
            return False
        return os.path.lexists(
            self._project.layout.hypothesis(hypothesis_id, "running", self._worker)
        )

    # ── steps ─────────────────────────────────────────────────────────────────────────────

    def take(self) -> Hypothesis | None:
        """The best of what waits; None when there is nothing, or when it cannot be had now."""
        try:
            hypothesis = self._queue.claim(self._worker)
        except (AutohypothesisError, OSError) as error:
            self._refused = str(error)
            return None
        self._refused = ""
        return hypothesis

    def give_back(
        self, hypothesis_id: str, experiment_id: str | None = None, *, problem: str = ""
    ) -> None:
        """Forget the plan of what was never begun, and let the hypothesis wait again.

        `problem` is what a person has to know about it, for as long as this worker lives.
        """
        if problem:
            self._left_alone.append(problem)
        if experiment_id:
            with suppress(OSError):
                runner.forget(self._project, experiment_id)
        self._soon(partial(self._queue.release, hypothesis_id, self._worker))

    def finish(self, hypothesis_id: str, closed: Closed, outcome: str) -> None:
        """It has ended: with a run to decide, or without."""
        step = partial(
            self._queue.finish, hypothesis_id, self._worker, closed=closed, outcome=outcome
        )
        self._soon(step)

    def pass_on(self) -> None:
        """Everything that waits for this worker goes back, for others to take."""
        with suppress(AutohypothesisError, OSError):
            for hypothesis in self._queue.dispatched(self._worker)[self._worker]:
                with suppress(QueueError):
                    self._queue.withdraw(hypothesis.hypothesis_id)

    def _soon(self, step: Callable[[], None]) -> None:
        self._steps.append(step)
        self.flush()

    def flush(self) -> None:
        """Take the steps that were not taken yet, in their order."""
        while self._steps and time.monotonic() >= self._not_before:
            try:
                self._steps[0]()
            except QueueError as error:
                self._refused = str(error)  # it is elsewhere, or cannot get there; so be it
            except (LockError, RecordError, OSError) as error:
                self._refused = str(error)
                self._not_before = time.monotonic() + RETRY_S
                return
            else:
                self._refused = ""
            self._steps.popleft()
