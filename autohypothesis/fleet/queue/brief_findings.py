"""What a proposer should know of the past: what was kept, what fails, what led nowhere. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

from autohypothesis.records.rows import NOT_EVIDENCE, RowDocument, is_baseline
from autohypothesis.schema import Finding, finite

MOST_KEEPS = 20
MOST_CRASHES = 8
MOST_DISCARDS = 20
TITLE, TEXT = 160, 240
"""Characters."""

Row = Mapping[str, Any]


def findings(rows: Sequence[Row], change_of: Callable[[str], str]) -> Iterator[Finding]:
    """Of note, the most important first; `change_of` says in words what a hypothesis changed."""
    noted = of_note(rows)
    seeds = _seeds(rows, {str(row["id"]) for row in noted})
    for row in noted:
        change = change_of(str(row.get("hypothesis_id") or ""))
        name = str(row["id"])
        yield Finding(
            finding_id=f"f-{name}"[:63],
            title=_text(row.get("description") or name, TITLE),
            evidence=_text(evidence(row, seeds.get(name, {})), TEXT),
            confidence=_confidence(row),
            mechanism=_text(row.get("rationale"), TEXT),
            implication=_text(_implication(row, change), TEXT),
        )


def of_note(rows: Sequence[Row]) -> list[Row]:
    """Keeps, newest first; the newest crash of each kind; discards that were far from the best."""
    tried = [
        row for row in rows if not row.get("replicates") and not is_baseline(cast(RowDocument, row))
    ]
    newest = sorted(tried, key=lambda row: row.get("ordinal") or 0, reverse=True)
    keeps = [row for row in newest if row.get("status") == "keep"]
    crashes: dict[str, Row] = {}
    for row in newest:
        kind = str(row.get("failure_kind") or "")
        if row.get("status") == "crash" and kind not in NOT_EVIDENCE:
            crashes.setdefault(kind, row)
    discards = [row for row in newest if row.get("status") == "discard"]
    recent, older = discards[: MOST_DISCARDS // 2], discards[MOST_DISCARDS // 2 :]
    older.sort(key=lambda row: abs(finite(row.get("delta")) or 0.0), reverse=True)
    return [
        *keeps[:MOST_KEEPS],
        *list(crashes.values())[:MOST_CRASHES],
        *recent,
        *older[: MOST_DISCARDS // 2],
    ]


def evidence(row: Row, seeds: Mapping[object, float]) -> str:
    """Metric, distance and number of seeds; of a failure, its kind."""
    value, delta = finite(row.get("metric_value")), finite(row.get("delta"))
    if value is None:
        return f"{row['id']}: {row.get('failure_kind') or row.get('status')}"
    said = f"{row['id']}: {row.get('metric_name') or 'metric'} {value:.6f}"
    if delta is not None:
        said += f", {delta:+.6f} against the best before it"
    if len(seeds) < 2:
        return f"{said}, 1 seed"
    values = list(seeds.values())
    mean, spread = sum(values) / len(values), max(values) - min(values)
    return f"{said}, {len(values)} seeds: mean {mean:.6f}, spread {spread:.6f}"


def _seeds(rows: Sequence[Row], wanted: Set[str]) -> dict[str, dict[object, float]]:
    """First experiment of a group -> seed -> value."""
    found: dict[str, dict[object, float]] = defaultdict(dict)
    for row in rows:
        first = row.get("replicates") or row["id"]
        value = finite(row.get("metric_value")) if first in wanted else None
        if value is not None:
            found[str(first)][row.get("seed")] = value
    return found


def _confidence(row: Row) -> str:
    said = str(row.get("confirmation") or "none")
    return "one run" if said == "none" else said


def _implication(row: Row, change: str) -> str:
    status = row.get("status")
    if row.get("confirmation") == "refuted":
        return f"refuted when it was run again: {change}".rstrip(": ")
    if status == "keep":
        return f"in the reference: {change}".rstrip(": ")
    if status == "crash":
        return f"fails ({row.get('failure_kind') or 'unknown'}): {change}".rstrip(": ")
    return f"no gain ({row.get('outcome') or 'discarded'}): {change}".rstrip(": ")


def _text(value: object, most: int) -> str:
    text = str(value or "")
    return text if len(text) <= most else f"{text[: most - 1]}…"
