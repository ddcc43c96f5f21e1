"""A worktree and a branch per worker: made, found whole, or made again; never another's.

What is ours is known by a marker ref, `refs/autohypothesis/fleet/<tag>/<worker>`, set before the
branch is made. So a kill between the two leaves a marker alone, and a branch of that name without
one is not ours. Before anything of ours is replaced, what differs in it from its
commit is kept: in a commit under `refs/fleet/salvage/`, or, where git can no longer read it, by
putting the folder aside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autohypothesis.engine.project import Project, reference_branch, refuse_checked_out
from autohypothesis.engine.workspace import Export, Workspace
from autohypothesis.errors import FleetError, GitError, UsageError
from autohypothesis.fleet.live.presence import read_manifest, users_of
from autohypothesis.records.git import SALVAGE, Entry, Repository, Worktree
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold

MARKERS = "refs/autohypothesis/fleet/"
REFERENCE = "reference"
"""The marker of a tag's own branch."""
HEADS = "refs/heads/"
MISSING = "it is not there"
_ROOM = "autoresearch"


def marker(tag: str, worker: str = REFERENCE) -> str:
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

    # ── obstacles ─────────────────────────────────────────────────────────────────────────

    def refuse_obstacles(self, workers: Iterable[str]) -> None:
        """See that everything can be made, before anything is.

        Raises:
            FleetError: a file, a folder, a branch or a checkout that is not ours is in the way.
        """
        if self.repository.read_ref(HEADS + _ROOM) is not None:
            raise FleetError(
                f"branch {_ROOM} leaves no room for branches {_ROOM}/…",
                hint=f"rename it: git branch -m {_ROOM} {_ROOM}-old",
            )
        workers = list(workers)
        for worker in workers:
            self._lead_back(self.workspace(worker).path)
        there = self.repository.worktrees()
        refuse_checked_out(self.repository, self.tag)
        self.refuse_places(workers)
        for worker in workers:
            workspace = self.workspace(worker)
            self._refuse_checked_out(there, str(workspace.branch), workspace.path)
            self._refuse_branch(worker)

    def refuse_places(self, names: Iterable[str]) -> None:
        """See that there is room for `worktrees/<name>` of each.

        Raises:
            FleetError: a file or a folder that is not ours is in the way.
        """
        layout, there = Layout(self.repository.root), self.repository.worktrees()
        if os.path.lexists(layout.worktrees) and not layout.worktrees.is_dir():
            raise _in_the_way(layout.worktrees, "no folder")
        for name in names:
            self._refuse_place(there, layout.worktree(name))

    def _refuse_place(self, there: list[Worktree], path: Path) -> None:
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            raise _in_the_way(path, "a link" if path.is_symlink() else "a file")
        if not any(path.iterdir()) or self._is_ours(there, path):
            return
        raise _in_the_way(path, "a folder that is no worktree of a fleet")

    def _is_ours(self, there: list[Worktree], path: Path) -> bool:
        """Return whether a fleet of ours made the worktree at `path`, in whatever state it is."""
        listed = _listed(there, path)
        if listed is None:
            return self._points_here(path)
        if listed.lock_reason is not None:
            return listed.lock_reason.startswith("fleet=") or listed.lock_reason == "initializing"
        return listed.branch == HEADS + worker_branch(self.tag, path.name)

    def _points_here(self, path: Path) -> bool:
        """Return whether it was a worktree: its `.git` leads into this repository."""
        inside = os.path.realpath(self.repository.common_dir / "worktrees")
        own = _own_folder(path)
        return own is not None and os.path.realpath(own).startswith(inside + os.sep)

    def _lead_back(self, path: Path) -> None:
        """Let git find a worktree of ours again whose entry lost its path."""
        own = _own_folder(path)
        if own is None or not own.is_dir() or not self._points_here(path):
            return
        with suppress(OSError):
            said = (own / "gitdir").read_bytes().strip() if (own / "gitdir").is_file() else b""
            if not said or not os.path.lexists(said):
                (own / "gitdir").write_bytes(os.fsencode(path / ".git") + b"\n")

    def _refuse_checked_out(self, there: list[Worktree], branch: str, own: Path) -> None:
        for one in there:
            if one.branch == HEADS + branch and not _same(one.path, own):
                raise FleetError(
                    f"branch {branch} is checked out in {one.path}",
                    hint="run `git switch --detach` there, or choose another tag: --tag NAME"
                    if one.path.exists()
                    else f"it is gone: git worktree remove -f -f {one.path}",
                )

    def _refuse_branch(self, worker: str) -> None:
        branch = worker_branch(self.tag, worker)
        known = self.repository.read_ref(marker(self.tag, worker)) is not None
        if not known and self.repository.read_ref(HEADS + branch) is not None:
            raise FleetError(
                f"branch {branch} is there, and no fleet made it",
                hint=f"rename it, or choose another tag: git branch -m {branch} {branch}-old",
            )

    # ── making and mending ────────────────────────────────────────────────────────────────

    def wrong_with(self, worker: str) -> str:
        """Return why the worktree of `worker` cannot be used as it is; empty when it can."""
        workspace = self.workspace(worker)
        if not os.path.lexists(workspace.path):
            return MISSING
        return self._what_is_wrong(workspace)

    def make(self, worker: str, reference: str) -> str:
        """Make the worktree of `worker`, whole and on its branch; return what was done, or "".

        A branch that is there keeps its commit; a new one begins at `reference`.
        """
        workspace = self.workspace(worker)
        ref = marker(self.tag, worker)
        if self.repository.read_ref(ref) is None:
            self.repository.compare_and_swap(ref, reference, None)
        commit = self.repository.read_ref(f"{HEADS}{workspace.branch}") or reference
        wrong = self.wrong_with(worker)
        if not wrong:
            return ""
        kept = self.rescue(workspace, commit)
        self.repository.worktree_remove(workspace.path)
        shutil.rmtree(workspace.path, ignore_errors=True)  # where git did not know it
        workspace.checkout(commit)
        return "made" if wrong == MISSING else f"made again ({wrong}{kept and '; ' + kept})"

    def _what_is_wrong(self, workspace: Workspace) -> str:
        """Return why a worktree that is there cannot be used as it is; empty when it can."""
        path = workspace.path
        listed = _listed(self.repository.worktrees(), path)
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
        return "a git that was killed left its lock" if self._is_locked(path) else ""

    def _head(self, path: Path) -> str | None:
        """Return the commit it stands on; without `.git`, git answers for the main checkout."""
        if not (path / ".git").is_file():
            return None
        try:
            same = _same(self.repository.checkout_at(path), path)
            return self.repository.read_ref("HEAD", path) if same else None
        except GitError:
            return None

    def _is_locked(self, path: Path) -> bool:
        own = _own_folder(path)
        return own is not None and (own / "index.lock").exists()

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
        if not _holds_more(path, self.repository.entries(commit)):
            shutil.rmtree(path, ignore_errors=True)
            return ""
        aside = path.with_name(f"{path.name}.set-aside-{time.time_ns()}")
        os.rename(path, aside)
        return f"what was there is in {aside}"


