"""Files of the user's checkout that git does not track: which ones a run gets, and which it lacks.

A task or `.worktreeinclude` names those that a run gets. What is small is copied, so that no run
changes the original; what is large is linked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from autohypothesis.engine.task import Task, canonical_hash, matches
from autohypothesis.errors import LaunchError
from autohypothesis.records import git_export
from autohypothesis.records.files import (
    FileStamp,
    file_stamp,
    read_bytes,
    read_object,
    shown,
    to_json,
    write_atomic,
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


class Origin(NamedTuple):
    """Where one file of the checkout comes from."""

    source: str
    stamp: FileStamp | None
    """Of the original; None for a link."""
    target: str = ""
    """Of a link; empty for a copy."""


class Copied(BaseModel):
    """One copy: the original and the copy as they were, and the hash of both."""

    source: FileStamp
    copy_stamp: FileStamp
    sha256: str


@dataclass(frozen=True, slots=True)
class Included:
    """The files that a checkout has beside its commit."""

    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Path in the checkout -> where it comes from."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """File or folder -> `linked ...`, or empty: it is copied."""


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
    origins: dict[str, Origin] = {}
    entries: dict[str, str] = {}
    left = COPIED_IN_ALL
    for entry in untracked(root, leave_out=Layout(root).made_folders, patterns=patterns):
        path = entry.rstrip("/")
        if path in tracked or any(parent in tracked for parent in parents_of(path)):
            continue  # there is a file of the commit
        size, files = _size(root / path, min(COPIED_BYTES, left), COPIED_FILES)
        small = size <= min(COPIED_BYTES, left) and files <= COPIED_FILES
        if (root / path).is_symlink() or (not small and path not in folders):
            origins[path] = Origin(str(root / path), None, os.path.realpath(root / path))
            entries[entry] = "linked folder" if entry.endswith("/") else f"linked, {size} bytes"
            continue
        left -= size if small else 0
        entries[entry] = "" if small else "linked file by file"
        files_of = _copies(root, path, small)
        origins |= {at: one for at, one in files_of if at not in taken}
    return Included(origins, entries)


def parents_of(path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, the innermost first; not the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _size(place: Path, most: int, most_files: int) -> tuple[int, int]:
    """Return bytes and files below `place`, counted until they are more than that."""
    if place.is_symlink() or not place.is_dir():
        return _length(place), 1
    size = files = 0
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if name != ".git"]
        for name in names:
            size, files = size + _length(Path(folder, name)), files + 1
            if size > most or files > most_files:
                return size, files
    return size, files


def _length(file: Path) -> int:
    stamp = file_stamp(file)
    return stamp.size if stamp and stat.S_ISREG(stamp.mode) else 0


def _copies(root: Path, path: str, small: bool) -> Iterator[tuple[str, Origin]]:
    """Each file of an entry, linked where it is not `small`.

    Links inside stay; those that lead out of it are made absolute.
    """
    top = root / path
    if not top.is_dir():
        if (origin := _file(top, small)) is not None:
            yield path, origin
        return
    for folder, inner, names in os.walk(top):
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        inner[:] = sorted(set(inner) - {".git", *links})
        for name in sorted({*names, *links} - {".git"}):
            place = Path(folder, name)
            inside = str(place.relative_to(root))
            if place.is_symlink():
                yield inside, Origin(str(place), None, _target(place, top))
            elif (origin := _file(place, small)) is not None:
                yield inside, origin


def _file(place: Path, small: bool) -> Origin | None:
    stamp = file_stamp(place)
    if stamp is None or not stat.S_ISREG(stamp.mode):
        return None
    return Origin(str(place), stamp) if small else Origin(str(place), None, str(place))


def _target(link: Path, top: Path) -> str:
    said, real = os.readlink(link), os.path.realpath(link)
    stays = not os.path.isabs(said) and real.startswith(os.path.realpath(top) + os.sep)
    return said if stays else real


class Copies:
    """The included files of one checkout, and what is known of them from the last time."""

    def __init__(self, place: Path, record: Path, wanted: Included) -> None:
        self._place, self._record, self._wanted = place, record, wanted
        self._known = self._read() if wanted.origins or record.exists() else {}

    def unchanged(self) -> set[str]:
        """Return the paths whose copies and originals are what they were."""
        return {
            path for path, origin in self._wanted.origins.items() if self._is_same(path, origin)
        }

    def _is_same(self, path: str, origin: Origin) -> bool:
        place, known = self._place / path, self._known.get(path)
        if origin.target:
            return place.is_symlink() and os.readlink(place) == origin.target
        return (
            known is not None
            and known.source == origin.stamp
            and known.copy_stamp == file_stamp(place)
        )

    def put(self, there: Collection[str]) -> dict[str, str]:
        """Make those that are not `there`; return path -> SHA-256 of every copy."""
        known = {path: one for path, one in self._known.items() if path in there}
        for path, origin in self._wanted.origins.items():
            if path not in there:
                try:
                    self._make_room(path)
                    self._make(path, origin, known)
                except FileNotFoundError:
                    continue  # it was deleted meanwhile
                except OSError as error:
                    raise LaunchError(
                        f"{origin.source} cannot be brought into a checkout: {error.strerror}",
                        hint="see .worktreeinclude, and run.include of the task",
                    ) from error
        if known != self._known:
            said = {path: one.model_dump() for path, one in known.items()}
            write_atomic(self._record, to_json(said), durable=False)
        self._known = known
        return {path: one.sha256 for path, one in known.items()}

    def _make_room(self, path: str) -> None:
        """Make the folder of a copy; never through a link that the commit has on the way."""
        if any((self._place / parent).is_symlink() for parent in Path(path).parents):
            raise OSError(errno.ELOOP, "the commit has a link on the way there")
        (self._place / path).parent.mkdir(parents=True, exist_ok=True)

    def _make(self, path: str, origin: Origin, known: dict[str, Copied]) -> None:
        place, digest = self._place / path, hashlib.sha256()
        if origin.stamp is None:
            os.symlink(origin.target, place)
            return
        with open(origin.source, "rb") as source, place.open("wb") as copy:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                copy.write(chunk)
        place.chmod(stat.S_IMODE(origin.stamp.mode) & 0o777 | 0o600)
        os.utime(place, ns=(origin.stamp.mtime_ns, origin.stamp.mtime_ns))
        stamp = FileStamp.of(os.lstat(place))
        known[path] = Copied(source=origin.stamp, copy_stamp=stamp, sha256=digest.hexdigest())

    def _read(self) -> dict[str, Copied]:
        with suppress(ValidationError):
            recorded = read_object(self._record).items()
            return {path: Copied.model_validate(copied) for path, copied in recorded}
        return {}

    def described(self, hashes: Mapping[str, str]) -> dict[str, str]:
        """Return file or folder -> the hash of what was copied, or `linked ...`."""
        found = {
            shown(entry): said or self._hash(entry.rstrip("/"), hashes)
            for entry, said in self._wanted.entries.items()
        }
        if len(found) <= MAX_NAMED:
            return found
        return {f"{len(found)} files and folders": canonical_hash(found)}

    @staticmethod
    def _hash(path: str, hashes: Mapping[str, str]) -> str:
        if path in hashes:
            return hashes[path]
        return canonical_hash(
            {one: said for one, said in hashes.items() if one.startswith(f"{path}/")}
        )


LARGEST = 5
LOOK_S = 1.0
"""Longest that sizes are added up."""
FRESH_S = 900.0
"""How long an answer holds for the process that asked: only a note in a record depends on it."""
MADE_ANEW = (
    "**/__pycache__", "**/*.pyc", "**/.venv", "**/venv", "**/node_modules", "**/.pytest_cache",
    "**/.mypy_cache", "**/.ruff_cache", "**/.hypothesis", "**/.ipynb_checkpoints", "**/*.egg-info",
    "**/.DS_Store", "**/.idea", "**/.vscode", ".worktreeinclude", "run.log",
)  # fmt: skip
"""Made by tools themselves, in our patterns."""


class Absent(NamedTuple):
    """A file or a folder of the user's, relative to the repository."""

    path: str
    """A folder ends in a slash."""
    size: int
    is_more: bool
    """It is larger: its measuring was cut short."""

    def __str__(self) -> str:
        return f"{shown(self.path)} ({'over ' if self.is_more else ''}{_bytes(self.size)})"


