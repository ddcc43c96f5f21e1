"""Devices that are none: an executor whose trainings sleep, and workers on it, many to a process.

What is left is what a fleet itself costs: queue, preparing, collecting, deciding, folding.

    python -m benchmarks._simulated ROOT SECONDS NAME...
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from autohypothesis.engine.experiment import Executor, RunSpec, RunState
from autohypothesis.engine.project import Project
from autohypothesis.fleet.worker.worker import FleetWorker
from autohypothesis.records import bundles
from autohypothesis.records.files import read_json, write_atomic, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import (
    Manifest,
    Metadata,
    Metrics,
    Result,
    RunIdentity,
    Runtime,
    now,
    rfc3339,
)
from autohypothesis.schema import Worker as Entry


@dataclass
class Sleeping(Executor):
    """See `engine.experiment.Executor`. An experiment runs for `seconds` on nothing at all."""

    layout: Layout
    device: str
    seconds: float
    began: dict[str, float] = field(default_factory=dict)

    def submit(self, spec: RunSpec) -> str:
        run = self.layout.run(spec.experiment_id)
        run.folder.mkdir(parents=True)
        write_json(run.run_spec, spec.model_dump(mode="json"), durable=False)
        write_atomic(run.diff, spec.diff, durable=False)
        bundles.write_config(run, spec.config)
        bundles.write_metadata(run, self._metadata(spec))
        self.began[spec.experiment_id] = time.time()
        return spec.experiment_id

    def poll(self, experiment_id: str) -> RunState:
        return "running" if self._left(experiment_id) > 0 else "finished"

    def wait(self, experiment_id: str, timeout: float) -> None:
        time.sleep(max(0.0, min(self._left(experiment_id), timeout)))

    def cancel(self, experiment_id: str) -> None:
        self.began[experiment_id] = 0.0

    def collect(self, experiment_id: str) -> Result:
        run, began = self.layout.run(experiment_id), self.began[experiment_id]
        spec = RunSpec.model_validate(read_json(run.run_spec))
        value = 2.0 - float(spec.config.get("rate", 0.0)) / 100
        result = Result(
            status="completed",
            recorded_at=now(),
            commit=spec.commit,
            parent_commit=spec.parent_commit,
            title=spec.title,
            outcome=f"val_bpb {value:.6f}",
            metric_value=value,
            metrics=Metrics(val_bpb=value),
        )
        ended = {"started_at": began, "ended_at": began + self.seconds, "device": self.device}
        write_json(run.local, ended, durable=False)
        bundles.write_result(run, result)
        return result

    def _left(self, experiment_id: str) -> float:
        return self.began[experiment_id] + self.seconds - time.time()

    def _metadata(self, spec: RunSpec) -> Metadata:
        identity = RunIdentity(
            experiment_id=spec.experiment_id,
            worker_id=spec.worker_id,
            gpu_id=self.device,
            hypothesis_id=spec.hypothesis_id,
            title=spec.title,
            tag=spec.tag,
            seed=spec.seed,
            replicates=spec.replicates,
        )
        runtime = Runtime(
            commit=spec.commit,
            parent_commit=spec.parent_commit,
            diff_hash=spec.diff_hash,
            platform_key="5" * 64,
            budget_seconds=self.seconds,
        )
        return Metadata(recorded_at=now(), run=identity, runtime=runtime)


def enlist(layout: Layout, entries: list[Entry]) -> None:
    """Put workers into the manifest."""
    manifest = Manifest.model_validate(read_json(layout.manifest))
    write_json(layout.manifest, manifest.model_copy(update={"workers": entries}))


def times(layout: Layout) -> dict[str, list[tuple[float, float]]]:
    """Device -> when its experiments began and ended, in seconds since the epoch, in order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for folder in layout.runs.iterdir():
        local = read_json(layout.run(folder.name).local)
        if "ended_at" in local:
            span = (float(local["started_at"]), float(local["ended_at"]))
            found.setdefault(str(local["device"]), []).append(span)
    return {device: sorted(spans) for device, spans in found.items()}


def main() -> None:
    from autohypothesis.fleet.live.stop import Stop

    root, seconds, names = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    with Stop() as stop:
        threads = []
        for name in names:
            project = Project.open(root)
            entry = Entry(worker_id=name, gpu_id=name, device=f"sim-{name}")
            worker = FleetWorker(
                project, entry, executor=Sleeping(project.layout, f"sim-{name}", seconds)
            )
            threads.append(threading.Thread(target=worker.run, args=(stop,)))
        for thread in threads:
            thread.start()
        print("ready", rfc3339(now()), flush=True)
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
