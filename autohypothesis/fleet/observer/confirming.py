"""Wins that need runs: what is missing is queued for any worker.

It is derived from the decisions at each turn, so a kill in between loses nothing, and a run that is
queued, begun or lost is found in the queue under the commit, the platform and the seed that it is
for. A base's run is queued once, however many changes wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autohypothesis.engine.decide import MissingRun, NeedsRuns
from autohypothesis.errors import QueueError
from autohypothesis.fleet.observer.handout import ON
from autohypothesis.fleet.observer.opening import REPEAT_PRIORITY
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Place, Queue
from autohypothesis.schema import Hypothesis, Proposal

MARK = "confirm-"
NEEDLESS = "nothing waits for it any more"
"""The outcome of a run that was queued and then not wanted; it may be wanted again."""


@dataclass(frozen=True)
class Confirming:
    """The replicates of one search, asked about turn after turn."""

    queue: Queue
    chronicle: Chronicle

    def turn(self, wins: Sequence[NeedsRuns]) -> list[str]:
        """Queue what is missing, and take back what nothing waits for; a line for each.

        Raises:
            LockError, RecordError: the queue cannot be written now.
        """
        wanted = {source_of(run): run for win in wins for run in win.runs}
        if not wanted and not self._may_hold_replicates():
            return []
        known = self.queue.sources()
        lines = [self._order(source, run, known.get(source)) for source, run in wanted.items()]
        return [line for line in [*lines, *self._take_back(wanted)] if line]

    def problems(self, wins: Sequence[NeedsRuns]) -> list[str]:
        """Wins that wait for a run which was refused, or which said nothing about them."""
        problems, known = [], self.queue.sources() if wins else {}
        for win in wins:
            for run in win.runs:
                hypothesis_id = known.get(source_of(run))
                if hypothesis_id and (why := self._hopeless(hypothesis_id)):
                    title = run.experiment.title
                    problems.append(
                        f"{win.experiment_id} waits for {hypothesis_id}, {title}: {why}"
                    )
        return problems

    def _order(self, source: str, run: MissingRun, hypothesis_id: str | None) -> str:
        """Queue one run, unless it is in the queue, or has been."""
        if hypothesis_id is None:
            wanted = run.experiment
            proposal = Proposal(
                title=wanted.title,
                rationale=wanted.rationale,
                priority=REPEAT_PRIORITY,
                source_id=source,
                replicates=wanted.replicates,
                seed=wanted.seed,
            )
            added = self.queue.add(proposal, proposer="observer")
            return f"{added.hypothesis_id} is queued: {added.title}"
        ended = self._ended(hypothesis_id)
        if ended is not None and (ended.outcome == NEEDLESS or self._ran_elsewhere(ended, run)):
            self.queue.requeue(hypothesis_id)
            return f"{hypothesis_id} is queued again: {ended.title}"
        return ""

    def _take_back(self, wanted: Iterable[str]) -> list[str]:
        """What is queued for a win that was decided meanwhile, or whose base is none any more."""
        still, lines = set(wanted), []
        for place, hypothesis in self.queue.placed():
            if not _is_replicate(place, hypothesis) or hypothesis.source_id in still:
                continue
            try:
                self.queue.abandon(hypothesis.hypothesis_id, NEEDLESS)
            except QueueError:
                continue  # a worker has just claimed it
            lines.append(f"{hypothesis.hypothesis_id} is taken back: {NEEDLESS}")
        return lines

    def _may_hold_replicates(self) -> bool:
        return any(_is_replicate(place, one) for place, one in self.queue.placed())

    def _ended(self, hypothesis_id: str) -> Hypothesis | None:
        there = self.queue.read(hypothesis_id)
        return there[1] if there is not None and there[0].state == "done" else None

    def _ran_elsewhere(self, hypothesis: Hypothesis, run: MissingRun) -> bool:
        """Whether its worker turned out to be on another platform, and is known for that now."""
        decision = self.chronicle.verdict(hypothesis.hypothesis_id)
        key = decision.platform_key if decision is not None else ""
        return bool(key) and key != run.platform_key

    def _hopeless(self, hypothesis_id: str) -> str:
        ended = self._ended(hypothesis_id)
        if ended is None or ended.outcome == NEEDLESS:
            return ""
        if ended.closed == "abandoned":
            return f"refused, {ended.outcome}"
        decision = self.chronicle.verdict(hypothesis_id)
        if decision is None or decision.requeue:
            return ""
        return f"{decision.experiment_id} says nothing about it; decide it by hand"


def awaiting(wins: Sequence[NeedsRuns]) -> list[dict[str, Any]]:
    """The wins that need runs, for the status."""
    return [
        {
            "experiment_id": win.experiment_id,
            "missing": len(win.runs),
            "wanted": win.wanted,
            "found": win.words,
        }
        for win in wins
    ]


def source_of(run: MissingRun) -> str:
    """The same for the same run, whichever win waits for it."""
    key = run.platform_key[:16]
    return f"{MARK}{run.commit[:12]}-{run.experiment.seed}{ON}{key}"


def _is_replicate(place: Place, hypothesis: Hypothesis) -> bool:
    """Whether it was ordered here, and no worker has begun it."""
    ours = hypothesis.proposer == "observer" and hypothesis.source_id.startswith(MARK)
    return ours and place.state in ("pending", "dispatched")
