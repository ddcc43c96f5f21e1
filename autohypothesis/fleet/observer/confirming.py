"""Wins that wait for their confirmation: the runs that are missing are queued for any worker.

What is missing is what settle says at each turn, so a kill in between loses nothing, and a run that
is queued, begun or lost is found in the queue under the commit, the platform and the seed that it
is for. A base's run is queued once, however many changes wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autohypothesis.engine.confirmation import Repeat, UnconfirmedError
from autohypothesis.errors import AutohypothesisError, QueueError
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

    def turn(self, refused: Mapping[str, AutohypothesisError]) -> list[str]:
        """Queues what is missing, and takes back what nothing waits for; a line for each.

        Args:
            refused: what could not be decided, and why.

        Raises:
            LockError, RecordError: the queue cannot be written now.
        """
        wanted = {source_of(one): one for _, waits in waiting(refused) for one in waits.repeats}
        if not wanted and not self._may_hold_replicates():
            return []
        known = self.queue.sources()
        said = [self._order(source, one, known.get(source)) for source, one in wanted.items()]
        return [line for line in [*said, *self._take_back(wanted)] if line]

    def problems(self, refused: Mapping[str, AutohypothesisError]) -> list[str]:
        """Wins that wait for a run which was refused, or which said nothing about them."""
        found, known = [], self.queue.sources() if any(waiting(refused)) else {}
        for name, waits in waiting(refused):
            for one in waits.repeats:
                hypothesis_id = known.get(source_of(one))
                if hypothesis_id and (why := self._hopeless(hypothesis_id)):
                    found.append(f"{name} waits for {hypothesis_id}, {one.title}: {why}")
        return found

    def _order(self, source: str, repeat: Repeat, hypothesis_id: str | None) -> str:
        """Queues one run, unless it is in the queue, or has been."""
        if hypothesis_id is None:
            proposal = Proposal(
                title=repeat.title,
                rationale=repeat.rationale,
                priority=REPEAT_PRIORITY,
                source_id=source,
                replicates=repeat.first,
                seed=repeat.seed,
            )
            added = self.queue.add(proposal, proposer="observer")
            return f"{added.hypothesis_id} is queued: {added.title}"
        one = self._ended(hypothesis_id)
        if one is not None and (one.outcome == NEEDLESS or self._ran_elsewhere(one, repeat)):
            self.queue.requeue(hypothesis_id)
            return f"{hypothesis_id} is queued again: {one.title}"
        return ""

    def _take_back(self, wanted: Iterable[str]) -> list[str]:
        """What is queued for a win that was decided meanwhile, or whose base is none any more."""
        still, said = set(wanted), []
        for place, one in self.queue.placed():
            if not _is_replicate(place, one) or one.source_id in still:
                continue
            try:
                self.queue.abandon(one.hypothesis_id, NEEDLESS)
            except QueueError:
                continue  # a worker has just claimed it
            said.append(f"{one.hypothesis_id} is taken back: {NEEDLESS}")
        return said

    def _may_hold_replicates(self) -> bool:
        return any(_is_replicate(place, one) for place, one in self.queue.placed())

    def _ended(self, hypothesis_id: str) -> Hypothesis | None:
        found = self.queue.read(hypothesis_id)
        return found[1] if found is not None and found[0].state == "done" else None

    def _ran_elsewhere(self, one: Hypothesis, repeat: Repeat) -> bool:
        """Whether its worker turned out to be on another platform, and is known for that now."""
        decision = self.chronicle.verdict(one.hypothesis_id)
        key = decision.platform_key if decision is not None else ""
        return bool(key) and key != repeat.platform_key

    def _hopeless(self, hypothesis_id: str) -> str:
        one = self._ended(hypothesis_id)
        if one is None or one.outcome == NEEDLESS:
            return ""
        if one.closed == "abandoned":
            return f"refused, {one.outcome}"
        decision = self.chronicle.verdict(hypothesis_id)
        if decision is None or decision.requeue:
            return ""
        return f"{decision.experiment_id} says nothing about it; decide it by hand"


def waiting(
    refused: Mapping[str, AutohypothesisError],
) -> list[tuple[str, UnconfirmedError]]:
    """The experiments among `refused` that only wait for their replicates."""
    return [(name, why) for name, why in refused.items() if isinstance(why, UnconfirmedError)]


def awaiting(refused: Mapping[str, AutohypothesisError]) -> list[dict[str, Any]]:
    """The same as the status says it."""
    return [
        {
            "experiment_id": name,
            "missing": len(why.missing),
            "wanted": why.wanted,
            "found": why.said,
        }
        for name, why in waiting(refused)
    ]


def source_of(repeat: Repeat) -> str:
    """The same for the same run, whoever waits for it."""
    key = repeat.platform_key[:16]
    return f"{MARK}{repeat.commit[:12]}-{repeat.seed}{ON}{key}"


def _is_replicate(place: Place, one: Hypothesis) -> bool:
    """Whether it was ordered here, and nobody has begun it."""
    ours = one.proposer == "observer" and one.source_id.startswith(MARK)
    return ours and place.state in ("pending", "dispatched")
