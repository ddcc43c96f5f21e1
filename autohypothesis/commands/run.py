"""`run-experiment`, `record`, `decide`: one experiment is run, taken in from a log, and decided."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from autohypothesis.commands.app import (
    HERE,
    Json,
    PublishedExitCodes,
    Repo,
    Settings,
    Tag,
    TaskFile,
    app,
    complete_experiment,
)
from autohypothesis.commands.common import (
    meant_tag,
    open_project,
    opened,
    out,
    print_json,
    remark,
    say,
    telling_what_runs_lack,
)
from autohypothesis.errors import TaskError, UsageError
from autohypothesis.plain import has_all_of, typeable

if TYPE_CHECKING:
    from autohypothesis.engine.decide import NeedsRuns, Settlement
    from autohypothesis.engine.experiment import Change, Experiment, Outcome
    from autohypothesis.engine.project import Project
    from autohypothesis.schema import Decision

EXIT_CRASH, EXIT_DEADLINE = 1, 2
MORE_SEEDS = 2
"""Seeds at which a near miss is run again, where the task names no replicates."""


@app.command("run-experiment", cls=PublishedExitCodes)
def run_experiment(
    repo: Repo = HERE,
    log: Annotated[
        Path | None, Option(help="Copy the training's log there as well, relative to --repo.")
    ] = None,
    set_: Settings = None,
    patch: Annotated[Path | None, Option(help="Apply a unified diff to the reference.")] = None,
    with_edits: Annotated[
        bool, Option("--with-edits", help="With --set: the edits of your working tree as well.")
    ] = False,
    baseline: Annotated[bool, Option("--baseline", help="Run the reference as it stands.")] = False,
    description: Annotated[str, Option("--desc", help="What is tried, in a few words.")] = "",
    seed: Annotated[
        int | None, Option(min=-(2**63), max=2**63 - 1, help="Default: the task's first.")
    ] = None,
    task: TaskFile = None,
    tag: Tag = None,
    settle: Annotated[
        bool,
        Option(
            "--decide",
            "--settle",
            help="Decide it at once: keep or discard. A win is run again first, where the task"
            " asks for replicates.",
        ),
    ] = False,
    replicate: Annotated[
        str | None,
        Option(
            metavar="ID",
            help="Run what is still missing to confirm this win, or run this near miss at more"
            " seeds, and decide it.",
            autocompletion=complete_experiment,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        Option(
            min=1,
            max=100,
            help="With --replicate of a near miss: at how many. Default: the"
            " task's replicates, else 2.",
        ),
    ] = None,
) -> None:
    """Run what is in the working tree once, and leave a bundle.

    Prints `val_bpb<TAB>peak_vram_mb<TAB>duration_s<TAB>log_path`. Exits 0, 1 (crash or wrong
    usage) or 2 (deadline). Example: `orchestrator.py run-experiment --set DEPTH=3`

    With `--replicate` it prints such a line for each run that it makes, and exits 0 when the
    experiment is decided. Example: `orchestrator.py run-experiment --replicate h-nov20-0001-1`
    """
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine import runner
    from autohypothesis.engine.experiment import Experiment
    from autohypothesis.engine.project import whole_or_nothing

    changes = {"--set": set_, "--patch": patch, "--baseline": baseline}
    if replicate is not None:
        _refuse_beside_replicate(
            {
                "--log": log,
                "--seed": seed,
                "--desc": description,
                "--task": task,
                "--with-edits": with_edits,
                **changes,
            }
        )
        _replicate(repo, tag, replicate, seeds)
        return
    if seeds is not None:
        raise UsageError("--seeds needs --replicate ID", hint="one run has one seed: --seed N")
    log = log and repo.absolute() / log
    if log is not None and not log.parent.is_dir():
        raise UsageError(f"--log {log}: there is no folder {log.parent}")
    project = open_project(repo, task=task, tag=tag)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag(tag)
        change = _change(project, project.repository.checkout_at(repo), changes, with_edits)
        experiment = Experiment(change, title=description, seed=seed)
        try:
            with telling_what_runs_lack(project):
                finished = runner.run(project, experiment, watch=ProgressWatch())
        except KeyboardInterrupt:
            refresh(project.layout)  # the cancelled run is counted at once
            raise
    _print_line(project, finished, log)
    _after(project, finished, settle)


def _refuse_beside_replicate(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None and value is not False and value not in ([], ""):
            raise UsageError(
                f"--replicate and {name} were given together",
                hint="a replicate runs what was run before, with the seeds and the task that are"
                " due",
            )


def _replicate(repo: Path, tag: str | None, experiment_id: str, seeds: int | None) -> None:
    """Run what a win or a near miss needs, a published line each, and decide it."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.collect import collect_ended
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.records.comparison import is_near_miss
    from autohypothesis.records.history import DecisionHistory

    project = open_project(repo, tag=tag)
    collect_ended(project.repository, project.layout)
    decision = DecisionHistory.of_tag(project.layout, project.tag).of(experiment_id)
    if seeds is None and decision is not None and is_near_miss(vars(decision)):
        seeds = project.task.policy.replicates or MORE_SEEDS
    with whole_or_nothing(project.repository, project.layout):
        try:
            if not _decide(project, experiment_id, lines=True, seeds=seeds or 0):
                remark(f"{experiment_id} is decided already")
        finally:
            refresh(project.layout)


