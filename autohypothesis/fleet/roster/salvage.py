"""Taking away what fleets of the past left: worktrees and branches, never without keeping what
differs.

The reference of a search is its result and stays. What is taken is only what a fleet of ours made,
which its marker refs tell, and what nobody uses now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autohypothesis.engine.project import Project
from autohypothesis.engine.workspace import Export
from autohypothesis.errors import UsageError
from autohypothesis.fleet.live.presence import users_of
from autohypothesis.fleet.roster.roster import read_manifest
from autohypothesis.fleet.roster.worktrees import (
    HEADS,
    MARKERS,
    REFERENCE,
    Worktrees,
    free_name,
    marker,
    worker_branch,
)
from autohypothesis.records.git import SALVAGE, Worktree
from autohypothesis.records.locks import hold


@dataclass(frozen=True, slots=True)
class Step:
    """One worktree or branch: what was done with it, or would be."""

    what: str
    done: str
    """`removed`, `would be removed`, or `left`."""
    detail: str = ""


def prune(project: Project, *, dry_run: bool = False, tag: str | None = None) -> list[Step]:
    """Remove worktrees and branches of workers that are in no active fleet.

    Args:
        tag: of this search only; the active one's removed workers, where it is that one.

    Raises:
        UsageError: no fleet of `tag` left anything.
    """
    with hold(project.layout, "fleet", doing="prune"):
        manifest = read_manifest(project.layout)
        stays: set[tuple[str, str]] = set()
        if manifest is not None:
            stays = {(manifest.tag, one.worker_id) for one in manifest.workers}
        past = [pair for pair in _made(project) if tag in (None, pair[0])]
        if tag is not None and not past:
            known = ", ".join(sorted({name for name, _ in _made(project)})) or "none"
            raise UsageError(f"no fleet of tag {tag!r} is known; there are {known}")
        busy = {worker for _, worker in stays}
        return [
            step
            for name, worker in past
            if (name, worker) not in stays
            for step in _Past(project, name, worker, dry_run).take_away(worker in busy)
        ]


def _made(project: Project) -> list[tuple[str, str]]:
    """Tag and worker of everything that a fleet made here."""
    names = (ref.removeprefix(MARKERS) for ref in project.repository.refs(MARKERS))
    pairs = (tuple(name.split("/")) for name in names)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and pair[1] != REFERENCE]


@dataclass(frozen=True, slots=True)
class _Past:
    """What one worker of one tag left."""

    project: Project
    tag: str
    worker: str
    dry_run: bool

    def take_away(self, name_is_taken: bool) -> Iterator[Step]:
        """Worktrees first: a branch that is checked out cannot go.

        Args:
            name_is_taken: the active fleet has a worker of this name, whose worktree it is.
        """
        left = []
        for name in (self.worker, f"{self.worker}-next"):
            found = None if name_is_taken else self._worktree(name)
            if found is not None:
                step = self._remove_worktree(name, found)
                left += [step] if step.done == "left" else []
                yield step
            if not name_is_taken:
                yield from self._remove_export(name)
        if not left:
            yield from self._remove_branch()

    def _remove_export(self, name: str) -> Iterator[Step]:
        """Where its runs had their files: those are in their commits, so nothing is kept."""
        export = Export(self.project.repository, name)
        if not export.path.is_dir():
            return
        user = users_of(self.project.layout, self.worker, export.path)
        if user:
            yield Step(f"files of runs {export.path}", "left", f"they are used by {user}")
        elif self.dry_run:
            yield Step(f"files of runs {export.path}", "would be removed")
        else:
            export.remove()
            yield Step(f"files of runs {export.path}", "removed")

    def _worktree(self, name: str) -> Worktree | None:
        """The one of that name, if this very worker's."""
        found = self.project.repository.worktree_at(self.project.layout.worktree(name))
        if found is None:
            return None
        words = (found.lock_reason or "").split()
        own_branch = found.branch == HEADS + worker_branch(self.tag, self.worker)
        return found if own_branch or f"fleet={self.tag}" in words else None

    def _remove_worktree(self, name: str, found: Worktree) -> Step:
        what = f"worktree {found.path}"
        user = users_of(self.project.layout, self.worker, found.path)
        if user:
            return Step(what, "left", f"it is used by {user}")
        if self.dry_run:
            return Step(what, "would be removed", "after its changes were kept, if it has any")
        trees = Worktrees(self.project.repository, self.tag)
        workspace = trees.workspace(name)
        kept = trees.rescue(workspace, found.head or self.project.repository.head())
        self.project.repository.worktree_remove(found.path)
        return Step(what, "removed", kept)

    def _remove_branch(self) -> Iterator[Step]:
        repository, branch = self.project.repository, worker_branch(self.tag, self.worker)
        commit = repository.read_ref(HEADS + branch)
        if commit is None:
            if not self.dry_run:
                repository.delete_ref(marker(self.tag, self.worker))
            return
        elsewhere = [one.path for one in repository.worktrees() if one.branch == HEADS + branch]
        if elsewhere and not self.dry_run:
            yield Step(f"branch {branch}", "left", f"it is checked out in {elsewhere[0]}")
            return
        if self.dry_run:
            yield Step(f"branch {branch}", "would be removed", f"it stands at {commit[:12]}")
            return
        kept = self._keep_commit(commit)
        repository.delete_ref(HEADS + branch, commit)
        repository.delete_ref(marker(self.tag, self.worker))
        yield Step(f"branch {branch}", "removed", kept)

    def _keep_commit(self, commit: str) -> str:
        """Commits that nothing else holds: somebody worked on the branch by hand."""
        repository = self.project.repository
        held = [*repository.experiments().values(), *self._references()]
        if commit in held or any(repository.is_ancestor(commit, one) for one in self._references()):
            return f"it stood at {commit[:12]}"
        name = free_name(repository, f"{self.tag}-{self.worker}")
        repository.compare_and_swap(SALVAGE + name, commit, None)
        return f"its commits are in {SALVAGE}{name}"

    def _references(self) -> list[str]:
        """What stays: every search's reference, and where the main checkout stands."""
        repository = self.project.repository
        made = {HEADS + worker_branch(tag, worker) for tag, worker in _made(self.project)}
        heads = repository.refs(HEADS)
        return [repository.head(), *(one for ref, one in heads.items() if ref not in made)]
