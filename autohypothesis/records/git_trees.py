"""Trees of somebody else's commit, measured before anything lists them. Pure.

A few hundred bytes can name a tree of trees that no listing ever gets to the end of. Each tree is
looked at once here, however often it is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from autohypothesis.errors import GitError

FOLDER = "40000"
MOST_PATHS = 100_000
"""Files of one commit."""
MOST_TREES = 50_000
"""Different folders, of all commits that are looked at together."""
MOST_LEVELS = 64

Read = Callable[[list[str]], Mapping[str, bytes]]
"""Ids of trees -> what is in each, as git stores it."""


class Item(NamedTuple):
    mode: str
    name: str
    id: str


def parse_tree(content: bytes, id_bytes: int) -> list[Item]:
    """The items of one tree. `index-pack --strict` has seen that it is well formed."""
    found, at = [], 0
    while at < len(content):
        end = content.index(b"\0", at)
        mode, _, name = content[at:end].partition(b" ")
        at = end + 1 + id_bytes
        ident = content[end + 1 : at].hex()
        found.append(Item(mode.decode("ascii"), name.decode("utf-8", "surrogateescape"), ident))
    return found


def refuse_endless(roots: Iterable[str], read: Read) -> None:
    """See that every one of the trees `roots` can be listed.

    Raises:
        GitError: one has too many paths or levels, or there are too many trees.
    """
    folders: dict[str, list[str]] = {}
    files: dict[str, int] = {}
    level, depth = sorted(set(roots)), 0
    starts = list(level)
    while level:
        if len(folders) + len(level) > MOST_TREES or depth == MOST_LEVELS:
            raise _endless(f"more than {MOST_TREES:,} folders or {MOST_LEVELS} levels")
        for ident, content in read(level).items():
            items = parse_tree(content, len(ident) // 2)
            folders[ident] = [item.id for item in items if item.mode == FOLDER]
            files[ident] = len(items) - len(folders[ident])
        below = {inner for ident in level for inner in folders[ident]}
        level, depth = sorted(below - folders.keys()), depth + 1
    _refuse_many(starts, folders, files)


def _refuse_many(
    starts: Iterable[str], folders: Mapping[str, list[str]], files: Mapping[str, int]
) -> None:
    """Paths below each tree, counted once per tree; no tree can be inside itself."""
    paths: dict[str, int] = {}

    def count(ident: str) -> int:
        if ident not in paths:
            paths[ident] = 1 + files[ident] + sum(count(inner) for inner in folders[ident])
        return paths[ident]

    for start in starts:
        if count(start) > MOST_PATHS:
            raise _endless(f"more than {MOST_PATHS:,} paths")


def _endless(why: str) -> GitError:
    return GitError(f"a commit has {why}", hint="it was not taken in; leave it alone")
