"""The best so far against where the search began, from two or three small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import read_json
from autohypothesis.records.ids import baseline_id, experiment_stem
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import real

BASELINES = 64
"""Runs of the baseline that are looked at: one per platform, and a few repeats."""


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


def best_so_far(layout: Layout, tag: str, row: Mapping[str, Any]) -> Best | None:
    """The leaderboard's best, in terms of the baseline; None where it is no measurement."""
    metric = str(row.get("metric_name") or "val_bpb")
    value = real(row.get("metric_value"), metric)
    if value is None:
        return None
    direction = "maximize" if row.get("direction") == "maximize" else "minimize"
    baseline = _baseline(layout, tag, metric, str(row.get("platform_key") or ""))
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


def _baseline(layout: Layout, tag: str, metric: str, platform: str) -> float | None:
    try:
        stem = experiment_stem(baseline_id(tag))
    except AutohypothesisError:
        return None  # a tag of another tool's that is no id of ours
    for number in range(1, BASELINES):
        run = layout.run(f"{stem}-{number}")
        if not run.folder.is_dir():
            return None
        result = _object(run.result)
        if result.get("decision_status") != "keep" or result.get("status") != "completed":
            continue
        runtime = _object(run.metadata).get("runtime")
        key = runtime.get("platform_key") if isinstance(runtime, dict) else None
        metrics = result.get("metrics")
        printed = metrics.get(metric) if isinstance(metrics, dict) else None
        value = real(result.get("metric_value"), metric)
        value = real(printed, metric) if value is None else value
        if value is not None and (not platform or key == platform):
            return value
    return None


def _object(path: Any) -> dict[str, Any]:
    """A damaged file of a bundle is the next sync's to name."""
    try:
        value = read_json(path)
    except (FileNotFoundError, AutohypothesisError):
        return {}
    return value if isinstance(value, dict) else {}
