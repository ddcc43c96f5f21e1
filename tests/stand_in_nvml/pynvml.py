# ruff: noqa: N802
"""A stand-in for NVML on a machine with eight GPUs, in the place of the real module (PYTHONPATH).

`$STAND_IN_GPUS` names a JSON file, else it is `gpus.json` beside this module: a shim passes on
where modules are, and no variable of ours. What the file says holds from the next call on, in
every process that runs with it; without one eight idle devices are there. Keys of the file:
`driver` (false: none answers) and `devices`, a list of objects with `uuid`, `name`, `memory_mb`,
`used_mb`, `processes` ([[pid, MiB], ...]), `throttle` (bits), `lost` (it has fallen off the bus),
`hang`.
"""

import json
import os
import time
from types import SimpleNamespace

COUNT = 8
BESIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpus.json")
WORDS = {3: "Not Supported", 6: "Not Found", 9: "Driver Not Loaded", 15: "GPU is lost"}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(WORDS[value])
        self.value = value


def idle(index: int) -> dict:
    return {
        "uuid": f"GPU-{index}{index}{index}{index}aaaa-0000-4000-8000-00000000000{index}",
        "name": "NVIDIA H100 80GB HBM3", "memory_mb": 81_559, "used_mb": 500, "processes": [],
    }  # fmt: skip


def _devices() -> list[dict]:
    path = os.environ.get("STAND_IN_GPUS", BESIDE)
    state = {}
    if os.path.exists(path):
        with open(path) as file:
            state = json.load(file)
    if state.get("driver") is False:
        raise NVMLError(9)
    named = state.get("devices")
    if named is None:
        return [idle(index) for index in range(COUNT)]
    return [{**idle(index), **one} for index, one in enumerate(named)]


def _device(uuid: str) -> dict:
    found = [one for one in _devices() if one["uuid"] == uuid]
    if not found:
        raise NVMLError(6)
    if found[0].get("hang"):
        time.sleep(3600)
    if found[0].get("lost"):
        raise NVMLError(15)
    return found[0]


def nvmlInit() -> None:
    _devices()


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_devices())


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    return _device(_devices()[index]["uuid"])["uuid"]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    return _device(uuid)["uuid"]


def nvmlDeviceGetUUID(handle: str) -> str:
    return _device(handle)["uuid"]


def nvmlDeviceGetName(handle: str) -> str:
    return _device(handle)["name"]


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:
    device = _device(handle)
    return SimpleNamespace(used=device["used_mb"] << 20, total=device["memory_mb"] << 20)


def nvmlDeviceGetUtilizationRates(handle: str) -> SimpleNamespace:
    return SimpleNamespace(gpu=_device(handle).get("utilisation", 0))


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    _device(handle)
    return int(time.monotonic() * 200_000)


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    _device(handle)
    return 200_000


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: str) -> int:
    return _device(handle).get("throttle", 0)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb << 20)
        for pid, mb in _device(handle)["processes"]
    ]


def nvmlSystemGetCudaDriverVersion() -> int:
    _devices()
    return 12_040
