"""Measurements of a run from outside: its processes, its clock, its core, its record."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from autohypothesis import system
from autohypothesis.engine.gpus import Gpu
from autohypothesis.engine.shim import Clock, Launch
from autohypothesis.system import LINUX, FileWatch

_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def own_cpu_seconds(pid: int) -> float:
    """Return the CPU time of one process, all threads, without children; 0.0 if it is gone.

    Linux: the process CPU clock, in nanoseconds. Elsewhere psutil's figure, in ticks.
    """
    if LINUX:
        with suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # the kernel's id of a process CPU clock
        return _ticks(pid, 11)
    return _elsewhere(pid)[0]


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
    if not LINUX:
        return _elsewhere(pid)[1]
    with suppress(OSError, IndexError):
        return int(system.read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    return 0


def _elsewhere(pid: int) -> tuple[float, int]:
    """Return CPU seconds and resident bytes of one process where there is no /proc."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    return 0.0, 0


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


DRIFT = 0.03  # of the kernel's time: the largest honest difference
REAPED_TICK_S = 0.02  # the kernel's account of reaped children comes in ticks of 10 ms, read twice
OVERRUN_FLOOR_S = 0.5  # a last step may end late by this, or by DRIFT of the budget
_MAX_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        self, path: str, clock: Clock, budget: float | None, kernel_now: Callable[[], float]
    ) -> None:
        self.path = path
        self._clock: Clock = clock
        self._budget = budget
        self._kernel_now = kernel_now
        # Made here so that there is a file to watch before the training writes its first line.
        # Not through a link that the training may have put there.
        with suppress(OSError):
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
        self.watch.drain()
        seen = time.monotonic()
        if lines := self._new_lines():
            kernel = self._kernel_now()
            for line in lines:
                self._take(line, kernel, seen)
        self._last_poll = seen

    def _new_lines(self) -> list[dict[str, Any]]:
        try:
            with open(os.open(self.path, _READ), "rb") as file:
                status = os.fstat(file.fileno())
                size = min(status.st_size, _MAX_BYTES) if stat.S_ISREG(status.st_mode) else 0
                if size <= self._offset:
                    return []
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

    def verdict(self, *, required: bool, cut: bool) -> dict[str, Any]:
        """Return the `clock` of exit.json, in seconds of the clock that the budget is in.

        `cut`: the training was ended, so a missing stop proves nothing.
        """
        start, stop = self._start, self._stop
        claimed = kernel = allowed = None
        if start is not None and stop is not None:
            kernel = stop.kernel - start.kernel
            allowed = DRIFT * kernel + start.lag + stop.lag + REAPED_TICK_S
            claimed = _claimed(self._clock, start.line, stop.line)
        reason = self._missing(required, cut) or self._disagreement(claimed, kernel, allowed)
        name = "invalid" if reason else "ok"
        if not reason and stop is None:
            name = "absent" if start is None else "cut"
        return {
            "clock": self._clock,
            "budget_seconds": self._budget,
            "claimed_s": claimed,
            "kernel_s": kernel,
            "drift": kernel / claimed - 1.0 if kernel is not None and claimed else None,
            "allowed_s": allowed,
            "early_draw": self._early_draw,
            "verdict": name,
            "reason": reason,
        }

    def _missing(self, required: bool, cut: bool) -> str:
        if self._early_draw:
            return "tokens were drawn before the clock started"
        if self._start is None and self._stop is not None:
            return "the clock was stopped but never started"
        if self._start is None:
            return "the clock never started" if required and not cut else ""
        return "" if self._stop or cut else "the clock was started but never stopped"

    def _disagreement(
        self, claimed: float | None, kernel: float | None, allowed: float | None
    ) -> str:
        if self._start is None or self._stop is None:
            return ""
        if claimed is None or kernel is None or allowed is None:
            return "clock.jsonl does not say how long the training took"
        if abs(claimed - kernel) > allowed:
            return (
                f"the training claims {claimed:.2f} s of {self._clock} time,"
                f" the kernel counted {kernel:.2f} s"
            )
        if self._budget is None:
            return ""
        stated = _number(self._start.line.get("budget_seconds"))
        if stated is not None and not math.isclose(stated, self._budget, rel_tol=1e-6):
            return f"the clock ran on a budget of {stated:g} s, not {self._budget:g} s"
        late = self._stop.lag + max(DRIFT * self._budget, OVERRUN_FLOOR_S)
        if kernel - self._budget > late:
            return f"the training took {kernel:.2f} s of a budget of {self._budget:g} s"
        return ""


