"""The checkout of a run: the files of a commit, without the repository, updated in place.

It lies in `worktrees/.runs/<name>` and has one holder. What is known of it (its index, its commit,
which files were copied into it) lies in `.git/autohypothesis/exports/<name>`, where no run writes.
Whatever was done to it, by a run or by a kill, the next checkout puts right.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

from autohypothesis.engine import included
from autohypothesis.engine.task import Task
from autohypothesis.errors import GitError
from autohypothesis.records import git_export
from autohypothesis.records.files import remove_folder, write_atomic
from autohypothesis.records.git import FULL, Repository
from autohypothesis.records.git_export import SUBMODULE, Part
from autohypothesis.records.git_facts import Entry
from autohypothesis.records.layout import Layout

BARRIER = "gitdir: this-checkout-has-no-repository--see-run.git-in-docs/tasks.md\n"
"""In `worktrees/.runs/.git`: git that is called in a checkout ends there, and does not find the
user's own repository around it."""
VERSION_TAG = "v0.0.0"
MESSAGE = "The checkout of a run\n"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder that holds a commit, and what it has beside it."""

    path: Path
    files: Mapping[str, Entry]
    """Every file of the commit and of its submodules."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Path -> SHA-256 of every file that was copied from the user's checkout."""
    included: Mapping[str, str] = field(default_factory=dict)
    """File or folder -> the hash of what was copied, or how it is linked."""
    links: tuple[str, ...] = ()
    """Paths that lead to files of the user's."""
    linked: tuple[Path, ...] = ()
    """What they lead to."""


@dataclass(frozen=True, slots=True)
class Export:
    """The place of one run after the other. Constructing one touches no disk."""

    repository: Repository
    name: str

    @classmethod
    def at(cls, repository: Repository, path: Path) -> Export:
        """The one whose folder is `path`."""
        return cls(repository, path.name)

    @property
    def path(self) -> Path:
        return Layout(self.repository.root).export(self.name)

    @property
    def _state(self) -> Path:
        return self.repository.common_dir / "autohypothesis" / "exports" / self.name

    def holds(self) -> str | None:
        """The commit that it holds; None where it is gone, or not whole."""
        try:
            commit = (self._state / "commit").read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return commit if commit and self.path.is_dir() and not self.path.is_symlink() else None

    def checkout(self, commit: str, task: Task) -> Checkout:
        """The folder, holding exactly `commit` and what `task` includes.

        One that a killed process left half-made, or a run damaged, is made anew.

        Raises:
            GitError: a submodule, or a file of git-lfs, is not on this disk; or something of
                somebody else's is in the way.
        """
        self._make_room()
        commit = commit if FULL.fullmatch(commit) else self.repository.resolve(commit)
        parts = git_export.parts(self.repository, commit)
        files = {path: entry for part in parts for path, entry in part.files().items()}
        wanted = included.find(self.repository, task, files.keys())
        (self._state / "commit").unlink(missing_ok=True)
        try:
            copies, hashes = self._fill(parts, files, wanted)
        except (GitError, OSError):
            self.remove()
            copies, hashes = self._fill(parts, files, wanted)
        self._refuse_pointers(parts)
        if task.run.git:
            self._add_repository(parts[0])
        write_atomic(self._state / "commit", f"{commit}\n", durable=False)
        links = {path: one.source for path, one in wanted.origins.items() if one.target}
        return Checkout(
            path=self.path,
            files=files,
            copies=hashes,
            included=copies.described(hashes),
            links=tuple(links),
            linked=tuple(Path(os.path.realpath(source)) for source in links.values()),
        )

    def remove(self) -> None:
        """Delete the folder and all that is known of it."""
        _remove(self.path)
        _remove(self._state)

    # ── the steps of a checkout ───────────────────────────────────────────────────────────

    def _fill(
        self, parts: list[Part], files: Mapping[str, Entry], wanted: included.Included
    ) -> tuple[included.Copies, dict[str, str]]:
        if self.path.is_symlink() or not self.path.is_dir():
            _remove(self.path)
            self.path.mkdir(parents=True)
        copies = included.Copies(self.path, self._state / "included.json", wanted)
        unchanged = copies.unchanged()
        kept = {*files, *unchanged}
        folders = {parent for path in {*kept, *_submodules(parts)} for parent in _parents(path)}
        _tidy(os.fsencode(self.path), b"", _as_bytes(kept), _as_bytes(folders))
        for part in parts:
            git_export.fill(part, self.path / part.prefix, self._index(part))
        there = {path for path in unchanged if os.path.lexists(self.path / path)}
        return copies, copies.put(there)

    def _index(self, part: Part) -> Path:
        digest = sha256(os.fsencode(part.prefix)).hexdigest()[:16]
        return self._state / (f"index-{digest}" if part.prefix else "index")

    def _refuse_pointers(self, parts: list[Part]) -> None:
        missing = [
            path
            for part in parts
            for path in git_export.pointers(part, self.path / part.prefix, self._index(part))
        ]
        git_export.refuse_pointers(missing, self.repository.root)

    def _add_repository(self, part: Part) -> None:
        """A repository of one commit in the folder, which is the same for the same tree."""
        tree = self.repository.tree_of(part.commit)
        commit = self.repository.commit_tree(tree, [], MESSAGE, at=_EPOCH)
        git_export.one_commit(part, commit, VERSION_TAG, self.path, self._index(part))

    def _make_room(self) -> None:
        """The folder of all exports, with its barrier; never somebody else's folder."""
        room = self.path.parent
        barrier = room / ".git"
        if room.is_symlink() or (os.path.lexists(room) and not room.is_dir()):
            raise _in_the_way(room)
        with suppress(OSError, ValueError):
            if not barrier.is_symlink() and barrier.read_text("utf-8") == BARRIER:
                return
        if room.is_dir() and any(room.iterdir()) and not self._state.parent.is_dir():
            raise _in_the_way(room)
        self.repository.exclude(Layout(self.repository.root).made_on_use)
        try:
            self._state.mkdir(parents=True, exist_ok=True)  # first: it says whose the room is
            room.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GitError(f"{room} cannot be made: {error.strerror or error}") from error
        if barrier.is_dir() and not barrier.is_symlink():
            remove_folder(barrier)
        write_atomic(barrier, BARRIER, durable=False)


