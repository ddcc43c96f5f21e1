"""What most commands need: the laboratory they work in, JSON on stdout, a console on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

    return Lab.open(repository_path(context, repo), task=task, tag=tag)


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


@contextmanager
def telling_what_runs_lack(lab: Lab) -> Iterator[None]:
    """Say which of the user's files a run will not have, where that is news; then the block.

    Raises:
        GitError: a submodule, or contents of git-lfs, are not on this disk.
    """
    from autohypothesis.engine.lacking import telling
    from autohypothesis.records.git_export import refuse_missing
    from autohypothesis.records.tables import harmless_lines

    refuse_missing(lab.repository, lab.repository.head())
    with telling(lab.repository, lab.task, lab.tag or lab.usual_tag()) as words:
        if words:
            shown = " ".join(harmless_lines(words))
            err().print(f"note: {shown}", markup=False, soft_wrap=True)
        yield


def complete_experiment(incomplete: str) -> list[str]:
    """Ids of run folders below the current directory, for the shell."""
    from autohypothesis.records.layout import Layout

    runs = Layout(Path.cwd()).runs
    if not runs.is_dir():
        return []
    return sorted(run.name for run in runs.iterdir() if run.name.startswith(incomplete))
