"""From the pipe of a child to its log: bounded on disk, bounded in memory, read on the way.

A training may print a gigabyte. The log keeps the first and the last part; what is read from it,
progress and the number of summaries, is taken from the stream, at a cost per chunk, not per line.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable

from autohypothesis.engine.logs import Progress, parse_progress

CHUNK = 1 << 18
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
        self.path = path
        self.total = 0
        self.dropped = 0
        self.is_ours = True
        """Whether the file at `path` is the one that was written, when it was closed."""
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
        """Whether nobody put another file, or more or less into it, while it was written."""
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
            if os.path.exists(path):
                os.unlink(path)

    @property
    def _tail_path(self) -> str:
        return self.path + ".tail"

    @property
    def _old_path(self) -> str:
        return self.path + ".tail.old"


def read_tail(path: str, limit: int = 65536) -> str:
    """Whole lines at the end of a log, `limit` bytes at most; "" if there is no log.

    Of a log whose shim was killed, too. A piece of a line is left out, unless it is all there is.
    """
    parts = [_read_if_there(path + suffix, limit + 1) for suffix in ("", ".tail.old", ".tail")]
    data = b"".join(parts)
    if len(data) > limit:
        data = data[-limit:]
        data = data[data.find(b"\n") + 1 :] or data
    return data.decode(errors="replace")


class StreamReader:
    """What a stream says while it passes: the last progress, a curve, how many summaries.

    Both kinds of line end count. Of a large chunk only the last progress lines are parsed.
    """

    def __init__(self, metric: str, on_progress: Callable[[Progress], None] | None = None) -> None:
        self.progress: Progress | None = None
        self.summaries = 0
        self._line_start = f"\n{metric}:".encode()
        self._on_progress = on_progress
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
            for line in _last_matches(whole):
                self._note(parse_progress(line.decode(errors="replace")))

    def finish(self) -> None:
        """The stream has ended: what came after the last line end is a line now."""
        self.feed(b"\n")

    def samples(self) -> list[list[float | None]]:
        """Up to about 200 points: progress share, loss, bpb, tokens per second."""
        return [list(point) for _, point in sorted(self._samples.items())]

    def _note(self, progress: Progress | None) -> None:
        if progress is None:
            return
        self.progress = progress
        if progress.share is not None:
            slot = int(progress.share * MAX_SAMPLES)
            earlier = self._samples.get(slot)
            bpb = earlier[2] if earlier and progress.bpb is None else progress.bpb
            self._samples[slot] = (progress.share, progress.loss, bpb, progress.tok_per_sec)
        if self._on_progress is not None:
            self._on_progress(progress)


def _last_matches(data: bytes) -> list[bytes]:
    """The last few progress lines of a chunk, found from its end."""
    window = data[-_LINES_PER_CHUNK * 256 :]
    if len(window) < len(data):
        window = window[window.find(b"\n") + 1 :]
    return _STEP_LINE.findall(window)[-_LINES_PER_CHUNK:]


def _create(path: str) -> int:
    """A file of our own in place of whatever a training may have put there: a link, a pipe."""
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
