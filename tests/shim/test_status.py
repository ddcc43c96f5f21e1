"""Liveness is told by pid and start time; a run folder is used once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.engine import shim
from autohypothesis.engine.shim import Launch
from autohypothesis.errors import LaunchError
from autohypothesis.records.layout import RunPaths
from tests.conftest import ROOT, wait_until
from tests.shim.conftest import MakeLaunch, Start


def _record(tmp_path: Path, **changes: object) -> RunPaths:
    me = {
        "pid": os.getpid(),
        "start": system.process_start(os.getpid()),
        "host": system.host_id(),
        "hostname": "here",
        "boot": system.boot_id(),
        "experiment_id": "x-1",
    }
    (tmp_path / "shim.json").write_text(json.dumps({**me, **changes}))
    return RunPaths(tmp_path)


def run_shim(launch: Launch, code: str = "import sys; sys.exit(main(sys.argv))") -> int:
    """Run `code` with the `main` of a shim that is told to go; return its exit code."""
    code = f"from autohypothesis.engine.shim_run import main\n{code}"
    command = [sys.executable, "-c", code, str(launch.run.launch), launch.experiment_id]
    return subprocess.run(command, cwd=ROOT, input=shim.GO + b"x\n").returncode


def test_the_states_of_a_real_run(start: Start, tmp_path: Path) -> None:
    assert shim.status(RunPaths(tmp_path)) == "absent"
    run = start("gated")
    run.wait_for("pid")
    assert shim.status(run.launch.run) == "running"
    assert shim.wait(run.launch.run, 0.01) == "running"
    run.go()
    assert shim.wait(run.launch.run, 60) == "finished"


def test_a_reused_pid_is_not_the_shim(tmp_path: Path) -> None:
    assert shim.status(_record(tmp_path)) == "running"
    assert shim.status(_record(tmp_path, start=1.0)) == "dead"
    assert shim.status(_record(tmp_path, boot="before the reboot")) == "dead"


def test_a_shim_on_another_machine_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="another machine \\(there\\)"):
        shim.status(_record(tmp_path, host="other", hostname="there"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', "\xff"])
def test_a_damaged_identity_is_a_dead_shim(tmp_path: Path, content: str) -> None:
    (tmp_path / "shim.json").write_text(content, encoding="latin-1")
    assert shim.status(RunPaths(tmp_path)) == "dead"
    assert shim.read_record(RunPaths(tmp_path)) is False


def test_a_zombie_is_dead(start: Start) -> None:
    run = start("quick")
    while system.process_start(run.handle.pid) is not None:
        time.sleep(0.01)
    assert shim.status(run.launch.run) == "finished"
    shim.wait(run.launch.run, 1)
    assert not Path(f"/proc/{run.handle.pid}").exists()


def test_a_run_folder_is_used_once(start: Start) -> None:
    run = start("quick")
    end = run.wait()
    with pytest.raises(LaunchError, match="was used before"):
        shim.start(run.launch)
    # Not even by a shim that looked before the first one had begun.
    assert run_shim(run.launch) == 1
    assert "was used before" in run.launch.run.shim_log.read_text()
    assert run.exit() == end


def test_a_forbidden_folder_never_sees_a_training(make_launch: MakeLaunch, start: Start) -> None:
    """Between the fork of a shim and its first word a collector may have judged."""
    launch = make_launch("quick")
    launch.run.launch.write_bytes(launch.to_json())
    assert shim.status(launch.run) == "absent"
    assert shim.claim(launch.run) and shim.claim(launch.run)
    assert shim.status(launch.run) == "dead"
    assert run_shim(launch) == 1 and not launch.run.log.exists()
    run = start("quick")
    assert not shim.claim(run.launch.run)
    assert run.wait()["status"] == "exited"


def test_a_warm_shim_that_is_never_told_to_go_leaves_nothing(
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch("quick")
    dismissed = shim.prestart(launch.run, launch.experiment_id)
    shim.dismiss(dismissed)
    assert dismissed.returncode == 0
    assert [path.name for path in launch.run.folder.iterdir()] == ["out"]


def test_a_warm_shim_goes_with_a_killed_starter(make_launch: MakeLaunch) -> None:
    launch = make_launch("quick")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom autohypothesis.engine import shim\n"
        "from autohypothesis.records.layout import RunPaths\n"
        "print(shim.prestart(RunPaths(Path(sys.argv[1])), 'x').pid, flush=True)\ntime.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, launch.run_dir], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    wait_until(lambda: system.process_start(pid) is None)
    assert [path.name for path in launch.run.folder.iterdir()] == ["out"]


def test_a_warm_shim_that_died_is_no_run_and_one_that_fails_says_why_in_its_log(
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch("quick")
    died, failing = (shim.prestart(launch.run, launch.experiment_id) for _ in range(2))
    failing.stdin.write(shim.GO + b"x\n")  # with no launch.json to go by
    failing.stdin.close()
    assert failing.wait() == 1
    assert "FileNotFoundError" in launch.run.shim_log.read_text()
    died.kill()
    died.wait()
    with pytest.raises(LaunchError, match="does not start"):
        shim.start(launch, died)
    assert shim.status(launch.run) == "absent"


def test_the_shim_imports_nothing_heavy(make_launch: MakeLaunch) -> None:
    """Its whole life, with every lazy import, in one process."""
    launch = make_launch("quick")
    launch.run.launch.write_bytes(launch.to_json())
    seen = launch.run.out / "modules.json"
    code = (
        "import sys, json\n"
        "early = sorted(sys.modules)\n"
        "assert main(sys.argv) == 0\n"
        f"json.dump([early, sorted(sys.modules)], open({str(seen)!r}, 'w'))"
    )
    assert run_shim(launch, code) == 0
    early, late = (set(names) for names in json.loads(seen.read_text()))
    heavy = {"autohypothesis.schema", "pydantic", "torch", "numpy", "filelock", "psutil", "pynvml"}
    slow = {"subprocess", "socket", "threading", "traceback", "logging", "dataclasses", "inspect"}
    assert not heavy & late and not slow & early
