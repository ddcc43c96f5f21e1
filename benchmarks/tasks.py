"""How far the shipped tasks come in twenty iterations, with the mutator they ship with.

    python -m benchmarks.tasks [--seeds N] [--iterations N] [--task NAME] [--pairs N] [--quick]
                               [--json]

Each seed is one `task run` from the first commit of a fresh clone of this checkout, as it is
tracked. Reported are start, end, keeps and what became of the rest, and how far two scorings of the
same file of `fast-bpe` differ, which its `min_delta` rests on. `--quick` is one seed and three
iterations of each, which shows that it works and nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("skill-quality", "fast-bpe")
NOISY = "fast-bpe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--task", choices=NAMES, action="append", help="only this; repeatable")
    parser.add_argument("--pairs", type=int, default=10, help="of scorings of the same file")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, three iterations, two pairs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.iterations, options.pairs = 1, 3, 2
    names = tuple(options.task or NAMES)
    report: dict[str, Any] = {
        "iterations": options.iterations,
        "tasks": {name: searched(name, options.seeds, options.iterations) for name in names},
    }
    if NOISY in names:
        report["noise"] = noise(options.pairs)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, found in report["tasks"].items():
        print(said(name, found))
    if "noise" in report:
        found = report["noise"]
        print(
            f"{NOISY}: two scorings differ by {found['rms']:.4f} (root mean square of"
            f" {found['pairs']} pairs), {found['largest']:.4f} at most;"
            f" min_delta {found['min_delta']}"
        )


def searched(name: str, seeds: int, iterations: int) -> dict[str, Any]:
    """Every seed of one task, and the spread of what they gained."""
    direction = task_of(name)["objective"]["direction"]
    runs = []
    for seed in range(1, seeds + 1):
        runs.append(one_search(name, seed, iterations))
        print(f"{name} seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    sign = 1 if direction == "maximize" else -1
    gains = [sign * (run["end"] - run["start"]) for run in runs]
    return {
        "direction": direction,
        "seeds": seeds,
        "improved": sum(gain > 0 for gain in gains),
        "gain": {
            "min": round(min(gains), 4),
            "median": round(statistics.median(gains), 4),
            "max": round(max(gains), 4),
        },
        "runs": runs,
    }


def one_search(name: str, seed: int, iterations: int) -> dict[str, Any]:
    """One `task run` in a clone of its own: from the first baseline to the last keep."""
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        root = clone(Path(folder) / "clone")
        words = ["task", "run", f"tasks/{name}/task.yaml", "--iterations", str(iterations)]
        environment = {**os.environ, "AUTOHYPOTHESIS_LOCKS": str(Path(folder) / "locks")}
        started = time.monotonic()
        answer = subprocess.run(
            [sys.executable, str(root / "orchestrator.py"), *words, "--seed", str(seed)],
            cwd=root, env={**environment, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
        seconds = time.monotonic() - started
    lines = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
    lines = [line for line in lines if line.get("task_id") == name]
    if not lines:
        raise SystemExit(f"`task run` printed no iteration of {name}: {answer.stdout[-500:]!r}")
    start = next(line["baseline_score"] for line in lines if line["baseline_score"] is not None)
    kept = [line["candidate_score"] for line in lines if line["status"] == "keep"]
    return {
        "start": start,
        "end": kept[-1] if kept else start,
        "seconds": round(seconds, 1),
        "statuses": dict(Counter(line["status"] for line in lines)),
    }


def clone(root: Path) -> Path:
    """What git tracks here, as it is in the working tree, as the first commit of a repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "start")):
        subprocess.run(["git", *identity, *words], cwd=root, check=True)
    return root


def noise(pairs: int) -> dict[str, Any]:
    """How far two scorings of the shipped file differ."""
    differences = [abs(score() - score()) for _ in range(pairs)]
    return {
        "pairs": pairs,
        "rms": round(math.sqrt(statistics.fmean(one * one for one in differences)), 5),
        "largest": round(max(differences), 5),
        "min_delta": task_of(NOISY)["objective"]["min_delta"],
    }


def score() -> float:
    command = [sys.executable, str(ROOT / "tasks" / NOISY / "bench.py")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(json.loads(answer.stdout)["score"])


def task_of(name: str) -> dict[str, Any]:
    text = (ROOT / "tasks" / name / "task.yaml").read_text(encoding="utf-8")
    task: dict[str, Any] = yaml.safe_load(text)
    return task


def said(name: str, found: dict[str, Any]) -> str:
    gain, runs = found["gain"], found["runs"]
    ends = [run["end"] for run in runs]
    keeps = statistics.median(run["statuses"].get("keep", 0) for run in runs)
    return (
        f"{name}: improved in {found['improved']} of {found['seeds']} seeds, by {gain['median']:g}"
        f" ({gain['min']:g} to {gain['max']:g}), from {runs[0]['start']:g} to"
        f" {statistics.median(ends):g}; {keeps:g} keeps"
    )


if __name__ == "__main__":
    main()
