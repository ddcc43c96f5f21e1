"""Devices: nothing outside an inherited mask, no CPU in a GPU's place, one holder each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.engine import devices
from autohypothesis.engine.gpus import all_gpus, usable_gpus
from autohypothesis.engine.task import platform_key, short_device_name
from autohypothesis.errors import LeaseError

Machine = Callable[..., None]
UUID = [f"GPU-{n}{n}{n}{n}aaaa-0000-4000-8000-00000000000{n}" for n in range(8)]
MIG = [f"MIG-{n}{n}{n}{n}bbbb-0000-4000-8000-000000000001" for n in range(8)]
"""MIG devices of GPU 1."""


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
@pytest.mark.usefixtures("machine")
def test_nothing_outside_an_inherited_mask_is_offered(mask: str | None, seen: list[int]) -> None:
    found, why_none = usable_gpus({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    assert [gpu.index for gpu in found] == seen
    assert bool(why_none) == (not seen)


def test_work_for_a_gpu_never_falls_back_to_the_cpu(machine: Machine) -> None:
    machine(driver=False)
    with pytest.raises(LeaseError, match="Driver Not Loaded"):
        devices.devices("cuda")
    assert devices.best_kind() == "cpu"


@pytest.mark.parametrize("driver", [True, False])
def test_a_gpu_whose_driver_does_not_answer_is_no_reason_to_train_on_the_cpu(
    tmp_path: Path, machine: Machine, driver: bool
) -> None:
    (tmp_path / "nvidia0").touch()
    machine(driver=driver, devices=[])
    with pytest.raises(LeaseError, match="NVML" if driver else "Driver Not Loaded"):
        devices.best_kind()


@pytest.mark.usefixtures("machine")
def test_a_gpu_that_is_hidden_by_a_mask_stays_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia0").touch()
    assert devices.best_kind() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.best_kind() == "cpu"


@pytest.mark.usefixtures("machine")
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
    devices.release(first)
    devices.release(second)


def test_two_threads_of_one_core_are_one_cpu_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(
        system, "_read_word", lambda path: "0,2" if "cpu0/" in path or "cpu2/" in path else "1,3"
    )
    assert [slot.cores for slot in devices.cpu_slots()] == [(0,), (1,)]


# ── MIG devices ─────────────────────────────────────────────────────────────────────────────

DIVIDED = [{}, {"mig": [{}, None, {"used_mb": 99}]}, {"mig": []}, {"mig": None}]
"""GPU 1 has MIG devices 0 and 2, GPU 2 is in MIG mode without one, GPU 3 may be divided."""


def test_mig_devices_stand_in_the_place_of_their_gpu(machine: Machine) -> None:
    machine(devices=DIVIDED)
    found, _ = all_gpus({})
    assert [gpu.number for gpu in found] == ["0", "1:0", "1:2", "2", "3"]
    first, second = found[1:3]
    assert first.uuid.startswith("MIG-") and first.parent == UUID[1] and first.mig == 0
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert (second.memory_mb, second.used_mb) == (9_856, 99)
    assert (second.utilisation, second.energy_j, second.power_w) == (None, None, None)
    assert found[3].complaint.startswith("GPU 2 is in MIG mode and has no MIG device: see")
    offered = devices.devices("cuda")
    assert [device.uuid for device in offered] == [found[at].uuid for at in (0, 1, 2, 4)]
    assert len({devices.lease_of(device).path for device in offered}) == 4


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (MIG[2], ["1:2"]),
        (f"{MIG[2]},{MIG[0]},0", ["1:2", "1:0", "0"]),
        (f"MIG-{UUID[1]}/9/0", ["1:2"]),
        ("MIG-2222", ["1:2"]),
        ("1", ["1:0", "1:2"]),
        (UUID[1], ["1:0", "1:2"]),
        (f"MIG-{UUID[1]}", []),
        (f"MIG-{UUID[1]}/1/0", []),
        ("MIG-9", []),
        (f"0,MIG-no,{MIG[0]}", ["0"]),
        ("1:0", []),
    ],
)
def test_a_mig_mask_offers_what_it_names(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, mask: str, seen: list[str]
) -> None:
    machine(devices=DIVIDED)
    found, why_none = usable_gpus({"CUDA_VISIBLE_DEVICES": mask})
    assert [gpu.number for gpu in found] == seen
    assert bool(why_none) == (not seen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert sum(gpu.visible for gpu in all_gpus()[0]) == len(seen)


def test_a_driver_that_names_a_mig_device_like_its_gpu_does_not_hide_its_size(
    machine: Machine,
) -> None:
    machine(devices=[{"mig": [{"name": "NVIDIA H100 80GB HBM3", "memory_mb": 20_096}]}])
    (slice_,), _ = all_gpus()
    assert slice_.name == "NVIDIA H100 80GB HBM3 MIG 1g.20gb"


def test_a_mig_device_that_does_not_answer_hides_no_other(machine: Machine) -> None:
    machine(devices=[{"mig": [{"lost": True}, {}]}])
    lost, found = all_gpus()[0]
    assert lost.problem and not found.problem and found.number == "0:1"


def test_a_slice_and_a_whole_card_are_two_platforms() -> None:
    keys = {
        platform_key(
            device_name=name, profile_hash="", data_hash="", task_hash="", budget_seconds=1,
            clock="wall",
        )
        for name in ("NVIDIA H100", "NVIDIA H100 MIG 1g.10gb", "NVIDIA H100 MIG 2g.20gb")
    }  # fmt: skip
    assert len(keys) == 3
    assert short_device_name("NVIDIA H100 80GB HBM3 MIG 1g.10gb") == "H100-MIG-1g.10gb"
