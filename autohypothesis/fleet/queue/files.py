"""The folders of the queue: listed, read with care, each file read once.

Nothing here takes a lock or moves a file; `states` does. A file that cannot be used is named in
`problems` and stays where it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from autohypothesis.errors import RecordError, faults_in
from autohypothesis.records.files import parse_json, read_with_status, shown
from autohypothesis.records.ids import MAX_LENGTH, baseline_id, experiment_stem, slug
from autohypothesis.records.layout import ID, Layout, checked_id
from autohypothesis.schema import Hypothesis, HypothesisState, Problem

OPEN: tuple[HypothesisState, ...] = ("pending", "dispatched", "running")
SHARED: tuple[HypothesisState, ...] = ("dispatched", "running")
"""States with one folder per worker."""
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


class QueueFiles:
    """The files under research/hypotheses; each is parsed once for as long as it stays."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._folders: dict[QueuePlace, str] = {}
        self._read: dict[str, tuple[tuple[int, ...], Hypothesis | None, str]] = {}
        """Path -> signature, content, and otherwise what is wrong with it."""
        self._done_names: tuple[int, list[str]] = (0, [])
        self._done: tuple[int, list[Hypothesis]] = (0, [])

    def path(self, name: str, place: QueuePlace) -> Path:
        return self.layout.hypothesis(name, place.state, place.worker)

    def _folder(self, place: QueuePlace) -> str:
        """Return the folder, made up once: a look asks for thousands of paths."""
        if place not in self._folders:
            self._folders[place] = str(self.layout.hypotheses(place.state, place.worker))
        return self._folders[place]

    def _at(self, name: str, place: QueuePlace) -> str:
        """Return the `path` of a name that is known to be an id."""
        return f"{self._folder(place)}/{name}.json"

    # ── listing ───────────────────────────────────────────────────────────────────────────

    def workers(self, state: HypothesisState) -> list[str]:
        with suppress(OSError):
            return sorted(filter(ID.fullmatch, os.listdir(self.layout.hypotheses(state))))
        return []

    def folders(self) -> Iterator[QueuePlace]:
        """Yield every folder there is, earliest state first."""
        yield PENDING
        for state in SHARED:
            yield from (QueuePlace(state, worker) for worker in self.workers(state))
        yield DONE

    def names(self, place: QueuePlace) -> list[str]:
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

    def done_names(self) -> list[str]:
        """Return the `names` of what is done; not listed again while the folder is as it was."""
        changed = self._done_changed()
        if not changed or changed != self._done_names[0]:
            self._done_names = (changed, self.names(DONE))
        return self._done_names[1]

    def done(self) -> list[Hypothesis]:
        """Return all that is done, of every tag; not read again while the folder is as it was."""
        changed = self._done_changed()
        if not changed or changed != self._done[0]:
            loaded = (self.load(name, DONE) for name in self.done_names())
            self._done = (changed, [each for each in loaded if each is not None])
        return self._done[1]

    def _done_changed(self) -> int:
        """Return when the folder last changed; 0 where that is too recent to tell changes apart."""
        with suppress(OSError):
            changed = os.stat(self.layout.hypotheses("done")).st_mtime_ns
            return changed if _is_old(changed) else 0
        return 0

    def snapshot(self) -> dict[str, list[QueuePlace]]:
        """Return open id -> where it is seen, latest state first, without a lock: see `LOOKS`.

        An id that is done as well is left out: of two states the later one holds.
        """
        before = self._places()
        for _ in range(LOOKS):
            seen = self._places()
            if seen == before:
                break
            before = seen
        for name, places in before.items():
            self._order(name, places)
        return {name: places for name, places in before.items() if places[0] != DONE}

    def _places(self) -> dict[str, list[QueuePlace]]:
        seen: dict[str, list[QueuePlace]] = {}
        for place in self.folders():
            if place.state != "done":
                for name in self.names(place):
                    seen.setdefault(name, []).insert(0, place)
        return seen

    def places(self, name: str) -> list[QueuePlace]:
        """Return every folder that has this id; the one that holds first.

        Raises:
            UsageError: it is no id.
        """
        checked_id(name)
        folders = [place for place in self.folders() if place != DONE]
        places = [place for place in reversed(folders) if os.path.lexists(self._at(name, place))]
        self._order(name, places)
        return places

    def _order(self, name: str, places: list[QueuePlace]) -> None:
        """Put the latest state first, but what can be read before what cannot."""
        if os.path.lexists(self._at(name, DONE)):
            places.insert(0, DONE)
        if len(places) > 1:
            usable = {place for place in places if self.load(name, place)}
            places.sort(key=lambda place: (place in usable, _RANK[place.state]), reverse=True)

    def resolve(self, name: str, places: list[QueuePlace]) -> tuple[QueuePlace, Hypothesis] | None:
        """Return place and content; None when it is nowhere, or cannot be read."""
        for _ in range(LOOKS):
            if not places:
                return None
            hypothesis = self.load(name, places[0])
            if hypothesis is not None:
                return places[0], hypothesis
            if os.path.lexists(self._at(name, places[0])):
                return None
            places = self.places(name)
        return None

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def load(self, name: str, place: QueuePlace) -> Hypothesis | None:
        """Return the hypothesis, or None: the file is gone, or it is one of `problems`."""
        path = self._at(name, place)
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

    def problems(self) -> list[Problem]:
        """Return the files that could not be used at the last look, and are still there."""
        for path in [path for path in self._read if not os.path.lexists(path)]:
            del self._read[path]
        root = f"{self.layout.root}/"
        return [
            Problem(path=shown(path.removeprefix(root)), reason=shown(wrong))
            for path, (_, _, wrong) in sorted(self._read.items())
            if wrong
        ]


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
