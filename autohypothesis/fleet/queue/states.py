"""The queue of a search: a state is a folder, a step is one move that never overwrites.

Every step is taken under the lock `queue`; what is read is read without it. A kill between any two
system calls leaves a hypothesis in one state. Where the system cannot move exclusively it may be
seen in two: then the later one holds, and the next step removes the other. Content that changes
with a step (`closed`, `outcome`) is rewritten in place before the move, so two states mean that a
kill cut a step off:

- not in `done`, but `closed` is set: it was being finished; the next step moves it to `done`.
- in `done`, but `closed` is not set: it was being requeued; the observer requeues it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from autohypothesis.errors import QueueError, RecordError
from autohypothesis.fleet.queue.files import (
    DONE,
    PENDING,
    QueuePlace,
    QueueReader,
    best_first,
    newest_attempt,
)
from autohypothesis.records.files import sweep, write_json
from autohypothesis.records.ids import allocate_hypothesis, baseline_id
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Hypothesis, HypothesisState, Proposal
from autohypothesis.system import rename_exclusive

__all__ = ["Queue", "QueuePlace"]

BASELINE_PRIORITY = 1_000.0
"""Above every proposer's: the baseline is what all others are compared with."""
REPAIR_S = 60.0
"""Between two looks through the whole queue for what killed steps left."""
_SEE = "`python orchestrator.py hypotheses` lists them"

Closed = Literal["completed", "abandoned"]


