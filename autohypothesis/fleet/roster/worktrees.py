"""A worktree and a branch per worker: made, found whole, or made again; never another's.

What is ours is known by a marker ref, `refs/autohypothesis/fleet/<tag>/<worker>`, set before the
branch is made. So a kill between the two leaves a marker alone, and a branch of that name without
one is not ours. Before anything of ours is replaced, what differs in it from its
commit is kept: in a commit under `refs/fleet/salvage/`, or, where git can no longer read it, by
putting the folder aside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import MARKERS, REFERENCES, reference_branch
from autohypothesis.engine.workspace import Export, Workspace
from autohypothesis.errors import FleetError, GitError, UsageError
from autohypothesis.fleet.live.presence import read_manifest, users_of
from autohypothesis.records.checkouts import is_entry_of, worktree_entry
from autohypothesis.records.files import set_aside
from autohypothesis.records.git import SALVAGE, Entry, Repository, blob_id
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.outputs import worktree_obstacle

OF_THE_TAG = "reference"
"""Name of the marker that earlier versions made for the branch of a tag, in a worker's place."""
HEADS = "refs/heads/"
MISSING = "it is not there"
_ROOM = "autoresearch"


def marker(tag: str, worker: str) -> str:
    return f"{MARKERS}{tag}/{worker}"


def worker_branch(tag: str, worker: str) -> str:
    return f"{reference_branch(tag)}-{worker}"


@dataclass(frozen=True, slots=True)
class Worktrees:
    """The worktrees of one tag's workers."""

    repository: Repository
    tag: str

    def workspace(self, worker: str) -> Workspace:
        branch = worker_branch(self.tag, worker)
        return Workspace(self.repository, worker, branch=branch, fleet=self.tag)

    def refuse_obstacles(self, workers: Iterable[str]) -> None:
        """See that everything can be made, before anything is.

        Raises:
            FleetError: a file, a folder, a branch or a checkout that is not ours is in the way.
        """
        spaces = {worker: self.workspace(worker) for worker in workers}
        if spaces and self.repository.read_ref(HEADS + _ROOM) is not None:
            raise FleetError(
                f"branch {_ROOM} leaves no room for branches {_ROOM}/…",
                hint=f"rename it: git branch -m {_ROOM} {_ROOM}-old",
            )
        for space in spaces.values():
            self._repair_gitdir(space.path)
        self.refuse_places(spaces)
        elsewhere = {tree.branch: tree.path for tree in self.repository.worktrees()}
        for worker, space in spaces.items():
            branch = worker_branch(self.tag, worker)
            taken = elsewhere.get(HEADS + branch)
            if taken is not None and not _same(taken, space.path):
                raise FleetError(
                    f"branch {branch} is checked out in {taken}",
                    hint="run `git switch --detach` there, or choose another tag: --tag NAME"
                    if taken.exists()
                    else f"it is gone: git worktree remove -f -f {taken}",
                )
            known = self.repository.read_ref(marker(self.tag, worker)) is not None
            if not known and self.repository.read_ref(HEADS + branch) is not None:
                raise FleetError(
                    f"branch {branch} is there, and no fleet made it",
                    hint=f"rename it, or choose another tag: git branch -m {branch} {branch}-old",
                )

    def refuse_places(self, names: Iterable[str]) -> None:
        """See that there is room for `worktrees/<name>` of each.

        Raises:
            FleetError: a file or a folder that is not ours is in the way.
        """
        layout = Layout(self.repository.root)
        if os.path.lexists(layout.worktrees) and not layout.worktrees.is_dir():
            raise _in_the_way(layout.worktrees, "no folder")
        for name in names:
            path = layout.worktree(name)
            if obstacle := worktree_obstacle(self.repository, path, worker_branch(self.tag, name)):
                raise _in_the_way(path, obstacle)

    def _repair_gitdir(self, path: Path) -> None:
        """Let git find a worktree of ours again whose entry lost its path."""
        entry = worktree_entry(path)
        if entry is None or not entry.is_dir() or not is_entry_of(self.repository.common_dir, path):
            return
        with suppress(OSError):
            gitdir = entry / "gitdir"
            known = gitdir.read_bytes().strip() if gitdir.is_file() else b""
            if not known or not os.path.lexists(known):
                gitdir.write_bytes(os.fsencode(path / ".git") + b"\n")

    def make(self, worker: str, reference: str) -> str:
        """Make the worktree of `worker`, whole and on its branch; return what was done, or "".

        A branch that is there keeps its commit; a new one begins at `reference`.
        """
        workspace = self.workspace(worker)
        ref = marker(self.tag, worker)
        if self.repository.read_ref(ref) is None:
            self.repository.compare_and_swap(ref, reference, None)
        commit = self.repository.read_ref(f"{HEADS}{workspace.branch}") or reference
        wrong = self.problem_of(worker)
        if not wrong:
            return ""
        kept = self.rescue(workspace, commit)
        self.repository.worktree_remove(workspace.path)
        shutil.rmtree(workspace.path, ignore_errors=True)  # where git did not know it
        workspace.checkout(commit)
        return "made" if wrong == MISSING else f"made again ({wrong}{kept and '; ' + kept})"

    def problem_of(self, worker: str) -> str:
        """Return why the worktree of `worker` cannot be used as it is; empty when it can."""
        workspace = self.workspace(worker)
        path = workspace.path
        if not os.path.lexists(path):
            return MISSING
        listed = self.repository.worktree_at(path)
        if listed is None:
            return "git does not know it" if any(path.iterdir()) else "it was empty"
        if listed.lock_reason == "initializing":
            return "it was never finished"
        head = self._head(path)
        if head is None:
            return "git cannot read it"
        if listed.branch != f"{HEADS}{workspace.branch}":
            return f"it was on {(listed.branch or 'no branch').removeprefix(HEADS)}"
        try:
            tree = self.repository.snapshot_tree(worktree=path)
        except GitError:
            return "its index is damaged"
        missing = self.repository.entries(head).keys() - self.repository.entries(tree).keys()
        if missing:
            return f"{len(missing)} tracked files were missing, {min(missing)} first"
        entry = worktree_entry(path)
        is_locked = entry is not None and (entry / "index.lock").exists()
        return "a git that was killed left its lock" if is_locked else ""

    def _head(self, path: Path) -> str | None:
        """Return the commit it stands on; without `.git`, git answers for the main checkout."""
        if not (path / ".git").is_file():
            return None
        try:
            same = _same(self.repository.checkout_at(path), path)
            return self.repository.read_ref("HEAD", path) if same else None
        except GitError:
            return None

    def rescue(self, workspace: Workspace, commit: str) -> str:
        """Keep what a worktree holds beside its commit; return where that is now, or "".

        Afterwards it may be removed.
        """
        path = workspace.path
        if not path.is_dir():
            return ""
        if self._head(path) is not None:
            name = free_name(self.repository, f"{self.tag}-{path.name}")
            try:
                salvaged = workspace.salvage(name)
                return f"its changes are in {SALVAGE}{name}" if salvaged else ""
            except GitError:
                pass  # its index cannot be read: the files can
        if not _has_uncommitted_files(path, self.repository.entries(commit)):
            return ""
        return f"what was there is in {set_aside(path)}"


