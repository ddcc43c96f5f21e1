"""GPUs as NVML describes them, and their MIG devices.

An inherited `CUDA_VISIBLE_DEVICES` is a limit: nothing outside it is offered. Indices never pin a
device, since NVML counts in PCI order and CUDA does not. A GPU in MIG mode runs nothing itself: in
its place stand its MIG devices, each with a UUID of its own. NVML tells the memory of a MIG device
and what computes there, and neither its load nor its energy.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from autohypothesis import system

MIB = 1 << 20
HIDDEN = "CUDA_VISIBLE_DEVICES hides every GPU"
NO_MIG_DEVICE = (
    "is in MIG mode and has no MIG device: see `nvidia-smi mig -lgip`, then"
    " `nvidia-smi mig -cgi PROFILE -C`"
)
SILENCE_S = 30.0  # an answer takes a millisecond; after this the driver hangs
_LOST = {9, 15, 16, 999}  # driver not loaded, GPU is lost, reset required, unknown
_THROTTLE = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
}


class Gpu(NamedTuple):
    """One GPU at one moment. Memory in MiB; None: the device has no such reading.

    Attributes:
        index: of the GPU, as NVML counts; a MIG device has that of its GPU.
        processes: pid and memory of each compute process; in a container pids may be of another
            namespace.
        throttle: why it is slower than it could be.
        visible: whether the inherited mask lets this process use it.
        problem: the error of NVML; empty when it answered.
        lost: whether that error means that the device is gone.
        monotonic: the time of the reading.
        mig: number of a MIG device on its GPU; None for a whole one.
        parent: UUID of the GPU of a MIG device.
        alias: the name that drivers before R470 gave a MIG device: `MIG-GPU-UUID/3/0`.
    """

    index: int = -1  # type: ignore[assignment]
    uuid: str = ""
    name: str = ""
    memory_mb: float = 0.0
    used_mb: float = 0.0
    processes: Sequence[tuple[int, float | None]] = ()
    throttle: Sequence[str] = ()
    utilisation: float | None = None
    energy_j: float | None = None
    power_w: float | None = None
    visible: bool = True
    problem: str = ""
    lost: bool = False
    monotonic: float = 0.0
    mig: int | None = None
    parent: str = ""
    alias: str = ""

    @property
    def number(self) -> str:
        """Return `2` for a GPU, `2:0` for the first MIG device of it."""
        return str(self.index) if self.mig is None else f"{self.index}:{self.mig}"

    @property
    def complaint(self) -> str:
        """Return why it cannot be used, as a sentence; "" where it can."""
        if self.problem and self.problem != NO_MIG_DEVICE:
            return f"GPU {self.number} does not answer: {self.problem}"
        return self.problem and f"GPU {self.number} {self.problem}"

    def is_named(self, word: str) -> bool:
        """Return whether a number, a UUID, the beginning of one, or the older name of a MIG device
        is its."""
        names = [name.lower() for name in (self.uuid, self.alias) if name]
        is_uuid = word.upper().startswith(("GPU-", "MIG-"))
        return word == self.number or (
            is_uuid and any(name.startswith(word.lower()) for name in names)
        )


def all_gpus(
    environ: Mapping[str, str] | None = None, *, measured: bool = True
) -> tuple[list[Gpu], str]:
    """Return every GPU of this machine, MIG devices in the place of a GPU that is in MIG mode, and
    why there are none (empty when there are).

    A device that does not answer is listed with its problem, and hides no other. Without
    `measured`, which costs some milliseconds for each, memory in use and load are not read.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA driver answers: {error}"
    try:
        count = pynvml.nvmlDeviceGetCount()
        found = [gpu for index in range(count) for gpu in _read_index(pynvml, index, measured)]
    except pynvml.NVMLError as error:
        return [], f"NVML lists no devices: {error}"
    finally:
        pynvml.nvmlShutdown()
    allowed = {gpu.uuid for gpu in _masked(found, environ)}
    return [gpu._replace(visible=gpu.uuid in allowed) for gpu in found], ""


