"""A research folder as a fleet leaves it, without a fleet: each part can be damaged by itself."""

from __future__ import annotations

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
from autohypothesis.records.files import read_json
from autohypothesis.records.files import write_json as write_durably
from autohypothesis.records.git import Repository
from autohypothesis.records.locks import Process
from autohypothesis.records.rows import VALUELESS
from autohypothesis.schema import Heartbeat, RoleStatus, now, rfc3339
from tests.records.conftest import Lab

TAG = "nov20"
write_json = partial(write_durably, durable=False)


class FleetFolder(Lab):
    """Writes what observer, workers and shim write. This process stands for all of theirs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.queue = Queue(self.layout, TAG)
        self.head = Repository(root).head()
        self.own = Process.own()
        self.begun = now() - timedelta(hours=10)
        self.manifest("cpu0", "cpu1")
        Repository(root).compare_and_swap(f"refs/autohypothesis/reference/{TAG}", self.head, None)

    def manifest(self, *workers: str) -> None:
        self.put(
            self.layout.manifest,
            {
                "tag": TAG, "created_at": rfc3339(self.begun), "repository_root": str(self.root),
                "shared_research_dir": str(self.layout.research),
                "workers": [{"worker_id": n, "gpu_id": n, "device": n} for n in workers],
            },
        )  # fmt: skip

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
            "direction": "minimize", "description": "the best idea", "platform_key": "key", **best,
        }  # fmt: skip
        value = {
            "generated_at": "2026-11-20T08:00:00Z", "total_runs": 12, "decided_runs": 11,
            "active_workers": 2, "keep_rate": 0.25, "tag": TAG, "best_run": row if best else None,
        }  # fmt: skip
        self.put(self.layout.leaderboard, value)  # NaN and all

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
        ended_at = rfc3339(start + timedelta(minutes=minutes))
        made = {"recorded_at": ended_at, "commit": self.head, "confirmation": confirmation}
        self.plan(name, TAG, based_on_commit=self.head, worker_id=worker)
        self.put(
            self.layout.hypothesis(hypothesis_id, "done"),
            {
                "hypothesis_id": hypothesis_id, "tag": TAG, "title": f"title of {name}",
                "proposer": proposer,
                "prediction": None if predicted is None else {"delta": predicted},
            },
        )  # fmt: skip
        decision = self.decide(
            name, status, value, hypothesis_id=hypothesis_id, reference_value=reference,
            improvement=reference - value if reference and value else None, **made,
        )  # fmt: skip
        self.bundle(
            name, value, tag=TAG, title=f"title of {name}", decision_status=status,
            status="failed" if status in VALUELESS else "completed", decision_id=decision,
            parent_commit=None if hypothesis_id.startswith("baseline") else self.head,
            failure_kind=kind, failure_detail=f"why it failed: {kind}" if kind else "", **made,
        )  # fmt: skip
        metadata = read_json(self.layout.run(name).metadata)
        metadata["run"]["worker_id"] = worker
        self.put(self.layout.run(name).metadata, metadata)
        ended = {"experiment_id": name, "status": "exited", "exit_code": 0, "ended_at": ended_at}
        spent = {"started_at": rfc3339(start), "wall_seconds": 60 * minutes}
        self.put(self.layout.run(name).exit, ended | spent)
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
