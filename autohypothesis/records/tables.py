"""The tables that sync makes from a fold: results.tsv, leaderboard, fleet brief. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from autohypothesis.plain import table_text
from autohypothesis.records.history import best_of
from autohypothesis.records.ledger import Folded, FoldEntry
from autohypothesis.records.outcomes import counted_as, shown_as, tally, tried
from autohypothesis.records.rows import DECIDED, IMPORTED, Facts, Placement

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
HEADER = "\t".join(COLUMNS) + "\n"


@dataclass(frozen=True, slots=True)
class HandEdit:
    """A `decision_status` that a person wrote into the result.json of an undecided experiment."""

    experiment_id: str
    status: str


def results_tsv(entries: Mapping[str, FoldEntry], tag: str) -> str:
    """Keeps, discards and crashes of one tag, in the order in which they were decided.

    What another tool decided before stands first, whatever the tag.
    """
    lines = [
        _tsv_line(entry.facts, entry.placement)
        for entry in _decided(entries.values(), tag)
        if entry.placement is not None and not _left_out(entry.facts, entry.placement)
    ]
    return HEADER + "".join(lines)


def commits_of(entries: Mapping[str, FoldEntry]) -> set[str]:
    """The commits of all experiments, as results.tsv has them."""
    placed = ((e.facts.commit, e.placement.commit if e.placement else "") for e in entries.values())
    return {table_text(one)[:7] for pair in placed for one in pair if one}


def _decided(entries: Iterable[FoldEntry], tag: str) -> list[FoldEntry]:
    places = [
        (not placed.imported, placed.ordinal, entry)
        for entry in entries
        if (placed := entry.placement) and (placed.imported or placed.tag == tag)
    ]
    return [entry for *_, entry in sorted(places, key=lambda place: place[:2])]


def _left_out(facts: Facts, placement: Placement) -> bool:
    """Replicates, what is not decided, and failures that say nothing about the hypothesis."""
    return (
        shown_as(placement.status, facts.failure_kind) not in DECIDED
        or facts.replicates is not None
        or facts.failure_kind == "nothing_new"
    )


def _word_of(entry: FoldEntry) -> str:
    facts, placed = entry.facts, entry.placement
    if facts.damage or entry.wrong:
        status = "damaged"
    elif placed is None:
        status = "cancelled" if facts.failure_kind == "cancelled" else ""
    else:
        status = placed.status
    return counted_as(status, facts.failure_kind, facts.replicates, is_decided=placed is not None)


def _tsv_line(facts: Facts, placement: Placement) -> str:
    commit = table_text(placement.commit or facts.commit)[:7]
    value = placement.metric_value
    memory = facts.peak_vram_gb or 0.0
    if placement.status == "crash" or value is None:
        value = memory = 0.0
    description = table_text(facts.description)
    return f"{commit}\t{value:.6f}\t{memory:.1f}\t{placement.status}\t{description}\n"


def _compared(entry: FoldEntry, placed: Placement) -> tuple[str, str]:
    """Platform and direction as they were decided, else as the bundle has them."""
    platform = placed.fixed.get("platform_key") or entry.facts.platform_key
    return platform, placed.fixed.get("direction") or entry.facts.direction


def _is_baseline(entry: FoldEntry) -> bool:
    """Return what `rows.is_baseline` says of the row of a decided entry."""
    placed = entry.placement
    return entry.facts.baseline or bool(placed and placed.fixed.get("reason") == "baseline")


def _baseline_of(entries: Mapping[str, FoldEntry], tag: str, best: str | None) -> float | None:
    """Return what the best is better than: the baseline before it on its platform, the last one,
    since a reference that a person moved is measured anew, and is no gain."""
    if best is None or (placed := entries[best].placement) is None:
        return None
    platform, until = _compared(entries[best], placed)[0], placed.ordinal or 0
    kept = [
        (other.ordinal, other.metric_value)
        for entry in entries.values()
        if (other := entry.placement) is not None
        and (other.tag, other.status, _is_baseline(entry)) == (tag, "keep", True)
        and not (entry.facts.damage or entry.wrong)
        and _compared(entry, other)[0] == platform
        and (other.ordinal or 0) <= until
    ]
    return max(kept, default=(0, None))[1]


def leaderboard(folded: Folded, tag: str, active_workers: int) -> dict[str, Any]:
    """`aggregate/leaderboard.json` of one tag, without the time at which it was made.

    While the tag has no runs, it counts what another tool left, as `history.of_search` does.
    """
    mine = [entry for entry in folded.entries.values() if tag and _tag_of(entry) == tag]
    mine = mine or [entry for entry in folded.entries.values() if _tag_of(entry) in ("", IMPORTED)]
    counted = tally((_word_of(entry), _is_baseline(entry)) for entry in mine)
    best = best_of(
        {
            key: (placed.ordinal, *_compared(entry, placed), placed.metric_value)
            for key, entry in folded.entries.items()
            if (placed := entry.placement) is not None
            and (placed.tag, placed.status) == (tag, "keep")
            and placed.confirmation != "refuted"
            and not placed.imported
            and placed.metric_value is not None
            and not (entry.facts.damage or entry.wrong)
        }
    )
    return {
        "total_runs": len(mine),
        "decided_runs": tried(counted.outcomes),
        "outcomes": counted.outcomes,
        "active_workers": active_workers,
        "best_run": row_of(folded, best) if best is not None else None,
        "baseline": _baseline_of(folded.entries, tag, best),
        "keep_rate": None if counted.keep_rate is None else round(counted.keep_rate, 4),
        "tag": tag,
    }


def _tag_of(entry: FoldEntry) -> str:
    return entry.placement.tag if entry.placement is not None else entry.facts.tag


def row_of(folded: Folded, experiment: str) -> dict[str, Any]:
    """One row, from its line; its long texts stay in the ledger."""
    row: dict[str, Any] = from_json(folded.line(experiment))
    return {key: value for key, value in row.items() if key != "decision_markdown"}


def latest(folded: Folded, tag: str, most: int) -> tuple[list[Any], list[Any]]:
    """The rows of a tag that were decided last, newest first, and those that wait longest."""
    mine = [(key, entry) for key, entry in folded.entries.items() if _tag_of(entry) == tag]
    decided = [key for key, entry in mine if entry.placement is not None][-most:]
    waiting = [key for key, entry in mine if entry.placement is None][:most]
    rows = [[from_json(folded.line(key)) for key in keys] for keys in (decided[::-1], waiting)]
    return rows[0], rows[1]


def imported(folded: Folded) -> list[str]:
    """Return what another tool decided and the last fold did not have."""
    before = folded.last.entries if folded.last is not None else {}
    return [
        key
        for key in folded.fresh
        if _is_imported(folded.entries[key]) and not _is_imported(before.get(key))
    ]


def _is_imported(entry: FoldEntry | None) -> bool:
    return entry is not None and entry.placement is not None and entry.placement.imported


def hand_edits(entries: Mapping[str, FoldEntry]) -> list[HandEdit]:
    """Return stamps that name no record, on experiments that are not decided yet."""
    return [
        HandEdit(key, entry.facts.stamp)
        for key, entry in entries.items()
        if entry.placement is None
        and entry.facts.stamp_id is None
        and entry.facts.stamp in DECIDED
        and entry.facts.execution_status == "completed"
        and not entry.wrong
    ]
