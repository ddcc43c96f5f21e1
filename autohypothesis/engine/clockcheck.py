"""Whether the time a training claims is the time the kernel gave it.

The budget clock in `prepare.py` writes what it believes to clock.jsonl. The shim reads its own
clocks at the moment each line appears, from outside the training, where no patch reaches.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from autohypothesis.engine.launch import Clock
from autohypothesis.system import FileWatch

DRIFT = 0.03  # of the kernel's time: the largest honest difference
TICK_S = 0.02  # the kernel's account of reaped children comes in ticks of 10 ms, read twice
OVERRUN_FLOOR_S = 0.5  # a last step may end late by this, or by DRIFT of the budget
_MAX_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ClockVerdict(NamedTuple):
    """What goes into exit.json under `clock`; seconds of the clock that the budget is in."""

    clock: Clock
    budget_seconds: float | None
    claimed_s: float | None
    kernel_s: float | None
    drift: float | None  # kernel over claimed, minus one
    allowed_s: float | None
    early_draw: bool
    verdict: str  # ok | invalid | absent | cut
    reason: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


class _Mark(NamedTuple):
    """A line of clock.jsonl, and what the kernel's clock said when it was seen."""

    line: dict[str, Any]
    kernel: float
    lag: float  # seconds by which it may have been seen late


class ClockWatch:
    """Reads clock.jsonl as it grows. Call `poll` often, and at once when `watch.fd` is readable.

    `kernel_now` gives the kernel's time on the budget's clock: CPU seconds of the whole tree, or
    the monotonic clock.
    """

    def __init__(
        self,
        path: str,
        clock: Clock,
        budget_seconds: float | None,
        kernel_now: Callable[[], float],
    ) -> None:
        self.path = path
        self._clock: Clock = clock
        self._budget = budget_seconds
        self._kernel_now = kernel_now
        # Made here so that there is a file to watch before the training writes its first line.
        # Not through a link that the training may have put there.
        with contextlib.suppress(OSError):
            os.close(os.open(path, _MAKE, 0o644))
        self.watch = FileWatch(path)
        self._offset = 0
        self._torn = b""
        self._last_poll = time.monotonic()
        self._start: _Mark | None = None
        self._stop: _Mark | None = None
        self._early_draw = False

    def poll(self) -> None:
        """Take in what was written since the last call."""
        seen = time.monotonic()
        size = self._size()
        if size > self._offset:
            kernel = self._kernel_now()
            for line in self._new_lines(size):
                self._take(line, kernel, seen)
        self._last_poll = seen

    def close(self) -> None:
        self.watch.close()

    def _size(self) -> int:
        try:
            status = os.lstat(self.path)
            return min(status.st_size, _MAX_BYTES) if stat.S_ISREG(status.st_mode) else 0
        except OSError:
            return 0

    def _new_lines(self, size: int) -> list[dict[str, Any]]:
        try:
            with open(os.open(self.path, _READ), "rb") as file:
                file.seek(self._offset)
                data = self._torn + file.read(size - self._offset)
        except OSError:
            return []
        self._offset = size
        *whole, self._torn = data.split(b"\n")
        return [line for raw in whole if (line := _object(raw)) is not None]

    def _take(self, line: dict[str, Any], kernel: float, seen: float) -> None:
        event = line.get("event")
        claimed = _number(line.get("monotonic"))
        # A line cannot have been there at the last poll, whatever time it claims.
        longest = seen - self._last_poll
        lag = longest if claimed is None else min(max(seen - claimed, 0.0), longest)
        if event == "early_draw":
            self._early_draw = True
        elif event == "start" and self._start is None:
            self._start = _Mark(line, kernel, lag)
        elif event == "stop":
            self._stop = _Mark(line, kernel, lag)

    def verdict(self, *, required: bool, cut: bool) -> ClockVerdict:
        """Compare. `cut`: the training was ended, so a missing stop proves nothing."""
        claimed, kernel, allowed = self._measured()
        drift = None
        if claimed is not None and kernel is not None:
            drift = kernel / claimed - 1.0 if claimed > 0 else None
        reason = self._complaint(claimed, kernel, allowed, required, cut)
        name = "invalid" if reason else "ok"
        if not reason and self._stop is None:
            name = "absent" if self._start is None else "cut"
        return ClockVerdict(
            clock=self._clock,
            budget_seconds=self._budget,
            claimed_s=claimed,
            kernel_s=kernel,
            drift=drift,
            allowed_s=allowed,
            early_draw=self._early_draw,
            verdict=name,
            reason=reason,
        )

    def _measured(self) -> tuple[float | None, float | None, float | None]:
        """Claimed seconds, the kernel's seconds, and how far apart they may honestly be."""
        start, stop = self._start, self._stop
        if start is None or stop is None:
            return None, None, None
        kernel = stop.kernel - start.kernel
        allowed = DRIFT * kernel + start.lag + stop.lag + TICK_S
        return _claimed(self._clock, start.line, stop.line), kernel, allowed

    def _complaint(
        self,
        claimed: float | None,
        kernel: float | None,
        allowed: float | None,
        required: bool,
        cut: bool,
    ) -> str:
        if self._early_draw:
            return "tokens were drawn before the clock started"
        if self._start is None:
            if self._stop is not None:
                return "the clock was stopped but never started"
            return "the clock never started" if required and not cut else ""
        if self._stop is None:
            return "" if cut else "the clock was started but never stopped"
        if claimed is None or kernel is None or allowed is None:
            return "clock.jsonl does not say how long the training took"
        if abs(claimed - kernel) > allowed:
            return (
                f"the training claims {claimed:.2f} s of {self._clock} time,"
                f" the kernel counted {kernel:.2f} s"
            )
        return self._budget_complaint(kernel)

    def _budget_complaint(self, kernel: float) -> str:
        if self._budget is None or self._start is None:
            return ""
        stated = _number(self._start.line.get("budget_seconds"))
        if stated is not None and not math.isclose(stated, self._budget, rel_tol=1e-6):
            return f"the clock ran on a budget of {stated:g} s, not {self._budget:g} s"
        if kernel - self._budget > max(DRIFT * self._budget, OVERRUN_FLOOR_S):
            return f"the training took {kernel:.2f} s of a budget of {self._budget:g} s"
        return ""


def _claimed(clock: Clock, start: dict[str, Any], stop: dict[str, Any]) -> float | None:
    """What the training says it took: `elapsed`, else the difference of its own clock."""
    elapsed = _number(stop.get("elapsed"))
    if elapsed is not None:
        return elapsed
    name = "cpu" if clock == "cpu" else "monotonic"
    first, last = _number(start.get(name)), _number(stop.get(name))
    return None if first is None or last is None else last - first


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
