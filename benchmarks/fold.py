"""Fold and sync of 100, 1,000 and 10,000 bundles, cold and with one new.

    python -m benchmarks.fold [--quick] [--json]

Seconds say little on a machine that others use, so each figure stands beside a yardstick taken in
the same run: for a cold fold, opening and reading the same files; for one with a single new
bundle, asking the state of the same files. Each is the best of several rounds, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autohypothesis.fleet.sync import sync
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import refold

TIME = "2026-11-20T01:02:03.456Z"
WRITTEN = 1_760_000_000
"""Files that a night's search left are older than this minute."""
RUN_FILES = ("config.json", "metadata.json", "result.json", "exit.json")
GOALS = {"cold_over_reading": 3.0, "one_new_over_stat": 3.0, "sync_command_s": 0.8}


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


# ── yardsticks ──────────────────────────────────────────────────────────────────────────────


def read_all(paths: list[str]) -> None:
    """BaselineSchedule and reading, the way one does it in Python."""
    for path in paths:
        with open(path, "rb") as file:
            file.read()


def read_all_bare(paths: list[str]) -> None:
    """BaselineSchedule and reading with system calls alone: the floor that nothing can be below."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.read(descriptor, 1 << 16)
        os.close(descriptor)


def stat_all(paths: list[str]) -> None:
    for path in paths:
        os.lstat(path)


# ── measuring ───────────────────────────────────────────────────────────────────────────────


def best(rounds: int, *jobs: Callable[[int], Any]) -> list[float]:
    """The shortest time of each job over `rounds`, taken in turn so that noise meets them alike."""
    times = [float("inf")] * len(jobs)
    for turn in range(rounds):
        for number, job in enumerate(jobs):
            started = time.perf_counter()
            job(turn)
            times[number] = min(times[number], time.perf_counter() - started)
    return times


def measure(count: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fold-") as folder:
        layout = Layout(Path(folder))
        for number in range(count):
            write_bundle(layout, number)
        write_decisions(layout, count)
        names = [f"h-bench-{number:05d}-1" for number in range(count)]
        paths = [str(path) for name in names for path in source_files(layout, name)]
        read_all(paths)  # from memory, as after a night's search
        figures = _cold(layout, paths, rounds)
        sync(layout, all=True)
        return {**figures, **_one_new(layout, paths, count, rounds)}


def _cold(layout: Layout, paths: list[str], rounds: int) -> dict[str, float]:
    reading, bare, cold = best(
        rounds,
        lambda _: read_all(paths),
        lambda _: read_all_bare(paths),
        lambda _: refold(layout, cold=True),
    )
    return {
        "reading_s": reading,
        "reading_bare_s": bare,
        "cold_fold_s": cold,
        "cold_over_reading": cold / reading,
        "cold_over_bare_reading": cold / bare,
    }


def _one_new(layout: Layout, paths: list[str], count: int, rounds: int) -> dict[str, float]:
    """A new bundle each round: folded, then synced by the function, then by a process."""
    numbers = iter(range(count, count + 10 * rounds))
    stats, fold, whole, command = [float("inf")] * 4
    for _ in range(rounds):
        write_bundle(layout, next(numbers), decided=False)
        for young in (layout.aggregate_parquet, layout.fleet_brief):
            os.utime(young)  # what is younger than a minute is left, and is not part of the goal
        stats = min(stats, *best(1, lambda _: stat_all(paths)))
        fold = min(fold, *best(1, lambda _: refold(layout)))
        whole = min(whole, *best(1, lambda _: sync(layout)))
        write_bundle(layout, next(numbers), decided=False)
        command = min(command, *best(1, lambda _: _command(layout)))
    return {
        "stat_s": stats,
        "one_new_fold_s": fold,
        "one_new_over_stat": fold / stats,
        "one_new_sync_s": whole,
        "sync_command_s": command,
    }


def _command(layout: Layout) -> None:
    """A process of its own, as people and agents run it; the picture is not part of the goal."""
    code = (
        "import sys, pathlib; from autohypothesis.fleet.sync import sync;"
        "from autohypothesis.records.layout import Layout; sync(Layout(pathlib.Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", code, str(layout.root)], check=True)


# ── printing ────────────────────────────────────────────────────────────────────────────────

COLUMNS = {
    "reading_s": "read", "cold_fold_s": "cold fold", "cold_over_reading": "ratio",
    "cold_over_bare_reading": "to bare", "stat_s": "stat", "one_new_fold_s": "one new",
    "one_new_over_stat": "ratio", "one_new_sync_s": "sync", "sync_command_s": "process",
}  # fmt: skip


def table(figures: dict[int, dict[str, float]]) -> str:
    head = f"{'bundles':>8}" + "".join(f"{name:>11}" for name in COLUMNS.values())
    lines = [head]
    for count, row in figures.items():
        cells = (
            f"{row[key]:>10.2f}x" if "over" in key else f"{row[key]:>9.3f} s" for key in COLUMNS
        )
        lines.append(f"{count:>8,}" + "".join(cells))
    largest = figures[max(figures)]
    lines += [
        f"goal {key} < {goal:g}: {largest[key]:.2f} {'met' if largest[key] < goal else 'MISSED'}"
        for key, goal in GOALS.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 bundles only")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    counts = [100, 1_000] if arguments.quick else [100, 1_000, 10_000]
    figures = {count: measure(count, 3 if count > 1_000 else 5) for count in counts}
    if arguments.json:
        print(json.dumps({"goals": GOALS, "bundles": figures}))
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
