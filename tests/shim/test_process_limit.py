"""What a machine limits: processes, with a cgroup and by counting; the size of files; the disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis import sandbox, system
from autohypothesis.engine import failures, processes
from autohypothesis.engine.shim import ScoreCommand
from autohypothesis.errors import RecordError
from autohypothesis.records import jsonl
from autohypothesis.records.files import write_atomic
from tests.conftest import ROOT, small_disk, wait_until
from tests.shim.conftest import MakeLaunch, Start, alive, run_below


def can_make_groups() -> bool:
    code = (
        "from autohypothesis.engine.processes import ProcessLimit\n"
        "limit = ProcessLimit()\nlimit.enter()\nlimit.hold(9, lambda: 0)\n"
        "print(bool(limit._group))\nlimit.leave()"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() == "True"


CGROUPS = can_make_groups()


def groups() -> list[str]:
    home = processes._own_group()
    return [name for name in os.listdir(home) if name.startswith("autohypothesis-")] if home else []


WITHOUT_CGROUPS = [
    "bwrap", "--die-with-parent", "--dev-bind", "/", "/",
    "--ro-bind", "/sys/fs/cgroup", "/sys/fs/cgroup", "--",
]  # fmt: skip


@pytest.mark.parametrize("manner", ["row", "tree"])
@pytest.mark.parametrize("how", ["cgroup", "counting"])
def test_a_fork_bomb_is_one_failed_run(
    make_launch: MakeLaunch, start: Start, how: str, manner: str
) -> None:
    if not (CGROUPS if how == "cgroup" else sandbox.works("bwrap")):
        pytest.skip("no right to make a cgroup, or no bwrap to take it away")
    if how == "cgroup":
        beside = start("gated")
        run = start("bomb", manner, "3000", max_processes=40)
        end, paths = run.wait(), run.launch.run
        beside.go()
        assert beside.wait()["exit_code"] == 0, "the bomb disturbed another run"
    else:
        launch = make_launch("bomb", manner, "3000", max_processes=40)
        end, paths = run_below(WITHOUT_CGROUPS, launch), launch.run
    assert end["status"] == "processes", end
    failure = failures.classify(end, "", None)
    assert failure is not None and failure.kind == "code_error"
    assert "40 are allowed (run.max_processes)" in failure.detail
    assert int(failure.detail.split()[2]) > 40
    assert processes.find_marked(processes.run_mark(paths)) == {}


@pytest.mark.skipif(not CGROUPS, reason="no right to make a cgroup")
def test_threads_are_held_by_the_cgroup(start: Start) -> None:
    end = start("bomb", "threads", "200", max_processes=10).wait()
    assert end["status"] == "processes"
    assert "it ran 40 processes and threads at once, 10 processes with 4" in end["error"]


def test_a_bomb_in_the_scoring_is_named(start: Start, make_launch: MakeLaunch) -> None:
    bomb = make_launch("bomb", "row", "3000")
    spec = ScoreCommand(bomb.command, bomb.cwd, bomb.env, 60.0)
    end = start("quick", score=spec, max_processes=40).wait()
    assert (end["status"], end["score"]["status"]) == ("exited", "processes")
    assert "40 are allowed (run.max_processes)" in end["score"]["error"]


@pytest.mark.skipif(not CGROUPS, reason="no right to make a cgroup")
def test_no_cgroup_is_left_behind_by_a_run_nor_by_a_killed_shim(start: Start) -> None:
    run = start("gated")
    run.wait_for("pid")
    mine = f"autohypothesis-{run.handle.pid}-"
    assert any(name.startswith(mine) for name in groups())
    run.go()
    run.wait()
    killed = start("gated")
    killed.wait_for("pid")
    os.kill(killed.handle.pid, 9)
    wait_until(lambda: not alive(int(killed.text("pid"))))
    processes.remove_stale_cgroups()
    left = groups()
    assert not any(name.startswith(mine) for name in left)
    assert not any(name.startswith(f"autohypothesis-{killed.handle.pid}-") for name in left)


def test_only_its_own_process_is_in_the_cgroup() -> None:
    """Neither the process that asks for a limit later nor its parent is moved."""
    before = Path("/proc/self/cgroup").read_text()
    code = (
        "import subprocess\nfrom autohypothesis.engine.processes import ProcessLimit\n"
        "limit = ProcessLimit()\nlimit.enter()\nlimit.hold(9, lambda: 0)\n"
        "subprocess.run(['true'], check=True)\nlimit.leave()\n"
        "print(open('/proc/self/cgroup').read(), end='')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == before == Path("/proc/self/cgroup").read_text()


@pytest.mark.parametrize(
    ("lines", "group"),
    [
        (b"4:memory:/x\n3:cpu,pids:/a/b\n0::/\n", "/sys/fs/cgroup/cpu,pids/a/b"),
        (b"0::/docker/x/y\n", "/sys/fs/cgroup/y"),
        (b"0::/docker/x\n", "/sys/fs/cgroup"),
        (b"0::/\n", "/sys/fs/cgroup"),
    ],
    ids=["version 1", "a container's hierarchy", "its root", "the root"],
)
def test_the_own_group_is_the_one_that_has_this_process(
    monkeypatch: pytest.MonkeyPatch, lines: bytes, group: str
) -> None:
    files = {"/proc/self/cgroup": lines, f"{group}/cgroup.procs": b"1\n%d\n" % os.getpid()}

    def read(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    monkeypatch.setattr(system, "read", read)
    assert processes._own_group() == group


# ── the size of files, and a real ENOSPC ────────────────────────────────────────────────────


@pytest.mark.parametrize("manner", ["file", "talk"])
def test_a_training_over_the_limit_of_file_sizes_is_told_so(
    make_launch: MakeLaunch, manner: str
) -> None:
    """Its own file, or run.log, which the shim writes."""
    launch = make_launch("fill", manner, log_limit_bytes=64 << 20)
    end = run_below(["bash", "-c", 'ulimit -f 400; exec "$@"', "-"], launch)
    log = launch.run.log.read_text(errors="replace")[-4096:] if launch.run.log.exists() else ""
    failure = failures.classify(end, log, None)
    assert failure is not None and failure.kind == "infra", (end, log)
    assert "File too large" in failure.detail and "`ulimit -f unlimited`" in failure.detail


needs_bwrap = pytest.mark.skipif(not sandbox.works("bwrap"), reason="bwrap may not run")


@needs_bwrap
def test_a_log_that_fills_the_disk_ends_the_run_as_infra(make_launch: MakeLaunch) -> None:
    launch = make_launch("fill", "talk", log_limit_bytes=64 << 20)
    end = run_below(small_disk([], launch.run_dir, 2 << 20), launch)
    assert end["status"] == "infra" and "No space left on device" in end["error"]
    failure = failures.classify(end, "", None)
    assert failure is not None and failure.kind == "infra"


@needs_bwrap
def test_a_training_that_fills_the_disk_with_a_file_ends(make_launch: MakeLaunch) -> None:
    launch = make_launch("fill", "file", deadline_seconds=5)
    end = run_below(small_disk([], launch.run_dir, 2 << 20), launch)
    assert end["status"] in ("exited", "infra") and end["exit_code"] != 0


@needs_bwrap
def test_a_disk_that_is_full_before_the_start_is_reported_if_anything_can_be(
    make_launch: MakeLaunch,
) -> None:
    launch = make_launch("quick")
    # Room for launch.json, shim.json and a small exit.json, but not for the reserve.
    end = run_below(small_disk([], launch.run_dir, 1 << 20), launch, (1 << 20) - (40 << 10))
    assert end["status"] == "infra" and "No space left" in end["error"]


def test_a_record_over_the_limit_of_file_sizes_names_the_limit(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        wrong = 2
        try:
            write_atomic(tmp_path / "large.json", "x" * 9999)
        except RecordError as error:
            wrong -= "`ulimit -f`, here 4,096 bytes" in error.hint
        try:
            jsonl.append(tmp_path / "large.jsonl", {"text": "x" * 9999})
        except RecordError as error:
            wrong -= "`ulimit -f`, here 4,096 bytes" in error.hint
        os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / "large.json").exists()
    assert (tmp_path / "large.jsonl").read_bytes() == b""
