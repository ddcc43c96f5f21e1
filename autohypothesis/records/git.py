"""Everything the project knows about a repository goes through `Repository`.

Its calls (git_call.py) never run a hook, ask a question, sign, start a gc or take an optional lock,
and none reads what a calling git left in the environment. Objects and trees are made without
touching the user's index or working tree. What changes the shape of the repository (worktrees,
deleted refs, packed refs) happens under one file lock: in parallel, `git worktree add` alone fails
for one in five.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from autohypothesis.errors import ConflictError, GitError, LockError
from autohypothesis.plain import some_of
from autohypothesis.records.checkouts import Worktree, list_worktrees, locate, refuse_path
from autohypothesis.records.files import remove_folder
from autohypothesis.records.git_call import CHECKOUT_TIMEOUT_S, TIMEOUT_S, Answer, call

T = TypeVar("T")

EXPERIMENTS = "refs/experiments/"
LOOSE_REFS = 200
"""Loose refs at which they are packed: every listing of refs opens each."""
LINK = "120000"
"""The mode of a symbolic link in a tree."""
SALVAGE = "refs/fleet/salvage/"
FULL = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""A SHA-1 or SHA-256. What such a name stands for never changes."""
CACHED_COMMITS = 40
"""Answers about objects that a `Repository` keeps."""
LOCK_TIMEOUT_S = 900.0
"""Longer than one slow checkout: a killed holder frees the lock, so waiting is always for work."""

_UNDER_WAY = {
    "rebase-merge": "rebase", "rebase-apply": "rebase", "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert", "BISECT_LOG": "bisect",
}  # fmt: skip
"""File or folder in which git keeps what is begun in a checkout -> the command that began it."""
_BYTES = ("utf-8", "surrogateescape")
_VERIFY = "rev-parse --verify --quiet --end-of-options"
_RAW = "diff-tree -r -z --raw --numstat --no-renames --no-ext-diff --no-textconv"
_PATCH = (
    "diff-tree -r -p -U3 --binary --full-index --no-renames --no-ext-diff --no-textconv --no-color"
    " --diff-algorithm=myers --src-prefix=a/ --dst-prefix=b/"
)


class Entry(NamedTuple):
    """A file of a commit. `mode` tells plain (100644), executable, `LINK`, submodule."""

    mode: str
    blob: str


class FileChange(NamedTuple):
    """One path that differs between two trees; line counts are None for binary files."""

    path: str
    status: str
    old_mode: str
    new_mode: str
    added: int | None
    removed: int | None


def experiment_ref(experiment_id: str) -> str:
    return EXPERIMENTS + experiment_id


