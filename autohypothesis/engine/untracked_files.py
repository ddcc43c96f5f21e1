"""Files of the user's checkout that git does not track: which ones a run gets, and which it lacks.

A task or `.worktreeinclude` names those that a run gets. What is small is copied, so that no run
changes the original; what is large is linked.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from autohypothesis.engine.task import Task, canonical_hash, matches
from autohypothesis.errors import LaunchError
from autohypothesis.records import git_export
from autohypothesis.records.files import (
    FileStamp,
    file_stamp,
    read_bytes,
    read_object,
    shown,
    write_json,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.git_export import untracked
from autohypothesis.records.layout import Layout

COPIED_BYTES = 16 << 20
"""The largest file or folder that is copied."""
COPIED_FILES = 2_000
"""The most files of a folder that is copied."""
COPIED_IN_ALL = 64 << 20
MAX_NAMED = 100
"""The most files and folders that a record names."""
LIMIT = 1 << 20
"""Bytes of `.worktreeinclude`."""


class Original(NamedTuple):
    """The user's file that one file of the checkout is made from."""

    path: str
    stamp: FileStamp
    target: str = ""
    """Target of a link; empty for a copy."""


@dataclass(frozen=True, slots=True)
class Included:
    """The files that a checkout has beside its commit."""

    originals: Mapping[str, Original] = field(default_factory=dict)
    """Path in the checkout -> original."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """File or folder -> `linked ...`, or empty: it is copied."""

    def put(self, checkout: Path) -> dict[str, str]:
        """Copy or link all of them to `checkout`; return path -> SHA-256 of every copy.

        Raises:
            LaunchError: an original cannot be read, or the commit has a link on the way.
        """
        hashes = {}
        for path, original in self.originals.items():
            try:
                if digest := _put(checkout, path, original):
                    hashes[path] = digest
            except FileNotFoundError:
                continue  # it was deleted meanwhile
            except OSError as error:
                raise LaunchError(
                    f"{original.path} cannot be brought into a checkout: {error.strerror}",
                    hint="see .worktreeinclude, and run.include of the task",
                ) from error
        return hashes

    def described(self, hashes: Mapping[str, str]) -> dict[str, str]:
        """Return file or folder -> the hash of what was copied, or `linked ...`."""
        described = {
            shown(entry): kind or _hash_of(entry.rstrip("/"), hashes)
            for entry, kind in self.entries.items()
        }
        if len(described) <= MAX_NAMED:
            return described
        return {f"{len(described)} files and folders": canonical_hash(described)}


def _hash_of(path: str, hashes: Mapping[str, str]) -> str:
    inside = {name: digest for name, digest in hashes.items() if name.startswith(f"{path}/")}
    return hashes.get(path) or canonical_hash(inside)


def _put(checkout: Path, path: str, original: Original) -> str:
    """Make one file; return the hash of a copy, and nothing for a link."""
    if any((checkout / parent).is_symlink() for parent in parents_of(path)):
        raise OSError(errno.ELOOP, "the commit has a link on the way there")
    file = checkout / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if original.target:
        os.symlink(original.target, file)
        return ""
    shutil.copyfile(original.path, file)
    file.chmod(stat.S_IMODE(original.stamp.mode) & 0o777 | 0o600)
    os.utime(file, ns=(original.stamp.mtime_ns, original.stamp.mtime_ns))
    return git_export.digest(file)


def patterns_of(root: Path, task: Task) -> list[str]:
    """Return lines in the syntax of .gitignore: those of the repository, then of the task."""
    try:
        text = read_bytes(Layout(root).worktree_include, LIMIT).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = ""
    lines = [*text.splitlines(), *task.run.include]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def find(repository: Repository, task: Task, tracked: Collection[str]) -> Included:
    """Return what the patterns match in the user's checkout, without paths of the commit."""
    root = repository.root
    patterns = patterns_of(root, task)
    if not patterns:
        return Included()
    folders = {parent for path in tracked for parent in parents_of(path)}
    taken = folders | set(tracked)
    originals: dict[str, Original] = {}
    entries: dict[str, str] = {}
    left = COPIED_IN_ALL
    for entry in untracked(root, leave_out=Layout(root).generated_folders, patterns=patterns):
        path = entry.rstrip("/")
        if path in tracked or any(parent in tracked for parent in parents_of(path)):
            continue  # there is a file of the commit
        files = dict(islice(_files(root, path), COPIED_FILES + 1))
        size = sum(map(_bytes_of, files.values()))
        small = size <= min(COPIED_BYTES, left) and len(files) <= COPIED_FILES
        if (root / path).is_symlink() or not (small or path in folders):
            entries[entry] = "linked folder" if entry.endswith("/") else f"linked, {size} bytes"
            if stamp := file_stamp(root / path):
                target = os.path.realpath(root / path)
                originals[path] = Original(str(root / path), stamp, target)
            continue
        left -= size if small else 0
        entries[entry] = "" if small else "linked file by file"
        for inside, stamp in (files if small else dict(_files(root, path))).items():
            if inside not in taken:
                originals[inside] = _original(root, path, inside, stamp, small)
    return Included(originals, entries)


