"""Devices by name: what is malformed, unknown or forbidden is said, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.gpus import all_gpus
from autohypothesis.errors import LeaseError, UsageError
from autohypothesis.fleet.roster.devices import choose

Machine = Callable[..., None]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "words",
    ["abc", "0;id", "/../x", "../x", "0,0", "-1", "", " ", "0,", ",", "00", "0 1", "1e3", "0x1",
     "٣", "0\n", "$(id)", "99999", "8", "GPU-nothere", "GPU-;id", "GPU-", "MIG-1234"],
)  # fmt: skip
def test_an_id_that_is_no_device_is_refused_by_name(words: str) -> None:
    if words == "0\n":
        assert [one.worker_id for one in choose(words)[0]] == ["gpu0"]
        return
    with pytest.raises(UsageError, match="--gpus"):
        choose(words)


@pytest.mark.usefixtures("machine")
def test_indices_become_uuids() -> None:
    (one, seven), _ = choose("7,1")
    assert (one.worker_id, one.gpu_id, one.kind) == ("gpu1", "1", "cuda")
    assert one.device.startswith("GPU-1111aaaa") and seven.device.startswith("GPU-7777aaaa")
    assert choose("GPU-7777aaaa,1") == choose("1,7"), "an index, a UUID or the beginning of one"
    assert len(choose()[0]) == 8 and choose("all") == choose("ALL ") == choose()
    assert choose("all", cpu_workers=1)[0] == [*choose()[0], *choose(cpu_workers=1)[0]]
    with pytest.raises(UsageError, match="GPU 1 twice"):
        choose("1,GPU-1111")


def test_a_prefix_of_two_uuids_is_not_guessed(machine: Machine) -> None:
    machine(devices=[{"uuid": "GPU-ab1"}, {"uuid": "GPU-ab2"}])
    with pytest.raises(UsageError, match="any of 0, 1"):
        choose("GPU-ab")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("mask", ["3,1", "GPU-3333,GPU-1111"])
def test_nothing_outside_an_inherited_mask_is_taken(
    monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [one.worker_id for one in choose()[0]] == ["gpu1", "gpu3"]
    assert [one.worker_id for one in choose("3")[0]] == ["gpu3"] and choose("all") == choose()
    with pytest.raises(UsageError, match=r"GPU-0000aaaa.* is outside CUDA_VISIBLE_DEVICES"):
        choose("0")


def test_mig_devices_are_named_by_uuid_or_number_and_their_gpu_never(machine: Machine) -> None:
    machine(devices=[{}, {"mig": [{}, None, {}]}, {"mig": []}])
    workers = choose()[0]
    assert [one.worker_id for one in workers] == ["gpu0", "gpu1-mig0", "gpu1-mig2"]
    assert [one.gpu_id for one in workers] == ["0", "1:0", "1:2"]
    assert [one.device[:8] for one in workers] == ["GPU-0000", "MIG-0000", "MIG-2222"]
    for words in ("1:2,1:0", "MIG-0000,MIG-2222", f"{workers[1].device},1:2"):
        assert choose(words)[0] == workers[1:]
    for words in ("1", "GPU-1111", "0,1"):
        with pytest.raises(UsageError, match="is in MIG mode") as refused:
            choose(words)
        assert "--gpus 1:0,1:2" in refused.value.hint and workers[2].device in refused.value.hint
    for words in ("1:1", "3", "0:0", "MIG-1"):
        with pytest.raises(UsageError, match="there is no"):
            choose(words)
    with pytest.raises(UsageError, match="GPU 2 is in MIG mode and has no MIG device"):
        choose("0,2")
    with pytest.raises(UsageError, match="GPU 1:0 twice"):
        choose("1:0,MIG-0000")


@pytest.mark.usefixtures("machine")
def test_gpus_that_somebody_has_hidden_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="outside"):
        choose("0")
    workers, notes = choose()
    assert [one.worker_id for one in workers] == ["cpu0", "cpu1"]
    assert "hides every GPU" in notes[0]
    with pytest.raises(UsageError, match=r"--gpus all: .*hides every GPU"):
        choose("all")


def test_without_a_driver_named_gpus_are_prepared_and_the_others_are_cores(
    machine: Machine, tmp_path: Path
) -> None:
    machine(driver=False)
    workers, notes = choose("0,GPU-AB12-cd")
    assert [(one.worker_id, one.gpu_id, one.device) for one in workers] == [
        ("gpu0", "0", ""), ("gpu-ab12-cd", "GPU-AB12-cd", ""),
    ]  # fmt: skip
    assert "Driver Not Loaded" in notes[0]
    workers, notes = choose()
    assert [(one.worker_id, one.gpu_id, one.device) for one in workers] == [
        ("cpu0", "0", "cpu-0"), ("cpu1", "2", "cpu-2"),
    ]  # fmt: skip
    assert "2 CPU lanes" in notes[0]
    (tmp_path / "nvidia0").touch()
    with pytest.raises(LeaseError, match="Driver Not Loaded"):
        choose()


@pytest.mark.usefixtures("machine")
def test_more_lanes_than_cores_are_refused() -> None:
    assert [one.worker_id for one in choose(cpu_workers=1)[0]] == ["cpu0"]
    for count in (3, -1, 0):
        with pytest.raises(UsageError, match=f"--cpu-workers {count}"):
            choose(cpu_workers=count)
    assert [one.worker_id for one in choose("0", cpu_workers=1)[0]] == ["gpu0", "cpu0"]


def test_what_is_on_a_device_is_listed(machine: Machine) -> None:
    machine(devices=[{"used_mb": 9000, "processes": [[77, 8500], [78, None]], "throttle": 0x44}])
    (found,), _ = all_gpus()
    assert (found.used_mb, found.processes) == (9000.0, [(77, 8500.0), (78, None)])
    assert set(found.throttle) == {"sw_power_cap", "hw_thermal"} and found.visible
