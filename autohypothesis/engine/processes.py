"""Processes of a run: what they use, how many there may be, and how those that outlive it end.

A cgroup limits their number where one can be made, below the one that the shim was started in, so
that every limit of that one goes on to hold; else they are counted. RLIMIT_NPROC is no way to do
this: the kernel counts everything that the user runs against it, and exempts root.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from autohypothesis import system
from autohypothesis.records.layout import RunPaths
from autohypothesis.system import LINUX

_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def own_cpu_seconds(pid: int) -> float:
    """Return the CPU time of one process, all threads, without children; 0.0 if it is gone.

    Linux: the process CPU clock, in nanoseconds. Elsewhere psutil's figure, in ticks.
    """
    if LINUX:
        with suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # the kernel's id of a process CPU clock
        return _ticks(pid, 11)
    import psutil

    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def reaped_cpu_seconds(pid: int) -> float:
    """Return the CPU time of the children that a process has waited for; 0.0 if unknown."""
    return _ticks(pid, 13) if LINUX else 0.0


def _ticks(pid: int, first: int) -> float:
    """Return the seconds in two fields of /proc/PID/stat: of the user, and of the system."""
    fields = system.stat_fields(pid)
    return sum(map(int, fields[first : first + 2])) / system.TICKS if fields else 0.0


def resident_bytes(pid: int) -> int:
    """Return the resident memory of one process; 0 if it is gone.

    Pages that are shared in a tree count twice.
    """
    if LINUX:
        with suppress(OSError, IndexError):
            return int(system.read(f"/proc/{pid}/statm").split()[1]) * _PAGE
        return 0
    import psutil

    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def oom_kills() -> int:
    """Count the strikes of the kernel's out-of-memory killer on this machine; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        words = system.read("/proc/vmstat").split()
        return int(words[words.index(b"oom_kill") + 1])
    return 0


