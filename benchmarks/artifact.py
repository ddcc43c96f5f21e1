"""Overhead of one iteration of a task: everything but mutator, runner and scorer.

    python -m benchmarks.artifact [--quick] [--json]

A repository of 200 files and a task with a program that makes one change, one that runs it and one
that scores it, each in the sandbox where there is one. What those three take is subtracted: it is
theirs. The yardstick in the same run is that of benchmarks.iteration: git's own commit and
checkout, and starting a script once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from autohypothesis.commands.task import loop_of
from autohypothesis.engine import runner
from autohypothesis.engine.experiment import Experiment, RunSpec
from autohypothesis.engine.program import sandbox_kind
from autohypothesis.engine.project import Project
from autohypothesis.fleet.artifact import TaskLoop
from autohypothesis.records.git import Repository
from benchmarks.iteration import FILES, bare, fill, timed

GOAL_MS = 250.0
TASK = """\
id: bench
artifacts: [text.txt]
protected: [mutate.py, run.py, score.py]
mutator: {type: command, command: [python, -S, bench/mutate.py]}
run: {command: [python, -S, bench/run.py], device: cpu}
scorer: {type: command, command: [python, -S, bench/score.py]}
objective: {metric: score, direction: maximize, min_delta: 0.5}
"""
MUTATE = """\
import os
open('bench/text.txt', 'a').write('xy'[int(os.environ['SEED']) % 2] + os.environ['SEED'] + '\\n')
"""
RUN = "print(len(open('bench/text.txt').read()))\n"
SCORE = "print('{\"score\": %d}' % open('bench/text.txt').read().count('x'))\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="8 iterations instead of 40")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
        os.environ["AUTOHYPOTHESIS_LOCKS"] = str(Path(folder) / "locks")
        report = measure(Path(folder) / "repository", 8 if options.quick else 40)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{FILES} files, {report['iterations']} iterations, {report['sandbox']}; medians")
    for step, milliseconds in report["steps_ms"].items():
        print(f"  {step:<10} {milliseconds:7.1f} ms")
    print(f"  {'overhead':<10} {report['overhead_ms']:7.1f} ms   (goal: under {GOAL_MS:.0f})")
    print(f"  {'theirs':<10} {report['programs_ms']:7.1f} ms   mutator, runner, scorer")
    print(f"  {'yardstick':<10} {report['yardstick_ms']:7.1f} ms   git commit, checkout, one start")
    print(f"  {'ratio':<10} {report['ratio']:7.2f}")


def measure(root: Path, iterations: int) -> dict[str, Any]:
    """Medians in milliseconds; the first two iterations warm caches and are left out."""
    make_repository(root)
    project = Project.open(root, task=root / "bench" / "task.yaml").with_tag("bench")
    made = loop_of(project, 1, 0)
    loop = Timed(**{one.name: getattr(made, one.name) for one in fields(TaskLoop)})
    loop.emit = loop.watched
    loop.say, loop.watch = lambda text: None, runner.ProgressListener()
    loop.run(iterations + 2)
    rows = loop.rows[2:]
    steps = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    theirs = steps.pop("programs")
    overhead = statistics.median(sum(row.values()) - row["programs"] for row in rows)
    yardstick = statistics.median(bare(root, number) for number in range(iterations))
    return {
        "files": FILES,
        "iterations": iterations,
        "sandbox": sandbox_kind(project.task),
        "steps_ms": {name: round(value, 1) for name, value in steps.items()},
        "overhead_ms": round(overhead, 1),
        "programs_ms": round(theirs, 1),
        "yardstick_ms": round(yardstick, 1),
        "ratio": round(overhead / yardstick, 2),
        "goal_ms": GOAL_MS,
    }


class Timed(TaskLoop):
    """A loop that knows how long each step of each iteration took, and what the programs took."""

    rows: list[dict[str, float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows = []
        self._row: dict[str, float] = {}

    def make(self, requests: Sequence[Experiment], own: Project | None = None) -> list[RunSpec]:
        specs: list[RunSpec]
        specs, self._row["make"] = timed(lambda: super(Timed, self).make(requests, own))
        return specs

    def execute(self, specs: Sequence[RunSpec]) -> None:
        _, self._row["execute"] = timed(lambda: super(Timed, self).execute(specs))

    def decide(self) -> None:
        _, self._row["decide"] = timed(super().decide)
        if "programs" in self._row:
            self.rows.append(self._row)
        self._row = {}

    def watched(self, line: dict[str, Any]) -> None:
        """An iteration was decided: what its programs took is none of ours."""
        took = {name: 1e3 * (seconds or 0.0) for name, seconds in line["durations"].items()}
        self._row["make"] -= took["mutator"]
        self._row["execute"] -= took["run"] + took["scorer"]
        self._row["programs"] = sum(took.values())


def make_repository(root: Path) -> None:
    fill(root)
    folder = root / "bench"
    folder.mkdir()
    for name, text in (
        ("task.yaml", TASK), ("mutate.py", MUTATE), ("run.py", RUN), ("score.py", SCORE),
        ("text.txt", "a\n"),
    ):  # fmt: skip
        (folder / name).write_text(text)
    Repository.create(root, "start")


if __name__ == "__main__":
    main()
