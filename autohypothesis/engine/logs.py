"""The log of a training: bounded on disk and in memory, with its progress lines and summary.

A training may print a gigabyte. The log keeps the first and the last part; what is read from it is
taken from the stream. Numbers come from code under test, so only finite, plausible ones become
numbers, and what one line holds is for `metric_lines` to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from autohypothesis.engine.metric_lines import (
    MAX_LINE,
    MetricValues,
    lines_of,
    occurrences,
    pairs_in,
    parse_number,
    published_pair,
)

_MAX_TEXT = 200  # characters of a value that is a word
_MAX_KEYS = 200

_STEP = re.compile(r"\s*step\s+(\d{1,12})\b(?:[^|]*?\(\s*([\d.]{1,12})\s*%\s*\))?")
_FIELD = re.compile(r"\s*([A-Za-z][\w /]{0,40}?)\s*:\s*([^|]{0,60}?)\s*(?:\||$)")
_NUMERIC = re.compile(r"[-+]*(?:[\d.]|nan|inf)", re.IGNORECASE)


class Progress(NamedTuple):
    """One progress line. `share` is the part of the budget used, 0 to 1."""

    step: int
    share: float | None = None
    loss: float | None = None
    bpb: float | None = None
    tok_per_sec: float | None = None


class Summary(NamedTuple):
    """What the end of a log says, with the values that the whole of it holds.

    Attributes:
        metrics: of the last complete block that has the metric.
        blocks: how often the metric was printed in its strongest form.
        values: its different values, the last one last; None for what is no plausible number.
    """

    metrics: dict[str, float | str]
    blocks: int
    values: list[float | None]


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
    """Return the last complete block in `text`, and the values of `metric` in all of it.

    A block is a run of `name: value` lines that contains `metric`, after `---` or bare; without
    one, what stands beside the last place where the metric is named. The last line counts only if
    it ends: a number that was cut off is another number. A value that is no plausible number stays
    text, or is left out if it looks like one (NaN, 1e999, 5,000 digits).
    """
    lines, found = lines_of(text), MetricValues(metric)
    for line in lines:
        found.take(line)
    blocks = [block for block in _blocks(lines) if metric in block]
    metrics: dict[str, float | str] = {}
    for name, word in (blocks[-1] if blocks else _beside(lines, metric)).items():
        number = parse_number(word)
        if number is not None:
            metrics[name] = number
        elif not _NUMERIC.match(word):
            metrics[name] = word
    if found.values and found.values[-1] is not None:
        metrics[metric] = found.values[-1]
    return Summary(metrics, found.count, found.values)


def printed_nonsense(text: str, metric: str = "val_bpb") -> str | None:
    """Return the last printed value of `metric`, if it is no plausible number; else None."""
    found = MetricValues(metric)
    for line in lines_of(text):
        found.take(line)
    return list(found.texts.values())[-1] if found.values[-1:] == [None] else None


def _blocks(lines: list[str]) -> Iterator[dict[str, str]]:
    """Yield runs of `name: text` lines, in order. A repeated name or a `---` begins the next."""
    block: dict[str, str] = {}
    for line in filter(None, lines):
        pair = published_pair(line)
        if pair is None or pair[0] in block:
            yield block
            block = {}
        if pair is not None and len(block) < _MAX_KEYS:
            block[pair[0]] = pair[1][:_MAX_TEXT]
    yield block


def _beside(lines: list[str], metric: str) -> dict[str, str]:
    """Return what is printed with the last mention of `metric`: in its line, or in lines around
    it, where each of them holds one figure."""
    at = next((i for i in range(len(lines) - 1, -1, -1) if occurrences(lines[i], metric)), None)
    if at is None:
        return {}
    block = dict(pairs_in(lines[at]))
    for step in (-1, 1) if len(block) == 1 else ():
        number = at + step
        while 0 <= number < len(lines) and len(block) < _MAX_KEYS:
            pairs = pairs_in(lines[number])
            if len(pairs) != 1 or pairs[0][0] in block:
                break
            block |= pairs
            number += step
    return block


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
    """Reads a stream while it passes: the last progress, a curve, the values of the metric.

    Both kinds of line end count. Of a large chunk only the last progress lines are parsed.
    """

    def __init__(self, metric: str) -> None:
        self.progress: Progress | None = None
        self.found = MetricValues(metric)
        self._hint = self.found.hint.encode()
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
        if self._hint in whole.lower():
            for text in lines_of(whole.decode(errors="replace")):
                self.found.take(text)
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
