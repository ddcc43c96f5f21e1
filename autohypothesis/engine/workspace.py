"""Where candidates are made: worktrees that are reused; and protected files as committed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autohypothesis.engine.export import Export
from autohypothesis.engine.task import Task
from autohypothesis.errors import GitError
from autohypothesis.records.git import SALVAGE, Repository
from autohypothesis.records.git_facts import Entry
from autohypothesis.records.layout import Layout
from autohypothesis.system import process_start

PRISTINE = "pristine"
"""The folder of all pristine evaluators, one folder each."""
PLAIN, PROGRAM = "100644", "100755"
_ATTEMPTS = 4


@dataclass(frozen=True)
class Workspace:
    """A worktree with one holder. It is made at the first checkout and reused afterwards."""

    repository: Repository
    path: Path
    branch: str | None = None
    """None: detached."""
    fleet: str = ""
    worker: str = ""

    @classmethod
    def named(
        cls,
        repository: Repository,
        name: str,
        *,
        branch: str | None = None,
        fleet: str = "",
        worker: str = "",
    ) -> Workspace:
        """`worktrees/<name>`."""
        path = Layout(repository.root).worktree(name)
        return cls(repository, path, branch, fleet, worker)

    def checkout(self, commit: str) -> Path:
        """The worktree, holding exactly `commit` and nothing else.

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
        """Where what is prepared here is looked at and tried: a checkout that is no worktree."""
        return Export(self.repository, self.path.name)

    def salvage(self, name: str) -> str | None:
        """Keep what differs from the worktree's commit as `refs/fleet/salvage/<name>`.

        Returns the commit; None when there is nothing to keep.
        """
        if not self._exists():
            return None
        head = self.repository.read_ref("HEAD", self.path)
        if head is None:
            return None
        tree = self.repository.snapshot_tree(worktree=self.path, untracked=True)
        if tree == self.repository.tree_of(head):
            return None
        commit = self.repository.commit_tree(tree, [head], f"Salvaged from {self.path}\n")
        ref = SALVAGE + name
        self.repository.compare_and_swap(ref, commit, self.repository.read_ref(ref))
        return commit

    def remove(self) -> None:
        """Delete the worktree. `salvage` first what somebody may want."""
        self.repository.worktree_remove(self.path)

    def _exists(self) -> bool:
        return (self.path / ".git").is_file()

    def _make(self, commit: str) -> None:
        self.repository.exclude(Layout(self.repository.root).made_on_use)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        holder = {"fleet": self.fleet, "worker": self.worker, "pid": pid}
        words = [f"{key}={value}" for key, value in holder.items() if value]
        reason = " ".join([*words, f"start={process_start(pid)}"])
        self.repository.worktree_add(self.path, commit, reason=reason, branch=self.branch)


def evaluator_of(repository: Repository, commit: str, task: Task) -> Path | None:
    """The pristine evaluator of `task`, beside every other file that the task lists as protected.

    Without a list all other tracked files are protected, and the evaluator stands alone.
    """
    if task.scorer.evaluator is None:
        return None
    listed = task.protected is not None
    beside = [path for path in repository.entries(commit) if listed and task.is_protected(path)]
    return pristine(repository, commit, task.scorer.evaluator, beside)


def pristine(repository: Repository, commit: str, path: str, beside: Iterable[str] = ()) -> Path:
    """A protected file exactly as `commit` has it, read-only, at a path that names its content.

    What it imports may lie in the files `beside` it, which keep their places relative to it. All
    are outside every checkout, so no training runs in their folder, and are compared with their
    hashes each time they are asked for; nothing else may lie there, for it could be imported.
    """
    entries = repository.entries(commit)
    if path not in entries or entries[path].mode not in (PLAIN, PROGRAM):
        raise GitError(f"there is no file {path!r} in {commit[:12]}")
    wanted = {name: entries[name] for name in sorted({path, *beside}) if name in entries}
    files = {name: one for name, one in wanted.items() if one.mode in (PLAIN, PROGRAM)}
    named = "".join(f"{name}\0{one.mode}\0{one.blob}\0" for name, one in files.items())
    digest = hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()
    folder = repository.common_dir / "autohypothesis" / PRISTINE / digest
    for _ in range(_ATTEMPTS):
        if _holds_exactly(folder, files):
            return folder / path
        _make_anew(repository, commit, folder, files)
    raise GitError(f"{folder} does not keep what is written there", hint="see who else writes it")


def _holds_exactly(folder: Path, files: Mapping[str, Entry]) -> bool:
    """Whether `folder` holds `files` and nothing else; what Python compiled is deleted."""
    found = set()
    for place, folders, names in os.walk(folder):
        if "__pycache__" in folders and not os.path.islink(os.path.join(place, "__pycache__")):
            folders.remove("__pycache__")
            shutil.rmtree(os.path.join(place, "__pycache__"), ignore_errors=True)
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in names + links}
    same = found == set(files) and not folder.is_symlink()
    return same and all(_holds(folder / name, one.blob) for name, one in files.items())


def _holds(place: Path, blob: str) -> bool:
    """Whether a plain file at `place` has the content that git calls `blob`."""
    if place.is_symlink() or not place.is_file():
        return False
    content = place.read_bytes()
    algorithm = hashlib.sha1 if len(blob) == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest() == blob


def _make_anew(
    repository: Repository, commit: str, folder: Path, files: Mapping[str, Entry]
) -> None:
    """Put `files` at `folder`, whole, in place of whatever is there; somebody else may win."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        made = beside / "made"
        made.mkdir()
        for name, entry in files.items():
            place = made / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(repository.show_file(commit, name))
            place.chmod(0o555 if entry.mode == PROGRAM else 0o444)
        if os.path.lexists(folder):
            os.rename(folder, beside / "damaged")
        os.rename(made, folder)
    except OSError as error:
        if not os.path.lexists(folder):
            raise GitError(f"{folder} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
