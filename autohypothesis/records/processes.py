"""Whether a process that wrote its name down is still the same, living one.

A pid alone proves nothing: it is given to somebody else in time. Pid and start time together do,
on one machine; so the host is written down with them.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from typing import NamedTuple

_TOLERANCE_S = 0.02
"""Start times are counted in ticks of 10 ms."""


class Process(NamedTuple):
    """A process as it names itself in a file."""

    pid: int
    start: float
    """Seconds since boot on Linux, since the epoch elsewhere: to compare, not to show."""
    host: str

    @classmethod
    def own(cls) -> Process:
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0.0, socket.gethostname())

    def lives(self) -> bool:
        """A process of another host counts as living: nobody here can know better."""
        return self.host != socket.gethostname() or is_alive(self.pid, self.start)


def is_alive(pid: int, start: float) -> bool:
    now = process_start(pid)
    return now is not None and abs(now - start) < _TOLERANCE_S


@cache
def boot_id() -> str:
    """Names the run of the system since it was started: start times are counted from there."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_start(pid: int) -> float | None:
    """Start time of a living process; None when it is gone, or a zombie."""
    if sys.platform != "linux":
        return _start_elsewhere(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _start_elsewhere(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.Error:
        return None
