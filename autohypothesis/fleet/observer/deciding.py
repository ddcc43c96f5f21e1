"""Settling, replicate scheduling, requeueing, and the ledger.

Everything is derived from the decisions at each turn, so a kill in between loses nothing, and doing
a step twice does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from autohypothesis.engine.collect import collect_ended
from autohypothesis.engine.decide import NeedsRuns, edits_in_results, settle
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.failures import is_device_evidence
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Constraint
from autohypothesis.errors import (
    RECOVERABLE_ERRORS,
    AutohypothesisError,
    QueueError,
    SettleError,
    describe,
)
from autohypothesis.fleet.queue.claims import end_claim
from autohypothesis.fleet.queue.states import Queue, QueuePlace
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import load, load_or_none
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Decision, Hypothesis, Metadata, Plan, Proposal, Result

REPEAT_PRIORITY = 900.0
"""Priority of runs that decisions wait for: before every proposal, after the baseline."""
CONFIRM_PREFIX = "confirm-"
KEY_LENGTH = 16
"""Characters of a platform's key that tell it from the others."""
NO_LONGER_NEEDED = "nothing waits for it any more"
"""The outcome of a run that was queued and then not wanted; it may be wanted again."""
MAX_DEVICE_FAILURES = 3
"""Device failures under one hypothesis after which the hypothesis is blamed."""
SYNC_S = 1.0
"""The ledger lags by this much at most while runs begin and end."""
LOOK_S = 10.0
"""Interval of searching for runs that no process collected."""
SCAN_TIME_FACTOR = 50
"""A search for such runs takes at most one part in so many of the time."""


class Decider:
    """Settles what has ended in one search, turn after turn."""

    def __init__(self, project: Project, history: LiveHistory) -> None:
        self.project = project
        self.history = history
        self.refused: dict[str, AutohypothesisError] = {}
        """Experiment -> why it could not be decided, as of the last try."""
        self.needs_runs: list[NeedsRuns] = []
        """Wins that wait for runs which confirm them, as of the last try."""
        self.edits: list[str] = []
        """Remarks about decisions that were written into a result.json."""
        self._tried_at = -1
        self._last_try = self._last_sync = self._last_look = float("-inf")
        self._pause = LOOK_S
        self._dirty = True
        self._counts = (0, 0)

    def turn(self, limits: Mapping[str, Constraint], *, begun: int) -> list[Decision]:
        """Decide what has ended since.

        Args:
            begun: how many experiments were submitted so far.

        Raises:
            LockError: another process is settling, or syncing, and does not finish.
            RecordError: the disk is full.
        """
        counts, fresh = (begun, len(self.history.undecided)), bool(self.history.fresh())
        self._dirty |= fresh or counts != self._counts
        self._counts = counts
        decisions = self._settle(limits) if fresh or self._retry_is_due() else []
        now = time.monotonic()
        if now - self._last_look >= self._pause:
            self._collect_unattended_runs()
            self._sync()
            self._last_look = time.monotonic()
            self._pause = max(LOOK_S, SCAN_TIME_FACTOR * (self._last_look - now))
        elif decisions or (self._dirty and now - self._last_sync >= SYNC_S):
            self._sync()
        return decisions

    def waits(self) -> list[str]:
        """Return the experiments of any tag that have ended and may still be decided."""
        known = {*self.refused, *(win.experiment_id for win in self.needs_runs)}
        return [name for name in self.history.ended() if name not in known]

    def _retry_is_due(self) -> bool:
        """Return whether to try again what was refused: after a decision, or after a while."""
        later = time.monotonic() - self._last_try >= LOOK_S
        waiting = self.refused or self.needs_runs
        return bool(waiting) and (later or self._tried_at != self.history.version)

    def _settle(self, limits: Mapping[str, Constraint]) -> list[Decision]:
        self._last_try = time.monotonic()
        self._tried_at = self.history.version
        seen = self.history.results()
        settlement = settle(self.project, decided_by="observer", check=self._may, limits=limits)
        self.history.seen(seen)
        self.refused = settlement.refused
        self.needs_runs = settlement.needs_runs
        self.history.refresh()
        return settlement.decisions

    def _may(self, experiment_id: str) -> None:
        """Refuse a repeat of the baseline before the baseline: it is no baseline itself.

        Raises:
            SettleError: nothing is kept yet, and this repeats something.
        """
        if self.history.has_reference():
            return
        plan = load_or_none(Plan, self.project.layout.plan(experiment_id))
        if plan is None or plan.replicates is None:
            return
        self.history.refresh()  # it may have been decided by this very settle
        if plan.replicates not in self.history.latest:
            raise SettleError(
                f"{experiment_id} repeats {plan.replicates}, which is not decided yet"
            )

    def _sync(self) -> None:
        report = sync(self.project.layout, light=True)
        self.edits = edits_in_results(self.project.layout, report.hand_edits)
        self._dirty = False
        self._last_sync = time.monotonic()
        self.history.refresh()

    def _collect_unattended_runs(self) -> None:
        """Collect runs that were begun by hand, and whose starter was killed."""
        layout, unattended = self.project.layout, []
        for name in list(self.history.undecided):
            run = layout.run(name)
            if not run.run_spec.exists() or run.result.exists():
                continue
            with suppress(*RECOVERABLE_ERRORS):
                plan = load(Plan, layout.plan(name))
                claim = (plan.hypothesis.hypothesis_id, "running", plan.worker_id)
                # Where a worker holds its hypothesis, that worker collects it.
                if not plan.worker_id or not layout.hypothesis(*claim).exists():
                    unattended.append(name)
        collect_ended(self.project.repository, layout, unattended)


