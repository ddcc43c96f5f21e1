"""The ledger, `experiments.jsonl`: folded anew where something changed, copied where nothing did.

`refold` returns the lines of the whole ledger and writes no file; the holder of the lock `sync`
writes them. What the last fold saw is kept in `research/aggregate/.fold-index`: a line whose
bundle and whose place are as they were is copied as bytes. The index is disposable: one that is
absent, damaged, of other code or beside another ledger costs a cold fold, and nothing else.
"""

from __future__ import annotations

import gc
import os
import sys
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from autohypothesis import plain, schema
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
from autohypothesis.records.files import (
    file_stamp,
    opened,
    read_bytes,
    read_json,
    shown,
    write_atomic,
)
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
from autohypothesis.records.outcomes import DAMAGED
from autohypothesis.records.rows import Facts, Placement, RowDocument, base_row, finish
from autohypothesis.records.shown import Shown, shown_of
from autohypothesis.schema import Problem

LIMIT = 512 * 1024 * 1024
"""Bytes of a ledger: some 200,000 rows."""
Stamp = list[int]
"""A FileStamp."""


class FoldEntry(NamedTuple):
    """One experiment as the last fold saw it."""

    signature: int
    """Of inode, time of modification and size of each of its files."""
    exited: bool
    """It has an exit.json."""
    length: int
    """Length of its line in the ledger, in bytes."""
    judgement: int
    """The checksum of its placement and of what contradicts it."""
    shown: Shown
    head: bytes
    """All of the above, as the index has it."""
    rest: bytes
    """`details` as JSON, parsed where they are needed: where decisions are judged anew."""

    @property
    def details(self) -> Details:
        return _details(from_json(self.rest))


class Details(NamedTuple):
    """What the next judgement needs of an experiment."""

    facts: Facts
    wrong: list[Damage]
    """Statements of its bundle that contradict the decisions."""


class Index(NamedTuple):
    """The index: a line about the fold, and two for each row of the ledger, in their order."""

    entries: dict[str, FoldEntry]
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
        content = read_bytes(layout.fold_index, LIMIT)
    except (FileNotFoundError, RecordError):
        return None
    head, *lines = content.split(b"\n")
    if not lines or head != _head(memoryview(content)[len(head) + 1 :]):
        return None
    # Its checksum fits and the code is the same: it is what `save_index` wrote.
    heads, rests = lines[1::2], lines[2::2]
    found = from_json(b"[%b]" % b",".join(heads), cache_strings="none")
    entries = {
        key: _tuple(FoldEntry, (*known, _tuple(Shown, shown), head, rest))
        for (key, *known, shown), head, rest in zip(found, heads, rests, strict=True)
    }
    return Index(entries, *from_json(lines[0]))


def save_index(layout: Layout, folded: Folded) -> None:
    """Write down the fold whose ledger and aggregate lie on the disk now.

    Nothing is written where another program has changed the ledger meanwhile.
    """
    ledger = stamp(layout.ledger)
    if not ledger or ledger[1] != folded.text.size:
        return
    about = [ledger, stamp(layout.aggregate_experiments), *folded.judged[-2:]]
    lines = (line for entry in folded.entries.values() for line in entry[-2:])
    body = b"\n".join([to_json(about), *lines])
    write_atomic(layout.fold_index, _head(body) + b"\n" + body, durable=False)


def _details(parsed: list[Any]) -> Details:
    facts, wrong = parsed
    return Details(_tuple(Facts, facts), wrong)


def _judgement(placement: Placement | None, wrong: list[Damage]) -> int:
    return zlib.crc32(to_json((placement, wrong)))


_tuple: Any = tuple.__new__
"""Makes a named tuple of its values in a third of the time."""


def _head(body: bytes | memoryview) -> bytes:
    return b"fold-index %08x %08x %d" % (_code(), zlib.crc32(body), sys.hash_info.width)


@cache
def _code() -> int:
    """A checksum of the modules that decide what a row looks like: other code, other rows."""
    names = ("bundles", "fold", "ids", "ledger", "outcomes", "rows", "shown")
    total = 0
    below = [Path(module.__file__ or "") for module in (schema, plain)]
    for path in (*below, *(Path(__file__).with_stem(name) for name in names)):
        total = zlib.crc32(path.read_bytes(), total)
    return total


