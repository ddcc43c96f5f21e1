"""What a process has used: CPU time and memory, as the kernel counts them."""

from __future__ import annotations

import os
import time

from autohypothesis import system
from autohypothesis.system import LINUX

_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def own_cpu_seconds(pid: int) -> float:
    """CPU time of one process, all threads, without its children; 0.0 if it is gone.

    Linux: the process CPU clock, in nanoseconds. Elsewhere psutil's figure, in ticks.
    """
    if LINUX:
        try:
            return time.clock_gettime((~pid << 3) | 2)  # the kernel's id of a process CPU clock
        except OSError:
            fields = system.stat_fields(pid)
            return (int(fields[11]) + int(fields[12])) / system.TICKS if fields else 0.0
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def reaped_cpu_seconds(pid: int) -> float:
    """CPU time of the children that this process has waited for (ticks); 0.0 if unknown."""
    fields = system.stat_fields(pid) if LINUX else None
    return (int(fields[13]) + int(fields[14])) / system.TICKS if fields else 0.0


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 if it is gone. Pages shared in a tree count twice."""
    if LINUX:
        try:
            return int(system.read(f"/proc/{pid}/statm").split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck on this machine; 0 if unknown."""
    try:
        words = system.read("/proc/vmstat").split()
        return int(words[words.index(b"oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return 0
