"""How many processes a run may have at once: held by a cgroup where one can be made, else counted.

The cgroup is a child of the one that the shim was started in, so every limit of that one goes on to
hold; only the shim and what it starts are ever in it. Without one (no right to make it, macOS) the
shim counts what it owns. RLIMIT_NPROC is no way to do this: the kernel counts everything that the
user runs against it, and exempts root.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from autohypothesis import system

TASKS_EACH = 4
"""The cgroup counts threads too: it holds so many tasks for each process that a run may have."""
COUNT_S = 0.5
"""Between two counts that walk the tree of processes."""
_PREFIX = "autohypothesis-"


class ProcessLimit:
    """The limit on what this process starts: `enter`, `hold` it to a number, ask, `leave`.

    To enter takes the kernel some 15 ms, so a shim does it before anybody waits for it.
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
            count: how many there are now, without this one.
        """
        self.most, self._count = most, count
        self._next = time.monotonic() + COUNT_S
        if self._group:
            try:
                _write(f"{self._group}/pids.max", str(TASKS_EACH * most))
            except OSError:
                self.leave()

    def over(self) -> str:
        """How many processes there are, in words, when that is too many; else empty.

        Costs next to nothing while there are few.
        """
        tasks, refused = self._number("pids.current"), bool(self._number("pids.events"))
        few = tasks is not None and tasks <= self.most
        if not refused and (few or time.monotonic() < self._next):
            return ""
        self._next = time.monotonic() + COUNT_S
        count = self._count()
        if count > self.most:
            return f"{count} processes at once, {self.most} are allowed"
        if refused:
            return (
                f"{TASKS_EACH * self.most} processes and threads at once, {self.most} processes"
                f" with {TASKS_EACH} threads each are allowed"
            )
        return ""

    def forbid_more(self) -> None:
        """From now on nothing in the cgroup can fork, so that a tree can be ended."""
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
        """The last number in a file of the cgroup."""
        try:
            with open(f"{self._group}/{name}", encoding="ascii") as file:
                return int(file.read().split()[-1])
        except (OSError, ValueError, IndexError):
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
    """The folder of this process's cgroup in the hierarchy that counts processes; empty without."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            own = [line.strip().split(":", 2) for line in file]
        paths = {name: path for _, names, path in own for name in names.split(",")}
        wanted = "pids" if "pids" in paths else ""  # version 2 has one line without a name
        for root, place, kind, options in _mounts():
            is_it = "pids" in options if wanted else kind == "cgroup2"
            if is_it and wanted in paths and (path := _below(paths[wanted], root)) is not None:
                return place + path
    except (OSError, ValueError):
        pass
    return ""


def _mounts() -> Iterator[tuple[str, str, str, list[str]]]:
    """Of each cgroup mount: its root in the hierarchy, its folder, its kind and its controllers."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            if kind in ("cgroup", "cgroup2"):
                yield before.split()[3], before.split()[4], kind, options.split(",")


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount whose top is `root`; None when it is not in there."""
    if root in ("/", path):
        return "" if path in ("/", root) else path
    return path[len(root) :] if path.startswith(f"{root}/") else None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
