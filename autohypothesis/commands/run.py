"""`run-experiment`: one experiment on what is in the working tree, as published scripts call it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import PublishedExitCodes, Repo, Tag
from autohypothesis.commands.common import err, laboratory
from autohypothesis.errors import AutohypothesisError

if TYPE_CHECKING:
    from autohypothesis.engine.lab import Lab
    from schema import Result

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
        typer.Option("--set", metavar="NAME=VALUE", help="Override a constant; repeatable."),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="Apply a unified diff to the reference.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Run the reference as it stands.")
    ] = False,
    description: Annotated[
        str, typer.Option("--desc", help="What is tried, in a few words.")
    ] = "",
    seed: Annotated[int | None, typer.Option("--seed", help="Default: the task's first.")] = None,
    task: Annotated[Path | None, typer.Option("--task", help="A task file.")] = None,
    tag: Tag = None,
    settle: Annotated[
        bool, typer.Option("--settle", help="Decide it at once: keep or discard.")
    ] = False,
) -> None:
    """Run what is in the working tree once, and leave a bundle.

    Prints `val_bpb<TAB>peak_vram_mb<TAB>duration_s<TAB>log_path`. Exits 0, 1 (crash or wrong
    usage) or 2 (deadline). Example: `orchestrator.py run-experiment --set DEPTH=3`
    """
    try:
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
    from autohypothesis.engine import iteration
    from autohypothesis.engine.settle import settle

    lab = laboratory(context, repo, task=task, tag=tag).with_tag(tag)
    change = _change(lab, overrides, patch, baseline)
    request = iteration.Request(change, title=description, seed=seed)
    result = iteration.run(lab, request, watch=_Watch())
    _after(lab, result.experiment_id, log, result.result, decide, settle)


def _change(lab: Lab, overrides: list[str], patch: Path | None, baseline: bool) -> Any:
    """The one change that was asked for; with none, what is in the working tree."""
    from autohypothesis.engine import change
    from autohypothesis.errors import UsageError

    asked = [name for name, given in
             (("--set", overrides), ("--patch", patch), ("--baseline", baseline)) if given]  # fmt: skip
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} were given together", hint="an experiment tests one change"
        )
    if overrides:
        return change.Overrides.parse(overrides)
    if patch is not None:
        return change.Patch.read(patch)
    return change.Unchanged() if baseline else change.WorkingTree()
