"""The tables that sync makes from a fold: results.tsv, leaderboard, fleet brief. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from autohypothesis.plain import table_text
from autohypothesis.records.history import best_of
from autohypothesis.records.ledger import Folded, FoldEntry
from autohypothesis.records.outcomes import DAMAGED, tally, tried
from autohypothesis.records.rows import IMPORTED
from autohypothesis.records.shown import Shown

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
HEADER = "\t".join(COLUMNS) + "\n"


@dataclass(frozen=True, slots=True)
class HandEdit:
    """A `decision_status` that a person wrote into the result.json of an undecided experiment."""

    experiment_id: str
    status: str


def results_tsv(entries: Mapping[str, FoldEntry], tag: str) -> str:
    """Return keeps, discards and crashes of one tag, in the order in which they were decided.

    Replicates, what is not decided, and failures that say nothing about the hypothesis are absent.
    What another tool decided before stands first, whatever the tag.
    """
    every = (entry.shown for entry in entries.values())
    return HEADER + "".join([one.line for one in every if one.imported or one.tag == tag])


def commits_of(entries: Mapping[str, FoldEntry]) -> set[str]:
    """The commits of all experiments, as results.tsv has them."""
    own = {entry.details.facts.commit for entry in entries.values()}
    decided = {entry.shown.line.partition("\t")[0] for entry in entries.values()}
    return {table_text(commit)[:7] for commit in own | decided} - {""}


def leaderboard(folded: Folded, tag: str, active_workers: int) -> dict[str, Any]:
    """`aggregate/leaderboard.json` of one tag, without the time at which it was made.

    While the tag has no runs, it counts what another tool left, as `history.of_search` does.
    """
    every = {key: entry.shown for key, entry in folded.entries.items()}
    mine = [one for one in every.values() if one.tag == tag] if tag else []
    mine = mine or [one for one in every.values() if one.tag in ("", IMPORTED)]
    counted = tally((one.word, one.is_baseline) for one in mine)
    kept = {
        key: one
        for key, one in every.items()
        if one.kept and one.tag == tag and not one.imported and one.word != DAMAGED
    }
    best = best_of(
        {
            key: (one.ordinal or 0, *one.kept[:3])
            for key, one in kept.items()
            if one.kept[3] != "refuted"
        }
    )
    return {
        "total_runs": len(mine),
        "decided_runs": tried(counted.outcomes),
        "outcomes": counted.outcomes,
        "active_workers": active_workers,
        "best_run": row_of(folded, best) if best is not None else None,
        "baseline": None if best is None else _baseline(kept.values(), kept[best]),
        "keep_rate": None if counted.keep_rate is None else round(counted.keep_rate, 4),
        "tag": tag,
    }


def _baseline(kept: Iterable[Shown], best: Shown) -> float | None:
    """Return what the best is better than: the baseline before it on its platform, the last one,
    since a reference that a person moved is measured anew, and is no gain."""
    before = [
        (one.ordinal, one.kept[2])
        for one in kept
        if one.is_baseline
        and one.kept[0] == best.kept[0]
        and (one.ordinal or 0) <= (best.ordinal or 0)
    ]
    return max(before, default=(0, None))[1]


def row_of(folded: Folded, experiment: str) -> dict[str, Any]:
    """One row, from its line; its long texts stay in the ledger."""
    row: dict[str, Any] = from_json(folded.line(experiment))
    return {key: value for key, value in row.items() if key != "decision_markdown"}


def latest(folded: Folded, tag: str, most: int) -> tuple[list[Any], list[Any]]:
    """The rows of a tag that were decided last, newest first, and those that wait longest."""
    mine = [(key, e.shown) for key, e in folded.entries.items() if e.shown.tag == tag]
    decided = [key for key, shown in mine if shown.ordinal is not None][-most:]
    waiting = [key for key, shown in mine if shown.ordinal is None][:most]
    rows = [[from_json(folded.line(key)) for key in keys] for keys in (decided[::-1], waiting)]
    return rows[0], rows[1]


def imported(folded: Folded) -> list[str]:
    """Return what another tool decided and the last fold did not have."""
    before = folded.last.entries if folded.last is not None else {}
    new = [key for key in folded.fresh if folded.entries[key].shown.imported]
    return [key for key in new if key not in before or not before[key].shown.imported]


def hand_edits(entries: Mapping[str, FoldEntry]) -> list[HandEdit]:
    """Return stamps that name no record, on experiments that are not decided yet."""
    wishes = ((key, entry.shown.wish) for key, entry in entries.items())
    return [HandEdit(key, wish) for key, wish in wishes if wish]
