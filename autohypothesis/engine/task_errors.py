"""What is wrong with a task file, each problem with its line and the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autohypothesis.errors import TaskError
from autohypothesis.schema import nearest

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
