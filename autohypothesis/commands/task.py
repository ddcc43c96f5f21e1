"""`task`: the loop over any artifacts: prompts, skills, settings, small code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from autohypothesis.commands.app import HERE, CommandGroup, Json, Repo, app
from autohypothesis.commands.common import (
    end_of,
    json_text,
    open_project,
    out,
    print_json,
    remark,
    telling_what_runs_lack,
)
from autohypothesis.errors import TaskError, UsageError

if TYPE_CHECKING:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.artifact import TaskLoop
    from autohypothesis.schema import Decision

task_group = CommandGroup(
    help="Improve artifacts that a task file names: prompts, skills, settings, small code.",
)
app.add_typer(task_group, name="task")

SANDBOXES = {
    "bwrap": "bubblewrap: the disk is read-only, /tmp and home are private",
    "landlock": "Landlock: only what is granted can be read and written; no bubblewrap here",
    "none": "none: what is changed beside the artifacts is found by its hash",
}

TaskPath = Annotated[
    Path, Argument(metavar="PATH", help="A task file, or the folder that holds task.yaml.")
]


@task_group.command("run")
def run(
    path: TaskPath,
    iterations: Annotated[
        int, Option(min=0, help="How many changes to try; 0: until stopped.")
    ] = 1,
    parallel: Annotated[int, Option(min=1, help="Changes side by side, a device for each.")] = 1,
    seed: Annotated[int, Option(min=0, help="Of the search: another one draws other changes.")] = 0,
    tag: Annotated[str | None, Option(help="The search; default: the task's id.")] = None,
    repo: Repo = HERE,
    as_json: Annotated[
        bool, Option("--json", help="JSON lines on a terminal too, where a person reads.")
    ] = False,
) -> None:
    """Try changes of a task's artifacts; what is better is kept, and your branch follows.

    Another search stays the active one: `runs --tag NAME` and its kind show this one.

    Prints one JSON line for each, the same as in work/results.jsonl; on a terminal a line to read.
    Exits 1 when all of them crashed.
    Example: `orchestrator.py task run tasks/skill-quality/task.yaml --iterations 5`
    """
    from autohypothesis.commands.sync import refresh
    from autohypothesis.engine.project import whole_or_nothing

    project = _opened(path, repo)
    for note in _notes(project, path):
        remark(f"note: {note}")
    _refuse_uncommitted(project)
    with whole_or_nothing(project.repository, project.layout):
        loop = loop_of(project.with_tag(tag or project.task.id, activate=False), parallel, seed)
        loop.emit = _emit if as_json or not sys.stdout.isatty() else _show
        try:
            with telling_what_runs_lack(loop.project):
                decided = loop.run(iterations)
        finally:
            refresh(project.layout)
            project.repository.pack_when_due()
    tried = [decision for decision in decided if decision.base_commit is not None]
    remark(_summary(loop.project, tried))
    if tried and all(decision.decision_status == "crash" for decision in tried):
        raise typer.Exit(1)


@task_group.command("check")
def check(path: TaskPath, repo: Repo = HERE, as_json: Json = False) -> None:
    """Read a task file, and say what it leads to: nothing is run.

    Exits 2 when it is wrong, with file, line and the nearest right name; 1 when a program is
    missing. Example: `orchestrator.py task check tasks/skill-quality/task.yaml`
    """
    project = _opened(path, repo)
    report = _report(project, path)
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    raise typer.Exit(0 if report["ok"] else 1)


def _refuse_uncommitted(project: Project) -> None:
    """Refuse to run programs that are in no commit: they are missing where they are run.

    Raises:
        TaskError: with the commands that commit them.
    """
    from autohypothesis.engine.program import programs_of

    root, files = project.repository.root, project.repository.entries(project.repository.head())
    named = (program.to_add for program in programs_of(project.task, root, files))
    if new := list(dict.fromkeys(chain.from_iterable(named))):
        raise TaskError(
            f"in no commit, and so missing where they are run: {', '.join(new)}",
            hint=f"commit the task first: git add {shlex.join(new)}; git commit -m 'the task'",
        )


def _report(project: Project, path: Path) -> dict[str, Any]:
    """Return a task as it was understood: paths from the repository's top, all defaults filled."""
    from autohypothesis.engine.program import programs_of, sandbox_kind

    task, files = project.task, project.repository.tracked_files()
    programs = programs_of(task, project.repository.root, files)
    run = task.run
    return {
        "id": task.id,
        "file": task.source or str(path),
        "artifacts": task.artifacts_in(files),
        "patterns": task.artifacts,
        "protected": sum(map(task.is_protected, files)),
        "mutator": task.mutator.type,
        "scorer": task.scorer.type,
        "objective": task.objective.model_dump(mode="json"),
        "constraints": {name: limit.model_dump() for name, limit in task.constraints.items()},
        "mutation": task.mutation.model_dump(),
        "folders": {"mutator": task.mutator.cwd, "run": run.cwd, "scorer": task.scoring_cwd},
        "limits": {
            "mutator_seconds": task.mutator.timeout_seconds if task.mutator.command else None,
            "run_seconds": run.deadline_seconds,
            "scorer_seconds": task.scorer.timeout_seconds if task.scorer.type != "log" else None,
            "max_processes": run.max_processes,
        },
        "policy": task.policy.model_dump(),
        "budget": task.budget.model_dump(),
        "sandbox": sandbox_kind(task),
        "programs": [program._asdict() for program in programs],
        "notes": _notes(project, path),
        "ok": all(program.problem == "" for program in programs),
    }


