"""`setup` and `new`: a repository is made ready to be searched, or made from nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import print_json, remark, repository_path, say
from autohypothesis.errors import LaunchError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.inputs import Inputs
    from autohypothesis.engine.project import Project


def register(app: typer.Typer) -> None:
    app.command("setup")(setup)
    app.command("new")(new)


def setup(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Of prepare.py; default: what fits the machine.")
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq-len",
            metavar="N",
            min=1,
            help="Tokens a row: a derived profile, with the evaluation scaled alongside.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Of text: stdlib, path:GLOB, a known name.")
    ] = None,
    skip_data: Annotated[
        bool, typer.Option("--skip-data", help="Look at the environment only.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="The repository, as published scripts name it.")
    ] = None,
    repo: Repo = None,
) -> None:
    """Get a repository ready: check the environment, then let its prepare.py make the data.

    What is there already stays, and prepare.py is never edited. Installs nothing: what is missing
    is named with its command. Example: `orchestrator.py setup --seq-len 128`
    """  # fmt: skip
    from autohypothesis.engine.project import Project
    from autohypothesis.engine.setup import prepare_options

    given = repo or context.find_root().obj
    if folder is not None and given is not None and folder.absolute() != given.absolute():
        raise UsageError(f"--dir {folder} and --repo {given} name two repositories")
    options = prepare_options(profile, seq_len, source)
    if skip_data and options:
        raise UsageError(f"--skip-data leaves nothing for {', '.join(options[::2])}")
    project = Project.open(folder or repository_path(context, repo))
    _check_environment(project.layout.root)
    if not skip_data:
        _prepare(project, options)
    remark("next: python orchestrator.py run-loop --max 20")


def _check_environment(root: Path) -> None:
    """Raises FleetError when something that a search needs is missing; the rest is told."""
    from autohypothesis.commands.doctor import machine_checks, require
    from autohypothesis.fleet.roster.devices import inspect_machine

    require(list(machine_checks(inspect_machine(root))))
    say("environment: in order")


def _prepare(project: Project, options: list[str]) -> None:
    """Data and tokenizer by the repository's own prepare.py, unless it has nothing to do."""
    from autohypothesis.engine.setup import SCRIPT, find_inputs, makes_inputs, run_prepare, takes

    root, task = project.layout.root, project.task
    script = root / SCRIPT
    found = find_inputs(task, root, pins={})
    due = isinstance(found, LaunchError) or (script.is_file() and not makes_inputs(task))
    if options or (due and script.is_file()):
        if script.is_file() and not takes(script, "--locate") and not options:
            remark(f"{script} is not ours: running it as it is")
        run_prepare(root, options)
        found = find_inputs(task, root, pins={})
    if isinstance(found, LaunchError):
        raise found
    _report(project, found)


def _report(project: Project, found: Inputs) -> None:
    from autohypothesis.engine.inputs import pinned_inputs

    for name, report in found.reports.items():
        known = f"profile {report.profile}, " if report.profile else ""
        say(f"data: {known}{name}={report.path}")
    if not found.reports:
        say("data: the task names none")
    pinned = pinned_inputs(project.layout.root)
    if any(pinned.get(name, path) != path for name, path in found.environment.items()):
        remark(
            f"note: search {project.tag} keeps the data that it began with; a new --tag takes this"
        )


def new(
    path: Annotated[Path, typer.Argument(help="The folder to make.")],
    as_json: Json = False,
) -> None:
    """Make a fresh research repository: the training pair, its task, its pages, a first commit.

    Example: `orchestrator.py new ../my-search`
    """
    from autohypothesis.engine.setup import make_repository
    from autohypothesis.records.git import Repository

    root = Path(os.path.abspath(path))  # a name without `..`, as people read it
    created = make_repository(root)
    repository = Repository(root)
    commit, files = repository.head(), repository.tracked_files()
    if as_json:
        print_json({"path": str(root), "created": created, "commit": commit, "files": files})
        return
    said = f"made {root}" if created else f"{root} is a research repository already"
    say(f"{said}: {', '.join(files)}")
    remark(f"next: python orchestrator.py --repo {path} setup")
