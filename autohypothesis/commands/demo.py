"""`demo`: a whole fleet, from nothing to a picture, on any machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autohypothesis.commands.common import err, out, remark
from autohypothesis.installation import is_clone

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project

LANES = 2
RUNS = 12


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where its repository is made; default: ./demo.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Of prepare.py.")] = "cpu",
    runs: Annotated[
        int, typer.Option("--runs", min=1, help="How many experiments, the baseline included.")
    ] = RUNS,
    lanes: Annotated[
        int, typer.Option("--lanes", min=1, help="CPU workers; fewer where there are fewer cores.")
    ] = LANES,
) -> None:
    """Run a fleet in a repository of its own: observer, two workers, tool-builder; and show it.

    Takes about four minutes on two cores, with no GPU, key or network. Run again, it starts
    another search beside the first. Example: `orchestrator.py demo --runs 6`
    """
    from autohypothesis.commands.fleet import bring_up
    from autohypothesis.engine.devices import cpu_slots as all_lanes
    from autohypothesis.engine.project import Project
    from autohypothesis.engine.setup import prepare_options, run_prepare
    from autohypothesis.fleet.roster import roster
    from autohypothesis.fleet.supervisor import process_specs

    started = time.monotonic()
    root = (folder or Path("demo")).absolute()
    _make_repository(root)
    cache = root / ".cache"
    # In a cache of the demo's own: what other searches on this machine use stays as it is.
    run_prepare(root, prepare_options(profile=profile, cache=cache))
    project = Project.open(root)
    process_specs.refuse_second_supervisor(project.layout)
    project = project.with_tag(_next_tag(project), inputs=_located(project, cache))
    workers = min(lanes, len(all_lanes()))
    fleet = roster.init_fleet(project, roster.FleetOptions(tag=project.tag, cpu_workers=workers))
    manifest = fleet.manifest
    names = ", ".join(worker.worker_id for worker in manifest.workers)
    err().print(f"search {project.tag}: baseline and {runs - 1} more on {names}", style="bold")
    words = process_specs.observer_options(project.layout, manifest, more_runs=runs)
    bring_up(project.layout, manifest, words, {})
    _finish(project, time.monotonic() - started)


def _make_repository(root: Path) -> None:
    """A repository at `root` with our training pair in it; one that is there is used again."""
    from autohypothesis.engine.setup import make_repository

    if make_repository(root):
        remark(f"made {root}")


def _located(project: Project, cache: Path) -> dict[str, str]:
    """Variable -> folder of what was just prepared."""
    from autohypothesis.engine.inputs import locate_inputs

    project.repository.exclude([f"/{cache.name}/"])
    root = project.layout.root
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    environment.pop("AUTOHYPOTHESIS_DATA", None)
    return locate_inputs(project.task, root, root, environment, pins={}).environment


def _next_tag(project: Project) -> str:
    """`demo`, then `demo-2` and so on: each demo is a search of its own from the same start."""
    from itertools import count

    from autohypothesis.engine.project import reference_ref

    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return next(name for name in names if project.repository.read_ref(reference_ref(name)) is None)


def _finish(project: Project, seconds: float) -> None:
    """The table, the picture, and what to try next."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.records.history import best_kept, of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.terminal.tables import runs_table

    refresh(project.layout, everything=True)
    rows = of_tag(read_ledger(project.layout), project.tag)
    best = best_kept(rows)
    console = out()
    console.print()
    console.print(runs_table(rows, title=f"{project.tag}, {seconds:.0f} s"))
    console.print(f"\nledger   {project.layout.ledger}", soft_wrap=True, markup=False)
    console.print(f"picture  {project.layout.progress_png}\n", soft_wrap=True, markup=False)
    python = _short(Path(sys.executable))
    program = f"{python} orchestrator.py" if is_clone() else "autohypothesis"
    console.print("Next:", style="bold")
    where = f"--repo {_short(project.layout.root)}"
    shown = best["id"] if best else rows[-1]["id"]
    for command in (f"digest {where}", f"best --diff {where}", f"show {shown} {where}"):
        console.print(f"  {program} {command}", soft_wrap=True, markup=False)


def _short(path: Path) -> Path:
    """`path` as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