class Lacking(NamedTuple):
    """The largest of what is absent, and how much more there is."""

    largest: tuple[Absent, ...] = ()
    others: int = 0
    filters: tuple[str, ...] = ()
    """git filters that the user's checkout applies and that of a run does not."""

    def lines(self) -> list[str]:
        """Return one line each, for a record."""
        more = [f"and {self.others} more"] if self.others else []
        left_out = [f"filter {name} is not applied" for name in self.filters]
        return [*map(str, self.largest), *more, *left_out]


_known: dict[tuple[str, ...], tuple[float, Lacking]] = {}


def lacking(repository: Repository, task: Task) -> Lacking:
    """Return what a run will lack; looked up again after `FRESH_S`."""
    root = repository.root
    key = (str(root), *task.artifacts, "", *patterns_of(root, task))
    asked, answer = _known.get(key, (-FRESH_S, Lacking()))
    if time.monotonic() - asked >= FRESH_S:
        answer = look(repository, task)
        _known[key] = (time.monotonic(), answer)
    return answer


def look(repository: Repository, task: Task) -> Lacking:
    """Return which files of the user's folder are in no commit, and so in no run, as it is now.

    What we made, and what tools make anew by themselves, does not count. Folders are measured for
    a moment only, so that a large one costs no time.
    """
    root = repository.root
    made = Layout(root).made_folders
    listed = set(untracked(root, leave_out=made))
    if wanted := patterns_of(root, task):
        listed -= set(untracked(root, leave_out=made, patterns=wanted))
    deadline = time.monotonic() + LOOK_S
    absent = [
        _measured(root, path, deadline)
        for path in sorted(listed)
        if not (_is_ours(root, path) or task.is_artifact(path) or path == task.source)
    ]
    absent.sort(key=lambda one: -one.size)
    head = repository.head()
    part = git_export.Part(repository.common_dir, head, repository.entries(head))
    filters = tuple(git_export.filters_left_out(part, root))
    return Lacking(tuple(absent[:LARGEST]), len(absent[LARGEST:]), filters)


