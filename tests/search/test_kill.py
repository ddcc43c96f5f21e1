"""kill -9 of the starter, the shim or the training at any moment: one result, nothing left over.

Real trainings on the `test` profile.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.engine import processes, shim
from autohypothesis.engine.collect import collect_ended, is_over
from autohypothesis.engine.devices import cpu_slots, lease_of
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import forget_unbegun
from autohypothesis.fleet.sync import sync
from autohypothesis.records.ledger import read_ledger

STARTER = """
import sys
from pathlib import Path
from autohypothesis.engine.experiment import Change
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.runner import run
from autohypothesis.engine.project import Project
run(Project.open(Path(sys.argv[1])), Experiment(Change()))
"""
ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("starter", "shim", "training")
LONGEST_S = 9.0
"""About as long as preparing, training and scoring take together, on a busy core."""


def newest_run(project: Project, known: set[str]) -> str | None:
    if not project.layout.runs.is_dir():
        return None
    new = {folder.name for folder in project.layout.runs.iterdir()} - known
    return next(iter(new), None)


def alive(project: Project, identity: str | None, victim: str) -> tuple[int, float] | None:
    """Pid and start time of the process to kill, if it is alive now."""
    run = project.layout.run(identity) if identity else None
    known = shim.read_record(run) if run else None
    if not run or not known:
        return None
    if victim == "shim":
        return (known.pid, known.start) if known.lives else None
    found = processes.find_marked(processes.run_mark(run))
    return next(iter(found.items()), None)


def kill_at(
    project: Project, starter: subprocess.Popen[bytes], known: set[str], victim: str, pause: float
) -> bool:
    """Kill the victim `pause` seconds from now, or at the next moment when there is one."""
    time.sleep(pause)
    while starter.poll() is None:
        if victim == "starter":
            starter.kill()
            return starter.wait(timeout=60) == -signal.SIGKILL
        found = alive(project, newest_run(project, known), victim)
        if found is not None and system.signal_process(*found, signal.SIGKILL):
            return True
        time.sleep(0.01)
    return False


def kill_one(project: Project, victim: str, after: float) -> bool:
    """One iteration with a kill in it; whether there was anything left to kill."""
    runs = project.layout.runs
    known = {folder.name for folder in runs.iterdir()} if runs.is_dir() else set()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(project.layout.root)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    killed = kill_at(project, starter, known, victim, after)
    starter.wait(timeout=90)
    identity = newest_run(project, known)
    if identity is None:
        return killed  # before it took an id
    until = time.monotonic() + 90
    while not is_over(project.layout.run(identity)) and time.monotonic() < until:
        time.sleep(0.05)
    collect_ended(project.repository, project.layout)
    if project.layout.run(identity).run_spec.exists():
        check(project, identity, victim)
    else:  # it was killed before it was a run
        forget_unbegun(project)
        assert not project.layout.run(identity).folder.exists()
    return killed


def check(project: Project, identity: str, victim: str) -> None:
    """One result, no process, no lease. A training that was killed could have done it itself."""
    run = project.layout.run(identity)
    result = json.loads(run.result.read_text())
    assert result["status"] in ("completed", "failed")
    if result["status"] == "failed":
        kinds = {"infra", "code_error"} if victim == "training" else {"infra"}
        assert result["failure_kind"] in kinds, result
        assert result["metric_value"] is None
    first = run.result.read_bytes()
    collect_ended(project.repository, project.layout)
    assert run.result.read_bytes() == first, "collected twice"
    assert processes.find_marked(processes.run_mark(run)) == {}
    for lane in cpu_slots():
        lease = lease_of(lane)
        assert lease.holder() is None


def kill_many(project: Project, rounds: int, seed: int = 0) -> int:
    """Kill something `rounds` times, each victim in turn; how often anything was killed."""
    chance, killed = random.Random(seed), 0
    for number in range(rounds):
        # A moment at which everything was over already counts for nothing: draw another.
        for longest in (LONGEST_S, LONGEST_S / 2, LONGEST_S / 4, LONGEST_S / 8):
            if kill_one(project, VICTIMS[number % 3], chance.uniform(0.0, longest)):
                killed += 1
                break
    forget_unbegun(project)
    report = sync(project.layout)
    rows = read_ledger(project.layout)
    assert report.problems == []
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["status"] in ("completed", "failed") for row in rows)
    return killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_kills(project: Project, part: int) -> None:
    assert kill_many(project, 25, seed=part) == 25