def usable_gpus(environ: Mapping[str, str] | None = None) -> tuple[list[Gpu], str]:
    """Return the GPUs that this process may use, in the order of an inherited mask, and why there
    are none (empty when there are)."""
    found, why_none = all_gpus(environ, measured=False)
    if all(gpu.problem for gpu in found):
        lost = [gpu.complaint for gpu in found]
        return [], why_none or (lost[-1] if lost else "NVML lists no devices")
    usable = _masked(found, environ)
    return usable, "" if usable else HIDDEN


def cuda_version() -> str | None:
    """Return the newest CUDA that the driver runs, as `nvidia-smi` prints it; None: no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _masked(found: list[Gpu], environ: Mapping[str, str] | None) -> list[Gpu]:
    """Return what CUDA shows inside the mask: it ends at the first name that is not there.

    A GPU in MIG mode in the mask stands for its MIG devices: CUDA shows the first of them, and a
    training is shown the one that it has leased.
    """
    found = [gpu for gpu in found if not gpu.problem]
    mask = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return found
    chosen: list[Gpu] = []
    for word in map(str.strip, mask.split(",")):
        parts = mig_devices_of(word, found)  # `1:0` is a name of ours, which CUDA does not know
        matching = parts or [gpu for gpu in found if ":" not in word and gpu.is_named(word)]
        if len({gpu.parent for gpu in parts} or matching) != 1:
            break
        chosen += [gpu for gpu in matching if gpu not in chosen]
    return chosen


def _read_index(nvml: Any, index: int, measured: bool) -> Iterator[Gpu]:
    """Yield the GPU at `index`; its MIG devices where it is in MIG mode."""
    gpu = Gpu(index=index)
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = gpu._replace(uuid=nvml.nvmlDeviceGetUUID(handle), name=nvml.nvmlDeviceGetName(handle))
        if _is_in_mig_mode(nvml, handle):
            yield from _mig_devices(nvml, handle, gpu, measured)
        else:
            yield _read(nvml, handle, gpu, measured)
    except nvml.NVMLError as error:
        yield gpu._replace(problem=str(error))


def _read(nvml: Any, handle: Any, gpu: Gpu, measured: bool) -> Gpu:
    if measured:
        return _measured(nvml, handle, gpu)
    return gpu._replace(memory_mb=nvml.nvmlDeviceGetMemoryInfo(handle).total / MIB)


def _is_in_mig_mode(nvml: Any, handle: Any) -> bool:
    """Return whether the GPU is divided now; a mode that waits for a reset does not count."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in _LOST:
            raise
        return False  # a GPU, or a driver, without MIG


def _mig_devices(nvml: Any, handle: Any, gpu: Gpu, measured: bool) -> Iterator[Gpu]:
    """Yield the MIG devices of a GPU, whose numbers may have gaps; the GPU with what is wrong
    where it has none."""
    count = 0
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            inner = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in (2, 6):  # invalid argument, not found: a gap
                continue
            raise
        count += 1
        slice_ = Gpu(index=gpu.index, mig=number, parent=gpu.uuid)
        try:
            gi = nvml.nvmlDeviceGetGpuInstanceId(inner)
            ci = nvml.nvmlDeviceGetComputeInstanceId(inner)
            slice_ = slice_._replace(
                uuid=nvml.nvmlDeviceGetUUID(inner),
                name=_mig_name(nvml, inner, gpu.name),
                alias=f"MIG-{gpu.uuid}/{gi}/{ci}",
            )
            yield _read(nvml, inner, slice_, measured)
        except nvml.NVMLError as error:
            yield slice_._replace(problem=str(error))
    if not count:
        yield gpu._replace(problem=NO_MIG_DEVICE)


def _mig_name(nvml: Any, handle: Any, whole: str) -> str:
    """Return the name of a MIG device with its profile, which some drivers leave out."""
    name = str(nvml.nvmlDeviceGetName(handle))
    if " MIG " in name:
        return name
    size = nvml.nvmlDeviceGetAttributes(handle)
    return f"{whole} MIG {size.gpuInstanceSliceCount}g.{round(size.memorySizeMB / 1024)}gb"


