"""The queue of a search: a state is a folder, a step is one move that never overwrites.

Every step is taken under the lock `queue`; what is read is read without it. A kill between any two
system calls leaves a hypothesis in one state. Where the system cannot move exclusively it may be
seen in two: then the later one holds, and the next step removes the other. Content that changes
with a step (`closed`, `outcome`) is rewritten in place before the move, so two states mean that a
kill cut a step off:

- not in `done`, but `closed` is set: it was being finished; the next step moves it to `done`.
- in `done`, but `closed` is not set: it was being requeued; the observer requeues it.

A file that cannot be used is one of the `problems`, and stays where it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from autohypothesis.errors import QueueError, RecordError, faults_in
from autohypothesis.records.files import (
    MTIME_GRANULARITY_NS,
    parse_json,
    read_with_status,
    remove_stale_temporaries,
    shown,
    write_json,
)
from autohypothesis.records.ids import (
    MAX_LENGTH,
    allocate_hypothesis,
    baseline_id,
    experiment_stem,
    slug,
)
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.records.locks import hold
from autohypothesis.schema import Hypothesis, HypothesisState, Problem, Proposal
from autohypothesis.system import rename_exclusive

BASELINE_PRIORITY = 1_000.0
"""Priority of the baseline, above every proposal: all others are compared with it."""
REPAIR_S = 60.0
"""Interval of searching the whole queue for what killed steps left."""
_SEE = "`python orchestrator.py hypotheses` lists them"

MAX_LIST_RETRIES = 10
"""Tries of listing a queue in motion until two consecutive listings agree."""
_GENERATED_ID = re.compile(r"(h-.+)-\d{4,9}|(baseline-.+)")
_COUNTER = "-99999"
"""Room that `ids` leaves behind the stem of a tag."""

Closed = Literal["completed", "abandoned"]


class QueuePlace(NamedTuple):
    """State of a hypothesis in the queue; `worker` for the states that have one."""

    state: HypothesisState
    worker: str | None = None

    def __str__(self) -> str:
        return self.state if self.worker is None else f"{self.state} for {self.worker}"


DONE = QueuePlace("done")
PENDING = QueuePlace("pending")
_RANK = {"pending": 0, "dispatched": 1, "running": 2, "done": 3}


def of_tag(name: str, tag: str) -> bool:
    """Return whether `tag` may have this id: it was not made for another tag."""
    made = _GENERATED_ID.fullmatch(name)
    if made is None:
        return True
    if made[2] is not None:
        return name == baseline_id(tag)
    return made[1] == slug(f"h-{tag}", MAX_LENGTH - len(_COUNTER))


def newest_attempt(layout: Layout, hypothesis_id: str) -> int:
    """Return the number of its newest experiment, planned or begun; 0 before the first."""
    form = re.compile(re.escape(experiment_stem(hypothesis_id)) + r"-(\d{1,9})(\.json)?")
    numbers = [0]
    for folder in (layout.plans, layout.runs):
        with suppress(OSError):
            numbers += [int(match[1]) for match in map(form.fullmatch, os.listdir(folder)) if match]
    return max(numbers)


def best_first(hypothesis: Hypothesis) -> tuple[float, str]:
    """Return a key that sorts by priority, the highest first, then by age."""
    return -(hypothesis.priority or 0.0), hypothesis.hypothesis_id


class Queue:
    """The hypotheses of one tag. Those of other tags share the folders and are ignored.

    Raises:
        LockError: another process has held the queue for half a minute.
        QueueError: a hypothesis is not where a step begins, or something is in its way: to try
            again is of no use.
        RecordError: the disk is full, or takes no move now.
    """

    def __init__(self, layout: Layout, tag: str) -> None:
        self.layout = layout
        self.tag = checked_id(tag)
        self._folder = cache(lambda place: str(layout.hypotheses(*place)))  # asked for very often
        self._read: dict[str, tuple[tuple[int, ...], Hypothesis | None, str]] = {}
        """Path -> signature, content, and otherwise what is wrong with it."""
        self._done: tuple[int, list[str], list[Hypothesis] | None] = (0, [], None)
        """When the folder changed last, its names, and its content once it was read."""
        self._repaired: float | None = None

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    def pending(self) -> list[Hypothesis]:
        """Return what waits for any worker, best first: highest priority, then the oldest id."""
        return _sorted(waiting for place, waiting in self.placed() if place == PENDING)

    def dispatched(self, worker: str | None = None) -> dict[str, list[Hypothesis]]:
        """Return worker -> what waits for it, best first; `worker` is a key even without any."""
        return self._by_worker("dispatched", worker)

    def running(self, worker: str | None = None) -> dict[str, list[Hypothesis]]:
        """Return worker -> what it has claimed: the one it runs, and the next."""
        return self._by_worker("running", worker)

    def placed(self) -> list[tuple[QueuePlace, Hypothesis]]:
        """Return what is open, with where it is, in no order."""
        resolved = (self._resolve(*seen) for seen in self._snapshot().items())
        return [
            (place, hypothesis)
            for place, hypothesis in filter(None, resolved)
            if place != DONE and hypothesis.tag == self.tag
        ]

    def open(self) -> list[Hypothesis]:
        """Return what is pending, dispatched or running, best first."""
        return _sorted(hypothesis for _, hypothesis in self.placed())

    def queued_before(self, hypothesis: Hypothesis) -> list[Hypothesis]:
        """Return what is open and was queued earlier: of two that are the same, the first stays."""
        age = (hypothesis.created_at, hypothesis.hypothesis_id)
        return [other for other in self.open() if (other.created_at, other.hypothesis_id) < age]

    def done_ids(self) -> list[str]:
        """Return the ids in the folder `done`; no file is read."""
        return [name for name in self._list_done() if of_tag(name, self.tag)]

    def done(self) -> list[Hypothesis]:
        """Return what has ended, by id; not read again while the folder is as it was."""
        names = self._list_done()
        changed, _, ended = self._done
        if ended is None:
            ended = [each for name in names if (each := self._load(name, DONE))]
            self._done = (changed, names, ended)
        return [each for each in ended if each.tag == self.tag]

    def read(self, hypothesis_id: str) -> tuple[QueuePlace, Hypothesis] | None:
        """Return its place and content; None when it is not there, or is one of `problems`."""
        return self._resolve(hypothesis_id, self._places(hypothesis_id))

    def sources(self) -> dict[str, str]:
        """Return `source_id` -> id, of the hypotheses that have a source."""
        known = (*self.open(), *self.done())
        return {each.source_id: each.hypothesis_id for each in known if each.source_id}

    def counts(self) -> dict[str, int]:
        """Return state -> how many, by names alone: damaged files count, other tags' do not."""
        counts: dict[str, int] = dict.fromkeys(_RANK, 0)
        for name, places in self._snapshot().items():
            counts[places[0].state] += of_tag(name, self.tag)
        counts["done"] = len(self.done_ids())
        return counts

    @property
    def problems(self) -> list[Problem]:
        """Files that could not be used at the last look; they stay where they are."""
        for path in [path for path in self._read if not os.path.lexists(path)]:
            del self._read[path]
        root = f"{self.layout.root}/"
        return [
            Problem(path=shown(path.removeprefix(root)), reason=shown(wrong))
            for path, (_, _, wrong) in sorted(self._read.items())
            if wrong
        ]

    def _by_worker(self, state: HypothesisState, worker: str | None) -> dict[str, list[Hypothesis]]:
        given: dict[str, list[Hypothesis]] = {worker: []} if worker is not None else {}
        for place, hypothesis in self.placed():
            if place.worker is not None and place.state == state and worker in (None, place.worker):
                given.setdefault(place.worker, []).append(hypothesis)
        return {name: _sorted(several) for name, several in sorted(given.items())}

    # ── steps ─────────────────────────────────────────────────────────────────────────────────

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
            self._require_state(hypothesis_id, ("pending",))
            self._move(hypothesis_id, PENDING, QueuePlace("dispatched", worker))

    def withdraw(self, hypothesis_id: str) -> None:
        """Move dispatched -> pending."""
        with self._step(f"withdrawing {hypothesis_id}"):
            self._move(hypothesis_id, self._require_state(hypothesis_id, ("dispatched",)), PENDING)

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
                if hypothesis.tag != self.tag or self._repair_and_locate(name) != place:
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
            place = self._require_state(hypothesis_id, ("running",), worker)
            self._move(hypothesis_id, place, QueuePlace("dispatched", worker))

    def note_claim(self, hypothesis_id: str, worker: str, claimed: bool) -> None:
        """Note of a running one whether a hub gave the right to try it."""
        with self._step(f"noting the claim of {hypothesis_id}"):
            place = self._require_state(hypothesis_id, ("running",), worker)
            self._rewrite(hypothesis_id, place, claimed=claimed)

    def finish(
        self, hypothesis_id: str, worker: str, *, closed: Closed = "completed", outcome: str = ""
    ) -> None:
        """Move running -> done. What is done that way already stays as it is."""
        with self._step(f"finishing {hypothesis_id}"):
            self._close(hypothesis_id, ("running",), worker, closed, outcome)

    def abandon(self, hypothesis_id: str, outcome: str, *, closed: Closed = "abandoned") -> None:
        """Move pending or dispatched -> done, without a run."""
        with self._step(f"abandoning {hypothesis_id}"):
            self._close(hypothesis_id, ("pending", "dispatched"), None, closed, outcome)

    def requeue(self, hypothesis_id: str) -> None:
        """Move done or running -> pending, as if it had never been tried."""
        with self._step(f"requeueing {hypothesis_id}"):
            place = self._require_state(hypothesis_id, ("done", "running"), end=False)
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
            remove_stale_temporaries(self.layout.hypotheses(*place))
            for name in self._names(place):
                self._repair_and_locate(name)
        remove_stale_temporaries(self.layout.hypotheses("done"))

    def _repair_and_locate(self, name: str, *, end: bool = True) -> QueuePlace | None:
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

    def _require_state(
        self,
        name: str,
        states: tuple[HypothesisState, ...],
        worker: str | None = None,
        *,
        end: bool = True,
    ) -> QueuePlace:
        """Return its place, which is in one of `states`, and of `worker` if one is given."""
        place = self._repair_and_locate(name, end=end)
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

    def _close(
        self,
        name: str,
        states: tuple[HypothesisState, ...],
        worker: str | None,
        closed: Closed,
        outcome: str,
    ) -> None:
        done = self._load(name, DONE) if self._repair_and_locate(name, end=False) == DONE else None
        if done is None or done.closed != closed:
            place = self._require_state(name, states, worker, end=False)
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

    # ── folders and files ─────────────────────────────────────────────────────────────────────

    def _path(self, name: str, place: QueuePlace) -> str:
        return f"{self._folder(place)}/{name}.json"

    def _folders(self) -> Iterator[QueuePlace]:
        yield PENDING
        for state in ("dispatched", "running"):
            with suppress(OSError):
                workers = sorted(filter(ID.fullmatch, os.listdir(self._folder((state,)))))
                yield from (QueuePlace(state, worker) for worker in workers)

    def _names(self, place: QueuePlace) -> list[str]:
        """Return the ids in one folder. A file whose name is no id is a problem, and left out."""
        folder = self._folder(place)
        try:
            files = os.listdir(folder)
        except OSError:
            return []
        names = []
        for file in files:
            stem, _, suffix = file.rpartition(".")
            if suffix != "json" or file.startswith("."):
                continue
            if ID.fullmatch(stem):
                names.append(stem)
            else:
                self._read[f"{folder}/{file}"] = ((), None, "has a name that is no id")
        return sorted(names)

    def _list_done(self) -> list[str]:
        """Return the names in `done`; not listed again while the folder is as it was."""
        changed = 0  # unknown, or too recent to tell changes apart
        with suppress(OSError):
            at = os.stat(self._folder(DONE)).st_mtime_ns
            changed = at if _is_old(at) else 0
        if not changed or changed != self._done[0]:
            self._done = (changed, self._names(DONE), None)
        return self._done[1]

    def _snapshot(self) -> dict[str, list[QueuePlace]]:
        """Return open id -> where it is seen, latest state first, without a lock.

        An id that is done as well is left out: of two states the later one holds.
        """
        before = self._seen()
        for _ in range(MAX_LIST_RETRIES):
            seen = self._seen()
            if seen == before:
                break
            before = seen
        for name, places in before.items():
            self._order(name, places)
        return {name: places for name, places in before.items() if places[0] != DONE}

    def _seen(self) -> dict[str, list[QueuePlace]]:
        seen: dict[str, list[QueuePlace]] = {}
        for place in self._folders():
            for name in self._names(place):
                seen.setdefault(name, []).insert(0, place)
        return seen

    def _places(self, name: str) -> list[QueuePlace]:
        """Return every folder that has this id; the one that holds first.

        Raises:
            UsageError: it is no id.
        """
        checked_id(name)
        places = [place for place in self._folders() if os.path.lexists(self._path(name, place))]
        places.reverse()
        self._order(name, places)
        return places

    def _order(self, name: str, places: list[QueuePlace]) -> None:
        """Put the latest state first, but what can be read before what cannot."""
        if os.path.lexists(self._path(name, DONE)):
            places.insert(0, DONE)
        if len(places) > 1:
            usable = {place for place in places if self._load(name, place)}
            places.sort(key=lambda place: (place in usable, _RANK[place.state]), reverse=True)

    def _resolve(self, name: str, places: list[QueuePlace]) -> tuple[QueuePlace, Hypothesis] | None:
        """Return place and content; None when it is nowhere, or cannot be read."""
        for _ in range(MAX_LIST_RETRIES):
            if not places:
                return None
            hypothesis = self._load(name, places[0])
            if hypothesis is not None:
                return places[0], hypothesis
            if os.path.lexists(self._path(name, places[0])):
                return None
            places = self._places(name)
        return None

    def _load(self, name: str, place: QueuePlace) -> Hypothesis | None:
        """Return the hypothesis, or None: the file is gone, or it is one of `problems`."""
        path = self._path(name, place)
        try:
            status = os.lstat(path)
        except OSError:
            self._read.pop(path, None)
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._read.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        hypothesis, wrong = _parse(path, name)
        self._read.pop(path, None)
        if hypothesis is not None or wrong:
            seen = signature if _is_old(status.st_mtime_ns) else ()
            self._read[path] = (seen, hypothesis, wrong)
        return hypothesis


def _parse(path: str, name: str) -> tuple[Hypothesis | None, str]:
    """Return what the file holds, or what is wrong with it; neither where it is gone."""
    try:
        content, _ = read_with_status(path)
        hypothesis = Hypothesis.model_validate(parse_json(content))
    except FileNotFoundError:
        return None, ""
    except RecordError as error:
        return None, error.problem.removeprefix(f"{path} ")
    except ValidationError as error:
        return None, f"is no hypothesis: {faults_in(error)}"
    except ValueError as error:
        return None, str(error)
    if hypothesis.hypothesis_id != name:
        return None, f"holds {hypothesis.hypothesis_id!r}, which is not its name"
    if not of_tag(name, hypothesis.tag):
        return None, f"is of tag {hypothesis.tag!r}, which does not go with its name"
    return hypothesis, ""


def _is_old(changed_ns: int) -> bool:
    return changed_ns < time.time_ns() - MTIME_GRANULARITY_NS


def _sorted(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=best_first)