def _change(
    project: Project, checkout: Path, options: Mapping[str, Any], with_edits: bool
) -> Change:
    """Return the one change that was given; with none, what is in the working tree."""
    from autohypothesis.engine.candidate import overridden_tree, working_tree
    from autohypothesis.engine.experiment import Change
    from autohypothesis.records.git import Repository

    def edits() -> Change:
        return working_tree(project.repository, project.task, project.reference(), checkout)

    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} were given together",
            hint="an experiment tests one change; name one of them",
        )
    if with_edits and not options["--set"]:
        raise UsageError(
            "--with-edits was given without --set",
            hint="without any of them your edits are what is run",
        )
    edited = Repository(checkout).edited_files() if given and not with_edits else []
    if any(map(project.task.is_artifact, edited)):
        both = "; --with-edits takes both" if options["--set"] else ""
        remark(f"note: the edits of your working tree are not in this run{both}")
    if options["--set"]:
        settings = settings_of(options["--set"])
        tree = edits().tree if with_edits else None
        if tree is not None:
            return Change(tree=overridden_tree(project.repository, project.task, tree, settings))
        return Change(overrides=settings)
    if options["--patch"]:
        return Change(patch=read_patch(options["--patch"]))
    if options["--baseline"]:
        return Change()
    return edits()


def settings_of(words: list[str]) -> dict[str, Any]:
    """Return name -> value of `NAME=VALUE` words, a value as JSON where it is JSON."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise UsageError(f"{word!r} is not NAME=VALUE", hint="for example --set DEPTH=3")
        try:
            settings[name.strip()] = json.loads(text)
        except ValueError:
            settings[name.strip()] = text
        if settings[name.strip()] is None:
            raise UsageError(
                f"{word!r} names no value: null is none",
                hint="to make a constant None, run an edit: --patch FILE",
            )
    return settings


def read_patch(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"patch {path} cannot be read: {error.strerror}") from error


def _print_line(project: Project, finished: Outcome, log: Path | None = None) -> None:
    """Print the published line on stdout, before anything else can go wrong."""
    result, path = finished.result, project.layout.run(finished.experiment_id).log
    if log is not None and path.exists():
        shutil.copyfile(path, log)
        path = Path(os.path.abspath(log))  # a name without `..`, for whoever reads the line
    shown = str(path)
    if not has_all_of(shown, sys.stdout.encoding):  # as it can be used from here
        below = path.is_relative_to(Path.cwd())
        shown = str(path.relative_to(Path.cwd())) if below else shlex.quote(shown)
    fields = (
        _field(result.metric_value, 6),
        _field(result.metrics.peak_vram_mb, 1),
        _field(result.metrics.model_dump().get("wall_seconds"), 2),
        typeable(shown, sys.stdout.encoding),
    )
    print("\t".join(fields), flush=True)


def _field(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _after(project: Project, finished: Outcome, decide: bool) -> None:
    """Write the ledger, decide where that was asked for, and exit with the published code."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.scoring import metric_advice

    result, identity = finished.result, finished.experiment_id
    try:
        if decide:
            _decide(project, identity)
    finally:  # the run is in the ledger also when it cannot be decided
        refresh(project.layout)
    project.repository.pack_when_due()
    if result.failure_kind is not None:
        remark(f"{result.failure_kind}: {result.failure_detail}", style="red")
        if result.failure_kind == "no_metric":
            for line in metric_advice(project.layout.run(identity)):
                remark(line)
        raise typer.Exit(EXIT_DEADLINE if result.failure_kind == "timeout" else EXIT_CRASH)
    if not decide:
        remark(f"decide it: python orchestrator.py decide {identity}")


def _decide(project: Project, experiment_id: str, *, lines: bool = False, seeds: int = 0) -> int:
    """Decide, after the runs that confirm a win; return how many decisions it took.

    A near miss is run at so many more `seeds` first.

    With `lines` each of these runs prints its line on stdout, else it is a remark.
    """
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine.decide import settle, undecided_baselines
    from autohypothesis.engine.runner import confirm
    from autohypothesis.records.comparison import RUN_AT_MORE_SEEDS, is_near_miss
    from autohypothesis.records.outcomes import shown_as

    def ran(run: Experiment, made: Outcome, win: NeedsRuns) -> None:
        if lines:
            _print_line(project, made)
        result, done = made.result, win.wanted - len(win.runs) + 1
        came = result.failure_kind or f"{result.metric_name} {_field(result.metric_value, 6)}"
        title = f"{made.experiment_id}, {run.title}"
        remark(f"{title}: {came} ({done} of {win.wanted} runs)")

    baselines = [name for name in undecided_baselines(project) if name != experiment_id]
    for decision in settle(project, baselines, decided_by="run-experiment").decisions:
        remark(f"{decision.experiment_id}, which waited: {decision.decision_status}")
    decisions = confirm(
        project,
        experiment_id,
        decided_by="run-experiment",
        watch=ProgressWatch,
        ran=ran,
        seeds=seeds,
    )
    for decision in decisions:
        if decision.decision_status != "replicate":
            status = shown_as(decision.decision_status, decision.reason)
            remark(f"{status}: {decision.reason}, {decision.detail}")
        if is_near_miss(vars(decision)):
            command = f"{RUN_AT_MORE_SEEDS} {decision.experiment_id}"
            remark(f"a near miss; run it at more seeds: {command}")
    return len(decisions)


