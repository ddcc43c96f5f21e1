"""JSON lines: one record, one line, one write, under a lock on the file itself.

Standard library only: the shim imports this, and must start in a blink.

A writer that is killed in the middle leaves a torn last line. The next writer ends it, so that the
piece costs itself and nothing else; a reader names it and goes on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.errors import LockError, RecordError, UnwritableError
from autohypothesis.records.files import as_object, opened, parse_json, read_bytes, to_json
from autohypothesis.system import disk_full_advice, file_size_limit

LINE_LIMIT = 1024 * 1024
"""Bytes of one record; a longer one is not a record."""
FILE_LIMIT = 256 * 1024 * 1024
"""Bytes of one file that are read: some 400,000 decisions."""
LOCK_TIMEOUT_S = 30.0
PROBLEM_LIMIT = 100
"""Bad lines that are named one by one; the rest are counted."""

_APPEND = (
    os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)  # fmt: skip


class News(NamedTuple):
    """The records appended since `offset`, and where to continue next time."""

    records: list[dict[str, Any]]
    problems: list[str]
    offset: int
    restarted: bool
    """The file is shorter than it was: this is a new one, read from its start."""


def append(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Adds one line. `durable` has it on the disk before this returns: for decisions.

    Raises:
        RecordError: the record is too long, the path is no regular file, or the disk is full;
            then the file is as it was.
        LockError: another writer has held the file for `LOCK_TIMEOUT_S`.
    """
    line = to_json(dict(record)).encode("utf-8", "replace") + b"\n"
    if len(line) > LINE_LIMIT:
        raise RecordError(f"a record of {len(line):,} bytes for {path}; {LINE_LIMIT:,} is the most")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as (descriptor, size):
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        _write_once(path, descriptor, b"\n" + line if torn else line, size)
        if durable:
            os.fsync(descriptor)


def append_made(path: Path, make: Callable[[int, int], bytes]) -> None:
    """Add what `make` returns for the descriptor and the size of the locked file: whole lines,
    with the break that a torn last line lacks. It is on the disk when this returns.

    Raises:
        RecordError, LockError: as `append` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as (descriptor, size):
        lines = make(descriptor, size)
        if len(lines) > LINE_LIMIT:
            raise RecordError(f"{len(lines):,} bytes for {path}; {LINE_LIMIT:,} is the most")
        _write_once(path, descriptor, lines, size)
        os.fsync(descriptor)


def append_lines(path: Path, lines: bytes, *, at: int) -> bool:
    """Add whole lines to a file of `at` bytes, on the disk when this returns.

    Return False, and write nothing, where the file has another size.

    Raises:
        RecordError, LockError: as `append` does.
    """
    with _locked(path) as (descriptor, size):
        if size != at:
            return False
        _write_once(path, descriptor, lines, size)
        os.fsync(descriptor)
    return True


def _write_once(path: Path, descriptor: int, line: bytes, size: int) -> None:
    """A write that the disk took only in part is taken back."""
    try:
        written = os.write(descriptor, line)
    except OSError as error:
        os.ftruncate(descriptor, size)
        hint = disk_full_advice(error.errno) or "see `df -h`"
        raise UnwritableError(f"cannot append to {path}: {error.strerror}", hint=hint) from error
    if written != len(line):
        os.ftruncate(descriptor, size)
        limit = file_size_limit()
        number = errno.EFBIG if limit is not None and size + len(line) > limit else errno.ENOSPC
        raise UnwritableError(
            f"cannot append to {path}: {os.strerror(number)}", hint=disk_full_advice(number)
        )


@contextmanager
def _locked(path: Path) -> Iterator[tuple[int, int]]:
    """The file under an exclusive lock, as (descriptor, size); the one that is at `path` *now*."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        with opened(path, _APPEND) as (descriptor, _):
            _wait_for_lock(path, descriptor, deadline)
            status = os.fstat(descriptor)
            if status.st_nlink > 0:  # else a new file was moved here while we waited
                yield descriptor, status.st_size
                return


def _wait_for_lock(path: Path, descriptor: int, deadline: float) -> None:
    pause = 0.0005
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockError(
                    f"{path} has been locked by another writer for {LOCK_TIMEOUT_S:.0f} s",
                    hint=f"`fuser -v {path}` names it",
                ) from None
        except OSError as error:
            raise RecordError(f"{path} cannot be locked: {error.strerror}") from error
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def read(path: Path, limit: int = FILE_LIMIT) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of `path`, and what was wrong with the lines that hold none.

    A file that is absent holds no records. A last line without its end counts when it is whole.

    Raises:
        RecordError: the path is no regular file, or larger than `limit` bytes.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError:
        return [], []
    return parse(content)


def as_record(line: bytes) -> dict[str, Any]:
    """Return the JSON object in a line; raise ValueError in words that follow its number."""
    return as_object(parse_json(line))


def read_new(path: Path, offset: int, read: Callable[[bytes], dict[str, Any]] = as_record) -> News:
    """Read the records appended to `path` after `offset`; an unfinished last line stays for later.

    Args:
        read: as of `parse`.

    Raises:
        RecordError: the path is no regular file, or more than `FILE_LIMIT` bytes are new.
    """
    try:
        with opened(path) as (descriptor, status):
            restarted = status.st_size < offset
            start = 0 if restarted else offset
            new = status.st_size - start
            if new > FILE_LIMIT:
                raise RecordError(f"{path} has {new:,} new bytes, more than {FILE_LIMIT:,}")
            content = os.pread(descriptor, new, start)
    except FileNotFoundError:
        return News([], [], 0, restarted=offset > 0)
    content = content[: content.rfind(b"\n") + 1]
    records, problems = parse(content, read)
    return News(records, problems, start + len(content), restarted)


def parse(
    content: bytes, read: Callable[[bytes], dict[str, Any]] = as_record
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records in `content`, and the problems by number of line (from 1).

    Args:
        read: makes a record of a line, as `as_record` does.
    """
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            if len(line) > LINE_LIMIT:
                raise ValueError(
                    f"has {len(line):,} bytes, more than the {LINE_LIMIT:,} of a record"
                )
            records.append(read(line))
        except ValueError as error:
            problems.append(f"line {number} {error}")
    rest = len(problems) - PROBLEM_LIMIT
    if rest <= 0:
        return records, problems
    return records, [*problems[:PROBLEM_LIMIT], f"and {rest:,} more lines that are no records"]
