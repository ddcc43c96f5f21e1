"""`run-experiment`: one experiment on what is in the working tree, as published scripts call it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import PublishedExitCodes, Repo, Tag
from autohypothesis.commands.common import (
    complete_experiment,
    err,
    open_project,
    remark,
    repository_path,
    telling_what_runs_lack,
)
from autohypothesis.errors import AutohypothesisError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.change import Change
    from autohypothesis.engine.decide import MissingRun, NeedsRuns
    from autohypothesis.engine.experiment import Outcome
    from autohypothesis.engine.project import Project

EXIT_CRASH, EXIT_DEADLINE = 1, 2


def register(app: typer.Typer) -> None:
    app.command("run-experiment", cls=PublishedExitCodes)(run_experiment)


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
    from autohypothesis.commands.watch import ProgressWatch
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
    """Every run that is missing, a published line each, and the decision."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine import recovery
    from autohypothesis.engine.project import whole_or_nothing

    project = open_project(context, repo, tag=tag)
    recovery.collect_ended(project.repository, project.layout)
    with whole_or_nothing(project.repository, project.layout):
        try:
            if not _decide(project, experiment_id, lines=True):
                err().print(f"{experiment_id} is decided already", soft_wrap=True)
        finally:
            refresh(project.layout)


def _change(
    project: Project, checkout: Path, overrides: list[str], patch: Path | None, baseline: bool
) -> Change:
    """The one change that was asked for; with none, what is in the working tree."""
    from autohypothesis.engine.change import Change
    from autohypothesis.engine.workspace import working_tree

    given = {"--set": overrides, "--patch": patch, "--baseline": baseline}
    asked = [name for name, value in given.items() if value]
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} were given together",
            hint="an experiment tests one change; name one of them",
        )
    if overrides:
        return Change.from_overrides(dict(_setting(word) for word in overrides))
    if patch is not None:
        return Change.from_patch(_read_patch(patch))
    if baseline:
        return Change.none()
    return working_tree(project.repository, project.task, project.reference(), checkout)


def _setting(word: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is JSON, else as text."""
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
    """The published line on stdout, before anything else can go wrong."""
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
    """The ledger, the decision where one was asked for, and the published exit code."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.workspace import pack_when_due

    result, identity = finished.result, finished.experiment_id
    try:
        if decide:
            _decide(project, identity)
    finally:  # the run is in the ledger also when it cannot be decided
        refresh(project.layout)
    pack_when_due(project.repository)
    if result.failure_kind is not None:
        said = f"{result.failure_kind}: {result.failure_detail}"
        remark(said, style="red")
        raise typer.Exit(EXIT_DEADLINE if result.failure_kind == "timeout" else EXIT_CRASH)
    if not decide:
        err().print(f"decide it: python orchestrator.py decide {identity}", soft_wrap=True)


def _decide(project: Project, experiment_id: str, *, lines: bool = False) -> int:
    """Decides, after the runs that confirm a win; how many decisions it took.

    With `lines` each of these runs prints its line on stdout, else it is a remark.
    """
    from autohypothesis.commands.watch import ProgressWatch
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
            said = f"{decision.decision_status}: {decision.reason}, {decision.detail}"
            remark(said)
    return len(decisions)


def _field(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
