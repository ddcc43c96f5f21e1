"""Look at a search (`status`, `digest`, `runs`, `show`, `best` ...), and take it home (`adopt`)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from autohypothesis.commands.app import HERE, ExperimentId, Json, Repo, Tag, app
from autohypothesis.commands.common import (
    layout_of,
    meant_tag,
    opened,
    out,
    print_json,
    remark,
    say,
)
from autohypothesis.errors import SettleError, UnwritableError, UsageError

if TYPE_CHECKING:
    from autohypothesis.fleet.overview.results import Results
    from autohypothesis.records.layout import Layout

TAIL_LINES = 15
FILE_LIMIT = 64 << 20


# ── a running search ────────────────────────────────────────────────────────────────────────


@app.command("status")
def status(tag: Tag = None, repo: Repo = HERE, as_json: Json = False) -> None:
    """How it stands now: the search, who is alive, the queue, and what needs you; it only reads.

    Example: `orchestrator.py status`
    """
    from autohypothesis.fleet.overview.overview import overview
    from autohypothesis.records.layout import checked_id
    from autohypothesis.terminal.fleet import status_page

    view = overview(layout_of(repo), tag=checked_id(tag) if tag else None)
    if as_json:
        print_json(_plain(view))
    else:
        out().print(status_page(view))


@app.command("monitor")
def monitor(
    interval: Annotated[float, Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    iterations: Annotated[int | None, Option(min=1, help="Leave after that many looks.")] = None,
    repo: Repo = HERE,
) -> None:
    """Watch the fleet at work, until Ctrl-C. It only reads, and may be left at any time.

    Off a terminal each look is printed below the last. Example: `orchestrator.py monitor`
    """
    from autohypothesis.terminal.live import watch

    with suppress(KeyboardInterrupt):  # the usual way to leave it
        watch(layout_of(repo), out(), interval=interval, iterations=iterations)


@app.command("digest")
def digest(
    since: Annotated[
        float | None, Option(metavar="HOURS", min=0.0, max=1e6, help="Only the last HOURS.")
    ] = None,
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """What happened since you left: what was kept, what failed, idle devices, where to look first.

    It reads the ledger as the last sync left it. Example: `orchestrator.py digest --since 12`
    """
    from autohypothesis.fleet.overview.digest import digest as gather
    from autohypothesis.records.layout import checked_id
    from autohypothesis.terminal.fleet import digest_page

    page = gather(layout_of(repo), checked_id(tag) if tag else None, since_hours=since)
    if as_json:
        print_json(_plain(page))
    else:
        out().print(digest_page(page))


def _plain(view: Any) -> Any:
    """Return a page for JSON: times as everywhere else, no number that is not finite."""
    from autohypothesis.records.files import to_json
    from autohypothesis.schema import rfc3339

    def times(value: Any) -> Any:
        if isinstance(value, datetime):
            return rfc3339(value)
        if isinstance(value, dict):
            return {key: times(item) for key, item in value.items()}
        return [times(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.loads(to_json(times(asdict(view))))


# ── experiments ─────────────────────────────────────────────────────────────────────────────


@app.command("runs")
def runs(
    tag: Tag = None,
    every_tag: Annotated[bool, Option("--all", help="Of every tag.")] = False,
    last: Annotated[int | None, Option(min=1, help="Only the newest N.")] = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """List experiments in the order of their decisions; undecided ones come last.

    Example: `orchestrator.py runs --last 20`
    """
    from autohypothesis.records.history import of_search

    layout = layout_of(repo)
    wanted = None if every_tag else meant_tag(layout, tag)
    rows = of_search(ledger_rows(layout), wanted)[-(last or 0) :]
    if as_json:
        print_json(rows)
    elif not rows:
        remark("no experiments yet; run one: python orchestrator.py run-experiment")
    else:
        from autohypothesis.engine.reference import read_reference
        from autohypothesis.records.comparison import near_misses
        from autohypothesis.records.git import Repository
        from autohypothesis.terminal.experiments import near_misses_text, runs_table

        out().print(runs_table(rows, title=f"tag {wanted}" if wanted else "every tag"))
        at = read_reference(Repository(layout.root), layout, wanted) if wanted else None
        if near := near_misses(rows, at) if wanted else []:
            out().print(near_misses_text(near))


@app.command("show")
def show(experiment_id: ExperimentId, repo: Repo = HERE, as_json: Json = False) -> None:
    """Everything about one experiment: note, settings, diff, curve, tail of the log.

    Example: `orchestrator.py show baseline-nov20-1`
    """
    from autohypothesis.records.bundles import read_bundle
    from autohypothesis.records.files import read_text

    layout = layout_of(repo)
    row = experiment_row(layout, experiment_id)
    run = layout.run(experiment_id)
    bundle = read_bundle(run)
    samples = bundle.exit["samples"] if bundle.exit else []
    page = {
        "row": row,
        "config": bundle.config,
        "reference_config": _config_at(layout, row.get("parent_commit")),
        "diff": read_text(run.diff, FILE_LIMIT),
        "samples": samples,
        "log_tail": read_text(run.log, FILE_LIMIT).splitlines()[-TAIL_LINES:],
        "paths": {"run": str(run.folder), "log": str(run.log)},
    }
    if as_json:
        print_json(page)
    else:
        from autohypothesis.terminal.experiments import print_experiment

        print_experiment(out(), page)


@app.command("best")
def best(
    diff: Annotated[
        bool, Option("--diff", help="Print what it changes against the first baseline.")
    ] = False,
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """The best kept experiment of the search.

    Example: `orchestrator.py best --diff`
    """
    from autohypothesis.records.history import best_kept, first_baseline

    repository, layout = opened(repo)
    wanted = meant_tag(layout, tag)
    rows = [row for row in ledger_rows(layout) if row.get("tag") == wanted]
    winner, start = best_kept(rows), first_baseline(rows)
    if winner is None:
        raise SettleError(
            f"nothing is kept under tag {wanted!r} yet" if wanted else "nothing is kept yet",
            hint="run the baseline: python orchestrator.py run-experiment --baseline",
        )
    changes = ""
    if diff and start is not None and start["commit"] != winner["commit"]:
        changes = repository.diff(start["commit"], winner["commit"])
    if as_json:
        print_json({"row": winner, "baseline": start, **({"diff": changes} if diff else {})})
        return
    from autohypothesis.terminal.experiments import runs_table
    from autohypothesis.terminal.parts import diff_text

    out().print(runs_table([start, winner] if start and start != winner else [winner]))
    if diff:
        out().print(diff_text(changes) if changes else "no change against it", soft_wrap=True)


@app.command("adopt")
def adopt(
    experiment_id: Annotated[
        str | None, Argument(help="A kept experiment; default: the reference.")
    ] = None,
    tag: Tag = None,
    repo: Repo = HERE,
) -> None:
    """Fast-forward your branch to the reference, or to one kept experiment.

    Refused when your checkout has changes or commits of its own. Example: `orchestrator.py adopt`
    """
    from autohypothesis.engine.project import no_search
    from autohypothesis.engine.reference import read_reference
    from autohypothesis.records.rows import IMPORTED

    repository, layout = opened(repo)
    wanted = meant_tag(layout, tag)
    commit = read_reference(repository, layout, wanted) if wanted else None
    if commit is None:
        raise no_search(repository, wanted)
    if experiment_id is not None:
        row = experiment_row(layout, experiment_id)
        if row["status"] != "keep" or row["decided_by"] == IMPORTED:
            whose = ", decided by another tool" if row["decided_by"] == IMPORTED else ""
            raise UsageError(
                f"{experiment_id} is a {row['status']}{whose}, and only what was kept here can be"
                " adopted",
                hint=f"look at it: python orchestrator.py show {experiment_id}",
            )
        commit = row["commit"]
    before = repository.head()
    branch = repository.fast_forward(commit)
    if before == commit:
        say(f"{branch} is at {commit[:7]} already")
    else:
        say(f"{branch} moved from {before[:7]} to {commit[:7]}")


@app.command("schema")
def schema(
    name: Annotated[
        str | None, Argument(help="`task`, or a model of schema.py; default: list them.")
    ] = None,
) -> None:
    """Print the JSON Schema of a file of ours, for editors and other programs.

    Example: `orchestrator.py schema task > task.schema.json`
    """
    from autohypothesis.engine.task import TaskFile
    from autohypothesis.schema import FILES, did_you_mean

    models = {model.__name__: model for model in FILES.values()}
    if name is None:
        print_json({"task": "task.yaml", **{m.__name__: file for file, m in FILES.items()}})
    elif name == "task":
        print_json(TaskFile.model_json_schema())
    elif name in models:
        print_json(models[name].model_json_schema())
    else:
        raise UsageError(
            f"no schema is called {name!r}{did_you_mean(name, ['task', *models])}",
            hint="run `python orchestrator.py schema` for the names",
        )


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


@app.command("show-results")
def show_results(
    top: Annotated[int, Option(min=1, help="Lines of each table.")] = 10,
    kept_only: Annotated[
        bool, Option("--kept-only", help="Only what was kept, in the table.")
    ] = False,
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """What a search found in all: start, best, the gain of each kept step, keep rate, hours.

    Without a ledger a results.tsv of any other loop is read; what it cannot tell is null. Exits 1
    where there is no result yet.
    Example: `orchestrator.py show-results --top 5 --kept-only`
    """
    from autohypothesis.terminal.experiments import results_page

    results = _results(_folder(repo), tag)
    if as_json:
        print_json(results.as_dict(top, kept_only=kept_only))
    elif not results.trials:
        remark("nothing is decided yet; start: python orchestrator.py run-loop")
    if not results.trials:
        raise Exit(1)
    if not as_json:
        out().print(results_page(results, top, kept_only=kept_only))
        for note in results.notes:
            remark(f"note: {results.source}: {note}")


def _folder(path: Path) -> Layout:
    """Return the folder itself where it holds a ledger or a table, else its repository."""
    from autohypothesis.records.checkouts import refuse_path
    from autohypothesis.records.layout import Layout

    refuse_path(path.absolute())
    here = Layout(path.absolute())
    return here if here.ledger.is_file() or here.results_tsv.is_file() else layout_of(path)


def _results(layout: Layout, tag: str | None) -> Results:
    from autohypothesis.fleet.knowledge import knowledge_base
    from autohypothesis.fleet.overview.results import device_intervals, from_rows, from_table
    from autohypothesis.records.history import of_search, of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.schema import now

    # A ledger without the bundles it was folded from is a copy: it is read, never folded.
    rows = ledger_rows(layout) if layout.research.is_dir() else read_ledger(layout)
    if not rows and not tag and layout.results_tsv.is_file():
        return from_table(knowledge_base.read(layout.results_tsv, called=""))
    wanted = meant_tag(layout, tag) or (str(rows[-1].get("tag") or "") if rows else None)
    mine = of_tag(rows, tag) if tag else of_search(rows, wanted)
    if tag and not mine:
        known = ", ".join(sorted({str(row.get("tag")) for row in rows})) or "none"
        raise UsageError(
            f"no experiment has the tag {tag!r}", hint=f"there are: {known}; leave --tag out"
        )
    return from_rows(mine, wanted, device_intervals(layout, mine, None, now()))
