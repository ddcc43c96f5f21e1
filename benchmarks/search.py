"""Whether what a search found is true: its best against its baseline, on seeds it never saw.

    python -m benchmarks.search [--tries N] [--quick] [--json]

Each try is one `demo` in a folder of its own: a fleet of two CPU lanes from nothing to a picture.
Then baseline and best are run again side by side, one on each lane, on three fresh seeds each. A
try counts as won when the best's mean is lower. `--quick` is one try on the `test` profile, which
shows that it works and nothing else: its runs are too short to find anything.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import follow
from autohypothesis.records.files import read_json
from autohypothesis.records.history import best_kept, first_baseline, of_tag
from autohypothesis.records.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (101, 102, 103)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one try on the test profile")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    tries = []
    for number in range(1 if options.quick else options.tries):
        with tempfile.TemporaryDirectory(prefix="search-") as folder:
            os.environ["AUTOHYPOTHESIS_LOCKS"] = str(Path(folder) / "locks")
            tries.append(one_try(Path(folder) / "demo", quick=options.quick))
        print(f"try {number + 1}: {said(tries[-1])}", file=sys.stderr, flush=True)
    report = {"tries": tries, "won": sum(one["won"] for one in tries), "of": len(tries)}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"the best beats the baseline on fresh seeds in {report['won']} of {len(tries)}")


def one_try(root: Path, *, quick: bool) -> dict[str, Any]:
    """One search, and what became of its best on fresh seeds."""
    words = ["--profile", "test", "--runs", "4"] if quick else []
    started = time.monotonic()
    subprocess.run(
        [sys.executable, str(ROOT / "orchestrator.py"), "demo", "--dir", str(root), *words],
        check=True, cwd=root.parent, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.monotonic() - started
    project = Project.open(root)
    rows = of_tag(read_ledger(project.layout), project.tag)
    baseline, best = first_baseline(rows), best_kept(rows)
    report = {"seconds": round(seconds, 1), "experiments": len(rows), "won": False}
    if baseline is None or best is None or best["commit"] == baseline["commit"]:
        return {**report, "best": None}
    values = side_by_side(project, {"baseline": str(baseline["id"]), "best": str(best["id"])})
    means = {name: statistics.fmean(found) for name, found in values.items()}
    return {
        **report,
        "best": best["description"],
        "claimed": round(baseline["metric_value"] - best["metric_value"], 4),
        "gain": round(means["baseline"] - means["best"], 4),
        "values": {name: [round(value, 4) for value in found] for name, found in values.items()},
        "won": means["best"] < means["baseline"],
    }


def side_by_side(project: Project, experiments: dict[str, str]) -> dict[str, list[float]]:
    """Official scores of each experiment's commit on each fresh seed, all of a seed at once."""
    found: dict[str, list[float]] = {name: [] for name in experiments}
    with ThreadPoolExecutor(len(experiments)) as pool:
        for seed in SEEDS:
            runs = {
                name: pool.submit(again, project, name, original, seed)
                for name, original in experiments.items()
            }
            for name, run in runs.items():
                found[name].append(run.result())
    return found


def again(project: Project, name: str, original: str, seed: int) -> float:
    """The score of one more run of an experiment's commit; the search itself never sees it."""
    spec = RunSpec.model_validate(read_json(project.layout.run(original).run_spec))
    identity = f"again-{name}-{seed}"
    executor = LocalExecutor(project.repository, project.layout)
    executor.submit(
        spec.model_copy(
            update={
                "experiment_id": identity,
                "seed": seed,
                "worker_id": f"again-{name}",
                "resources": type(spec.resources)(),
                "replicates": original,
            }
        )
    )
    follow(project, executor, identity)
    value = executor.collect(identity).metric_value
    if value is None:
        raise SystemExit(f"{identity} failed: see {project.layout.run(identity).log}")
    return value


def said(found: dict[str, Any]) -> str:
    if found["best"] is None:
        return f"nothing was kept in {found['seconds']:.0f} s"
    return (
        f"{found['best']}, {found['claimed']:+.4f} claimed, {found['gain']:+.4f} on fresh seeds,"
        f" {found['experiments']} experiments in {found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
