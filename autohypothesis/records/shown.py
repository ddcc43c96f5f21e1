"""What the tables show of one experiment. Pure; the index of the fold keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from autohypothesis.plain import table_text
from autohypothesis.records.bundles import Damage
from autohypothesis.records.outcomes import DAMAGED, counted_as
from autohypothesis.records.rows import DECIDED, Facts, Placement


class Shown(NamedTuple):
    """One experiment as the tables have it. The index keeps it, so that no table asks for more."""

    tag: str
    """As it was decided, else as its bundle has it."""
    timestamp: str
    ordinal: int | None
    """None while it is not decided."""
    imported: bool
    word: str
    """Under which it is counted, one of `outcomes.WORDS`."""
    is_baseline: bool
    """What `rows.is_baseline` says of its row."""
    line: str
    """Its line in results.tsv; empty where it has none."""
    wish: str
    """The `decision_status` of a `tables.HandEdit`, or empty."""
    kept: list[Any]
    """[platform, direction, value, confirmation] where it was kept with a value; else empty."""


def shown_of(facts: Facts, placement: Placement | None, wrong: Sequence[Damage]) -> Shown:
    """Return what the tables show of an experiment.

    Args:
        wrong: what its bundle says against the decisions.
    """
    kind, replicates = facts.failure_kind, facts.replicates
    status = "cancelled" if kind == "cancelled" else ""
    tag, ordinal, imported, line, is_baseline = facts.tag, None, False, "", facts.baseline
    kept: list[Any] = []
    if placement is not None:
        tag, ordinal, imported, status = (
            placement.tag, placement.ordinal, placement.imported, placement.status,
        )  # fmt: skip
        fixed, value = placement.fixed, placement.metric_value
        is_baseline = is_baseline or fixed.get("reason") == "baseline"
        if counted_as(status, kind, replicates, is_decided=True) in DECIDED:
            line = _tsv_line(facts, placement)
        if status == "keep" and value is not None:
            platform = fixed.get("platform_key") or facts.platform_key
            direction = fixed.get("direction") or facts.direction
            kept = [platform, direction, value, placement.confirmation]
    is_wish = placement is None and facts.stamp_id is None and facts.stamp in DECIDED
    is_wish = is_wish and facts.execution_status == "completed" and not wrong
    status = DAMAGED if facts.damage or wrong else status
    word = counted_as(status, kind, replicates, is_decided=placement is not None)
    wish = facts.stamp if is_wish else ""
    return Shown(tag, facts.timestamp, ordinal, imported, word, is_baseline, line, wish, kept)


def _tsv_line(facts: Facts, placement: Placement) -> str:
    commit = table_text(placement.commit or facts.commit)[:7]
    value = placement.metric_value
    memory = facts.peak_vram_gb or 0.0
    if placement.status == "crash" or value is None:
        value = memory = 0.0
    description = table_text(facts.description)
    return f"{commit}\t{value:.6f}\t{memory:.1f}\t{placement.status}\t{description}\n"
