"""What the last fold saw: `research/aggregate/.fold-index`.

It lets the next fold read only what changed. It is disposable: one that is absent, damaged, of
other code or beside another ledger costs a cold fold, and nothing else. So it is never repaired,
only written anew.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json, to_json

from autohypothesis import schema
from autohypothesis.errors import RecordError
from autohypothesis.records.agreement import Fault
from autohypothesis.records.files import read_bytes, write_atomic
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import Facts, Placement

_ALLOWANCE = 1024 * 1024
"""Bytes; beyond them an index is never larger than the ledger that it is about."""
Stamp = list[int]
"""Inode, times of modification and change, size of a file we wrote."""


class Entry(NamedTuple):
    """One experiment as the last fold saw it."""

    signature: int
    """Of inode, time of modification and size of each of its files."""
    facts: Facts
    placement: Placement | None
    wrong: list[Fault]
    """What its bundle says that was not decided."""
    offset: int
    """Where its line lies in the ledger."""
    length: int


class Index(NamedTuple):
    entries: dict[str, Entry]
    ledger: Stamp
    aggregate: Stamp
    decisions: Stamp
    """Empty when decisions.jsonl must be read in any case."""
    last_tag: str


def stamp(path: Path) -> Stamp:
    """What would change if anybody touched the file; empty when it is not there."""
    try:
        status = os.lstat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size]


def load(layout: Layout, *, of_any_ledger: bool = False) -> Index | None:
    """The index, if it is whole, of this code, and about the ledger that is there now.

    With `of_any_ledger` also if somebody else wrote the ledger since.
    """
    try:
        there = stamp(layout.ledger)
        limit = (there[-1] if there else 0) + _ALLOWANCE
        head, _, body = read_bytes(layout.fold_index, limit).partition(b"\n")
        if head != _head(body):
            return None
        *about, entries = from_json(body, cache_strings="none")
        if not there or (about[0] != there and not of_any_ledger):
            return None
        return Index({key: _entry(*entry) for key, entry in entries.items()}, *about)
    except (FileNotFoundError, RecordError, ValueError, TypeError, AttributeError):
        return None


def save(layout: Layout, entries: Mapping[str, Entry], decisions: Stamp, last_tag: str) -> None:
    """Writes down the fold whose ledger and aggregate lie on the disk now."""
    written = [stamp(layout.ledger), stamp(layout.aggregate_experiments)]
    body = to_json([*written, decisions, last_tag, entries])
    write_atomic(layout.fold_index, _head(body) + b"\n" + body, durable=False)


def _entry(
    signature: int,
    facts: list[object],
    placement: list[object] | None,
    wrong: list[Fault],
    *where: int,
) -> Entry:
    placed = None if placement is None else Placement(*placement)  # type: ignore[arg-type]
    return Entry(signature, Facts(*facts), placed, wrong, *where)  # type: ignore[arg-type]


def _head(body: bytes) -> bytes:
    return b"fold-index %08x %08x %d" % (_code(), zlib.crc32(body), sys.hash_info.width)


@cache
def _code() -> int:
    """Of the modules that decide what a row looks like: other code, other rows."""
    folder, total = Path(__file__).parent, 0
    names = (
        "agreement",
        "bundles",
        "curve",
        "fold",
        "ids",
        "index",
        "ledger",
        "rows",
        "scan",
        "usual",
    )
    for path in (Path(schema.__file__), *(folder / f"{name}.py" for name in names)):
        total = zlib.crc32(path.read_bytes(), total)
    return total
