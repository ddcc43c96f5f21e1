"""Everything that differs between operating systems, each with its fallback.

Linux comes first; WSL2 is Linux. On macOS there is no subreaper, no parent-death signal and no
affinity: a training still ends with its process group, and what escapes it is found later by the
mark of the run in its environment (`engine.processes`). Native Windows is refused in one line.

This module is imported by the shim before it starts a training, so it costs a few milliseconds:
standard library only, psutil on first use where /proc is missing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autohypothesis.errors import UnsupportedSystemError

LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_IN_MODIFY = 0x2
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def require_supported() -> None:
    """Raise `UnsupportedSystemError` where processes cannot be held the way the engine needs."""
    if os.name != "posix":
        raise UnsupportedSystemError(
            f"{sys.platform} has no POSIX processes and file locks",
            hint="run it inside WSL2: wsl --install",
        )


def keep_others_out() -> None:
    """Let no file or folder be made that every user can write, whatever the umask was."""
    before = os.umask(0o022)
    if before & 0o002:
        os.umask(before)


def _prctl(option: int, value: object) -> bool:
    return _libc is not None and _libc.prctl(option, value, 0, 0, 0) == 0


def become_subreaper() -> bool:
    """Adopt orphaned descendants; return False where there is no such thing (macOS)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have SIGKILL end this process when `parent` dies, and at once if it is dead already.

    Call after fork and before exec; the setting survives exec. Without prctl only the check is
    made, and a killed parent leaves its child alive.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def set_process_name(name: str) -> None:
    """Set the short name in ps and top (15 bytes), where there is prctl."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def set_affinity(cores: Iterable[int] | None) -> bool:
    """Pin this process to `cores`; return False without cores, or without affinity (macOS).

    Raises OSError if none of the cores is available to this process.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, cores)
    return True


def usable_cores() -> list[int]:
    """Return the cores this process may use, inside any inherited mask."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> list[int]:
    """Return one usable core number per physical core: its first thread.

    Read from sysfs; where there is none, every core counts as a physical one.
    """
    first: dict[str, int] = {}
    for core in usable_cores():
        siblings = _read_word(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        first.setdefault(siblings or f"core {core}", core)
    return list(first.values())


class CtrlC:
    """Handles Ctrl-C as Python does, and remembers it.

    A KeyboardInterrupt that is raised inside a callback of the interpreter (at an import, say) is
    printed and dropped. `came` tells a handler that is installed later.
    """

    came = False

    def __call__(self, number: int, frame: object) -> None:
        self.came = True
        raise KeyboardInterrupt


class FileWatch:
    """Wakes a select loop when a file is written (inotify); `fd` is -1 without inotify."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        if _libc is not None:
            self.fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            if _libc.inotify_add_watch(self.fd, os.fsencode(path), _IN_MODIFY) < 0:
                self.close()

    def drain(self) -> None:
        """Throw the notices away; that there was one is all they say."""
        with suppress(OSError):
            while os.read(self.fd, 4096):
                pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def read(path: str) -> bytes:
    """Return the content of a file of the kernel's, whose size it does not tell."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _read_word(path: str) -> str:
    try:
        return read(path).decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cpu_model() -> str:
    """Return the name of the processor; the architecture where the system does not say."""
    with suppress(OSError):
        for line in read("/proc/cpuinfo").decode("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    import platform

    return platform.processor() or platform.machine()


def host_id() -> str:
    """Return a name for this machine that outlives reboots and changes of its network name."""
    return _read_word("/etc/machine-id") or host_name()


def host_name() -> str:
    """Return the network name of this machine."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def user_config_folder() -> Path:
    """Return the folder of this user's settings and keys, absolute; it need not exist.

    `$AUTOHYPOTHESIS_CONFIG`, else `$XDG_CONFIG_HOME/autohypothesis`, else
    `~/.config/autohypothesis`. A relative `$XDG_CONFIG_HOME` is ignored, as its standard asks.
    """
    if own := os.environ.get("AUTOHYPOTHESIS_CONFIG"):
        return Path(os.path.abspath(os.path.expanduser(own)))
    xdg = os.environ.get("XDG_CONFIG_HOME", "")
    base = xdg if os.path.isabs(xdg) else os.path.expanduser("~/.config")
    return Path(os.path.abspath(base)) / "autohypothesis"


def boot_id() -> str:
    """Return a word that differs after every reboot; empty where the system does not say."""
    return _read_word("/proc/sys/kernel/random/boot_id")


def stat_fields(pid: int) -> list[bytes] | None:
    """Return fields 3 and up of /proc/PID/stat (state first); None without such a process."""
    try:
        raw = read(f"/proc/{pid}/stat")
    except OSError:
        return None
    return raw[raw.rindex(b")") + 2 :].split() if b")" in raw else None


def process_start(pid: int) -> float | None:
    """Return the start time of a live process; None if it is gone or a zombie.

    Seconds since boot on Linux, since the epoch elsewhere: compare it, do not show it.
    """
    if LINUX:
        fields = stat_fields(pid) or [b"X"]
        return None if fields[0] in (b"Z", b"X") else int(fields[19]) / TICKS
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped, by a signal or by a debugger."""
    import psutil

    with suppress(psutil.Error):
        status = psutil.Process(pid).status()
        return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def suspended_seconds() -> float:
    """Return the seconds that this machine was suspended since its start; 0 where unknown."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def start_to_epoch(start: float) -> float:
    """Return a time of `process_start` in seconds since the epoch."""
    if not LINUX:
        return start
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - start)


_MAX_PID = 2**31 - 1


def is_alive(pid: int, start: float) -> bool:
    """Return whether this very process lives: its pid may have been given to another one since.

    Both may come from a damaged file: what can be no pid and no time is no process.
    """
    if not 0 < pid <= _MAX_PID:
        return False
    now = process_start(pid)
    try:
        return now is not None and abs(now - start) < 0.005
    except OverflowError:  # an integer beyond every float
        return False


def signal_process(pid: int, start: float, number: int) -> bool:
    """Send a signal to the process with this pid and start time; False if it is gone."""
    if not is_alive(pid, start):
        return False
    with suppress(OSError), _pidfd(pid) as fd:
        if fd is None:
            os.kill(pid, number)
        elif is_alive(pid, start):
            signal.pidfd_send_signal(fd, number)  # type: ignore[attr-defined,unused-ignore]
        else:
            return False
        return True
    return False


def wait_for_end(pid: int, timeout_s: float) -> None:
    """Sleep until the process ends, `timeout_s` at most; without pidfd, for `timeout_s`."""
    with suppress(OSError, OverflowError), _pidfd(pid) as fd:
        poll = select.poll()
        if fd is not None:
            poll.register(fd, select.POLLIN)
        poll.poll(1000 * timeout_s)


@contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    """Open a descriptor that stands for a process; None where there is no such thing (macOS)."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def descendants(root: int) -> list[int]:
    """Return live and zombie descendants of `root`, without itself.

    A process that forks or is orphaned during the call may be missed: who ends a tree asks again.
    On Linux orphans stay in the tree of a subreaper; elsewhere they have left it.
    """
    if not _HAS_CHILDREN:
        import psutil

        try:
            return [child.pid for child in psutil.Process(root).children(recursive=True)]
        except psutil.Error:
            return []
    found = _children(root)
    for pid in found:  # which grows meanwhile
        found += _children(pid)
    return found


_HAS_CHILDREN = os.path.exists("/proc/thread-self/children")  # CONFIG_PROC_CHILDREN


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # the thread has ended
                found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def rename_exclusive(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Move a file, never onto another one: one step on Linux, link and unlink elsewhere.

    Without `renameat2` a kill in between leaves the file under both names; never under none.

    Raises:
        FileExistsError: there is something at `new` already; nothing was done.
        OSError: as `os.rename` does.
    """
    if not _rename_noreplace(os.fspath(old), os.fspath(new)):
        os.link(old, new, follow_symlinks=False)
        os.unlink(old)


def _rename_noreplace(old: str, new: str) -> bool:
    """Return False where the kernel or the file system has no such call."""
    if _libc is None or not hasattr(_libc, "renameat2"):
        return False
    here, there = os.fsencode(old), os.fsencode(new)
    if _libc.renameat2(_AT_FDCWD, here, _AT_FDCWD, there, _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), old, None, new)


def file_size_limit() -> int | None:
    """Return the bytes that a file of this process may have (`ulimit -f`); None without a limit."""
    import resource  # not on Windows, where this module still says what to do instead

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def disk_full_advice(number: int | None) -> str:
    """Return advice about a write that failed for want of room; empty for another error.

    Args:
        number: the `errno` of the write.
    """
    if number == errno.ENOSPC:
        return "the disk is full: see `df -h`, and free some of it"
    if number == errno.EDQUOT:
        return "the disk quota of this user is used up: see `quota -s`, and delete or move files"
    if number == errno.EFBIG:
        limit = file_size_limit()
        here = "" if limit is None else f", here {limit:,} bytes"
        return f"files may not grow over the limit of `ulimit -f`{here}: `ulimit -f unlimited`"
    return ""
