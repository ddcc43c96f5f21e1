"""`run-experiment`, `record`, `decide`: one experiment is run, taken in from a log, and decided."""

from __future__ import annotations

import getpass
import json
import shutil
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import Json, PublishedExitCodes, Repo, Tag
from autohypothesis.commands.common import (
    complete_experiment,
    open_project,
    out,
    print_json,
    remark,
    repository_path,
    say,
    telling_what_runs_lack,
)
from autohypothesis.errors import AutohypothesisError, TaskError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.change import Change
    from autohypothesis.engine.decide import MissingRun, NeedsRuns, Settlement
    from autohypothesis.engine.experiment import Outcome
    from autohypothesis.engine.project import Project
    from autohypothesis.schema import Decision


EXIT_CRASH, EXIT_DEADLINE = 1, 2


def register(app: typer.Typer) -> None:
    app.command("run-experiment", cls=PublishedExitCodes)(run_experiment)
    app.command("record")(record)
    app.command("decide")(decide)


def run_experiment(
    context: typer.Context,
    repo: Repo = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Copy the training's log there as well.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a constant of the reference; repeatable."
        ),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="Apply a unified diff to the reference.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Run the reference as it stands.")
    ] = False,
    description: Annotated[str, typer.Option("--desc", help="What is tried, in a few words.")] = "",
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=-(2**63), max=2**63 - 1, help="Default: the task's first."),
    ] = None,
    task: Annotated[Path | None, typer.Option("--task", help="A task file.")] = None,
    tag: Tag = None,
    settle: Annotated[
        bool,
        typer.Option(
            "--settle",
            help="Decide it at once: keep or discard. A win is run again first, where the task"
            " asks for replicates.",
        ),
    ] = False,
    replicate: Annotated[
        str | None,
        typer.Option(
            "--replicate",
            metavar="ID",
            help="Run what is still missing to confirm this win, and decide it.",
            autocompletion=complete_experiment,
        ),
    ] = None,
) -> None:
    """Run what is in the working tree once, and leave a bundle.

    Prints `val_bpb<TAB>peak_vram_mb<TAB>duration_s<TAB>log_path`. Exits 0, 1 (crash or wrong
    usage) or 2 (deadline). Example: `orchestrator.py run-experiment --set DEPTH=3`

    With `--replicate` it prints such a line for each run that it makes, and exits 0 when the
    experiment is decided. Example: `orchestrator.py run-experiment --replicate h-nov20-0001-1`
    """
    try:
        if replicate is not None:
            given = {"--log": log, "--set": set_ or None, "--patch": patch, "--seed": seed,
                     "--baseline": baseline or None, "--desc": description or None,
                     "--task": task}  # fmt: skip
            _refuse_beside_replicate([name for name, one in given.items() if one is not None])
            _replicate(context, repo, tag, replicate)
            return
        _run(context, repo, log, set_ or [], patch, baseline, description, seed, task, tag, settle)
    except AutohypothesisError as error:
        error.exit_code = EXIT_CRASH
        raise


def _run(
    context: typer.Context,
    repo: Path | None,
    log: Path | None,
    overrides: list[str],
    patch: Path | None,
    baseline: bool,
    description: str,
    seed: int | None,
    task: Path | None,
    tag: str | None,
    decide: bool,
) -> None:
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine import runner
    from autohypothesis.engine.experiment import Experiment
    from autohypothesis.engine.project import whole_or_nothing

    if log is not None and not log.absolute().parent.is_dir():
        raise UsageError(f"--log {log}: there is no folder {log.absolute().parent}")
    project = open_project(context, repo, task=task, tag=tag)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag(tag)
        checkout = project.repository.checkout_at(repository_path(context, repo))
        change = _change(project, checkout, overrides, patch, baseline)
        experiment = Experiment(change, title=description, seed=seed)
        with telling_what_runs_lack(project):
            finished = runner.run(project, experiment, watch=ProgressWatch())
    _print_line(project, finished, log)
    _after(project, finished, decide)


def _refuse_beside_replicate(given: list[str]) -> None:
    if given:
        raise UsageError(
            f"--replicate and {given[0]} were given together",
            hint="a replicate runs what was run before, with the seeds and the task that are due",
        )


