"""A GPU's memory, load and energy while it is leased, through NVML.

NVML is asked by a child of the shim, one request at a time: a driver that has lost its device can
hang a caller for ever, and a shim that hangs keeps no deadline. `DeviceRecord` is the pure part:
samples in, evidence out.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Collection, Sequence
from typing import Any

from autohypothesis import system

MIB = 1 << 20
SILENCE_S = 30.0  # an answer takes a millisecond; after this the driver hangs
GROWN_MB = 64.0  # a context alone is larger; smaller changes are nobody's training
BACK_MB = 256.0  # what a driver may keep after a training has gone
_LOST = {9, 15, 16, 999}  # driver not loaded, GPU is lost, reset required, unknown
_THROTTLE = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
}

Sample = dict[str, Any]


class NvmlMeter:
    """The child that asks NVML about one device. `fd` is readable when an answer is there."""

    def __init__(self, uuid: str, close: Sequence[int] = ()) -> None:
        """Start the child; `close` are descriptors that it must not hold, the lease first."""
        asked, self._ask = os.pipe()
        self.fd, answer = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._ask, self.fd, *close):
                os.close(fd)
            _serve(uuid, parent, asked, answer)
        os.close(asked)
        os.close(answer)
        os.set_blocking(self.fd, False)
        self._buffer = b""
        self._asked_at: float | None = None

    def request(self) -> None:
        """Ask for a sample, unless an answer is still due."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(OSError):
                os.write(self._ask, b"\n")

    def take(self) -> Sample | None:
        """The answer if it is there; a sample with `error` if it is overdue or the child died."""
        if self._asked_at is None:
            return None
        try:
            data = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            if time.monotonic() - self._asked_at < SILENCE_S:
                return None
            return _failed(f"NVML has not answered for {SILENCE_S:g} s", lost=True)
        if not data:
            return _failed("the process that asks NVML ended", lost=False)
        self._buffer += data
        if b"\n" not in self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._asked_at = None
        sample: Sample = json.loads(line)
        return sample

    def wait(self, timeout_s: float) -> Sample:
        """Ask and wait for the answer."""
        self.request()
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            select.select([self.fd], [], [], min(left, 0.5))
            if (sample := self.take()) is not None:
                return sample
        return _failed(f"NVML has not answered for {timeout_s:g} s", lost=True)

    def close(self) -> None:
        """End the child without waiting for one that hangs in the driver."""
        os.close(self._ask)
        os.close(self.fd)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        for _ in range(50):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    time.sleep(0.01)
                    continue
            return


def _failed(problem: str, *, lost: bool) -> Sample:
    return {"error": problem, "lost": lost}


def _serve(uuid: str, parent: int, asked: int, answer: int) -> None:
    """The child's side: one line of JSON for every byte asked. Never returns."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        system.die_with_parent(parent)
        system.set_process_name("ah-nvml")
        probe = _Probe(uuid)
        while os.read(asked, 1):
            os.write(answer, json.dumps(probe.sample()).encode() + b"\n")
    except OSError:
        pass  # the shim has gone
    finally:
        os._exit(0)


class _Probe:
    """One device through pynvml; a failure becomes a sample with `error`."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._nvml: Any = None
        self._handle: Any = None

    def sample(self) -> Sample:
        try:
            if self._handle is None:
                import pynvml

                self._nvml = pynvml
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            return self._read()
        except Exception as error:
            # The boundary to the driver: whatever it says is evidence about the device.
            lost = getattr(error, "value", None) in _LOST
            return _failed(f"{self._uuid}: {type(error).__name__}: {error}", lost=lost)

    def _read(self) -> Sample:
        nvml, handle = self._nvml, self._handle
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        rates = self._optional("nvmlDeviceGetUtilizationRates")
        energy = self._optional("nvmlDeviceGetTotalEnergyConsumption")
        power = self._optional("nvmlDeviceGetPowerUsage")
        processes = self._optional("nvmlDeviceGetComputeRunningProcesses")
        return {
            "t": time.monotonic(),
            "used_mb": memory.used / MIB,
            "utilisation": None if rates is None else rates.gpu,
            "energy_j": None if energy is None else energy / 1e3,
            "power_w": None if power is None else power / 1e3,
            "throttle": self._optional("nvmlDeviceGetCurrentClocksThrottleReasons"),
            "processes": [[p.pid, (p.usedGpuMemory or 0) / MIB] for p in processes or ()],
        }

    def _optional(self, name: str) -> Any:
        """A reading that not every device has; a lost device is still an error."""
        try:
            return getattr(self._nvml, name)(self._handle)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) in _LOST:
                raise
            return None


