"""Shared by the commands: opening the project, JSON on stdout, remarks on stderr, roles."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autohypothesis.installation import suggested
from autohypothesis.terminal.streams import is_unicode, safe

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout
    from autohypothesis.terminal.screen import Screen

_ACTS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that JSON need not escape, but that act on a terminal or are none."""


# ── what a command works on ─────────────────────────────────────────────────────────────────


def opened(repo: Path) -> tuple[Repository, Layout]:
    """Find the repository and its files, without its task, which need not be in order."""
    from autohypothesis.records.git import Repository
    from autohypothesis.records.layout import Layout

    repository = Repository.find(repo)
    return repository, Layout(repository.root)


def layout_of(repo: Path) -> Layout:
    return opened(repo)[1]


def open_project(repo: Path, *, task: Path | None = None, tag: str | None = None) -> Project:
    """Open the repository, its task and its active tag.

    Where the repository was moved, worktrees and manifest follow.

    A hub key of an earlier version is moved out of `.git`, or warned of, before anything is run.
    """
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.moved import settle_in

    project = Project.open(repo, task=task, tag=tag)
    if note := settle_in(project):
        remark(f"note: {note}")
    common_dir = project.repository.common_dir
    if os.path.lexists(common_dir / "autohypothesis" / "hub.json"):
        from autohypothesis.errors import HubError
        from autohypothesis.hub.client import credentials

        try:
            credentials.own(common_dir)
        except HubError as error:
            remark(f"warning: {error}")
    return project


def meant_tag(layout: Layout, tag: str | None) -> str | None:
    """Return the search that is meant: `--tag`, else the active one."""
    from autohypothesis.records.layout import checked_id
    from autohypothesis.records.ledger import active_tag

    return checked_id(tag) if tag else active_tag(layout)


@contextmanager
def telling_what_runs_lack(project: Project) -> Iterator[None]:
    """Tell which of the user's files a run will not have, where that is news; then run the block.

    Raises:
        GitError: a submodule, or contents of git-lfs, are not on this disk.
    """
    from autohypothesis.engine.untracked_files import warn_once
    from autohypothesis.plain import plain_line
    from autohypothesis.records.git_export import refuse_missing

    refuse_missing(project.repository, project.repository.head())
    if project.scores_itself:
        script = project.task.artifacts[0]
        remark(f"note: {script} has no build_model, so its score is what it prints, not attested")
    with warn_once(project.repository, project.task, project.tag or project.default_tag()) as words:
        if words:
            remark(f"note: {plain_line(words)}")
        yield


def tell_limits(project: Project) -> None:
    """Name the limits of program.md that no code holds, and the constants that buy score with
    compute, which a search that finds its knobs itself leaves alone."""
    from autohypothesis.engine.candidate import python_sources
    from autohypothesis.fleet.live.unbound_limits import unbound_limits
    from autohypothesis.proposers.knobs import budget_constants

    for unbound in unbound_limits(project.layout):
        remark(f"note: {unbound}")
    if project.task.knobs:
        return
    sources = python_sources(project.repository, project.task, project.reference())
    texts = {path: source.decode("utf-8", "replace") for path, source in sources.items()}
    if names := budget_constants(texts):
        remark(
            f"note: {', '.join(names)}: this buys score with compute, and is left alone unless"
            " `knobs` of the task names it"
        )


def end_of(project: Project, hours: float | None = None) -> datetime | None:
    """Return when a search ends that begins now, by `hours` and by its task's budget."""
    from autohypothesis.schema import now

    limits = [limit for limit in (hours, project.task.budget.hours) if limit is not None]
    return now() + timedelta(hours=min(limits)) if limits else None


@contextmanager
def role(name: str) -> Iterator[Stop]:
    """Name this process `ah:NAME`, and note signals that ask it to stop."""
    from autohypothesis.fleet.live.stop import Stop
    from autohypothesis.system import set_process_name

    set_process_name(f"ah:{name}")
    with Stop() as stop:
        yield stop


# ── what a command prints ───────────────────────────────────────────────────────────────────


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
    return _ACTS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: str, *, style: str = "") -> None:
    """Print a line of plain text on stdout."""
    _print(text, style, stderr=False)


def remark(text: str, *, style: str = "") -> None:
    """Print a line of plain text on stderr, so that stdout can be piped."""
    _print(text, style, stderr=True)


def _print(text: str, style: str, *, stderr: bool) -> None:
    """Print a line; one without a style needs no console, which takes long to import."""
    if style:
        console = err() if stderr else out()
        console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)
        return
    stream = sys.stderr if stderr else sys.stdout
    print(safe(suggested(text), stream.encoding or "utf-8"), file=stream, flush=True)


def out() -> Screen:
    """Return the console on stdout, for tables and marked-up text."""
    from autohypothesis.terminal.screen import Screen

    return Screen()


def err() -> Screen:
    """Return the console on stderr, for progress and remarks."""
    from autohypothesis.terminal.screen import Screen

    return Screen(stderr=True)
