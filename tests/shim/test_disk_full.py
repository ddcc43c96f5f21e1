"""A real ENOSPC: the run folder is a small memory file system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from autohypothesis import sandbox
from autohypothesis.engine import failures
from autohypothesis.engine.shim import Launch
from tests.conftest import ROOT, small_disk

pytestmark = pytest.mark.skipif(
    not sandbox.works("bwrap"), reason="bwrap is missing or may not run"
)

DRIVER = """
import json, sys
from pathlib import Path
from autohypothesis.engine import shim
from autohypothesis.engine.shim import Launch
launch = Launch.from_json(sys.stdin.buffer.read())
launch.run.out.mkdir()
if len(sys.argv) > 1:
    (launch.run.folder / "ballast").write_bytes(b"x" * int(sys.argv[1]))
shim.start(launch)
status = shim.wait(launch.run, 30)
end = launch.run.exit
print(json.dumps([status, json.loads(end.read_text()) if end.exists() else None]))
"""


def _run_on_small_disk(launch: Launch, *args: str, size: int = 2 << 20) -> tuple[str, Any]:
    command = small_disk([sys.executable, "-c", DRIVER, *args], launch.run_dir, size)
    done = subprocess.run(
        command,
        input=launch.to_json(),
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    status, end = json.loads(done.stdout)
    return status, end


def test_a_log_that_fills_the_disk_ends_the_run_as_infra(
    make_launch: Callable[..., Launch],
) -> None:
    launch = make_launch("fill", "talk", log_limit_bytes=64 << 20)
    status, end = _run_on_small_disk(launch)
    assert status == "finished" and end["status"] == "infra"
    assert "No space left on device" in end["error"]
    failure = failures.classify(end, "", None)
    assert failure is not None and failure.kind == "infra"


def test_a_training_that_fills_the_disk_with_a_file_ends(
    make_launch: Callable[..., Launch],
) -> None:
    status, end = _run_on_small_disk(make_launch("fill", "file", deadline_seconds=5))
    assert status == "finished" and end["status"] in ("exited", "infra")
    assert end["exit_code"] != 0


def test_a_disk_that_is_full_before_the_start_is_reported_if_anything_can_be(
    make_launch: Callable[..., Launch],
) -> None:
    launch = make_launch("quick")
    # Room for launch.json, shim.json and a small exit.json, but not for the reserve.
    status, end = _run_on_small_disk(launch, str((1 << 20) - (40 << 10)), size=1 << 20)
    assert status == "finished" and end["status"] == "infra"
    assert "No space left" in end["error"]
