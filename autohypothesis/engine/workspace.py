"""Folders with the files of a commit: worktrees, checkouts of runs, and evaluators as committed.

The checkout of a run (`Export`) lies in `worktrees/.runs/<name>` and has one holder. What is known
of it lies in `.git/autohypothesis/exports/<name>`, where no run writes. Whatever was done to it, by
a run or by a kill, the next checkout puts right.

`take_baseline` and `changes_since` compare a checkout before and after a training: every tracked
file, and the distributions that the training's Python has installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from autohypothesis.engine import untracked_files
from autohypothesis.engine.environment import differences, installed, packages
from autohypothesis.engine.task import Task
from autohypothesis.errors import GitError
from autohypothesis.records import git_export
from autohypothesis.records.files import (
    FileStamp,
    file_stamp,
    kind_of,
    remove_folder,
    shown,
    write_atomic,
)
from autohypothesis.records.git import FULL, SALVAGE, Entry, Repository
from autohypothesis.records.git_export import SUBMODULE, Part
from autohypothesis.records.layout import Layout
from autohypothesis.system import process_start

GIT_BARRIER = "gitdir: this-checkout-has-no-repository--see-run.git-in-docs/tasks.md\n"
"""Content of `worktrees/.runs/.git`: git that is called in a checkout ends there, and does not find
the user's own repository around it."""
VERSION_TAG = "v0.0.0"
MESSAGE = "The checkout of a run\n"
PRISTINE = "pristine"
"""The folder of evaluators, one folder for each export."""
PLAIN, PROGRAM = "100644", "100755"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder that holds a commit, and what it has beside it."""

    path: Path
    commit: str
    files: Mapping[str, Entry]
    """Every file of the commit and of its submodules."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Path -> SHA-256 of every file that was copied from the user's checkout."""
    links: Mapping[str, Path] = field(default_factory=dict)
    """Path -> target of what leads to files of the user's."""
    included: Mapping[str, str] = field(default_factory=dict)
    """File or folder -> the hash of what was copied, or how it is linked."""