def _notes(project: Project, path: Path) -> list[str]:
    """Return what of the task file has no effect, and why."""
    from autohypothesis.engine.task_file import read_task

    repository = project.repository
    return read_task(_file(path), repository.tracked_files(), root=repository.root)[1]


def _print_report(report: dict[str, Any]) -> None:
    from rich.markup import escape

    objective, mutation, policy = report["objective"], report["mutation"], report["policy"]
    goal = f"{objective['direction']} {objective['metric']}, min_delta {objective['min_delta']:g}"
    if objective["target"] is not None:
        goal += f", until {objective['target']:g}"
    limits = {name: seconds for name, seconds in report["limits"].items() if seconds is not None}
    lines = [
        ("task", f"{report['id']} ({report['file']})"),
        ("artifacts", ", ".join(report["artifacts"])),
        ("protected", f"{report['protected']} files decide what can be compared"),
        ("objective", goal),
        *(("constraint", f"{name}: {_given(of)}") for name, of in report["constraints"].items()),
        ("change", f"by {report['mutator']}: {_given(mutation)}"),
        ("limits", _given(limits)),
        ("policy", _given(policy)),
        ("search", _given(report["budget"]) or "until it is stopped"),
        ("sandbox", SANDBOXES[report["sandbox"]]),
    ]
    lines = [(name, escape(text)) for name, text in lines]
    for program in report["programs"]:
        problem = program["problem"]
        where = report["folders"].get(program["role"], report["folders"]["run"])
        text = f"{program['command']}{'' if where == '.' else f' (in {where}/)'}"
        lines.append((program["role"], f"[red]{escape(problem)}[/]" if problem else escape(text)))
    lines += [("note", escape(note)) for note in report["notes"]]
    for name, text in lines:
        out().print(f"[bold]{name:>10}[/]  {text}", soft_wrap=True)


def _given(values: dict[str, Any]) -> str:
    """Return `name value, ...` of what is set."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )


def _summary(project: Project, tried: Sequence[Decision]) -> str:
    """Return how many changes were kept, in a line."""
    kept = [decision for decision in tried if decision.decision_status == "keep"]
    summary = f"{project.active()}: {len(kept)} of {len(tried)} changes kept"
    if kept:
        metric = project.task.objective.metric
        summary += f", {metric} {kept[0].reference_value:g} -> {kept[-1].metric_value:g}"
    return f"{summary}; a line for each in {project.layout.task_results}"


def _opened(path: Path, repo: Path) -> Project:
    """Open a task, in the repository that its file is in unless another is named."""
    file = _file(path)
    if not file.is_file():
        raise UsageError(f"there is no task file at {file}", hint="name one: task run PATH")
    return open_project(file.absolute().parent if repo == Path.cwd() else repo, task=file)


def _file(path: Path) -> Path:
    return path / "task.yaml" if path.is_dir() else path


def loop_of(project: Project, parallel: int, seed: int) -> TaskLoop:
    """Return the loop of one task, not begun."""
    from autohypothesis.commands.progress import ProgressWatch
    from autohypothesis.engine.devices import cpu_slots
    from autohypothesis.fleet.artifact import TaskLoop
    from autohypothesis.fleet.observer.scheduling import SearchLimits, StopCriteria
    from autohypothesis.fleet.observer.search_state import ExperimentIndex
    from autohypothesis.fleet.queue.states import Queue
    from autohypothesis.records.history import LiveHistory

    if project.task.run.device != "cuda" and parallel > len(cpu_slots()):
        raise UsageError(
            f"--parallel {parallel}: this machine has {len(cpu_slots())} CPU lanes",
            hint="see `python orchestrator.py doctor`",
        )
    history = LiveHistory(project.layout, project.active())
    queue = Queue(project.layout, project.active())
    limits, index = SearchLimits(until=end_of(project)), ExperimentIndex(project, history)
    return TaskLoop(
        project=project,
        source=_source(project, history, queue, seed),
        history=history,
        ending=StopCriteria(limits, queue, index),
        parallel=parallel,
        say=remark,
        watch=ProgressWatch(),
    )


def _source(project: Project, history: Any, queue: Any, seed: int) -> Any:
    from autohypothesis.fleet.artifact import MutatorSource, QueueSource
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
    words = line["description"] or line["detail"]
    if line["candidate_score"] is None:
        scores, words = line["reason"], line["detail"] or words
    text = f"{scores:<22} {escape(table_text(words))}"
    pad = " " * (8 - len(line["status"]))
    out().print(f"{styled(line['status'])}{pad}{text}", soft_wrap=True)


def _emit(line: dict[str, Any]) -> None:
    sys.stdout.write(json_text(line) + "\n")
    sys.stdout.flush()
