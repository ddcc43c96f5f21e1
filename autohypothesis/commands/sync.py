"""`sync`: bundles to ledger, results.tsv, aggregates and the picture."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from autohypothesis.commands.app import HERE, Json, Repo, app
from autohypothesis.commands.common import opened, print_json, remark, role, say
from autohypothesis.errors import AutohypothesisError, UsageError

if TYPE_CHECKING:
    from autohypothesis.fleet.sync import SyncReport
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

PICTURE_AGE_S = 60.0
"""A picture younger than this is left: drawing costs more than all the rest of a sync."""


@app.command("sync")
def sync(
    everything: Annotated[
        bool, Option("--all", help="Refresh picture and parquet whatever their age.")
    ] = False,
    watch: Annotated[
        float | None, Option(metavar="S", min=0.1, help="Again every S seconds, until stopped.")
    ] = None,
    snapshot: Annotated[
        bool, Option("--snapshot", help="Keep bundles and decisions in git as well.")
    ] = False,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Bring experiments.jsonl, results.tsv and the pictures up to date with what was run.

    Safe at any time, beside a running fleet and other syncs. Example: `orchestrator.py sync --all`
    """
    from autohypothesis.plain import some_of
    from autohypothesis.records.bundles import uncollected
    from autohypothesis.records.problems import problem_lines

    repository, layout = opened(repo)
    if watch is not None:
        if as_json:
            raise UsageError("--watch prints nothing, and --json asks for it", hint="leave one out")
        _watch(repository, layout, watch, everything, snapshot)
        return
    if ended := uncollected(layout):
        from autohypothesis.engine.collect import collect_ended

        collect_ended(repository, layout, ended)
    report, drawn = refresh(layout, everything=everything, names_taken=False)
    kept = keep(repository, layout, everything=everything) if snapshot else None
    if as_json:
        print_json({**asdict(report), "drawn": drawn is not None, "snapshot": kept})
        return
    news = f", {report.changed} of them new or changed" if report.changed else ", nothing new"
    say(f"{report.rows} experiments in {layout.ledger}{news}")
    if report.taken:
        remark(f"taken in, written by hand: {some_of(report.taken)}")
    if drawn:
        say(f"picture in {drawn}")
    if report.imported:
        count, names = len(report.imported), some_of(report.imported)
        remark(
            f"{count:,} runs of another tool, shown as it decided and attested by nobody: {names}"
        )
    for line in problem_lines(report.problems):
        remark(f"damaged: {line}")


def refresh(
    layout: Layout, *, everything: bool = False, names_taken: bool = True
) -> tuple[SyncReport, Path | None]:
    """Sync, and draw the picture when it is older than a minute and something changed.

    Says once where a table goes whose name is the user's, unless `names_taken` is off.

    Returns the report, and where the picture is if it was drawn.
    """
    from autohypothesis.fleet.sync import sync as fold_and_write
    from autohypothesis.records.files import read_object
    from autohypothesis.records.history import of_search
    from autohypothesis.records.ledger import read_ledger

    known = read_object(layout.problems).get("problems") if names_taken else []
    report = fold_and_write(layout, all=everything)
    if report.hand_edits:
        from autohypothesis.engine.decide import edits_in_results

        for note in edits_in_results(layout, report.hand_edits):
            remark(f"note: {note}")
    drawn = None
    if report.rows and (everything or _picture_is_due(layout)):
        from autohypothesis.records.outputs import picture_place
        from autohypothesis.terminal.plots import draw_progress

        rows, drawn = of_search(read_ledger(layout), report.tag), picture_place(layout)
        draw_progress(rows, drawn, tag=str(rows[0]["tag"]) if rows else report.tag)
    for problem in report.problems if names_taken else ():
        at_root = "/" not in problem.path
        if at_root and not (isinstance(known, list) and problem.model_dump() in known):
            remark(f"note: {problem.path} {problem.reason}")
    return report, drawn


def _watch(
    repository: Repository, layout: Layout, seconds: float, everything: bool, snapshot: bool
) -> None:
    """Sync until asked to stop; what fails, on a full disk say, is named and tried again."""

    with role("sync") as stop:
        while not stop.requested:
            try:
                refresh(layout, everything=everything)
                if snapshot:
                    keep(repository, layout)
                    repository.pack_when_due()
            except (AutohypothesisError, OSError) as error:
                remark(str(error))
            stop.wait(seconds)


def keep(repository: Repository, layout: Layout, *, everything: bool = False) -> str | None:
    """Make a snapshot of the active tag; return its commit, None where nothing is new."""
    from autohypothesis.fleet.supervisor.snapshot import snapshot
    from autohypothesis.records.layout import ID
    from autohypothesis.records.ledger import latest_tag

    tag = latest_tag(layout)
    if not ID.fullmatch(tag):
        return None
    return snapshot(repository, layout, tag, everything=everything)


def _picture_is_due(layout: Layout) -> bool:
    """Whether the picture is older than a minute and than the ledger."""
    drawn = min(_age(layout.progress_png), _age(layout.aggregate_progress_png))
    return drawn > max(PICTURE_AGE_S, _age(layout.ledger))


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
