"""A machine with eight GPUs, in a stand-in for NVML: real inits, real workers, real shims.

The trainings are somebody's script that prints which devices it sees.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Proposal, Worker
from autohypothesis.system import host_id

ROOT = Path(__file__).resolve().parents[2]
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

Until = Callable[..., None]


class Machine:
    """Eight GPUs, a repository, and the processes that work there."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.root, self.layout = root, Layout(root)
        stand_in = folder / "stand-in"
        self.state = stand_in / "gpus.json"
        stand_in.mkdir()
        shutil.copy(ROOT / "tests" / "stand_in_nvml" / "pynvml.py", stand_in)
        self.env = {**os.environ, "PYTHONPATH": str(stand_in)}
        # With Landlock alone a training knows itself by the pid that NVML would tell.
        config = stand_in / "config"
        config.mkdir()
        note = {"host": host_id(), "most": "landlock", "reason": "a test"}
        (config / "sandbox.json").write_text(json.dumps(note))
        self.env["AUTOHYPOTHESIS_CONFIG"] = str(config)
        self.env.pop("CUDA_VISIBLE_DEVICES", None)
        self.workers: list[subprocess.Popen[bytes]] = []

    def say(self, *, driver: bool = True, **devices: dict[str, Any]) -> None:
        """What NVML answers from now on: `g3={"lost": True}` for the device 3."""
        every = [devices.get(f"g{index}", {}) for index in range(8)]
        part = self.state.with_suffix(".part")
        part.write_text(json.dumps({"driver": driver, "devices": every}))
        part.rename(self.state)

    def call(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "orchestrator.py"), *words], cwd=self.root,
            env={**self.env, **env}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def init(self, *words: str, **env: str) -> dict[str, Any]:
        answer = self.call("init-fleet", "--tag", "t", "--json", *words, **env)
        assert answer.returncode == 0, answer.stderr
        document = json.loads(answer.stdout)
        assert isinstance(document, dict)
        return document

    def work(self, *names: str, **env: str) -> None:
        for name in names:
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "orchestrator.py"), "worker", name],
                    cwd=self.root,
                    env={**self.env, **env},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    def dispatch(self, name: str, *, held: bool = False) -> str:
        """One more for a worker; a `held` one trains until there is a file `go` in its folder."""
        change: dict[str, Any] = {"config_overrides": {"HELD": 1}} if held else {}
        one = self.queue.add(Proposal(title=f"for {name}", **change), proposer="test")
        self.queue.dispatch(one.hypothesis_id, name)
        return one.hypothesis_id

    @property
    def queue(self) -> Queue:
        return Queue(self.layout, "t")

    def run_of(self, hypothesis_id: str) -> Path:
        return self.layout.run(f"{hypothesis_id}-1").folder

    def saw(self, hypothesis_id: str) -> list[str]:
        log = self.layout.run(f"{hypothesis_id}-1").log.read_text()
        return re.findall(r"sees: (.*)", log)

    def document(self, hypothesis_id: str, name: str) -> dict[str, Any]:
        value = json.loads((self.run_of(hypothesis_id) / name).read_text())
        assert isinstance(value, dict)
        return value

    def heartbeat(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.layout.heartbeat(name).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        assert isinstance(value, dict)
        return value

    def stop(self) -> None:
        for one in self.workers:
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
        for one in self.workers:
            try:
                one.wait(30)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


@pytest.fixture
def machine(tmp_path: Path, fleet_root: Path, git: Callable[..., str]) -> Iterator[Machine]:
    (fleet_root / "train.py").write_text(SCRIPT, encoding="utf-8")
    git(fleet_root, "commit", "-q", "-a", "-m", "say what it sees")
    made = Machine(tmp_path, fleet_root)
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


def test_trainings_at_once_see_their_own_device_only(machine: Machine, until: Until) -> None:
    machine.init("--gpus", "0,3,5,7")
    ids = {index: machine.dispatch(f"gpu{index}") for index in (0, 3, 5, 7)}
    machine.work(*(f"gpu{index}" for index in ids), CUDA_DEVICE_ORDER="FASTEST_FIRST")
    until(lambda: len(machine.queue.done_ids()) == len(ids), seconds=240)
    for index, one in ids.items():
        assert machine.saw(one) == [UUID[index]]
        assert machine.document(one, "metadata.json")["run"]["gpu_id"] == UUID[index]
        assert machine.document(one, "result.json")["status"] == "completed"


def test_under_a_mask_a_worker_still_pins_by_uuid(machine: Machine, until: Until) -> None:
    """And one whose device is outside of it does not train."""
    machine.init("--gpus", "2,5")
    outside, inside = machine.dispatch("gpu2"), machine.dispatch("gpu5")
    machine.work("gpu2", "gpu5", CUDA_VISIBLE_DEVICES="7,5")
    until(lambda: machine.queue.done_ids() == [inside], seconds=240)
    assert machine.saw(inside) == [UUID[5]]
    until(lambda: UUID[2] in machine.heartbeat("gpu2").get("notes", ""))
    assert not machine.run_of(outside).exists() and len(machine.queue.open()) == 1


def test_a_device_that_vanishes_is_evidence_against_it_alone(
    machine: Machine, until: Until
) -> None:
    machine.init("--gpus", "3,4")
    lost = machine.dispatch("gpu3", held=True)
    machine.work("gpu3", "gpu4")
    until(lambda: (machine.run_of(lost) / "out" / "begun").exists(), seconds=240)
    machine.say(g3={"lost": True})
    time.sleep(1.5)  # it is looked at once a second
    (machine.run_of(lost) / "out" / "go").touch()
    until(lambda: (machine.run_of(lost) / "result.json").exists(), seconds=240)
    assert machine.document(lost, "result.json")["failure_kind"] == "infra"
    other, waits = machine.dispatch("gpu4"), machine.dispatch("gpu3")
    until(lambda: other in machine.queue.done_ids(), seconds=240)
    assert machine.saw(other) == [UUID[4]]
    until(lambda: machine.heartbeat("gpu3").get("state") == "benched")
    assert not machine.run_of(waits).exists()
    assert waits in [left.hypothesis_id for left in machine.queue.open()]


def test_a_stranger_who_computes_beside_a_training_is_written_down(
    machine: Machine, until: Until
) -> None:
    machine.init("--gpus", "6")
    one = machine.dispatch("gpu6", held=True)
    machine.work("gpu6")
    until(lambda: (machine.run_of(one) / "out" / "begun").exists(), seconds=240)
    ours = int((machine.run_of(one) / "out" / "begun").read_text())
    both = [[ours, 2_000], [4711, 30_000]]
    machine.say(g6={"processes": both, "used_mb": 32_500})
    time.sleep(4.0)  # it is looked at once a second, and has to be seen twice
    machine.say()  # and leaves, so that nobody waits for the memory to come back
    (machine.run_of(one) / "out" / "go").touch()
    until(lambda: one in machine.queue.done_ids(), seconds=240)
    (foreign,) = machine.document(one, "exit.json")["contention"]["foreign"]
    assert (foreign["pid"], foreign["grown_mb"]) == (4711, 30_000.0)
