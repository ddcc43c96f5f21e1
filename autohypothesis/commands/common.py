"""What most commands need: the laboratory they work in, JSON on stdout, a console on stderr."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from autohypothesis.engine.lab import Lab


def repository_path(context: typer.Context, repo: Path | None) -> Path:
    """`--repo` after the command, else before it, else the current directory."""
    return repo or context.find_root().obj or Path.cwd()


def laboratory(
    context: typer.Context, repo: Path | None, *, task: Path | None = None, tag: str | None = None
) -> Lab:
    """The repository, its task and its active tag, opened."""
    from autohypothesis.engine.lab import Lab

    lab = Lab.open(repository_path(context, repo), task=task, tag=tag)
    _take_keys_out(lab.repository.common_dir)
    return lab


def _take_keys_out(common_dir: Path) -> None:
    """A hub key of an earlier version leaves `.git` before any run; what hinders that is said."""
    if not os.path.lexists(common_dir / "autohypothesis" / "hub.json"):
        return
    from autohypothesis.errors import HubError
    from autohypothesis.hub.client import credentials

    try:
        credentials.own(common_dir)
    except HubError as error:
        err().print(f"warning: {error}", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    sys.stdout.write("\n")


def out() -> Console:
    """Tables and text, on stdout. Named colours only: they follow the terminal's theme."""
    from rich.console import Console

    return Console(highlight=False)


def err() -> Console:
    """Progress and remarks, on stderr, so that stdout can be piped.

    Whoever read them may have gone: that ends nothing.
    """
    from rich.console import Console

    class Steady(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())

    return Steady(stderr=True, highlight=False)


def complete_experiment(incomplete: str) -> list[str]:
    """Ids of run folders below the current directory, for the shell."""
    from autohypothesis.records.layout import Layout

    runs = Layout(Path.cwd()).runs
    if not runs.is_dir():
        return []
    return sorted(run.name for run in runs.iterdir() if run.name.startswith(incomplete))
