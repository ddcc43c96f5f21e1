"""Questions about rows of the ledger: which is the best, where did the search begin. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autohypothesis.records.rows import is_baseline

Row = Mapping[str, Any]


def of_tag(rows: Iterable[Row], tag: str | None) -> list[Row]:
    """The rows of one search; of all, when `tag` is None."""
    return [row for row in rows if tag is None or row.get("tag") == tag]


def kept(rows: Iterable[Row]) -> list[Row]:
    """Rows that were kept and have a value: what can be a best."""
    return [
        row for row in rows if row.get("status") == "keep" and row.get("metric_value") is not None
    ]


def best_kept(rows: Sequence[Row]) -> Row | None:
    """The best kept row, on the platform of the latest keep: others do not compare."""
    candidates = kept(rows)
    if not candidates:
        return None
    latest = max(candidates, key=lambda row: row.get("ordinal") or 0)
    same = [row for row in candidates if row.get("platform_key") == latest.get("platform_key")]
    sign = -1.0 if latest.get("direction") == "maximize" else 1.0
    return min(same, key=lambda row: sign * float(row["metric_value"]))


def first_baseline(rows: Sequence[Row]) -> Row | None:
    """The first kept run of the unchanged script."""
    return next((row for row in kept(rows) if is_baseline(dict(row))), None)
