"""Reading a task: from its file, or the one that a repository without a file stands for.

Everything that is wrong with a file is reported at once, with lines and the nearest right names:
keys and values first by the model, then patterns against the files that the repository has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autohypothesis.engine.task import (
    Budget,
    Constraint,
    Knob,
    Objective,
    Run,
    Task,
    TaskFile,
    matching,
    pattern_problem,
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
            found = matching(files, [_below(folder, pattern)])
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
    return {index: one for index, one in usable if pattern_problem(one) is None}


def _protected_among(
    found: list[str], protected: list[str], source: str, place: tuple[str, int], pattern: str
) -> list[Problem]:
    overlap = matching(found, protected)
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


MAX_BYTES = 256 * 1024
Location = tuple[str | int, ...]
Marks = dict[Location, int]
"""Where each key or item of the file stands: its line, from 1."""


@dataclass(frozen=True, slots=True)
class Problem:
    location: Location
    message: str


class TaskFileError(TaskError):
    """A task file with everything that is wrong in it, in the order of its lines."""

    def __init__(self, path: Path, problems: Sequence[Problem], marks: Marks | None = None) -> None:
        marks = marks or {}
        found = sorted((_line(problem.location, marks), _said(problem)) for problem in problems)
        self.lines = [f"{path}:{line}: {said}" for line, said in dict.fromkeys(found)]
        super().__init__(
            "\n".join(self.lines), hint="`python orchestrator.py schema task` lists what it may say"
        )


def read_task_file(path: Path) -> tuple[dict[str, Any], Marks]:
    """The mapping that a task file holds, and the line of each key.

    Raises:
        TaskFileError: it is not one YAML mapping of plain values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TaskFileError(path, [Problem((), error.strerror or str(error))]) from error
    if len(content) > MAX_BYTES:
        raise TaskFileError(path, [Problem((), f"is larger than {MAX_BYTES:,} bytes")])
    return _parsed(path, content)


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Any], Marks]:
    marks: Marks = {}
    problems: list[Problem] = []
    try:
        loader = _Loader(content.decode("utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise TaskFileError(path, [Problem((), "is not a mapping of keys to values")])
        _mark(node, (), marks, problems, set())
        if problems:
            raise TaskFileError(path, problems, marks)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = f"is not YAML: {error.problem or error.context or error}"
        raise TaskFileError(path, [Problem((), said)], {(): line}) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise TaskFileError(path, [Problem((), f"is not YAML: {error}")]) from error
    except RecursionError as error:
        raise TaskFileError(path, [Problem((), "is nested too deep")]) from error
    return data, marks


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 and everybody who writes learning rates do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _mark(
    node: yaml.Node, place: Location, marks: Marks, problems: list[Problem], seen: set[int]
) -> None:
    """Note the lines of all that is in `node`; refuse what a plain file never has."""
    marks.setdefault(place, node.start_mark.line + 1)
    if id(node) in seen:
        problems.append(Problem(place, "uses a YAML alias; write the value out"))
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _mark(item, (*place, index), marks, problems, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in marks:
                problems.append(Problem(inner, f"is there twice, first on line {marks[inner]}"))
            elif not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                problems.append(Problem(inner, "is not a plain name"))
            marks[inner] = _start(key)
            _mark(value, inner, marks, problems, seen)


def _start(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """What pydantic refused, in words for the person who wrote the file."""
    return [Problem(tuple(one["loc"]), _words(one, model)) for one in error.errors()]


def _words(one: ErrorDetails, model: type[BaseModel]) -> str:
    location, value = one["loc"], one["input"]
    if one["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(location[-1]), known_keys(model, location[:-1]))}"
    if one["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", one.get("ctx", {}).get("expected", ""))
        near = nearest(str(value), allowed)
        return f"{value!r} is not one of {', '.join(allowed)}{near}"
    if one["type"] == "missing":
        return "is missing"
    if one["type"] == "value_error":
        return str(one.get("ctx", {}).get("error", one["msg"]))
    shown = repr(value)
    return f"{one['msg'][0].lower()}{one['msg'][1:]}, not {shown[:60]}"


def known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that the section at `location` has."""
    here: Any = model
    for part in location:
        fields = getattr(here, "model_fields", None)
        if fields is None or part not in fields:
            here = _section_in(here) or here  # a name in a mapping, an index in a list
            continue
        here = _section_in(fields[str(part)].annotation)
    return list(getattr(here, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The model in `annotation`, through `X | None`, `dict[str, X]`, `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)


def _line(location: Location, marks: Mapping[Location, int]) -> int:
    """The line of `location`, or of the nearest thing around it that has one."""
    for end in range(len(location), -1, -1):
        if location[:end] in marks:
            return marks[location[:end]]
    return 1


def _said(problem: Problem) -> str:
    """`objective.direction 'up' is not one of ...`"""
    name = ".".join(str(part) for part in problem.location)
    return f"{name}: {problem.message}" if name else problem.message
