"""When a search ends by itself, and how many experiments may still begin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from autohypothesis.engine.task import Task
from autohypothesis.fleet.observer.tried import Library
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.schema import now

ALL_RUN = "all that were to be run are run"


@dataclass(frozen=True, slots=True)
class Limits:
    """When the search ends by itself."""

    max_experiments: int | None = None
    """Of the tag, the baseline included; those lost to infrastructure are not counted."""
    until: datetime | None = None
    ideas: bool = False
    """Also when no proposer has an idea left; else it waits, for a person may have one."""


@dataclass(frozen=True)
class Ending:
    """The limits of one search: those it was started with, and those of its task."""

    limits: Limits
    task: Task
    queue: Queue
    chronicle: Chronicle
    library: Library

    @property
    def most(self) -> int | None:
        """The most experiments that the tag may come to; None: no limit."""
        own, task = self.limits.max_experiments, self.task.budget.runs
        return min((most for most in (own, task) if most is not None), default=None)

    def is_over(self) -> bool:
        """Whether nothing new is to begin for good."""
        return bool(self.why_over())

    def why_over(self) -> str:
        """Why nothing new is to begin for good; empty while it may."""
        if self.limits.until is not None and now() >= self.limits.until:
            return "its time is over"
        if self.most is not None and self.chronicle.counted() >= self.most:
            return ALL_RUN
        if self._target_is_met():
            return f"the task's target of {self.task.objective.target:g} is met"
        if self._patience_is_over():
            return f"the task's patience is over: nothing kept in {self.task.policy.patience} runs"
        return ""

    def room(self) -> int | None:
        """How many more may begin beside those that have; None: no limit."""
        if self.is_over():
            return 0
        if self.most is None:
            return None
        # The queue first, then the runs: what moves on meanwhile is seen in the one or the other.
        given = [*self.queue.dispatched().values(), *self.queue.running().values()]
        names = {one.hypothesis_id for each in given for one in each}
        self.chronicle.refresh()
        self.library.refresh()
        ended = [
            name
            for name in self.chronicle.ended()
            if (run := self.library.runs.get(name)) is not None and run.hypothesis_id not in names
        ]
        return max(0, self.most - self.chronicle.counted() - len(names) - len(ended))

    def is_given_out(self) -> bool:
        """Whether a worker has something, or will have."""
        return any(self.queue.running().values()) or any(self.queue.dispatched().values())

    def _target_is_met(self) -> bool:
        objective = self.task.objective
        if objective.target is None:
            return False
        sign = 1.0 if objective.direction == "minimize" else -1.0
        return any(
            one.decision_status == "keep"
            and one.metric_value is not None
            and sign * one.metric_value <= sign * objective.target
            for one in self.chronicle.latest.values()
        )

    def _patience_is_over(self) -> bool:
        patience = self.task.policy.patience
        if patience is None:
            return False
        since = 0
        for one in reversed(self.chronicle.latest.values()):
            if one.decision_status == "keep":
                break
            failed = one.decision_status in ("discard", "crash") and not one.requeue
            since += failed and one.base_commit is not None  # a replicate is no idea
        return since >= patience
