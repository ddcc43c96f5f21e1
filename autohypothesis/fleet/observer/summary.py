"""`research/live/summary.json`: all workers on a page, for whoever polls one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Heartbeat, LiveSummary, now

BEST = ("id", "commit", "metric_name", "metric_value", "val_bpb", "peak_vram_gb", "description")
"""Of the best row; the rest is in the leaderboard."""
LIMIT = 4 * 1024 * 1024


def write_summary(
    layout: Layout,
    heartbeats: Sequence[Heartbeat],
    *,
    alive: Sequence[str],
    best: Mapping[str, Any] | None,
) -> None:
    """Writes the page, unless it says nothing new.

    Args:
        alive: the workers whose process lives.

    Raises:
        RecordError: the disk is full.
    """
    living = [one for one in heartbeats if one.worker_id in alive]
    summary = LiveSummary(
        generated_at=now(),
        workers=list(heartbeats),
        active_runs=[one.run_id for one in living if one.run_id],
        free_workers=[one.worker_id for one in living if one.state == "idle"],
        best_result={key: best.get(key) for key in BEST} if best else None,
        paths={
            "ledger": str(layout.ledger),
            "leaderboard": str(layout.leaderboard),
            "brief": str(layout.brief),
        },
    )
    document = summary.model_dump(mode="json")
    if not _same(layout, document):
        write_json(layout.live_summary, document, durable=False)


def _same(layout: Layout, document: Mapping[str, Any]) -> bool:
    try:
        before = read_json(layout.live_summary, LIMIT)
    except (FileNotFoundError, RecordError):
        return False
    if not isinstance(before, dict):
        return False
    return {**before, "generated_at": None} == {**document, "generated_at": None}
