"""A machine with eight GPUs, in a stand-in for NVML: real inits, real workers, real shims.

The trainings are somebody's script that prints which devices it sees.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.live.presence import read_heartbeat
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import read_json
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.schema import Heartbeat, Proposal, Worker, now
from autohypothesis.system import host_id
from tests.conftest import ROOT, run_git, started, wait_until

UUID = [f"GPU-{n}{n}{n}{n}aaaa-0000-4000-8000-00000000000{n}" for n in range(8)]
SCRIPT = '''"""Somebody's script: it says what it sees."""
import os
import time

HELD = 0

print("sees:", os.environ["CUDA_VISIBLE_DEVICES"])
folder = os.environ["AUTOHYPOTHESIS_RUN_DIR"]
with open(os.path.join(folder, "begun.part"), "w") as file:
    file.write(str(os.getpid()))
os.rename(os.path.join(folder, "begun.part"), os.path.join(folder, "begun"))
while HELD and not os.path.exists(os.path.join(folder, "go")):
    time.sleep(0.02)
print("val_bpb: 1.0")
print("peak_vram_mb: 1")
'''


class Machine:
    """Eight GPUs, a repository, and the processes that work there."""

    def __init__(self, root: Path, gpus: Path) -> None:
        self.root, self.layout, self._gpus = root, Layout(root), gpus
        self.queue = Queue(self.layout, "t")
        self.workers: list[subprocess.Popen[bytes]] = []

    def say(self, *, driver: bool = True, **devices: dict[str, Any]) -> None:
        """What NVML answers from now on: `g3={"lost": True}` for the device 3."""
        every = [devices.get(f"g{index}", {}) for index in range(8)]
        part = self._gpus.with_suffix(".part")
        part.write_text(json.dumps({"driver": driver, "devices": every}))
        part.rename(self._gpus)

    def init(self, *words: str) -> dict[str, Any]:
        answer = started("init-fleet", "--tag", "t", "--json", *words, cwd=self.root)
        assert answer.returncode == 0, answer.stderr
        document: dict[str, Any] = json.loads(answer.stdout)
        return document

    def work(self, *names: str, **env: str) -> None:
        for name in names:
            worker = subprocess.Popen(
                [sys.executable, str(ROOT / "orchestrator.py"), "worker", name],
                cwd=self.root, env={**os.environ, **env},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.workers.append(worker)

    def dispatch(self, name: str, *, held: bool = False) -> str:
        """One more for a worker; a `held` one trains until `go`."""
        change: dict[str, Any] = {"config_overrides": {"HELD": 1}} if held else {}
        one = self.queue.add(Proposal(title=f"for {name}", **change), proposer="test")
        self.queue.dispatch(one.hypothesis_id, name)
        return one.hypothesis_id

    def run_of(self, hypothesis_id: str) -> RunPaths:
        return self.layout.run(f"{hypothesis_id}-1")

    def begun(self, hypothesis_id: str) -> int:
        """The pid of a training, once it has begun."""
        begun = self.run_of(hypothesis_id).folder / "out" / "begun"
        wait_until(begun.exists)
        return int(begun.read_text())

    def go(self, hypothesis_id: str) -> None:
        (self.run_of(hypothesis_id).folder / "out" / "go").touch()

    def saw(self, hypothesis_id: str) -> list[str]:
        return re.findall(r"sees: (.*)", self.run_of(hypothesis_id).log.read_text())

    def heartbeat(self, name: str) -> Heartbeat:
        return read_heartbeat(self.layout, name) or Heartbeat(worker_id=name, updated_at=now())

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@pytest.fixture
def machine(tmp_path: Path, fleet_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    (fleet_root / "train.py").write_text(SCRIPT, encoding="utf-8")
    run_git(fleet_root, "commit", "-q", "-a", "-m", "say what it sees")
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    shutil.copy(ROOT / "tests" / "stand_in_nvml" / "pynvml.py", stand_in)
    # With Landlock alone a training knows itself by the pid that NVML would tell.
    note = {"host": host_id(), "most": "landlock", "reason": "a test"}
    (stand_in / "sandbox.json").write_text(json.dumps(note))
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(stand_in))
    monkeypatch.setenv("PYTHONPATH", str(stand_in))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = Machine(fleet_root, stand_in / "gpus.json")
    yield made
    made.stop()


def test_a_first_driver_gives_the_workers_their_devices(machine: Machine) -> None:
    """And strangers on a device are named when the fleet is made."""
    machine.say(driver=False)
    made = machine.init("--gpus", "0,1")
    assert [(one["gpu_id"], one["device"]) for one in made["workers"]] == [("0", ""), ("1", "")]
    assert "Driver Not Loaded" in made["notes"][0]
    machine.say(g1={"processes": [[4711, 60_000]], "used_mb": 60_500}, g4={"lost": True})
    made = machine.init("--gpus", "0,1")
    workers = [Worker.model_validate(one) for one in made["workers"]]
    assert [(one.worker_id, one.device, one.kind) for one in workers] == [
        ("gpu0", UUID[0], "cuda"), ("gpu1", UUID[1], "cuda"),
    ]  # fmt: skip
    assert any("GPU 1 is used by pid 4711 (60500 MiB)" in note for note in made["notes"])


def test_trainings_at_once_see_their_own_device_only(machine: Machine) -> None:
    machine.init("--gpus", "0,3,5,7")
    ids = {index: machine.dispatch(f"gpu{index}") for index in (0, 3, 5, 7)}
    machine.work(*(f"gpu{index}" for index in ids), CUDA_DEVICE_ORDER="FASTEST_FIRST")
    wait_until(lambda: len(machine.queue.done_ids()) == len(ids))
    for index, one in ids.items():
        assert machine.saw(one) == [UUID[index]]
        assert read_json(machine.run_of(one).metadata)["run"]["gpu_id"] == UUID[index]
        assert read_json(machine.run_of(one).result)["status"] == "completed"


def test_a_training_sees_the_mig_device_that_it_has_leased(machine: Machine) -> None:
    machine.say(g1={"mig": [{}, {}]})
    workers = machine.init("--gpus", "1:0,1:1")["workers"]
    ids = {worker["device"]: machine.dispatch(worker["worker_id"]) for worker in workers}
    machine.work(*(worker["worker_id"] for worker in workers))
    wait_until(lambda: len(machine.queue.done_ids()) == len(ids))
    for uuid, one in ids.items():
        assert uuid.startswith("MIG-") and machine.saw(one) == [uuid]
        assert read_json(machine.run_of(one).result)["status"] == "completed"
        assert read_json(machine.run_of(one).exit)["device"]["parent"] == UUID[1]
        runtime = read_json(machine.run_of(one).metadata)["runtime"]
        assert runtime["gpu_name"].endswith("MIG 1g.10gb")


def test_under_a_mask_a_worker_still_pins_by_uuid(machine: Machine) -> None:
    """And one whose device is outside of it does not train."""
    machine.init("--gpus", "2,5")
    outside, inside = machine.dispatch("gpu2"), machine.dispatch("gpu5")
    machine.work("gpu2", "gpu5", CUDA_VISIBLE_DEVICES="7,5")
    wait_until(lambda: machine.queue.done_ids() == [inside])
    assert machine.saw(inside) == [UUID[5]]
    wait_until(lambda: UUID[2] in machine.heartbeat("gpu2").notes)
    assert not machine.run_of(outside).folder.exists() and len(machine.queue.open()) == 1


def test_a_device_that_vanishes_is_evidence_against_it_alone(
    machine: Machine,
) -> None:
    machine.init("--gpus", "3,4")
    lost = machine.dispatch("gpu3", held=True)
    machine.work("gpu3", "gpu4")
    machine.begun(lost)
    machine.say(g3={"lost": True})
    time.sleep(1.5)  # it is looked at once a second
    machine.go(lost)
    wait_until(machine.run_of(lost).result.exists)
    assert read_json(machine.run_of(lost).result)["failure_kind"] == "infra"
    other, waits = machine.dispatch("gpu4"), machine.dispatch("gpu3")
    wait_until(lambda: other in machine.queue.done_ids())
    assert machine.saw(other) == [UUID[4]]
    wait_until(lambda: machine.heartbeat("gpu3").state == "benched")
    assert not machine.run_of(waits).folder.exists()
    assert waits in [left.hypothesis_id for left in machine.queue.open()]


def test_a_stranger_who_computes_beside_a_training_is_written_down(
    machine: Machine,
) -> None:
    machine.init("--gpus", "6")
    one = machine.dispatch("gpu6", held=True)
    machine.work("gpu6")
    both = [[machine.begun(one), 2_000], [4711, 30_000]]
    machine.say(g6={"processes": both, "used_mb": 32_500})
    time.sleep(4.0)  # it is looked at once a second, and has to be seen twice
    machine.say()  # and leaves, so that nobody waits for the memory to come back
    machine.go(one)
    wait_until(lambda: one in machine.queue.done_ids())
    (foreign,) = read_json(machine.run_of(one).exit)["contention"]["foreign"]
    assert (foreign["pid"], foreign["grown_mb"]) == (4711, 30_000.0)
