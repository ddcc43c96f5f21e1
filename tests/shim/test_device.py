"""What a GPU says while it is leased, with a stand-in for NVML."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine import failures
from autohypothesis.engine.devices import Device
from autohypothesis.engine.gpus import Gpu
from autohypothesis.engine.meters import GpuRecord
from tests.conftest import ROOT, wait_until
from tests.shim.conftest import Start

GPU = Device("cuda", "GPU-stand-in", "H100")


class StandIn:
    """The device of the stand-in module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "tests" / "stand_in_nvml" / "pynvml.py", folder / "pynvml.py")
        self.set()

    def set(self, **changes: object) -> None:
        device = {"uuid": GPU.uuid, "used_mb": 500, "utilisation": 90, **changes}
        (self.folder / "part").write_text(json.dumps({"devices": [device]}))
        (self.folder / "part").rename(self.folder / "gpus.json")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return StandIn(folder)


def test_memory_load_and_energy_of_a_training(start: Start, gpu: StandIn) -> None:
    run = start("gated", device=GPU, heartbeat_s=0.1)
    pid = int(run.wait_for("pid"))
    gpu.set(used_mb=9000, processes=[[pid, 8000]], throttle=0x44)
    seen = re.compile('"peak_vram_mb": ?8000')
    wait_until(lambda: seen.search(run.text("events.jsonl")) is not None)
    gpu.set()
    time.sleep(2.5)  # it is asked once a second, and energy is what lies between two answers
    run.go()
    end = run.wait()
    assert end["status"] == "exited"
    assert end["peak_vram_mb"] == 8000.0
    assert end["utilisation"] == 90.0
    assert 50 < end["energy_joules"] <= 200 * (end["wall_seconds"] + 1)  # it draws 200 W
    device = end["device"]
    assert (device["nvml_error"], device["lost"], device["memory_not_back"]) == (None, False, None)
    assert set(device["throttled"]) == {"sw_power_cap", "hw_thermal"}
    assert end["contention"]["foreign"] == []


def test_a_training_never_starts_on_a_device_that_does_not_answer(
    start: Start, gpu: StandIn
) -> None:
    gpu.set(lost=True)
    run = start("quick", device=GPU)
    end = run.wait()
    assert end["status"] == "infra" and "GPU is lost" in end["error"]
    assert end["device"]["lost"] and not (run.dir / "run.log").exists()
    assert failures.device_evidence(end) is not None


def test_a_wrong_uuid_is_named(start: Start, gpu: StandIn) -> None:
    end = start("quick", device=Device("cuda", "GPU-other", "H100")).wait()
    assert "GPU-other" in end["error"] and "Not Found" in end["error"]


def test_a_device_lost_on_the_way_is_infra_not_the_hypothesis(start: Start, gpu: StandIn) -> None:
    run = start("gated", device=GPU)
    run.wait_for("pid")
    gpu.set(lost=True)
    time.sleep(1.5)  # it is asked once a second
    run.go()
    end = run.wait()
    assert end["device"]["lost"]
    failure = failures.classify(end, run.text("run.log"), 1.25)
    assert failure is not None and failure.kind == "infra"


def test_a_driver_that_hangs_does_not_hold_the_deadline_up(start: Start, gpu: StandIn) -> None:
    run = start("gated", device=GPU, deadline_seconds=3.0, memory_back_s=0.5)
    run.wait_for("pid")
    gpu.set(hang=True)
    end = run.wait()
    assert end["status"] == "deadline" and end["wall_seconds"] < 20  # it hangs for an hour
    assert "not answered" in end["device"]["nvml_error"]


def test_memory_that_does_not_come_back_is_said(start: Start, gpu: StandIn) -> None:
    run = start("gated", device=GPU, memory_back_s=0.5)
    run.wait_for("pid")
    gpu.set(used_mb=9000)
    run.go()
    assert run.wait()["device"]["memory_not_back"] == {"before_mb": 500.0, "after_mb": 9000.0}


OURS = {100, 101}


@pytest.mark.parametrize(
    ("before", "during", "foreign"),
    [
        ([], [(100, 8000.0)], []),
        ([(7, 900.0)], [(7, 900.0), (100, 8000.0)], []),  # it was there, and sleeps
        ([(7, 900.0)], [(7, 930.0), (100, 8000.0)], []),
        ([(7, 900.0)], [(7, 1900.0), (100, 8000.0)], [{"pid": 7, "grown_mb": 1000.0}]),
        ([], [(7, 900.0), (100, 8000.0)], [{"pid": 7, "grown_mb": 900.0}]),
        ([], [(40_001, 8000.0)], []),  # in a container ours has a pid we do not know
        ([(7, 900.0)], [(7, 1900.0), (40_001, 8000.0)], [{"pid": 7, "grown_mb": 1000.0}]),
    ],
)
def test_foreign_compute_is_memory_that_grew_never_a_pid_alone(
    before: list[Any], during: list[Any], foreign: list[Any]
) -> None:
    record = GpuRecord(Gpu(used_mb=500.0, processes=before))
    record.take(Gpu(used_mb=9000.0, processes=during), OURS)
    assert record.foreign() == []  # once may be a process of ours that has gone since
    record.take(Gpu(used_mb=9000.0, processes=during), OURS)
    assert record.foreign() == foreign


def test_energy_from_power_where_there_is_no_counter() -> None:
    record = GpuRecord(Gpu(monotonic=10.0))
    for second in (11.0, 12.0, 14.0):
        record.take(Gpu(monotonic=second, power_w=100.0), OURS)
    assert record.energy_joules() == 400.0
    assert GpuRecord(Gpu()).energy_joules() is None
