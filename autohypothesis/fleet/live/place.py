"""Tells whether a repository was moved or copied since its paths were written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from autohypothesis.plain import some_of
from autohypothesis.records.checkouts import moved_worktrees
from autohypothesis.records.files import load_or_none
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Manifest


class Move(NamedTuple):
    """The paths that still lead to the folder that the repository was in."""

    former: Path | None
    """The folder in the manifest; None where that is this one."""
    worktrees: list[Path]
    """The worktrees that git looks for elsewhere."""

    def __str__(self) -> str:
        names = some_of([path.name for path in self.worktrees])
        links = f"git looks for the worktrees {names} elsewhere" if names else ""
        copied = self.former is not None and self.former.exists()
        came = f"it was {'copied' if copied else 'moved'} here from {self.former}"
        return "; ".join(filter(None, (came if self.former else "", links)))


def find_move(repository: Repository, layout: Layout) -> Move | None:
    """Return how the repository was moved since its paths were written; None where it was not."""
    manifest = load_or_none(Manifest, layout.manifest)
    known = manifest.repository_root if manifest is not None else ""
    is_here = not known or os.path.realpath(known) == os.path.realpath(layout.root)
    moved = moved_worktrees(repository.common_dir, layout.worktrees)
    return None if is_here and not moved else Move(None if is_here else Path(known), moved)
