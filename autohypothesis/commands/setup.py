"""`setup`, `new`, `demo`: make a repository ready, make one from nothing, see all of it at work."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, Json, Repo, app
from autohypothesis.commands.common import err, out, print_json, remark, say
from autohypothesis.errors import LaunchError, UsageError
from autohypothesis.installation import is_clone, program_name

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project


@app.command("setup")
def setup(
    context: typer.Context,
    profile: Annotated[
        str | None, Option(help="Of prepare.py; default: what fits the machine.")
    ] = None,
    seq_len: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            help="Tokens a row: a derived profile, with the evaluation scaled alongside.",
        ),
    ] = None,
    source: Annotated[str | None, Option(help="Of text: stdlib, path:GLOB, a known name.")] = None,
    skip_data: Annotated[
        bool,
        Option(
            "--skip-data",
            help="Download nothing; with an option for the data, use the text that is here.",
        ),
    ] = False,
    folder: Annotated[
        Path | None, Option("--dir", help="The repository, as published scripts name it.")
    ] = None,
    repo: Repo = HERE,
) -> None:
    """Get a repository ready: check the environment, then let its prepare.py make the data.

    What is there already stays, and prepare.py is never edited. Installs nothing: what is missing
    is named with its command. Example: `orchestrator.py setup --seq-len 128`
    """  # fmt: skip
    from autohypothesis.commands.doctor import machine_checks, require
    from autohypothesis.engine.inputs import prepare_options
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.devices import inspect_machine

    given = context.find_root().obj
    if folder is not None and given is not None and folder.absolute() != given.absolute():
        raise UsageError(f"--dir {folder} and --repo {given} name two repositories")
    options = prepare_options(profile, seq_len, source)
    project = Project.open(folder or repo)
    require(machine_checks(inspect_machine(project.layout.root)))
    say("environment: in order")
    if options or not skip_data:
        prepare_data(project, options, download=not skip_data)
    remark("next: python orchestrator.py run-loop --max 20")


def prepare_data(
    project: Project,
    options: Sequence[str] = (),
    *,
    download: bool = True,
    tell: Callable[[str], None] = say,
) -> None:
    """Have the repository's own prepare.py make data and tokenizer, where they are missing."""
    from autohypothesis.engine.inputs import (
        NO_DOWNLOAD,
        SCRIPT,
        find_inputs,
        makes_inputs,
        pinned_inputs,
        run_prepare,
    )
    from autohypothesis.engine.task_file import has_option

    root, task = project.layout.root, project.task
    script = root / SCRIPT
    inputs = find_inputs(task, root, pins={})
    if isinstance(inputs, LaunchError) and not download:
        words = shlex.join(["setup", *options])
        remark(f"data: none here yet, and none was made: python orchestrator.py {words}")
        return
    due = isinstance(inputs, LaunchError) or (script.is_file() and not makes_inputs(task))
    if options or (due and script.is_file()):
        if script.is_file() and not has_option(script, "--locate") and not options:
            remark(f"{script} is not ours: running it as it is")
        run_prepare(root, [*options, *([] if download else [NO_DOWNLOAD])])
        inputs = find_inputs(task, root, pins={})
    if isinstance(inputs, LaunchError):
        raise inputs
    for name, report in inputs.reports.items():
        known = f"profile {report.profile}, " if report.profile else ""
        tell(f"data: {known}{name}={report.path}")
    if not inputs.reports:
        tell("data: the task names none")
    pinned = pinned_inputs(root)
    if any(pinned.get(name, path) != path for name, path in inputs.environment.items()):
        remark(
            f"note: search {project.tag} keeps the data that it began with; a new --tag takes this"
        )


@app.command("new")
def new(
    path: Annotated[Path, Argument(help="The folder to make.")],
    as_json: Json = False,
) -> None:
    """Make a fresh research repository: the training pair, its task, its pages, a first commit.

    Example: `orchestrator.py new ../my-search`
    """
    from autohypothesis.engine.project import make_repository
    from autohypothesis.records.git import Repository

    root = Path(os.path.abspath(path))  # a name without `..`, as people read it
    created = make_repository(root)
    repository = Repository(root)
    commit, files = repository.head(), repository.tracked_files()
    if as_json:
        print_json({"path": str(root), "created": created, "commit": commit, "files": files})
        return
    done = f"made {root}" if created else f"{root} is a research repository already"
    say(f"{done}: {', '.join(files)}")
    remark(f"next: python orchestrator.py --repo {shlex.quote(str(path))} setup")


