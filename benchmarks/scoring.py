"""What it costs to score a run from outside of the candidate, part by part, in CPU seconds.

    python -m benchmarks.scoring [--quick] [--json]

The model of train.py with the weights that it starts from, on the data of the `cpu` profile, the
least of three; --quick: of the `test` profile, once. The yardstick is the least that a score can
cost: one process that imports torch, builds the model and evaluates it, asks nothing twice and
trusts what it imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.5
MAKE = """
import json, sys, torch, train
config = train.constants()
torch.save(train.build_model(config).state_dict(), sys.argv[1] + "/weights.pt")
json.dump(config, open(sys.argv[1] + "/config.json", "w"))
"""
ALONE = """
import json, sys, torch, train, prepare
model = train.build_model(json.load(open(sys.argv[1] + "/config.json")))
model.load_state_dict(torch.load(sys.argv[1] + "/weights.pt", weights_only=True))
print(prepare.evaluate_bpb(model))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the test profile, once")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    profile, times = ("test", 1) if options.quick else ("cpu", 3)
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        report = measure(Path(folder), profile, times)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    batches = f"{report['rows']} rows in {report['batches']} batches"
    print(f"profile {profile}, {batches}, {report['asked_again']} rows asked again; CPU seconds")
    for part, seconds in report["parts_s"].items():
        print(f"  {part:<12} {seconds:6.2f}")
    print(f"  {'whole':<12} {report['whole_s']:6.2f}")
    print(f"  {'yardstick':<12} {report['yardstick_s']:6.2f}   one process that trusts the model")
    print(f"  {'ratio':<12} {report['ratio']:6.2f}   (goal: under {GOAL})")


def measure(folder: Path, profile: str, times: int) -> dict[str, Any]:
    os.environ.update(AUTORESEARCH_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    python("prepare.py", "--profile", profile)
    run = folder / "run"
    run.mkdir()
    python("-c", MAKE, str(run))
    score = ("-I", "prepare.py", "--score", str(run), "--train", str(ROOT / "train.py"))
    wholes, yardsticks, parts = [], [], []
    for _ in range(times):
        wholes.append(python(*score))
        yardsticks.append(python("-c", ALONE, str(run)))
        parts.append(parts_of(run))
    found, whole, yardstick = parts[0].pop("exam"), min(wholes), min(yardsticks)
    least = {part: min(each[part] for each in parts) for part in parts[0]}
    return {
        "profile": profile,
        "times": times,
        **found,
        "parts_s": {part: round(seconds, 3) for part, seconds in least.items()},
        "whole_s": round(whole, 2),
        "yardstick_s": round(yardstick, 2),
        "ratio": round(whole / yardstick, 2),
        "goal": GOAL,
    }


def python(*words: str) -> float:
    """CPU seconds of a Python program and of all that it started."""
    before = os.times()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user - before.children_user
    return used + after.children_system - before.children_system


def parts_of(run: Path) -> dict[str, Any]:
    """The parts of a score, with a scorer in this process, whose own start is measured alone."""
    sys.path.insert(0, str(ROOT))
    import prepare

    prepared = prepare.load_prepared()
    exam = prepare.Exam(
        prepare.validation_windows(prepared),
        prepared.profile,
        prepared.profile.eval_batch_size,
        "1",
    )
    compiled = "import numpy; compile(open('prepare.py').read(), 'prepare.py', 'exec')"
    parts = {"scorer": python("-I", "-c", compiled)}
    train = ROOT / "train.py"
    command = [sys.executable, "-I", str(ROOT / "prepare.py"), "--candidate-host", str(train)]
    with prepare.Hosts(command, prepared.profile, "cpu", run, train) as hosts:
        with hosts.asked(exam) as ask:
            parts["host"] = sum(cpu_seconds(hosts.process.pid))
            began, _ = time.process_time(), exam.answer(ask)
            parts["arithmetic"] = time.process_time() - began
            parts["evaluation"] = cpu_seconds(hosts.process.pid)[1]
        with hosts.asked(exam) as ask:
            exam.ask_again(ask)
            parts["asked again"] = cpu_seconds(hosts.process.pid)[1]
    rows = sum(len(batch) for _, batch in exam.batches)
    again = sum(len(probe.rows) for probe in exam.probes)
    return {**parts, "exam": {"rows": rows, "batches": len(exam.batches), "asked_again": again}}


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Of the process that imported torch, and of the host that it has forked."""
    process = psutil.Process(pid)
    hosts = process.children()
    return sum(process.cpu_times()[:2]), sum(sum(host.cpu_times()[:2]) for host in hosts)


if __name__ == "__main__":
    main()
