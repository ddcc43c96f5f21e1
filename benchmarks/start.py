"""CPU time of commands that only look, from start to exit, on a small search.

    python -m benchmarks.start [--quick] [--json]

Each is a process of its own, user and system time together, the least of several turns; a first
turn compiles the bytecode. The yardstick in the same turns is an interpreter that imports pydantic
and typer and does nothing, since no command of ours can start without them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from autohypothesis.records.layout import Layout
from benchmarks.fold import write_bundle, write_decisions

ROOT = Path(__file__).resolve().parents[1]
RUNS = 20
"""Experiments of the search that is looked at."""
GOALS = {"slowest_s": 0.3, "slowest_over_imports": 4.0}
IMPORTS = [sys.executable, "-c", "import pydantic, typer"]
LOOKS = (
    "--version", "--help", "runs --help", "no-such-command", "status", "runs", "show-results",
    "best", "show h-bench-00000-1", "digest", "hypotheses", "tools list",
)  # fmt: skip
COMPLETION = "show, completed by a shell"


def search_of(root: Path) -> None:
    """Make a repository with a script and a search of `RUNS` experiments."""
    (root / "train.py").write_text("RATE = 0.1\nprint('val_bpb: 1.0')\n")
    for words in ("init -q", "add -A", "-c user.name=b -c user.email=b@b commit -qm start"):
        subprocess.run(["git", *words.split()], cwd=root, check=True, capture_output=True)
    layout = Layout(root)
    for number in range(RUNS):
        write_bundle(layout, number)
    write_decisions(layout, RUNS)


def cpu_s(words: list[str], root: Path, **environment: str) -> float:
    """Return the CPU seconds of a process and its children."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=root, env={**kept, **environment}, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(turns: int) -> dict[str, float]:
    """Return the least CPU seconds of each command, and of the yardstick."""
    ours = [sys.executable, str(ROOT / "orchestrator.py")]
    completing = {"_ORCHESTRATOR.PY_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    least: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        root = Path(folder)
        search_of(root)
        for turn in range(turns + 1):
            took = {"imports": cpu_s(IMPORTS, root)}
            took |= {look: cpu_s([*ours, *look.split()], root) for look in LOOKS}
            took[COMPLETION] = cpu_s(ours, root, COMP_WORDS="orchestrator.py sho", **completing)
            if turn:
                least = {look: min(took[look], least.get(look, took[look])) for look in took}
    return least


def report(least: dict[str, float]) -> dict[str, float]:
    slowest = max(seconds for look, seconds in least.items() if look != "imports")
    return {"slowest_s": slowest, "slowest_over_imports": slowest / least["imports"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three turns instead of ten")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    least = measure(3 if arguments.quick else 10)
    figures = report(least)
    if arguments.json:
        print(json.dumps({"goals": GOALS, "cpu_s": least, **figures}))
        return
    for look, seconds in least.items():
        print(f"{look:<28}{seconds:7.3f} s{seconds / least['imports']:8.1f}x")
    for key, goal in GOALS.items():
        verdict = "met" if figures[key] < goal else "MISSED"
        print(f"goal {key} < {goal:g}: {figures[key]:.2f} {verdict}")


if __name__ == "__main__":
    main()
