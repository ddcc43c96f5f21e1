"""An experiment ends: at the deadline, on request, and with all it has started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from autohypothesis import sandbox
from autohypothesis.engine import processes, shim
from autohypothesis.engine.shim import ScoreCommand
from tests.conftest import ROOT
from tests.shim.conftest import TRAININGS, alive


def test_a_good_run_leaves_its_whole_record(start: Callable[..., Any]) -> None:
    labels = {"worker_id": "gpu0", "gpu_id": "0", "commit": "abc", "title": "a title"}
    run = start("quick", labels=labels)
    end = run.wait()
    assert (end["status"], end["exit_code"], end["signal"], end["error"]) == (
        "exited",
        0,
        None,
        None,
    )
    assert end["metrics"] == {"val_bpb": 0.9979, "num_steps": 953.0, "depth": 8.0}
    assert end["summaries_seen"] == 1 and end["strays_killed"] == 0
    assert end["samples"] == [[0.5, 2.99, None, 1.7e6], [1.0, 2.5, 1.8312, 1.6e6]]
    assert end["started_at"].endswith("+00:00") and end["started_at"] <= end["ended_at"]
    assert end["peak_rss_mb"] > 1 and end["cpu_seconds"] > 0
    first, last = run.events()
    assert (first["event_type"], last["event_type"]) == ("run_started", "run_completed")
    assert last["progress"] == {"progress_pct": 100.0} and last["metrics"]["train_loss"] == 2.5
    assert {name: first[name] for name in labels} == labels
    left = {path.name for path in run.dir.iterdir()}
    assert left == {
        "launch.json", "shim.json", "exit.json", "events.jsonl", "out", "run.log",
    }  # fmt: skip


def test_the_deadline_ends_a_training_that_ignores_sigterm_with_its_children(
    start: Callable[..., Any],
) -> None:
    run = start("deaf", deadline_seconds=1.5, stop_grace_s=0.2)
    end = run.wait()
    assert end["status"] == "deadline" and end["signal"] == 9
    assert 1.6 < end["wall_seconds"] < 30  # it would go on for a minute
    assert processes.find_marked(processes.run_mark(run.launch.run)) == {}


@pytest.fixture(params=["alone", "bwrap"])
def within(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The words before a command, with or without a process namespace of bubblewrap's."""
    if request.param == "alone":
        return ()
    if not sandbox.works("bwrap"):
        pytest.skip("bubblewrap does not work here")
    return ("bwrap", "--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/", "--")


def python_command(within: tuple[str, ...], script: str, *args: str) -> tuple[str, ...]:
    return (*within, sys.executable, "-S", str(TRAININGS / f"{script}.py"), *args)


def test_a_training_may_say_a_last_word_at_the_deadline(
    start: Callable[..., Any], within: tuple[str, ...]
) -> None:
    command = python_command(within, "polite")
    run = start("polite", command=command, deadline_seconds=1.5, stop_grace_s=30.0)
    end = run.wait()
    assert (end["status"], end["exit_code"]) == ("deadline", 3)
    assert run.text("run.log") == "saving\n"


def test_cancel_ends_the_training_and_says_so(start: Callable[..., Any]) -> None:
    run = start("polite")
    run.wait_for("pid")
    assert shim.cancel(run.launch.run)
    assert run.wait()["status"] == "cancelled"
    assert not shim.cancel(run.launch.run)


def test_cancel_before_the_training_began_is_not_lost_and_takes_no_time(
    start: Callable[..., Any], within: tuple[str, ...]
) -> None:
    command = python_command(within, "steady", "20")
    for delay in (0, 0.01, 0.02, 0.03, 0.04, 0.05):
        run = start("steady", command=command, stop_grace_s=30.0)
        time.sleep(delay)
        assert shim.cancel(run.launch.run)
        began = time.monotonic()
        assert run.wait()["status"] == "cancelled"
        assert time.monotonic() - began < 15  # and not the whole grace


