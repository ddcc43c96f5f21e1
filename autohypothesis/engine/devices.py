"""What can be leased on this machine: GPUs by UUID, and CPU lanes, one physical core each.

An inherited `CUDA_VISIBLE_DEVICES` or affinity mask is a limit that somebody set: nothing outside
it is offered. Indices are never used to pin, since NVML counts in PCI order and CUDA does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from typing import Any, Literal

from autohypothesis import system
from autohypothesis.engine.launch import Device, Lease
from autohypothesis.engine.lease import (
    LeaseFile,
    describe,
    gpu_lock_path,
    lane_lock_path,
    lock_folder,
)
from autohypothesis.errors import LeaseError

MIB = 1 << 20
HIDDEN = "CUDA_VISIBLE_DEVICES hides every GPU"
NVIDIA_NODES = "/dev/nvidia[0-9]*"
"""What is there on a machine with an NVIDIA GPU, whether or not NVML answers."""
CHOOSING_FILE = "choosing.lock"
CHOOSING_S = 10.0
"""How long to wait for others to have chosen; then go on, since the lease decides in any case."""
TAKEN_S = 5.0
"""How long a shim may take from its start to its lease while others wait to choose."""
_LOOK_S = 0.004


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA device as NVML sees it."""

    index: int
    uuid: str
    name: str
    memory_mb: float


def gpus(environ: Mapping[str, str] | None = None) -> tuple[list[Gpu], str]:
    """The GPUs that this process may use, and why there are none (empty when there are)."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA driver answers: {error}"
    found, lost = [], ""
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_gpu(pynvml, index))
            except pynvml.NVMLError as error:  # one that fell off the bus is not the others' end
                lost = f"GPU {index} does not answer: {error}"
    except pynvml.NVMLError as error:
        return [], f"NVML lists no devices: {error}"
    finally:
        pynvml.nvmlShutdown()
    if not found:
        return [], lost or "NVML lists no devices"
    visible = _visible(found, (os.environ if environ is None else environ))
    return visible, "" if visible else HIDDEN


def cuda_version() -> str | None:
    """The newest CUDA that the driver can run, as `nvidia-smi` prints it; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = pynvml.nvmlSystemGetCudaDriverVersion()
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return f"{version // 1000}.{version % 1000 // 10}"


def _gpu(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    total = pynvml.nvmlDeviceGetMemoryInfo(handle).total / MIB
    uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
    return Gpu(index, _text(uuid), _text(name), total)


def _text(value: str | bytes) -> str:
    """Older bindings answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _visible(found: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """`found` inside an inherited mask, in the mask's order; it ends at the first unknown name."""
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return found
    chosen: list[Gpu] = []
    for word in (word.strip() for word in mask.split(",")):
        matching = [
            gpu
            for gpu in found
            if (word.isdigit() and int(word) == gpu.index)
            or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if len(matching) != 1:
            break
        chosen += matching
    return chosen


def lanes() -> list[Device]:
    """One CPU lane per physical core, pinned to that core's first thread.

    Two trainings on the two threads of one core would slow each other down.
    """
    return [Device(kind="cpu", name="CPU", cores=(core,)) for core in system.physical_cores()]


def best_kind() -> Literal["cpu", "cuda"]:
    """What a script is run on when nothing says what it is for.

    Raises:
        LeaseError: there is a GPU and NVML does not answer. Its work never falls back to the CPU.
    """
    found, why_none = gpus()
    if not found and why_none != HIDDEN and (nodes := sorted(glob(NVIDIA_NODES))):
        raise LeaseError(
            f"{nodes[0]} is there, but {why_none}",
            hint="see `nvidia-smi`; to use the CPU on purpose, set CUDA_VISIBLE_DEVICES to nothing",
        )
    return "cuda" if found else "cpu"


def devices(kind: Literal["cpu", "cuda"]) -> list[Device]:
    """Everything of one kind that may be leased here.

    Raises:
        LeaseError: there is none. A GPU's work never falls back to the CPU.
    """
    if kind == "cpu":
        return lanes()
    found, why_none = gpus()
    if not found:
        raise LeaseError(
            f"the prepared profile needs a GPU and {why_none}",
            hint="run `python prepare.py --profile cpu` to work without one",
        )
    return [Device(kind="cuda", uuid=gpu.uuid, name=gpu.name) for gpu in found]


def lease_of(device: Device) -> Lease:
    """The lock file that stands for `device` on this machine."""
    folder = lock_folder().path
    if device.kind == "cuda":
        return Lease(gpu_lock_path(folder, str(device.uuid)), f"{device.name} {device.uuid}")
    core = (device.cores or (0,))[0]
    return Lease(lane_lock_path(folder, core), f"CPU lane {core}")


def name_of(device: Device) -> str:
    """What a record calls the device: its UUID, or `cpu-<core>`."""
    return str(device.uuid) if device.kind == "cuda" else f"cpu-{(device.cores or (0,))[0]}"


def first_free(candidates: Iterable[Device]) -> Device:
    """The first device that nobody holds now; inside `choosing` it stays free until it is taken.

    Raises:
        LeaseError: all are held; the message names the holder of each.
    """
    held = []
    for device in candidates:
        lease = lease_of(device)
        holder = LeaseFile(lease.path, lease.name).holder()
        if holder is None:
            return device
        held.append(f"{lease.name} is held by {describe(holder)}")
    raise LeaseError("; ".join(held) or "no device", hint="wait for one, or end its holder")


def free(kind: Literal["cpu", "cuda"] | None) -> int:
    """How many devices of a kind nobody holds now.

    Raises:
        LeaseError: there is none of that kind.
    """
    leases = map(lease_of, devices(kind or best_kind()))
    return sum(LeaseFile(one.path, one.name).holder() is None for one in leases)


@contextmanager
def choosing(experiment_id: str) -> Iterator[None]:
    """While this is held nobody else on the machine chooses: from `first_free` to `await_taken`.

    It only keeps two from choosing the same device. One that is held for too long, by a stopped
    process say, is passed over, and whoever loses the lease then fails as infrastructure.
    """
    path = os.path.join(lock_folder().path, CHOOSING_FILE)
    held = LeaseFile(path, "the choice of a device").try_acquire(
        {"experiment_id": experiment_id}, CHOOSING_S
    )
    try:
        yield
    finally:
        if held is not None:
            held.release()


def await_taken(device: Device, experiment_id: str, ended: Callable[[], bool]) -> None:
    """Wait until the shim of `experiment_id` holds the lease of `device`, or has ended.

    `TAKEN_S` at most: a shim that is slower than that still takes its lease, or loses it.
    """
    lease = lease_of(device)
    file = LeaseFile(lease.path, lease.name)
    until = time.monotonic() + TAKEN_S
    while time.monotonic() < until:
        if file.note().get("experiment_id") == experiment_id or ended():
            return
        time.sleep(_LOOK_S)
