"""`show-results`: what a search found, from the ledger or from anybody's results.tsv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import err, out, print_json, remark, repository_path
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.fleet.overview.results import Results
    from autohypothesis.records.layout import Layout


def register(app: typer.Typer) -> None:
    app.command("show-results")(show_results)


def show_results(
    context: typer.Context,
    top: Annotated[int, typer.Option("--top", min=1, help="Lines of the table.")] = 10,
    kept_only: Annotated[
        bool, typer.Option("--kept-only", help="Only what was kept, in the table.")
    ] = False,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """How a search stands: start, best, the gain of each kept step, keep rate, crashes, hours.

    Without a ledger a results.tsv of any other loop is read; what it cannot tell is null.
    Example: `orchestrator.py show-results --top 5 --kept-only`
    """
    found = _results(_layout(repository_path(context, repo)), tag)
    if as_json:
        print_json(found.as_dict(top, kept_only=kept_only))
        return
    from autohypothesis.terminal.results import results_page

    if not found.experiments:
        err().print("nothing is decided yet; start: [bold]python orchestrator.py run-loop[/]")
        return
    out().print(results_page(found, top, kept_only=kept_only))
    for note in found.notes:
        remark(f"note: {found.source}: {note}")


def _layout(path: Path) -> Layout:
    """The folder itself where it holds a ledger or a table, else the repository around it."""
    from autohypothesis.records.git import Repository, refuse_path
    from autohypothesis.records.layout import Layout

    refuse_path(path.absolute())
    here = Layout(path.absolute())
    if here.ledger.is_file() or here.results_tsv.is_file():
        return here
    return Layout(Repository.find(path).root)


def _results(layout: Layout, tag: str | None) -> Results:
    from autohypothesis.commands.show import ledger_rows, meant_tag
    from autohypothesis.fleet.overview.results import device_intervals, from_rows, from_table
    from autohypothesis.fleet.queue import warm_start
    from autohypothesis.records.history import of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.schema import now

    # A ledger without the bundles it was folded from is somebody's copy: it is read, never folded.
    rows = ledger_rows(layout) if layout.research.is_dir() else read_ledger(layout)
    if not rows and not tag and layout.results_tsv.is_file():
        return from_table(warm_start.read(layout.results_tsv, called=""))
    wanted = meant_tag(layout, tag) or (str(rows[-1].get("tag") or "") if rows else None)
    mine = of_tag(rows, wanted)
    if tag and not mine:
        known = ", ".join(sorted({str(row.get("tag")) for row in rows})) or "none"
        raise UsageError(
            f"no experiment has the tag {tag!r}", hint=f"there are: {known}; leave --tag out"
        )
    return from_rows(mine, wanted, device_intervals(layout, mine, None, now()))
