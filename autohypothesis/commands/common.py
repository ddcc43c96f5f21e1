"""Shared by the commands: opening the project, JSON on stdout, remarks on stderr, roles."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autohypothesis.terminal.streams import is_unicode

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout
    from autohypothesis.terminal.screen import Screen

_ACTS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that JSON need not escape, but that act on a terminal or are none."""


def repository_path(context: typer.Context, repo: Path | None) -> Path:
    """Return `--repo` after the command, else before it, else the current directory."""
    return repo or context.find_root().obj or Path.cwd()


def opened(context: typer.Context, repo: Path | None) -> tuple[Repository, Layout]:
    """Find the repository and its files, without its task, which need not be in order."""
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

    repository = Repository.find(repository_path(context, repo))
    return repository, Layout(repository.root)


def layout_of(context: typer.Context, repo: Path | None) -> Layout:
    """Return the files of the repository."""
    return opened(context, repo)[1]


def open_project(
    context: typer.Context, repo: Path | None, *, task: Path | None = None, tag: str | None = None
) -> Project:
    """Open the repository, its task and its active tag."""
    from autohypothesis.engine.project import Project

    project = Project.open(repository_path(context, repo), task=task, tag=tag)
    _take_keys_out(project.repository.common_dir)
    return project


def _take_keys_out(common_dir: Path) -> None:
    """Move a hub key of an earlier version out of `.git`, or warn, before anything is run."""
    if not os.path.lexists(common_dir / "autohypothesis" / "hub.json"):
        return
    from autohypothesis.errors import HubError
    from autohypothesis.hub.client import credentials

    try:
        credentials.own(common_dir)
    except HubError as error:
        remark(f"warning: {error}")


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as JSON that stdout can hold and a terminal can show; values are exact."""
    text = json.dumps(
        value,
        indent=indent,
        ensure_ascii=not is_unicode(sys.stdout.encoding),
        allow_nan=False,
        default=str,
    )
    return _ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, *, style: str = "") -> None:
    """Print a line of plain text on stdout."""
    out().print(text, style=style, markup=False, soft_wrap=True)


def remark(text: str, *, style: str = "") -> None:
    """Print a line of plain text on stderr, so that stdout can be piped."""
    err().print(text, style=style, markup=False, soft_wrap=True)


def out() -> Screen:
    """Return the console on stdout, for tables and marked-up text."""
    from autohypothesis.terminal.screen import Screen

    return Screen()


def err() -> Screen:
    """Return the console on stderr, for progress and remarks."""
    from autohypothesis.terminal.screen import Screen

    return Screen(stderr=True)


@contextmanager
def role(name: str) -> Iterator[Stop]:
    """Name this process `ah:NAME`, and note signals that ask it to stop."""
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.system import set_process_name

    set_process_name(f"ah:{name}")
    with Stop() as stop:
        yield stop


@contextmanager
def telling_what_runs_lack(project: Project) -> Iterator[None]:
    """Tell which of the user's files a run will not have, where that is news; then run the block.

    Raises:
        GitError: a submodule, or contents of git-lfs, are not on this disk.
    """
    from autohypothesis.engine.untracked_files import telling
    from autohypothesis.plain import plain_line
    from autohypothesis.records.git_export import refuse_missing

    refuse_missing(project.repository, project.repository.head())
    with telling(project.repository, project.task, project.tag or project.usual_tag()) as words:
        if words:
            shown = plain_line(words)
            remark(f"note: {shown}")
        yield


def complete_experiment(incomplete: str) -> list[str]:
    """Return ids of run folders below the current directory, for the shell."""
    from autohypothesis.records.layout import Layout

    runs = Layout(Path.cwd()).runs
    if not runs.is_dir():
        return []
    return sorted(run.name for run in runs.iterdir() if run.name.startswith(incomplete))
