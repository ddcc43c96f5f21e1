"""A stopped shim: named, ended in time, and never believed past its deadline."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.engine import failures, processes, shim
from autohypothesis.engine.collect import end_overdue
from autohypothesis.engine.processes import MIN_STOPPED_S
from autohypothesis.engine.shim import ScoreCommand, stopped_shim
from tests.conftest import wait_until
from tests.shim.conftest import MakeLaunch, Run, Start, alive


def make_overdue(run: Any, seconds: float) -> None:
    """Let those who wait lose their patience after so long."""
    path = run.dir / "shim.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "overdue_after": [seconds, seconds]}))


def stop(run: Any) -> None:
    os.kill(run.handle.pid, signal.SIGSTOP)
    wait_until(lambda: system.is_stopped(run.handle.pid) or run.launch.run.exit.exists())


def stopped_before_its_deadline(start: Start) -> Run:
    """A training whose shim is stopped; its deadline is as near as this machine is quick."""
    seconds = 2.0
    while True:
        began = time.monotonic()
        run = start("gated", deadline_seconds=seconds)
        wait_until(lambda: run.text("pid") or run.launch.run.exit.exists())  # noqa: B023
        stop(run)
        if time.monotonic() < began + seconds:
            return run
        os.kill(run.handle.pid, signal.SIGCONT)
        seconds *= 2


def sleep_past_the_deadline(run: Run, least: float = 0.0) -> None:
    time.sleep(max(run.launch.deadline_seconds, least) + 0.2)


def test_a_shim_that_slept_past_the_deadline_is_not_believed_and_one_within_it_is(
    start: Start,
) -> None:
    """Whether the second training ended in time cannot be known."""
    past = stopped_before_its_deadline(start)
    within = start("gated")
    within.wait_for("pid")
    stop(within)
    past.go()
    wait_until(lambda: not alive(int(past.text("pid"))))
    sleep_past_the_deadline(past, MIN_STOPPED_S)
    for run in (within, past):
        os.kill(run.handle.pid, signal.SIGCONT)
    within.go()
    end = within.wait()
    assert (end["status"], end["exit_code"]) == ("exited", 0)
    assert end["contention"]["asleep_seconds"] > MIN_STOPPED_S
    end = past.wait()
    assert end["contention"]["asleep_seconds"] > MIN_STOPPED_S
    check_not_believed(end)


def test_a_short_pause_with_the_deadline_in_it_is_not_believed(start: Start) -> None:
    run = stopped_before_its_deadline(start)
    run.go()
    sleep_past_the_deadline(run)
    os.kill(run.handle.pid, signal.SIGCONT)
    check_not_believed(run.wait())


def check_not_believed(end: dict[str, Any]) -> None:
    assert end["status"] == "infra" and "past its deadline" in end["error"]
    failure = failures.classify(end, "", 1.25)
    assert failure is not None and failure.kind == "infra"


def test_a_clock_that_a_stopped_shim_could_not_check_is_no_fault_of_the_training() -> None:
    end: dict[str, Any] = {
        "status": "exited", "exit_code": 0, "signal": None,
        "clock": {"verdict": "invalid", "reason": "the clock lies"},
        "contention": {"asleep_seconds": 30.0},
    }  # fmt: skip
    failure = failures.classify(end, "", 1.0)
    assert failure is not None and failure.kind == "infra" and "30 s" in failure.detail
    failure = failures.classify({**end, "contention": {"asleep_seconds": 0.0}}, "", 1.0)
    assert failure is not None and failure.kind == "invalid"


def test_those_who_wait_name_a_stopped_shim_and_end_it_when_it_is_overdue(
    start: Start,
) -> None:
    run = start("family", "0", "60", "close", "wait")
    wait_until(lambda: run.text("daemon") != "")
    paths = run.launch.run
    assert stopped_shim(paths) == "" and not end_overdue(paths)
    stop(run)
    words, pid = stopped_shim(paths), run.handle.pid
    assert f"its owner process {pid} is stopped (state T): `kill -CONT {pid}` resumes it" in words
    assert not end_overdue(paths), "it has time left"
    make_overdue(run, 0.0)
    assert end_overdue(paths)
    assert shim.status(run.launch.run) == "finished"
    end = run.exit()
    assert end["status"] == "infra" and f"{pid} was stopped (state T)" in end["error"]
    failure = failures.classify(end, "", 1.0)
    assert failure is not None and failure.kind == "infra"
    assert not failures.is_interruption(failure.detail), "it would come back without end"
    processes.end_marked(processes.run_mark(run.launch.run), 0.0)
    assert not alive(int(run.text("daemon")))
    assert not end_overdue(paths)


def test_a_run_that_scores_has_the_time_of_its_scorer_as_well(
    make_launch: MakeLaunch,
) -> None:
    spec = ScoreCommand(("x",), "/", {}, 100.0)
    launch = make_launch("quick", score=spec, deadline_seconds=10.0)
    training, scoring = launch.overdue_after
    assert 10.0 < training < 60.0
    assert scoring == pytest.approx(training + 100.0 + launch.stop_grace_s)


def test_a_stopped_shim_hears_a_cancel(start: Start) -> None:
    run = start("polite")
    run.wait_for("pid")
    stop(run)
    assert shim.cancel(run.launch.run)
    assert run.wait()["status"] == "cancelled"


def test_an_older_identity_without_limits_is_waited_for(start: Start, tmp_path: Path) -> None:
    run = start("gated")
    run.wait_for("pid")
    path = run.dir / "shim.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({k: known[k] for k in known if k not in ("began", "overdue_after")}))
    assert not end_overdue(run.launch.run)
    assert shim.status(run.launch.run) == "running"
    run.go()
    assert run.wait()["status"] == "exited"
