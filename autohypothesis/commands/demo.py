"""`demo`: a whole fleet at work in a repository of its own, as a first look."""

from __future__ import annotations

import os
import shlex
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from autohypothesis.commands.app import app
from autohypothesis.commands.common import err, out, remark, say
from autohypothesis.installation import is_clone, program_name

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project


@app.command("demo")
def demo(
    folder: Annotated[
        Path | None, Option("--dir", help="Where its repository is made; default: ./demo.")
    ] = None,
    profile: Annotated[str, Option(help="Of prepare.py.")] = "cpu",
    runs: Annotated[int, Option(min=1, help="How many experiments, the baseline included.")] = 12,
    lanes: Annotated[
        int, Option(min=1, help="CPU workers; fewer where there are fewer cores.")
    ] = 2,
) -> None:
    """Run a fleet in a repository of its own: observer, two workers, tool-builder; and show it.

    Takes about four minutes on two cores, with no GPU, key or network. Run again, it starts
    another search beside the first. Example: `orchestrator.py demo --runs 6`
    """
    from autohypothesis.commands.fleet import bring_up
    from autohypothesis.engine.devices import cpu_slots
    from autohypothesis.engine.inputs import prepare_options, run_prepare
    from autohypothesis.engine.project import Project, make_repository
    from autohypothesis.fleet.roster import roster
    from autohypothesis.fleet.supervisor import process_specs

    started = time.monotonic()
    root = (folder or Path("demo")).absolute()
    if make_repository(root):  # one that exists is used again
        remark(f"made {root}")
    cache = root / ".cache"
    # In a cache of the demo's own: what other searches on this machine use stays as it is.
    run_prepare(root, prepare_options(profile=profile, cache=cache))
    project = Project.open(root)
    process_specs.refuse_second_supervisor(project.layout)
    project = project.with_tag(_next_tag(project), inputs=_located(project, cache))
    workers = min(lanes, len(cpu_slots()))
    fleet = roster.init_fleet(project, roster.FleetOptions(tag=project.tag, cpu_workers=workers))
    manifest = fleet.manifest
    names = ", ".join(worker.worker_id for worker in manifest.workers)
    err().print(f"search {project.tag}: baseline and {runs - 1} more on {names}", style="bold")
    words = process_specs.observer_options(project.layout, manifest, more_runs=runs)
    bring_up(project.layout, manifest, words, {})
    _finish(project, time.monotonic() - started)


def _located(project: Project, cache: Path) -> dict[str, str]:
    """Return variable -> folder of the data that was just prepared."""
    from autohypothesis.engine.inputs import locate_inputs

    project.repository.exclude([f"/{cache.name}/"])
    root = project.layout.root
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    environment.pop("AUTOHYPOTHESIS_DATA", None)
    return locate_inputs(project.task, root, root, environment, pins={}).environment


def _next_tag(project: Project) -> str:
    """Return `demo`, then `demo-2` and so on: each demo is a search of its own."""
    from autohypothesis.engine.reference import BRANCHES, REFERENCES

    refs = project.repository.refs(BRANCHES, REFERENCES)  # an earlier version made branches alone
    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return next(name for name in names if not {BRANCHES + name, REFERENCES + name} & refs.keys())


def _finish(project: Project, seconds: float) -> None:
    """Print the table, the picture, and what to try next."""
    from autohypothesis.commands.sync import refresh
    from autohypothesis.records.history import best_kept, of_tag
    from autohypothesis.records.ledger import read_ledger
    from autohypothesis.terminal.experiments import runs_table

    refresh(project.layout, everything=True)
    rows = of_tag(read_ledger(project.layout), project.tag)
    best = best_kept(rows)
    out().print()
    out().print(runs_table(rows, title=f"{project.tag}, {seconds:.0f} s"))
    say(f"\nledger   {project.layout.ledger}")
    say(f"picture  {project.layout.progress_png}\n")
    script = program_name().removeprefix("python ")
    program = f"{_short(Path(sys.executable))} {script}" if is_clone() else script
    say("Next:", style="bold")
    where = f"--repo {_short(project.layout.root)}"
    shown = best["id"] if best else rows[-1]["id"]
    for command in (f"digest {where}", f"best --diff {where}", f"show {shown} {where}"):
        say(f"  {program} {command}")


def _short(path: Path) -> str:
    """Return `path` as it is typed here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
