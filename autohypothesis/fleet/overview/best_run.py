"""The best kept experiment of a search, against its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autohypothesis.engine.policy import better_by
from autohypothesis.records.comparison import Comparison, comparison_of
from autohypothesis.records.rows import real
from autohypothesis.schema import Direction


@dataclass(frozen=True, slots=True)
class BestRun:
    """The best kept experiment."""

    experiment_id: str
    metric: str
    value: float
    direction: str
    title: str
    confirmation: str
    baseline: float | None
    """Value of the first kept run of the unchanged script, on the same platform; the best's own
    where nothing was changed in it."""
    improvement: float | None
    """Over the baseline, positive is better whatever the direction."""
    improvement_share: float | None
    compared: Comparison | None
    """With the base on which it was decided."""


def best_run(board: Mapping[str, Any]) -> BestRun | None:
    """Return the leaderboard's best against the baseline; None where it is no measurement."""
    row = board.get("best_run")
    if not isinstance(row, dict):
        return None
    metric = str(row.get("metric_name") or "val_bpb")
    value = real(row.get("metric_value"), metric)
    if value is None:
        return None
    direction: Direction = "maximize" if row.get("direction") == "maximize" else "minimize"
    baseline = real(board.get("baseline"), metric)
    # `+ 0.0` makes a zero of a negative zero.
    gain = None if baseline is None else better_by(value, baseline, direction) + 0.0
    return BestRun(
        experiment_id=str(row.get("id") or ""),
        metric=metric,
        value=value,
        direction=direction,
        title=str(row.get("description") or ""),
        confirmation=str(row.get("confirmation") or "none"),
        baseline=baseline,
        improvement=gain,
        improvement_share=gain / abs(baseline) if gain is not None and baseline else None,
        compared=comparison_of(row),
    )
