"""`record`: a bundle from the log of a run that somebody made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autohypothesis.commands.app import Repo, Tag
from autohypothesis.commands.common import err, open_project, repository_path, say


def register(app: typer.Typer) -> None:
    app.command("record")(record)


def record(
    context: typer.Context,
    log: Annotated[Path, typer.Argument(help="What the training printed.")] = Path("run.log"),
    commit: Annotated[str, typer.Option("--commit", help="What was run.")] = "HEAD",
    description: Annotated[str, typer.Option("--desc", help="What was tried.")] = "",
    tag: Tag = None,
    repo: Repo = None,
) -> None:
    """Make a bundle of a run you made yourself. Nobody vouches for its number: attested is false.

    Example: `python train.py > run.log 2>&1; orchestrator.py record run.log --desc "depth 3"`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.engine.recorded_runs import record_log

    project = open_project(context, repo, tag=tag)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag(tag)
        if commit == "HEAD":  # of this checkout, which need not be the main one
            commit = project.repository.head_of(repository_path(context, repo))
        experiment_id, result = record_log(project, log, commit=commit, title=description)
    refresh(project.layout)
    said = f"{experiment_id}: {result.status}, {result.outcome}"
    say(said)
    err().print(f"decide it: python orchestrator.py decide {experiment_id}", soft_wrap=True)
