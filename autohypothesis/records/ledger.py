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
_ALLOWANCE = 1024 * 1024
"""Bytes; beyond them an index is never larger than the ledger that it is about."""
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
    offset: int
    """Offset of its line in the ledger, in bytes."""
    length: int


class Index(NamedTuple):
    entries: dict[str, FoldEntry]
    ledger: Stamp
    aggregate: Stamp
    decisions: Stamp
    """Empty when decisions.jsonl must be read in any case."""
    last_tag: str


def stamp(path: Path) -> Stamp:
    """Return the FileStamp of a file as the index keeps it; empty when it is absent."""
    return list(file_stamp(path) or ())


def load_index(layout: Layout, *, of_any_ledger: bool = False) -> Index | None:
    """The index, if it is whole, of this code, and about the ledger that is there now.

    With `of_any_ledger` also if another program wrote the ledger since.
    """
    ledger = stamp(layout.ledger)
    try:
        limit = (ledger[1] if ledger else 0) + _ALLOWANCE
        head, _, body = read_bytes(layout.fold_index, limit).partition(b"\n")
    except (FileNotFoundError, RecordError):
        return None
    if head != _head(body):
        return None
    # Its checksum fits and the code is the same: it is what `save_index` wrote.
    *about, entries = from_json(body, cache_strings="none")
    if not ledger or (about[0] != ledger and not of_any_ledger):
        return None
    return Index({key: _entry(*entry) for key, entry in entries.items()}, *about)


def save_index(
    layout: Layout, entries: Mapping[str, FoldEntry], decisions: Stamp, last_tag: str
) -> None:
    """Writes down the fold whose ledger and aggregate lie on the disk now."""
    written = [stamp(layout.ledger), stamp(layout.aggregate_experiments)]
    body = to_json([*written, decisions, last_tag, entries])
    write_atomic(layout.fold_index, _head(body) + b"\n" + body, durable=False)


def _entry(
    signature: int, facts: list[Any], placement: list[Any] | None, wrong: list[Damage], *where: int
) -> FoldEntry:
    placed = None if placement is None else Placement(*placement)
    return FoldEntry(signature, Facts(*facts), placed, wrong, *where)


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
    last_tag: str
    """The tag of the last decision."""
    stamp: Stamp
    """The stamp of the file; empty when it must be read again in any case."""
    readable: bool


@dataclass(slots=True)
class Folded:
    """A fold: the ledger as it is to be, and what the tables are made from."""

    content: bytes
    entries: dict[str, FoldEntry]
    problems: list[Problem]
    changed: int
    """Lines that the ledger does not hold as they are."""
    same: bool
    """Whether the ledger on the disk is these lines already."""
    judged: Judged
    index: Index | None = None
    """The index of the last fold; None where the ledger is not as the last sync left it."""

    def line(self, experiment: str) -> bytes:
        """One row's line, with its break."""
        return _line_of(self.entries[experiment], self.content)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Pause the garbage collector: a fold makes many objects and no cycles. With it, asking what is
    new takes 3.6 times as long as the status of the files, without it 2.3 times (goal: 3)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collections()
def refold(layout: Layout, *, cold: bool = False) -> Folded:
    """Folds what is under research/; with `cold`, as if it had never been folded before."""
    index = None if cold else load_index(layout)
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
    old = read_bytes(layout.ledger, LIMIT) if index else b""
    lines, entries, changed, offset = [], {}, 0, 0
    for key in in_order(known, judged.places, facts):
        entry = index.entries.get(key) if index else None
        line, now = _folded_line(known[key], judged, key, on_disk, entry, old)
        entries[key] = now if now.offset == offset else now._replace(offset=offset)
        changed += entry is None or line != _line_of(entry, old)
        lines.append(line)
        offset += now.length
    for key, entry in entries.items():
        problems += [_problem(layout, path, why, key) for path, why in entry.facts.damage]
        for file, why in entry.wrong:
            problems.append(_problem(layout, f"{on_disk[key].run}/{file}", why, key))
    content = b"".join(lines)
    return Folded(
        content,
        entries,
        problems,
        changed,
        same=index is not None and content == old,
        judged=judged,
        index=index,
    )


def _look(
    on_disk: Mapping[str, ExperimentPaths], index: Index | None
) -> dict[str, _ReadExperiment]:
    known: dict[str, _ReadExperiment] = {}
    before = index.entries if index is not None else {}
    for key, places in on_disk.items():
        entry = before.get(key)
        volatile = entry is None or entry.facts.volatile
        if entry is None or volatile or entry.signature != bundles.current_signature(places):
            known[key] = _read(places)
        else:
            known[key] = _ReadExperiment(entry.signature, entry.facts)
    return known


def _read(places: ExperimentPaths) -> _ReadExperiment:
    records = bundles.read(places)
    if records.folder is None and not records.plan and not records.damage:
        vanished = [str(places.plan or places.page), "vanished while it was read"]
        records = records._replace(damage=[vanished])
    row = base_row(records)
    return _ReadExperiment(records.signature, facts_of(row, records), row)


def _judge(layout: Layout, facts: Mapping[str, Facts], problems: list[Problem]) -> Judged:
    there, readable = stamp(layout.decisions), True
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
    return Judged(
        {**place_imported(facts, places), **places}, wrong, gone, last_tag, again, readable
    )


def _places_as_before(
    layout: Layout, known: Mapping[str, _ReadExperiment], index: Index | None
) -> Judged | None:
    """The places of the last fold, where no decision is new and no decided bundle changed."""
    if index is None or not index.decisions or index.decisions != stamp(layout.decisions):
        return None
    places = {key: entry.placement for key, entry in index.entries.items() if entry.placement}
    if not places.keys() <= known.keys():
        return None
    new = [
        (key, experiment.facts) for key, experiment in known.items() if experiment.row is not None
    ]
    if any(
        key in places or facts.stamp_id or facts.stranger or facts.imported for key, facts in new
    ):
        return None
    unread = (
        (key, index.entries[key]) for key, experiment in known.items() if experiment.row is None
    )
    wrong = {key: entry.wrong for key, entry in unread if entry.wrong}
    return Judged(places, wrong, {}, index.last_tag, index.decisions, readable=True)


def _folded_line(
    known: _ReadExperiment,
    judged: Judged,
    key: str,
    on_disk: Mapping[str, ExperimentPaths],
    before: FoldEntry | None,
    old: bytes,
) -> tuple[bytes, FoldEntry]:
    placement, wrong = judged.places.get(key), judged.wrong.get(key, [])
    if known.row is None and before is not None:
        if (before.placement, before.wrong) == (placement, wrong):
            return _line_of(before, old), before
        known = _read(on_disk[key])
    row = known.row or {}
    finish(row, placement, undecided_stamp(known.facts), known.facts.damage, wrong)
    line = to_json(row, inf_nan_mode="null") + b"\n"
    return line, FoldEntry(known.signature, known.facts, placement, wrong, -1, len(line))


def _line_of(entry: FoldEntry, content: bytes) -> bytes:
    return content[entry.offset : entry.offset + entry.length]


def _problem(layout: Layout, path: str, reason: str, experiment: str | None = None) -> Problem:
    short = path.removeprefix(f"{layout.root}/")
    return Problem(path=shown(short), reason=shown(reason), experiment_id=experiment)


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