def free_name(repository: Repository, stem: str) -> str:
    """Return a name under `refs/fleet/salvage/` that is not taken."""
    taken = {ref.removeprefix(SALVAGE) for ref in repository.refs(SALVAGE)}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _in_the_way(path: Path, what: str) -> FleetError:
    return FleetError(f"{path} is in the way: {what}", hint=f"move it away: mv {path} {path}.old")


def _has_uncommitted_files(folder: Path, entries: Mapping[str, Entry]) -> bool:
    """Return whether a file in `folder` is not as git has it, so that it would be lost."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for path in (Path(place, name) for name in [*names, *links]):
            inside = str(path.relative_to(folder))
            if inside != ".git" and not _is_committed(path, entries.get(inside)):
                return True
    return False


def _is_committed(path: Path, entry: Entry | None) -> bool:
    if entry is None or path.is_symlink() or not path.is_file():
        return False
    return blob_id(path.read_bytes(), entry.blob) == entry.blob


@dataclass(frozen=True, slots=True)
class PruneStep:
    """One worktree or branch, and what was done with it, or would be."""

    what: str
    done: str
    """`removed`, `would be removed`, or `left`."""
    detail: str = ""


def prune(project: Project, *, dry_run: bool = False, tag: str | None = None) -> list[PruneStep]:
    """Remove worktrees and branches of workers that are in no active fleet.

    Args:
        tag: of this search only; the active one's removed workers, where it is that one.

    Raises:
        UsageError: no fleet of `tag` left anything.
    """
    with hold(project.layout, "fleet", doing="prune"):
        manifest = read_manifest(project.layout)
        active = [worker.worker_id for worker in manifest.workers] if manifest else []
        made = _made(project.repository)
        past = [pair for pair in made if tag in (None, pair[0])]
        if tag is not None and not past:
            known = ", ".join(sorted({name for name, _ in made})) or "none"
            raise UsageError(f"no fleet of tag {tag!r} is known; there are {known}")
        pruning = _Pruning(project, dry_run)
        for name, worker in past:
            if manifest is None or name != manifest.tag or worker not in active:
                pruning.remove_worker(name, worker, name_is_taken=worker in active)
        return pruning.steps


def _made(repository: Repository) -> list[tuple[str, str]]:
    """Return tag and worker of everything that a fleet made here."""
    names = (ref.removeprefix(MARKERS) for ref in repository.refs(MARKERS))
    pairs = (tuple(name.split("/")) for name in names)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and pair[1] != OF_THE_TAG]


@dataclass(slots=True)
class _Pruning:
    """One call of `prune`, under its lock."""

    project: Project
    dry_run: bool
    steps: list[PruneStep] = field(default_factory=list)

    def remove_worker(self, tag: str, worker: str, *, name_is_taken: bool) -> None:
        """Remove the worktrees, then the branch: one that is checked out cannot go.

        Args:
            name_is_taken: the active fleet has a worker of this name, whose worktree it is.
        """
        is_free = True
        for name in () if name_is_taken else (worker, f"{worker}-next"):
            is_free &= self._worktree(tag, worker, name)
            export = Export(self.project.repository, name)
            if export.path.is_dir():
                self._step(f"files of runs {export.path}", export.remove, self._user(worker, name))
        if is_free:
            self._branch(tag, worker)

    def _step(
        self, what: str, remove: Callable[[], str | None], left: str, otherwise: str = ""
    ) -> bool:
        """Remove one thing, and note it; return whether nothing keeps it, which `left` says."""
        if left:
            self.steps.append(PruneStep(what, "left", left))
        elif self.dry_run:
            self.steps.append(PruneStep(what, "would be removed", otherwise))
        else:
            self.steps.append(PruneStep(what, "removed", remove() or ""))
        return not left

    def _user(self, worker: str, name: str) -> str:
        user = users_of(self.project.layout, worker, self.project.layout.worktree(name))
        return f"it is used by {user}" if user else ""

    def _worktree(self, tag: str, worker: str, name: str) -> bool:
        """Remove the worktree of that name if it is this worker's; return whether it is gone."""
        repository = self.project.repository
        found = repository.worktree_at(self.project.layout.worktree(name))
        if found is None or (
            found.branch != HEADS + worker_branch(tag, worker)
            and f"fleet={tag}" not in (found.lock_reason or "").split()
        ):
            return True

        def remove() -> str:
            trees = Worktrees(repository, tag)
            kept = trees.rescue(trees.workspace(name), found.head or repository.head())
            repository.worktree_remove(found.path)
            return kept

        otherwise = "after its changes were kept, if it has any"
        return self._step(f"worktree {found.path}", remove, self._user(worker, name), otherwise)

    def _branch(self, tag: str, worker: str) -> None:
        repository, branch = self.project.repository, worker_branch(tag, worker)
        commit = repository.read_ref(HEADS + branch)
        if commit is None:
            if not self.dry_run:
                repository.delete_ref(marker(tag, worker))
            return
        elsewhere = [tree.path for tree in repository.worktrees() if tree.branch == HEADS + branch]
        left = f"it is checked out in {elsewhere[0]}" if elsewhere and not self.dry_run else ""

        def remove() -> str:
            kept = self._keep_commit(commit, f"{tag}-{worker}")
            repository.delete_ref(HEADS + branch, commit)
            repository.delete_ref(marker(tag, worker))
            return kept

        self._step(f"branch {branch}", remove, left, f"it stands at {commit[:12]}")

    def _keep_commit(self, commit: str, stem: str) -> str:
        """Keep commits that nothing else holds, of work by hand on the branch."""
        repository = self.project.repository
        made = {HEADS + worker_branch(tag, worker) for tag, worker in _made(repository)}
        heads = repository.refs(HEADS, REFERENCES)
        stays = [repository.head(), *(head for ref, head in heads.items() if ref not in made)]
        if commit in repository.experiments().values() or any(
            repository.is_ancestor(commit, head) for head in stays
        ):
            return f"it stood at {commit[:12]}"
        name = free_name(repository, stem)
        repository.compare_and_swap(SALVAGE + name, commit, None)
        return f"its commits are in {SALVAGE}{name}"
