"""When an experiment held its device: from what its shim wrote down, else from its row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import read_json
from autohypothesis.records.layout import ID, Layout
from autohypothesis.schema import finite, utc

Span = tuple[str, datetime, datetime]
"""Worker, start and end of one experiment on its device."""


def spans_of(
    layout: Layout, rows: Iterable[Mapping[str, Any]], since: datetime | None, until: datetime
) -> list[Span]:
    found = []
    for row in rows:
        span = _span(layout, row)
        if span is None:
            continue
        start, end = span
        start, end = max(start, since) if since else start, min(end, until)
        if start < end:
            found.append((str(row.get("worker_id") or "–"), start, end))
    return found


def _span(layout: Layout, row: Mapping[str, Any]) -> tuple[datetime, datetime] | None:
    """From the exec of the training to the end of its scoring, as the shim wrote it down."""
    if not ID.fullmatch(str(row["id"])):
        return None
    record = object_in(layout.run(str(row["id"])).exit)
    start, end = moment(record.get("started_at")), moment(record.get("ended_at"))
    if start is not None and end is not None:
        return start, end
    end = end or moment(row.get("timestamp"))
    seconds = next(
        (
            number
            for value in (record.get("wall_seconds"), row.get("total_seconds"),
                          row.get("training_seconds"))
            if (number := finite(value)) is not None and 0 < number < 1e8
        ),
        None,
    )  # fmt: skip
    return (end - timedelta(seconds=seconds), end) if end and seconds else None


def object_in(path: Path) -> dict[str, Any]:
    """A damaged file is the next sync's to name; this page goes on without it."""
    try:
        value = read_json(path)
    except (FileNotFoundError, AutohypothesisError):
        return {}
    return value if isinstance(value, dict) else {}


def moment(value: object) -> datetime | None:
    try:
        at = utc(value)
    except (ValueError, OverflowError):
        return None
    return at if isinstance(at, datetime) else None
