"""Devices: nothing outside an inherited mask, no CPU in a GPU's place, one holder each."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autohypothesis import system
from autohypothesis.engine import devices
from autohypothesis.errors import LeaseError


class NVMLError(Exception):
    pass


def nvml(names: list[str], *, driver: bool = True) -> SimpleNamespace:
    """What NVML answers on a machine with these GPUs."""

    def init() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 << 30),
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}aaa".encode(),  # older bindings: bytes
        nvmlDeviceGetName=lambda handle: names[handle],
    )


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(["NVIDIA H100 80GB HBM3"] * 8))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("3,1", [3, 1]),
        ("GPU-5", [5]),
        ("0,9,1", [0]),
        ("", []),
        ("-1", []),
        ("0,no", [0]),
    ],
)
@pytest.mark.usefixtures("eight")
def test_nothing_outside_an_inherited_mask_is_offered(mask: str | None, seen: list[int]) -> None:
    found, why_none = devices.gpus({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    assert [gpu.index for gpu in found] == seen
    assert bool(why_none) == (not seen)


def test_work_for_a_gpu_never_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], driver=False))
    with pytest.raises(LeaseError, match="Driver Not Loaded"):
        devices.devices("cuda")
    monkeypatch.setattr(devices, "NVIDIA_NODES", "/no/such/nvidia[0-9]*")
    assert devices.best_kind() == "cpu"


@pytest.mark.parametrize("driver", [True, False])
def test_a_gpu_whose_driver_does_not_answer_is_no_reason_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "NVIDIA_NODES", f"{tmp_path}/nvidia[0-9]*")
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], driver=driver))
    with pytest.raises(LeaseError, match="NVML" if driver else "Driver Not Loaded"):
        devices.best_kind()


@pytest.mark.usefixtures("eight")
def test_a_gpu_that_somebody_has_hidden_stays_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "NVIDIA_NODES", f"{tmp_path}/nvidia[0-9]*")
    assert devices.best_kind() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.best_kind() == "cpu"


@pytest.mark.usefixtures("eight")
def test_a_device_that_is_held_is_passed_over_and_its_holder_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOHYPOTHESIS_LOCKS", str(tmp_path))
    offered = devices.devices("cuda")[:2]
    leases = [devices.lease_of(device) for device in offered]
    first = leases[0].acquire({"experiment_id": "other-1"})
    assert devices.first_free(offered) == offered[1]
    second = leases[1].acquire({"experiment_id": "other-2"})
    with pytest.raises(LeaseError, match=r"other-1.*other-2"):
        devices.first_free(offered)
    first.release()
    second.release()


def test_two_threads_of_one_core_are_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(
        system, "_read_word", lambda path: "0,2" if "cpu0/" in path or "cpu2/" in path else "1,3"
    )
    assert [lane.cores for lane in devices.cpu_slots()] == [(0,), (1,)]
