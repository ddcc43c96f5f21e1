"""A training sees what it was given; it ends at the deadline, on request, with its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import sandbox
from autohypothesis.engine import processes, shim
from autohypothesis.engine.devices import Device, Lease
from autohypothesis.engine.shim import Launch, ScoreCommand
from autohypothesis.errors import LaunchError
from tests.conftest import ROOT
from tests.shim.conftest import TRAININGS, MakeLaunch, Start, alive


def test_a_good_run_leaves_its_whole_record(start: Start) -> None:
    labels = {"worker_id": "gpu0", "gpu_id": "0", "commit": "abc", "title": "a title"}
    run = start("quick", labels=labels)
    end = run.wait()
    assert (end["status"], end["exit_code"]) == ("exited", 0)
    assert end["signal"] is None and end["error"] is None
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


def test_the_training_sees_only_what_it_was_given(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-2")
    stray_fd, other = os.pipe()
    os.set_inheritable(stray_fd, True)
    core = min(os.sched_getaffinity(0))
    lease = Lease(str(tmp_path / "cpu-0.lock"), "CPU slot 0")
    run = start("inside", extra_env={"SEED": "7"}, lease=lease, device=Device(cores=(core,)))
    assert run.wait()["exit_code"] == 0
    os.close(stray_fd)
    os.close(other)
    seen = json.loads(run.text("seen"))
    assert seen["environment"] == dict(run.launch.env)
    assert "secret" not in json.dumps(seen["shim_environment"])
    assert seen["cores"] == [core] and seen["session"]
    assert seen["cwd"] == run.launch.cwd
    targets = dict(seen["descriptors"])
    assert targets.pop("0") == os.devnull
    assert targets.pop("1").startswith("pipe:") and targets.pop("2").startswith("pipe:")
    assert [t for t in targets.values() if not t.startswith("/proc/")] == [lease.path]


def test_no_signal_is_ignored_on_behalf_of_the_training(start: Start) -> None:
    """Python ignores SIGPIPE, a shell's `&` ignores SIGINT and SIGQUIT, and exec hands that on."""
    run = start("quick", command=("/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"))
    run.wait()
    libcs_own = 1 << 31 | 1 << 32  # signals 32 and 33, which no program can change
    masks = [int(line.split()[1], 16) for line in run.text("run.log").splitlines()]
    assert [mask & ~libcs_own for mask in masks] == [0, 0]


def test_a_core_that_is_not_there_is_refused(start: Start) -> None:
    end = start("quick", device=Device(cores=(1023,))).wait()
    assert end["status"] == "infra" and "Invalid argument" in end["error"]


def test_the_shim_can_be_told_in_ps(start: Start) -> None:
    run = start("steady", "5")
    run.wait_for("pid")
    words = Path(f"/proc/{run.handle.pid}/cmdline").read_bytes().split(b"\0")
    assert b"autohypothesis.engine.shim_run" in words
    assert run.launch.experiment_id.encode() in words
    assert Path(f"/proc/{run.handle.pid}/comm").read_text().startswith("ah:t-")


def test_the_deadline_ends_a_training_that_ignores_sigterm_with_its_children(
    start: Start,
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
    start: Start, within: tuple[str, ...]
) -> None:
    command = python_command(within, "polite")
    for seconds in (1.5, 6.0, 24.0):
        run = start("polite", command=command, deadline_seconds=seconds, stop_grace_s=30.0)
        end = run.wait(90)
        if run.text("pid"):  # else this machine was slower, and it was not there to hear
            break
    assert (end["status"], end["exit_code"]) == ("deadline", 3)
    assert run.text("run.log") == "saving\n"


def test_cancel_ends_the_training_and_says_so(start: Start) -> None:
    run = start("polite")
    run.wait_for("pid")
    assert shim.cancel(run.launch.run)
    assert run.wait()["status"] == "cancelled"
    assert not shim.cancel(run.launch.run)


def test_cancel_before_the_training_began_is_not_lost_and_takes_no_time(
    start: Start, within: tuple[str, ...]
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
    start: Start,
) -> None:
    run = start("family", "0.5", "60", "close", "wait")
    end = run.wait()
    assert end["status"] == "exited" and end["strays_killed"] == 1
    assert 0.5 <= end["cpu_seconds"] < 0.95  # not twice
    assert not alive(int(run.text("daemon")))


def test_a_daemon_that_holds_the_output_open_does_not_hold_up_the_end(
    start: Start,
) -> None:
    run = start("family", "0", "60")
    end = run.wait()
    assert end["wall_seconds"] < 30 and end["metrics"] == {"val_bpb": 1.5}
    assert not alive(int(run.text("daemon")))


def test_processes_that_fork_while_they_are_killed_are_all_ended(start: Start) -> None:
    run = start("storm", deadline_seconds=0.4, stop_grace_s=0.1)
    assert run.wait()["status"] == "deadline"
    assert processes.find_marked(processes.run_mark(run.launch.run)) == {}


def test_a_command_that_is_not_there_is_named(start: Start) -> None:
    end = start("quick", command=("no-such-command",)).wait()
    assert end["status"] == "infra" and "no-such-command" in end["error"]
    assert "No such file" in end["error"]
    end = start("quick", cwd="/no/such/folder").wait()
    assert "/no/such/folder" in end["error"]


def test_peak_memory_is_of_the_whole_tree(start: Start) -> None:
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
    start: Start,
    make_launch: MakeLaunch,
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


def test_a_failed_training_is_not_scored(start: Start, make_launch: MakeLaunch) -> None:
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
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch("deaf")
    launch.run.launch.write_bytes(launch.to_json())
    command = [sys.executable, "-c", BROKEN, str(launch.run.launch), launch.experiment_id]
    subprocess.run(command, cwd=ROOT, input=shim.GO + b"x\n", timeout=120, check=True)
    end = json.loads(launch.run.exit.read_text())
    assert end["status"] == "infra" and "ZeroDivisionError" in end["error"]
    assert "a fault of ours" in launch.run.shim_log.read_text()
    assert processes.find_marked(processes.run_mark(launch.run)) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((30.0, 300.0, "wall", 60.0), 690.0),
        ((10.0, 15.0, "cpu", 20.0), 90.0),
        ((30.0, None, "wall", 60.0), 600.0),
    ],
)
def test_deadlines(arguments: Any, expected: float) -> None:
    assert shim.deadline(*arguments) == expected


@pytest.mark.parametrize(
    "change",
    [{"budget": 3}, {"device": {"index": 3}}, {"lease": {"name": "x"}}, {"score": [1]}, None],
    ids=["unknown field", "unknown part of a device", "lease without a path", "no object", "torn"],
)
def test_a_wrong_launch_file_is_refused(
    make_launch: MakeLaunch, change: dict[str, Any] | None
) -> None:
    raw = make_launch("quick").to_json()
    wrong = raw[:20] if change is None else json.dumps({**json.loads(raw), **change}).encode()
    with pytest.raises(LaunchError, match="is not whole"):
        Launch.from_json(wrong)
