"""The ledger, `experiments.jsonl`: folded anew where something changed, copied where nothing did.

`refold` answers with the lines of the whole ledger and touches no file; whoever holds the lock
`sync` writes them. A line whose bundle and whose place are as they were is copied as bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from autohypothesis.errors import RecordError
from autohypothesis.records import index as fold_index
from autohypothesis.records import jsonl, scan
from autohypothesis.records.agreement import Fault, disagreements
from autohypothesis.records.bundles import decision_documents, reason_in
from autohypothesis.records.files import read_bytes, read_json, shown
from autohypothesis.records.fold import (
    facts_of,
    gone_row,
    in_order,
    in_words,
    place,
    undecided_stamp,
)
from autohypothesis.records.index import Entry, Index, Stamp, stamp
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import Facts, Placement, RowDocument, base_row, finish
from autohypothesis.records.usual import Document
from autohypothesis.schema import Problem

LIMIT = 512 * 1024 * 1024
"""Bytes of a ledger: some 200,000 rows."""


class _Known(NamedTuple):
    """What a fold knows about one experiment before it is placed."""

    signature: int
    facts: Facts
    row: RowDocument | None
    """None when it was not read: nothing changed."""


@dataclass(slots=True)
class Folded:
    """A fold: the ledger as it is to be, and what the tables are made from."""

    content: bytes
    entries: dict[str, Entry]
    problems: list[Problem]
    changed: int
    """Lines that the ledger does not hold as they are."""
    same: bool
    """Whether the ledger on the disk is these lines already."""
    last_tag: str = ""
    """Of the last decision."""
    decisions_stamp: Stamp = field(default_factory=list)
    decisions_readable: bool = True
    vouched: bool = False
    """Whether the ledger on the disk is as the last sync left it."""
    index_current: bool = False
    """Whether the index on the disk says all this already."""
    aggregate: Stamp = field(default_factory=list)
    """What aggregate/experiments.json was when the index was written."""

    def line(self, experiment: str) -> bytes:
        """One row's line, with its break."""
        entry = self.entries[experiment]
        return self.content[entry.offset : entry.offset + entry.length]


# ── folding ─────────────────────────────────────────────────────────────────────────────────


def refold(layout: Layout, *, cold: bool = False) -> Folded:
    """Folds what is under research/; with `cold`, as if it had never been folded before."""
    with _no_collections():
        return _refold(layout, None if cold else fold_index.load(layout))