def _replicate(
    context: typer.Context, repo: Path | None, tag: str | None, experiment_id: str
) -> None:
    """Run what is missing to confirm a win, a published line each, and decide it."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine import recovery
    from autohypothesis.engine.project import whole_or_nothing

    project = open_project(context, repo, tag=tag)
    recovery.collect_ended(project.repository, project.layout)
    with whole_or_nothing(project.repository, project.layout):
        try:
            if not _decide(project, experiment_id, lines=True):
                remark(f"{experiment_id} is decided already")
        finally:
            refresh(project.layout)


def _change(
    project: Project, checkout: Path, overrides: list[str], patch: Path | None, baseline: bool
) -> Change:
    """Return the one change that was given; with none, what is in the working tree."""
    from autohypothesis.engine.change import Change, working_tree

    given = {"--set": overrides, "--patch": patch, "--baseline": baseline}
    asked = [name for name, value in given.items() if value]
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} were given together",
            hint="an experiment tests one change; name one of them",
        )
    if overrides:
        return Change(overrides=dict(_setting(word) for word in overrides))
    if patch is not None:
        return Change(patch=_read_patch(patch))
    if baseline:
        return Change()
    return working_tree(project.repository, project.task, project.reference(), checkout)


def _setting(word: str) -> tuple[str, Any]:
    """Return name and value of `NAME=VALUE`, the value as JSON where it is JSON."""
    name, equals, text = word.partition("=")
    if not name or not equals:
        raise UsageError(f"{word!r} is not NAME=VALUE", hint="for example --set DEPTH=3")
    try:
        return name.strip(), json.loads(text)
    except ValueError:
        return name.strip(), text


def _read_patch(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"patch {path} cannot be read: {error.strerror}") from error


def _print_line(project: Project, finished: Outcome, log: Path | None) -> None:
    """Print the published line on stdout, before anything else can go wrong."""
    result, run = finished.result, project.layout.run(finished.experiment_id)
    path = run.log
    if log is not None and run.log.exists():
        shutil.copyfile(run.log, log)
        path = log
    fields = (
        _field(result.metric_value, 6),
        _field(result.metrics.peak_vram_mb, 1),
        _field(result.metrics.model_dump().get("wall_seconds"), 2),
        str(path),
    )
    print("\t".join(fields), flush=True)


def _after(project: Project, finished: Outcome, decide: bool) -> None:
    """Write the ledger, decide where that was asked for, and exit with the published code."""
    from autohypothesis.commands.sync import refresh

    result, identity = finished.result, finished.experiment_id
    try:
        if decide:
            _decide(project, identity)
    finally:  # the run is in the ledger also when it cannot be decided
        refresh(project.layout)
    project.repository.pack_when_due()
    if result.failure_kind is not None:
        remark(f"{result.failure_kind}: {result.failure_detail}", style="red")
        raise typer.Exit(EXIT_DEADLINE if result.failure_kind == "timeout" else EXIT_CRASH)
    if not decide:
        remark(f"decide it: python orchestrator.py decide {identity}")


def _decide(project: Project, experiment_id: str, *, lines: bool = False) -> int:
    """Decide, after the runs that confirm a win; return how many decisions it took.

    With `lines` each of these runs prints its line on stdout, else it is a remark.
    """
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine.replication import confirm

    def ran(run: MissingRun, made: Outcome, win: NeedsRuns) -> None:
        if lines:
            _print_line(project, made, None)
        result, done = made.result, win.wanted - len(win.runs) + 1
        came = result.failure_kind or f"{result.metric_name} {_field(result.metric_value, 6)}"
        said = f"{made.experiment_id}, {run.experiment.title}: {came} ({done} of {win.wanted} runs)"
        remark(said)

    decisions = confirm(
        project, experiment_id, decided_by="run-experiment", watch=ProgressWatch, ran=ran
    )
    for decision in decisions:
        if decision.decision_status != "replicate":
            remark(f"{decision.decision_status}: {decision.reason}, {decision.detail}")
    return len(decisions)


def _field(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def record(
    context: typer.Context,
    log: Annotated[Path, typer.Argument(help="What the training printed.")] = Path("run.log"),
    commit: Annotated[str, typer.Option("--commit", help="What was run.")] = "HEAD",
    description: Annotated[str, typer.Option("--desc", help="What was tried.")] = "",
    tag: Tag = None,
    repo: Repo = None,
) -> None:
    """Make a bundle of a run you made yourself. Its number is not verified: attested is false.

    Example: `python train.py > run.log 2>&1; orchestrator.py record run.log --desc "depth 3"`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.engine.recorded_runs import record_log
    from autohypothesis.records.git import Repository

    project = open_project(context, repo, tag=tag)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag(tag)
        if commit == "HEAD":  # of this checkout, which need not be the main one
            commit = Repository(repository_path(context, repo)).head()
        experiment_id, result = record_log(project, log, commit=commit, title=description)
    refresh(project.layout)
    say(f"{experiment_id}: {result.status}, {result.outcome}")
    remark(f"decide it: python orchestrator.py decide {experiment_id}")


EXIT_REFUSED = 1


class Status(str, Enum):
    """The decisions that a person may make."""

    keep = "keep"
    discard = "discard"
    crash = "crash"


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
        remark("nothing waits for a decision")
    for one in undecided:
        remark(f"not decided: {one.experiment_id}: {one.error}", style="yellow")
    if undecided:
        raise typer.Exit(EXIT_REFUSED)


def _project(
    context: typer.Context, repo: Path | None, tag: str | None
) -> tuple[Project, TaskError | None]:
    """Return the project, and what is wrong with its task today.

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
    """Require the task of today for a run that has no task of its own: a recorded one."""
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
    """Print a decision in a line."""
    from rich.markup import escape

    from autohypothesis.terminal.parts import styled

    moved = ""
    if decision.reference_after and decision.reference_after != decision.reference_before:
        moved = f"; the reference is now {decision.reference_after[:7]}"
    detail = f" ({decision.detail})" if decision.detail else ""
    said = escape(f"{decision.reason}{detail}{moved}")
    status = styled(decision.decision_status)
    out().print(f"{escape(decision.experiment_id)}: {status}, {said}", soft_wrap=True)