class Repository:
    """A repository by the checkout that has the records. Constructing one runs no git.

    Attributes:
        root: that checkout; the main one, where there is one.
        here: the checkout that the user works in: where a search begins, and what `adopt` moves.
    """

    def __init__(self, root: Path, here: Path | None = None) -> None:
        self.root = Path(root)
        self.here = Path(here or root)
        self._known: dict[tuple[str, str], Any] = {}

    @classmethod
    def find(cls, path: Path) -> Repository:
        """Return the repository that `path` is in; raise as `locate`."""
        return cls(*locate(path))

    @classmethod
    def create(cls, root: Path, message: str) -> Repository:
        """A new repository at `root`, with everything that lies there in its first commit."""
        repository = cls(Path(root).absolute())
        refuse_path(repository.root)
        repository._run("init --quiet --initial-branch=main")
        repository._run("add --all")
        repository._run("commit --quiet --message", message)
        return repository

    @cached_property
    def common_dir(self) -> Path:
        """The repository itself, shared by all worktrees; `.git` of the main one."""
        folder = self.root / ".git"
        if folder.is_dir():
            return folder
        return Path(self._run("rev-parse --path-format=absolute --git-common-dir").text)

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def head(self) -> str:
        """The commit that the user's checkout stands on."""
        commit = self.read_ref("HEAD", self.here)
        if commit is None:
            listed = "ls-files --cached --others --exclude-standard -z"
            files = some_of(self._run(listed, cwd=self.here).records)
            raise GitError(
                f"{self.here} has no commit yet",
                hint=f"run `git add -A && git commit -m start` there, with {files or 'a script'}",
            )
        return commit

    def checkout_at(self, path: Path) -> Path:
        """The top folder of the checkout, main or linked, that `path` is in."""
        return Path(self._run("rev-parse --path-format=absolute --show-toplevel", cwd=path).text)

    def branch(self) -> str | None:
        """The branch that the user's checkout is on; None when it is detached."""
        answer = self._run("symbolic-ref --quiet HEAD", cwd=self.here, accept=(0, 1))
        return answer.text.removeprefix("refs/heads/") if answer.status == 0 else None

    def resolve(self, revision: str) -> str:
        """Return the full id of the commit that `revision` names."""
        return self._once("commit", revision, lambda: self._named(revision, "commit"))

    def subject(self, revision: str) -> str:
        """The first line of a commit's message."""
        return self._run("log -1 --format=%s --end-of-options", revision, "--").text

    def tree_of(self, revision: str) -> str:
        return self._named(revision, "tree")

    def _named(self, revision: str, kind: str) -> str:
        words = f"{revision}^{{{kind}}}"
        answer = self._run(_VERIFY, words, cwd=self.here, accept=(0, 1, 128))
        if answer.status:
            if revision == "HEAD":
                self.head()
            raise GitError(
                f"there is no {kind} {revision!r} in {self.root}",
                hint="run `git log --oneline --all` for what there is",
            )
        return answer.text

    def read_ref(self, ref: str, worktree: Path | None = None) -> str | None:
        """Return the commit of `ref`, or None; `HEAD` is that of `worktree`, if given."""
        answer = self._run(_VERIFY, ref, cwd=worktree, accept=(0, 1, 128))
        return answer.text if answer.status == 0 else None

    def refs(self, *prefixes: str) -> dict[str, str]:
        """Full ref name -> object id, for the refs below `prefixes`, each a name or a pattern."""
        answer = self._run("for-each-ref", "--format=%(objectname) %(refname)", *prefixes)
        pairs = (line.split(" ", 1) for line in answer.text.splitlines())
        return {name: commit for commit, name in pairs}

    @cached_property
    def experiments_before(self) -> dict[str, str]:
        """`experiments` as they were when this was first asked; later ones have left a plan."""
        return self.experiments()

    def experiments(self) -> dict[str, str]:
        """Experiment id -> commit, for every experiment there ever was."""
        return {ref.removeprefix(EXPERIMENTS): sha for ref, sha in self.refs(EXPERIMENTS).items()}

    def show_file(self, commit: str, path: str) -> bytes:
        entry = self._listing(commit).get(path)
        if entry is None:
            raise GitError(f"there is no file {path!r} in {commit[:12]}")
        return self.read_blob(entry.blob)

    def read_blob(self, blob: str) -> bytes:
        return self._once("blob", blob, lambda: self._run("cat-file blob", blob).out)

    def entries(self, commit: str, paths: Sequence[str] = ()) -> dict[str, Entry]:
        """Path -> mode and blob, for the files of a commit or tree, all or those at `paths`."""
        listing = self._listing(commit)
        return {path: listing[path] for path in paths or listing if path in listing}

    def _listing(self, commit: str) -> dict[str, Entry]:
        words = "ls-tree -r -z --full-tree"
        return self._once(
            "listing", commit, lambda: parse_listing(self._run(words, commit).records)
        )

    def _once(self, kind: str, name: str, ask: Callable[[], T]) -> T:
        """The answer of `ask`, remembered where `name` is a full id: what that names never changes.

        An iteration asks for few of them, and often.
        """
        key = kind, name
        if key not in self._known:
            answer = ask()
            if not FULL.fullmatch(name):
                return answer
            while len(self._known) >= CACHED_COMMITS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = answer
        return self._known[key]  # type: ignore[no-any-return]

    def tracked_files(self) -> list[str]:
        """Return the paths in the main checkout's index."""
        return sorted(set(self._run("ls-files -z --full-name").records))

    def tracks(self, path: Path) -> bool:
        """Whether the index has the file at `path`; outside of a repository nothing has."""
        return bool(self._run("--literal-pathspecs ls-files --", str(path), accept=(0, 128)).out)

    def edited_files(self) -> list[str]:
        """Return the tracked files of the user's checkout that differ from its commit."""
        words = "status --porcelain --no-renames -z --untracked-files=no"
        return [record[3:] for record in self._run(words, cwd=self.here).records]

    def is_ancestor(self, older: str, newer: str) -> bool:
        return self._run("merge-base --is-ancestor", older, newer, accept=(0, 1)).status == 0

    def merge_base(self, one: str, other: str) -> str | None:
        """Return the newest commit that both are built on; None where there is none."""
        return self._run("merge-base", one, other, accept=(0, 1)).text.strip() or None

    def count_apart(self, one: str, other: str) -> tuple[int, int]:
        """Return how many commits only `one` has, and how many only `other` has."""
        own, others = self._run("rev-list --left-right --count", f"{one}...{other}").text.split()
        return int(own), int(others)

    def diff(self, base: str, other: str) -> str:
        """The unified diff of two commits or trees; `git apply` takes it back."""
        return self._run(_PATCH, base, other).out.decode(*_BYTES)

    def changes(self, base: str, other: str) -> list[FileChange]:
        """Return the files that differ; `_RAW` answers with their modes first, then with counts."""
        raw: dict[str, tuple[str, str, str]] = {}
        counts: dict[str, tuple[int | None, int | None]] = {}
        records = iter(self._run(_RAW, base, other).records)
        for record in records:
            if record.startswith(":"):
                old_mode, new_mode, _, _, status = record[1:].split(" ")
                raw[next(records)] = (status, old_mode, new_mode)
            else:
                added, removed, path = record.split("\t", 2)
                counts[path] = (None, None) if added == "-" else (int(added), int(removed))
        return [FileChange(path, *modes, *counts.get(path, (0, 0))) for path, modes in raw.items()]

    # ── objects and refs, without a checkout ──────────────────────────────────────────────

    def write_blob(self, content: bytes) -> str:
        blob = self._run("hash-object -w --stdin --no-filters", stdin=content).text
        self._known["blob", blob] = content
        return blob

    def tree_with(self, base: str, files: Mapping[str, bytes]) -> str:
        """The tree of `base` with the contents of `files` in place of what is there."""
        there = self.entries(base, list(files))
        lines = {}
        for path, content in files.items():
            blob = self.write_blob(content)
            mode = there[path].mode if path in there else "100644"
            lines[path] = f"{mode} blob {blob}\t{path}"
        if any("/" in path for path in files):
            return self._tree_of(lines.values(), base)
        words = "ls-tree -z --full-tree"
        listed = self._once("top", base, lambda: self._run(words, base).records)
        top = {line.partition("\t")[2]: line for line in listed}
        return self._run("mktree -z", stdin=_joined({**top, **lines}.values())).text

    def _tree_of(self, lines: Iterable[str], base: str | None = None) -> str:
        with self._index(base) as index:
            self._run("update-index -z --index-info", stdin=_joined(lines), index=index)
            return self._run("write-tree", index=index).text

    def patched_tree(self, base: str, patch: str) -> str:
        """The tree of `base` with a unified diff applied, wholly or not at all.

        Raises:
            ConflictError: the patch does not apply; git's words name the hunk.
        """
        content = patch.encode(*_BYTES)
        with self._index(base) as index:
            answer = self._run(
                "apply --cached --whitespace=nowarn -",
                stdin=content if content.endswith(b"\n") else content + b"\n",
                index=index,
                accept=(0, 1, 128),
            )
            if answer.status:
                raise ConflictError(
                    f"the patch does not apply to {base[:12]}: {answer.reason}",
                    hint=f"make it against that commit: git show {base[:12]}",
                )
            return self._run("write-tree", index=index).text

    def snapshot_tree(
        self, also: Iterable[str] = (), worktree: Path | None = None, *, untracked: bool = False
    ) -> str:
        """Return the tree of a working tree: its tracked files, and those of `also` that exist.

        With `untracked`, all files that git does not ignore.

        The index that git works on is a copy, so the user's staging stays what it is.
        """
        folder = worktree or self.here
        own = self._run("rev-parse --path-format=absolute --git-path index", cwd=folder).text
        with self._index(None) as index:
            with suppress(FileNotFoundError):
                shutil.copy2(own, index)  # with its time, which git compares to trust a stat
            which = "--all" if untracked else "--update"
            self._run(f"add {which} -- :/", index=index, cwd=folder, timeout=CHECKOUT_TIMEOUT_S)
            there = [path for path in also if os.path.lexists(folder / path)]
            if there:
                adding = "--literal-pathspecs add --force --"
                self._run(adding, *there, index=index, cwd=folder)
            return self._run("write-tree", index=index, cwd=folder).text

    def tree_of_files(self, files: Mapping[str, Entry]) -> str:
        """Return a tree of just these, whose blobs are here."""
        return self._tree_of(f"{entry.mode} {entry.blob}\t{path}" for path, entry in files.items())

    def commit_tree(
        self, tree: str, parents: Sequence[str], message: str, *, at: datetime | None = None
    ) -> str:
        """A new commit object; no ref moves.

        Args:
            at: its date; then the same call makes the same commit on every machine.
        """
        named = [word for parent in parents for word in ("-p", parent)]
        moment = f"@{int(at.timestamp())} +0000" if at is not None else ""
        dated = {name: moment for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE") if moment}
        commit = self._run(
            "commit-tree", tree, *named, "-F", "-", stdin=message.encode(*_BYTES), extra=dated
        ).text
        self._known["commit", commit] = commit
        if ("listing", tree) in self._known:
            self._known["listing", commit] = self._known["listing", tree]
        return commit

    def compare_and_swap(self, ref: str, new: str, old: str | None) -> bool:
        """Move `ref` from `old` (None: it must not exist) to `new`; False when it was elsewhere."""
        words, expected = "update-ref --no-deref", old or "0" * len(new)
        answer = self._run(words, ref, new, expected, accept=(0, 1, 128))
        if answer.status == 0:
            return True
        if self.read_ref(ref) != old:
            return False
        raise GitError(
            f"{ref} in {self.root} could not be moved to {new[:12]}: {answer.reason}",
            hint=f"look at it: git -C {self.root} for-each-ref {ref}",
        )

    def move_refs(self, moves: Mapping[str, tuple[str, str | None]]) -> bool:
        """Move each ref to the first of its two commits from the second, all of them or none.

        None as the second: the ref must not exist. Returns False where one was elsewhere, is locked
        or cannot be made.
        """
        lines = (
            f"update {ref}\0{new}\0{old or '0' * len(new)}" for ref, (new, old) in moves.items()
        )
        words = "update-ref --no-deref --stdin -z"
        return self._run(words, stdin=_joined(lines), accept=(0, 1, 128)).status == 0

    def delete_ref(self, ref: str, old: str | None = None) -> None:
        with self.lock():
            self._run("update-ref --no-deref -d", ref, *([old] if old else []))

    def pack_when_due(self) -> None:
        """Pack refs and loose objects every `LOOSE_REFS` experiments."""
        folder = self.common_dir / EXPERIMENTS
        if folder.is_dir() and len(os.listdir(folder)) >= LOOSE_REFS:
            self.pack()

    def pack(self) -> None:
        """Pack refs and loose objects. Never `gc --prune`: beside writers it loses objects."""
        with self.lock():
            self._run("pack-refs --all")
            self._run("maintenance run --quiet --task=loose-objects", timeout=CHECKOUT_TIMEOUT_S)

    # ── worktrees ─────────────────────────────────────────────────────────────────────────

    def worktrees(self) -> list[Worktree]:
        """All checkouts, the main one first."""
        return list_worktrees(self.root)

    def is_checked_out(self, branch: str) -> bool:
        """Whether a checkout stands on `branch`, a full ref, or rebases or bisects it."""
        if any(worktree.branch == branch for worktree in self.worktrees()):
            return True
        folders = (self.common_dir, *(self.common_dir / "worktrees").glob("*"))
        notes = ("rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START")
        noted = set()
        for path in (folder / name for folder in folders for name in notes):
            with suppress(OSError):
                noted.add(os.fsdecode(path.read_bytes().strip()).removeprefix("refs/heads/"))
        return branch.removeprefix("refs/heads/") in noted

    def worktree_at(self, path: Path) -> Worktree | None:
        here = os.path.realpath(path)
        return next(
            (worktree for worktree in self.worktrees() if os.path.realpath(worktree.path) == here),
            None,
        )

    def worktree_add(
        self, path: Path, commit: str, *, reason: str, branch: str | None = None
    ) -> None:
        """Make a locked worktree at `commit`, detached or on a branch that is made or moved.

        What a killed or failed attempt left at `path` is cleared first; what this one leaves when
        it fails is taken back, its new branch too.
        """
        commit = self.resolve(commit)
        ref = f"refs/heads/{branch}"
        how = [*_standing(branch), "--lock", "--reason", reason, str(path), commit]
        with self.lock():
            self._forget(path)
            before = self.read_ref(ref) if branch else None
            try:
                self._run("worktree add", *how, timeout=CHECKOUT_TIMEOUT_S)
            except BaseException:
                self._forget(path)
                if branch and before is None and self.read_ref(ref):
                    self._run("update-ref -d", ref)
                raise

    def worktree_remove(self, path: Path) -> None:
        """Remove a worktree and everything in it. Salvage first what may be wanted."""
        with self.lock():
            self._forget(path)

    def _forget(self, path: Path) -> None:
        """Take a worktree, whole, half-made or half-deleted, out of git's list and off the disk."""
        if os.path.realpath(path) == os.path.realpath(self.root):
            raise GitError(f"{path} is the main checkout and stays")
        if self.worktree_at(path) is None:
            return
        # Twice -f: once for changes, once for the lock, the one of a killed `add` included.
        removing = ["worktree", "remove", "-f", "-f", str(path)]
        if self._run(*removing, accept=(0, 128, 255), timeout=CHECKOUT_TIMEOUT_S).status:
            remove_folder(path)
            self._run("worktree unlock", str(path), accept=(0, 128, 255))
            self._run("worktree prune")

    def checkout(self, worktree: Path, commit: str, branch: str | None = None) -> None:
        """Make a worktree hold exactly `commit`: tracked files reset, everything else deleted."""
        how = [*_standing(branch), commit]
        self._run("checkout --force --quiet", *how, cwd=worktree, timeout=CHECKOUT_TIMEOUT_S)
        self.clean(worktree)

    def restore(self, paths: Sequence[str], tree: str) -> None:
        """Write files of `tree` to the user's checkout; its index stays as it is."""
        words = "--literal-pathspecs restore --worktree --source"
        self._run(words, tree, "--", *paths, cwd=self.here)

    def clean(self, worktree: Path) -> None:
        """Delete untracked and ignored files, nested repositories too."""
        self._run("clean -ffdxq", cwd=worktree, timeout=CHECKOUT_TIMEOUT_S)

    def fast_forward(self, commit: str) -> str:
        """Move the user's branch and checkout forward to `commit`; the branch's name.

        Raises:
            GitError: the checkout is dirty, detached, in the middle of a rebase or a merge, or not
                behind `commit`.
        """
        own = Path(self._run("rev-parse --path-format=absolute --git-dir", cwd=self.here).text)
        if begun := next((word for name, word in _UNDER_WAY.items() if (own / name).exists()), ""):
            raise GitError(
                f"{self.here} is in the middle of a {begun}",
                hint="end it (`git status` there says how), then again",
            )
        name = self.branch()
        if name is None:
            raise GitError(f"{self.here} is on no branch", hint="run `git switch BRANCH` there")
        if self.edited_files():
            raise GitError(
                f"{self.here} has changes that are not committed",
                hint="run `git stash` or `git commit -a` there, then again",
            )
        if (head := self.head()) != commit and self.is_ancestor(commit, head):
            raise GitError(
                f"branch {name} has {commit[:12]} already, and commits on top of it",
                hint=f"see them: git log {commit[:12]}..; `git revert COMMIT` takes one out again",
            )
        if not self.is_ancestor(head, commit):
            raise GitError(
                f"branch {name} has commits that {commit[:12]} is not built on",
                hint=f"run `git rebase {commit[:12]}` in {self.here}",
            )
        self._run("merge --ff-only --quiet", commit, cwd=self.here, timeout=CHECKOUT_TIMEOUT_S)
        return name

    def exclude(self, patterns: Iterable[str]) -> None:
        """Have git ignore `patterns` here, through `.git/info/exclude`, each once."""
        path = self.common_dir / "info" / "exclude"
        if not missing_lines(path, wanted := list(patterns)):
            return
        with self.lock():
            path.parent.mkdir(exist_ok=True)
            lines = missing_lines(path, wanted)
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" * torn + "".join(f"{line}\n" for line in lines))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The one lock around what changes the shape of this repository. Not reentrant."""
        import filelock

        path = self.common_dir / "autohypothesis.lock"
        lock = filelock.FileLock(path, timeout=LOCK_TIMEOUT_S, poll_interval=0.01)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise LockError(
                f"{path} was held for {LOCK_TIMEOUT_S:.0f} s",
                hint=f"see who holds it: fuser -v {path}",
            ) from error
        try:
            yield
        finally:
            lock.release()

    # ── calls ─────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _index(self, base: str | None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="autohypothesis-index-") as folder:
            index = Path(folder) / "index"
            if base is not None:
                self._run("read-tree", base, index=index)
            yield index

    def _run(
        self,
        words: str,
        *args: str,
        stdin: bytes = b"",
        index: Path | None = None,
        cwd: Path | None = None,
        timeout: float = TIMEOUT_S,
        accept: tuple[int, ...] = (0,),
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        settings = {**({"GIT_INDEX_FILE": str(index)} if index else {}), **(extra or {})}
        folder = cwd or self.root
        return call(words, args, folder, settings, stdin=stdin, timeout=timeout, accept=accept)


# ── reading its answers ─────────────────────────────────────────────────────────────────────


def _standing(branch: str | None) -> list[str]:
    return ["--no-track", "-B", branch] if branch else ["--detach"]


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\0" for line in lines).encode(*_BYTES)


def blob_id(content: bytes, like: str) -> str:
    """Return the id that `content` has in a repository with ids like this one."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content).hexdigest()


def parse_listing(lines: list[str]) -> dict[str, Entry]:
    """Return path -> entry, from the records of `ls-tree -z`."""
    pairs = (line.split("\t", 1) for line in lines)
    return {path: Entry(*facts.split(" ")[::2]) for facts, path in pairs}


def missing_lines(path: Path, patterns: Iterable[str]) -> list[str]:
    """Those of `patterns` that the file at `path` has no line for."""
    there = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    return [pattern for pattern in patterns if pattern not in there]
