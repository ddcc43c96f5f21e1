"""The ledger, `experiments.jsonl`: folded anew where something changed, copied where nothing did.

`refold` returns the lines of the whole ledger and writes no file; the holder of the lock `sync`
writes them. What the last fold saw is kept in `research/aggregate/.fold-index`: a line whose
bundle and whose place are as they were is copied as bytes. The index is disposable: one that is
absent, damaged, of other code or beside another ledger costs a cold fold, and nothing else.
"""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from autohypothesis import schema
from autohypothesis.errors import RecordError
from autohypothesis.records import bundles, jsonl
from autohypothesis.records.bundles import (
    Damage,
    Document,
    ExperimentPaths,
    Records,
    decision_documents,
    reason_in,
)
from autohypothesis.records.files import file_stamp, read_bytes, read_json, shown, write_atomic
from autohypothesis.records.fold import (
    DECIDED_OTHERWISE,
    decision_conflicts,
    facts_of,
    in_order,
    place,
    place_imported,
    row_without_bundle,
    undecided_stamp,
)
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import Facts, Placement, RowDocument, base_row, finish
from autohypothesis.schema import Problem

LIMIT = 512 * 1024 * 1024
"""Bytes of a ledger: some 200,000 rows."""
Stamp = list[int]
"""A FileStamp."""


class FoldEntry(NamedTuple):
    """One experiment as the last fold saw it."""

    signature: int
    """Of inode, time of modification and size of each of its files."""
    facts: Facts
    placement: Placement | None
    wrong: list[Damage]
    """Statements of its bundle that contradict the decisions."""
    length: int
    """Length of its line in the ledger, in bytes."""


class Index(NamedTuple):
    """The index, a line about the fold and one for each row of the ledger, in their order."""

    entries: dict[str, FoldEntry]
    lines: dict[str, bytes]
    """The line of each entry."""
    ledger: Stamp
    aggregate: Stamp
    decisions: Stamp
    """Empty when decisions.jsonl must be read in any case."""
    last_tag: str


def stamp(path: Path) -> Stamp:
    """Return the FileStamp of a file as the index keeps it; empty when it is absent."""
    return list(file_stamp(path) or ())


def load_index(layout: Layout) -> Index | None:
    """The index, if it is whole and of this code, whatever was written to the ledger since."""
    try:
        head, _, body = read_bytes(layout.fold_index, LIMIT).partition(b"\n")
    except (FileNotFoundError, RecordError):
        return None
    if head != _head(body):
        return None
    # Its checksum fits and the code is the same: it is what `save_index` wrote.
    first, *lines = body.split(b"\n")
    found = from_json(b"[%b]" % b",".join(lines), cache_strings="none")
    entries = {key: _entry(*entry) for key, *entry in found}
    return Index(entries, dict(zip(entries, lines, strict=True)), *from_json(first))


def save_index(layout: Layout, folded: Folded) -> None:
    """Write down the fold whose ledger and aggregate lie on the disk now.

    Nothing is written where another program has changed the ledger meanwhile.
    """
    ledger, index = stamp(layout.ledger), folded.index
    if not ledger or ledger[1] != folded.text.size:
        return
    about = [ledger, stamp(layout.aggregate_experiments), *folded.judged[-2:]]
    entries, lines = (index.entries, index.lines) if index else ({}, {})
    body = b"\n".join([
        to_json(about),
        *(
            lines[key] if entry is entries.get(key) else to_json([key, *entry])
            for key, entry in folded.entries.items()
        ),
    ])  # fmt: skip
    write_atomic(layout.fold_index, _head(body) + b"\n" + body, durable=False)


def _entry(
    signature: int, facts: list[Any], placement: list[Any] | None, wrong: list[Damage], length: int
) -> FoldEntry:
    placed = None if placement is None else _tuple(Placement, placement)
    return FoldEntry(signature, _tuple(Facts, facts), placed, wrong, length)


_tuple: Any = tuple.__new__
"""Makes a named tuple of its values in a third of the time."""


def _head(body: bytes) -> bytes:
    return b"fold-index %08x %08x %d" % (_code(), zlib.crc32(body), sys.hash_info.width)


