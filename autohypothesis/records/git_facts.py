"""What git tells about a repository, as values, and how to read its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from autohypothesis.errors import GitError
from autohypothesis.records.files import is_utf8, shown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call of git said."""

    status: int
    out: bytes
    words: str
    """Standard error."""

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def records(self) -> list[str]:
        """The parts of an answer to `-z`."""
        return [part.decode("utf-8", "surrogateescape") for part in self.out.split(b"\0") if part]

    @property
    def reason(self) -> str:
        """git's last words, on one line."""
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        return "; ".join(lines[-3:])[:500] or f"exit code {self.status}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit. `mode` tells plain (100644), executable, link (120000), submodule."""

    mode: str
    blob: str


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path that differs between two trees; line counts are None for binary files."""

    path: str
    status: str
    old_mode: str
    new_mode: str
    added: int | None
    removed: int | None


@dataclass(frozen=True, slots=True)
class Worktree:
    path: Path
    head: str | None
    branch: str | None
    lock_reason: str | None
    """None: not locked; "initializing": an `add` that is at work, or was killed."""


def refuse_path(path: Path) -> Path:
    """`path`, when it can be written into JSON, and is one line of what git answers.

    Raises:
        GitError: it is not UTF-8, or has a line break.
    """
    name = str(path)
    if is_utf8(name) and "\n" not in name:
        return path
    what = "has a line break in it" if "\n" in name else "is not UTF-8"
    raise GitError(
        f"the path of the repository, '{shown(name)}', {what}",
        hint="records could not name it; move the folder to another name, or clone it there",
    )


def parse_places(answer: Answer) -> tuple[str, str, str]:
    """The three paths, a line each, that `rev-parse` said; the last is the top of a checkout.

    Raises:
        GitError: one of them is none that records could name.
    """
    lines = answer.out.decode("utf-8", "surrogateescape").split("\n")[:-1]
    refuse_path(Path("\n".join(lines[len(lines) // 3 * 2 :])))
    folder, common, top = lines
    return folder, common, top


def parse_changes(records: list[str]) -> list[FileChange]:
    """`--raw --numstat -z`: all raw records with their paths first, then all counts."""
    raw: dict[str, tuple[str, str, str]] = {}
    counts: dict[str, tuple[int | None, int | None]] = {}
    rest = iter(records)
    for record in rest:
        if record.startswith(":"):
            old_mode, new_mode, _, _, status = record[1:].split(" ")
            raw[next(rest)] = (status, old_mode, new_mode)
        else:
            added, removed, path = record.split("\t", 2)
            counts[path] = (None, None) if added == "-" else (int(added), int(removed))
    return [FileChange(path, *facts, *counts.get(path, (0, 0))) for path, facts in raw.items()]


def parse_worktrees(text: str) -> list[Worktree]:
    """`worktree list --porcelain`: blocks of `key value` lines."""
    found = []
    for block in text.split("\n\n"):
        facts = dict(line.partition(" ")[::2] for line in block.split("\n"))
        if "worktree" in facts:
            path = Path(facts["worktree"])
            found.append(
                Worktree(path, facts.get("HEAD"), facts.get("branch"), facts.get("locked"))
            )
    return found


def parse_listing(lines: list[str]) -> dict[str, Entry]:
    """Path -> entry, from the records of `ls-tree -z`."""
    found = {}
    for line in lines:
        facts, path = line.split("\t", 1)
        mode, _kind, blob = facts.split(" ")
        found[path] = Entry(mode, blob)
    return found


class Recent(Generic[T]):
    """The last few answers about objects. An iteration asks for few of them, and often."""

    SIZE = 8

    def __init__(self) -> None:
        self._known: dict[str, T] = {}

    def has(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str, ask: Callable[[], T]) -> T:
        """What `name` stands for, asked for once while it is remembered."""
        if name not in self._known:
            answer = ask()
            while len(self._known) >= self.SIZE:
                self._known.pop(next(iter(self._known)))
            self._known[name] = answer
        return self._known[name]


def missing_lines(path: Path, patterns: Iterable[str]) -> list[str]:
    """Those of `patterns` that the file at `path` has no line for."""
    there = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    return [pattern for pattern in patterns if pattern not in there]