class DeviceRecord:
    """What the samples of one lease add up to. The first is the state before the training."""

    def __init__(self, baseline: Sample) -> None:
        self.error: str | None = baseline.get("error")
        self.lost: bool = bool(baseline.get("lost"))
        self.peak_mb: float | None = None
        self.not_back: dict[str, float] | None = None
        self._first = self._last = baseline
        self._before = dict(map(tuple, baseline.get("processes", ())))
        self._grown: dict[int, list[float]] = {}
        self._load: list[float] = []
        self._joules = 0.0
        self._throttled: dict[str, int] = {}
        self._samples = 0
        self._ours_seen = False

    def take(self, sample: Sample, ours: Collection[int]) -> None:
        """A sample during the lease; `ours` are all pids that the tree has had."""
        if sample.get("error"):
            self.error = self.error or sample["error"]
            self.lost = self.lost or bool(sample["lost"])
            return
        self._samples += 1
        self._add_up(sample)
        processes: list[list[float]] = sample["processes"]
        mine = [mb for pid, mb in processes if pid in ours]
        self._ours_seen = self._ours_seen or bool(mine)
        used = sum(mine) or sample["used_mb"] - self._first.get("used_mb", 0.0)
        self.peak_mb = max(self.peak_mb or 0.0, used)
        for pid, mb in processes:
            grown = mb - self._before.get(pid, 0.0)
            if pid not in ours and grown > GROWN_MB:
                self._grown.setdefault(int(pid), []).append(grown)
        self._last = sample

    def _add_up(self, sample: Sample) -> None:
        if sample["utilisation"] is not None:
            self._load.append(sample["utilisation"])
        if sample["power_w"] is not None and "t" in self._last:
            self._joules += sample["power_w"] * (sample["t"] - self._last["t"])
        for bit, name in _THROTTLE.items():
            if (sample["throttle"] or 0) & bit:
                self._throttled[name] = self._throttled.get(name, 0) + 1

    def is_back(self, sample: Sample) -> bool:
        """After the training: whether the device's memory is what it was before."""
        if sample.get("error"):
            self.take(sample, ())
            return False
        before, now = self._first.get("used_mb", 0.0), sample["used_mb"]
        self.not_back = None if now - before <= BACK_MB else {"before_mb": before, "after_mb": now}
        return self.not_back is None

    def foreign(self) -> list[dict[str, float]]:
        """Foreign compute: processes whose memory grew since the lease, in two samples or more.

        In a container NVML may give pids of another namespace. If none of ours was ever seen, a
        process that came after the lease may be ours, and only growth of an older one counts.
        """
        return [
            {"pid": pid, "grown_mb": max(sizes)}
            for pid, sizes in sorted(self._grown.items())
            if len(sizes) >= 2 and (self._ours_seen or pid in self._before)
        ]

    def energy_joules(self) -> float | None:
        """From the device's own counter, else the sum of power over time."""
        first, last = self._first.get("energy_j"), self._last.get("energy_j")
        if first is not None and last is not None:
            return float(last - first)
        return self._joules or None

    def utilisation(self) -> float | None:
        """Mean load in per cent."""
        return sum(self._load) / len(self._load) if self._load else None

    def throttled(self) -> dict[str, float]:
        """The share of samples for each reason that slowed the device."""
        return {name: count / self._samples for name, count in self._throttled.items()}