def parents_of(path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, the innermost first; not the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _files(root: Path, path: str) -> Iterator[tuple[str, FileStamp]]:
    """Yield the plain files and links that `path` is, or has in it, with their stamps."""
    top = root / path
    is_folder = top.is_dir() and not top.is_symlink()
    for file in _paths_in(top) if is_folder else (top,):
        stamp = file_stamp(file)
        if stamp and (stat.S_ISREG(stamp.mode) or stat.S_ISLNK(stamp.mode)):
            yield str(file.relative_to(root)), stamp


def _paths_in(top: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(top):
        links = {name for name in inner if os.path.islink(os.path.join(folder, name))}
        inner[:] = sorted(set(inner) - {".git"} - links)
        yield from (Path(folder, name) for name in sorted({*names, *links} - {".git"}))


def _bytes_of(stamp: FileStamp) -> int:
    return stamp.size if stat.S_ISREG(stamp.mode) else 0


def _original(root: Path, top: str, path: str, stamp: FileStamp, small: bool) -> Original:
    """Keep links inside of the entry `top`; make those absolute that lead out of it."""
    file = str(root / path)
    if stat.S_ISREG(stamp.mode):
        return Original(file, stamp, "" if small else file)
    target, real = os.readlink(file), os.path.realpath(file)
    stays = not os.path.isabs(target) and real.startswith(os.path.realpath(root / top) + os.sep)
    return Original(file, stamp, target if stays else real)


LARGEST = 5
LOOK_S = 1.0
"""Longest that sizes are added up."""
FRESH_S = 900.0
"""Seconds for which an answer is reused: only a note in a record depends on it."""
REGENERATED_PATTERNS = (
    "**/__pycache__", "**/*.pyc", "**/.venv", "**/venv", "**/node_modules", "**/.pytest_cache",
    "**/.mypy_cache", "**/.ruff_cache", "**/.hypothesis", "**/.ipynb_checkpoints", "**/*.egg-info",
    "**/.DS_Store", "**/.idea", "**/.vscode", ".worktreeinclude", "*.log",
)  # fmt: skip
"""Made by tools themselves, in our patterns."""


class UntrackedEntry(NamedTuple):
    """A file or a folder of the user's, relative to the repository; a folder ends in a slash."""

    path: str
    size: int
    is_more: bool
    """True: it is larger, and was not measured to its end."""

    def __str__(self) -> str:
        units = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))
        size = next(
            (f"{self.size / unit:.1f} {name}" for unit, name in units if self.size >= unit),
            f"{self.size} bytes",
        )
        return f"{shown(self.path)} ({'over ' if self.is_more else ''}{size})"

    @property
    def pattern(self) -> str:
        """Return its line of .worktreeinclude."""
        return "/" + "".join(f"\\{sign}" if sign in "*?[\\" else sign for sign in self.path)


