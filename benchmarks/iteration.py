"""Overhead of one iteration in process: everything but the training; and what the sandbox adds.

    python -m benchmarks.iteration [--quick] [--json]

A repository of 200 files, a reused checkout, a log scorer, and a script that prints its result and
ends. Each iteration is a change through prepare, execute, collect, settle and sync. The yardstick
in the same run is what nobody can do without: git's own commit and checkout, and starting the
script once. The sandbox starts with the training, whose time the overhead leaves out; so whole
iterations, training included, are compared with ones under `isolation: none`, turn by turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autohypothesis.engine import runner
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.program import sandbox_kind
from autohypothesis.engine.project import Project
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import read_json
from autohypothesis.records.git import Repository

FILES = 200
GOAL_MS = 150.0
SANDBOX_GOAL_MS = 60.0
TRAINING = "training"
SCRIPT = 'RATE = 0.1\nprint("val_bpb: 1.5")\nprint("peak_vram_mb: 1.0")\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="8 iterations instead of 40")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iteration-") as folder:
        os.environ["AUTOHYPOTHESIS_LOCKS"] = str(Path(folder) / "locks")
        report = measure(Path(folder), 8 if options.quick else 40)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{FILES} files, {report['iterations']} iterations; medians")
    for step, milliseconds in report["steps_ms"].items():
        print(f"  {step:<10} {milliseconds:7.1f} ms")
    print(f"  {'overhead':<10} {report['overhead_ms']:7.1f} ms   (goal: under {GOAL_MS:.0f})")
    print(f"  {'whole':<10} {report['whole_ms']:7.1f} ms   overhead and training")
    print(f"  {'sandbox':<10} {report['sandbox_ms']:7.1f} ms   of it for {report['sandbox']}"
          f" (goal: under {SANDBOX_GOAL_MS:.0f})")  # fmt: skip
    print(f"  {'yardstick':<10} {report['yardstick_ms']:7.1f} ms   git commit, checkout, one start")
    print(f"  {'ratio':<10} {report['ratio']:7.2f}")


def measure(folder: Path, iterations: int) -> dict[str, Any]:
    """Medians in milliseconds; the first two iterations warm caches and are left out."""
    project, open_project = laboratory(folder / "repository"), laboratory(folder / "open")
    open_project = replace(
        open_project, task=open_project.task.model_copy(update={"isolation": "none"})
    )
    rows, free = [], []
    for number in range(iterations + 2):
        rows.append(one(project, number))
        free.append(sum(one(open_project, number).values()))
    totals = [sum(row.values()) for row in rows][2:]
    steps = {name: statistics.median(row[name] for row in rows[2:]) for name in rows[0]}
    overhead = statistics.median(sum(row.values()) - row[TRAINING] for row in rows[2:])
    numbers = range(iterations + 2)
    yardstick = statistics.median(bare(project.layout.root, number) for number in numbers)
    return {
        "files": FILES,
        "iterations": iterations,
        "steps_ms": {name: round(value, 1) for name, value in steps.items()},
        "overhead_ms": round(overhead, 1),
        "whole_ms": round(statistics.median(totals), 1),
        "sandbox": sandbox_kind(project.task),
        "sandbox_ms": round(statistics.median(totals) - statistics.median(free[2:]), 1),
        "yardstick_ms": round(yardstick, 1),
        "ratio": round(overhead / yardstick, 2),
        "goal_ms": GOAL_MS,
        "sandbox_goal_ms": SANDBOX_GOAL_MS,
    }


def laboratory(root: Path) -> Project:
    make_repository(root)
    return Project.open(root).with_tag("bench")


def make_repository(root: Path) -> None:
    fill(root)
    Repository.create(root, "start")


def fill(root: Path) -> None:
    """The files of a repository, not committed."""
    root.mkdir(parents=True)
    (root / "train.py").write_text(SCRIPT)
    for number in range(FILES - 1):
        path = root / f"part{number % 10}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * 40)


def one(project: Project, number: int) -> dict[str, float]:
    """Milliseconds of each step of one iteration."""
    executor = LocalExecutor(project.repository, project.layout)
    change = Change() if number == 0 else Change(overrides={"RATE": 1.0 + number})
    with runner.free_worker(project) as worker:
        spec, planned = timed(lambda: runner.plan(project, Experiment(change), worker))
        handle, submitted = timed(lambda: executor.submit(spec))
        _, waited = timed(lambda: runner.follow(project, executor, handle))
        _, collected = timed(lambda: executor.collect(handle))
    training = float(read_json(project.layout.run(spec.experiment_id).exit)["wall_seconds"]) * 1e3
    _, settled = timed(lambda: settle(project, [spec.experiment_id], decided_by="benchmark"))
    _, synced = timed(lambda: sync(project.layout))
    return {
        "prepare": planned,
        "submit": submitted,
        "shim": waited - training,
        TRAINING: training,
        "collect": collected,
        "settle": settled,
        "sync": synced,
    }


def bare(root: Path, number: int) -> float:
    """Milliseconds of the same work by hand: edit, commit, check out, run."""
    (root / "train.py").write_text(SCRIPT.replace("0.1", str(number)))

    def work() -> None:
        for words in (
            ("git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qam", "try"),
            ("git", "checkout", "-q", "--detach", "HEAD~1"),
            ("git", "checkout", "-q", "-"),
            (sys.executable, "train.py"),
        ):
            subprocess.run(words, cwd=root, check=True, stdout=subprocess.DEVNULL)

    return timed(work)[1]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = work()
    return value, (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
