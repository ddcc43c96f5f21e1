"""What a worker that leaves the roster still held goes back to where it belongs."""

from __future__ import annotations

import re

from autohypothesis.engine import recovery
from autohypothesis.engine.lab import Lab, run_ids
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.ids import experiment_stem


def take_back(lab: Lab, queue: Queue, worker: str) -> int:
    """Withdraw what waits for `worker`, and close or requeue what it had claimed; how many.

    The worker is not at work. What it ran to its end is collected and counts; anything else was
    never evidence.
    """
    waiting = queue.dispatched(worker)[worker]
    for one in waiting:
        queue.withdraw(one.hypothesis_id)
    claimed = queue.running(worker)[worker]
    if claimed:
        recovery.collect_ended(lab.repository, lab.layout)
    for one in claimed:
        if _has_result(lab, one.hypothesis_id):
            queue.finish(one.hypothesis_id, worker)
        else:
            queue.requeue(one.hypothesis_id)
    return len(waiting) + len(claimed)


def _has_result(lab: Lab, hypothesis_id: str) -> bool:
    """Whether the newest experiment of a hypothesis has ended and was collected."""
    form = re.compile(re.escape(experiment_stem(hypothesis_id)) + r"-(\d+)")
    numbers = [int(found[1]) for name in run_ids(lab.layout) if (found := form.fullmatch(name))]
    if not numbers:
        return False
    newest = f"{experiment_stem(hypothesis_id)}-{max(numbers)}"
    return lab.layout.run(newest).result.exists()
