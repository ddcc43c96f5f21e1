"""A failure that a training can cause is one of the machine only where the machine agrees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import sandbox
from autohypothesis.engine import failures
from autohypothesis.engine.machine import cuda_error, no_room
from tests.conftest import small_disk
from tests.shim.conftest import MakeLaunch, Start, run_below


def kind(end: dict[str, Any], log: str) -> tuple[str, str]:
    failure = failures.classify(end, log, None)
    assert failure is not None
    return failure.kind, failure.detail


@pytest.mark.parametrize(
    "claim",
    [
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 122] Disk quota exceeded",
        "OSError: [Errno 27] File too large",
        "RuntimeError: CUDA unknown error",
        "pynvml.NVMLError: GPU is lost",
        "Killed",
    ],
)
def test_a_training_that_only_prints_that_the_machine_failed_has_failed_itself(
    start: Start, claim: str
) -> None:
    run = start("claims", claim)
    end = run.wait()
    assert end["exit_code"] == 1 and end["machine"]["no_room"] is None
    ended, detail = kind(end, run.text("run.log"))
    assert ended == "code_error" and claim in detail


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGXCPU"])
def test_a_training_that_ends_itself_with_a_signal_has_no_second_try(
    start: Start, name: str
) -> None:
    run = start("claims", "", name)
    ended, detail = kind(run.wait(), "")
    assert ended == "code_error" and f"{name}: the machine knows no reason" in detail


@pytest.mark.skipif(not sandbox.works("bwrap"), reason="bwrap may not run")
def test_a_training_that_ends_on_a_full_disk_is_no_failure_of_its_own(
    make_launch: MakeLaunch,
) -> None:
    claim = "OSError: [Errno 28] No space left on device"
    launch = make_launch("claims", claim)
    end = run_below(small_disk([], launch.run_dir, 8 << 20), launch)
    assert launch.run_dir in end["machine"]["no_room"]
    assert kind(end, claim)[0] == "infra"


def test_room_is_told_by_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert no_room([str(tmp_path)]) is None and not [*tmp_path.iterdir()]
    monkeypatch.setattr(os, "posix_fallocate", fails(122))
    assert no_room([str(tmp_path)]) == f"Disk quota exceeded: {tmp_path}"
    monkeypatch.setattr(os, "posix_fallocate", fails(95))  # not on this file system
    assert no_room([str(tmp_path)]) is None


def fails(number: int) -> Any:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_cuda_that_does_not_begin_in_a_process_of_ours_is_named() -> None:
    assert cuda_error({"CUDA_VISIBLE_DEVICES": "GPU-00000000-0000-0000-0000-000000000000"})
