"""Who gets what: one hypothesis waits for each worker, the baseline comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from autohypothesis.errors import QueueError
from autohypothesis.fleet.observer.crew import Crew
from autohypothesis.fleet.observer.requeue import Returns
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.schema import Hypothesis

FOR = "@"
"""A source id of the observer's own that ends in `@<worker>` is for that worker alone."""
ON = "#"
"""One that ends in `#<key>` is for workers on the platform whose key begins so."""


@dataclass(frozen=True)
class Handout:
    """One round of giving out work."""

    queue: Queue
    returns: Returns
    crew: Crew
    platforms: Mapping[str, str] = field(default_factory=dict)
    """Worker -> the key of the platform that it ran on last."""
    alone: bool = False
    """The fleet shares, and nobody can be asked now: what nobody else tries comes first."""

    def give(self, may_begin: Callable[[Hypothesis], bool], room: int | None) -> list[str]:
        """Dispatch to every ready worker that nothing waits for; a line for each.

        Args:
            room: how many more may begin; None: as many as there are workers.
        """
        pending = [one for one in self.queue.pending() if may_begin(one)]
        if self.alone:
            pending.sort(key=_contested)
        said: list[str] = []
        for worker in self._without_work():
            if room is not None and len(said) >= room:
                break
            chosen = next((one for one in pending if self.suits(one, worker)), None)
            if chosen is None:
                continue
            pending.remove(chosen)
            try:
                self.queue.dispatch(chosen.hypothesis_id, worker)
            except QueueError:
                continue  # a person or a `dispatch` was quicker
            said.append(f"{chosen.hypothesis_id} is dispatched to {worker}")
        return said

    def take_back(self, *, all: bool = False) -> list[str]:
        """Withdraw what waits for a worker that cannot take it, or everything."""
        said = []
        for worker, waiting in self.queue.dispatched().items():
            if worker in self.crew.ready and not all:
                continue
            for one in waiting:
                try:
                    self.queue.withdraw(one.hypothesis_id)
                except QueueError:
                    continue  # it was claimed this very moment
                said.append(f"{one.hypothesis_id} is taken back from {worker}")
        return said

    def idle(self) -> list[str]:
        """Ready workers that neither run anything nor have anything waiting."""
        running, waiting = self.queue.running(), self.queue.dispatched()
        return [name for name in self.crew.ready if not running.get(name) and not waiting.get(name)]

    def _without_work(self) -> Iterator[str]:
        """Ready workers that nothing waits for, those with nothing to do first."""
        running, waiting = self.queue.running(), self.queue.dispatched()
        free = [name for name in self.crew.ready if not waiting.get(name)]
        yield from sorted(free, key=lambda name: len(running.get(name, ())))

    def has_taker(self, hypothesis: Hypothesis) -> bool:
        """Whether some ready worker can be given it; true of all before the first has come."""
        ready = self.crew.ready
        return not ready or any(self.suits(hypothesis, worker) for worker in ready)

    def suits(self, hypothesis: Hypothesis, worker: str) -> bool:
        """Its own worker or platform, where it has one; not the device that it was lost with."""
        if hypothesis.proposer == "observer":
            own, key = _after(FOR, hypothesis.source_id), _after(ON, hypothesis.source_id)
            if self.crew.worker(own) is not None:
                return own == worker
            if key and not self._is_on(worker, key):
                return False
        device = self.returns.avoided_device(hypothesis.hypothesis_id)
        if device is None or not self.crew.has_device(worker, device):
            return True
        return all(self.crew.has_device(other, device) for other in self.crew.ready)

    def _is_on(self, worker: str, key: str) -> bool:
        """Whether a worker runs on a platform, as far as is known.

        One that has run nothing yet may be on it, unless the others are on several.
        """
        if worker in self.platforms:
            return self.platforms[worker].startswith(key)
        known = [self.platforms[one] for one in self.crew.ready if one in self.platforms]
        are_on_it = [one.startswith(key) for one in known]
        return all(are_on_it) or not any(are_on_it)


def _after(sign: str, source_id: str) -> str:
    return source_id.rpartition(sign)[2] if sign in source_id else ""


def _contested(one: Hypothesis) -> int:
    """What is claimed, then what nobody claims, then what somebody else may be trying."""
    if one.claimed:
        return 0
    is_new = one.config_overrides or one.patch or one.instructions
    return 2 if is_new and not one.replicates else 1
