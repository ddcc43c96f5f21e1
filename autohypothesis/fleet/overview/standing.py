"""The best so far against where the search began, as the leaderboard has both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autohypothesis.records.rows import real


@dataclass(frozen=True, slots=True)
class Best:
    """The best kept experiment."""

    experiment_id: str
    metric: str
    value: float
    direction: str
    title: str
    confirmation: str
    baseline: float | None
    """What the first kept run of the unchanged script came to, on the same platform."""
    improvement: float | None
    """Over the baseline, positive is better whatever the direction."""
    improvement_share: float | None


def best_so_far(board: Mapping[str, Any]) -> Best | None:
    """The leaderboard's best, in terms of the baseline; None where it is no measurement."""
    row = board.get("best_run")
    if not isinstance(row, dict):
        return None
    metric = str(row.get("metric_name") or "val_bpb")
    value = real(row.get("metric_value"), metric)
    if value is None:
        return None
    direction = "maximize" if row.get("direction") == "maximize" else "minimize"
    baseline = real(board.get("baseline"), metric)
    gain = None if baseline is None else better_by(value, baseline, direction)
    return Best(
        experiment_id=str(row.get("id") or ""),
        metric=metric,
        value=value,
        direction=direction,
        title=str(row.get("description") or ""),
        confirmation=str(row.get("confirmation") or "none"),
        baseline=baseline,
        improvement=gain,
        improvement_share=gain / abs(baseline) if gain is not None and baseline else None,
    )


def better_by(value: float, than: float, direction: str) -> float:
    """How much better; `+ 0.0` makes a zero of a negative zero."""
    return (value - than if direction == "maximize" else than - value) + 0.0