@dataclass(frozen=True, slots=True)
class Export:
    """The reusable checkout folder of one worker. The constructor touches no disk."""

    repository: Repository
    name: str

    @property
    def path(self) -> Path:
        return Layout(self.repository.root).export(self.name)

    @property
    def _state(self) -> Path:
        return self.repository.common_dir / "autohypothesis" / "exports" / self.name

    @property
    def _pristine(self) -> Path:
        return self.repository.common_dir / "autohypothesis" / PRISTINE / self.name

    def holds(self) -> str | None:
        """Return the commit that it holds; None where it is gone, or not whole."""
        try:
            commit = (self._state / "commit").read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return commit if commit and self.path.is_dir() and not self.path.is_symlink() else None

    def checkout(self, commit: str, task: Task) -> Checkout:
        """Return the folder, holding exactly `commit` and what `task` includes.

        One that a killed process left half-made, or a run damaged, is made anew.

        Raises:
            GitError: a submodule, or a file of git-lfs, is not on this disk; or a file
                of the user's is in the way.
        """
        self._make_room()
        commit = commit if FULL.fullmatch(commit) else self.repository.resolve(commit)
        parts = git_export.parts(self.repository, commit)
        files = {path: entry for part in parts for path, entry in part.files().items()}
        included = untracked_files.find(self.repository, task, files.keys())
        (self._state / "commit").unlink(missing_ok=True)
        try:
            self._fill(parts, files)
        except (GitError, OSError):
            self.remove()
            self._fill(parts, files)
        copies = included.put(self.path)
        absent = git_export.absent_contents(parts, self.path)
        for path in absent:  # it is a pointer: so the next checkout asks for it again
            (self.path / path).unlink(missing_ok=True)
        git_export.refuse_absent(absent, self.repository.root)
        if task.run.git:
            tree = self.repository.tree_of(commit)
            alone = self.repository.commit_tree(tree, [], MESSAGE, at=_EPOCH)
            git_export.one_commit(parts[0], alone, VERSION_TAG, self.path, self._index(parts[0]))
        write_atomic(self._state / "commit", f"{commit}\n", durable=False)
        links = {
            path: Path(os.path.realpath(original.path))
            for path, original in included.originals.items()
            if original.target
        }
        return Checkout(self.path, commit, files, copies, links, included.described(copies))

    def evaluator(self, commit: str, task: Task) -> Path | None:
        """Return the evaluator of `task`, read-only as `commit` has it; None where there is none.

        Beside it are all files that the task protects by name, which it may import; without such a
        list all other tracked files are protected, and it stands alone. The folder is outside of
        every checkout, so no training runs in it, and is made anew each time: nothing else may lie
        there, for it could be imported.
        """
        path, entries = task.scorer.evaluator, self.repository.entries(commit)
        if path is None:
            return None
        if path not in entries or entries[path].mode not in (PLAIN, PROGRAM):
            raise GitError(f"there is no file {path!r} in {commit[:12]}")
        listed = task.protected is not None
        wanted = {
            name: entry.mode
            for name, entry in entries.items()
            if (name == path or (listed and task.is_protected(name)))
            and entry.mode in (PLAIN, PROGRAM)
        }
        _remove(self._pristine)
        try:
            for name, mode in wanted.items():
                file = self._pristine / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(self.repository.show_file(commit, name))
                file.chmod(0o555 if mode == PROGRAM else 0o444)
        except OSError as error:
            problem = f"{self._pristine} cannot be made: {error.strerror or error}"
            raise GitError(problem) from error
        return self._pristine / path

    def candidate(self, checkout: Checkout) -> Path:
        """Return a copy of a fresh checkout, out of reach of the training: what the training
        leaves in its own one is in no commit, and is nothing to be scored by."""
        copy = self._state / "candidate"
        _remove(copy)
        for path in (*checkout.files, *checkout.copies, *checkout.links):
            source, target = checkout.path / path, copy / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink() or not source.is_dir():  # a submodule is one
                shutil.copy(source, target, follow_symlinks=False)
        return copy

    def remove(self) -> None:
        """Delete the folder and all that is known of it."""
        for path in (self.path, self._state, self._pristine):
            _remove(path)

    def _fill(self, parts: list[Part], files: Iterable[str]) -> None:
        """Make the folder hold the files of the commit and nothing else."""
        if self.path.is_symlink() or not self.path.is_dir():
            _remove(self.path)
            self.path.mkdir(parents=True)
        for part in parts:  # a git that outlived its killed checkout writes no more after this
            with git_export.exclusive(self._index(part)):
                pass
        submodules = [
            f"{part.prefix}{path}/"
            for part in parts
            for path, entry in part.entries.items()
            if entry.mode == SUBMODULE
        ]
        folders = {
            parent for path in (*files, *submodules) for parent in untracked_files.parents_of(path)
        }
        kept = set(map(os.fsencode, files))
        _tidy(os.fsencode(self.path), b"", kept, set(map(os.fsencode, folders)))
        for part in parts:
            git_export.fill(part, self.path / part.prefix, self._index(part))

    def _index(self, part: Part) -> Path:
        digest = hashlib.sha256(os.fsencode(part.prefix)).hexdigest()[:16]
        return self._state / (f"index-{digest}" if part.prefix else "index")

    def _make_room(self) -> None:
        """Make the folder of all exports, with its barrier; never take a folder of the user's."""
        room = self.path.parent
        barrier = room / ".git"
        with suppress(OSError, ValueError):
            if (
                not (room.is_symlink() or barrier.is_symlink())
                and barrier.read_text() == GIT_BARRIER
            ):
                return
        is_folder = room.is_dir() and not room.is_symlink()
        is_strange = not is_folder or (any(room.iterdir()) and not self._state.parent.is_dir())
        if os.path.lexists(room) and is_strange:
            raise GitError(
                f"{room} is in the way: it is not of our making", hint=f"mv {room} {room}.old"
            )
        self.repository.exclude(Layout(self.repository.root).git_exclude_patterns)
        try:
            self._state.mkdir(parents=True, exist_ok=True)  # first: it says whose the room is
            room.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GitError(f"{room} cannot be made: {error.strerror or error}") from error
        if barrier.is_dir() and not barrier.is_symlink():
            remove_folder(barrier)
        write_atomic(barrier, GIT_BARRIER, durable=False)