@app.command("record")
def record(
    log: Annotated[Path, Argument(help="What the training printed.")] = Path("run.log"),
    commit: Annotated[str, Option(help="What was run.")] = "HEAD",
    description: Annotated[str, Option("--desc", help="What was tried.")] = "",
    tag: Tag = None,
    repo: Repo = HERE,
) -> None:
    """Make a bundle of a run you made yourself. Its number is not verified: attested is false.

    Example: `python train.py > run.log 2>&1; orchestrator.py record run.log --desc "depth 3"`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.project import whole_or_nothing
    from autohypothesis.engine.runner import record_log
    from autohypothesis.records.git import Repository

    project = open_project(repo, tag=tag)
    with whole_or_nothing(project.repository, project.layout):
        project = project.with_tag(tag)
        if commit == "HEAD":  # of this checkout, which need not be the main one
            commit = Repository(repo).head()
        experiment_id, result = record_log(project, log, commit=commit, title=description)
    refresh(project.layout)
    say(f"{experiment_id}: {result.status}, {result.outcome}")
    remark(f"decide it: python orchestrator.py decide {experiment_id}")


class Status(str, Enum):
    """The decisions that a person may make."""

    keep = "keep"
    discard = "discard"
    crash = "crash"


@app.command("decide")
def decide(
    experiment_id: Annotated[
        str | None, Argument(help="Default: all that wait.", autocompletion=complete_experiment)
    ] = None,
    status: Annotated[Status | None, Argument(help="Your decision; default: the policy's.")] = None,
    reason: Annotated[str, Option(help="Why, for the record.")] = "",
    tag: Tag = None,
    repo: Repo = HERE,
    as_json: Json = False,
) -> None:
    """Keep or discard what has finished; a keep moves the reference.

    Examples: `orchestrator.py decide`, `orchestrator.py decide h-nov20-0001-1 discard`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.collect import collect_ended
    from autohypothesis.engine.project import whole_or_nothing

    project, no_task = _project(repo, tag)
    with whole_or_nothing(project.repository, project.layout):
        collect_ended(project.repository, project.layout)
        settlement = _settle(project, no_task, experiment_id, status, reason)
    refresh(project.layout)
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in settlement.decisions])
    elif not settlement.decisions and not settlement.undecided:
        remark("nothing waits for a decision")
    for decision in () if as_json else settlement.decisions:
        print_decision(decision)
    for name, error in settlement.undecided.items():
        remark(f"not decided: {name}: {error}", style="yellow")
    if settlement.undecided:
        raise typer.Exit(1)


def _project(repo: Path, tag: str | None) -> tuple[Project, TaskError | None]:
    """Return the project, and what is wrong with its task today.

    A run is decided by the task that it was made with, so the task of today is seldom needed.
    """
    from autohypothesis.engine.project import Project
    from autohypothesis.engine.task_file import foreign_task

    try:
        return open_project(repo, tag=tag), None
    except TaskError as error:
        repository, layout = opened(repo)
        return Project(repository, layout, foreign_task(), meant_tag(layout, tag)), error


def _settle(
    project: Project,
    no_task: TaskError | None,
    experiment_id: str | None,
    status: Status | None,
    reason: str,
) -> Settlement:
    """Decide one experiment, or all that wait; raises the error of one that cannot be decided."""
    from autohypothesis.engine.decide import Settlement, settle, settle_by_hand

    def check_task(experiment_id: str) -> None:
        """Require the task of today for a run that has no task of its own: a recorded one."""
        if no_task is not None and not project.layout.run(experiment_id).run_spec.exists():
            raise no_task

    if experiment_id is None:
        return settle(project, decided_by="policy", check=check_task)
    check_task(experiment_id)
    if status is None:
        settlement = settle(project, [experiment_id], decided_by="policy")
        settlement.decisions_or_raise()
        return settlement
    person = getpass.getuser()
    return Settlement(
        [settle_by_hand(project, experiment_id, status.value, reason=reason, decided_by=person)]
    )


def print_decision(decision: Decision) -> None:
    from rich.markup import escape

    from autohypothesis.records.outcomes import shown_as
    from autohypothesis.terminal.parts import styled

    moved = ""
    if decision.reference_after and decision.reference_after != decision.reference_before:
        moved = f"; the reference is now {decision.reference_after[:7]}"
    status = shown_as(decision.decision_status, decision.reason)
    detail = f" ({decision.detail})" if decision.detail else ""
    why = decision.detail if decision.reason == status else f"{decision.reason}{detail}"
    name = escape(decision.experiment_id)
    out().print(f"{name}: {styled(status)}, {escape(why + moved)}", soft_wrap=True)
