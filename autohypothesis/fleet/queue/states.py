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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

from autohypothesis.errors import QueueError, RecordError
from autohypothesis.fleet.queue.files import (
    DONE,
    OPEN,
    PENDING,
    QueueFiles,
    QueuePlace,
    best_first,
    newest_attempt,
    of_tag,
)
from autohypothesis.records.files import sweep, write_json
from autohypothesis.records.ids import allocate_hypothesis, baseline_id
from autohypothesis.records.layout import Layout, checked_id
from autohypothesis.records.locks import hold
from autohypothesis.schema import Hypothesis, HypothesisState, Problem, Proposal
from autohypothesis.system import rename_exclusive

__all__ = ["Queue", "QueuePlace"]

BASELINE_PRIORITY = 1_000.0
"""Above every proposer's: the baseline is what all others are compared with."""
REPAIR_S = 60.0
"""Between two looks through the whole queue for what killed steps left."""
_SEE = "`python orchestrator.py hypotheses` lists them"

Closed = Literal["completed", "abandoned"]


class Queue:
    """The hypotheses of one tag. Another tag's lie beside them and are left alone.

    Raises:
        LockError: another process has held the queue for half a minute.
        QueueError: a hypothesis is not where a step begins, or something is in its way: to try
            again is of no use.
        RecordError: the disk is full, or takes no move now.
    """

    def __init__(self, layout: Layout, tag: str) -> None:
        self.layout = layout
        self.tag = checked_id(tag)
        self._files = QueueFiles(layout)
        self._repaired: float | None = None

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def pending(self) -> list[Hypothesis]:
        """Return what waits for any worker, best first: highest priority, then the oldest id."""
        return _best_first([waiting for place, waiting in self.placed() if place == PENDING])

    def dispatched(self, worker: str | None = None) -> dict[str, list[Hypothesis]]:
        """Return worker -> what waits for it, best first; `worker` is a key even without any."""
        return self._by_worker("dispatched", worker)

    def running(self, worker: str | None = None) -> dict[str, list[Hypothesis]]:
        """Return worker -> what it has claimed: the one it runs, and the next."""
        return self._by_worker("running", worker)

    def placed(self) -> list[tuple[QueuePlace, Hypothesis]]:
        """Return what is open, with where it is, in no order."""
        resolved = (self._files.resolve(*seen) for seen in self._files.snapshot().items())
        return [
            (place, hypothesis)
            for place, hypothesis in filter(None, resolved)
            if place != DONE and hypothesis.tag == self.tag
        ]

    def open(self) -> list[Hypothesis]:
        """Return what is pending, dispatched or running, best first."""
        return _best_first([hypothesis for _, hypothesis in self.placed()])

    def done_ids(self) -> list[str]:
        """Return the ids in the folder `done`; no file is read."""
        return [name for name in self._files.done_names() if self._is_ours(name)]

    def done(self) -> list[Hypothesis]:
        """Return what has ended, by id."""
        return [ended for ended in self._files.done() if ended.tag == self.tag]

    def read(self, hypothesis_id: str) -> tuple[QueuePlace, Hypothesis] | None:
        """Return its place and content; None when it is not there, or is one of `problems`."""
        return self._files.resolve(hypothesis_id, self._files.places(hypothesis_id))

    def sources(self) -> dict[str, str]:
        """Return `source_id` -> id, of the hypotheses that have a source."""
        known = (*self.open(), *self.done())
        return {each.source_id: each.hypothesis_id for each in known if each.source_id}

    def counts(self) -> dict[str, int]:
        """Return state -> how many, by names alone: damaged files count, other tags' do not."""
        counts: dict[str, int] = dict.fromkeys((*OPEN, "done"), 0)
        for name, places in self._files.snapshot().items():
            counts[places[0].state] += self._is_ours(name)
        counts["done"] = len(self.done_ids())
        return counts

    @property
    def problems(self) -> list[Problem]:
        """Files that could not be used at the last look; they stay where they are."""
        return self._files.problems()

    def _by_worker(self, state: HypothesisState, worker: str | None) -> dict[str, list[Hypothesis]]:
        given: dict[str, list[Hypothesis]] = {worker: []} if worker is not None else {}
        for place, hypothesis in self.placed():
            if place.worker is not None and place.state == state and worker in (None, place.worker):
                given.setdefault(place.worker, []).append(hypothesis)
        return {name: _best_first(several) for name, several in sorted(given.items())}

    def _is_ours(self, name: str) -> bool:
        return of_tag(name, self.tag)

    # ── adding ────────────────────────────────────────────────────────────────────────────

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
        content = {name: getattr(proposal, name) for name in Proposal.model_fields}
        with self._step("adding a hypothesis"):
            name = hypothesis_id or self.reserve()
            places = self._files.places(name)
            if places:
                raise QueueError(f"hypothesis {name} is {places[0]} already", hint=_SEE)
            return self._put(content, name, proposer, worker_id, platform_key)

    def add_baseline(self) -> Hypothesis | None:
        """Add the unchanged script, pending; return None if it is anywhere already."""
        name = baseline_id(self.tag)
        content = {
            "title": "baseline",
            "rationale": "the script as it is: what all others are compared with",
            "priority": BASELINE_PRIORITY,
        }
        with self._step("adding the baseline"):
            return None if self._files.places(name) else self._put(content, name, "baseline")

    def _put(
        self,
        content: Mapping[str, Any],
        name: str,
        proposer: str,
        worker_id: str = "",
        platform_key: str = "",
    ) -> Hypothesis:
        hypothesis = Hypothesis.model_validate(
            {
                **content,
                "hypothesis_id": name,
                "tag": self.tag,
                "proposer": proposer,
                "worker_id": worker_id,
                "platform_key": platform_key,
            }
        )
        write_json(self._files.path(name, PENDING), hypothesis)
        return hypothesis

    # ── moving ────────────────────────────────────────────────────────────────────────────

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
        if not self._files.names(QueuePlace("dispatched", worker)):
            return None  # a worker that looks often does not hold up the others
        refused: QueueError | None = None
        with self._step(f"a claim of {worker}"):
            for hypothesis in self._waiting_for(worker):
                name, waiting = hypothesis.hypothesis_id, QueuePlace("dispatched", worker)
                if self._locate(name) != waiting:
                    continue
                try:
                    self._move(name, waiting, QueuePlace("running", worker))
                    return hypothesis
                except QueueError as error:
                    refused = error
        if refused is not None:
            raise refused
        return None

    def _waiting_for(self, worker: str) -> list[Hypothesis]:
        place = QueuePlace("dispatched", worker)
        loaded = (self._files.load(name, place) for name in self._files.names(place))
        return _best_first([each for each in loaded if each and each.tag == self.tag])

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

    # ── steps ─────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _step(self, doing: str) -> Iterator[None]:
        with hold(self.layout, "queue", doing=doing):
            if self._repaired is None or time.monotonic() - self._repaired > REPAIR_S:
                self._repair()
                self._repaired = time.monotonic()
            yield

    def _repair(self) -> None:
        """End every step that was cut off, and remove what killed writers left."""
        for place in self._files.folders():
            sweep(self.layout.hypotheses(place.state, place.worker))
            if place != DONE:
                for name in self._files.names(place):
                    self._locate(name)

    def _locate(self, name: str, *, end: bool = True) -> QueuePlace | None:
        """Return its place, after ending a step that was cut off; a closing only with `end`."""
        places = self._files.places(name)
        if not places:
            return None
        place = places[0]
        hypothesis = self._files.load(name, place)
        if hypothesis is None or hypothesis.tag != self.tag:
            return place
        for other in places[1:]:
            if self._files.load(name, other) is not None:
                with suppress(OSError):
                    os.unlink(self._files.path(name, other))
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
        hypothesis = self._files.load(name, place)
        path = self._files.path(name, place)
        if hypothesis is None:
            raise QueueError(f"{path} is damaged", hint=f"see it with `cat {path}`")
        if hypothesis.tag != self.tag:
            raise QueueError(f"hypothesis {name} is of tag {hypothesis.tag!r}, not {self.tag!r}")
        return hypothesis

    def _is_closed(self, name: str, closed: Closed) -> bool:
        if self._locate(name, end=False) != DONE:
            return False
        hypothesis = self._files.load(name, DONE)
        return hypothesis is not None and hypothesis.closed == closed

    def _close(self, name: str, place: QueuePlace, closed: Closed, outcome: str) -> None:
        self._rewrite(name, place, closed=closed, outcome=outcome)
        self._move(name, place, DONE)

    def _rewrite(self, name: str, place: QueuePlace, **change: object) -> None:
        hypothesis = self._loaded(name, place)
        changed = hypothesis.model_copy(update=change)
        if changed != hypothesis:
            write_json(self._files.path(name, place), changed)

    def _move(self, name: str, old: QueuePlace, new: QueuePlace) -> None:
        source, target = self._files.path(name, old), self._files.path(name, new)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            rename_exclusive(source, target)
        except OSError as error:
            why = f"{source} cannot be moved to {target}: {error.strerror or error}"
            in_its_way = isinstance(error, FileExistsError) and os.path.lexists(target)
            if in_its_way or not os.path.lexists(source):
                raise QueueError(why, hint=_SEE) from error
            raise RecordError(why, hint="see `df -h` and `ls -ld`") from error


def _best_first(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=best_first)
