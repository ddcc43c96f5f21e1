"""Processes of a run: a child of the shim from fork to its end, the limit, what outlives a run.

One thread and one loop watch a child: output, signals, the clock file and the limits are all looked
at there. `ProcessMonitor.watch` returns when the child has been waited for and no descendant lives.

A cgroup limits their number where one can be made, below the one that the shim was started in, so
that every limit of that one goes on to hold; else they are counted. RLIMIT_NPROC is no way to do
this: the kernel counts everything that the user runs against it, and exempts root.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

from autohypothesis import system
from autohypothesis.engine.meters import TreeMeter
from autohypothesis.errors import AutohypothesisError, LaunchError
from autohypothesis.records.layout import RunPaths

if TYPE_CHECKING:
    from autohypothesis.engine.logs import CappedLog, StreamReader


class Interrupts:
    """Signals to the shim as a readable descriptor; SIGTERM and SIGINT mean cancel."""

    def __init__(self) -> None:
        self.cancelled = False
        self.fd, write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGINT, self._cancel)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # The starter of the shim has blocked it, so that a cancel cannot come too early.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _cancel(self, number: int, frame: object) -> None:
        self.cancelled = True

    def drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self.fd, 512):
                pass


_PIPE_BYTES = 1 << 20
_KEPT = {signal.SIGKILL, signal.SIGSTOP}  # no process can change these


class ChildProcess(NamedTuple):
    """A started child, and when (monotonic); `output` is the read end of its stdout and stderr,
    not blocking."""

    pid: int
    started: float
    output: int


def spawn(
    command: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    *,
    cores: Sequence[int] | None,
    inherit: Sequence[int] = (),
) -> ChildProcess:
    """Start `command` in a session of its own, with exactly `env`, and `inherit` kept open.

    Raises LaunchError that names the command and the folder, if it cannot be executed.
    """
    output, child_output = os.pipe()
    failure, child_failure = os.pipe()
    parent, started = os.getpid(), time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _prepare_child(parent, child_output, cores, inherit)
            os.chdir(cwd)
            os.execvpe(command[0], list(command), dict(env))
        except BaseException as error:
            # The boundary of the child process: the parent turns these words into an error.
            words = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            os.write(child_failure, words.encode(errors="replace"))
        finally:
            os._exit(127)
    os.close(child_output)
    os.close(child_failure)
    with os.fdopen(failure, "rb") as pipe:
        problem = pipe.read().decode(errors="replace")  # ends at exec, or with the child
    if problem:
        os.waitpid(pid, 0)
        os.close(output)
        raise LaunchError(
            f"cannot start {command[0]!r} in {cwd}: {problem}", hint="check run.command"
        )
    os.set_blocking(output, False)
    # Wide, so that a talkative training writes on while the shim does something else.
    # AttributeError: not Linux; OSError: over this user's pipe limit, and 64 KiB work as well.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined,unused-ignore]
    return ChildProcess(pid, started, output)


def _prepare_child(
    parent: int, output: int, cores: Sequence[int] | None, inherit: Sequence[int]
) -> None:
    os.setsid()
    system.die_with_parent(parent)
    # What Python or a shell ignores, exec hands on; a training expects the defaults.
    for number in signal.valid_signals() - _KEPT:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    system.set_affinity(cores)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for fd in inherit:
        os.set_inheritable(fd, True)


CHUNK = 1 << 18
TICK_S = 0.1
SELF_EXIT_S = 0.3  # helpers of a training that has ended may leave by themselves
LEFTOVER_GRACE_S = 2.0
KILL_S = 10.0
_RSS_UNIT = 1024 if system.LINUX else 1

MIN_STOPPED_S = 5.0
"""A pause between two rounds of this length is no busy machine: the shim was stopped."""
MIN_LATE_S = 1.0
"""A pause of this length, with the deadline in it, hides whether the child ended in time."""
EndStatus = Literal["exited", "signalled", "deadline", "cancelled", "infra", "processes"]


class ChildEnd(NamedTuple):
    """The end of a child. `wall_seconds` lasts from exec to its exit, without its leftovers."""

    status: EndStatus
    exit_code: int | None
    signal: int | None
    wall_seconds: float
    leftovers_killed: int
    switches: int  # involuntary context switches: another process wanted the core
    asleep: float  # seconds in which the shim itself was stopped
    error: str | None


class ProcessMonitor:
    """Looks after one child. `tick` is called about ten times a second; `wakeups` are descriptors
    and what to call when they are readable."""

    def __init__(
        self,
        child: ChildProcess,
        log: CappedLog,
        reader: StreamReader,
        meter: TreeMeter,
        interrupts: Interrupts,
        limit: ProcessLimit,
        *,
        deadline_s: float,
        grace_s: float,
        tick: Callable[[], None],
        wakeups: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        self._child = child
        self._log = log
        self._reader = reader
        self._meter = meter
        self._interrupts = interrupts
        self._limit = limit
        self._grace = grace_s
        self._tick = tick
        self._deadline = child.started + deadline_s
        self._next_tick = child.started
        self._wakeups = {child.output: self._pump, interrupts.fd: interrupts.drain}
        self._wakeups |= {fd: call for fd, call in (wakeups or {}).items() if fd >= 0}
        self._poll = select.poll()
        for fd in self._wakeups:
            self._poll.register(fd, select.POLLIN)
        self._output_open = True
        self._fault: str | None = None
        self._too_many = ""
        """Message with the number of processes, once there are too many; else empty."""
        self._stopped: EndStatus | None = None
        self._kill_at = 0.0
        self._told = 0
        """Number of processes that were asked to end."""
        self._status: int | None = None
        self._switches = 0
        self._looked = time.monotonic()
        self._asleep = 0.0

    def watch(self) -> ChildEnd:
        while self._status is None:
            self._round()
            self._stop_if_due()
        wall = time.monotonic() - self._child.started
        self._guarded(self._tick)  # what it wrote last, before others add to its CPU time
        self._count_processes()
        killed = self._end_leftovers()
        self._drain()
        return self._end(wall, killed)

    def _round(self) -> None:
        """Wait for something to happen, for a tick at most."""
        was_running = self._status is None
        wait = max(self._next_tick - time.monotonic(), 0.0)
        for fd, _ in self._poll.poll(1000 * min(wait, TICK_S)):
            self._wakeups[fd]()
        self._reap()
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK_S
            self._guarded(self._tick)
            self._count_processes()
        if was_running:
            self._detect_own_suspension()

    def _detect_own_suspension(self) -> None:
        """Notice that this process was stopped: it could not act at the deadline of the run."""
        now, before = time.monotonic(), self._looked
        self._looked, gap = now, now - before
        self._asleep += gap if gap >= MIN_STOPPED_S else 0.0
        if gap >= MIN_LATE_S and before < self._deadline <= now:
            self._fault = self._fault or (
                f"the process that owns the run was stopped for {gap:.1f} s, past its deadline"
            )

    def _count_processes(self) -> None:
        if not self._too_many and (excess := self._limit.excess()):
            self._too_many = f"{excess} (run.max_processes)"

    def _pump(self) -> None:
        try:
            data = os.read(self._child.output, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._poll.unregister(self._child.output)
            self._output_open = False
            return
        self._reader.feed(data)
        if self._fault is None:
            self._guarded(lambda: self._log.write(data))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write, and end the training where the disk refuses: the shim goes on."""
        try:
            write()
        except OSError as error:
            self._fault = self._fault or f"{error.strerror}: {self._log.path}"
        except AutohypothesisError as error:
            self._fault = self._fault or error.problem

    def _reap(self) -> None:
        """Wait for children that have ended, adopted orphans too, and count what they used."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._meter.apart:
                continue
            self._meter.reaped(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT)
            if pid == self._child.pid:
                self._status = status
                self._switches = usage.ru_nivcsw

    def _stop_if_due(self) -> None:
        now = time.monotonic()
        if self._stopped is None:
            if self._fault is not None:
                self._stop("infra")
            elif self._interrupts.cancelled:
                self._stop("cancelled")
            elif self._too_many:
                self._freeze()
            elif now >= self._deadline and self._status is None:
                self._stop("deadline")
        elif now >= self._kill_at and self._status is None:
            self._signal_tree(signal.SIGKILL)
            self._kill_at = now + TICK_S  # again, for what was forked meanwhile
        elif not self._told and self._status is None:  # bubblewrap was not ready yet
            self._told = self._signal_tree(signal.SIGTERM)

    def _stop(self, why: EndStatus) -> None:
        self._stopped = why
        self._kill_at = time.monotonic() + self._grace
        if self._status is None:
            self._told = self._signal_tree(signal.SIGTERM)

    def _freeze(self) -> None:
        """Stop and kill too many processes: after a SIGTERM a fork bomb forks on."""
        self._limit.forbid_more()
        self._signal_tree(signal.SIGSTOP)
        self._stopped, self._kill_at = "processes", time.monotonic()

    def _signal_tree(self, number: signal.Signals) -> int:
        """Signal every living descendant; return how many there were.

        SIGTERM passes bubblewrap by: its end would kill the training before that could end itself.
        """
        if not system.LINUX and self._status is None:
            with suppress(OSError):
                os.killpg(self._child.pid, number)
        count = 0
        for pid in self._meter.pids():
            if number == signal.SIGTERM and _is_bubblewrap(pid):
                continue
            start = system.process_start(pid)
            count += start is not None and system.signal_process(pid, start, number)
        return count

    def _end_leftovers(self) -> int:
        """End what the child left behind; return the number of processes that were signalled."""
        told = 0
        if self._stopped is not None:
            self._wait_empty(self._kill_at - time.monotonic())
        else:
            self._wait_empty(SELF_EXIT_S)
            told = self._signal_tree(signal.SIGTERM)
            self._wait_empty(min(self._grace, LEFTOVER_GRACE_S) if told else 0.0)
        if self._too_many and self._stopped is None:
            self._freeze()
        give_up = time.monotonic() + KILL_S
        killed = 0
        while self._meter.pids() and time.monotonic() < give_up:
            killed = max(killed, self._signal_tree(signal.SIGKILL))
            self._wait_empty(0.02)
        return max(told, killed)

    def _wait_empty(self, seconds: float) -> None:
        """Keep pumping and waiting until no descendant is left, for some time at most."""
        until = time.monotonic() + seconds
        while self._meter.pids() and time.monotonic() < until:
            self._next_tick = min(self._next_tick, time.monotonic() + 0.01)
            self._round()
            if self._too_many and self._stopped is None:
                return

    def _drain(self) -> None:
        """Take what is left in the pipe: all its writers are dead."""
        while self._output_open:
            before = self._log.total
            self._pump()
            if self._log.total == before or self._fault is not None:
                break
        os.close(self._child.output)
        self._reader.finish()
        self._guarded(self._log.close if self._fault is None else self._log.discard)

    def _end(self, wall: float, killed: int) -> ChildEnd:
        code = os.waitstatus_to_exitcode(self._status or 0)
        status: EndStatus = self._stopped or ("exited" if code >= 0 else "signalled")
        if self._fault is not None:
            status = "infra"
        too_many = f"it ran {self._too_many}" if status == "processes" else None
        return ChildEnd(
            status=status,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            wall_seconds=wall,
            leftovers_killed=killed,
            switches=self._switches,
            asleep=self._asleep,
            error=self._fault or too_many,
        )


def _is_bubblewrap(pid: int) -> bool:
    with suppress(OSError):
        return system.read(f"/proc/{pid}/comm") == b"bwrap\n"
    return False


TASKS_EACH = 4
"""The cgroup counts threads too: it holds so many tasks for each process that a run may have."""
COUNT_S = 0.5
"""Interval of counting by a walk through the tree of processes."""
_PREFIX = "autohypothesis-"


class ProcessLimit:
    """The limit on the processes that this one starts: enter(), hold(limit), ask, leave().

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
        remove_stale_cgroups(home)
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
        """Skip the slow way out, for a process that ends now.

        To move back takes the kernel some 12 ms, for which an experiment would wait. So the process
        ends in its cgroup, which `remove_stale_cgroups` removes when the run is collected.
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
        with suppress(OSError, ValueError, IndexError):
            return int(system.read(f"{self._group}/{name}").split()[-1])
        return None


def remove_stale_cgroups(home: str = "") -> None:
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
    import psutil

    name, _, value = assignment.partition("=")
    found: dict[int, float] = {}
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):
            if pid == os.getpid() or psutil.Process(pid).environ().get(name) != value:
                continue
            start = system.process_start(pid)
            if start is not None and system.start_to_epoch(start) >= not_before - _CLOCK_SLACK_S:
                found[pid] = start
    return found


def end_marked(assignment: str, not_before: float = 0.0) -> list[int]:
    """SIGKILL all that `find_marked` finds until none is left; return the pids that were killed."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        if not (found := find_marked(assignment, not_before).items()):
            break
        killed |= {pid for pid, start in found if system.signal_process(pid, start, signal.SIGKILL)}
        time.sleep(_PAUSE_S)
    return sorted(killed)
