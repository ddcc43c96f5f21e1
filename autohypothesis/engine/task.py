"""Reading a task: from its file, or the one that a repository without a file stands for.

Everything that is wrong with a file is reported at once, with lines and the nearest right names:
keys and values first by the model, then patterns against the files that the repository has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from autohypothesis.engine import patterns
from autohypothesis.engine.task_errors import (
    Problem,
    TaskFileError,
    problems_of,
    read_task_file,
)
from autohypothesis.engine.task_model import (
    Budget,
    Constraint,
    Knob,
    Objective,
    Run,
    Task,
    TaskFile,
    task_schema,
)
from autohypothesis.errors import TaskError
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import nearest

__all__ = [
    "Budget",
    "Constraint",
    "Knob",
    "Objective",
    "Run",
    "Task",
    "default_task",
    "foreign_task",
    "load_task",
    "task_schema",
]

FOREIGN_DEADLINE_S = 600.0
FOREIGN_MIN_DELTA = 0.001
"""bpb; one seed of the published baseline differs from another by 0.0007 to 0.001."""


def load_task(path: Path, repository_files: Iterable[str], *, root: Path) -> Task:
    """The task in `path`, resolved against the files of the repository at `root`.

    Raises:
        TaskFileError: with every problem in the file, by line.
    """
    data, marks = read_task_file(path)
    files = list(repository_files)
    source = _relative_to(path, root)
    problems: list[Problem] = []
    task: Task | None = None
    try:
        written = TaskFile.model_validate(data)
        task = _resolved(written, source)
        problems += _missing_names(task, files)
    except ValidationError as error:
        problems += problems_of(error, TaskFile)
    problems += _pattern_problems(data, source, files)
    if problems or task is None:
        raise TaskFileError(path, problems, marks)
    return task


def default_task(repository: Repository) -> Task:
    """The task of a repository: its task.yaml, the shipped one, or the one that needs no file.

    Raises:
        TaskError: its task file is wrong, or it has neither a task file nor a train.py.
    """
    layout = Layout(repository.root)
    files = repository.tracked_files()
    if layout.root_task.exists():
        return load_task(layout.root_task, files, root=repository.root)
    if layout.default_task.exists() and "prepare.py" in files and _is_our_pair(repository.root):
        return load_task(layout.default_task, files, root=repository.root)
    if "train.py" not in files and not (repository.root / "train.py").is_file():
        raise TaskError(
            f"{repository.root} has neither a task.yaml nor a train.py",
            hint=f"write {layout.root_task}, or name another repository with --repo PATH",
        )
    return foreign_task()


def _is_our_pair(root: Path) -> bool:
    """Whether prepare.py answers what the shipped task asks of it.

    Somebody else's search may have files of the same names, with other things in them.
    """
    try:
        text = (root / "prepare.py").read_bytes()
    except OSError:
        return False
    return all(option in text for option in (b"--locate", b"--preflight", b"--score"))


def foreign_task() -> Task:
    """A script that prints `val_bpb:`, about which nothing else is known."""
    return Task(
        id="train",
        description="train.py as it is; every other tracked file stays as it is",
        artifacts=("train.py",),
        run=Run(deadline_seconds=FOREIGN_DEADLINE_S),
        objective=Objective(min_delta=FOREIGN_MIN_DELTA),
    )


def _relative_to(path: Path, root: Path) -> str:
    """`path` as the repository names it; empty when it lies elsewhere."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return ""


def _resolved(written: TaskFile, source: str) -> Task:
    """`written` with its patterns relative to the repository."""
    folder = PurePosixPath(source).parent
    values = {name: getattr(written, name) for name in TaskFile.model_fields}
    if written.root == "task" and source:
        values["artifacts"] = tuple(_below(folder, one) for one in written.artifacts)
        if written.protected is not None:
            values["protected"] = tuple(_below(folder, one) for one in written.protected)
    return Task(**{**values, "root": "repository", "source": source})


def _below(folder: PurePosixPath, pattern: str) -> str:
    return (folder / pattern.removeprefix("./")).as_posix()


# ── patterns against files ──────────────────────────────────────────────────────────────────


def _pattern_problems(data: Mapping[str, Any], source: str, files: list[str]) -> list[Problem]:
    """What is wrong with `artifacts` and `protected`, also when other sections are wrong too."""
    folder = PurePosixPath(source).parent
    if data.get("root", "task") != "task" or not source:
        folder = PurePosixPath(".")
    named = {name: _patterns_in(data, name) for name in ("artifacts", "protected")}
    protected = [_below(folder, pattern) for pattern in named["protected"].values()]
    problems = []
    for name, listed in named.items():
        for index, pattern in listed.items():
            found = patterns.matching(files, [_below(folder, pattern)])
            if not found:
                near = nearest(pattern, _names_from(folder, files))
                problems.append(Problem((name, index), f"{pattern!r} matches no file{near}"))
            elif name == "artifacts":
                problems += _protected_among(found, protected, source, (name, index), pattern)
    return problems


def _patterns_in(data: Mapping[str, Any], name: str) -> dict[int, str]:
    """The usable patterns of a list; the model reports the others."""
    listed = data.get(name)
    if not isinstance(listed, list):
        return {}
    usable = (item for item in enumerate(listed) if isinstance(item[1], str))
    return {index: one for index, one in usable if patterns.problem_with(one) is None}


def _protected_among(
    found: list[str], protected: list[str], source: str, place: tuple[str, int], pattern: str
) -> list[Problem]:
    overlap = patterns.matching(found, protected)
    if overlap:
        return [Problem(place, f"{pattern!r} matches {overlap[0]!r}, which is protected")]
    if found == [source]:
        return [Problem(place, f"{pattern!r} matches the task file itself, which never changes")]
    return []


def _names_from(folder: PurePosixPath, files: list[str]) -> list[str]:
    """File names as somebody who stands in `folder` would write them."""
    prefix = "" if folder == PurePosixPath(".") else f"{folder.as_posix()}/"
    return [name.removeprefix(prefix) for name in files if name.startswith(prefix)]


def _missing_names(task: Task, files: list[str]) -> list[Problem]:
    """Single files and folders that the task names and the repository lacks."""
    problems = []
    evaluator, cwd = task.scorer.evaluator, task.run.cwd.rstrip("/")
    if evaluator is not None and evaluator not in files:
        said = f"{evaluator!r} is no tracked file{nearest(evaluator, files)}"
        problems.append(Problem(("scorer", "evaluator"), said))
    elif evaluator is not None and task.is_artifact(evaluator):
        said = f"{evaluator!r} is an artifact; what scores a change may not be changed by it"
        problems.append(Problem(("scorer", "evaluator"), said))
    folders = sorted(
        {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    )
    if cwd not in folders:
        problems.append(Problem(("run", "cwd"), f"{cwd!r} is no folder{nearest(cwd, folders)}"))
    return problems
