"""The words under which experiments are counted, and the one count that every page shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from autohypothesis.records.rows import DECIDED, NOT_EVIDENCE, is_baseline

DAMAGED = "damaged"
NOTHING_NEW = "nothing_new"
"""A failure: the change left the files as a run had them before, so that nothing was judged."""
WORDS = (*DECIDED, "replicate", NOTHING_NEW, "lost", "cancelled", "undecided", DAMAGED)
"""Every experiment is counted under one of these; the first three alone make rates."""


class Tally(NamedTuple):
    """The experiments of a search, counted."""

    outcomes: dict[str, int]
    """Word of `WORDS` -> number, without zeros."""
    keep_rate: float | None
    """Kept share of what was tried, without baselines; None where nothing was."""


def tally(counted: Iterable[tuple[str, bool]]) -> Tally:
    """Count experiments, each given as its word and whether it is a baseline."""
    number = Counter(counted)
    every = {word: number[word, False] + number[word, True] for word in WORDS}
    changes = {word: number[word, False] for word in WORDS}
    made = tried(changes)
    rate = changes["keep"] / made if made else None
    return Tally({word: count for word, count in every.items() if count}, rate)


def tally_rows(rows: Iterable[Mapping[str, Any]]) -> Tally:
    """Count rows of the ledger."""
    return tally((word_of(row), is_baseline(row)) for row in rows)


def tried(outcomes: Mapping[str, int]) -> int:
    """Return how many experiments were kept, discarded or crashed."""
    return sum(outcomes.get(word, 0) for word in DECIDED)


def ended(outcomes: Mapping[str, int]) -> int:
    """Return how many experiments ran to an end of their own and were decided, repeats included."""
    return tried(outcomes) + outcomes.get("replicate", 0)


def word_of(row: Mapping[str, Any]) -> str:
    """Return the word of `WORDS` under which a row is counted."""
    return counted_as(
        str(row.get("status")),
        row.get("failure_kind"),
        row.get("replicates"),
        is_decided=row.get("ordinal") is not None,
    )


def counted_as(
    status: str, failure_kind: str | None, replicates: str | None, *, is_decided: bool
) -> str:
    """Return the word of `WORDS` for a status of the ledger.

    Args:
        replicates: the experiment that it repeats: a repeat is no try of its own.
    """
    if status in (DAMAGED, "artifact_invalid"):
        return DAMAGED
    shown = shown_as(status, failure_kind)
    if shown == "cancelled":
        return shown
    if not is_decided or shown not in WORDS:
        return "undecided"
    if shown in DECIDED and (replicates is not None or failure_kind == NOTHING_NEW):
        return "replicate" if replicates is not None else NOTHING_NEW
    return shown


def counts_line(outcomes: Mapping[str, int]) -> str:
    """Return `12: 3 keep, 9 discard, 0 crash; 1 cancelled`: what makes no rate stands behind."""
    rates = ", ".join(f"{outcomes.get(word, 0):,} {word}" for word in DECIDED)
    others = [word for word in WORDS if word not in DECIDED and outcomes.get(word)]
    rest = ", ".join(f"{outcomes[word]:,} {word}" for word in others)
    return f"{tried(outcomes):,}: {rates}" + (f"; {rest}" if rest else "")


def shown_as(status: str, failure_kind: str | None) -> str:
    """Return `status`, or `lost` for a crash that was no fault of the change."""
    return "lost" if status == "crash" and failure_kind in NOT_EVIDENCE else status
