"""Runs as an older tool of the published format left them: no tags, decisions in the bundles.

A prediction is a text, the score lies under `metrics.val_bpb`, a crash has 0.0, commits are those
of another clone, and times have an offset in place of a Z.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from autohypothesis.records.layout import Layout

START = datetime(2026, 3, 28, tzinfo=timezone.utc)
WRITTEN = 1_760_000_000
"""Files that were left long ago are older than this minute."""
SETTINGS = {
    "depth": 8, "aspect_ratio": 64, "head_dim": 128, "window_pattern": "SSSL",
    "total_batch_size": 524288, "device_batch_size": 128, "embedding_lr": 0.6,
    "unembedding_lr": 0.004, "matrix_lr": 0.04, "scalar_lr": 0.5, "weight_decay": 0.2,
    "adam_betas": [0.8, 0.95], "warmup_ratio": 0.0, "warmdown_ratio": 0.5, "final_lr_frac": 0.0,
}  # fmt: skip
WORDS = "the schedule trades capacity of the residual for throughput at this batch size "


def name_of(number: int) -> str:
    return f"exp-{number:05d}"


def decision_of(number: int) -> str:
    """Return its decision: one keep in seven, one crash in eleven, one replicate in thirteen."""
    kinds = ((7, "keep"), (11, "crash"), (13, "replicate"))
    return next((kind for every, kind in kinds if number % every == 0), "discard")


def value_of(number: int) -> float:
    return round(0.998 - number * 1e-6, 6)


def documents(number: int) -> dict[str, dict[str, Any]]:
    """Return the documents of one finished run, by the name of their file; the plan's is `plan`."""
    name, decision = name_of(number), decision_of(number)
    title, rate = f"matrix rate, try {number}", round(0.03 + number % 9 / 500, 3)
    settings = {**SETTINGS, "matrix_lr": rate}
    ended = (START + timedelta(seconds=180 * number)).isoformat()
    commit, parent = f"{number + 0xABC0000:07x}", f"{max(number - 1, 0) + 0xABC0000:07x}"
    crashed = decision == "crash"
    metrics = {
        "val_bpb": 0.0 if crashed else value_of(number),
        "peak_vram_mb": 0.0 if crashed else 45060.2, "num_steps": 0 if crashed else 953,
        "training_seconds": 300.1, "total_seconds": 325.9, "mfu_percent": 39.8,
        "total_tokens_M": 499.6, "num_params_M": 50.3, "depth": 8, "tok_per_sec": 1_650_000,
    }  # fmt: skip
    hypothesis = {
        "hypothesis_id": f"hyp-{number:05d}", "title": title, "rationale": WORDS * 4,
        "config_overrides": {"matrix_lr": rate}, "priority": number % 100,
        "prediction": WORDS,
    }  # fmt: skip
    runtime = {
        "commit": commit, "parent_commit": parent, "gpu_name": "NVIDIA H100 80GB HBM3",
        "diff_stat": "1 file changed, 1 insertion(+), 1 deletion(-)", "diff_hash": commit,
    }  # fmt: skip
    identity = {
        "run_id": name, "worker_id": "worker-gpu0", "gpu_id": "0",
        "hypothesis_id": hypothesis["hypothesis_id"],
    }  # fmt: skip
    return {
        "config.json": {**settings, "notes": title, "hyperparameters": settings},
        "metadata.json": {
            "recorded_at": ended, "run": identity, "runtime": runtime,
            "hyperparameters": settings, "results": metrics,
        },
        "result.json": {
            "experiment_id": name, "status": "failed" if crashed else "completed",
            "decision_status": decision, "recorded_at": ended, "commit": commit,
            "parent_commit": parent, "title": title, "analysis": WORDS * 3, "outcome": WORDS,
            "metrics": metrics,
        },
        "plan": {
            "experiment_id": name, "created_at": ended, "based_on_commit": parent,
            "worker_id": "worker-gpu0", "hypothesis": hypothesis,
        },
    }  # fmt: skip


def write_run(layout: Layout, number: int) -> None:
    """Write one finished run: plan, page, bundle and a few events."""
    name, made = name_of(number), documents(number)
    run, plan = layout.run(name), made.pop("plan")
    run.folder.mkdir(parents=True)
    layout.plans.mkdir(parents=True, exist_ok=True)
    paths = {run.folder / file: document for file, document in made.items()}
    for path, document in {**paths, layout.plan(name): plan}.items():
        path.write_text(json.dumps(document, indent=2) + "\n")
    page = f"# {plan['hypothesis']['title']}\n\n## Decision\n\n{WORDS * 8}\n"
    layout.plan_page(name).write_text(page)
    event = {
        "event_type": "heartbeat",
        "recorded_at": plan["created_at"],
        "worker_id": "worker-gpu0",
    }
    run.events.write_text(json.dumps(event) + "\n")
    for path in (*paths, layout.plan(name), layout.plan_page(name)):
        os.utime(path, (WRITTEN, WRITTEN))
