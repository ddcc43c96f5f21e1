"""Hypotheses that go back to the queue, and those that have come back too often.

A run that was lost to infrastructure, disturbed by a neighbour, or won against a reference that has
moved since, says nothing yet: its decision has `requeue`. What is to be done is derived from the
decisions each time, so a kill in between changes nothing, and doing it twice does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from autohypothesis.engine.failures import is_device_evidence
from autohypothesis.engine.project import Project
from autohypothesis.errors import RECOVERABLE_ERRORS, QueueError, RecordError, describe
from autohypothesis.fleet.queue.chronicle import Chronicle, is_lost
from autohypothesis.fleet.queue.orphans import end_claim
from autohypothesis.fleet.queue.states import Place, Queue
from autohypothesis.records.files import load
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis, Metadata, Result

MOST_DEVICE_FAILURES = 3
"""Of one hypothesis: with that many devices lost under it, it is the hypothesis."""


class Returns:
    """What comes back, and what it met on its way."""

    def __init__(self, layout: Layout, chronicle: Chronicle, queue: Queue) -> None:
        self.layout = layout
        self.chronicle = chronicle
        self.queue = queue
        self._evidence: dict[str, str | None] = {}
        """Lost experiment -> the device that it speaks against, None where it speaks of none."""
        self._lost: tuple[int, tuple[str, ...]] = (-1, ())
        self._refused: dict[str, str] = {}
        self._said: dict[str, str] = {}

    def carry_out(self) -> list[str]:
        """Takes every step that is due; a line for each. A turn begins with this."""
        said = []
        self._said, self._refused = self._refused, {}
        for hypothesis_id in self._to_come_back():
            place = self.queue.read(hypothesis_id)
            # One that is done and not closed is on its way back: its last requeueing was cut off.
            if place is None or place[0].state != "done" or place[1].closed == "abandoned":
                continue
            said += self._attempt(hypothesis_id, partial(self._bring_back, hypothesis_id))
        for hypothesis in self._met_devices():
            said += self._give_up(hypothesis)
        return said

    def problems(self) -> list[str]:
        """Steps of this turn that could not be taken, and why."""
        return list(self._refused.values())

    def avoided_device(self, hypothesis_id: str) -> str | None:
        """The device that its latest run was lost with; another is to be preferred."""
        decision = self.chronicle.verdict(hypothesis_id)
        if decision is None or not is_lost(decision):
            return None
        return self._device_blamed(decision.experiment_id)

    def device_failures(self, hypothesis_id: str) -> int:
        """How many of its runs speak against the device that they ran on."""
        return sum(
            self._device_blamed(experiment) is not None
            for experiment in self.chronicle.attempts(hypothesis_id)
            if (decision := self.chronicle.latest.get(experiment)) and is_lost(decision)
        )

    def end_stranger(self, project: Project, hypothesis_id: str, worker: str) -> str:
        """Ends a claim of a worker that is gone for good; a line, or nothing while it runs on.

        One that cannot be ended now is tried again, and never stands in the way of the others.
        """
        lines = self._attempt(hypothesis_id, partial(self._end, project, hypothesis_id, worker))
        return "; ".join(lines)

    # ── how ───────────────────────────────────────────────────────────────────────────────

    def _attempt(self, hypothesis_id: str, step: Callable[[], str]) -> list[str]:
        """What a step says; of one that cannot be taken why, once."""
        try:
            line = step()
        except RECOVERABLE_ERRORS as error:
            line = f"{hypothesis_id} stays where it is: {describe(error)}"
            self._refused[hypothesis_id] = line
        return [line] if line and line != self._said.get(hypothesis_id) else []

    def _bring_back(self, hypothesis_id: str) -> str:
        decision = self.chronicle.verdict(hypothesis_id)
        self.queue.requeue(hypothesis_id)
        return f"{hypothesis_id} is queued again: {decision.reason if decision else ''}"

    def _end(self, project: Project, hypothesis_id: str, worker: str) -> str:
        found = self.queue.read(hypothesis_id)
        if found is None or found[0] != Place("running", worker):
            return ""
        return end_claim(project, self.queue, found[1], worker, self.chronicle.latest)

    def _to_come_back(self) -> tuple[str, ...]:
        """Hypotheses whose latest experiment's decision sends them back."""
        if self._lost[0] != self.chronicle.version:
            ids = {one.hypothesis_id for one in self.chronicle.latest.values() if one.requeue}
            self._lost = (self.chronicle.version, tuple(sorted(ids)))
        return tuple(name for name in self._lost[1] if self._comes_back(name))

    def _comes_back(self, hypothesis_id: str) -> bool:
        decision = self.chronicle.verdict(hypothesis_id)
        return decision is not None and decision.requeue

    def _met_devices(self) -> list[Hypothesis]:
        lost = set(self._lost[1])
        waiting = [*self.queue.pending(), *(h for d in self.queue.dispatched().values() for h in d)]
        return [
            one
            for one in waiting
            if one.hypothesis_id in lost
            and self.device_failures(one.hypothesis_id) >= MOST_DEVICE_FAILURES
        ]

    def _give_up(self, hypothesis: Hypothesis) -> list[str]:
        name = hypothesis.hypothesis_id
        why = f"{MOST_DEVICE_FAILURES} of its runs were lost with their device"
        try:
            self.queue.abandon(name, why)
        except QueueError:
            return []  # a worker has just claimed it; the next turn sees what became of that
        return [f"{name} is abandoned: {why}"]

    def _device_blamed(self, experiment_id: str) -> str | None:
        """The name of the device that a result speaks against."""
        if experiment_id not in self._evidence:
            self._evidence[experiment_id] = _blamed(self.layout, experiment_id)
        return self._evidence[experiment_id]


def _blamed(layout: Layout, experiment_id: str) -> str | None:
    run = layout.run(experiment_id)
    try:
        result = load(Result, run.result)
        if not is_device_evidence(result):
            return None
        metadata = load(Metadata, run.metadata)
        return metadata.run.gpu_id or metadata.runtime.gpu_name
    except (FileNotFoundError, RecordError):
        return None
