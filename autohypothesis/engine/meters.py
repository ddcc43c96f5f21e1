"""What a tree of processes uses, and how fast a lane is: numbers only, no judgement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence

from autohypothesis import system
from autohypothesis.engine import usage

_KERNEL_ROUNDS = 12
_KERNEL_STEPS = 4_000  # about a third of a millisecond


class TreeMeter:
    """CPU time and memory of every descendant of this process, except those in `apart`.

    The owner waits for all children and tells `reaped` what each has used. CPU time includes
    children that a process hid from its own account (a daemon, or ignored SIGCHLD), as far as a
    sample has seen them alive.
    """

    def __init__(self) -> None:
        self.apart: set[int] = set()
        self.peak_bytes = 0
        self.reaped_seconds = 0.0
        self._seen: dict[int, float] = {}
        self._largest = 0.0

    def pids(self) -> list[int]:
        return [pid for pid in system.descendants(os.getpid()) if pid not in self.apart]

    @property
    def ever(self) -> Collection[int]:
        """Every pid that has been seen in the tree."""
        return self._seen.keys()

    def sample(self) -> None:
        """Look at memory and CPU time now."""
        pids = self.pids()
        self.peak_bytes = max(self.peak_bytes, sum(map(usage.resident_bytes, pids)))
        self._cpu(pids)

    def reaped(self, cpu_seconds: float, peak_bytes: int) -> None:
        """A child was waited for: its CPU time, with all it had waited for, and its peak."""
        self.reaped_seconds += cpu_seconds
        self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def cpu_seconds(self) -> float:
        """CPU time of the tree up to now, living and ended; it never goes back."""
        return self._cpu(self.pids())

    def _cpu(self, pids: Sequence[int]) -> float:
        own = {pid: usage.own_cpu_seconds(pid) for pid in pids}
        self._seen.update(own)
        waited = sum(map(usage.reaped_cpu_seconds, pids))
        accounted = self.reaped_seconds + sum(own.values()) + waited
        self._largest = max(self._largest, accounted, sum(self._seen.values()))
        return self._largest


def time_kernel(cores: Sequence[int] | None, clock: str = "wall") -> float:
    """Milliseconds that the fixed kernel takes on `cores`; our own affinity is restored.

    By the clock of the budget: whoever pays for CPU time is not disturbed by waiting for it. The
    least of a few rounds, so that a moment's interruption does not count.
    """
    before = system.usable_cores()
    pinned = system.set_affinity(cores)
    timer = time.thread_time if clock == "cpu" else time.perf_counter
    try:
        return 1e3 * min(_one_round(timer) for _ in range(_KERNEL_ROUNDS))
    finally:
        if pinned:
            system.set_affinity(before)


def _one_round(timer: Callable[[], float]) -> float:
    start = timer()
    state = 1
    for _ in range(_KERNEL_STEPS):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFFFFFF
    return timer() - start
