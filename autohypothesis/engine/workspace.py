"""Where candidates run: worktrees that are reused, and protected files as they were committed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autohypothesis.errors import GitError
from autohypothesis.records.git import SALVAGE, Repository
from autohypothesis.records.layout import Layout
from autohypothesis.system import process_start


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


def pristine(repository: Repository, commit: str, path: str) -> Path:
    """A protected file exactly as `commit` has it, read-only, at a path that names its content.

    It lies outside every checkout, so no training runs in its folder, and is compared with its
    hash each time it is asked for.
    """
    entries = repository.entries(commit, [path])
    if path not in entries:
        raise GitError(f"there is no file {path!r} in {commit[:12]}")
    blob = entries[path].blob
    place = repository.common_dir / "autohypothesis" / "pristine" / blob / Path(path).name
    if not _holds(place, blob):
        _write_read_only(place, repository.show_file(commit, path))
    return place


def _holds(place: Path, blob: str) -> bool:
    """Whether a plain file at `place` has the content that git calls `blob`."""
    if place.is_symlink() or not place.is_file():
        return False
    content = place.read_bytes()
    algorithm = hashlib.sha1 if len(blob) == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest() == blob


def _write_read_only(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=place.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o444)
        os.replace(beside, place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise
