"""Devices that trainings run on, and the exclusive right to one, for the whole machine.

A device is a GPU, a MIG device of one, or a CPU slot; an inherited affinity mask is a limit. One
lock file stands for one device. A training inherits the descriptor that holds it; the right ends
when the last copy is closed. Nothing here unlocks, and lock files are never removed: a removed one
can be held twice.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autohypothesis import system
from autohypothesis.engine.gpus import HIDDEN, usable_gpus
from autohypothesis.errors import LeaseError

LOCKS_VARIABLE = "AUTOHYPOTHESIS_LOCKS"
SHARED_FOLDER = "/run/lock/autohypothesis"
NVIDIA_NODES = "/dev/nvidia[0-9]*"
"""Device files of NVIDIA GPUs, which are there whether or not NVML answers."""
CHOOSING_FILE = "choosing.lock"
DEVICE_CHOICE_S = 10.0
"""Seconds to wait while other processes choose; then go on, since the lease decides anyway."""
LEASE_TAKEN_S = 5.0
"""Seconds that a shim may take from its start to its lease while others wait to choose."""
_LOOK_S = 0.004
_NOTE_BYTES = 4096
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_RETRY_S = 0.02


class Device(NamedTuple):
    """A device for trainings. `cores` pins a training, `uuid` is the name of a GPU, or of a MIG
    device, in NVML and CUDA; `parent` is the UUID of the GPU that a MIG device is a part of."""

    kind: Literal["cpu", "cuda"] = "cpu"
    uuid: str | None = None
    name: str = "CPU"
    cores: tuple[int, ...] | None = None
    parent: str | None = None

    @property
    def id(self) -> str:
        """The name in records: a GPU's UUID, or `cpu-<core>`."""
        return str(self.uuid) if self.kind == "cuda" else f"cpu-{(self.cores or (0,))[0]}"


class LockFolder(NamedTuple):
    """The folder of the lock files. `fallback` says why the machine-wide one is not used: other
    users' fleets are then not seen, which `doctor` reports."""

    path: str
    fallback: str | None = None


def lock_folder() -> LockFolder:
    """Return the folder of lock files, made when missing.

    `$AUTOHYPOTHESIS_LOCKS`, else /run/lock/autohypothesis, else a folder of this user.
    Raises LeaseError if the named folder, or the last resort, cannot be used.
    """
    named = os.environ.get(LOCKS_VARIABLE)
    shared = os.path.abspath(named) if named else SHARED_FOLDER
    try:
        _make_folder(shared, 0o1777)
        return LockFolder(shared)
    except LeaseError as error:
        if named:
            raise
        path = _own_folder()
        for folder in (os.path.dirname(path), path):
            _make_folder(folder, 0o700)
            if os.stat(folder).st_uid != os.getuid():
                raise LeaseError(
                    f"lock folder {folder} belongs to another user", hint=f"set {LOCKS_VARIABLE}"
                ) from error
        return LockFolder(path, fallback=error.problem)


def _own_folder() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/autohypothesis-{os.getuid()}"
    return os.path.join(runtime, "autohypothesis-locks")


def _make_folder(path: str, mode: int) -> None:
    problem = ""
    try:
        with suppress(FileExistsError):
            os.mkdir(path, mode)
            os.chmod(path, mode)  # past the umask
        if not stat.S_ISDIR(os.lstat(path).st_mode) or not os.access(path, os.W_OK | os.X_OK):
            problem = "is no folder that this user may write"
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    if problem:
        raise LeaseError(f"lock folder {path} {problem}", hint=f"set {LOCKS_VARIABLE}")


class Lease(NamedTuple):
    """The lock file that stands for a device; `name` is what messages call the device."""

    path: str
    name: str

    def try_acquire(self, holder: Mapping[str, Any], wait_s: float = 0.5) -> int | None:
        """Take the lease; return the descriptor that holds it, or None if another process keeps it
        for `wait_s` seconds. A child that inherits the descriptor holds the lease as well.

        `holder` is written into the file, beside this process and its start time, for the loser's
        message. Raises LeaseError if the file cannot be opened.
        """
        fd = self._open()
        give_up = time.monotonic() + wait_s
        while not _lock(fd, fcntl.LOCK_EX):
            if time.monotonic() >= give_up:
                os.close(fd)
                return None
            time.sleep(_RETRY_S)
        pid = os.getpid()
        note = {"pid": pid, "start": system.process_start(pid), **holder}
        with suppress(OSError):  # a full lock folder costs the holder its name, not the lease
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(note).encode()[:_NOTE_BYTES], 0)
        return fd

    def acquire(self, holder: Mapping[str, Any]) -> int:
        """Like `try_acquire`, but raises LeaseError that names the holder.

        A loser tries for half a second: the last holder may be closing, or be probed.
        """
        held = self.try_acquire(holder)
        if held is None:
            raise LeaseError(
                f"{self.name} is leased by {describe(self.holder())} ({self.path})",
                hint="run `python orchestrator.py runs` to see what is running",
            )
        return held

    def note(self) -> dict[str, Any]:
        """Return what the last holder wrote; whether it still holds the lease only the lock says.

        Takes no lock, so it disturbs no other process.
        """
        try:
            return _read_note(os.open(self.path, _READ))
        except OSError:
            return {}

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the lease: None if it is free, an empty dict if its holder is unnamed.

        Asks with a shared lock for an instant, which is why those who acquire try again.
        """
        try:
            fd = os.open(self.path, _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        if _lock(fd, fcntl.LOCK_SH):
            os.close(fd)
            return None
        return _read_note(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            # O_CREAT on another user's file in a sticky folder is refused even to root
            # (fs.protected_regular), so it is used only when there is no file.
            while True:
                with suppress(FileNotFoundError):
                    return os.open(self.path, flags)
                with suppress(FileExistsError):
                    fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                    os.fchmod(fd, 0o666)  # past the umask
                    return fd
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> LeaseError:
        return LeaseError(
            f"lock file {self.path} of {self.name} cannot be opened ({error.strerror})",
            hint="run `python orchestrator.py doctor`",
        )


def release(held: int) -> None:
    """Forget the holder's name and close this descriptor; inherited copies keep the lease."""
    try:
        os.ftruncate(held, 0)
    finally:
        os.close(held)


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _read_note(fd: int) -> dict[str, Any]:
    """Read what a holder wrote, and close `fd`."""
    note = None
    with suppress(OSError, ValueError, RecursionError):
        note = json.loads(os.pread(fd, _NOTE_BYTES, 0))
    os.close(fd)
    return note if isinstance(note, dict) else {}


def describe(holder: Mapping[str, Any] | None) -> str:
    """Return a holder in words, for messages."""
    if not holder:
        return "a process that left no name"
    named = [f"{key} {holder[key]}" for key in ("experiment_id", "repository") if holder.get(key)]
    return ", ".join([f"pid {holder.get('pid', '?')}", *named])


def lease_of(device: Device) -> Lease:
    """Return the lease of `device` on this machine."""
    file, name = device.id, f"CPU slot {device.id.removeprefix('cpu-')}"
    if device.kind == "cuda":
        file = "gpu-" + re.sub(r"[^A-Za-z0-9.-]", "_", device.id)
        name = f"{device.name} {device.uuid}"
    return Lease(os.path.join(lock_folder().path, f"{file}.lock"), name)


def experiments_of(repository: str) -> list[str]:
    """Return what runs for a repository now, as far as lock files name it. Makes no file."""
    named = os.environ.get(LOCKS_VARIABLE)
    folders = [os.path.abspath(named)] if named else [SHARED_FOLDER, _own_folder()]
    files = (file for folder in folders for file in sorted(Path(folder).glob("*.lock")))
    notes = (Lease(str(file), file.name).note() for file in files)
    ours = (note for note in notes if note.get("repository") == repository)
    return [str(note.get("experiment_id")) for note in ours]


def cpu_slots() -> list[Device]:
    """Return one CPU slot per physical core, pinned to that core's first thread.

    Two trainings on the two threads of one core would slow each other down.
    """
    return [Device(kind="cpu", name="CPU", cores=(core,)) for core in system.physical_cores()]


def best_kind() -> Literal["cpu", "cuda"]:
    """Return what a script is run on when nothing says what it is for.

    Raises:
        LeaseError: there is a GPU and NVML does not answer. Its work never falls back to the CPU.
    """
    found, why_none = usable_gpus()
    if not found and why_none != HIDDEN and (nodes := sorted(glob.glob(NVIDIA_NODES))):
        raise LeaseError(
            f"{nodes[0]} is there, but {why_none}",
            hint="see `nvidia-smi`; to use the CPU on purpose, set CUDA_VISIBLE_DEVICES to nothing",
        )
    return "cuda" if found else "cpu"


def devices(kind: Literal["cpu", "cuda"]) -> list[Device]:
    """Return every device of one kind that may be leased here.

    Raises:
        LeaseError: there is none. A GPU's work never falls back to the CPU.
    """
    if kind == "cpu":
        return cpu_slots()
    found, why_none = usable_gpus()
    if not found:
        raise LeaseError(
            f"the prepared profile needs a GPU and {why_none}",
            hint="run `python prepare.py --profile cpu` to work without one",
        )
    return [
        Device(kind="cuda", uuid=gpu.uuid, name=gpu.name, parent=gpu.parent or None)
        for gpu in found
    ]


def first_free(candidates: Iterable[Device]) -> Device:
    """Return the first device without a holder; inside `choosing` it stays free until it is taken.

    Raises:
        LeaseError: all are held; the message names the holder of each.
    """
    held = []
    for device in candidates:
        lease = lease_of(device)
        holder = lease.holder()
        if holder is None:
            return device
        held.append(f"{lease.name} is held by {describe(holder)}")
    raise LeaseError("; ".join(held) or "no device", hint="wait for one, or end its holder")


def count_free(kind: Literal["cpu", "cuda"] | None) -> int:
    """Return how many devices of a kind are free now. Raises LeaseError if there is none at all."""
    return sum(lease_of(device).holder() is None for device in devices(kind or best_kind()))


@contextmanager
def choosing(experiment_id: str) -> Iterator[None]:
    """Keep others on the machine from choosing, from `first_free` to `await_taken`.

    It only keeps two from choosing the same device. One that is held for too long, by a stopped
    process say, is passed over, and the one that loses the lease then fails as infrastructure.
    """
    file = Lease(os.path.join(lock_folder().path, CHOOSING_FILE), "the choice of a device")
    held = file.try_acquire({"experiment_id": experiment_id}, DEVICE_CHOICE_S)
    try:
        yield
    finally:
        if held is not None:
            release(held)


def await_taken(device: Device, experiment_id: str, ended: Callable[[], bool]) -> None:
    """Wait until the shim of `experiment_id` holds the lease of `device`, or has ended.

    `LEASE_TAKEN_S` at most: a shim that is slower than that still takes its lease, or loses it.
    """
    lease, until = lease_of(device), time.monotonic() + LEASE_TAKEN_S
    while time.monotonic() < until:
        if lease.note().get("experiment_id") == experiment_id or ended():
            return
        time.sleep(_LOOK_S)