@cache
def _code() -> int:
    """A checksum of the modules that decide what a row looks like: other code, other rows."""
    names = ("bundles", "fold", "ids", "ledger", "rows")
    total = 0
    for path in (Path(schema.__file__), *(Path(__file__).with_stem(name) for name in names)):
        total = zlib.crc32(path.read_bytes(), total)
    return total


class _ReadExperiment(NamedTuple):
    signature: int
    facts: Facts
    row: RowDocument | None = None
    """None when it was not read: nothing changed."""


class Judged(NamedTuple):
    """The result of reading decisions.jsonl."""

    places: dict[str, Placement]
    wrong: dict[str, list[Damage]]
    """Statements of bundles that contradict the decisions."""
    gone: dict[str, Document]
    """Decisions about experiments of which nothing else is left."""
    readable: bool
    stamp: Stamp
    """The stamp of the file; empty when it must be read again in any case."""
    last_tag: str
    """The tag of the last decision."""


@dataclass(slots=True)
class Folded:
    """A fold: the ledger as it is to be, and what the tables are made from."""

    text: LedgerText
    entries: dict[str, FoldEntry]
    fresh: list[str]
    """Rows that were made anew."""
    problems: list[Problem]
    changed: int
    """Lines that the ledger does not hold as they are."""
    same: bool
    """Whether the ledger on the disk is these lines already."""
    judged: Judged
    last: Index | None
    """The index of the last fold."""
    index: Index | None
    """The same; None where the ledger is not as the last sync left it."""

    def line(self, experiment: str) -> bytes:
        """One row's line, with its break."""
        start = _offsets(self.entries)[experiment]
        return self.text.piece(start, self.entries[experiment].length)

    @property
    def content(self) -> bytes:
        """The whole ledger. It is read while the lock `sync` is held."""
        return self.text.whole()


