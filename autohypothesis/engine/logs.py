"""The log of a training: bounded on disk and in memory, with its progress lines and summary.

A training may print a gigabyte. The log keeps the first and the last part; what is read from it is
taken from the stream. Numbers come from code under test, so only finite, plausible ones become
numbers, and only the last complete block counts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_LINE = 4096  # characters of one line that are looked at
_MAX_NUMBER = 40  # characters of a number; longer ones are nonsense and slow to convert
_MAX_TEXT = 200  # characters of a value that is a word
_ABSURD = 1e18
_MAX_KEYS = 200

_NUMBER = r"[-+]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?|nan|[-+]?inf(?:inity)?"
_STEP = re.compile(r"\s*step\s+(\d{1,12})\b(?:[^|]*?\(\s*([\d.]{1,12})\s*%\s*\))?")
_FIELD = re.compile(r"\s*([A-Za-z][\w /]{0,40}?)\s*:\s*([^|]{0,60}?)\s*(?:\||$)")
_PAIR = re.compile(r"([A-Za-z_]\w{0,63}):[ \t]*(\S.*)")
_NUMERIC = re.compile(r"[-+]*(?:[\d.]|nan|inf)", re.IGNORECASE)
_UNITS = re.compile(rf"({_NUMBER})\s*(?:ms|s|%|tok/s)?$", re.IGNORECASE)


class Progress(NamedTuple):
    """One progress line. `share` is the part of the budget used, 0 to 1."""

    step: int
    share: float | None = None
    loss: float | None = None
    bpb: float | None = None
    tok_per_sec: float | None = None


class Summary(NamedTuple):
    """The last complete block of `name: value` lines, and how many blocks there were."""

    metrics: dict[str, float | str]
    blocks: int


def parse_number(text: str) -> float | None:
    """Return a finite number under 1e18, commas and a unit allowed; None for anything else."""
    text = text.strip()
    match = _UNITS.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if match is None:
        return None
    value = float(match[1].replace(",", ""))
    return value if math.isfinite(value) and abs(value) < _ABSURD else None


def parse_progress(line: str) -> Progress | None:
    """Parse a progress line such as `step 00953 (100.0%) | loss: 2.99 | tok/sec: 1,700,000 | ...`.

    None if the line does not begin with a step. Fields may come in any order, unknown ones are
    skipped, and a number that is none (`loss: nan`) is absent.
    """
    line = line[:MAX_LINE]
    head = _STEP.match(line)
    if head is None or "|" not in line:
        return None
    values = {
        found[1].strip().lower(): parse_number(found[2])
        for part in line.split("|")[1:]
        if (found := _FIELD.fullmatch(part)) is not None
    }
    percent = parse_number(head[2]) if head[2] else None
    return Progress(
        step=int(head[1]),
        share=None if percent is None else min(max(percent / 100, 0.0), 1.0),
        loss=values.get("loss"),
        bpb=values.get("bpb"),
        tok_per_sec=values.get("tok/sec"),
    )


def parse_summary(text: str, metric: str = "val_bpb") -> Summary:
    """Return the last complete block in `text`, and the number of blocks.

    A block is a run of `name: value` lines that contains `metric`, after `---` or bare. The last
    line counts only if it ends: a number that was cut off is another number. A value that is no
    plausible number stays text, or is left out if it looks like one (NaN, 1e999, 5,000 digits).
    """
    blocks = [block for block in _blocks(text) if metric in block]
    metrics: dict[str, float | str] = {}
    for name, word in blocks[-1].items() if blocks else ():
        number = parse_number(word)
        if number is not None:
            metrics[name] = number
        elif not _NUMERIC.match(word):
            metrics[name] = word
    return Summary(metrics, len(blocks))


def printed_nonsense(text: str, metric: str = "val_bpb") -> str | None:
    """Return the last printed value of `metric`, if it is no plausible number; else None."""
    found = [block[metric] for block in _blocks(text) if metric in block]
    return found[-1] if found and parse_number(found[-1]) is None else None


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """Yield runs of pairs, in order. A repeated name or a `---` begins the next."""
    block: dict[str, str] = {}
    for line in re.split(r"[\r\n]", text)[:-1]:  # what follows the last line end is no line yet
        line = line[:MAX_LINE].rstrip()
        if not line:
            continue
        pair = _PAIR.match(line)
        if pair is None or pair[1] in block:
            yield block
            block = {}
        if pair is not None and len(block) < _MAX_KEYS:
            block[pair[1]] = pair[2][:_MAX_TEXT]
    yield block


MAX_SAMPLES = 200
_LINES_PER_CHUNK = 64
_CARRY = 4096
_STEP_LINE = re.compile(rb"^[ \t]*step .*$", re.MULTILINE)


class CappedLog:
    """A log of at most `limit` bytes: the head in `path`, then the tail in two segments beside it.

    `close` puts them together with a line that says what is missing. If the shim is killed before
    that, the segments stay, `<path>.tail` and the older `<path>.tail.old`. Every method but
    `discard` raises OSError as the disk gives it.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path, self._tail_path, self._old_path = path, f"{path}.tail", f"{path}.tail.old"
        self.total = 0
        self.dropped = 0
        self.is_ours = True
        """False when at the end another file is at `path` than the one that was written."""
        self._head_left = limit // 2
        self._tail_limit = limit - limit // 2
        self._head = _create(path)
        self._segment = -1
        self._segment_size = 0

    def write(self, data: bytes) -> None:
        self.total += len(data)
        if self._head_left:
            head = data[: self._head_left]
            data = data[len(head) :]
            _write_all(self._head, head)
            self._head_left -= len(head)
        if data:
            self._write_tail(data[-self._tail_limit :])

    def _write_tail(self, data: bytes) -> None:
        if self._segment >= 0 and self._segment_size + len(data) > self._tail_limit:
            os.close(self._segment)
            self._segment = -1
            os.replace(self._tail_path, self._old_path)
        if self._segment < 0:
            self._segment = _create(self._tail_path)
            self._segment_size = 0
        _write_all(self._segment, data)
        self._segment_size += len(data)

    def close(self) -> None:
        """Join the parts. Safe to call twice."""
        if self._head < 0:
            return
        try:
            if self._segment >= 0:
                tail = _read_if_there(self._old_path) + _read_if_there(self._tail_path)
                tail = tail[-self._tail_limit :]
                self.dropped = self.total - os.fstat(self._head).st_size - len(tail)
                if self.dropped:
                    _write_all(self._head, b"\n[... %d bytes dropped ...]\n" % self.dropped)
                _write_all(self._head, tail)
            self.is_ours = self._at_path()
        finally:
            self.discard()

    def _at_path(self) -> bool:
        """Return whether the run put no other file there, and wrote nothing into this one."""
        ours = os.fstat(self._head)
        try:
            there = os.lstat(self.path)
        except OSError:
            return False
        return there.st_ino == ours.st_ino and ours.st_size == os.lseek(self._head, 0, os.SEEK_CUR)

    def discard(self) -> None:
        """Give up the tail and every descriptor: what is in the head stays."""
        for fd in (self._head, self._segment):
            if fd >= 0:
                os.close(fd)
        self._head = self._segment = -1
        for path in (self._tail_path, self._old_path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def read_tail(path: str, limit: int = 65536) -> str:
    """Return whole lines at the end of a log, `limit` bytes at most; "" if there is no log.

    Of a log whose shim was killed, too. A piece of a line is left out, unless it is all there is.
    """
    parts = [_read_if_there(path + suffix, limit + 1) for suffix in ("", ".tail.old", ".tail")]
    data = b"".join(parts)
    if len(data) > limit:
        data = data[-limit:]
        data = data[data.find(b"\n") + 1 :] or data
    return data.decode(errors="replace")


class StreamReader:
    """Reads a stream while it passes: the last progress, a curve, how many summaries.

    Both kinds of line end count. Of a large chunk only the last progress lines are parsed.
    """

    def __init__(self, metric: str) -> None:
        self.progress: Progress | None = None
        self.summaries = 0
        self._line_start = f"\n{metric}:".encode()
        self._carry = b""
        self._samples: dict[int, tuple[float, float | None, float | None, float | None]] = {}

    def feed(self, data: bytes) -> None:
        data = self._carry + data.replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        whole, rest = data[:end], data[end:]
        # An endless line is cut: its beginning decides what it is.
        self._carry = rest[:_CARRY]
        if not whole:
            return
        self.summaries += whole.count(self._line_start) + whole.startswith(self._line_start[1:])
        if b"step " in whole:
            window = whole[-_LINES_PER_CHUNK * 256 :]
            if len(window) < len(whole):
                window = window[window.find(b"\n") + 1 :]
            for line in _STEP_LINE.findall(window)[-_LINES_PER_CHUNK:]:
                if progress := parse_progress(line.decode(errors="replace")):
                    self._note(progress)

    def finish(self) -> None:
        """Take what came after the last line end as a line: the stream has ended."""
        self.feed(b"\n")

    def samples(self) -> list[list[float | None]]:
        """Return up to about 200 points: progress share, loss, bpb, tokens per second."""
        return [list(point) for _, point in sorted(self._samples.items())]

    def _note(self, progress: Progress) -> None:
        self.progress = progress
        if progress.share is not None:
            slot = int(progress.share * MAX_SAMPLES)
            earlier = self._samples.get(slot)
            bpb = earlier[2] if earlier and progress.bpb is None else progress.bpb
            self._samples[slot] = (progress.share, progress.loss, bpb, progress.tok_per_sec)


def _create(path: str) -> int:
    """Make a file of our own in place of what a training may have put there: a link, a pipe."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_if_there(path: str, limit: int | None = None) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return b""
            if limit is not None:
                file.seek(max(os.fstat(file.fileno()).st_size - limit, 0))
            return file.read()
    except FileNotFoundError:
        return b""


def json_objects(text: str) -> list[dict[str, Any]]:
    """Return the lines of `text` that are JSON objects."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return found
