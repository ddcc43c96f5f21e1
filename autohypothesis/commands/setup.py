"""`setup`, `new`: make a repository ready, make one from nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, Json, Repo, app
from autohypothesis.commands.common import print_json, remark, say
from autohypothesis.errors import LaunchError, UsageError

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