@contextmanager
def _no_collections() -> Iterator[None]:
    """A fold makes many objects and no cycles: looking for those takes a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refold(layout: Layout, index: Index | None) -> Folded:
    problems: list[Problem] = []
    found, strangers = scan.find(layout)
    problems += [_problem(layout, path, reason) for path, reason in strangers]
    known = _look(layout, found, index)
    facts = {key: one.facts for key, one in known.items()}
    judged = _places_as_before(layout, known, index) or _judge(layout, facts, problems)
    for key, decision in judged.gone.items():
        row = gone_row(decision)
        facts[key] = facts_of(row, None, [])
        known[key] = _Known(scan.LOOK_AGAIN, facts[key], row)
    order = in_order(known, judged.places, facts)
    old = _old_ledger(layout, index)
    content, entries, changed = _assemble(order, known, judged, found, index, old)
    for key, entry in entries.items():
        if entry.facts.damage:
            problems += [_problem(layout, path, why, key) for path, why in entry.facts.damage]
        if entry.wrong:
            run = found[key].run
            problems += [_problem(layout, f"{run}/{file}", why, key) for file, why in entry.wrong]
    return Folded(
        content,
        entries,
        problems,
        changed,
        same=index is not None and content == old,
        last_tag=judged.last_tag,
        decisions_stamp=judged.stamp,
        decisions_readable=judged.readable,
        vouched=index is not None,
        index_current=index is not None
        and index.entries == entries
        and index.decisions == judged.stamp,
        aggregate=index.aggregate if index is not None else [],
    )


class _Judged(NamedTuple):
    """What decisions.jsonl says."""

    places: dict[str, Placement]
    wrong: dict[str, list[Fault]]
    """What bundles say that was not decided."""
    gone: dict[str, Document]
    """Decisions about experiments of which nothing else is left."""
    last_tag: str
    stamp: Stamp
    """Of the file; empty when it must be read again in any case."""
    readable: bool


def _judge(layout: Layout, facts: Mapping[str, Facts], problems: list[Problem]) -> _Judged:
    there, before = stamp(layout.decisions), len(problems)
    decisions, readable = _decisions(layout, problems)
    gone = {d["experiment_id"]: d for d in decisions if d["experiment_id"] not in facts}
    last_tag = str(decisions[-1]["tag"]) if decisions else ""
    complete = len(problems) == before
    wrong = disagreements(decisions, facts, complete=complete)
    again = there if complete and not gone else []
    return _Judged(place(decisions, facts), wrong, gone, last_tag, again, readable)


def _places_as_before(
    layout: Layout, known: Mapping[str, _Known], index: Index | None
) -> _Judged | None:
    """The places of the last fold, where no decision is new and no decided bundle changed."""
    if index is None or not index.decisions or index.decisions != stamp(layout.decisions):
        return None
    places = {key: entry.placement for key, entry in index.entries.items() if entry.placement}
    if not places.keys() <= known.keys():
        return None
    new = [(key, one.facts) for key, one in known.items() if one.row is not None]
    if any(key in places or facts.stamp_id or facts.stranger for key, facts in new):
        return None
    unread = ((key, index.entries[key]) for key, one in known.items() if one.row is None)
    wrong = {key: entry.wrong for key, entry in unread if entry.wrong}
    return _Judged(places, wrong, {}, index.last_tag, index.decisions, readable=True)


def _look(
    layout: Layout, found: Mapping[str, scan.Found], index: Index | None
) -> dict[str, _Known]:
    """Reads what is new or changed, and trusts the index about the rest."""
    if index is None:
        return {key: _read(where) for key, where in found.items()}
    known: dict[str, _Known] = {}
    before, probe = index.entries, scan.Probe(layout)
    for key, where in found.items():
        entry = before.get(key)
        if entry is None or entry.facts.volatile or entry.signature != probe(where):
            known[key] = _read(where)
        else:
            known[key] = _Known(entry.signature, entry.facts, None)
    probe.close()
    return known


def _read(where: scan.Found) -> _Known:
    content = scan.read(where)
    row = base_row(where.experiment_id, content.bundle, content.planned)
    damage = [[path, reason] for path, reason in content.damage]
    if not content.bundle and not content.planned.plan and not damage:
        damage = [[str(where.plan or where.page), "vanished while it was read"]]
    return _Known(content.signature, facts_of(row, content.bundle, damage), row)


def _assemble(
    order: Iterable[str],
    known: Mapping[str, _Known],
    judged: _Judged,
    found: Mapping[str, scan.Found],
    index: Index | None,
    old: bytes,
) -> tuple[bytes, dict[str, Entry], int]:
    """The ledger's bytes, where each line lies, and how many lines are not as they were.

    Neighbours that did not change are copied as one piece.
    """
    pieces: list[bytes] = []
    entries: dict[str, Entry] = {}
    before = index.entries if index else {}
    start = end = offset = changed = 0  # old[start:end] is the piece that still grows
    for key in order:
        one, entry, placement = known[key], before.get(key), judged.places.get(key)
        wrong = judged.wrong.get(key, [])
        same = entry is not None and (entry.placement, entry.wrong) == (placement, wrong)
        if one.row is None and entry is not None and same:
            if entry.offset != end:
                pieces.append(old[start:end])
                start = entry.offset
            end = entry.offset + entry.length
            entries[key] = entry if entry.offset == offset else entry._replace(offset=offset)
        else:
            one = _read(found[key]) if one.row is None else one
            line = _line(one, placement, wrong)
            changed += entry is None or line != old[entry.offset : entry.offset + entry.length]
            pieces += (old[start:end], line)
            start = end = -1
            entries[key] = Entry(one.signature, one.facts, placement, wrong, offset, len(line))
        offset += entries[key].length
    pieces.append(old[start:end])
    return b"".join(pieces), entries, changed


def _line(known: _Known, placement: Placement | None, wrong: list[Fault]) -> bytes:
    row = known.row or {}
    unusable = in_words(known.facts.damage)
    finish(row, placement, undecided_stamp(known.facts), unusable, in_words(wrong))
    return to_json(row, inf_nan_mode="null") + b"\n"


def _old_ledger(layout: Layout, index: Index | None) -> bytes:
    """The ledger's bytes; the index vouches for them, or there is none."""
    return read_bytes(layout.ledger, LIMIT) if index else b""


def _decisions(layout: Layout, problems: list[Problem]) -> tuple[list[Document], bool]:
    try:
        documents, bad = decision_documents(layout)
    except RecordError as error:
        reason = reason_in(error, layout.decisions)
        problems.append(_problem(layout, str(layout.decisions), reason))
        return [], False
    problems += [_problem(layout, str(layout.decisions), reason) for reason in bad]
    return documents, True


def _problem(layout: Layout, path: str, reason: str, experiment: str | None = None) -> Problem:
    short = path.removeprefix(f"{layout.root}/")
    return Problem(path=shown(short), reason=shown(reason), experiment_id=experiment)


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def read_ledger(layout: Layout) -> list[dict[str, Any]]:
    """The rows of experiments.jsonl as the last sync left them; none before the first.

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
    rows = []
    for line in content.splitlines():
        try:
            row = from_json(line)
        except ValueError:
            rows += jsonl.parse(line)[0]
        else:
            rows += [row] if isinstance(row, dict) else []
    return rows


def active_tag(layout: Layout) -> str:
    """The tag of the search that is on: the manifest's, else the last decision's or plan's.

    Empty when nothing was ever planned.
    """
    return manifest_tag(layout)[0] or _last_tag(layout)


def manifest_tag(layout: Layout) -> tuple[str, str]:
    """The manifest's tag, and what is wrong with the manifest."""
    try:
        manifest = read_json(layout.manifest)
    except FileNotFoundError:
        return "", ""
    except RecordError as error:
        return "", reason_in(error, layout.manifest)
    tag = manifest.get("tag") if isinstance(manifest, dict) else None
    return (tag, "") if isinstance(tag, str) and tag else ("", "names no tag")


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