@contextmanager
def no_collections() -> Iterator[None]:
    """Pause the garbage collector: a fold makes many objects and no cycles. With it, asking what is
    new takes 3.6 times as long as the status of the files, without it 2.3 times (goal: 3)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_collections()
def refold(layout: Layout, *, cold: bool = False) -> Folded:
    """Folds what is under research/; with `cold`, as if it had never been folded before."""
    last = None if cold else load_index(layout)
    index = last if last and last.ledger == stamp(layout.ledger) else None
    problems: list[Problem] = []
    on_disk, strangers = bundles.find(layout)
    problems += [_problem(layout, path, reason) for path, reason in strangers]
    known = _look(on_disk, index)
    facts = {key: experiment.facts for key, experiment in known.items()}
    judged = _places_as_before(layout, known, index) or _judge(layout, facts, problems)
    for key, decision in judged.gone.items():
        row = row_without_bundle(decision)
        facts[key] = facts_of(row, Records(key))
        known[key] = _ReadExperiment(bundles.UNSETTLED, facts[key], row)
    text, fresh = LedgerText(layout.ledger, index), []
    entries: dict[str, FoldEntry] = {}
    before, places, wrong = index.entries if index else {}, judged.places, judged.wrong
    for key in in_order(known, places, facts):
        entry, experiment = before.get(key), known[key]
        as_before = entry is not None and experiment.row is None
        if entry and as_before and entry[2:4] == (places.get(key), wrong.get(key, [])):
            entries[key] = entry
            text.keep(key, entry.length)
        else:
            line, entries[key] = _folded_line(experiment, judged, key, on_disk)
            text.add(key, line, entry)
            fresh.append(key)
    for key, entry in entries.items():
        if entry.facts.damage or entry.wrong:
            problems += [_problem(layout, path, why, key) for path, why in entry.facts.damage]
            problems += [
                _problem(layout, f"{on_disk[key].run}/{file}", why, key, kind == DECIDED_OTHERWISE)
                for file, why, kind in entry.wrong
            ]
    text.end()
    same = index is not None and text.is_as_before()
    return Folded(text, entries, fresh, problems, text.changed, same, judged, last, index)


def _offsets(entries: Mapping[str, FoldEntry]) -> dict[str, int]:
    lengths = accumulate((entry.length for entry in entries.values()), initial=0)
    return dict(zip(entries, lengths, strict=False))


class LedgerText:
    """The ledger as it is to be: pieces of the old one, as long as they can be, and new lines.

    The old one is read where a piece of it is needed: where rows are added to its end, none is.
    """

    def __init__(self, path: Path, index: Index | None) -> None:
        self._path = path
        self._size = index.ledger[1] if index else 0
        self._offsets = _offsets(index.entries) if index else {}
        self._old: bytes | None = None
        self._pieces: list[bytes | tuple[int, int]] = []
        self._start = self._end = 0
        self.changed = 0
        """Lines that the old ledger does not have as they are."""
        self.kept = 0
        """Bytes of the old ledger that stay: all, where rows were added to its end; or none."""
        self.tail = b""
        """The text after `kept`."""

    @property
    def size(self) -> int:
        return self.kept + len(self.tail)

    def keep(self, key: str, length: int) -> None:
        start = self._offsets[key]
        if start != self._end:
            self._flush()
            self._start = start
        self._end = start + length

    def add(self, key: str, line: bytes, before: FoldEntry | None) -> None:
        start = self._offsets.get(key, 0)
        if before is not None and line == self._of_old(start, start + before.length):
            self.keep(key, before.length)
            return
        self._flush()
        self._pieces.append(line)
        self.changed += 1

    def end(self) -> None:
        """Join the pieces; no line follows."""
        self._flush()
        if self._size and self._pieces[:1] == [(0, self._size)]:
            self.kept = self._size
            del self._pieces[0]
        self.tail = b"".join(
            piece if isinstance(piece, bytes) else self._of_old(*piece) for piece in self._pieces
        )

    def is_as_before(self) -> bool:
        return not self.tail if self.kept else self.tail == self._of_old(0, self._size)

    def whole(self) -> bytes:
        return self._of_old(0, self.kept) + self.tail if self.kept else self.tail

    def piece(self, start: int, length: int) -> bytes:
        if start >= self.kept:
            return self.tail[start - self.kept : start - self.kept + length]
        return self._of_old(start, start + length)

    def _of_old(self, start: int, end: int) -> bytes:
        if self._old is None:
            self._old = read_bytes(self._path, LIMIT) if end else b""
        return self._old[start:end]

    def _flush(self) -> None:
        if self._start != self._end:
            self._pieces.append((self._start, self._end))
        self._start = self._end = -1


def _look(
    on_disk: Mapping[str, ExperimentPaths], index: Index | None
) -> dict[str, _ReadExperiment]:
    known: dict[str, _ReadExperiment] = {}
    before = index.entries if index is not None else {}
    look = bundles.current_signature
    for key, places in on_disk.items():
        entry = before.get(key)
        if (
            entry is not None
            and not entry.facts.volatile
            and entry.signature == look(places, exited=entry.facts.exited)
        ):
            known[key] = _ReadExperiment(entry.signature, entry.facts)
        else:
            known[key] = _read(places)
    return known


def _read(places: ExperimentPaths) -> _ReadExperiment:
    records = bundles.read(places)
    if records.folder is None and not records.plan and not records.damage:
        vanished = [str(places.plan or places.page), "vanished while it was read"]
        records = records._replace(damage=[vanished])
    row = base_row(records)
    return _ReadExperiment(records.signature, facts_of(row, records), row)


def _decisions_stamp(layout: Layout) -> Stamp:
    return stamp(layout.decisions) or list(bundles.ABSENT)


def _judge(layout: Layout, facts: Mapping[str, Facts], problems: list[Problem]) -> Judged:
    there, readable = _decisions_stamp(layout), True
    decisions: list[Document] = []
    try:
        decisions, bad = decision_documents(layout)
    except RecordError as error:
        bad, readable = [reason_in(error, layout.decisions)], False
    problems += [_problem(layout, str(layout.decisions), reason) for reason in bad]
    gone = {d["experiment_id"]: d for d in decisions if d["experiment_id"] not in facts}
    last_tag = str(decisions[-1]["tag"]) if decisions else ""
    wrong = decision_conflicts(decisions, facts, complete=not bad)
    again = [] if bad or gone else there
    places = place(decisions, facts)
    every = {**place_imported(facts, places), **places}
    return Judged(every, wrong, gone, readable, again, last_tag)


def _places_as_before(
    layout: Layout, known: Mapping[str, _ReadExperiment], index: Index | None
) -> Judged | None:
    """The places of the last fold, where no decision is new and no decided bundle changed."""
    if index is None or index.decisions != _decisions_stamp(layout):
        return None
    places = {key: entry.placement for key, entry in index.entries.items() if entry.placement}
    if not places.keys() <= known.keys():
        return None
    new = [
        (key, experiment.facts) for key, experiment in known.items() if experiment.row is not None
    ]
    if any(key in places or facts.stamp_id or facts.stranger for key, facts in new):
        return None
    unread = (
        (key, index.entries[key]) for key, experiment in known.items() if experiment.row is None
    )
    wrong = {key: entry.wrong for key, entry in unread if entry.wrong}
    if any(facts.imported for _, facts in new):
        decided = {key: placed for key, placed in places.items() if not placed.imported}
        every = {key: experiment.facts for key, experiment in known.items()}
        imported = {key: placed for key, placed in places.items() if placed.imported}
        places = {**place_imported(every, decided, imported), **decided}
    return Judged(places, wrong, {}, True, index.decisions, index.last_tag)


def _folded_line(
    known: _ReadExperiment,
    judged: Judged,
    key: str,
    on_disk: Mapping[str, ExperimentPaths],
) -> tuple[bytes, FoldEntry]:
    placement, wrong = judged.places.get(key), judged.wrong.get(key, [])
    if known.row is None:
        known = _read(on_disk[key])
    row = known.row or {}
    finish(row, placement, undecided_stamp(known.facts), known.facts.damage, wrong)
    line = to_json(row, inf_nan_mode="null") + b"\n"
    return line, FoldEntry(known.signature, known.facts, placement, wrong, len(line))


def _problem(
    layout: Layout, path: str, reason: str, experiment: str | None = None, otherwise: bool = False
) -> Problem:
    return Problem(
        path=shown(path.removeprefix(f"{layout.root}/")),
        reason=shown(reason),
        experiment_id=experiment,
        decided_otherwise=otherwise,
    )


def read_ledger(layout: Layout) -> list[dict[str, Any]]:
    """Return the rows of experiments.jsonl as the last sync left them; none before the first.

    Raises:
        RecordError: experiments.jsonl is no regular file; `sync` puts a new one in its place.
    """
    try:
        content = read_bytes(layout.ledger, LIMIT)
    except FileNotFoundError:
        return []
    return parse_ledger(content)


def parse_ledger(content: bytes) -> list[dict[str, Any]]:
    """The rows in the lines of a ledger; what is no row is left out."""
    return jsonl.parse(content, bundles.plain_object)[0]


def latest_tag(layout: Layout) -> str:
    """The tag of the search that is on: the manifest's, else the last decision's or plan's.

    Empty when nothing was ever planned.
    """
    return manifest_tag(layout)[0] or _last_tag(layout)


def manifest_tag(layout: Layout) -> tuple[str, str]:
    """Return the manifest's tag, and what is wrong with the manifest."""
    try:
        manifest = read_json(layout.manifest)
    except FileNotFoundError:
        return "", ""
    except RecordError as error:
        return "", reason_in(error, layout.manifest)
    tag = manifest.get("tag") if isinstance(manifest, dict) else None
    return (tag, "") if isinstance(tag, str) and tag else ("", "names no tag")


def active_tag(layout: Layout) -> str | None:
    """Return the tag that the manifest names; None before the first one.

    Raises:
        RecordError: the manifest is damaged.
    """
    tag, wrong = manifest_tag(layout)
    if wrong:
        raise RecordError(
            f"{layout.manifest} {wrong}", hint="move it away, and name the tag: --tag NAME"
        )
    return tag or None


def _last_tag(layout: Layout) -> str:
    try:
        decisions, _ = decision_documents(layout)
    except RecordError:
        decisions = []
    if decisions:
        return str(decisions[-1]["tag"])
    return newest_tag((row["timestamp"] or "", row["tag"]) for row in read_ledger(layout))


def newest_tag(stamped: Iterator[tuple[str, str]]) -> str:
    return max(((moment, tag) for moment, tag in stamped if tag), default=("", ""))[1]
