"""Fold and sync of 100, 1,000 and 10,000 bundles, ours and an older tool's, cold and with one new.

    python -m benchmarks.fold [--quick] [--json]

Seconds say little on a machine that others use. So all of it is CPU time, user and system, and each
figure stands beside a yardstick taken in the same run, turn by turn: for a cold fold and for the
command, a Python that reads and parses result.json, metadata.json and config.json of every run; for
a fold with a single new bundle, the status of all files. Each is the best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import refold
from benchmarks import _predecessor

TIME = "2026-11-20T01:02:03.456Z"
WRITTEN = 1_760_000_000
"""Files that a night's search left are older than this minute."""
RUN_FILES = ("config.json", "metadata.json", "result.json", "exit.json")
GOALS = {"cold_over_parsing": 4.0, "one_new_over_stat": 3.0, "command_over_parsing": 1.0}


# ── bundles as the engine leaves them ───────────────────────────────────────────────────────


def outcome(number: int) -> str:
    """One in nine is kept, as in a lucky night."""
    return "keep" if number % 9 == 0 else "discard"


def write_bundle(layout: Layout, number: int, *, decided: bool = True) -> None:
    """One completed experiment, plan to result: what a row is made from."""
    name = f"h-bench-{number:05d}"
    run = layout.run(f"{name}-1")
    run.folder.mkdir(parents=True)
    commit, bpb = f"{number:040x}", round(1.9 - number * 1e-5, 6)
    metrics = {
        "val_bpb": bpb, "printed_val_bpb": bpb, "score_difference": 0.0, "peak_vram_mb": 45060.2,
        "training_seconds": 300.1, "total_seconds": 325.9, "mfu_percent": 39.8,
        "total_tokens_M": 499.6, "num_steps": 953, "num_params_M": 50.3, "depth": 8,
    }  # fmt: skip
    config = {
        "depth": 8, "aspect_ratio": 64, "head_dim": 128, "window_pattern": "SSSL",
        "total_batch_size": 524288, "device_batch_size": 128, "embedding_lr": 0.6,
        "unembedding_lr": 0.004, "matrix_lr": 0.04, "scalar_lr": 0.5, "weight_decay": 0.2,
        "adam_betas": [0.8, 0.95], "warmup_ratio": 0.0, "warmdown_ratio": 0.5,
    }  # fmt: skip
    identity = {
        "experiment_id": f"{name}-1", "worker_id": "worker-gpu0", "gpu_id": "GPU-1",
        "hypothesis_id": name, "rationale": "a longer warmdown " * 8, "title": "longer warmdown",
        "tag": "bench", "seed": 1,
    }  # fmt: skip
    runtime = {
        "commit": commit, "parent_commit": "0" * 40, "gpu_name": "NVIDIA H100 80GB HBM3",
        "diff_stat": "1 file changed, 1 insertion(+), 1 deletion(-)", "diff_hash": f"{number:064x}",
        "platform_key": "8" * 64, "profile": "h100", "budget_seconds": 300, "clock": "wall",
    }  # fmt: skip
    result = {
        "status": "completed", "decision_status": outcome(number) if decided else "review_pending",
        "decision_id": f"d-{number}" if decided else None,
        "recorded_at": TIME, "commit": commit, "parent_commit": "0" * 40,
        "title": "longer warmdown", "analysis": "no better " * 20, "outcome": "worse",
        "attested": True, "metric_name": "val_bpb", "metric_value": bpb, "direction": "minimize",
        "evidence": {"clock": {"drift": 0.001}, "guard": {"touched": ["train.py"]}},
        "metrics": metrics,
    }  # fmt: skip
    samples = [[round(k / 60, 4), round(3.1 - k / 90, 5), round(2.2 - k / 200, 5), 1.65e6]
               for k in range(61)]  # fmt: skip
    ended = {
        "experiment_id": f"{name}-1", "status": "exited", "exit_code": 0, "started_at": TIME,
        "ended_at": TIME, "wall_seconds": 325.9, "cpu_seconds": 321.0, "samples": samples,
    }  # fmt: skip
    plan = {
        "experiment_id": f"{name}-1", "created_at": TIME, "based_on_commit": "0" * 40,
        "worker_id": "worker-gpu0", "tag": "bench", "seed": 1,
        "hypothesis": {"hypothesis_id": name, "title": "longer warmdown", "rationale": "it may do",
                       "config_overrides": {"WARMDOWN_RATIO": 0.6}},
    }  # fmt: skip
    metadata = {"recorded_at": TIME, "run": identity, "runtime": runtime, "metrics": metrics}
    for path, value in (
        (run.config, config), (run.metadata, metadata), (run.result, result), (run.exit, ended),
        (layout.plan(f"{name}-1"), plan),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2 if value is not ended else None))
    layout.plan_page(f"{name}-1").write_text("# longer warmdown\n\nIt may help.\n")
    for path in source_files(layout, f"{name}-1"):
        os.utime(path, (WRITTEN, WRITTEN))


def write_decisions(layout: Layout, count: int) -> None:
    lines = [
        json.dumps({
            "decision_id": f"d-{n}", "recorded_at": TIME, "tag": "bench",
            "experiment_id": f"h-bench-{n:05d}-1", "hypothesis_id": f"h-bench-{n:05d}",
            "commit": f"{n:040x}", "decision_status": outcome(n),
            "reason": "worse", "metric_value": round(1.9 - n * 1e-5, 6), "platform_key": "8" * 64,
            "confirmation": "provisional", "direction": "minimize", "decided_by": "loop",
        })
        for n in range(count)
    ]  # fmt: skip
    layout.decisions.write_text("".join(f"{line}\n" for line in lines))


