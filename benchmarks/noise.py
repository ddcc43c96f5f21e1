"""How far val_bpb moves by itself, and by changes of known size: what `min_delta` must exceed.

    python benchmarks/noise.py --out noise.json            everything, about 15 minutes
    python benchmarks/noise.py --out noise.json alone busy one group or several; adds to the file
    python benchmarks/noise.py --out noise.json --report   prints what the file holds
    python -m benchmarks.noise --quick --json              one seed of the same code, twice

Every run is `python train.py` on the `cpu` profile, pinned to one core, with the seeds 1 to 5
(three of them for a change). Leave the machine idle meanwhile: a run that had to wait for its core
is repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3, 4, 5)
RATES = ("EMBEDDING_LR", "UNEMBEDDING_LR", "MATRIX_LR", "SCALAR_LR")
# A change maps constants to expressions over their stock value, which reads `old`.
CHANGES: dict[str, dict[str, str]] = {
    "alone": {},
    "again": {},  # the same code and seeds once more: the machine's share of the spread
    "and again": {},
    "busy": {},  # with the same training on a second core
    "rates x0.3": dict.fromkeys(RATES, "0.3 * ({old})"),
    "rates x3": dict.fromkeys(RATES, "3 * ({old})"),
    "depth -1": {"DEPTH": "({old}) - 1"},
    "depth +1": {"DEPTH": "({old}) + 1"},
    "batch /2": {"TOTAL_BATCH_SIZE": "({old}) // 2", "DEVICE_BATCH_SIZE": "({old}) // 2"},
    "batch x2": {"TOTAL_BATCH_SIZE": "2 * ({old})", "DEVICE_BATCH_SIZE": "2 * ({old})"},
}


def changed(change: dict[str, str], folder: Path) -> Path:
    """A copy of the pair in `folder` with other constants."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "prepare.py", folder)
    text = (ROOT / "train.py").read_text(encoding="utf-8")
    for name, expression in change.items():
        line = re.compile(rf"^{name} = ([^#\n]*?)(\s*#.*)?$", re.MULTILINE)
        old = line.search(text)
        if old is None:
            raise SystemExit(f"train.py sets no {name}")
        text = line.sub(f"{name} = {expression.format(old=old[1])}", text, count=1)
    (folder / "train.py").write_text(text, encoding="utf-8")
    return folder / "train.py"


def start(train: Path, seed: int, core: int) -> subprocess.Popen[str]:
    """A training on one core, with a run folder of its own."""
    run_dir = train.parent / f"run-{seed}"
    run_dir.mkdir()
    cores = sorted(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(cores[core % len(cores)]), sys.executable, str(train)]
    return subprocess.Popen(
        command,
        cwd=train.parent,
        env=os.environ | {"SEED": str(seed), "AUTOHYPOTHESIS_RUN_DIR": str(run_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )


def summary(run: subprocess.Popen[str]) -> dict[str, float]:
    """The numbers of a finished run, from below the line `---` of its log."""
    log, _ = run.communicate()
    if run.returncode:
        raise SystemExit(f"a training failed: {log.splitlines()[-1:]}")
    numbers = re.findall(r"^(\w+):\s+([\d.]+)$", log.split("\n---\n")[1], re.MULTILINE)
    return {name: float(value) for name, value in numbers}


def measure(group: str, seeds: tuple[int, ...]) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        train = changed(CHANGES[group], Path(folder, "run"))
        results = []
        for seed in seeds:
            for _ in range(3):
                other = start(train, seed + 100, 1) if group == "busy" else None
                found = summary(start(train, seed, 0)) | {"seed": float(seed)}
                if other:
                    summary(other)
                waited = waiting(train.parent / f"run-{seed}")
                print(
                    f"{group}, seed {seed}: {found['val_bpb']:.4f} in {found['num_steps']:.0f} "
                    f"steps, waited {waited:.0%}",
                    file=sys.stderr,
                    flush=True,
                )
                shutil.rmtree(train.parent / f"run-{seed}")
                shutil.rmtree(train.parent / f"run-{seed + 100}", ignore_errors=True)
                if waited < 0.15:
                    break
            results.append(found)
        return results


def waiting(run_dir: Path) -> float:
    """Wall clock beyond CPU clock, as a share of the latter, of the training in `run_dir`."""
    lines = (run_dir / "clock.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    return float((last["wall"] - first["wall"]) / (last["cpu"] - first["cpu"]) - 1)


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table, and how far two runs of the same code and seed differ."""
    lines = ["| runs | n | val_bpb | sd | steps | against alone | sd of a pair |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    base = {run["seed"]: run["val_bpb"] for run in results.get("alone", [])}
    identical: list[list[float]] = []  # differences of pairs, a list for each series
    for group, runs in results.items():
        scores = [run["val_bpb"] for run in runs]
        pairs = [run["val_bpb"] - base[run["seed"]] for run in runs if run["seed"] in base]
        cells = ["", ""]
        if group != "alone" and len(pairs) > 1:
            cells = [f"{statistics.mean(pairs):+.4f}", f"{statistics.stdev(pairs):.4f}"]
            if group in ("again", "and again"):
                identical.append(pairs)
        spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        steps = statistics.mean(run["num_steps"] for run in runs)
        first = f"{group} | {len(runs)} | {statistics.mean(scores):.4f} | {spread}"
        lines.append(f"| {first} | {steps:.0f} | {' | '.join(cells)} |")
    if identical:
        sd = statistics.fmean(statistics.variance(pairs) for pairs in identical) ** 0.5
        drifted = statistics.fmean(pair**2 for pairs in identical for pair in pairs) ** 0.5
        lines.append(f"\nTwo runs of the same code and seed differ with sd {sd:.4f} in one series:")
        lines.append(f"min_delta >= {2 * sd:.4f}; with the drift between series {drifted:.4f}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"default: all; {', '.join(CHANGES)}")
    parser.add_argument("--out", type=Path, help="keep the results there, and add to what it holds")
    parser.add_argument("--quick", action="store_true", help="one seed, the same code twice")
    parser.add_argument("--report", action="store_true", help="only print what --out holds")
    parser.add_argument("--json", action="store_true", help="the results as one object on stdout")
    options = parser.parse_args()
    unknown = [group for group in options.groups if group not in CHANGES]
    if unknown:
        parser.error(f"unknown {unknown}; known: {', '.join(CHANGES)}")
    results: dict[str, Any] = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())
    if not options.report:
        with tempfile.TemporaryDirectory(prefix="noise-") as cache:
            os.environ["AUTORESEARCH_CACHE"] = cache  # whatever data this machine works with
            command = [sys.executable, "prepare.py", "--profile", "cpu"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            measure_all(options, results)
    print(json.dumps(results, indent=1) if options.json else report(results))


def measure_all(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every group that is wanted, into `results` and the file that keeps them."""
    wanted = options.groups or (("alone", "again") if options.quick else CHANGES)
    for group in wanted:
        count = 1 if options.quick else 3 if CHANGES[group] else 5
        results[group] = measure(group, SEEDS[:count])
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
