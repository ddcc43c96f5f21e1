"""kill -9 of the shim, of its parent and of the training, at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.engine import processes, shim
from autohypothesis.engine.devices import Lease, release
from tests.conftest import wait_until
from tests.shim.conftest import MakeLaunch, Start, alive

rounds = pytest.mark.parametrize("rounds", [6, pytest.param(100, marks=pytest.mark.slow)])


def _pid(run: Any) -> int:
    return int(run.text("pid") or 0)


def _kill_shim(start: Start, tmp_path: Path, after: float) -> None:
    lease = Lease(str(tmp_path / "cpu-0.lock"), "CPU slot 0")
    began = time.time()
    run = start("steady", "20", lease=lease)
    time.sleep(after)
    os.kill(run.handle.pid, signal.SIGKILL)
    assert shim.wait(run.launch.run, 60) == "dead"
    # The kernel ends it, in its own time.
    wait_until(lambda: not processes.find_marked(processes.run_mark(run.launch.run), began))
    wait_until(lambda: not alive(_pid(run)))
    held = lease.try_acquire({}, wait_s=60)
    assert held is not None, "the lease outlived the shim and its training"
    release(held)


@rounds
def test_a_killed_shim_takes_the_training_with_it_and_frees_the_lease(
    start: Start, tmp_path: Path, rounds: int
) -> None:
    for _ in range(rounds):
        _kill_shim(start, tmp_path, random.uniform(0, 0.25))


def test_leftovers_of_a_killed_shim_are_found_by_run_folder_and_start_time(
    start: Start,
) -> None:
    began = time.time()
    run = start("family", "0", "60", "close", "stay")
    run.wait_for("pid")
    daemon = int(run.wait_for("daemon"))
    os.kill(run.handle.pid, signal.SIGKILL)
    assert shim.wait(run.launch.run, 60) == "dead"
    assert alive(daemon)
    assert processes.end_marked(processes.run_mark(run.launch.run), time.time() + 3600) == []
    assert daemon in processes.end_marked(processes.run_mark(run.launch.run), began)
    assert not alive(daemon)


def test_a_daemon_that_outlives_a_killed_shim_keeps_the_lease(start: Start, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "gpu.lock"), "GPU 0")
    run = start("family", "0", "60", "stay", lease=lease)
    run.wait_for("pid")
    daemon = int(run.wait_for("daemon"))
    os.kill(run.handle.pid, signal.SIGKILL)
    shim.wait(run.launch.run, 60)
    assert alive(daemon)
    assert lease.try_acquire({}, wait_s=0.2) is None
    assert (lease.holder() or {})["experiment_id"] == run.launch.experiment_id
    os.kill(daemon, signal.SIGKILL)
    assert lease.try_acquire({}, wait_s=60) is not None


STARTER = """
import sys, time
from pathlib import Path
from autohypothesis.engine import shim
from autohypothesis.engine.shim import Launch
launch = Launch.from_json(Path(sys.argv[1]).read_bytes())
print("ready", flush=True)
shim.start(launch)
time.sleep(60)
"""


def _kill_parent(make_launch: MakeLaunch, tmp_path: Path, after: float | None) -> bool:
    """Kill the starter so many seconds after it could start a shim; None: once that trains.

    True if its shim had begun, and then finished.
    """
    launch = make_launch("gated")
    given = tmp_path / "given.json"
    given.write_bytes(launch.to_json())
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(given)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None and parent.stdout.readline()
    if after is None:
        wait_until((launch.run.out / "pid").exists)
    else:
        time.sleep(after)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    (launch.run.out / "go").touch()
    if shim.claim(launch.run):
        assert not launch.run.log.exists()
        return False
    assert shim.wait(launch.run, 60) == "finished"
    return True


@rounds
def test_a_shim_survives_the_death_of_its_parent(
    make_launch: MakeLaunch, tmp_path: Path, rounds: int
) -> None:
    chance = [random.uniform(0, 0.15) for _ in range(rounds - 2)]
    for wait in (0.0, *chance):
        _kill_parent(make_launch, tmp_path, wait)
    assert _kill_parent(make_launch, tmp_path, None)


@rounds
def test_a_training_killed_at_any_moment_leaves_a_whole_record(start: Start, rounds: int) -> None:
    for _ in range(rounds):
        run = start("steady", "20")
        run.wait_for("pid")
        time.sleep(random.uniform(0, 0.15))
        os.kill(_pid(run), signal.SIGKILL)
        end = run.wait()
        assert (end["status"], end["signal"], end["exit_code"]) == ("signalled", 9, None)
        assert run.events()[-1]["event_type"] == "run_failed"
        assert end["metrics"] == {}


def test_the_training_dies_even_if_the_shim_was_dead_before_it_looked() -> None:
    """The gap between fork and prctl: the child sees that its parent is not the one it knew."""
    pid = os.fork()
    if pid == 0:
        system.die_with_parent(os.getppid() + 1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_ending_leftovers_leaves_an_experiment_of_the_same_name_elsewhere_alone(
    start: Start,
) -> None:
    """Two repositories that both search under today's tag give the same ids."""
    began = time.time()
    same = {"AUTOHYPOTHESIS_EXPERIMENT_ID": "baseline-nov20-1"}
    ours = start("steady", "20", extra_env=same)
    theirs = start("steady", "20", extra_env=same)
    ours.wait_for("pid")
    theirs.wait_for("pid")
    os.kill(ours.handle.pid, signal.SIGKILL)
    assert shim.wait(ours.launch.run, 60) == "dead"
    processes.end_marked(processes.run_mark(ours.launch.run), began)
    assert alive(_pid(theirs))
    assert shim.status(theirs.launch.run) == "running"
