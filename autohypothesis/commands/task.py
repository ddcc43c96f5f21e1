"""`task`: the loop over any artifacts: prompts, skills, settings, small code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import (
    json_text,
    open_project,
    out,
    print_json,
    remark,
    telling_what_runs_lack,
)
from autohypothesis.errors import UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.artifact.loop import TaskLoop
    from autohypothesis.schema import Decision

task = typer.Typer(
    help="Improve artifacts that a task file names: prompts, skills, settings, small code.",
    no_args_is_help=True,
)

TaskPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="A task file, or the folder that holds task.yaml.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(task, name="task")


@task.command("run")
def run(
    context: typer.Context,
    path: TaskPath,
    iterations: Annotated[
        int, typer.Option("--iterations", min=0, help="How many changes to try; 0: until stopped.")
    ] = 1,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, help="Changes side by side, a device for each.")
    ] = 1,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the search: another one draws other changes.")
    ] = 0,
    tag: Annotated[
        str | None, typer.Option("--tag", help="The search; default: the task's id.")
    ] = None,
    repo: Repo = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines on a terminal too, where a person reads.")
    ] = False,
) -> None:
    """Try changes of a task's artifacts; what is better is kept, and your branch follows.

    Prints one JSON line for each, the same as in work/results.jsonl; on a terminal a line to read.
    Exits 1 when all of them crashed.
    Example: `orchestrator.py task run tasks/skill-quality/task.yaml --iterations 5`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.project import whole_or_nothing

    project = _opened(context, path, repo)
    with whole_or_nothing(project.repository, project.layout):
        loop = loop_of(project.with_tag(tag or project.task.id), parallel, seed)
        loop.emit = _emit if as_json or not sys.stdout.isatty() else _show
        try:
            with telling_what_runs_lack(loop.project):
                decided = loop.run(iterations)
        finally:
            refresh(project.layout)
            project.repository.pack_when_due()
    tried = [one for one in decided if one.base_commit is not None]
    remark(_summary(loop.project, tried))
    if tried and all(one.decision_status == "crash" for one in tried):
        raise typer.Exit(1)


@task.command("check")
def check(context: typer.Context, path: TaskPath, repo: Repo = None, as_json: Json = False) -> None:
    """Read a task file, and say what it leads to: nothing is run.

    Exits 2 when it is wrong, with file, line and the nearest right name; 1 when a program is
    missing. Example: `orchestrator.py task check tasks/skill-quality/task.yaml`
    """
    from autohypothesis.engine.isolation import sandbox_kind
    from autohypothesis.engine.program import programs_of

    project = _opened(context, path, repo)
    found = project.task
    files = project.repository.tracked_files()
    programs = programs_of(found, project.repository.root, files)
    report = {
        "id": found.id,
        "file": found.source or str(path),
        "artifacts": found.artifacts_in(files),
        "protected": sum(map(found.is_protected, files)),
        "mutator": found.mutator.type,
        "scorer": found.scorer.type,
        "objective": found.objective.model_dump(mode="json"),
        "sandbox": sandbox_kind(found),
        "programs": [one._asdict() for one in programs],
        "ok": all(one.problem == "" for one in programs),
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    raise typer.Exit(0 if report["ok"] else 1)


def _print_report(report: dict[str, Any]) -> None:
    from rich.markup import escape

    objective = report["objective"]
    goal = f"{objective['direction']} {objective['metric']}, min_delta {objective['min_delta']:g}"
    lines = {
        "task": f"{report['id']} ({report['file']})",
        "artifacts": ", ".join(report["artifacts"]),
        "protected": f"{report['protected']} files decide what can be compared",
        "objective": goal,
        "sandbox": SANDBOXES[report["sandbox"]],
    }
    for name, text in lines.items():
        out().print(f"[bold]{name:>10}[/]  {escape(text)}", soft_wrap=True)
    for one in report["programs"]:
        said = f"[red]{escape(one['problem'])}[/]" if one["problem"] else escape(one["command"])
        out().print(f"[bold]{one['role']:>10}[/]  {said}", soft_wrap=True)


SANDBOXES = {
    "bwrap": "bubblewrap: the disk is read-only, /tmp and home are private",
    "landlock": "Landlock: only what is granted can be read and written; no bubblewrap here",
    "none": "none: what is changed beside the artifacts is found by its hash",
}


def _summary(project: Project, tried: Sequence[Decision]) -> str:
    """Return how many changes were kept, in a line."""
    kept = [one for one in tried if one.decision_status == "keep"]
    said = f"{project.active()}: {len(kept)} of {len(tried)} changes kept"
    if kept:
        metric = project.task.objective.metric
        said += f", {metric} {kept[0].reference_value:g} -> {kept[-1].metric_value:g}"
    return f"{said}; a line for each in {project.layout.task_results}"


def _opened(context: typer.Context, path: Path, repo: Path | None) -> Project:
    """Open a task, in the repository that its file is in unless another is named."""
    file = path / "task.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"there is no task file at {file}", hint="name one: task run PATH")
    if repo is None and context.find_root().obj is None:
        context.find_root().obj = file.absolute().parent
    return open_project(context, repo, task=file)


def loop_of(project: Project, parallel: int, seed: int) -> TaskLoop:
    """Return the loop of one task, not begun."""
    from autohypothesis.commands.fleet import in_hours
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine.devices import cpu_slots
    from autohypothesis.fleet.artifact.loop import TaskLoop
    from autohypothesis.fleet.observer.scheduling import SearchLimits, StopCriteria
    from autohypothesis.fleet.observer.search_state import ExperimentIndex
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.history import LiveHistory

    if project.task.run.device != "cuda" and parallel > len(cpu_slots()):
        raise UsageError(
            f"--parallel {parallel}: this machine has {len(cpu_slots())} CPU lanes",
            hint="see `python orchestrator.py doctor`",
        )
    history, queue = (
        LiveHistory(project.layout, project.active()),
        Queue(project.layout, project.active()),
    )
    return TaskLoop(
        project=project,
        source=_source(project, history, queue, seed),
        history=history,
        ending=StopCriteria(
            SearchLimits(until=in_hours(project.task.budget.hours)),
            queue,
            ExperimentIndex(project, history),
        ),
        parallel=parallel,
        say=remark,
        watch=ProgressWatch(),
    )


def _source(project: Project, history: Any, queue: Any, seed: int) -> Any:
    from autohypothesis.fleet.artifact.source import MutatorSource, QueueSource
    from autohypothesis.proposers.search import KnobSearch

    kind = project.task.mutator.type
    if kind == "command":
        return MutatorSource(project, history, seed)
    return QueueSource(project, history, queue, KnobSearch() if kind == "overrides" else None)


def _show(line: dict[str, Any]) -> None:
    """Print an iteration as a line to read."""
    from rich.markup import escape

    from autohypothesis.plain import table_text
    from autohypothesis.terminal.parts import number, styled

    scores = f"{number(line['baseline_score'])} -> {number(line['candidate_score'])}"
    said = line["description"] or line["detail"]
    if line["candidate_score"] is None:
        scores, said = line["reason"], line["detail"] or said
    text = f"{scores:<22} {escape(table_text(said))}"
    pad = " " * (8 - len(line["status"]))
    out().print(f"{styled(line['status'])}{pad}{text}", soft_wrap=True)


def _emit(line: dict[str, Any]) -> None:
    sys.stdout.write(json_text(line) + "\n")
    sys.stdout.flush()