class Queue(QueueReader):
    """The hypotheses of one tag, and the steps that move them.

    Raises:
        LockError: another process has held the queue for half a minute.
        QueueError: a hypothesis is not where a step begins, or something is in its way: to try
            again is of no use.
        RecordError: the disk is full, or takes no move now.
    """

    def __init__(self, layout: Layout, tag: str) -> None:
        super().__init__(layout, tag)
        self._repaired: float | None = None

    def reserve(self) -> str:
        """Return a new id for `add`: a caller that writes it down first can add exactly once."""
        return allocate_hypothesis(self.layout, self.tag)

    def add(
        self,
        proposal: Proposal,
        *,
        proposer: str,
        hypothesis_id: str | None = None,
        worker_id: str = "",
        platform_key: str = "",
    ) -> Hypothesis:
        """Take an idea in, pending, under a new id or one of `reserve`.

        Args:
            worker_id: the only worker that may run it, where there is one.
            platform_key: the beginning of the only platform key that it may run on.

        Raises:
            QueueError: that id is in the queue already.
        """
        with self._step("adding a hypothesis"):
            name = hypothesis_id or self.reserve()
            if places := self._places(name):
                raise QueueError(f"hypothesis {name} is {places[0]} already", hint=_SEE)
            return self._put(
                name, proposal, proposer=proposer, worker_id=worker_id, platform_key=platform_key
            )

    def add_baseline(self) -> Hypothesis | None:
        """Add the unchanged script, pending; return None if it is anywhere already."""
        name = baseline_id(self.tag)
        baseline = Proposal(
            title="baseline",
            rationale="the script as it is: what all others are compared with",
            priority=BASELINE_PRIORITY,
        )
        with self._step("adding the baseline"):
            return None if self._places(name) else self._put(name, baseline, proposer="baseline")

    def _put(self, name: str, proposal: Proposal, **more: str) -> Hypothesis:
        content = {field: getattr(proposal, field) for field in Proposal.model_fields}
        identity = {"hypothesis_id": name, "tag": self.tag, **more}
        hypothesis = Hypothesis.model_validate({**content, **identity})
        write_json(Path(self._path(name, PENDING)), hypothesis)
        return hypothesis

    def dispatch(self, hypothesis_id: str, worker: str) -> None:
        """Move pending -> dispatched to `worker`."""
        with self._step(f"dispatching {hypothesis_id}"):
            self._expect(hypothesis_id, ("pending",))
            self._move(hypothesis_id, PENDING, QueuePlace("dispatched", worker))

    def withdraw(self, hypothesis_id: str) -> None:
        """Move dispatched -> pending."""
        with self._step(f"withdrawing {hypothesis_id}"):
            self._move(hypothesis_id, self._expect(hypothesis_id, ("dispatched",)), PENDING)

    def claim(self, worker: str) -> Hypothesis | None:
        """Move the best that waits for `worker` to running; return None when nothing waits."""
        place = QueuePlace("dispatched", worker)
        if not self._names(place):
            return None  # a worker that looks often does not hold up the others
        refused: QueueError | None = None
        with self._step(f"a claim of {worker}"):
            loaded = filter(None, (self._load(name, place) for name in self._names(place)))
            for hypothesis in sorted(loaded, key=best_first):
                name = hypothesis.hypothesis_id
                if hypothesis.tag != self.tag or self._locate(name) != place:
                    continue
                try:
                    self._move(name, place, QueuePlace("running", worker))
                    return hypothesis
                except QueueError as error:
                    refused = error
        if refused is not None:
            raise refused
        return None

    def release(self, hypothesis_id: str, worker: str) -> None:
        """Move running -> dispatched: it was claimed, and never begun."""
        with self._step(f"releasing {hypothesis_id}"):
            place = self._expect(hypothesis_id, ("running",), worker)
            self._move(hypothesis_id, place, QueuePlace("dispatched", worker))

    def note_claim(self, hypothesis_id: str, worker: str, claimed: bool) -> None:
        """Note of a running one whether a hub gave the right to try it."""
        with self._step(f"noting the claim of {hypothesis_id}"):
            place = self._expect(hypothesis_id, ("running",), worker)
            self._rewrite(hypothesis_id, place, claimed=claimed)

    def finish(
        self, hypothesis_id: str, worker: str, *, closed: Closed = "completed", outcome: str = ""
    ) -> None:
        """Move running -> done. What is done that way already stays as it is."""
        with self._step(f"finishing {hypothesis_id}"):
            if not self._is_closed(hypothesis_id, closed):
                place = self._expect(hypothesis_id, ("running",), worker, end=False)
                self._close(hypothesis_id, place, closed, outcome)

    def abandon(self, hypothesis_id: str, outcome: str, *, closed: Closed = "abandoned") -> None:
        """Move pending or dispatched -> done, without a run."""
        with self._step(f"abandoning {hypothesis_id}"):
            if not self._is_closed(hypothesis_id, closed):
                place = self._expect(hypothesis_id, ("pending", "dispatched"), end=False)
                self._close(hypothesis_id, place, closed, outcome)

    def requeue(self, hypothesis_id: str) -> None:
        """Move done or running -> pending, as if it had never been tried."""
        with self._step(f"requeueing {hypothesis_id}"):
            place = self._expect(hypothesis_id, ("done", "running"), end=False)
            tried = newest_attempt(self.layout, hypothesis_id)
            self._rewrite(hypothesis_id, place, closed=None, outcome="", tried=tried)
            self._move(hypothesis_id, place, PENDING)

    @contextmanager
    def _step(self, doing: str) -> Iterator[None]:
        with hold(self.layout, "queue", doing=doing):
            if self._repaired is None or time.monotonic() - self._repaired > REPAIR_S:
                self._repair()
                self._repaired = time.monotonic()
            yield

    def _repair(self) -> None:
        """End every step that was cut off, and remove what killed writers left."""
        for place in self._folders():
            sweep(self.layout.hypotheses(*place))
            for name in self._names(place):
                self._locate(name)
        sweep(self.layout.hypotheses("done"))

    def _locate(self, name: str, *, end: bool = True) -> QueuePlace | None:
        """Return its place, after ending a step that was cut off; a closing only with `end`."""
        places = self._places(name)
        if not places:
            return None
        place = places[0]
        hypothesis = self._load(name, place)
        if hypothesis is None or hypothesis.tag != self.tag:
            return place
        for other in places[1:]:
            if self._load(name, other) is not None:
                with suppress(OSError):
                    os.unlink(self._path(name, other))
        if end and place != DONE and hypothesis.closed is not None:
            with suppress(QueueError, RecordError):  # no reason to stop the others
                self._move(name, place, DONE)
            return DONE
        return place

    def _expect(
        self,
        name: str,
        states: tuple[HypothesisState, ...],
        worker: str | None = None,
        *,
        end: bool = True,
    ) -> QueuePlace:
        """Return its place, which is in one of `states`, and of `worker` if one is given."""
        place = self._locate(name, end=end)
        if place is None:
            raise QueueError(f"hypothesis {name} is not in the queue", hint=_SEE)
        if place.state not in states or worker not in (None, place.worker):
            wish = f"{' or '.join(states)}{f' for {worker}' if worker else ''}"
            raise QueueError(f"hypothesis {name} is {place}, not {wish}", hint=_SEE)
        self._loaded(name, place)
        return place

    def _loaded(self, name: str, place: QueuePlace) -> Hypothesis:
        hypothesis, path = self._load(name, place), self._path(name, place)
        if hypothesis is None:
            raise QueueError(f"{path} is damaged", hint=f"see it with `cat {path}`")
        if hypothesis.tag != self.tag:
            raise QueueError(f"hypothesis {name} is of tag {hypothesis.tag!r}, not {self.tag!r}")
        return hypothesis

    def _is_closed(self, name: str, closed: Closed) -> bool:
        if self._locate(name, end=False) != DONE:
            return False
        hypothesis = self._load(name, DONE)
        return hypothesis is not None and hypothesis.closed == closed

    def _close(self, name: str, place: QueuePlace, closed: Closed, outcome: str) -> None:
        self._rewrite(name, place, closed=closed, outcome=outcome)
        self._move(name, place, DONE)

    def _rewrite(self, name: str, place: QueuePlace, **change: object) -> None:
        hypothesis = self._loaded(name, place)
        changed = hypothesis.model_copy(update=change)
        if changed != hypothesis:
            write_json(Path(self._path(name, place)), changed)

    def _move(self, name: str, old: QueuePlace, new: QueuePlace) -> None:
        source, target = Path(self._path(name, old)), Path(self._path(name, new))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            rename_exclusive(source, target)
        except OSError as error:
            why = f"{source} cannot be moved to {target}: {error.strerror or error}"
            in_its_way = isinstance(error, FileExistsError) and os.path.lexists(target)
            if in_its_way or not os.path.lexists(source):
                raise QueueError(why, hint=_SEE) from error
            raise RecordError(why, hint="see `df -h` and `ls -ld`") from error