def free_name(repository: Repository, stem: str) -> str:
    """Return a name under `refs/fleet/salvage/` that is not taken."""
    taken = {ref.removeprefix(SALVAGE) for ref in repository.refs(SALVAGE)}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)


def _own_folder(path: Path) -> Path | None:
    """Return where the `.git` of a worktree says that git keeps its index and HEAD."""
    try:
        said = (path / ".git").read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return None
    inside = said.removeprefix("gitdir:").strip()
    return Path(inside) if inside and "\0" not in inside else None


def _listed(there: Iterable[Worktree], path: Path) -> Worktree | None:
    return next((one for one in there if _same(one.path, path)), None)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _in_the_way(path: Path, what: str) -> FleetError:
    return FleetError(f"{path} is in the way: {what}", hint=f"move it away: mv {path} {path}.old")


def _holds_more(folder: Path, entries: Mapping[str, Entry]) -> bool:
    """Return whether a file in `folder` is not as git has it, so that it would be lost."""
    for place, folders, names in os.walk(folder):
        for name in [*names, *(one for one in folders if os.path.islink(Path(place, one)))]:
            path = Path(place, name)
            inside = str(path.relative_to(folder))
            if inside != ".git" and not _is_committed(path, entries.get(inside)):
                return True
    return False


def _is_committed(path: Path, entry: Entry | None) -> bool:
    if entry is None or path.is_symlink() or not path.is_file():
        return False
    content = path.read_bytes()
    algorithm = hashlib.sha1 if len(entry.blob) == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob


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
            for step in _FormerWorker(project, name, worker, dry_run).take_away(worker in busy)
        ]