def source_files(layout: Layout, experiment: str) -> list[Path]:
    """What a row is made from."""
    folder = layout.run(experiment).folder
    plan = [layout.plan(experiment), layout.plan_page(experiment)]
    return [*(folder / name for name in RUN_FILES), *plan]


class Tree(NamedTuple):
    """A kind of bundles."""

    title: str
    name_of: Callable[[int], str]
    write: Callable[[Layout, int], None]
    """Write a finished run that no decision of ours is about."""
    fill: Callable[[Layout, int], None]


def _fill_ours(layout: Layout, count: int) -> None:
    for number in range(count):
        write_bundle(layout, number)
    write_decisions(layout, count)


def _fill_older(layout: Layout, count: int) -> None:
    for number in range(count):
        _predecessor.write_run(layout, number)


TREES = {
    "ours": Tree(
        "bundles of ours",
        "h-bench-{:05d}-1".format,
        lambda layout, number: write_bundle(layout, number, decided=False),
        _fill_ours,
    ),
    "older": Tree(
        "bundles of an older tool", _predecessor.name_of, _predecessor.write_run, _fill_older
    ),
}

# ── yardsticks ──────────────────────────────────────────────────────────────────────────────

PARSE = """
import json, os, sys
for name in os.listdir(sys.argv[1]):
    for file in ("result.json", "metadata.json", "config.json"):
        with open(f"{sys.argv[1]}/{name}/{file}") as document:
            json.load(document)
"""
"""What a page or a script does that looks at every run."""


def stat_all(paths: list[str]) -> None:
    for path in paths:
        try:
            os.lstat(path)
        except FileNotFoundError:  # an older tool leaves no exit.json
            continue


def best(rounds: int, *jobs: Callable[[int], Any]) -> list[float]:
    """The shortest time of each job over `rounds`, taken in turn so that noise meets them alike."""
    times = [float("inf")] * len(jobs)
    for turn in range(rounds):
        for number, job in enumerate(jobs):
            started = time.perf_counter()
            job(turn)
            times[number] = min(times[number], time.perf_counter() - started)
    return times


# ── measuring ───────────────────────────────────────────────────────────────────────────────


def _own(job: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    job()
    return time.process_time() - started


def _process(*words: str) -> float:
    """Return the CPU seconds of a Python process, and of those that it starts."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=kept)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _sync(layout: Layout, *options: str) -> float:
    """Return the CPU seconds of the command, as people and agents run it."""
    words = ("--repo", str(layout.root), "sync", *options)
    return _process("-m", "autohypothesis", *words)


def measure(tree: Tree, count: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fold-") as folder:
        subprocess.run(["git", "init", "-q", folder], check=True)
        layout = Layout(Path(folder))
        tree.fill(layout, count)
        names = map(tree.name_of, range(count))
        paths = [str(path) for name in names for path in source_files(layout, name)]
        _sync(layout, "--all")
        numbers = iter(range(count, count + 10 * rounds))
        turns = [_turn(tree, layout, paths, numbers) for _ in range(rounds)]
        least = {key: min(turn[key] for turn in turns) for key in turns[0]}
    return least | {
        "cold_over_parsing": least["cold_fold_s"] / least["parsing_s"],
        "one_new_over_stat": least["one_new_fold_s"] / least["stat_s"],
        "command_over_parsing": least["command_s"] / least["parsing_s"],
    }


def _turn(tree: Tree, layout: Layout, paths: list[str], numbers: Any) -> dict[str, float]:
    """Measure each once: the two folds in this process, the command with another new bundle."""
    turn = {
        "parsing_s": _process("-c", PARSE, str(layout.runs)),
        "cold_fold_s": _own(lambda: refold(layout, cold=True)),
        "stat_s": _own(lambda: stat_all(paths)),
    }
    tree.write(layout, next(numbers))
    turn["one_new_fold_s"] = _own(lambda: refold(layout))
    _sync(layout)
    tree.write(layout, next(numbers))
    for young in (layout.aggregate_parquet, layout.fleet_brief, layout.progress_png):
        os.utime(young)  # what is younger than a minute is left, and is not part of the goal
    return {**turn, "command_s": _sync(layout)}


# ── printing ────────────────────────────────────────────────────────────────────────────────

COLUMNS = {
    "parsing_s": "parse", "cold_fold_s": "cold fold", "cold_over_parsing": "ratio",
    "stat_s": "stat", "one_new_fold_s": "one new", "one_new_over_stat": "ratio",
    "command_s": "command", "command_over_parsing": "to parse",
}  # fmt: skip


def table(figures: dict[str, dict[int, dict[str, float]]]) -> str:
    lines = []
    for kind, by_count in figures.items():
        lines.append(TREES[kind].title)
        lines.append(f"{'bundles':>8}" + "".join(f"{name:>11}" for name in COLUMNS.values()))
        for count, row in by_count.items():
            cells = (
                f"{row[key]:>10.2f}x" if "over" in key else f"{row[key]:>9.3f} s" for key in COLUMNS
            )
            lines.append(f"{count:>8,}" + "".join(cells))
        largest = by_count[max(by_count)]
        lines += [
            f"goal {key} < {goal:g}: {value:.2f} {'met' if value < goal else 'MISSED'}"
            for key, goal in GOALS.items()
            if (value := largest[key])
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 bundles only")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    counts = [100, 1_000] if arguments.quick else [100, 1_000, 10_000]
    figures = {
        kind: {count: measure(tree, count, 3 if count > 1_000 else 5) for count in counts}
        for kind, tree in TREES.items()
    }
    if arguments.json:
        print(json.dumps({"goals": GOALS, "bundles": figures}))
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
