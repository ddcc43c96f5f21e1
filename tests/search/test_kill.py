"""kill -9 of the starter, the shim or the training at any moment: one result, nothing left over.

Real trainings on the `test` profile. The normal suite kills a few; a hundred are marked slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autohypothesis.engine import recovery, shim, strays
from autohypothesis.engine.devices import lanes, lease_of
from autohypothesis.engine.lab import Lab
from autohypothesis.engine.lease import LeaseFile
from autohypothesis.fleet.sync import sync
from autohypothesis.records.ledger import read_ledger

STARTER = """
import sys
from pathlib import Path
from autohypothesis.engine.change import Change
from autohypothesis.engine.iteration import Request, run
from autohypothesis.engine.lab import Lab
run(Lab.open(Path(sys.argv[1])), Request(Change.none()))
"""
ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("starter", "shim", "training")
LONGEST_S = 9.0
"""About as long as preparing, training and scoring take together, on a busy core."""


def newest_run(lab: Lab, known: set[str]) -> str | None:
    if not lab.layout.runs.is_dir():
        return None
    new = {folder.name for folder in lab.layout.runs.iterdir()} - known
    return next(iter(new), None)


def pid_of(lab: Lab, identity: str | None, victim: str) -> int | None:
    """The process to kill, if it has come to life."""
    handle = shim.attach(str(lab.layout.run(identity).folder)) if identity else None
    if handle is None or victim == "shim":
        return handle.pid if handle else None
    found = strays.find_strays(handle.run_dir, 0.0)
    return next(iter(found), None)


def kill_one(lab: Lab, victim: str, after: float) -> None:
    known = (
        {folder.name for folder in lab.layout.runs.iterdir()} if lab.layout.runs.is_dir() else set()
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(lab.layout.root)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(after)
    identity = newest_run(lab, known)
    pid = starter.pid if victim == "starter" else pid_of(lab, identity, victim)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if victim == "starter":
        starter.wait(timeout=60)
    until = time.monotonic() + 90
    while time.monotonic() < until:
        ended = starter.poll() is not None
        if ended and (identity := identity or newest_run(lab, known)) is None:
            return  # killed before it took an id
        if ended and identity and recovery.is_over(lab.layout.run(identity)):
            break
        time.sleep(0.05)
    starter.wait(timeout=60)
    recovery.collect_ended(lab.repository, lab.layout)
    assert identity is not None
    check(lab, identity)


def check(lab: Lab, identity: str) -> None:
    """One result, no process, no lease."""
    run = lab.layout.run(identity)
    result = json.loads(run.result.read_text())
    assert result["status"] in ("completed", "failed")
    if result["status"] == "failed":
        assert result["failure_kind"] == "infra", result
        assert result["metric_value"] is None
    first = run.result.read_bytes()
    recovery.collect_ended(lab.repository, lab.layout)
    assert run.result.read_bytes() == first, "collected twice"
    assert strays.find_strays(str(run.folder), 0.0) == {}
    for lane in lanes():
        lease = lease_of(lane)
        assert LeaseFile(lease.path, lease.name).holder() is None


def kill_many(lab: Lab, rounds: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    for number in range(rounds):
        kill_one(lab, VICTIMS[number % 3], chance.uniform(0.0, LONGEST_S))
    report = sync(lab.layout)
    rows = read_ledger(lab.layout)
    assert report.problems == []
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["status"] in ("completed", "failed", "planned") for row in rows)


def test_a_kill_at_any_moment_leaves_one_result_and_nothing_running(lab: Lab) -> None:
    kill_many(lab, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_kills(lab: Lab, part: int) -> None:
    kill_many(lab, 25, seed=part)
