"""Real shims around fast training scripts without torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.engine import processes, shim
from autohypothesis.engine.shim import Launch
from autohypothesis.records.layout import RunPaths
from tests.conftest import ROOT, wait_until

TRAININGS = Path(__file__).parent / "trainings"
HANGS_S = 60.0
"""A hang guard: nothing here takes more than a moment, on a machine with nothing else to do."""


@dataclass
class Run:
    """A started shim, and what it has left so far."""

    launch: Launch
    handle: shim.ShimRecord

    @property
    def dir(self) -> Path:
        return Path(self.launch.run_dir)

    def wait(self, timeout: float = HANGS_S) -> dict[str, Any]:
        """exit.json, once the shim has gone."""
        status = shim.wait(self.launch.run, timeout)
        assert status == "finished", (status, self.text("shim.log"))
        return self.exit()

    def exit(self) -> dict[str, Any]:
        value = json.loads((self.dir / "exit.json").read_text())
        assert isinstance(value, dict)
        return value

    def text(self, name: str) -> str:
        """What the shim, or the training in its own folder, has written there."""
        places = (self.dir / name, self.dir / "out" / name)
        return "".join(p.read_text(errors="replace") for p in places if p.exists())

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text("events.jsonl").splitlines()]

    def go(self) -> None:
        """Let a `gated` training end."""
        (self.dir / "out" / "go").touch()

    def wait_for(self, name: str, timeout: float = HANGS_S) -> str:
        """The content of a file that the training writes when it is ready."""
        wait_until(lambda: self.text(name) != "", timeout)
        return self.text(name)


Start = Callable[..., Run]
MakeLaunch = Callable[..., Launch]


def known_shim(run: RunPaths) -> shim.ShimRecord:
    known = shim.read_record(run)
    assert known
    return known


def alive(pid: int) -> bool:
    return system.process_start(pid) is not None


DRIVER = """
import sys
from autohypothesis.engine import shim
from autohypothesis.engine.shim import Launch
launch = Launch.from_json(sys.stdin.buffer.read())
launch.run.out.mkdir(exist_ok=True)
(launch.run.folder / "ballast").write_bytes(b"x" * int(sys.argv[1]))
shim.start(launch)
shim.wait(launch.run, 60)
print(open(launch.run.exit).read())
"""


def run_below(held: list[str], launch: Launch, ballast: int = 0) -> dict[str, Any]:
    """Return exit.json of a shim below the command `held`, beside a file of so many bytes."""
    done = subprocess.run(
        [*held, sys.executable, "-c", DRIVER, str(ballast)], input=launch.to_json(), cwd=ROOT,
        timeout=120, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    end = json.loads(done.stdout)
    assert isinstance(end, dict)
    return end


@pytest.fixture
def make_launch(tmp_path: Path) -> MakeLaunch:
    """A launch of one of the scripts in trainings/, in a run folder of its own."""
    count = 0

    def make(script: str, *args: str, **changes: Any) -> Launch:
        nonlocal count
        count += 1
        name = f"t-{os.getpid()}-{time.monotonic_ns()}-{count}"
        run_dir = tmp_path / name
        out = run_dir / "out"
        out.mkdir(parents=True)
        env = {
            "AUTOHYPOTHESIS_EXPERIMENT_ID": name,
            "AUTOHYPOTHESIS_RUN_DIR": str(out),
            "PATH": os.environ["PATH"],
        }
        env.update(changes.pop("extra_env", {}))
        values: dict[str, Any] = {
            "experiment_id": name,
            "run_dir": str(run_dir),
            "cwd": str(out),
            "command": (sys.executable, "-S", str(TRAININGS / f"{script}.py"), *args),
            "env": env,
            "deadline_seconds": 120.0,
            "stop_grace_s": 0.3,
        }
        return Launch(**{**values, **changes})

    return make


@pytest.fixture
def start(make_launch: MakeLaunch) -> Iterator[Start]:
    """Start a shim; whatever is left of it is ended after the test."""
    runs: list[Run] = []

    def go(script: str, *args: str, **changes: Any) -> Run:
        launch = make_launch(script, *args, **changes)
        shim.start(launch)
        runs.append(Run(launch, known_shim(launch.run)))
        return runs[-1]

    yield go
    for run in runs:
        with contextlib.suppress(OSError):
            if system.is_alive(run.handle.pid, run.handle.start):
                os.kill(run.handle.pid, signal.SIGKILL)
        shim.wait(run.launch.run, 30)
        processes.end_marked(processes.run_mark(run.launch.run), 0.0)