def _made(project: Project) -> list[tuple[str, str]]:
    """Return tag and worker of everything that a fleet made here."""
    names = (ref.removeprefix(MARKERS) for ref in project.repository.refs(MARKERS))
    pairs = (tuple(name.split("/")) for name in names)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and pair[1] != REFERENCE]


@dataclass(frozen=True, slots=True)
class _FormerWorker:
    """The worktrees and the branch that one worker of one tag left."""

    project: Project
    tag: str
    worker: str
    dry_run: bool

    def take_away(self, name_is_taken: bool) -> Iterator[PruneStep]:
        """Remove the worktrees, then the branch: one that is checked out cannot go.

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

    def _remove_export(self, name: str) -> Iterator[PruneStep]:
        """Remove the files of its runs, which are in their commits."""
        export = Export(self.project.repository, name)
        if not export.path.is_dir():
            return
        what = f"files of runs {export.path}"
        user = users_of(self.project.layout, self.worker, export.path)
        if user:
            yield PruneStep(what, "left", f"they are used by {user}")
            return
        if not self.dry_run:
            export.remove()
        yield PruneStep(what, "would be removed" if self.dry_run else "removed")

    def _worktree(self, name: str) -> Worktree | None:
        """Return the worktree of that name, if it is this worker's."""
        found = self.project.repository.worktree_at(self.project.layout.worktree(name))
        if found is None:
            return None
        words = (found.lock_reason or "").split()
        own_branch = found.branch == HEADS + worker_branch(self.tag, self.worker)
        return found if own_branch or f"fleet={self.tag}" in words else None

    def _remove_worktree(self, name: str, found: Worktree) -> PruneStep:
        what = f"worktree {found.path}"
        user = users_of(self.project.layout, self.worker, found.path)
        if user:
            return PruneStep(what, "left", f"it is used by {user}")
        if self.dry_run:
            return PruneStep(what, "would be removed", "after its changes were kept, if it has any")
        trees = Worktrees(self.project.repository, self.tag)
        workspace = trees.workspace(name)
        kept = trees.rescue(workspace, found.head or self.project.repository.head())
        self.project.repository.worktree_remove(found.path)
        return PruneStep(what, "removed", kept)

    def _remove_branch(self) -> Iterator[PruneStep]:
        repository, branch = self.project.repository, worker_branch(self.tag, self.worker)
        commit = repository.read_ref(HEADS + branch)
        if commit is None:
            if not self.dry_run:
                repository.delete_ref(marker(self.tag, self.worker))
            return
        elsewhere = [one.path for one in repository.worktrees() if one.branch == HEADS + branch]
        if elsewhere and not self.dry_run:
            yield PruneStep(f"branch {branch}", "left", f"it is checked out in {elsewhere[0]}")
            return
        if self.dry_run:
            yield PruneStep(f"branch {branch}", "would be removed", f"it stands at {commit[:12]}")
            return
        kept = self._keep_commit(commit)
        repository.delete_ref(HEADS + branch, commit)
        repository.delete_ref(marker(self.tag, self.worker))
        yield PruneStep(f"branch {branch}", "removed", kept)

    def _keep_commit(self, commit: str) -> str:
        """Keep commits that nothing else holds, of work by hand on the branch."""
        repository = self.project.repository
        held = [*repository.experiments().values(), *self._references()]
        if commit in held or any(repository.is_ancestor(commit, one) for one in self._references()):
            return f"it stood at {commit[:12]}"
        name = free_name(repository, f"{self.tag}-{self.worker}")
        repository.compare_and_swap(SALVAGE + name, commit, None)
        return f"its commits are in {SALVAGE}{name}"

    def _references(self) -> list[str]:
        """Return what stays: every search's reference, and where the main checkout stands."""
        repository = self.project.repository
        made = {HEADS + worker_branch(tag, worker) for tag, worker in _made(self.project)}
        heads = repository.refs(HEADS)
        return [repository.head(), *(one for ref, one in heads.items() if ref not in made)]
