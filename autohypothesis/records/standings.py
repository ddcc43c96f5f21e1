"""Questions about rows of the ledger: which is the best, where did the search begin. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autohypothesis.records.rows import is_baseline

Row = Mapping[str, Any]


def of_tag(rows: Iterable[Row], tag: str | None) -> list[Row]:
    """The rows of one search; of all, when `tag` is None."""
    return [row for row in rows if tag is None or row.get("tag") == tag]


def kept(rows: Iterable[Row]) -> list[Row]:
    """Rows that were kept and have a value: what can be a best.

    A row without a place shows a stamp whose record cannot be read: that ranks nothing.
    """
    return [
        row
        for row in rows
        if row.get("status") == "keep"
        and row.get("metric_value") is not None
        and row.get("ordinal") is not None
    ]


class Kept(NamedTuple):
    """What decides which of several kept experiments is the best."""

    id: str
    ordinal: int
    platform_key: str
    direction: str
    value: float


def best_of(kept: Sequence[Kept]) -> str | None:
    """The id of the best, on the platform that was kept on last: others do not compare."""
    if not kept:
        return None
    last = max(kept, key=lambda one: one.ordinal)
    sign = -1.0 if last.direction == "maximize" else 1.0
    same = [one for one in kept if one.platform_key == last.platform_key]
    return min(same, key=lambda one: sign * one.value).id


def best_kept(rows: Sequence[Row]) -> Row | None:
    """The best kept row that nobody has refuted."""
    by_id = {str(row["id"]): row for row in kept(rows) if row.get("confirmation") != "refuted"}
    best = best_of(
        [
            Kept(
                name,
                row.get("ordinal") or 0,
                row.get("platform_key", ""),
                row.get("direction", "minimize"),
                float(row["metric_value"]),
            )
            for name, row in by_id.items()
        ]
    )
    return by_id[best] if best else None


def first_baseline(rows: Sequence[Row]) -> Row | None:
    """The first kept run of the unchanged script."""
    return next((row for row in kept(rows) if is_baseline(dict(row))), None)
