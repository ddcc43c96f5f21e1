# ruff: noqa: N802
"""A stand-in for NVML: one device whose state is a JSON file that the test writes."""

import json
import os
import time
from types import SimpleNamespace

STATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "state.json")


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 6: "Not Found", 15: "GPU is lost"}[value])
        self.value = value


def _state() -> dict:
    with open(STATE) as file:
        state = json.load(file)
    if state.get("hang"):
        time.sleep(3600)
    if state.get("error"):
        raise NVMLError(state["error"])
    return state


def nvmlInit() -> None:
    _state()


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    if uuid != "GPU-stand-in":
        raise NVMLError(6)
    return uuid


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:
    return SimpleNamespace(used=_state()["used_mb"] << 20, total=80 << 30)


def nvmlDeviceGetUtilizationRates(handle: str) -> SimpleNamespace:
    return SimpleNamespace(gpu=_state()["utilisation"])


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    if _state().get("old"):
        raise NVMLError(3)
    return int(time.monotonic() * 200_000)


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    return 200_000


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: str) -> int:
    return _state().get("throttle", 0)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb << 20)
        for pid, mb in _state()["processes"]
    ]