class _ReadExperiment(NamedTuple):
    """A bundle that is new or has changed."""

    signature: int
    exited: bool
    facts: Facts
    row: RowDocument


class Judged(NamedTuple):
    """The order of the rows and what was decided about them."""

    order: list[str]
    changed: Container[str]
    """Rows to make anew; the others are as they were."""
    places: dict[str, Placement]
    """Of those that changed, at least."""
    wrong: dict[str, list[Damage]]
    """Statements of bundles that contradict the decisions."""
    readable: bool
    stamp: Stamp
    """The stamp of the file; empty when it must be read again in any case."""
    last_tag: str
    """The tag of the last decision."""


@dataclass
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

    @cached_property
    def _starts(self) -> dict[str, int]:
        return _offsets(self.entries)

    def line(self, experiment: str) -> bytes:
        """One row's line, with its break."""
        return self.text.piece(self._starts[experiment], self.entries[experiment].length)

    def lines(self) -> dict[str, bytes]:
        """Return the line of every row, without its break, from one read of the ledger."""
        return dict(zip(self.entries, self.content.splitlines(), strict=True))

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
    before = index.entries if index else {}
    read = _read_changed(layout, on_disk, before)
    judged = _judged_as_before(layout, index, on_disk, read)
    judged = judged or _judge(layout, before, on_disk, read, problems)
    text, entries, fresh = LedgerText(layout.ledger, index), {}, []
    for key in judged.order:
        entry = before.get(key)
        if entry is not None and key not in judged.changed:
            text.keep(key, entry.length)
        else:
            line, made = _folded_line(read.get(key) or _read(on_disk[key]), judged, key)
            text.add(key, line, entry)
            entry = made
            fresh.append(key)
        entries[key] = entry
    for key, entry in entries.items():
        if entry.shown.word == DAMAGED:
            facts, wrong = entry.details
            problems += [_problem(layout, path, why, key) for path, why in facts.damage]
            problems += [
                _problem(layout, f"{on_disk[key].run}/{file}", why, key, kind == DECIDED_OTHERWISE)
                for file, why, kind in wrong
            ]
    text.end()
    same = index is not None and text.is_as_before()
    return Folded(text, entries, fresh, problems, text.changed, same, judged, last, index)


def _offsets(entries: Mapping[str, FoldEntry]) -> dict[str, int]:
    lengths = accumulate((entry.length for entry in entries.values()), initial=0)
    return dict(zip(entries, lengths, strict=False))


class LedgerText:
    """The ledger as it is to be: pieces of the old one, as long as they can be, and new lines.

    Of the old one those pieces are read that are needed: where rows are added to its end, none is.
    """

    def __init__(self, path: Path, index: Index | None) -> None:
        self._path = path
        self._size = index.ledger[1] if index else 0
        self._offsets = _offsets(index.entries) if index else {}
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
        if start == end:
            return b""
        with opened(self._path) as (descriptor, _):
            return os.pread(descriptor, end - start, start)

    def _flush(self) -> None:
        if self._start != self._end:
            self._pieces.append((self._start, self._end))
        self._start = self._end = -1


def _read_changed(
    layout: Layout, on_disk: Mapping[str, ExperimentPaths], before: Mapping[str, FoldEntry]
) -> dict[str, _ReadExperiment]:
    if not before:
        return {key: _read(places) for key, places in on_disk.items()}
    with bundles.looking(layout) as signature:
        return {
            key: _read(places)
            for key, places in on_disk.items()
            if not ((old := before.get(key)) and old.signature == signature(places, old.exited))
        }


def _read(places: ExperimentPaths) -> _ReadExperiment:
    records = bundles.read(places)
    if records.folder is None and not records.plan and not records.damage:
        vanished = [str(places.plan or places.page), "vanished while it was read"]
        records = records._replace(damage=[vanished])
    row = base_row(records)
    facts = facts_of(row, records)
    return _ReadExperiment(records.signature, records.exit is not None, facts, row)