def queue_repeat(queue: Queue, source_id: str, experiment: Experiment, **only: str) -> str:
    """Queue a run of an experiment again, before every idea; return a line.

    Args:
        only: the `worker_id` or the `platform_key` that it is for, as `Queue.add` takes them.
    """
    proposal = Proposal(
        title=experiment.title,
        rationale=experiment.rationale,
        priority=REPEAT_PRIORITY,
        source_id=source_id,
        replicates=experiment.replicates,
        seed=experiment.seed,
    )
    added = queue.add(proposal, proposer="observer", **only)
    return f"{added.hypothesis_id} is queued: {added.title}"


@dataclass(frozen=True)
class ReplicateScheduler:
    """Queues the runs that wins need before they are decided, for any worker.

    A run that is queued, begun or lost is found in the queue under the commit, the platform and the
    seed that it is for. A base's run is queued once, however many changes wait for it.
    """

    queue: Queue
    history: LiveHistory

    def turn(self, wins: Sequence[NeedsRuns]) -> list[str]:
        """Queue what is missing, and take back what nothing waits for; a line for each.

        Raises:
            LockError, RecordError: the queue cannot be written now.
        """
        wanted = {
            source_of(run, win.platform_key): (run, win.platform_key)
            for win in wins
            for run in win.runs
        }
        queued = [
            each
            for place, each in self.queue.placed()
            if place.state in ("pending", "dispatched")
            and each.proposer == "observer"
            and each.source_id.startswith(CONFIRM_PREFIX)
        ]
        known = self.queue.sources() if wanted else {}
        lines = [
            self._queue_or_requeue(source, *run, known.get(source))
            for source, run in wanted.items()
        ]
        lines += [self._take_back(each) for each in queued if each.source_id not in wanted]
        return [line for line in lines if line]

    def problems(self, wins: Sequence[NeedsRuns]) -> list[str]:
        """Return the wins that wait for a run which was refused, or is no evidence about them."""
        problems, known = [], self.queue.sources() if wins else {}
        for win in wins:
            for run in win.runs:
                hypothesis_id = known.get(source_of(run, win.platform_key))
                if hypothesis_id and (why := self._failure_reason(hypothesis_id)):
                    problems.append(
                        f"{win.experiment_id} waits for {hypothesis_id}, {run.title}: {why}"
                    )
        return problems

    def _queue_or_requeue(
        self, source: str, run: Experiment, key: str, hypothesis_id: str | None
    ) -> str:
        if hypothesis_id is None:
            return queue_repeat(self.queue, source, run, platform_key=key[:KEY_LENGTH])
        ended = self._ended(hypothesis_id)
        if ended is None:
            return ""
        decision = self.history.decision_about(hypothesis_id)
        ran_elsewhere = decision and decision.platform_key not in ("", key)
        if ended.outcome == NO_LONGER_NEEDED or ran_elsewhere:
            self.queue.requeue(hypothesis_id)
            return f"{hypothesis_id} is queued again: {ended.title}"
        return ""

    def _take_back(self, replicate: Hypothesis) -> str:
        """Abandon what is queued for a win that was decided meanwhile, or whose base is gone."""
        with suppress(QueueError):  # a worker has just claimed it
            self.queue.abandon(replicate.hypothesis_id, NO_LONGER_NEEDED)
            return f"{replicate.hypothesis_id} is taken back: {NO_LONGER_NEEDED}"
        return ""

    def _ended(self, hypothesis_id: str) -> Hypothesis | None:
        placed = self.queue.read(hypothesis_id)
        return placed[1] if placed is not None and placed[0].state == "done" else None

    def _failure_reason(self, hypothesis_id: str) -> str:
        ended = self._ended(hypothesis_id)
        if ended is None or ended.outcome == NO_LONGER_NEEDED:
            return ""
        if ended.closed == "abandoned":
            return f"refused, {ended.outcome}"
        decision = self.history.decision_about(hypothesis_id)
        if decision is None or decision.requeue:
            return ""
        return f"{decision.experiment_id} says nothing about it; decide it by hand"


