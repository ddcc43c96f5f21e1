"""What the checkout of a run will lack: files of the user's folder that are in no commit.

Only what git knows nothing of counts; what we made, and what tools make anew by themselves, does
not. Folders are measured for a moment only, so that a large one costs no time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from autohypothesis.engine import included, patterns
from autohypothesis.engine.task import Task
from autohypothesis.errors import RecordError
from autohypothesis.records import git_export
from autohypothesis.records.files import read_json, shown, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.git_untracked import untracked
from autohypothesis.records.layout import Layout

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
"""What tools make by themselves, in our patterns."""


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
        """For a record: one line each."""
        more = [f"and {self.others} more"] if self.others else []
        left_out = [f"filter {name} is not applied" for name in self.filters]
        return [*map(str, self.largest), *more, *left_out]


_known: dict[tuple[str, ...], tuple[float, Lacking]] = {}


def lacking(repository: Repository, task: Task, *, anew: bool = False) -> Lacking:
    """See above; looked up every `FRESH_S` at most, unless it is to be looked up `anew`."""
    root = repository.root
    key = (str(root), *task.artifacts, "", *included.patterns_of(root, task))
    asked = _known.get(key)
    if anew or asked is None or time.monotonic() - asked[0] > FRESH_S:
        asked = _known[key] = (time.monotonic(), look(repository, task))
    return asked[1]


def look(repository: Repository, task: Task) -> Lacking:
    """See above, as it is now."""
    root = repository.root
    made = Layout(root)
    listed = set(untracked(root, leave_out=made.made_folders))
    wanted = included.patterns_of(root, task)
    if wanted:
        listed -= set(untracked(root, leave_out=made.made_folders, patterns=wanted))
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
    if patterns.matches(bare, MADE_ANEW) or (root / bare / "pyvenv.cfg").is_file():
        return True
    made = Layout(root).made_files
    if not path.endswith("/"):
        return bare in made
    inside = {one.removeprefix(path) for one in made if one.startswith(path)}
    return bool(inside) and set(os.listdir(root / bare)) <= inside


def _measured(root: Path, path: str, deadline: float) -> Absent:
    size = 0
    for length in _lengths(root / path):
        size += length
        if time.monotonic() > deadline:
            return Absent(path, size, True)
    return Absent(path, size, False)


def _lengths(place: Path) -> Iterator[int]:
    if place.is_symlink() or not place.is_dir():
        yield _length(place)
        return
    for folder, _, names in os.walk(place):
        yield from (_length(Path(folder, name)) for name in names)


def _length(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _bytes(size: int) -> str:
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


# ── telling people ──────────────────────────────────────────────────────────────────────────


def problem(found: Lacking) -> str:
    """What a person should know; empty when there is nothing to say."""
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
    """The command that brings all of it into every run; empty when there is none."""
    lines = " ".join(f"'/{_pattern(one.path)}'" for one in found.largest)
    return f"printf '%s\\n' {lines} >> .worktreeinclude" if lines else ""


def _pattern(path: str) -> str:
    """`path` as a line of .worktreeinclude, in single quotes of a shell."""
    return "".join(f"\\{one}" if one in "*?[\\" else one for one in path).replace("'", "'\\''")


@contextmanager
def telling(repository: Repository, task: Task, tag: str) -> Iterator[str]:
    """What to tell a person before a run: once for each search, and when other files are concerned.

    It counts as told when the block ends without an error.
    """
    found, path = lacking(repository, task, anew=True), Layout(repository.root).checkout_lacks
    names = sorted([*(shown(one.path) for one in found.largest), *found.filters])
    said = {"tag": tag, "names": names}
    known: object = None
    with suppress(FileNotFoundError, RecordError):
        known = read_json(path)
    words = "" if known == said else problem(found)
    hint = remedy(found)
    yield f"{words}; if it needs one, add its line: {hint}" if words and hint else words
    if words:
        write_json(path, said, durable=False)