def test_the_cpu_time_of_a_daemon_is_counted_and_the_daemon_ended(
    start: Callable[..., Any],
) -> None:
    run = start("family", "0.5", "60", "close", "wait")
    end = run.wait()
    assert end["status"] == "exited" and end["strays_killed"] == 1
    assert 0.5 <= end["cpu_seconds"] < 0.95  # not twice
    assert not alive(int(run.text("daemon")))


def test_a_daemon_that_holds_the_output_open_does_not_hold_up_the_end(
    start: Callable[..., Any],
) -> None:
    run = start("family", "0", "60")
    end = run.wait()
    assert end["wall_seconds"] < 30 and end["metrics"] == {"val_bpb": 1.5}
    assert not alive(int(run.text("daemon")))


def test_processes_that_fork_while_they_are_killed_are_all_ended(start: Callable[..., Any]) -> None:
    run = start("storm", deadline_seconds=0.4, stop_grace_s=0.1)
    assert run.wait()["status"] == "deadline"
    assert processes.find_marked(processes.run_mark(run.launch.run)) == {}


def test_a_command_that_is_not_there_is_named(start: Callable[..., Any]) -> None:
    end = start("quick", command=("no-such-command",)).wait()
    assert end["status"] == "infra" and "no-such-command" in end["error"]
    assert "No such file" in end["error"]
    end = start("quick", cwd="/no/such/folder").wait()
    assert "/no/such/folder" in end["error"]


def test_peak_memory_is_of_the_whole_tree(start: Callable[..., Any]) -> None:
    end = start("eat", "100", "0.7").wait()
    assert 100 < end["peak_rss_mb"] < 200


@pytest.mark.parametrize(
    ("manner", "code", "result", "error"),
    [
        ("good", 0, {"value": 1.25, "attested": True}, None),
        ("fail", 1, None, "scoring exited 1: no weights"),
        ("mute", 0, None, "scoring printed no JSON object"),
        ("hang", None, None, "scoring took longer than 0.4 s"),
    ],
)
def test_scoring_runs_as_the_second_child(
    start: Callable[..., Any],
    make_launch: Callable[..., Any],
    manner: str,
    code: int | None,
    result: object,
    error: str | None,
) -> None:
    model = make_launch("score", manner)
    spec = ScoreCommand(model.command, model.cwd, model.env, 0.4 if manner == "hang" else 60.0)
    run = start("quick", score=spec)
    end = run.wait()
    assert end["status"] == "exited" and end["exit_code"] == 0
    score = end["score"]
    assert (score["exit_code"], score["result"], score["error"]) == (code, result, error)
    assert ("a word before" in run.text("score.log")) == (manner == "good")


def test_a_failed_training_is_not_scored(
    start: Callable[..., Any], make_launch: Callable[..., Any]
) -> None:
    model = make_launch("score", "good")
    spec = ScoreCommand(model.command, model.cwd, model.env, 60.0)
    run = start("quick", score=spec, command=("/bin/false",))
    assert run.wait()["score"] is None


BROKEN = """
import sys
from autohypothesis.engine import shim_run
from autohypothesis.engine.logs import StreamReader
def fail(self, data): raise ZeroDivisionError("a fault of ours")
StreamReader.feed = fail
sys.exit(shim_run.main(sys.argv))
"""


def test_a_fault_of_the_shim_ends_the_training_and_is_recorded(
    make_launch: Callable[..., Any],
) -> None:
    launch = make_launch("deaf")
    launch.run.launch.write_bytes(launch.to_json())
    command = [sys.executable, "-c", BROKEN, str(launch.run.launch), launch.experiment_id]
    subprocess.run(command, cwd=ROOT, input=shim.GO + b"x\n", timeout=120, check=True)
    end = json.loads(launch.run.exit.read_text())
    assert end["status"] == "infra" and "ZeroDivisionError" in end["error"]
    assert "a fault of ours" in launch.run.shim_log.read_text()
    assert processes.find_marked(processes.run_mark(launch.run)) == {}
