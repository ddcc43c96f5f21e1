"""Devices: nothing outside an inherited mask, no CPU in a GPU's place, one holder each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.engine import devices
from autohypothesis.engine.devices import usable_gpus
from autohypothesis.errors import LeaseError

Machine = Callable[..., None]


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