def _decisions_stamp(layout: Layout) -> Stamp:
    return stamp(layout.decisions) or list(bundles.ABSENT)


def _judge(
    layout: Layout,
    before: Mapping[str, FoldEntry],
    on_disk: Mapping[str, ExperimentPaths],
    read: dict[str, _ReadExperiment],
    problems: list[Problem],
) -> Judged:
    """Read decisions.jsonl; put the rows of experiments of which nothing else is left in `read`."""
    there, readable = _decisions_stamp(layout), True
    decisions: list[Document] = []
    try:
        decisions, bad = decision_documents(layout)
    except RecordError as error:
        bad, readable = [reason_in(error, layout.decisions)], False
    problems += [_problem(layout, str(layout.decisions), reason) for reason in bad]
    kept = [key for key in on_disk if key not in read]
    rests = from_json(b"[%b]" % b",".join(before[key].rest for key in kept), cache_strings="none")
    known = dict(zip(kept, map(_details, rests), strict=True))
    facts = {key: (read.get(key) or known[key]).facts for key in on_disk}
    wrong = decision_conflicts(decisions, facts, complete=not bad)
    places = place(decisions, facts)
    imported = place_imported({key: fact for key, fact in facts.items() if key not in places})
    places = {**imported, **places}
    gone = {d["experiment_id"]: d for d in decisions if d["experiment_id"] not in facts}
    for key, decision in gone.items():
        row = row_without_bundle(decision)
        read[key] = _ReadExperiment(bundles.UNSETTLED, False, facts_of(row, Records(key)), row)
    changed = {
        key
        for key in kept
        if before[key].judgement != _judgement(places.get(key), wrong.get(key, []))
    }
    times = {key: fact.timestamp for key, fact in facts.items() if key not in places}
    order, again = in_order(places, times), [] if bad or gone else there
    last_tag = str(decisions[-1]["tag"]) if decisions else ""
    return Judged(order, changed | read.keys(), places, wrong, readable, again, last_tag)


def _judged_as_before(
    layout: Layout,
    index: Index | None,
    on_disk: Mapping[str, ExperimentPaths],
    read: Mapping[str, _ReadExperiment],
) -> Judged | None:
    """Return the judgement of the last fold with what is new and waits for no decision of ours.

    None where decisions.jsonl must be read: it is new, or a bundle of a decided one has changed.
    """
    if index is None or index.decisions != _decisions_stamp(layout):
        return None
    known = {key: entry.shown for key, entry in index.entries.items()}
    placed = [key for key, shown in known.items() if shown.ordinal is not None]
    facts = {key: experiment.facts for key, experiment in read.items()}
    if not on_disk.keys() - read.keys() >= set(placed):
        return None
    if any(fact.stamp_id or fact.stranger for fact in facts.values()):
        return None
    imported = [key for key in placed if known[key].imported]
    kept = [kept[:3] for key in imported if (kept := known[key].kept)]
    new = place_imported(facts, kept, len(imported))
    if imported and new:
        last, first = imported[-1], next(iter(new))
        if (facts[first].timestamp, first) < (known[last].timestamp, last):
            return None
    times = {key: known[key].timestamp for key in on_disk if key in known}
    times |= {key: fact.timestamp for key, fact in facts.items()}
    places = (*imported, *new, *placed[len(imported) :])
    for key in places:
        times.pop(key, None)
    return Judged(in_order(places, times), read, new, {}, True, index.decisions, index.last_tag)


def _folded_line(known: _ReadExperiment, judged: Judged, key: str) -> tuple[bytes, FoldEntry]:
    signature, exited, facts, row = known
    placement, wrong = judged.places.get(key), judged.wrong.get(key, [])
    finish(row, placement, undecided_stamp(facts), facts.damage, wrong)
    line = to_json(row, inf_nan_mode="null") + b"\n"
    shown = shown_of(facts, placement, wrong)
    noted = (signature, exited, len(line), _judgement(placement, wrong), shown)
    return line, FoldEntry(*noted, to_json((key, *noted)), to_json((facts, wrong)))


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
