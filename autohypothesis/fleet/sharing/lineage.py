"""The history that others are shown: a baseline without a parent, and a commit for each keep.

A fleet's own history stays private. What is shown is made of it: the task's files alone, with
dates and an author that are not this machine's, so that two fleets that begin with the same files
begin with the same commit. What was made is remembered as a ref beside the commit it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from autohypothesis.engine.project import Project
from autohypothesis.records.git import Entry

SHOWN = "refs/shown/"
"""Our commit -> the one that others know it as."""
BEGINNING = datetime(2026, 1, 1, tzinfo=timezone.utc)
"""Of every baseline, on every machine."""
_PLAIN = ("100644", "100755")
_READ_BY_GIT = (".gitattributes", ".gitmodules", ".gitignore")


class Lineage:
    """What one project shows of its commits."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def shown(self, commit: str) -> str | None:
        """What others know a commit of ours as; None where it was never shown."""
        return self.project.repository.read_ref(SHOWN + commit)

    def baseline(self, commit: str) -> str:
        """The task's files at `commit`, as a commit without a parent."""
        return self.shown(commit) or self._remember(
            commit, self._commit(self._files(commit), [], self._about(), BEGINNING)
        )

    def keep(self, commit: str, base: str, message: str, at: datetime) -> str:
        """A kept commit on what its base is known as: the same call makes the same commit."""
        if (known := self.shown(commit)) is not None:
            return known
        parent = self.baseline(base)
        repository = self.project.repository
        files = {**repository.entries(parent), **self._artifacts(commit)}
        return self._remember(commit, self._commit(files, [parent], message, at))

    def adopt(self, commit: str, theirs: str) -> None:
        """A commit of ours has somebody's artifacts: what is built on it is built on theirs."""
        if self.shown(commit) is None:
            self._remember(commit, theirs)

    def _remember(self, commit: str, shown: str) -> str:
        self.project.repository.compare_and_swap(SHOWN + commit, shown, None)
        return self.shown(commit) or shown

    def _commit(
        self, files: Mapping[str, Entry], parents: list[str], message: str, at: datetime
    ) -> str:
        repository = self.project.repository
        return repository.commit_tree(repository.tree_of_files(files), parents, message, at=at)

    def _about(self) -> str:
        goal = self.project.task.objective
        return f"baseline of {self.project.task.id}: {goal.direction} {goal.metric}\n"

    def _files(self, commit: str) -> dict[str, Entry]:
        """Artifacts, and what the task says is protected; never all the rest of a repository."""
        task = self.project.task
        every = self.project.repository.entries(commit)
        named = task.protected is not None
        return {
            path: one
            for path, one in every.items()
            if task.is_artifact(path) or (named and task.is_protected(path))
            if one.mode in _PLAIN and path.rpartition("/")[2] not in _READ_BY_GIT
        }

    def _artifacts(self, commit: str) -> dict[str, Entry]:
        entries = self.project.repository.entries(commit)
        return {path: entries[path] for path in self.project.task.artifacts_in(entries)}
