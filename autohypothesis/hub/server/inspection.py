"""Inspects a push before anything of it is published.

git would believe a bundle's header, and its own checks let through links, submodules, attributes,
and trees that unfold without end. Here the header is parsed with limits, and each object is read
once: what a tree unfolds to is computed, not enumerated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import NamedTuple

from autohypothesis.errors import GitError
from autohypothesis.hub.server.refusals import BundleError
from autohypothesis.hub.server.settings import HubLimits
from autohypothesis.records import git_bundle
from autohypothesis.records.git_call import Objects

PACK_HEADER = 12
"""Bytes: "PACK", version, number of objects."""
_SHA1 = 40
"""Characters."""
_TREE = b"40000"
_FILES = (b"100644", b"100755")
_REFUSED_MODES = {b"120000": "a symbolic link", b"160000": "a submodule"}
_REFUSED_NAMES = (b".gitmodules", b".gitattributes", b".git")
_MESSAGE = 1000
"""Characters of a subject line that are kept."""

# ── the header ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PushHeader:
    heads: tuple[str, ...]
    """Hashes of the heads, each once, in the sender's order."""
    prerequisites: tuple[str, ...]
    objects: int
    """The number of objects that the pack says it holds."""
    pack_at: int
    """Bytes before the pack."""


def parse_header(start: bytes, limits: HubLimits) -> PushHeader:
    """Read the header of a bundle that begins with `start`, and the opening of its pack.

    Raises:
        BundleError: there is none, or it is over `limits`.
    """
    try:
        header = git_bundle.parse_header(start)
    except GitError as error:
        hint = "send what `git bundle create FILE HEAD` makes, as it is"
        raise BundleError(error.problem, hint=hint) from None
    heads, prerequisites = dict.fromkeys(header.heads), dict.fromkeys(header.prerequisites)
    opening = start[header.size : header.size + PACK_HEADER]
    if len(opening) < PACK_HEADER or opening[:4] != b"PACK":
        raise BundleError("no pack follows its header")
    objects = int.from_bytes(opening[8:], "big")
    for what, number, limit in (
        ("heads", len(heads), limits.heads),
        ("prerequisites", len(prerequisites), limits.prerequisites),
        ("objects", objects, limits.objects),
    ):
        if number > limit:
            raise BundleError(f"it has {number:,} {what}; at most {limit:,} are taken")
    if not heads:
        raise BundleError("it has no head")
    if any(len(name) != _SHA1 for name in (*heads, *prerequisites)):
        raise BundleError("its hashes are of sha256, which this hub does not take")
    return PushHeader(tuple(heads), tuple(prerequisites), objects, header.size)


# ── commits and trees ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class NewCommit:
    hash: str
    tree: str
    parents: tuple[str, ...]
    message: str


class UnfoldedTree(NamedTuple):
    """The size of a tree when it is checked out."""

    entries: int
    depth: int
    path: int
    """Bytes of the longest path below it."""


@dataclass(slots=True)
class PushInspection:
    """Reads from `objects`; `known` tells which commits are indexed already."""

    objects: Objects
    known: Callable[[Iterable[str]], set[str]]
    pack: Collection[str]
    limits: HubLimits
    reached: set[str] = field(default_factory=set)
    """The objects of the pack that belong to a new commit."""
    _trees: dict[str, UnfoldedTree] = field(default_factory=dict)

    def commits(self, heads: Iterable[str]) -> list[NewCommit]:
        """All new commits, parents before children, with their trees checked.

        Raises:
            BundleError: an object is missing, is no commit, or is not taken.
        """
        found: dict[str, NewCommit] = {}
        ahead = list(dict.fromkeys(heads))
        asked = {*ahead, *self.pack}
        known = self.known(asked)
        while ahead:
            unasked = [name for name in ahead if name not in asked]
            known |= self.known(unasked) if unasked else set()
            asked.update(unasked)
            fresh = [name for name in ahead if name not in known and name not in found]
            if len(found) + len(fresh) > self.limits.commits:
                raise BundleError(f"it has more than {self.limits.commits:,} new commits")
            found.update((name, self._commit(name)) for name in fresh)
            ahead = list(dict.fromkeys(parent for name in fresh for parent in found[name].parents))
        for commit in found.values():
            self._check_size(commit)
        self.reached.update(name for name in found if name in self.pack)
        lines = {name: [p for p in commit.parents if p in found] for name, commit in found.items()}
        return [found[name] for name in TopologicalSorter(lines).static_order()]

    def _commit(self, name: str) -> NewCommit:
        answer = self._read(name, self.limits.commit_bytes)
        if answer is None:
            raise BundleError(
                f"commit {name} is neither in it nor here, so its history would be broken",
                hint="push from a clone that is not shallow: `git fetch --unshallow`",
            )
        kind, content = answer
        if kind != "commit":
            raise BundleError(f"{name} is a {kind}, not a commit")
        commit = parse_commit(name, content)
        if len(commit.parents) > self.limits.parents:
            raise BundleError(f"commit {name} has {len(commit.parents):,} parents")
        return commit

    def _read(self, name: str, most: int) -> tuple[str, bytes] | None:
        try:
            return self.objects.read(name, most)
        except GitError as error:
            raise BundleError(error.problem) from error

    def _check_size(self, commit: NewCommit) -> None:
        tree = self._unfold(commit.tree)
        for what, value, most in (
            ("files and folders", tree.entries, self.limits.entries),
            ("levels of folders", tree.depth, self.limits.depth),
            ("bytes in a path", tree.path, self.limits.path_bytes),
        ):
            if value > most:
                raise BundleError(f"commit {commit.hash} has {value:,} {what}; at most {most:,}")

    def _unfold(self, name: str, level: int = 1) -> UnfoldedTree:
        """Compute what a tree unfolds to from its folders, each of which is read once."""
        if name in self._trees:
            return self._trees[name]
        if level > self.limits.depth:
            raise BundleError(f"folders are nested deeper than {self.limits.depth} levels")
        if len(self._trees) > self.limits.objects:
            raise BundleError(f"it has more than {self.limits.objects:,} folders")
        answer = self._read(name, self.limits.tree_bytes)
        if answer is None or answer[0] != "tree":
            raise BundleError(f"tree {name} is missing")
        self._reach(name)
        entries = longest = 0
        depth = 1
        for mode, entry, inner in parse_tree(answer[1]):
            _check_entry(mode, entry)
            entries, longest = entries + 1, max(longest, len(entry))
            if mode == _TREE:
                below = self._unfold(inner, level + 1)
                entries, depth = entries + below.entries, max(depth, 1 + below.depth)
                longest = max(longest, len(entry) + 1 + below.path)
            else:
                self._reach(inner)
        self._trees[name] = UnfoldedTree(entries, depth, longest)
        return self._trees[name]

    def _reach(self, name: str) -> None:
        if name in self.pack:
            self.reached.add(name)


def _check_entry(mode: bytes, name: bytes) -> None:
    shown = name[:100].decode("utf-8", "replace")
    if mode in _REFUSED_MODES:
        raise BundleError(f"{shown!r} is {_REFUSED_MODES[mode]}; only files and folders are taken")
    if mode != _TREE and mode not in _FILES:
        raise BundleError(f"{shown!r} has mode {mode[:10].decode('ascii', 'replace')}")
    if name.lower() in _REFUSED_NAMES:
        raise BundleError(f"{shown!r} is not taken: it would steer git where it is checked out")


def parse_tree(content: bytes) -> Iterable[tuple[bytes, bytes, str]]:
    """Mode, name and hash of each entry.

    Raises:
        BundleError: the tree is torn.
    """
    at = 0
    while at < len(content):
        blank, end = content.find(b" ", at), content.find(b"\0", at)
        if not at < blank < end or end + 21 > len(content):
            raise BundleError("a tree is torn")
        yield content[at:blank], content[blank + 1 : end], content[end + 1 : end + 21].hex()
        at = end + 21


def parse_commit(name: str, content: bytes) -> NewCommit:
    """A commit from its bytes; git has checked that they are one."""
    head, _, message = content.partition(b"\n\n")
    facts = [line.partition(" ") for line in head.decode("utf-8", "replace").split("\n")]
    trees = [value for key, _, value in facts if key == "tree"]
    parents = tuple(value for key, _, value in facts if key == "parent")
    if len(trees) != 1:
        raise BundleError(f"commit {name} has {len(trees)} trees")
    return NewCommit(name, trees[0], parents, subject_of(message))


def subject_of(message: bytes) -> str:
    """The first paragraph on one line, as `git log --format=%s` has it."""
    text = message.decode("utf-8", "replace").lstrip("\n")
    lines = text.split("\n\n", 1)[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip())[:_MESSAGE]