def _is_ours(root: Path, path: str) -> bool:
    bare = path.rstrip("/")
    if matches(bare, MADE_ANEW) or (root / bare / "pyvenv.cfg").is_file():
        return True
    made = Layout(root).made_files
    if not path.endswith("/"):
        return bare in made
    inside = {one.removeprefix(path) for one in made if one.startswith(path)}
    return bool(inside) and set(os.listdir(root / bare)) <= inside


def _measured(root: Path, path: str, deadline: float) -> Absent:
    if not path.endswith("/"):
        return Absent(path, _length(root / path), False)
    size = 0
    for folder, _, names in os.walk(root / path):
        for name in names:
            size += _length(Path(folder, name))
            if time.monotonic() > deadline:
                return Absent(path, size, True)
    return Absent(path, size, False)


def _bytes(size: int) -> str:
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


# ── telling people ──────────────────────────────────────────────────────────────────────────


def problem(found: Lacking) -> str:
    """Return what a person should know; empty when there is nothing to say."""
    said = []
    if found.largest:
        more = f" and {found.others} more" if found.others else ""
        names = ", ".join(map(str, found.largest))
        said.append(f"a run does not have {names}{more}, which git does not track")
    if found.filters:
        said.append(
            f"a run has the files of the git filter {', '.join(found.filters)} as they are stored,"
            " since no program but git-lfs runs for its checkout"
        )
    return "; ".join(said)


def remedy(found: Lacking) -> str:
    """Return the command that brings all of it into every run; empty when there is none."""
    lines = " ".join(f"'/{_pattern(one.path)}'" for one in found.largest)
    return f"printf '%s\\n' {lines} >> .worktreeinclude" if lines else ""


def _pattern(path: str) -> str:
    """Return `path` as a line of .worktreeinclude, in single quotes of a shell."""
    return "".join(f"\\{one}" if one in "*?[\\" else one for one in path).replace("'", "'\\''")


@contextmanager
def telling(repository: Repository, task: Task, tag: str) -> Iterator[str]:
    """Yield what to tell a person before a run: once a search, and when other files are concerned.

    It counts as told when the block ends without an error.
    """
    found, path = look(repository, task), Layout(repository.root).checkout_lacks
    names = sorted([*(shown(one.path) for one in found.largest), *found.filters])
    said = {"tag": tag, "names": names}
    words = "" if read_object(path) == said else problem(found)
    hint = remedy(found)
    yield f"{words}; if it needs one, add its line: {hint}" if words and hint else words
    if words:
        write_json(path, said, durable=False)
