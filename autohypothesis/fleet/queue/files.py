"""The folders of the queue: listed and read without a lock, each file once.

Nothing here moves a file; `states` does. A file that cannot be used is one of the `problems` and
stays where it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from pydantic import ValidationError

from autohypothesis.errors import RecordError, faults_in
from autohypothesis.records.files import parse_json, read_with_status, shown
from autohypothesis.records.ids import MAX_LENGTH, baseline_id, experiment_stem, slug
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.schema import Hypothesis, HypothesisState, Problem

LOOKS = 10
"""Listings of a queue in motion; two that agree are a picture of one moment."""
_SETTLING_NS = 100_000_000
"""A folder changed this recently may change again within one tick of the file system's clock."""
_MADE = re.compile(r"(h-.+)-\d{4,9}|(baseline-.+)")
_COUNTER = "-99999"
"""Room that `ids` leaves behind the stem of a tag."""


class QueuePlace(NamedTuple):
    """Where a hypothesis is; `worker` for the states that have one."""

    state: HypothesisState
    worker: str | None = None

    def __str__(self) -> str:
        return self.state if self.worker is None else f"{self.state} for {self.worker}"


DONE = QueuePlace("done")
PENDING = QueuePlace("pending")
_RANK = {"pending": 0, "dispatched": 1, "running": 2, "done": 3}


def of_tag(name: str, tag: str) -> bool:
    """Return whether `tag` may have this id: it was not made for another tag."""
    made = _MADE.fullmatch(name)
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


class QueueReader:
    """The hypotheses of one tag. Another tag's lie beside them and are left alone."""

    def __init__(self, layout: Layout, tag: str) -> None:
        self.layout = layout
        self.tag = checked_id(tag)
        self._folder = cache(lambda place: str(layout.hypotheses(*place)))  # asked for very often
        self._read: dict[str, tuple[tuple[int, ...], Hypothesis | None, str]] = {}
        """Path -> signature, content, and otherwise what is wrong with it."""
        self._done: tuple[int, list[str], list[Hypothesis] | None] = (0, [], None)
        """When the folder changed last, its names, and its content once it was read."""

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
        """Return open id -> where it is seen, latest state first, without a lock: see `LOOKS`.

        An id that is done as well is left out: of two states the later one holds.
        """
        before = self._seen()
        for _ in range(LOOKS):
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
        for _ in range(LOOKS):
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
    return changed_ns < time.time_ns() - _SETTLING_NS


def _sorted(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=best_first)