def _claimed(clock: Clock, start: dict[str, Any], stop: dict[str, Any]) -> float | None:
    """Return what the training says it took: `elapsed`, else the difference of its clock."""
    elapsed = _number(stop.get("elapsed"))
    if elapsed is not None:
        return elapsed
    name = "cpu" if clock == "cpu" else "monotonic"
    first, last = _number(start.get(name)), _number(stop.get(name))
    return None if first is None or last is None else last - first


def _object(raw: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        line = json.loads(raw)
        return line if isinstance(line, dict) else None
    return None


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value) if math.isfinite(value) else None
    return None


_KERNEL_ROUNDS = 12
_KERNEL_STEPS = 4_000  # about a third of a millisecond


def time_kernel(cores: Sequence[int] | None, clock: str = "wall") -> float:
    """Return the milliseconds that a fixed kernel takes on `cores`; our affinity is restored.

    By the clock of the budget: a run that pays for CPU time is not disturbed by waiting for it.
    The least of a few rounds, so that a moment's interruption does not count.
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
    start, state = timer(), 1
    for _ in range(_KERNEL_STEPS):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFFFFFF
    return timer() - start


MAX_NAMED = 8


class RecordWatch:
    """The files of one run folder and the records `launch.watched`, from before the run began."""

    def __init__(self, launch: Launch) -> None:
        self._run, self._others = launch.run, launch.watched
        self._before = {path: self._stamp(path) for path in (*self._kept_files(), *self._others)}
        self._events: tuple[int, ...] | None = None
        self._events_changed = False

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Tell a line of the shim in events.jsonl from what others write there."""
        self._check_events()
        yield
        self._events = self._events_now()

    def _check_events(self) -> None:
        if self._events is not None and self._events != self._events_now():
            self._events_changed = True

    def findings(self, *, log_is_ours: bool) -> list[str]:
        """Return what the run did to its record, in words that follow "the training changed".

        Files that it made are moved to `out/`. Call it when all processes of the run have ended.
        """
        self._check_events()
        found = [] if log_is_ours else ["run.log of its record"]
        found += ["events.jsonl of its record"] if self._events_changed else []
        for path, before in self._before.items():
            if self._stamp(path) != before:
                found.append(f"{os.path.basename(path)} of its record")
        for path in self._kept_files():
            if path not in self._before:
                found.append(f"{os.path.basename(path)} of its record, which it made")
                self._set_aside(path)
        rest = len(found) - MAX_NAMED
        return found[:MAX_NAMED] + ([f"and {rest} more"] if rest > 0 else [])

    def _kept_files(self) -> Iterator[str]:
        """Yield the files of the run folder that nothing writes while the run lasts."""
        run = self._run
        written = (run.out, run.home, run.scoring_home, run.events, run.log, run.score_log)
        names = {path.name for path in (*written, run.shim_log, run.reserve)}
        logs = tuple(f"{path.name}.tail" for path in (run.log, run.score_log))
        with suppress(OSError):
            for name in sorted(os.listdir(run.folder)):
                # The starter writes shim.json.PID beside shim.json while the shim begins.
                if name not in names and not name.startswith((*logs, f"{run.shim.name}.")):
                    yield str(run.folder / name)

    def _stamp(self, path: str) -> tuple[int, ...] | None:
        try:
            found = os.lstat(path)
        except OSError:
            return None
        # shim.json is linked into place, and its other name is removed while the run begins.
        changed = 0 if path == str(self._run.shim) else found.st_ctime_ns
        return found.st_ino, found.st_size, found.st_mtime_ns, changed, found.st_mode

    def _set_aside(self, path: str) -> None:
        with suppress(OSError):
            os.makedirs(self._run.out, exist_ok=True)
            os.rename(path, self._run.out / f"from-the-record-{os.path.basename(path)}")

    def _events_now(self) -> tuple[int, ...]:
        return (self._stamp(str(self._run.events)) or (0, 0))[:2]


