"""`runs`, `show`, `best`, `show-results`, `adopt`, `schema`: look, and take home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import (
    complete_experiment,
    err,
    layout_of,
    opened,
    out,
    print_json,
    remark,
    repository_path,
    say,
)
from autohypothesis.errors import RecordError, SettleError, UnwritableError, UsageError

if TYPE_CHECKING:
    from autohypothesis.fleet.overview.results import Results
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout


ExperimentId = Annotated[
    str, typer.Argument(help="Id of an experiment.", autocompletion=complete_experiment)
]
TAIL_LINES = 15


def register(app: typer.Typer) -> None:
    app.command("runs")(runs)
    app.command("show")(show)
    app.command("best")(best)
    app.command("adopt")(adopt)
    app.command("schema")(schema)
    app.command("show-results")(show_results)


def runs(
    context: typer.Context,
    tag: Tag = None,
    every_tag: Annotated[bool, typer.Option("--all", help="Of every tag.")] = False,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only the newest N.")] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """List experiments in the order of their decisions; undecided ones come last.

    Example: `orchestrator.py runs --last 20`
    """
    layout = layout_of(context, repo)
    wanted = None if every_tag else meant_tag(layout, tag)
    rows = [row for row in ledger_rows(layout) if wanted is None or row.get("tag") == wanted]
    rows = rows[-last:] if last else rows
    if as_json:
        print_json(rows)
        return
    if not rows:
        err().print("no experiments yet; run one: [bold]python orchestrator.py run-experiment[/]")
        return
    from autohypothesis.terminal.experiments import runs_table

    out().print(runs_table(rows, title=f"tag {wanted}" if wanted else "every tag"))


def show(
    context: typer.Context, experiment_id: ExperimentId, repo: Repo = None, as_json: Json = False
) -> None:
    """Everything about one experiment: note, settings, diff, curve, tail of the log.

    Example: `orchestrator.py show baseline-nov20-1`
    """
    from autohypothesis.records.bundles import read_bundle

    layout = layout_of(context, repo)
    row = experiment_row(layout, experiment_id)
    run = layout.run(experiment_id)
    bundle = read_bundle(run)
    samples = bundle.exit["samples"] if bundle.exit else []
    page = {
        "row": row,
        "config": bundle.config,
        "reference_config": _config_at(layout, row.get("parent_commit")),
        "diff": _text(run.diff),
        "samples": samples,
        "log_tail": _text(run.log).splitlines()[-TAIL_LINES:],
        "paths": {"run": str(run.folder), "log": str(run.log)},
    }
    if as_json:
        print_json(page)
    else:
        from autohypothesis.terminal.experiments import print_experiment

        print_experiment(out(), page)


def best(
    context: typer.Context,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print what it changes against the first baseline.")
    ] = False,
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """The best kept experiment of the search.

    Example: `orchestrator.py best --diff`
    """
    from autohypothesis.records.history import best_kept, first_baseline

    repository, layout = opened(context, repo)
    wanted = meant_tag(layout, tag)
    rows = [row for row in ledger_rows(layout) if row.get("tag") == wanted]
    found, start = best_kept(rows), first_baseline(rows)
    if found is None:
        raise SettleError(
            f"nothing is kept under tag {wanted!r} yet" if wanted else "nothing is kept yet",
            hint="run the baseline: python orchestrator.py run-experiment --baseline",
        )
    changes = ""
    if diff and start is not None and start["commit"] != found["commit"]:
        changes = repository.diff(start["commit"], found["commit"])
    if as_json:
        print_json({"row": found, "baseline": start, **({"diff": changes} if diff else {})})
        return
    from autohypothesis.terminal.experiments import runs_table
    from autohypothesis.terminal.parts import diff_text

    out().print(runs_table([row for row in (start, found) if row] if start != found else [found]))
    if diff:
        out().print(diff_text(changes) if changes else "no change against it", soft_wrap=True)


def adopt(
    context: typer.Context,
    experiment_id: Annotated[
        str | None, typer.Argument(help="A kept experiment; default: the reference.")
    ] = None,
    tag: Tag = None,
    repo: Repo = None,
) -> None:
    """Fast-forward your branch to the reference, or to one kept experiment.

    Refused when your checkout has changes or commits of its own. Example: `orchestrator.py adopt`
    """
    repository, layout = opened(context, repo)
    commit = _reference(repository, meant_tag(layout, tag))
    if experiment_id is not None:
        row = experiment_row(layout, experiment_id)
        if row["status"] != "keep":
            raise UsageError(
                f"{experiment_id} is a {row['status']}, and only what was kept can be adopted",
                hint=f"look at it: python orchestrator.py show {experiment_id}",
            )
        commit = row["commit"]
    before = repository.head()
    branch = repository.fast_forward(commit)
    if before == commit:
        say(f"{branch} is at {commit[:7]} already")
    else:
        say(f"{branch} moved from {before[:7]} to {commit[:7]}")


def schema(
    name: Annotated[
        str | None, typer.Argument(help="`task`, or a model of schema.py; default: list them.")
    ] = None,
) -> None:
    """Print the JSON Schema of a file of ours, for editors and other programs.

    Example: `orchestrator.py schema task > task.schema.json`
    """
    from autohypothesis.engine.task import TaskFile
    from autohypothesis.errors import UsageError
    from autohypothesis.schema import FILES, nearest

    models = {model.__name__: model for model in FILES.values()}
    if name is None:
        print_json({"task": "task.yaml", **{m.__name__: file for file, m in FILES.items()}})
    elif name == "task":
        print_json(TaskFile.model_json_schema())
    elif name in models:
        print_json(models[name].model_json_schema())
    else:
        raise UsageError(
            f"no schema is called {name!r}{nearest(name, ['task', *models])}",
            hint="run `python orchestrator.py schema` for the names",
        )


def meant_tag(layout: Layout, tag: str | None) -> str | None:
    """Return the search that is meant: `--tag`, else the active one."""
    from autohypothesis.engine.project import active_tag
    from autohypothesis.records.layout import checked_id

    return checked_id(tag) if tag else active_tag(layout)


def _reference(repository: Repository, tag: str | None) -> str:
    from autohypothesis.engine.project import reference_ref

    commit = repository.read_ref(reference_ref(tag)) if tag else None
    if commit is None:
        raise SettleError(
            f"there is no search in {repository.root} yet" if tag is None
            else f"there is no search {tag!r} in {repository.root}",
            hint="start one with `python orchestrator.py run-experiment`",
        )  # fmt: skip
    return commit


def experiment_row(layout: Layout, experiment_id: str) -> dict[str, Any]:
    """Return an experiment's row of the ledger.

    Raises:
        UsageError: there is none of this id.
    """
    row = next((row for row in ledger_rows(layout) if row["id"] == experiment_id), None)
    if row is None:
        raise UsageError(
            f"no experiment is called {experiment_id!r}",
            hint="run `python orchestrator.py runs --all` for their ids",
        )
    return row


def ledger_rows(layout: Layout) -> list[dict[str, Any]]:
    """Return the ledger, brought up to date first, which costs a fraction of a second.

    Where nothing can be written it is folded in memory.
    """
    from autohypothesis.fleet.sync import sync
    from autohypothesis.records.ledger import parse_ledger, read_ledger, refold

    try:
        sync(layout)
    except UnwritableError:
        return parse_ledger(refold(layout).content)
    return read_ledger(layout)


def _config_at(layout: Layout, commit: str | None) -> dict[str, Any]:
    """Return the settings of an experiment that ran `commit`, to compare a change with."""
    from autohypothesis.records.bundles import read_bundle
    from autohypothesis.records.ledger import read_ledger

    at = next((row for row in read_ledger(layout) if commit and row["commit"] == commit), None)
    return read_bundle(layout.run(at["id"])).config if at else {}


def _text(path: Path) -> str:
    from autohypothesis.records.files import read_bytes

    try:
        return read_bytes(path, 64 << 20).decode("utf-8", "replace")
    except (FileNotFoundError, RecordError):
        return ""


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
    """Show a search: start, best, the gain of each kept step, keep rate, crashes, hours.

    Without a ledger a results.tsv of any other loop is read; what it cannot tell is null.
    Example: `orchestrator.py show-results --top 5 --kept-only`
    """
    found = _results(_layout(repository_path(context, repo)), tag)
    if as_json:
        print_json(found.as_dict(top, kept_only=kept_only))
        return
    from autohypothesis.terminal.experiments import results_page

    if not found.experiments:
        err().print("nothing is decided yet; start: [bold]python orchestrator.py run-loop[/]")
        return
    out().print(results_page(found, top, kept_only=kept_only))
    for note in found.notes:
        remark(f"note: {found.source}: {note}")


def _layout(path: Path) -> Layout:
    """Return the folder itself where it holds a ledger or a table, else its repository."""
    from autohypothesis.records.git import Repository, refuse_path
    from autohypothesis.records.layout import Layout

    refuse_path(path.absolute())
    here = Layout(path.absolute())
    if here.ledger.is_file() or here.results_tsv.is_file():
        return here
    return Layout(Repository.find(path).root)


def _results(layout: Layout, tag: str | None) -> Results:
    from autohypothesis.fleet.knowledge import warm_start
    from autohypothesis.fleet.overview.results import device_intervals, from_rows, from_table
    from autohypothesis.records.history import of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.schema import now

    # A ledger without the bundles it was folded from is a copy: it is read, never folded.
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