def _in_the_way(path: Path) -> GitError:
    return GitError(f"{path} is in the way: it is not of our making", hint=f"mv {path} {path}.old")


def _submodules(parts: list[Part]) -> Iterator[str]:
    """The folders of submodules, each as a path inside of it."""
    for part in parts:
        for path, entry in part.entries.items():
            if entry.mode == SUBMODULE:
                yield f"{part.prefix}{path}/"


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _as_bytes(paths: Collection[str]) -> set[bytes]:
    return {path.encode("utf-8", "surrogateescape") for path in paths}


def _remove(path: Path) -> None:
    """Delete whatever is at `path`.

    Raises:
        GitError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
    if os.path.lexists(path):
        raise GitError(f"{path} cannot be deleted", hint=f"see who owns it: ls -la {path}")


def _tidy(folder: bytes, prefix: bytes, files: Set[bytes], folders: Set[bytes]) -> None:
    """Delete everything below `folder` that is neither one of `files` nor one of `folders`.

    Links are never followed. Rights that a run took away from a folder are given back.
    """
    if stat.S_IMODE(os.lstat(folder).st_mode) & 0o700 != 0o700:
        os.chmod(folder, 0o755)
    with os.scandir(folder) as listed:
        entries = list(listed)
    for entry in entries:
        inside = prefix + entry.name
        if not entry.is_dir(follow_symlinks=False):
            if inside not in files:
                os.unlink(entry.path)
        elif inside in folders:
            _tidy(entry.path, inside + b"/", files, folders)
        else:
            _remove(Path(os.fsdecode(entry.path)))