GROWN_MB = 64.0  # a context alone is larger; smaller changes are no training
BACK_MB = 256.0  # what a driver may keep after a training has gone


class GpuRecord:
    """The sum of the samples of one lease. The first is the state before the training."""

    def __init__(self, before: Gpu) -> None:
        self.error, self.lost = before.problem or None, before.lost
        self.peak_mb: float | None = None
        self.not_back: dict[str, float] | None = None
        self._first = self._last = before
        self._grown: dict[int, list[float]] = {}
        self._load: list[float] = []
        self._joules = 0.0
        self._throttled: Counter[str] = Counter()
        self._samples = 0
        self._ours_seen = False
        self._before = _memory(before)

    def take(self, sample: Gpu, ours: Collection[int]) -> None:
        """Add a sample during the lease; `ours` are all pids that the tree has had."""
        if sample.problem:
            self.error = self.error or sample.problem
            self.lost = self.lost or sample.lost
            return
        self._samples += 1
        self._throttled.update(sample.throttle)
        if sample.utilisation is not None:
            self._load.append(sample.utilisation)
        if sample.power_w is not None and not self._last.problem:
            self._joules += sample.power_w * (sample.monotonic - self._last.monotonic)
        memory = _memory(sample)
        mine = [mb for pid, mb in memory.items() if pid in ours]
        self._ours_seen = self._ours_seen or bool(mine)
        used = sum(mine) or sample.used_mb - self._first.used_mb
        self.peak_mb = max(self.peak_mb or 0.0, used)
        for pid, mb in memory.items():
            grown = mb - self._before.get(pid, 0.0)
            if pid not in ours and grown > GROWN_MB:
                self._grown.setdefault(pid, []).append(grown)
        self._last = sample

    def is_back(self, sample: Gpu) -> bool:
        """Return whether, after the training, the device's memory is what it was before."""
        if sample.problem:
            self.take(sample, ())
            return False
        before, after = self._first.used_mb, sample.used_mb
        is_back = after - before <= BACK_MB
        self.not_back = None if is_back else {"before_mb": before, "after_mb": after}
        return is_back

    def foreign(self) -> list[dict[str, float]]:
        """Return processes whose memory grew since the lease, in two samples or more.

        In a container NVML may give pids of another namespace. If none of ours was ever seen, a
        process that came after the lease may be ours, and only growth of an older one counts.
        """
        return [
            {"pid": pid, "grown_mb": max(sizes)}
            for pid, sizes in sorted(self._grown.items())
            if len(sizes) >= 2 and (self._ours_seen or pid in self._before)
        ]

    def energy_joules(self) -> float | None:
        """Return the device's own counter, else the sum of power over time."""
        first, last = self._first.energy_j, self._last.energy_j
        if first is not None and last is not None:
            return last - first
        return self._joules or None

    def utilisation(self) -> float | None:
        """Return the mean load in per cent."""
        return sum(self._load) / len(self._load) if self._load else None

    def throttled(self) -> dict[str, float]:
        """Return the share of samples for each reason that slowed the device."""
        return {name: count / self._samples for name, count in self._throttled.items()}


def _memory(sample: Gpu) -> dict[int, float]:
    return {pid: mb or 0.0 for pid, mb in sample.processes}
