"""`decide`: settle finished experiments, by the policy or by hand."""

from __future__ import annotations

import getpass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.app import Json, Repo, Tag
from autohypothesis.commands.common import (
    complete_experiment,
    err,
    open_project,
    out,
    print_json,
    remark,
    repository_path,
)
from autohypothesis.errors import TaskError

if TYPE_CHECKING:
    from autohypothesis.engine.decide import Settlement
    from autohypothesis.engine.project import Project
    from autohypothesis.schema import Decision

EXIT_REFUSED = 1


class Status(str, Enum):
    """What a person may decide."""

    keep = "keep"
    discard = "discard"
    crash = "crash"


def register(app: typer.Typer) -> None:
    app.command("decide")(decide)


def decide(
    context: typer.Context,
    experiment_id: Annotated[
        str | None,
        typer.Argument(help="Default: all that wait.", autocompletion=complete_experiment),
    ] = None,
    status: Annotated[
        Status | None, typer.Argument(help="Your decision; default: the policy's.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    tag: Tag = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Keep or discard what has finished; a keep moves the reference.

    Examples: `orchestrator.py decide`, `orchestrator.py decide h-nov20-0001-1 discard`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine import recovery
    from autohypothesis.engine.project import whole_or_nothing

    project, no_task = _project(context, repo, tag)
    with whole_or_nothing(project.repository, project.layout):
        recovery.collect_ended(project.repository, project.layout)
        if experiment_id is None:
            settlement = _all(project, no_task)
        else:
            settlement = _one(project, no_task, experiment_id, status, reason)
    refresh(project.layout)
    decisions, undecided = settlement.decisions, settlement.undecided
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in decisions])
    for decision in () if as_json else decisions:
        print_decision(decision)
    if not decisions and not undecided and not as_json:
        err().print("nothing waits for a decision")
    for one in undecided:
        said = f"not decided: {one.experiment_id}: {one.error}"
        remark(said, style="yellow")
    if undecided:
        raise typer.Exit(EXIT_REFUSED)


def _project(
    context: typer.Context, repo: Path | None, tag: str | None
) -> tuple[Project, TaskError | None]:
    """The project, and what is wrong with its task today.

    A run is decided by the task that it was made with, so the task of today is seldom needed.
    """
    from autohypothesis.engine.project import Project, active_tag
    from autohypothesis.engine.task_file import foreign_task
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout, checked_id

    try:
        return open_project(context, repo, tag=tag), None
    except TaskError as error:
        repository = Repository.find(repository_path(context, repo))
        layout = Layout(repository.root)
        active = checked_id(tag) if tag else active_tag(layout)
        return Project(repository, layout, foreign_task(), active), error


def _check_task(project: Project, no_task: TaskError | None, experiment_id: str) -> None:
    """A run that nobody submitted has no task of its own, and needs the one of today."""
    if no_task is not None and not project.layout.run(experiment_id).run_spec.exists():
        raise no_task


def _all(project: Project, no_task: TaskError | None) -> Settlement:
    from autohypothesis.engine.decide import settle

    def may(experiment_id: str) -> None:
        _check_task(project, no_task, experiment_id)

    return settle(project, decided_by="policy", may=may)


def _one(
    project: Project,
    no_task: TaskError | None,
    experiment_id: str,
    status: Status | None,
    reason: str,
) -> Settlement:
    """Decide one experiment; raises the error of one that cannot be decided."""
    from autohypothesis.engine.decide import Settlement, settle, settle_by_hand

    _check_task(project, no_task, experiment_id)
    if status is None:
        settlement = settle(project, [experiment_id], decided_by="policy")
        settlement.decisions_or_raise()
        return settlement
    who = getpass.getuser()
    decision = settle_by_hand(project, experiment_id, status.value, reason=reason, decided_by=who)
    return Settlement([decision])


def print_decision(decision: Decision) -> None:
    """One line a person can act on."""
    from rich.markup import escape

    from autohypothesis.terminal.style import styled

    moved = ""
    if decision.reference_after and decision.reference_after != decision.reference_before:
        moved = f"; the reference is now {decision.reference_after[:7]}"
    detail = f" ({decision.detail})" if decision.detail else ""
    said = escape(f"{decision.reason}{detail}{moved}")
    status = styled(decision.decision_status)
    out().print(f"{escape(decision.experiment_id)}: {status}, {said}", soft_wrap=True)
