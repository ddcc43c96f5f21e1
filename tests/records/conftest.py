"""A research/ folder to work on, with bundles as the engine leaves them and as older tools did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.records.layout import Layout

T = "2026-11-20T01:02:03.456Z"


class Lab:
    """One repository's root, and short ways to put records there."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.layout = Layout(root)
        self.decided = 0

    def put(self, path: Path, value: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    def plan(self, experiment: str, tag: str = "nov20", **more: Any) -> None:
        hypothesis = {
            "hypothesis_id": experiment.rpartition("-")[0], "title": f"idea {experiment}",
            "rationale": "because", "config_overrides": {"MATRIX_LR": 0.05},
        }  # fmt: skip
        plan = {
            "experiment_id": experiment, "created_at": T, "based_on_commit": "b" * 40,
            "worker_id": "worker-gpu0", "tag": tag, "seed": 7, "hypothesis": hypothesis, **more,
        }  # fmt: skip
        self.put(self.layout.plan(experiment), plan)
        self.layout.plan_page(experiment).write_text(f"# idea {experiment}\n")

    def bundle(self, experiment: str, bpb: Any = 1.5, *, tag: str = "nov20", **result: Any) -> Path:
        run = self.layout.run(experiment)
        metrics = {"val_bpb": bpb, "peak_vram_mb": 2048.0, "num_steps": 100, "depth": 4}
        commit = f"{abs(hash(experiment)):040x}"[-40:]
        self.put(run.config, {"depth": 4, "matrix_lr": 0.04, "adam_betas": [0.8, 0.95]})
        identity = {
            "experiment_id": experiment, "worker_id": "worker-gpu0", "tag": tag, "seed": 7,
            "hypothesis_id": experiment.rpartition("-")[0],
        }  # fmt: skip
        runtime = {"commit": commit, "platform_key": "key", "budget_seconds": 60}
        metadata = {"recorded_at": T, "run": identity, "runtime": runtime, "metrics": metrics}
        self.put(run.metadata, metadata)
        ended = {
            "status": "completed", "recorded_at": T, "commit": commit,
            "title": f"idea {experiment}", "metric_value": bpb, "metrics": metrics, **result,
        }  # fmt: skip
        self.put(run.result, ended)
        samples = [[k / 20, 3.0 - k / 50, 2.0 - k / 40, 1000.0] for k in range(21)]
        exited = {"status": "exited", "ended_at": T, "samples": samples}
        self.put(run.exit, {"experiment_id": experiment, **exited})
        return run.folder

    def decide(self, experiment: str, status: str, value: Any = None, **more: Any) -> str:
        self.decided += 1
        decision = {
            "decision_id": f"d-{self.decided}", "recorded_at": T, "tag": "nov20",
            "experiment_id": experiment, "decision_status": status, "metric_value": value,
            "platform_key": "key", "reason": "improved" if status == "keep" else "worse", **more,
        }  # fmt: skip
        self.layout.decisions.parent.mkdir(parents=True, exist_ok=True)
        with self.layout.decisions.open("a") as file:
            file.write(json.dumps(decision) + "\n")
        return str(decision["decision_id"])

    def whole(self, experiment: str, bpb: Any, status: str, **more: Any) -> None:
        """An experiment from plan to decision."""
        self.plan(experiment)
        decision = self.decide(experiment, status, bpb, **more)
        self.bundle(experiment, bpb, decision_status=status, decision_id=decision)

    def rows(self) -> dict[str, dict[str, Any]]:
        lines = self.layout.ledger.read_text().splitlines()
        return {row["id"]: row for row in map(json.loads, lines)}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "repo")


@pytest.fixture(scope="session")
def new_lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For property tests: a fresh laboratory for every example."""
    return lambda: Lab(tmp_path_factory.mktemp("lab"))
