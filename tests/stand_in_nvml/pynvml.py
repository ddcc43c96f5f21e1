# ruff: noqa: N802
"""A stand-in for NVML on a machine with eight GPUs, in the place of the real module (PYTHONPATH).

`$STAND_IN_GPUS` names a JSON file, else it is `gpus.json` beside this module: a shim passes on
where modules are, and no variable of ours. What the file says holds from the next call on, in
every process that runs with it; without one eight idle devices are there. Keys of the file:
`driver` (false: none answers) and `devices`, a list of objects with `uuid`, `name`, `memory_mb`,
`used_mb`, `processes` ([[pid, MiB], ...]), `throttle` (bits), `lost` (it has fallen off the bus),
`hang`, `mig`: a list of MIG devices with the same keys and `gi`, `ci` (null: a number without one).

A handle is a UUID. As in the real module, a MIG device answers for its name, memory and processes,
and refuses load, power, energy and clocks; a GPU in MIG mode refuses its load.
"""

import json
import os
import time
from types import SimpleNamespace

COUNT = 8
BESIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpus.json")
WORDS = {
    2: "Invalid Argument",
    3: "Not Supported",
    6: "Not Found",
    9: "Driver Not Loaded",
    15: "GPU is lost",
}


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


def _slices(device: dict) -> list[dict | None]:
    return [
        None if one is None else {
            "name": f"{device['name']} MIG 1g.10gb", "memory_mb": 9_856, "used_mb": 13,
            "processes": [], "gi": 7 + number, "ci": 0,
            "uuid": f"MIG-{number}{number}{number}{number}bbbb{device['uuid'][-28:]}", **one,
        }
        for number, one in enumerate(device.get("mig") or ())
    ]  # fmt: skip


def _device(uuid: str) -> dict:
    whole = _devices()
    found = [one for one in whole if one["uuid"] == uuid]
    found += [one for gpu in whole for one in _slices(gpu) if one and one["uuid"] == uuid]
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


def _whole(handle: str) -> dict:
    """The GPU; what MIG devices refuse is asked through this."""
    device = _device(handle)
    if "gi" in device:
        raise NVMLError(3)
    return device


def nvmlDeviceGetMigMode(handle: str) -> list[int]:
    device = _whole(handle)
    if "mig" not in device:
        raise NVMLError(3)
    return [int(device["mig"] is not None), 1]


def nvmlDeviceGetMaxMigDeviceCount(handle: str) -> int:
    return 7 if _whole(handle).get("mig") is not None else 0


def nvmlDeviceGetMigDeviceHandleByIndex(handle: str, index: int) -> str:
    slices = _slices(_whole(handle))
    if index >= len(slices) or slices[index] is None:
        raise NVMLError(6)
    return slices[index]["uuid"]


def nvmlDeviceGetGpuInstanceId(handle: str) -> int:
    return _instance(handle)["gi"]


def nvmlDeviceGetComputeInstanceId(handle: str) -> int:
    return _instance(handle)["ci"]


def nvmlDeviceGetAttributes(handle: str) -> SimpleNamespace:
    device = _instance(handle)
    return SimpleNamespace(gpuInstanceSliceCount=1, memorySizeMB=device["memory_mb"])


def _instance(handle: str) -> dict:
    device = _device(handle)
    if "gi" not in device:
        raise NVMLError(2)
    return device


def nvmlDeviceGetUtilizationRates(handle: str) -> SimpleNamespace:
    if _whole(handle).get("mig") is not None:
        raise NVMLError(3)
    return SimpleNamespace(gpu=_device(handle).get("utilisation", 0))


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    _whole(handle)
    return int(time.monotonic() * 200_000)


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    _whole(handle)
    return 200_000


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: str) -> int:
    return _whole(handle).get("throttle", 0)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb << 20)
        for pid, mb in _device(handle)["processes"]
    ]


def nvmlSystemGetCudaDriverVersion() -> int:
    _devices()
    return 12_040