class MissingFiles(NamedTuple):
    """The largest of what is absent, and how much more there is."""

    largest: tuple[UntrackedEntry, ...] = ()
    others: int = 0
    filters: tuple[str, ...] = ()
    """git filters that the user's checkout applies and that of a run does not."""

    def lines(self) -> list[str]:
        """Return one line each, for a record."""
        more = [f"and {self.others} more"] if self.others else []
        left_out = [f"filter {name} is not applied" for name in self.filters]
        return [*map(str, self.largest), *more, *left_out]

    def problem(self) -> str:
        """Return what a person should know; empty when there is nothing to say."""
        problems = []
        if self.largest:
            more = f" and {self.others} more" if self.others else ""
            names = ", ".join(map(str, self.largest))
            problems.append(f"a run does not have {names}{more}, which git does not track")
        if self.filters:
            problems.append(
                f"a run has the files of the git filter {', '.join(self.filters)} as they are"
                " stored, since no program but git-lfs runs for its checkout"
            )
        return "; ".join(problems)

    def remedy(self) -> str:
        """Return the command that brings all of it into every run; empty when there is none."""
        lines = " ".join(
            "'" + absent.pattern.replace("'", "'\\''") + "'" for absent in self.largest
        )
        return f"printf '%s\\n' {lines} >> .worktreeinclude" if lines else ""


_known: dict[tuple[str, ...], tuple[float, MissingFiles]] = {}


def lacking(repository: Repository, task: Task) -> MissingFiles:
    """Return what a run will lack; looked up again after `FRESH_S`."""
    root = repository.root
    key = (str(root), *task.artifacts, "", *patterns_of(root, task))
    asked, answer = _known.get(key, (-FRESH_S, MissingFiles()))
    if time.monotonic() - asked >= FRESH_S:
        answer = find_missing_files(repository, task)
        _known[key] = (time.monotonic(), answer)
    return answer


def find_missing_files(repository: Repository, task: Task) -> MissingFiles:
    """Return which files of the user's folder are in no commit, and so in no run, as it is now.

    What we made, and what tools make anew by themselves, does not count. Folders are measured for
    a moment only, so that a large one costs no time.
    """
    root = repository.root
    made = Layout(root).generated_folders
    listed = set(untracked(root, leave_out=made))
    if wanted := patterns_of(root, task):
        listed -= set(untracked(root, leave_out=made, patterns=wanted))
    deadline = time.monotonic() + LOOK_S
    absent = [
        measured(root, path, deadline)
        for path in sorted(listed)
        if not (is_made_by_tools(root, path) or task.is_artifact(path) or path == task.source)
    ]
    absent.sort(key=lambda entry: -entry.size)
    head = repository.head()
    part = git_export.Part(repository.common_dir, head, repository.entries(head))
    filters = tuple(git_export.filters_left_out(part, root))
    return MissingFiles(tuple(absent[:LARGEST]), len(absent[LARGEST:]), filters)


def is_made_by_tools(root: Path, path: str) -> bool:
    """Return whether an untracked file or folder is made anew by us or by tools of others."""
    bare = path.rstrip("/")
    if matches(bare, REGENERATED_PATTERNS) or (root / bare / "pyvenv.cfg").is_file():
        return True
    made = Layout(root).made_files
    if not path.endswith("/"):
        return bare in made
    inside = {name.removeprefix(path) for name in made if name.startswith(path)}
    return bool(inside) and set(os.listdir(root / bare)) <= inside


def measured(root: Path, path: str, deadline: float) -> UntrackedEntry:
    """Return an entry with its size, added up until `deadline` of the monotonic clock."""
    size = 0
    for _, stamp in _files(root, path.rstrip("/")):
        size += _bytes_of(stamp)
        if path.endswith("/") and time.monotonic() > deadline:
            return UntrackedEntry(path, size, True)
    return UntrackedEntry(path, size, False)


@contextmanager
def warn_once(repository: Repository, task: Task, tag: str) -> Iterator[str]:
    """Yield a warning, unless this search has shown it already; empty: there is none.

    It counts as shown when the block ends without an error.
    """
    missing, path = find_missing_files(repository, task), Layout(repository.root).checkout_lacks
    names = sorted([*(shown(absent.path) for absent in missing.largest), *missing.filters])
    news = {"tag": tag, "names": names}
    problem = "" if read_object(path) == news else missing.problem()
    remedy = missing.remedy()
    yield f"{problem}; if it needs one, add its line: {remedy}" if problem and remedy else problem
    if problem:
        write_json(path, news, durable=False)