def awaiting(wins: Sequence[NeedsRuns]) -> list[dict[str, Any]]:
    """Return the wins that need runs, as the status has them."""
    return [
        {
            "experiment_id": win.experiment_id,
            "missing": len(win.runs),
            "wanted": win.wanted,
            "found": win.words,
        }
        for win in wins
    ]


def source_of(run: Experiment, key: str) -> str:
    """Return the source id of a run; the same for all wins that wait for it."""
    return f"{CONFIRM_PREFIX}{run.base[:12]}-{run.seed}#{key[:KEY_LENGTH]}"


class RequeuePolicy:
    """Brings hypotheses back to the queue, and gives up those that have come back too often.

    A run that was lost to infrastructure, disturbed by a neighbour, or won against a reference that
    has moved since is no evidence yet: its decision has `requeue`.
    """

    def __init__(self, project: Project, history: LiveHistory, queue: Queue) -> None:
        self.project = project
        self.history = history
        self.queue = queue
        self._device_blamed = cache(partial(_device_blamed, project.layout))
        self._refused: dict[str, str] = {}
        self._reported: dict[str, str] = {}

    def turn(self) -> list[str]:
        """Take every step that is due; return a line for each. Called first in each turn."""
        self._reported, self._refused = self._refused, {}
        lines = []
        every = self.history.latest.values()
        for hypothesis_id in sorted({each.hypothesis_id for each in every if each.requeue}):
            decision = self.history.decision_about(hypothesis_id)
            placed = self.queue.read(hypothesis_id)
            if decision is None or not decision.requeue or placed is None:
                continue
            if placed[0].state == "running" or placed[1].closed == "abandoned":
                continue
            # One that is done and not closed is on its way back: its last requeueing was cut off.
            if placed[0].state == "done":
                step = partial(self._bring_back, hypothesis_id, decision.reason)
                lines += self._attempt(hypothesis_id, step)
            lines += self._give_up(hypothesis_id)
        return lines

    def problems(self) -> list[str]:
        """Return the steps of this turn that could not be taken, and why."""
        return list(self._refused.values())

    def avoided_device(self, hypothesis_id: str) -> str | None:
        """Return the device that its latest run was lost with; another is preferred."""
        decision = self.history.decision_about(hypothesis_id)
        if decision is None or not is_lost(decision):
            return None
        return self._device_blamed(decision.experiment_id)

    def end_dead_claim(self, hypothesis_id: str, worker: str) -> list[str]:
        """End a claim of a worker that is gone for good; no line while its run lives on.

        One that cannot be ended now is tried again, and never stands in the way of the others.
        """
        return self._attempt(hypothesis_id, partial(self._end, hypothesis_id, worker))

    def _attempt(self, hypothesis_id: str, step: Callable[[], str]) -> list[str]:
        """Return the line of a step; of one that cannot be taken the reason, once."""
        try:
            line = step()
        except RECOVERABLE_ERRORS as error:
            line = f"{hypothesis_id} stays where it is: {describe(error)}"
            self._refused[hypothesis_id] = line
        return [line] if line and line != self._reported.get(hypothesis_id) else []

    def _bring_back(self, hypothesis_id: str, reason: str) -> str:
        self.queue.requeue(hypothesis_id)
        return f"{hypothesis_id} is queued again: {reason}"

    def _end(self, hypothesis_id: str, worker: str) -> str:
        placed = self.queue.read(hypothesis_id)
        if placed is None or placed[0] != QueuePlace("running", worker):
            return ""
        return end_claim(self.project, self.queue, placed[1], worker, self.history.latest)

    def _give_up(self, hypothesis_id: str) -> list[str]:
        """Abandon what waits again, if too many of its runs speak against their devices."""
        blamed = [
            experiment
            for experiment in self.history.attempts(hypothesis_id)
            if (decision := self.history.latest.get(experiment))
            and is_lost(decision)
            and self._device_blamed(experiment) is not None
        ]
        if len(blamed) < MAX_DEVICE_FAILURES:
            return []
        why = f"{MAX_DEVICE_FAILURES} of its runs were lost with their device"
        try:
            self.queue.abandon(hypothesis_id, why)
        except QueueError:
            return []  # a worker has just claimed it; the next turn sees what became of that
        return [f"{hypothesis_id} is abandoned: {why}"]


def _device_blamed(layout: Layout, experiment_id: str) -> str | None:
    """Return the device that a lost run speaks against; None where it speaks of none."""
    run = layout.run(experiment_id)
    result = load_or_none(Result, run.result)
    if result is None or not is_device_evidence(result):
        return None
    metadata = load_or_none(Metadata, run.metadata)
    return None if metadata is None else metadata.run.gpu_id or metadata.runtime.gpu_name
