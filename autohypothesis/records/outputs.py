"""The names that we write beside research/, in the user's own tree: whose is what lies there.

What we did not write stays as it is. Ours is known by what it holds: rows of experiments that are
known here, lines of our iterations, a mark in the picture. What the repository tracks is never
ours: writing it would make the user's tree dirty.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic_core import from_json

from autohypothesis.errors import FleetError, RecordError
from autohypothesis.records.bundles import decision_documents
from autohypothesis.records.by_hand import ledger_lines
from autohypothesis.records.files import kind_of, read_bytes
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import LIMIT

PICTURE_MARK = "autohypothesis"
"""`Software` in the pictures that we draw."""
_HEAD = 4_096


def refuse_foreign_ledger(repository: Repository, layout: Layout) -> None:
    """See that the ledger can be written, before a run is spent.

    Raises:
        FleetError: something that is not ours has its name.
    """

    def ours(content: bytes) -> bool:
        return not ledger_lines(content, _Known(layout)).foreign

    _refuse(repository, layout.ledger, ours, LIMIT)
    _refuse_no_folder(layout.worktrees)
    _refuse_no_folder(layout.research)


def refuse_foreign_lines(repository: Repository, layout: Layout) -> None:
    """The same of the lines of a task's iterations.

    Raises:
        FleetError: something that is not ours has its name.
    """
    _refuse_no_folder(layout.task_results.parent)
    _refuse(repository, layout.task_results, _has_iterations, LIMIT)


def is_strangers_worktree(repository: Repository, path: Path) -> bool:
    """Whether what lies at `path` is the user's: no worktree that we made and locked."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_dir():
        return True
    listed = repository.worktree_at(path)
    if listed is None:
        return any(path.iterdir()) and not _was_ours(repository, path)
    reason = listed.lock_reason or ""
    return not reason.startswith(("fleet=", "worker=", "pid=", "initializing"))


def _was_ours(repository: Repository, path: Path) -> bool:
    """Whether its `.git` leads into this repository, to an entry that is gone."""
    inside = f"gitdir: {repository.common_dir / 'worktrees'}{os.sep}".encode()
    with suppress(OSError, RecordError):
        return read_bytes(path / ".git").startswith(inside)
    return False


class _Known:
    """Ids of experiments that left anything here."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._decided: set[str] | None = None

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or "/" in name or "\0" in name or not 0 < len(name) < 200:
            return False
        layout = self._layout
        if (layout.runs / name).exists() or (layout.plans / f"{name}.json").exists():
            return True
        if self._decided is None:
            self._decided = set()
            with suppress(RecordError):
                self._decided = {one["experiment_id"] for one in decision_documents(layout)[0]}
        return name in self._decided


def _has_iterations(content: bytes) -> bool:
    """Whether a line of `content` is one of ours."""
    for line in content.splitlines():
        with suppress(ValueError):
            value = from_json(line)
            if isinstance(value, dict) and {"task_id", "iteration_id", "tag"} <= value.keys():
                return True
    return False


def _refuse(
    repository: Repository, path: Path, is_ours: Callable[[bytes], bool], limit: int
) -> None:
    away = path.with_name(f"{path.stem}.mine{path.suffix}")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        if not repository.tracks(path):
            return
        raise FleetError(
            f"{path} is tracked by the repository, and is not ours",
            hint=f"rename it: git mv {shlex.quote(path.name)} {shlex.quote(away.name)}",
        ) from None
    move = f"move it away: mv {shlex.quote(str(path))} {shlex.quote(str(away))}"
    if not stat.S_ISREG(status.st_mode):
        raise FleetError(f"{path} is {kind_of(status.st_mode)}, no file of ours", hint=move)
    if repository.tracks(path):
        words = f"git mv {shlex.quote(str(path))} {shlex.quote(str(away))}"
        raise FleetError(
            f"{path} is tracked by the repository, so it cannot be written here",
            hint=f"rename it: {words}, or take it out: git rm --cached {shlex.quote(str(path))}",
        )
    if status.st_size and not is_ours(read_bytes(path, limit)):
        raise FleetError(f"{path} is not ours: no line of it tells of a run here", hint=move)


def _refuse_no_folder(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise FleetError(
            f"{path} is no folder, and we need one of that name",
            hint=f"move it away: mv {shlex.quote(str(path))} {shlex.quote(f'{path}.mine')}",
        )


def picture_place(layout: Layout) -> Path:
    """Where the picture goes: into the root, or under research/ where the name is taken."""
    path = layout.progress_png
    taken = layout.aggregate_progress_png
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return taken
        with path.open("rb") as file:
            if f"Software\0{PICTURE_MARK}".encode() not in file.read(_HEAD):
                return taken
    return taken if Repository(layout.root).tracks(path) else path
