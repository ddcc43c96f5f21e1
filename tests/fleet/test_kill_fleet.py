"""kill -9 of any process of a running fleet: every hypothesis ends once, nothing is left behind.

A few kills for the suite of every day, fifty for the slow one. Trainings take a third of a second,
so a kill meets each of a worker's steps.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from autohypothesis import system
from autohypothesis.engine.devices import cpu_slots, lease_of
from autohypothesis.engine.project import Project, run_ids
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import read_json
from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.ledger import read_ledger
from tests.conftest import called, run_git

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
FINISH_S = 240.0
"""A hang guard for the last `up`, which ends by itself."""

pytestmark = pytest.mark.skipif(len(cpu_slots()) < WORKERS, reason="a lane for each worker")


def orchestrator(root: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "orchestrator.py"), "--repo", str(root), *words]


def start(root: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """`up` in the background, its words in `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            orchestrator(root, "up", *words), cwd=root, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip


def processes(root: Path) -> dict[int, float]:
    """Pid -> start of everything that belongs to the fleet of `root`: roles, shims, trainings."""
    found = {}
    needle = os.fsencode(root)
    for pid in psutil.pids():
        if pid == os.getpid():
            continue
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        ours = b"orchestrator" in words or b"engine.shim" in words
        if (ours and needle in words) or b"AUTOHYPOTHESIS_RUN_DIR=" + needle in environment:
            began = system.process_start(pid)
            if began is not None:
                found[pid] = began
    return found


def kill_one(root: Path, chance: random.Random, deadline: float) -> bool:
    """Kill one process of the fleet, whichever; False when there is none until `deadline`."""
    while time.monotonic() < deadline:
        living = sorted(processes(root).items())
        if living and system.signal_process(*chance.choice(living), signal.SIGKILL):
            return True
        time.sleep(0.02)
    return False


def end(root: Path, supervisor: subprocess.Popen[bytes]) -> None:
    """Whatever a failed test leaves is ended by pid."""
    for pid, began in processes(root).items():
        system.signal_process(pid, began, signal.SIGKILL)
    if supervisor.poll() is None:
        supervisor.kill()
    supervisor.wait(timeout=30)


def check(project: Project) -> None:
    """Every hypothesis is in one state, none runs; the ledger is whole; the leases are free."""
    queue, layout = Queue(project.layout, project.active()), project.layout
    places = Counter(
        path.stem
        for state in ("pending", "dispatched", "running", "done")
        for path in layout.hypotheses(state).rglob("*.json")
    )
    assert places and set(places.values()) == {1}, places
    assert not any(queue.running().values())
    known = {name for name in places if re.fullmatch(r"(h|baseline)-.*", name)}
    allocated = {re.sub(r"-\d+$", "", name) for name in run_ids(layout)}
    assert allocated <= known
    sync(layout)
    rows = {str(row["id"]): row for row in read_ledger(layout)}
    assert set(run_ids(layout)) <= rows.keys()
    decisions = DecisionHistory.of_tag(layout, project.tag).decisions
    assert max(Counter(one.experiment_id for one in decisions).values()) == 1
    lasting = Counter(one.hypothesis_id for one in decisions if not one.requeue)
    assert lasting and max(lasting.values()) == 1, lasting
    for identity in queue.done_ids():
        found = queue.read(identity)
        assert found is not None
        if found[1].closed == "completed":
            mine = [row for row in rows.values() if row["hypothesis_id"] == identity]
            assert mine and all(row["status"] != "review_pending" for row in mine), identity
    for experiment_id in run_ids(layout):
        assert read_json(layout.run(experiment_id).result)["decision_status"] != "review_pending"
    for lane in cpu_slots():
        lease = lease_of(lane)
        assert lease.holder() is None


def torment(root: Path, log: Path, kills: int, seed: int) -> None:
    """`kills` kills at random moments of a running fleet, then an `up` that ends by itself."""
    chance = random.Random(seed)
    supervisor = start(root, log)
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 1.5))
            if supervisor.poll() is not None:
                supervisor = start(root, log)
            assert kill_one(root, chance, time.monotonic() + 120.0), log.read_text()
        if supervisor.poll() is None:
            subprocess.run(orchestrator(root, "down"), check=True, timeout=120, capture_output=True)
            supervisor.wait(timeout=60)
        supervisor = start(root, log, "--max-runs", "2")
        assert supervisor.wait(timeout=FINISH_S) == 0, log.read_text()
        left = processes(root)
        assert not left, left
        check(Project.open(root))
    finally:
        end(root, supervisor)


@pytest.fixture
def fleet(fleet_root: Path) -> Path:
    """Two workers on CPU lanes; a training takes a third of a second."""
    script = fleet_root / "train.py"
    script.write_text(script.read_text().replace("SLEEP = 0.0", "SLEEP = 0.3"), encoding="utf-8")
    subprocess.run(["git", "commit", "-qam", "slower"], cwd=fleet_root, check=True)
    words = ("init-fleet", "--tag", "t", "--cpu-workers", str(WORKERS))
    assert called(*words, cwd=fleet_root).returncode == 0
    return fleet_root


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_few_kills_lose_and_double_nothing(fleet: Path, tmp_path: Path, kills: int) -> None:
    torment(fleet, tmp_path / "up.log", kills, seed=1)
    run_git(fleet, "fsck", "--no-dangling")
