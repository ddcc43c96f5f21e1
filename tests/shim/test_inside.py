"""What a training sees is what it was given, and nothing of whoever started it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine.devices import Device, Lease


def test_the_training_sees_only_what_it_was_given(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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


def test_no_signal_is_ignored_on_behalf_of_the_training(start: Callable[..., Any]) -> None:
    """Python ignores SIGPIPE, a shell's `&` ignores SIGINT and SIGQUIT, and exec hands that on."""
    run = start("quick", command=("/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"))
    run.wait()
    libcs_own = 1 << 31 | 1 << 32  # signals 32 and 33, which no program can change
    masks = [int(line.split()[1], 16) for line in run.text("run.log").splitlines()]
    assert [mask & ~libcs_own for mask in masks] == [0, 0]


def test_a_core_that_is_not_there_is_refused(start: Callable[..., Any]) -> None:
    end = start("quick", device=Device(cores=(1023,))).wait()
    assert end["status"] == "infra" and "Invalid argument" in end["error"]


def test_the_shim_can_be_told_in_ps(start: Callable[..., Any]) -> None:
    run = start("steady", "5")
    run.wait_for("pid")
    words = Path(f"/proc/{run.handle.pid}/cmdline").read_bytes().split(b"\0")
    assert b"autohypothesis.engine.shim_run" in words
    assert run.launch.experiment_id.encode() in words
    assert Path(f"/proc/{run.handle.pid}/comm").read_text().startswith("ah:t-")