class TreeMeter:
    """CPU time and memory of every descendant of this process, except the pids in `apart`.

    The owner waits for all children and tells `reaped` what each has used. CPU time includes
    children that a process hid from its own account (a daemon, or ignored SIGCHLD), as far as a
    sample has seen them alive.
    """

    def __init__(self, apart: Collection[int] = ()) -> None:
        self.apart = apart
        self.peak_bytes = 0
        self._reaped_seconds = 0.0
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
        self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, self.pids())))
        self.cpu_seconds()

    def reaped(self, cpu_seconds: float, peak_bytes: int) -> None:
        """Count a child that was waited for: its CPU time, with its own children's, and peak."""
        self._reaped_seconds += cpu_seconds
        self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the tree up to now, living and ended; it never goes back."""
        pids = self.pids()
        own = {pid: own_cpu_seconds(pid) for pid in pids}
        self._seen.update(own)
        waited = sum(map(reaped_cpu_seconds, pids))
        accounted = self._reaped_seconds + sum(own.values()) + waited
        self._largest = max(self._largest, accounted, sum(self._seen.values()))
        return self._largest


TASKS_EACH = 4
"""The cgroup counts threads too: it holds so many tasks for each process that a run may have."""
COUNT_S = 0.5
"""Between two counts that walk the tree of processes."""
_PREFIX = "autohypothesis-"


class ProcessLimit:
    """The limit on what this process starts: `enter`, `hold` it to a number, ask, `leave`.

    To enter takes the kernel some 15 ms, so a shim does it while its starter prepares.
    """

    def __init__(self) -> None:
        self.most = 0
        self._count: Callable[[], int] = int
        self._home = self._group = ""
        self._offered = False
        self._next = 0.0

    def enter(self) -> None:
        """Move this process into a cgroup of its own, and with it what it starts from now on."""
        home = _own_group()
        if not home:
            return
        sweep(home)
        group = f"{home}/{_PREFIX}{os.getpid()}-{system.process_start(os.getpid()) or 0:.2f}"
        try:
            os.mkdir(group)
            self._home, self._group = home, group
            self._offer_pids()
            _write(f"{group}/cgroup.procs", "0")
        except OSError:
            self.leave()

    def hold(self, most: int, count: Callable[[], int]) -> None:
        """Let the limit hold from now on.

        Args:
            most: processes at once.
            count: returns how many there are now, without this one.
        """
        self.most, self._count = most, count
        self._next = time.monotonic() + COUNT_S
        if self._group:
            try:
                _write(f"{self._group}/pids.max", str(TASKS_EACH * most))
            except OSError:
                self.leave()

    def excess(self) -> str:
        """Return how many processes there are, in words, when that is too many; else empty.

        Costs next to nothing while there are few.
        """
        tasks, refused = self._number("pids.current"), bool(self._number("pids.events"))
        few = tasks is not None and tasks <= self.most
        if not refused and (few or time.monotonic() < self._next):
            return ""
        self._next = time.monotonic() + COUNT_S
        if (count := self._count()) > self.most:
            return f"{count} processes at once, {self.most} are allowed"
        allowed = f"{self.most} processes with {TASKS_EACH} threads each are allowed"
        tasks = TASKS_EACH * self.most
        return f"{tasks} processes and threads at once, {allowed}" if refused else ""

    def forbid_more(self) -> None:
        """Keep everything in the cgroup from forking, so that a tree can be ended."""
        if self._group:
            with suppress(OSError):
                _write(f"{self._group}/pids.max", "0")

    def leave(self) -> None:
        """Move this process back, and remove the cgroup; it stays while a process is left in it."""
        home, group = self._home, self._group
        self._home = self._group = ""
        with suppress(OSError):
            if group and os.path.isdir(group):
                _write(f"{home}/cgroup.procs", "0")
                os.rmdir(group)
            if self._offered and not any(entry.is_dir() for entry in os.scandir(home)):
                _write(f"{home}/cgroup.subtree_control", "-pids")

    def end(self) -> None:
        """Leave, for a process that ends now.

        To move back takes the kernel some 12 ms, for which an experiment would wait. So the process
        ends in its cgroup, which `sweep` removes when the run is collected.
        """
        if self._offered:
            self.leave()

    def _offer_pids(self) -> None:
        """Version 2: below a group with processes, only a threaded group has a controller.

        That changes no limit of the group above; `leave` takes it back.
        """
        if os.path.exists(f"{self._group}/pids.max"):
            return
        if os.path.exists(f"{self._home}/cgroup.type"):
            _write(f"{self._group}/cgroup.type", "threaded")
        if not os.path.exists(f"{self._group}/pids.max"):
            _write(f"{self._home}/cgroup.subtree_control", "+pids")
            self._offered = True

    def _number(self, name: str) -> int | None:
        """Return the last number in a file of the cgroup."""
        with suppress(OSError, ValueError, IndexError):
            return int(system.read(f"{self._group}/{name}").split()[-1])
        return None


def sweep(home: str = "") -> None:
    """Remove the cgroups of shims that have ended."""
    home = home or _own_group()
    with suppress(OSError):
        for name in os.listdir(home) if home else ():
            pid, _, start = name.removeprefix(_PREFIX).partition("-")
            if not name.startswith(_PREFIX) or not pid.isdigit():
                continue
            with suppress(ValueError, OSError):
                if not system.is_alive(int(pid), float(start)):
                    os.rmdir(f"{home}/{name}")


def _own_group() -> str:
    """Return the folder of this process's cgroup in the hierarchy that counts processes, or ""."""
    with suppress(OSError, ValueError):
        lines = system.read("/proc/self/cgroup").decode().splitlines()
        paths = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
        # Version 2 has one hierarchy, whose line names no controller.
        names = next((names for names in paths if "pids" in names.split(",")), "")
        top = f"/sys/fs/cgroup/{names}".rstrip("/")
        # A container may see the hierarchy from somewhere below its root.
        parts = paths[names].strip("/").split("/") if names in paths else []
        for skipped in range(len(parts) + 1):
            group = "/".join([top, *parts[skipped:]]).rstrip("/")
            with suppress(OSError):
                if str(os.getpid()).encode() in system.read(f"{group}/cgroup.procs").split():
                    return group
    return ""


def _write(path: str, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


# When a shim is killed the kernel kills the training, but not what the training had started. Those
# processes still carry the run folder in the environment they were born with. The folder, not the
# experiment's id: two repositories on one machine give the same ids.

RUN_VARIABLE = "AUTOHYPOTHESIS_RUN_DIR"
_CLOCK_SLACK_S = 1.0  # the wall clock may have been set meanwhile
_ROUNDS = 100
_PAUSE_S = 0.02


def run_mark(run: RunPaths) -> str:
    """Return the variable that is in the environment of all processes of a run."""
    return f"{RUN_VARIABLE}={run.out}"


def find_marked(assignment: str, not_before: float = 0.0) -> dict[int, float]:
    """Return processes born with `NAME=value` in their environment: pid -> start time.

    Those started at `not_before` (seconds since the epoch) or later; of this user only, unless it
    is root.
    """
    found: dict[int, float] = {}
    for pid in system.all_pids():
        if pid == os.getpid() or not system.environment_has(pid, assignment):
            continue
        start = system.process_start(pid)
        if start is not None and system.start_to_epoch(start) >= not_before - _CLOCK_SLACK_S:
            found[pid] = start
    return found


def end_marked(assignment: str, not_before: float = 0.0) -> list[int]:
    """SIGKILL all that `find_marked` finds until none is left; return the pids that were killed."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        found = find_marked(assignment, not_before)
        if not found:
            break
        killed |= {
            pid for pid, start in found.items() if system.signal_process(pid, start, signal.SIGKILL)
        }
        time.sleep(_PAUSE_S)
    return sorted(killed)
