"""What a worker that leaves the roster still held goes back to where it belongs."""

from __future__ import annotations

from contextlib import suppress

from autohypothesis.engine.project import Project
from autohypothesis.errors import RECOVERABLE_ERRORS, RecordError
from autohypothesis.fleet.queue.orphans import end_claim
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.bundles import read_decisions


def take_back(project: Project, queue: Queue, worker: str) -> int:
    """Withdraw what waits for `worker`, and close or requeue what it had claimed; how many.

    The worker is not at work. What it ran to its end is collected and counts; anything else was
    never evidence. What still runs under its shim, or cannot be ended now, is left to the observer.
    """
    waiting = queue.dispatched(worker)[worker]
    for one in waiting:
        queue.withdraw(one.hypothesis_id)
    claimed = queue.running(worker)[worker]
    if not claimed:
        return len(waiting)
    decided, moved = _decided(project), len(waiting)
    for one in claimed:
        with suppress(*RECOVERABLE_ERRORS):
            moved += bool(end_claim(project, queue, one, worker, decided))
    return moved


def _decided(project: Project) -> set[str]:
    """Experiments with a decision, as far as those can be read."""
    with suppress(RecordError):
        return {one.experiment_id for one in read_decisions(project.layout)[0]}
    return set()
