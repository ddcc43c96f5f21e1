"""`demo`: one small search from nothing to a picture, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.common import err, out

if TYPE_CHECKING:
    from autohypothesis.engine.lab import Lab


@dataclass(frozen=True, slots=True)
class Step:
    """One named change of the demo."""

    title: str
    overrides: dict[str, Any]
    rationale: str


STEPS = (
    Step(
        "a shallower model",
        {"DEPTH": 1},
        "In a few seconds on one core, more steps of a smaller model may be worth more.",
    ),
    Step(
        "half the batch",
        {"TOTAL_BATCH_SIZE": 512, "DEVICE_BATCH_SIZE": 8},
        "Twice the updates for the same tokens.",
    ),
    Step(
        "matrix learning rate divided by three",
        {"MATRIX_LR": 0.013},
        "If the rate is too high for a model this small, a lower one shows it.",
    ),
    Step(
        "a longer warm-down",
        {"WARMDOWN_RATIO": 0.8},
        "A short run spends too little time at small learning rates.",
    ),
)


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where its repository is made; default: ./demo.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Of prepare.py.")] = "cpu",
    runs: Annotated[
        int, typer.Option("--runs", min=0, max=len(STEPS), help="How many changes to try.")
    ] = len(STEPS),
) -> None:
    """Run the baseline and four changes in a repository of its own, and show what came of it.

    Takes about three minutes on one core, with no GPU, key or network. Run again, it starts
    another search beside the first. Example: `orchestrator.py demo --runs 2`
    """
    from autohypothesis.engine.change import Change
    from autohypothesis.engine.iteration import Request
    from autohypothesis.engine.lab import Lab

    started = time.monotonic()
    root = (folder or Path("demo")).absolute()
    _make_repository(root)
    cache = root / ".cache"
    _prepare_data(root, cache, profile)
    lab = Lab.open(root)
    lab = lab.with_tag(_next_tag(lab), inputs=_located(lab, cache))
    requests = [Request(Change.none(), title="baseline")]
    requests += [Request(Change.from_overrides(step.overrides), title=step.title,
                         rationale=step.rationale) for step in STEPS[:runs]]  # fmt: skip
    for number, request in enumerate(requests, 1):
        _one(lab, request, f"[{number}/{len(requests)}] {request.title}")
    _finish(lab, time.monotonic() - started)


def _make_repository(root: Path) -> None:
    """A repository at `root` with our training pair in it; one that is there is used again."""
    from autohypothesis.engine.starter import make_repository

    if make_repository(root):
        err().print(f"made {root}", markup=False)


def _prepare_data(root: Path, cache: Path, profile: str) -> None:
    """Data and tokenizer for `profile`, made once and found again; its own output is shown.

    In a cache of the demo's own: what other searches on this machine use stays as it is.
    """
    from autohypothesis.errors import AutohypothesisError

    command = [sys.executable, "prepare.py", "--profile", profile, "--cache-dir", str(cache)]
    if subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL).returncode:
        raise AutohypothesisError(
            "the data could not be prepared",
            hint=f"run it alone: cd {root} && {' '.join(command)}",
        )


def _located(lab: Lab, cache: Path) -> dict[str, str]:
    """Variable -> folder of what was just prepared."""
    from autohypothesis.engine.inputs import locate_inputs

    lab.repository.exclude([f"/{cache.name}/"])
    root = lab.layout.root
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    environment.pop("AUTOHYPOTHESIS_DATA", None)
    return locate_inputs(lab.task, root, root, environment, pins={}).environment


def _next_tag(lab: Lab) -> str:
    """`demo`, then `demo-2` and so on: each demo is a search of its own from the same start."""
    from itertools import count

    from autohypothesis.engine.lab import reference_ref

    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return next(name for name in names if lab.repository.read_ref(reference_ref(name)) is None)


def _one(lab: Lab, request: Any, title: str) -> None:
    from autohypothesis.commands.decide import print_decision
    from autohypothesis.commands.watch import ProgressWatch
    from autohypothesis.engine.iteration import run
    from autohypothesis.engine.settle import settle
    from autohypothesis.fleet.sync import sync

    err().print(title, style="bold", markup=False)
    finished = run(lab, request, watch=ProgressWatch(request.title))
    for decision in settle(lab, [finished.experiment_id], decided_by="demo"):
        print_decision(decision)
    sync(lab.layout)


def _finish(lab: Lab, seconds: float) -> None:
    """The table, the picture, and what to try next."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.records.standings import best_kept, of_tag
    from autohypothesis.terminal.tables import runs_table

    refresh(lab.layout, everything=True)
    rows = of_tag(read_ledger(lab.layout), lab.tag)
    best = best_kept(rows)
    console = out()
    console.print()
    console.print(runs_table(rows, title=f"{lab.tag}, {seconds:.0f} s"))
    console.print(f"\nledger   {lab.layout.ledger}", soft_wrap=True, markup=False)
    console.print(f"picture  {lab.layout.progress_png}\n", soft_wrap=True, markup=False)
    program = f"{_short(Path(sys.executable))} orchestrator.py"
    console.print("Next:", style="bold")
    where = f"--repo {_short(lab.layout.root)}"
    shown = best["id"] if best else rows[-1]["id"]
    for command in (
        f"show {shown} {where}",
        f"best --diff {where}",
        f"run-experiment --set MATRIX_LR=0.06 --settle {where}",
    ):
        console.print(f"  {program} {command}", soft_wrap=True, markup=False)


def _short(path: Path) -> Path:
    """`path` as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
