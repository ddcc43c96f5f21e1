"""The folders of the queue as they are found: listed, read with care, read once.

Nothing here takes a lock or moves a file; `queue` does. A file that cannot be used is named in
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

from autohypothesis.errors import RecordError
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


class Place(NamedTuple):
    """Where a hypothesis is; `worker` for the states that have one."""

    state: HypothesisState
    worker: str | None = None

    def __str__(self) -> str:
        return self.state if self.worker is None else f"{self.state} for {self.worker}"


DONE = Place("done")
PENDING = Place("pending")
_RANK = {"pending": 0, "dispatched": 1, "running": 2, "done": 3}


def of_tag(name: str, tag: str) -> bool:
    """Whether the id is one that `tag` may have: not one that was made for another tag."""
    found = _MADE.fullmatch(name)
    if found is None:
        return True
    if found[2] is not None:
        return name == baseline_id(tag)
    return found[1] == slug(f"h-{tag}", MAX_LENGTH - len(_COUNTER))


def newest_attempt(layout: Layout, hypothesis_id: str) -> int:
    """The number of its newest experiment with a plan or a run folder; 0 before the first."""
    form = re.compile(re.escape(experiment_stem(hypothesis_id)) + r"-(\d{1,9})(\.json)?")
    numbers = [0]
    for folder in (layout.plans, layout.runs):
        with suppress(OSError):
            found = map(form.fullmatch, os.listdir(folder))
            numbers += [int(one[1]) for one in found if one]
    return max(numbers)


def summary(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    words = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {words}{more}" if where else f"{words}{more}"


def best_first(one: Hypothesis) -> tuple[float, str]:
    """Sorts by priority, the highest first, then by age."""
    return -(one.priority or 0.0), one.hypothesis_id


class QueueFiles:
    """What lies under research/hypotheses; every file is parsed once for as long as it stays."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._folders: dict[Place, str] = {}
        self._read: dict[str, tuple[tuple[int, ...], Hypothesis | None, str]] = {}
        """Path -> signature, what it holds, and otherwise what is wrong with it."""
        self._done: tuple[int, list[str]] = (0, [])
        self._ended: tuple[int, list[Hypothesis]] = (0, [])

    def path(self, name: str, place: Place) -> Path:
        return self.layout.hypothesis(name, place.state, place.worker)

    def _folder(self, place: Place) -> str:
        """Made once: a look asks for thousands of paths."""
        folder = self._folders.get(place)
        if folder is None:
            folder = str(self.layout.hypotheses(place.state, place.worker))
            self._folders[place] = folder
        return folder

    def _at(self, name: str, place: Place) -> str:
        """As `path`, of a name that is known to be an id."""
        return f"{self._folder(place)}/{name}.json"

    # ── listing ───────────────────────────────────────────────────────────────────────────

    def workers(self, state: HypothesisState) -> list[str]:
        """Those that have a folder."""
        with suppress(OSError):
            return sorted(filter(ID.fullmatch, os.listdir(self.layout.hypotheses(state))))
        return []

    def folders(self) -> Iterator[Place]:
        """Every folder there is, earliest state first."""
        yield PENDING
        for state in SHARED:
            yield from (Place(state, worker) for worker in self.workers(state))
        yield DONE

    def names(self, place: Place) -> list[str]:
        """The ids in one folder. A file whose name is no id is a problem, and left out."""
        folder = self._folder(place)
        try:
            files = os.listdir(folder)
        except OSError:
            return []
        found = []
        for file in files:
            stem, _, suffix = file.rpartition(".")
            if suffix != "json" or file.startswith("."):
                continue
            if ID.fullmatch(stem):
                found.append(stem)
            else:
                self._read[f"{folder}/{file}"] = ((), None, "has a name that is no id")
        return sorted(found)

    def done_names(self) -> list[str]:
        """As `names`; not listed again while the folder is as it was."""
        changed = self._done_changed()
        if not changed or changed != self._done[0]:
            self._done = (changed, self.names(DONE))
        return self._done[1]

    def done(self) -> list[Hypothesis]:
        """All that is done, whatever its tag; not looked at again while the folder is as it was."""
        changed = self._done_changed()
        if not changed or changed != self._ended[0]:
            loaded = (self.load(name, DONE) for name in self.done_names())
            self._ended = (changed, [found for found in loaded if found is not None])
        return self._ended[1]

    def _done_changed(self) -> int:
        """When the folder last changed; 0 where that is too recent to tell two changes apart."""
        with suppress(OSError):
            changed = os.stat(self.layout.hypotheses("done")).st_mtime_ns
            return changed if _is_old(changed) else 0
        return 0

    def snapshot(self) -> dict[str, list[Place]]:
        """Open id -> where it is seen, latest state first, without a lock: see `LOOKS`.

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

    def _places(self) -> dict[str, list[Place]]:
        seen: dict[str, list[Place]] = {}
        for place in self.folders():
            if place.state != "done":
                for name in self.names(place):
                    seen.setdefault(name, []).insert(0, place)
        return seen

    def places(self, name: str) -> list[Place]:
        """Every folder that has this id; the one that holds first.

        Raises:
            UsageError: it is no id.
        """
        checked_id(name)
        found = [place for place in self.folders() if place != DONE]
        found = [place for place in reversed(found) if os.path.lexists(self._at(name, place))]
        self._order(name, found)
        return found

    def _order(self, name: str, places: list[Place]) -> None:
        """The latest state first, but what can be read before what cannot."""
        if os.path.lexists(self._at(name, DONE)):
            places.insert(0, DONE)
        if len(places) > 1:
            usable = {place for place in places if self.load(name, place)}
            places.sort(key=lambda place: (place in usable, _RANK[place.state]), reverse=True)

    def resolve(self, name: str, places: list[Place]) -> tuple[Place, Hypothesis] | None:
        """Where it is now, and what it holds; None when it is nowhere, or cannot be read."""
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

    def load(self, name: str, place: Place) -> Hypothesis | None:
        """The hypothesis, or None: the file is gone, or it is one of `problems`."""
        return self._load(self._at(name, place), name)

    def _load(self, path: str, name: str) -> Hypothesis | None:
        try:
            status = os.lstat(path)
        except OSError:
            self._read.pop(path, None)
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._read.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        hypothesis, wrong = self._parse(path, name)
        self._read.pop(path, None)
        if hypothesis is not None or wrong:
            seen = signature if _is_old(status.st_mtime_ns) else ()
            self._read[path] = (seen, hypothesis, wrong)
        return hypothesis

    def _parse(self, path: str, name: str) -> tuple[Hypothesis | None, str]:
        try:
            content, _ = read_with_status(path)
            hypothesis = Hypothesis.model_validate(parse_json(content))
        except FileNotFoundError:
            return None, ""
        except RecordError as error:
            return None, error.problem.removeprefix(f"{path} ")
        except ValidationError as error:
            return None, f"is no hypothesis: {summary(error)}"
        except ValueError as error:
            return None, str(error)
        if hypothesis.hypothesis_id != name:
            return None, f"holds {hypothesis.hypothesis_id!r}, which is not its name"
        if not of_tag(name, hypothesis.tag):
            return None, f"is of tag {hypothesis.tag!r}, which does not go with its name"
        return hypothesis, ""

    def problems(self) -> list[Problem]:
        """Files that could not be used when they were last looked at, and are still there."""
        for path in [path for path in self._read if not os.path.lexists(path)]:
            del self._read[path]
        root = f"{self.layout.root}/"
        return [
            Problem(path=shown(path.removeprefix(root)), reason=shown(wrong))
            for path, (_, _, wrong) in sorted(self._read.items())
            if wrong
        ]


def _is_old(changed_ns: int) -> bool:
    return changed_ns < time.time_ns() - _SETTLING_NS