def _remove(path: Path) -> None:
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


@dataclass(frozen=True)
class Workspace:
    """The worktree `worktrees/<name>` with one holder, made at the first checkout and reused."""

    repository: Repository
    name: str
    branch: str | None = None
    """None: detached."""
    fleet: str = ""

    @property
    def path(self) -> Path:
        return Layout(self.repository.root).worktree(self.name)

    def checkout(self, commit: str) -> Path:
        """Return the worktree, holding exactly `commit` and nothing else.

        One that a killed process left half-made, locked or unreadable is made anew.
        """
        if self._exists():
            try:
                self.repository.checkout(self.path, commit, self.branch)
                return self.path
            except GitError:
                self.repository.worktree_remove(self.path)
        self._make(commit)
        return self.path

    def ensure(self, commit: str) -> None:
        """Make the worktree at `commit`, unless it is there."""
        if not self._exists():
            self._make(commit)

    @property
    def export(self) -> Export:
        """Return the checkout, no worktree, in which candidates that are made here are tried."""
        return Export(self.repository, self.name)

    def salvage(self, name: str) -> str | None:
        """Keep what differs from the worktree's commit as `refs/fleet/salvage/<name>`.

        Returns the commit; None when there is nothing to keep.
        """
        head = self.repository.read_ref("HEAD", self.path) if self._exists() else None
        if head is None:
            return None
        tree = self.repository.snapshot_tree(worktree=self.path, untracked=True)
        if tree == self.repository.tree_of(head):
            return None
        commit = self.repository.commit_tree(tree, [head], f"Salvaged from {self.path}\n")
        ref = SALVAGE + name
        self.repository.compare_and_swap(ref, commit, self.repository.read_ref(ref))
        return commit

    def _exists(self) -> bool:
        return (self.path / ".git").is_file()

    def _make(self, commit: str) -> None:
        self.repository.exclude(Layout(self.repository.root).git_exclude_patterns)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        fleet = f"fleet={self.fleet} " if self.fleet else ""
        reason = f"{fleet}worker={self.name} pid={pid} start={process_start(pid)}"
        self.repository.worktree_add(self.path, commit, reason=reason, branch=self.branch)


MAX_NAMED = 8


class CheckoutBaseline(BaseModel):
    """A checkout and an environment before a training, kept with its run until it has ended.

    Attributes:
        files: by the bytes of each path, read as Latin-1: JSON keeps no name that is not UTF-8.
        distributions: metadata folder of each installed distribution -> when its list of files
            was written.
        watched: of a run without a sandbox, the site folders, and those with the data that weights
            are scored by; in a sandbox no run can write there.
        packages: each entry of these folders -> a digest of the stamps of its files.
        copies: the SHA-256 of files that were copied from the user's checkout; keys as `files`.
    """

    commit: str
    files: dict[str, FileStamp]
    distributions: dict[str, int]
    site_folders: list[str]
    watched: list[str] = []
    packages: dict[str, str] = {}
    copies: dict[str, str] = {}

    def watch(self, folders: Iterable[Path]) -> None:
        """Note the state of every file in the site folders and in `folders`."""
        self.watched = [*self.site_folders, *map(str, folders)]
        self.packages = packages(self.watched)

    def stamps(self) -> dict[str, FileStamp]:
        return {_path(name): stamp for name, stamp in self.files.items()}


def _latin(path: str) -> str:
    return os.fsencode(path).decode("latin-1")


