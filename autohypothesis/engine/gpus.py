"""NVIDIA GPUs as NVML describes them: a list of all, and the samples of one while it is leased."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from autohypothesis import system

MIB = 1 << 20
HIDDEN = "CUDA_VISIBLE_DEVICES hides every GPU"
SILENCE_S = 30.0  # an answer takes a millisecond; after this the driver hangs
GROWN_MB = 64.0  # a context alone is larger; smaller changes are no training
BACK_MB = 256.0  # what a driver may keep after a training has gone
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
        processes: pid and memory of each compute process; in a container pids may be of another
            namespace.
        throttle: why it is slower than it could be.
        visible: whether the inherited mask lets this process use it.
        problem: the error of NVML; empty when it answered.
        lost: whether that error means that the device is gone.
        monotonic: the time of the reading.
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


def all_gpus(
    environ: Mapping[str, str] | None = None, *, measured: bool = True
) -> tuple[list[Gpu], str]:
    """Return every GPU of this machine, and why there are none (empty when there are).

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
        found = [_read_index(pynvml, index, measured) for index in range(count)]
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
        lost = [f"GPU {gpu.index} does not answer: {gpu.problem}" for gpu in found]
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
    """Return what CUDA shows inside the mask: it ends at the first name that is not there."""
    found = [gpu for gpu in found if not gpu.problem]
    mask = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return found
    chosen: list[Gpu] = []
    for word in map(str.strip, mask.split(",")):
        matching = [
            gpu
            for gpu in found
            if word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if len(matching) != 1:
            break
        chosen += matching
    return chosen


def _read_index(nvml: Any, index: int, measured: bool) -> Gpu:
    gpu = Gpu(index=index)
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        gpu = gpu._replace(uuid=_text(uuid), name=_text(name))
        if measured:
            return _measured(nvml, handle, gpu)
        return gpu._replace(memory_mb=nvml.nvmlDeviceGetMemoryInfo(handle).total / MIB)
    except nvml.NVMLError as error:
        return gpu._replace(problem=str(error))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings answer in bytes


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
        processes=[
            (int(one.pid), None if one.usedGpuMemory is None else one.usedGpuMemory / MIB)
            for one in running
        ],
        throttle=[name for bit, name in _THROTTLE.items() if throttle & bit],
        utilisation=None if load is None else load.gpu,
        energy_j=None if energy is None else energy / 1e3,
        power_w=None if power is None else power / 1e3,
        monotonic=time.monotonic(),
    )


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