def mig_devices_of(word: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the MIG devices of the GPU in MIG mode that an index or a UUID names; none for any
    other GPU."""
    return [
        gpu
        for gpu in gpus
        if gpu.mig is not None
        and (word == str(gpu.index) or (word and gpu.parent.lower().startswith(word.lower())))
    ]


def _measured(nvml: Any, handle: Any, gpu: Gpu) -> Gpu:
    """Return `gpu` with all its readings. Raises NVMLError when the device does not answer."""

    def optional(name: str) -> Any:
        try:
            return getattr(nvml, name)(handle)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in _LOST:
                raise
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    load = optional("nvmlDeviceGetUtilizationRates")
    energy = optional("nvmlDeviceGetTotalEnergyConsumption")
    power = optional("nvmlDeviceGetPowerUsage")
    throttle = optional("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    running = optional("nvmlDeviceGetComputeRunningProcesses") or ()
    return gpu._replace(
        memory_mb=memory.total / MIB,
        used_mb=memory.used / MIB,
        processes=[(process.pid, _scaled(process.usedGpuMemory, MIB)) for process in running],
        throttle=[name for bit, name in _THROTTLE.items() if throttle & bit],
        utilisation=None if load is None else load.gpu,
        energy_j=_scaled(energy, 1e3),
        power_w=_scaled(power, 1e3),
        monotonic=time.monotonic(),
    )


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value / unit


class GpuSampler:
    """A child process that asks NVML about one GPU, since a driver may hang."""

    def __init__(self, uuid: str, close: Sequence[int] = ()) -> None:
        """Start the child; `close` are descriptors that it must not hold, the lease first."""
        child_asked, self._ask = os.pipe()
        self._answers, child_answer = os.pipe()
        parent = os.getpid()
        self._uuid = uuid
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._ask, self._answers, *close):
                os.close(fd)
            _serve(uuid, parent, child_asked, child_answer)
        os.close(child_asked)
        os.close(child_answer)
        os.set_blocking(self._answers, False)
        self._buffer = b""
        self._asked_at: float | None = None

    def request(self) -> None:
        """Ask for a sample, unless an answer is due."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with suppress(OSError):
                os.write(self._ask, b"\n")

    def take(self) -> Gpu | None:
        """Return the answer if it is there; one with a problem if it is overdue."""
        if self._asked_at is None:
            return None
        try:
            data = os.read(self._answers, 1 << 20)
        except BlockingIOError:
            overdue = time.monotonic() - self._asked_at >= SILENCE_S
            return self._silent(SILENCE_S) if overdue else None
        if not data:
            return Gpu(uuid=self._uuid, problem="the process that asks NVML ended")
        self._buffer += data
        if b"\n" not in self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._asked_at = None
        return Gpu(*json.loads(line))

    def wait(self, timeout_s: float) -> Gpu:
        """Ask, and return the answer."""
        self.request()
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            select.select([self._answers], [], [], min(left, 0.5))
            if (sample := self.take()) is not None:
                return sample
        return self._silent(timeout_s)

    def _silent(self, seconds: float) -> Gpu:
        problem = f"NVML has not answered for {seconds:g} s"
        return Gpu(uuid=self._uuid, problem=problem, lost=True)

    def close(self) -> None:
        """End the child without waiting for one that hangs in the driver."""
        os.close(self._ask)
        os.close(self._answers)
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        for _ in range(50):
            with suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    time.sleep(0.01)
                    continue
            return


def _serve(uuid: str, parent: int, asked: int, answer: int) -> None:
    """Be the child: write one line of JSON for every byte read. Never returns."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        system.die_with_parent(parent)
        system.set_process_name("ah-nvml")
        handle = None
        while os.read(asked, 1):
            try:
                import pynvml

                if handle is None:
                    pynvml.nvmlInit()
                    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                sample = _measured(pynvml, handle, Gpu(uuid=uuid))
            except Exception as error:
                # The boundary to the driver: whatever it says is evidence about the device.
                lost = getattr(error, "value", None) in _LOST
                words = f"{uuid}: {type(error).__name__}: {error}"
                sample = Gpu(uuid=uuid, problem=words, lost=lost)
            os.write(answer, json.dumps(sample).encode() + b"\n")
    except OSError:
        pass  # the shim has gone
    finally:
        os._exit(0)
