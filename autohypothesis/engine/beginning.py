"""A command that is refused before anything was run takes back what it made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import remove_folder, write_atomic
from autohypothesis.records.git import EXPERIMENTS, Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import held
from autohypothesis.records.tables import HEADER

_TAGS = "refs/heads/autoresearch/"
_OURS = (_TAGS, "refs/autohypothesis/", EXPERIMENTS)


class _Before(NamedTuple):
    """What there was before the command."""

    fresh: bool
    """Whether nothing was ever begun here."""
    manifest: bytes | None
    exclude: bytes | None
    refs: dict[str, str]
    worktrees: set[Path]
    names: set[Path]
    """What lay in the root under the names that we write."""


@contextmanager
def whole_or_nothing(repository: Repository, layout: Layout) -> Iterator[None]:
    """Around a command that begins a search. An error that comes before the first run undoes it.

    In a repository without a search nothing of ours is left; in another the active tag is again
    what it was. What another process has begun meanwhile is left alone.
    """
    before = _look(repository, layout)
    try:
        yield
    except AutohypothesisError:
        with suppress(AutohypothesisError, OSError):  # the first error is the one to show
            if before.fresh and _nothing_happened(layout):
                _take_back(repository, layout, before)
            elif not before.fresh and _read(layout.manifest) != before.manifest:
                _take_back_tag(repository, layout, before)
        raise


def _look(repository: Repository, layout: Layout) -> _Before:
    fresh = not _entries(layout)
    return _Before(
        fresh=fresh,
        manifest=_read(layout.manifest),
        exclude=_read(_exclude_file(repository)),
        refs=repository.refs("refs/" if fresh else _TAGS),
        worktrees={one.path for one in repository.worktrees()} if fresh else set(),
        names={path for path in _names(layout) if os.path.lexists(path)},
    )


def _exclude_file(repository: Repository) -> Path:
    return repository.common_dir / "info" / "exclude"


def _names(layout: Layout) -> tuple[Path, ...]:
    return layout.ledger, layout.results_tsv, layout.worktrees


def _entries(layout: Layout) -> list[Path]:
    """What lies in research/, its page left out."""
    with suppress(OSError):
        return [path for path in layout.research.iterdir() if path.name != "README.md"]
    return []


def _read(path: Path) -> bytes | None:
    with suppress(OSError):
        return path.read_bytes()
    return None


def _nothing_happened(layout: Layout) -> bool:
    """Whether research/ holds no word of a run, a plan or an idea, and nobody is at work there."""
    ours = (layout.locks, layout.fleet, layout.live, layout.aggregate)
    for path in _entries(layout):
        if path not in ours and (path.is_file() or any(one.is_file() for one in path.rglob("*"))):
            return False
    return not any(held(layout, path.stem) for path in layout.locks.glob("*.lock"))


def _take_back(repository: Repository, layout: Layout, before: _Before) -> None:
    for one in repository.worktrees():
        if one.path not in before.worktrees:
            repository.worktree_remove(one.path)
    _delete_new_refs(repository, before, _OURS)
    for path in _entries(layout):
        remove_folder(path)
    with suppress(OSError):
        layout.research.rmdir()
    made = {path for path in _names(layout) if path not in before.names}
    if layout.worktrees in made:
        with suppress(OSError):
            layout.worktrees.rmdir()
    for path, empty in ((layout.ledger, b""), (layout.results_tsv, HEADER.encode())):
        if path in made and _read(path) == empty:
            path.unlink()
    _restore(_exclude_file(repository), before.exclude)


def _take_back_tag(repository: Repository, layout: Layout, before: _Before) -> None:
    """The active tag as it was; a tag that is new and has no experiment is gone."""
    if before.manifest is not None:
        write_atomic(layout.manifest, before.manifest)
    _delete_new_refs(repository, before, (_TAGS,))


def _delete_new_refs(repository: Repository, before: _Before, prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        for name, at in repository.refs(prefix).items():
            if name not in before.refs:
                repository.delete_ref(name, at)


def _restore(path: Path, content: bytes | None) -> None:
    """The file as it was, where it has only grown since."""
    there = _read(path)
    if there is None or there == content or not there.startswith(content or b""):
        return
    if content is None:
        path.unlink()
    else:
        write_atomic(path, content)
