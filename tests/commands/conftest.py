"""A research folder as a fleet leaves it, without a fleet: each part can be damaged by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records import bundles
from autohypothesis.records.files import write_json as write_durably
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process
from autohypothesis.schema import (
    Decision,
    ExitRecord,
    Heartbeat,
    Hypothesis,
    Manifest,
    Metadata,
    Plan,
    PlannedHypothesis,
    Result,
    RoleStatus,
    RunIdentity,
    Runtime,
    Worker,
    now,
)

TAG = "nov20"
write_json = partial(write_durably, durable=False)


class FleetFolder:
    """Writes what observer, workers and shim write. This process stands for all of theirs."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.repository = Repository(root)
        self.queue = Queue(self.layout, TAG)
        self.head = self.repository.head()
        self.own = Process.own()
        self.begun = now() - timedelta(hours=10)
        self.decided = 0
        self.manifest("cpu0", "cpu1")
        self.repository.compare_and_swap(f"refs/heads/autoresearch/{TAG}", self.head, None)

    def manifest(self, *workers: str) -> None:
        manifest = Manifest(
            tag=TAG,
            created_at=self.begun,
            repository_root=str(self.layout.root),
            shared_research_dir=str(self.layout.research),
            workers=[Worker(worker_id=name, gpu_id=name, device=name) for name in workers],
        )
        write_json(self.layout.manifest, manifest)

    def beat(self, worker: str, **changes: Any) -> None:
        said: dict[str, Any] = {
            "worker_id": worker,
            "node_id": self.own.host,
            "state": "training",
            "pid": self.own.pid,
            "process_start": self.own.start,
            "updated_at": now(),
            "started_at": now() - timedelta(hours=1),
            "since": now() - timedelta(seconds=301),
            "busy_seconds": 2700.0,
            "run_id": f"h-{TAG}-0007-1",
            "title": f"an idea for {worker}",
            "metrics": {"train_loss": 3.25, "tok_per_sec": 27123.4},
            "progress": {"progress_pct": 62.0},
            **changes,
        }
        write_json(self.layout.heartbeat(worker), Heartbeat.model_validate(said))

    def role(self, name: str, **changes: Any) -> None:
        said: dict[str, Any] = {
            "role": name,
            "node_id": self.own.host,
            "pid": self.own.pid,
            "process_start": self.own.start,
            "state": "working",
            "updated_at": now(),
            "last_action": f"what the {name} did",
            "last_action_at": now() - timedelta(seconds=121),
            **changes,
        }
        write_json(self.layout.role(name), RoleStatus.model_validate(said))

    def board(self, **best: Any) -> None:
        """The leaderboard, with a best run or without."""
        row = {
            "id": f"h-{TAG}-0003-1", "metric_name": "val_bpb", "metric_value": 1.4,
            "direction": "minimize", "description": "the best idea", "platform_key": "p", **best,
        }  # fmt: skip
        value = {
            "generated_at": "2026-11-20T08:00:00Z", "total_runs": 12, "decided_runs": 11,
            "active_workers": 2, "keep_rate": 0.25, "tag": TAG, "best_run": row if best else None,
        }  # fmt: skip
        self.layout.leaderboard.parent.mkdir(parents=True, exist_ok=True)
        self.layout.leaderboard.write_text(json.dumps(value))  # NaN and all

    def ran(
        self,
        hypothesis_id: str,
        status: str,
        value: float | None = None,
        *,
        reference: float | None = None,
        at: datetime | None = None,
        minutes: float = 30.0,
        worker: str = "cpu0",
        kind: str | None = None,
        confirmation: str = "none",
        proposer: str = "search",
        predicted: float | None = None,
    ) -> str:
        """One finished and decided experiment; its id."""
        name, start = f"{hypothesis_id}-1", at or self.begun + timedelta(hours=self.decided)
        run, end = self.layout.run(name), start + timedelta(minutes=minutes)
        baseline = hypothesis_id.startswith("baseline")
        prediction = None if predicted is None else {"delta": predicted}
        idea: dict[str, Any] = {"hypothesis_id": hypothesis_id, "title": f"title of {name}"}
        write_json(
            self.layout.plan(name),
            Plan(
                experiment_id=name, created_at=start, based_on_commit=self.head, worker_id=worker,
                tag=TAG, hypothesis=PlannedHypothesis.model_validate(idea),
            ),
        )  # fmt: skip
        write_json(
            self.layout.hypothesis(hypothesis_id, "done"),
            Hypothesis.model_validate(
                {**idea, "tag": TAG, "proposer": proposer, "prediction": prediction}
            ),
        )
        parent = None if baseline else self.head
        write_json(
            run.metadata,
            Metadata(
                recorded_at=end,
                run=RunIdentity(
                    experiment_id=name, worker_id=worker, hypothesis_id=hypothesis_id, tag=TAG
                ),
                runtime=Runtime(commit=self.head, parent_commit=parent, platform_key="p"),
            ),
        )
        write_json(
            run.exit,
            ExitRecord(
                experiment_id=name, status="exited", exit_code=0, started_at=start, ended_at=end,
                wall_seconds=60 * minutes,
            ),
        )  # fmt: skip
        self.decided += 1
        decision = Decision.model_validate(
            {
                "decision_id": f"d-{self.decided:06d}-{name}", "recorded_at": end, "tag": TAG,
                "experiment_id": name, "hypothesis_id": hypothesis_id, "commit": self.head,
                "decision_status": status, "reason": "improved" if status == "keep" else "worse",
                "metric_value": value, "reference_value": reference, "platform_key": "p",
                "improvement": reference - value if reference and value else None,
                "confirmation": confirmation,
            }
        )  # fmt: skip
        write_json(
            run.result,
            Result.model_validate(
                {
                    "status": "failed" if status == "crash" else "completed",
                    "decision_status": status, "decision_id": decision.decision_id,
                    "recorded_at": end, "commit": self.head, "parent_commit": parent,
                    "title": idea["title"], "metric_value": value, "failure_kind": kind,
                    "failure_detail": f"why it failed: {kind}" if kind else "",
                    "confirmation": confirmation,
                }
            ),
        )  # fmt: skip
        bundles.append_decision(self.layout, decision)
        return name

    def files(self) -> dict[str, int]:
        """Every file below the root with its time: to see that a look leaves no trace."""
        found = {}
        for folder, _, names in os.walk(self.layout.root):
            for name in names:
                path = os.path.join(folder, name)
                found[path] = os.lstat(path).st_mtime_ns
        return found


@pytest.fixture
def fleet(foreign: Path) -> FleetFolder:
    """A search with two workers of which nothing has been heard yet."""
    return FleetFolder(foreign)


@pytest.fixture
def page() -> Callable[..., str]:
    """What a person sees, as text of a given width; with its escape codes if asked for."""

    def render(what: RenderableType, width: int = 80, *, colours: bool = False) -> str:
        shown = StringIO()
        system = "truecolor" if colours else None
        Console(
            file=shown, width=width, highlight=False, force_terminal=colours, color_system=system
        ).print(what)
        return shown.getvalue()

    return render