def _path(latin: str) -> str:
    return os.fsdecode(latin.encode("latin-1"))


def take_baseline(checkout: Checkout, site_folders: Iterable[Path]) -> CheckoutBaseline:
    """Note the state of a fresh checkout, and of what is installed in `site_folders`."""
    tracked = (path for path, entry in checkout.files.items() if entry.mode != SUBMODULE)
    files = {
        _latin(path): stamp
        for path in (*tracked, *checkout.copies, *checkout.links)
        if (stamp := file_stamp(checkout.path / path))
    }
    folders = [str(folder) for folder in site_folders]
    return CheckoutBaseline(
        commit=checkout.commit,
        files=files,
        distributions=installed(folders),
        site_folders=folders,
        copies={_latin(path): digest for path, digest in checkout.copies.items()},
    )


def changes_since(repository: Repository, checkout: Path, before: CheckoutBaseline) -> list[str]:
    """Describe the forbidden changes of a training; empty: there are none.

    A file that was only rewritten with its own content counts as untouched, and so does a new,
    untracked one: it is deleted before the next training.
    """
    problems: list[str] = []
    rewritten: list[str] = []
    for path, stamp in before.stamps().items():
        now = file_stamp(checkout / path)
        if now != stamp and (problem := _replaced(checkout, path, stamp, now)):
            problems.append(problem)
        elif now != stamp:
            rewritten.append(path)
    copies = {_path(name): digest for name, digest in before.copies.items()}
    committed = [path for path in rewritten if path not in copies]
    changed = git_export.changed(repository, before.commit, checkout, committed)
    rewritten_copies = copies.keys() & set(rewritten)
    changed += [p for p in rewritten_copies if git_export.digest(checkout / p) != copies[p]]
    problems += [f"{path} was changed" for path in sorted(changed)]
    changed_packages = differences(before.distributions, installed(before.site_folders))
    changed_packages += differences(before.packages, packages(before.watched))
    return _at_most(problems) + _at_most(changed_packages)


def find_importable_additions(task: Task, checkout: Path, before: CheckoutBaseline) -> list[str]:
    """Describe what a run left where a scoring program would import it.

    Python looks beside a script, or in the folder that it is started in, before it looks anywhere
    else, and in a package beside what belongs to it.
    """
    if task.scorer.command is None:
        return []
    files = before.stamps()
    folders = {PurePosixPath(path).parent for path in files if path.endswith(".py")}
    folders.add(PurePosixPath(os.path.normpath(task.scoring_cwd)))
    known = {*files, *(str(parent) for path in files for parent in PurePosixPath(path).parents)}
    return _at_most(
        [
            f"{folder / path.name} was made beside the scorer, which could import it"
            for folder in sorted(folders)
            for path in sorted((checkout / folder).glob("*"))
            if str(folder / path.name) not in known
            and (path.suffix in (".py", ".pyc", ".so") or (path / "__init__.py").exists())
        ]
    )


def _replaced(checkout: Path, path: str, before: FileStamp, now: FileStamp | None) -> str:
    """Return how `path` is another thing than it was; empty when only its content can be."""
    for parent in PurePosixPath(path).parents:
        if (checkout / parent).is_symlink() and parent != PurePosixPath("."):
            return f"the folder {parent} of {path} was replaced by a symbolic link"
    if now is None:
        return f"{path} was deleted"
    if stat.S_IFMT(now.mode) != stat.S_IFMT(before.mode):
        return f"{path} was replaced by {kind_of(now.mode)}"
    if stat.S_ISLNK(now.mode):
        return f"the symbolic link {path} was replaced"
    return f"{path} was changed" if now.size != before.size else ""


def _at_most(problems: list[str]) -> list[str]:
    rest = len(problems) - MAX_NAMED
    more = [f"and {rest} more"] if rest > 0 else []
    return [shown(problem) for problem in problems[:MAX_NAMED]] + more