@app.command("demo")
def demo(
    folder: Annotated[
        Path | None, Option("--dir", help="Where its repository is made; default: ./demo.")
    ] = None,
    profile: Annotated[str, Option(help="Of prepare.py.")] = "cpu",
    runs: Annotated[int, Option(min=1, help="How many experiments, the baseline included.")] = 12,
    lanes: Annotated[
        int, Option(min=1, help="CPU workers; fewer where there are fewer cores.")
    ] = 2,
) -> None:
    """Run a fleet in a repository of its own: observer, two workers, tool-builder; and show it.

    Takes about four minutes on two cores, with no GPU, key or network. Run again, it starts
    another search beside the first. Example: `orchestrator.py demo --runs 6`
    """
    from autohypothesis.commands.fleet import bring_up
    from autohypothesis.engine.devices import cpu_slots
    from autohypothesis.engine.inputs import prepare_options, run_prepare
    from autohypothesis.engine.project import Project, make_repository
    from autohypothesis.fleet.roster import roster
    from autohypothesis.fleet.supervisor import process_specs

    started = time.monotonic()
    root = (folder or Path("demo")).absolute()
    if make_repository(root):  # one that exists is used again
        remark(f"made {root}")
    cache = root / ".cache"
    # In a cache of the demo's own: what other searches on this machine use stays as it is.
    run_prepare(root, prepare_options(profile=profile, cache=cache))
    project = Project.open(root)
    process_specs.refuse_second_supervisor(project.layout)
    project = project.with_tag(_next_tag(project), inputs=_located(project, cache))
    workers = min(lanes, len(cpu_slots()))
    fleet = roster.init_fleet(project, roster.FleetOptions(tag=project.tag, cpu_workers=workers))
    manifest = fleet.manifest
    names = ", ".join(worker.worker_id for worker in manifest.workers)
    err().print(f"search {project.tag}: baseline and {runs - 1} more on {names}", style="bold")
    words = process_specs.observer_options(project.layout, manifest, more_runs=runs)
    bring_up(project.layout, manifest, words, {})
    _finish(project, time.monotonic() - started)


def _located(project: Project, cache: Path) -> dict[str, str]:
    """Return variable -> folder of the data that was just prepared."""
    from autohypothesis.engine.inputs import locate_inputs

    project.repository.exclude([f"/{cache.name}/"])
    root = project.layout.root
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    environment.pop("AUTOHYPOTHESIS_DATA", None)
    return locate_inputs(project.task, root, root, environment, pins={}).environment


def _next_tag(project: Project) -> str:
    """Return `demo`, then `demo-2` and so on: each demo is a search of its own."""
    from autohypothesis.engine.reference import BRANCHES, REFERENCES

    refs = project.repository.refs(BRANCHES, REFERENCES)  # an earlier version made branches alone
    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return next(name for name in names if not {BRANCHES + name, REFERENCES + name} & refs.keys())


def _finish(project: Project, seconds: float) -> None:
    """Print the table, the picture, and what to try next."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.records.history import best_kept, of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.terminal.experiments import runs_table

    refresh(project.layout, everything=True)
    rows = of_tag(read_ledger(project.layout), project.tag)
    best = best_kept(rows)
    out().print()
    out().print(runs_table(rows, title=f"{project.tag}, {seconds:.0f} s"))
    say(f"\nledger   {project.layout.ledger}")
    say(f"picture  {project.layout.progress_png}\n")
    script = program_name().removeprefix("python ")
    program = f"{_short(Path(sys.executable))} {script}" if is_clone() else script
    say("Next:", style="bold")
    where = f"--repo {_short(project.layout.root)}"
    shown = best["id"] if best else rows[-1]["id"]
    for command in (f"digest {where}", f"best --diff {where}", f"show {shown} {where}"):
        say(f"  {program} {command}")


def _short(path: Path) -> str:
    """Return `path` as it is typed here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
