"""`sync`: bundles to ledger, results.tsv, aggregates and the picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import err, out, print_json, repository_path

if TYPE_CHECKING:
    from autohypothesis.records.layout import Layout

PICTURE_AGE_S = 60.0
"""A picture younger than this is left: drawing costs more than all the rest of a sync."""


def register(app: typer.Typer) -> None:
    app.command("sync")(sync)


def sync(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Refresh picture and parquet whatever their age.")
    ] = False,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Fold the run bundles under research/ into experiments.jsonl.

    Safe at any time, beside a running fleet and other syncs. Example: `orchestrator.py sync --all`
    """
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

    layout = Layout(Repository.find(repository_path(context, repo)).root)
    from autohypothesis.engine import recovery

    recovery.collect_ended(Repository(layout.root), layout)
    report, drawn = refresh(layout, everything=everything)
    if as_json:
        print_json({**report.as_dict(), "drawn": drawn})
        return
    news = f", {report.changed} of them new or changed" if report.changed else ", nothing new"
    said = f"{report.rows} experiments in {layout.ledger}{news}"
    out().print(said, soft_wrap=True, markup=False)
    if drawn:
        out().print(f"picture in {layout.progress_png}", soft_wrap=True, markup=False)
    for problem in report.problems:
        err().print(f"left out: {problem.path}: {problem.reason}", soft_wrap=True, markup=False)


def refresh(layout: Layout, *, everything: bool = False) -> tuple[SyncReport, bool]:
    """Sync, and draw the picture when it is older than a minute and something changed."""
    from autohypothesis.fleet.sync import sync as fold_and_write

    report = fold_and_write(layout, all=everything)
    if report.hand_edits:
        report = _take_edits(layout, report)
    due = everything or (report.changed > 0 and _age(layout.progress_png) > PICTURE_AGE_S)
    if due and report.rows:
        draw(layout)
    return report, bool(due and report.rows)


def _take_edits(layout: Layout, report: SyncReport) -> SyncReport:
    """Decisions stamped into result.json become decisions; then the ledger shows them."""
    from autohypothesis.engine.lab import Lab
    from autohypothesis.engine.settle import take_hand_edits
    from autohypothesis.fleet.sync import sync as fold_and_write

    lab = Lab.open(layout.root)
    edits = [(edit.experiment_id, edit.status) for edit in report.hand_edits]
    taken, refused = take_hand_edits(lab, edits)
    for line in refused:
        err().print(f"edit refused: {line}", soft_wrap=True, markup=False)
    return fold_and_write(layout) if taken else report


def draw(layout: Layout) -> None:
    """progress.png of the active tag, from the ledger."""
    from autohypothesis.records.ledger import active_tag, read_ledger
    from autohypothesis.terminal.plots import draw_progress

    tag = active_tag(layout)
    rows = [row for row in read_ledger(layout) if row.get("tag") == tag]
    draw_progress(rows, layout.progress_png, tag=tag or "no tag yet")


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


if TYPE_CHECKING:
    from autohypothesis.fleet.sync import SyncReport
