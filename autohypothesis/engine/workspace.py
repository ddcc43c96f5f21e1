"""Folders with the files of a commit: worktrees, checkouts of runs, and evaluators as committed.

The checkout of a run (`Export`) lies in `worktrees/.runs/<name>` and has one holder. What is known
of it lies in `.git/autohypothesis/exports/<name>`, where no run writes. Whatever was done to it, by
a run or by a kill, the next checkout puts right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

from autohypothesis.engine import untracked_files
from autohypothesis.engine.change import Change
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError, GitError
from autohypothesis.records import git_export
from autohypothesis.records.files import remove_folder, write_atomic
from autohypothesis.records.git import EXPERIMENTS, FULL, SALVAGE, Entry, Repository
from autohypothesis.records.git_export import SUBMODULE, Part
from autohypothesis.records.layout import Layout
from autohypothesis.system import process_start

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
    """Their targets."""


@dataclass(frozen=True, slots=True)
class Export:
    """The place of one run after the other. Constructing one touches no disk."""

    repository: Repository
    name: str

    @classmethod
    def at(cls, repository: Repository, path: Path) -> Export:
        """Return the export whose folder is `path`."""
        return cls(repository, path.name)

    @property
    def path(self) -> Path:
        return Layout(self.repository.root).export(self.name)

    @property
    def _state(self) -> Path:
        return self.repository.common_dir / "autohypothesis" / "exports" / self.name

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
        wanted = untracked_files.find(self.repository, task, files.keys())
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
        self, parts: list[Part], files: Mapping[str, Entry], wanted: untracked_files.Included
    ) -> tuple[untracked_files.Copies, dict[str, str]]:
        if self.path.is_symlink() or not self.path.is_dir():
            _remove(self.path)
            self.path.mkdir(parents=True)
        copies = untracked_files.Copies(self.path, self._state / "included.json", wanted)
        unchanged = copies.unchanged()
        kept = {*files, *unchanged}
        folders = {
            parent
            for path in {*kept, *_submodules(parts)}
            for parent in untracked_files.parents_of(path)
        }
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
        """Make the folder of all exports, with its barrier; never take a folder of the user's."""
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

    @classmethod
    def named(
        cls, repository: Repository, name: str, *, branch: str | None = None, fleet: str = ""
    ) -> Workspace:
        """Return `worktrees/<name>`."""
        return cls(repository, Layout(repository.root).worktree(name), branch, fleet)

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
        """The checkout, no worktree, in which candidates that are made here are tried."""
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
        """Delete the worktree. `salvage` it first where it may hold work."""
        self.repository.worktree_remove(self.path)

    def _exists(self) -> bool:
        return (self.path / ".git").is_file()

    def _make(self, commit: str) -> None:
        self.repository.exclude(Layout(self.repository.root).made_on_use)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        fleet = f"fleet={self.fleet} " if self.fleet else ""
        reason = f"{fleet}worker={self.path.name} pid={pid} start={process_start(pid)}"
        self.repository.worktree_add(self.path, commit, reason=reason, branch=self.branch)


def evaluator_of(repository: Repository, commit: str, task: Task) -> Path | None:
    """Return the pristine evaluator of `task`, beside all files that the task protects by name.

    Without a list all other tracked files are protected, and the evaluator stands alone.
    """
    if task.scorer.evaluator is None:
        return None
    listed = task.protected is not None
    beside = [path for path in repository.entries(commit) if listed and task.is_protected(path)]
    return pristine(repository, commit, task.scorer.evaluator, beside)


def pristine(repository: Repository, commit: str, path: str, beside: Iterable[str] = ()) -> Path:
    """Return a protected file as `commit` has it, read-only, at a path named after its content.

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
    raise GitError(
        f"{folder} does not keep what is written there", hint="see which process writes it"
    )


def _holds_exactly(folder: Path, files: Mapping[str, Entry]) -> bool:
    """Return whether `folder` holds `files` and nothing else; what Python compiled is deleted."""
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
    """Return whether a plain file at `place` has the content that git calls `blob`."""
    if place.is_symlink() or not place.is_file():
        return False
    content = place.read_bytes()
    algorithm = hashlib.sha1 if len(blob) == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest() == blob


def _make_anew(
    repository: Repository, commit: str, folder: Path, files: Mapping[str, Entry]
) -> None:
    """Put `files` at `folder`, whole, in place of whatever is there; another process may win."""
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


def working_tree(repository: Repository, task: Task, reference: str, checkout: Path) -> Change:
    """Return the artifacts as they are in `checkout`, as a change of `reference`, or no change.

    No index or working tree is touched. Files that are neither artifacts nor protected (a
    README, say) are left as the reference has them.

    Raises:
        ChangeError: a protected file differs, an artifact is gone, or the checkout lacks what was
            kept since it was made, so that running it would silently undo that.
    """
    present = [path for path in task.artifacts if (checkout / path).is_file()]
    tree = repository.snapshot_tree(also=present, worktree=checkout)
    seen, kept = repository.entries(tree), repository.entries(reference)
    _refuse_protected(
        task, [path for path in {*seen, *kept} if seen.get(path) != kept.get(path)], reference
    )
    gone = [path for path in task.artifacts_in(kept) if path not in seen]
    if gone:
        raise ChangeError(f"{', '.join(gone)} is gone", hint=f"git checkout -- {gone[0]}")
    files = {
        path: repository.show_file(tree, path)
        for path in task.artifacts_in(seen)
        if seen[path] != kept.get(path)
    }
    if not files:
        return Change.none()
    _refuse_undoing(repository, reference, checkout, files)
    return Change.from_tree(repository.tree_with(reference, files))


def _refuse_protected(task: Task, paths: list[str], reference: str) -> None:
    protected = sorted(path for path in paths if task.is_protected(path))
    if protected:
        raise ChangeError(
            f"{', '.join(protected[:8])} may not differ from the reference {reference[:7]}",
            hint="undo that, or commit it and begin another search: --tag NAME",
        )


def _refuse_undoing(
    repository: Repository, reference: str, checkout: Path, files: Mapping[str, bytes]
) -> None:
    """Refuse a checkout that is older than the reference and does not hold what was kept since."""
    head = repository.head_of(checkout)
    if head == reference or not repository.is_ancestor(head, reference):
        return
    for path, content in files.items():
        before = _lines(repository.show_file(head, path))
        kept = _lines(repository.show_file(reference, path))
        if _lacks(before, kept, _lines(content)):
            raise ChangeError(
                f"{path} in this checkout ({head[:7]}) lacks what was kept since, up to"
                f" {reference[:7]}",
                hint="git stash, then `python orchestrator.py adopt`, then git stash pop",
            )


def _lacks(before: set[bytes], kept: set[bytes], now: set[bytes]) -> bool:
    """Return whether lines that a keep removed are back; if it only added some, all miss."""
    removed, added = before - kept, kept - before
    return bool(removed & now) if removed else bool(added) and not added & now


def _lines(content: bytes) -> set[bytes]:
    return {line.strip() for line in content.splitlines()} - {b""}


LOOSE_REFS = 200
"""Each is a file that every listing of refs opens."""


def pack_when_due(repository: Repository) -> bool:
    """Pack refs and loose objects, under the repository's lock, every `LOOSE_REFS` experiments."""
    try:
        loose = len(os.listdir(repository.common_dir / EXPERIMENTS))
    except FileNotFoundError:
        return False
    if loose < LOOSE_REFS:
        return False
    repository.pack_refs()
    repository.pack_objects()
    return True
