"""Read a task: from its file, or the one that a repository without a file stands for.

Everything that is wrong with a file is reported at once, with lines and the nearest right names:
keys and values first by the model, then patterns against the files that the repository has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autohypothesis.engine.shim import FOREIGN_DEADLINE_S
from autohypothesis.engine.task import (
    Objective,
    RunConfig,
    ScorerConfig,
    Task,
    TaskFile,
    matching,
    pattern_problem,
)
from autohypothesis.engine.task_spelling import Location, TaskProblem, respelled
from autohypothesis.errors import TaskError
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import did_you_mean

FOREIGN_MIN_DELTA = 0.001
"""bpb; one seed of the published baseline differs from another by 0.0007 to 0.001."""
SCRIPT = "train.py"
"""The training script of a repository without a task file."""
MAX_BYTES = 256 * 1024
Marks = dict[Location, int]
"""Location of a key or item of the file -> its line, from 1."""


class TaskFileError(TaskError):
    """A task file with everything that is wrong in it, in the order of its lines."""

    def __init__(
        self,
        path: Path,
        problems: Iterable[TaskProblem],
        marks: Marks | None = None,
    ) -> None:
        problems = list(problems)
        new = shlex.join(dict.fromkeys(each.to_add for each in problems if each.to_add))
        lines = sorted((line_of(each.location, marks or {}), str(each)) for each in problems)
        self.lines = [f"{path}:{line}: {words}" for line, words in dict.fromkeys(lines)]
        super().__init__(
            "\n".join(self.lines),
            hint=f"commit the task first: git add {new}; git commit -m 'the task'"
            if new
            else "`python orchestrator.py schema task` lists what it may say",
        )


def load_task(path: Path, repository_files: Iterable[str], *, root: Path) -> Task:
    """Read the task in `path`, resolved against the files of the repository at `root`.

    Raises:
        TaskFileError: with every problem in the file, by line.
    """
    return read_task(path, repository_files, root=root)[0]


def read_task(path: Path, repository_files: Iterable[str], *, root: Path) -> tuple[Task, list[str]]:
    """Return the task in `path`, as `load_task`, and what of its file has no effect, and why."""
    data, marks = _read(path)
    ours = respelled(data)
    files = list(repository_files)
    try:
        source = path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        source = ""  # it lies outside of the repository
    is_inside = source and data.get("root", "task") == "task"
    folder = PurePosixPath(source).parent if is_inside else PurePosixPath()
    is_published = isinstance(data.get("artifacts"), dict)
    if is_published and "root" not in data and _only_from_the_top(ours.data, folder, files):
        ours.notes.append(
            f"artifacts: nothing matches in {folder}/, so the patterns are read from the top of"
            " the repository, as with `root: repository`"
        )
        folder = PurePosixPath()
    problems = [*ours.problems, *_pattern_problems(ours.data, folder, source, files, root)]
    try:
        written = TaskFile.model_validate(ours.data)
    except ValidationError as error:
        problems = [*problems_of(error, TaskFile), *problems]
        raise TaskFileError(path, map(ours.in_file, problems), marks) from error
    values = {**dict(written), "root": "repository", "source": source}
    for name in ("artifacts", "protected"):
        if values[name] is not None:
            values[name] = tuple(_below(folder, pattern) for pattern in values[name])
    task = Task(**values)
    if problems := [*_missing_names(task, files), *problems]:
        raise TaskFileError(path, map(ours.in_file, problems), marks)
    left_out = (pattern for pattern in task.artifacts if pattern.startswith("!"))
    for pattern in left_out:
        if not matching(files, [pattern[1:]]):
            ours.notes.append(f"artifacts: {pattern[1:]!r}, which is left out, matches no file")
    return task, ours.notes


def _only_from_the_top(
    data: Mapping[str, Any], folder: PurePosixPath, files: Sequence[str]
) -> bool:
    """Return whether the artifacts match files from the top of the repository, and none in the
    task's folder."""
    patterns = [pattern for _, pattern in _patterns_in(data, "artifacts")]
    below = matching(files, [_below(folder, pattern) for pattern in patterns])
    return not below and bool(matching(files, patterns))


def default_task(
    repository: Repository, folders: Iterable[str] = (), of_search: Path | None = None
) -> Task:
    """Return the task of a repository: its task.yaml, the shipped one, or the one without a file.

    Args:
        folders: where a train.py may lie when the top folder has neither, the first one first.
        of_search: the file of the search that is begun, for a repository with none of these.

    Raises:
        TaskError: its task file is wrong, or it has neither a task file nor a train.py.
    """
    layout = Layout(repository.root)
    files = repository.tracked_files()
    if layout.root_task.exists():
        return load_task(layout.root_task, files, root=repository.root)
    if (shipped := shipped_task(repository)) is not None:
        return load_task(shipped, files, root=repository.root)
    for folder in ("", *folders):
        script = (PurePosixPath(folder) / SCRIPT).as_posix()
        if script in files or (repository.root / script).is_file():
            return foreign_task(folder)
    if of_search is not None:
        return load_task(of_search, files, root=repository.root)
    hint = "make one: `python orchestrator.py init`; or name another repository: --repo PATH"
    if deeper := [file for file in files if file.endswith(f"/{SCRIPT}")]:
        named = shlex.quote(str((repository.root / deeper[0]).parent))
        hint = f"name the folder of {deeper[0]}: --repo {named}; or {hint}"
    problem = f"{repository.root} has neither a task.yaml nor a {SCRIPT}"
    raise TaskError(problem, hint=hint)


def shipped_task(repository: Repository) -> Path | None:
    """Return the file of the shipped task, where prepare.py answers what that asks of it."""
    file, script = Layout(repository.root).default_task, repository.root / "prepare.py"
    options = ("--locate", "--preflight", "--score")
    answers = all(has_option(script, option) for option in options)
    return file if answers and file.exists() and repository.tracks(script) else None


def has_option(script: Path, option: str) -> bool:
    """Return whether a script has an option: by its text, since asking would run it.

    Without `--locate` it is no prepare.py of ours.
    """
    try:
        return f'"{option}"'.encode() in script.read_bytes()
    except OSError:
        return False


def task_of_script(task: Task, script: bytes) -> Task:
    """Return `task` as it scores a search that begins with `script`.

    A published script evaluates itself with `evaluate_bpb` and has no `build_model`, without which
    no evaluator can load its weights. So what it prints is its score, attested by nobody, and it
    reads the validation text. It trains when it is imported, so no preflight imports it.
    """
    is_published = b"evaluate_bpb" in script and b"build_model" not in script
    if task.scorer.type != "model" or not is_published:
        return task
    run = task.run.model_copy(update={"preflight": None})
    return task.model_copy(update={"run": run, "scorer": ScorerConfig(type="log")})


def foreign_task(folder: str = "") -> Task:
    """Return the task of a script that prints `val_bpb:`, and of which nothing else is known.

    Args:
        folder: where it lies and is run, from the top of the repository.
    """
    script = (PurePosixPath(folder) / SCRIPT).as_posix()
    return Task(
        id=re.sub(r"[^a-z0-9]+", "-", f"{folder}-train".lower())[-63:].strip("-"),
        description=f"{script} as it is; every other tracked file stays as it is",
        artifacts=(script,),
        run=RunConfig(cwd=folder or ".", deadline_seconds=FOREIGN_DEADLINE_S),
        objective=Objective(min_delta=FOREIGN_MIN_DELTA),
    )


def _below(folder: PurePosixPath, pattern: str) -> str:
    without = "!" if pattern.startswith("!") else ""
    return without + (folder / pattern.removeprefix("!").removeprefix("./")).as_posix()


def _pattern_problems(
    data: Mapping[str, Any], folder: PurePosixPath, source: str, files: list[str], root: Path
) -> Iterator[TaskProblem]:
    """Check `artifacts` and `protected`, also when other sections are wrong."""
    protected = [_below(folder, pattern) for _, pattern in _patterns_in(data, "protected")]
    for name in ("artifacts", "protected"):
        patterns = [_below(folder, pattern) for _, pattern in _patterns_in(data, name)]
        left_out = [pattern for pattern in patterns if pattern.startswith("!")]
        if matching(files, set(patterns) - set(left_out)) and not matching(files, patterns):
            yield TaskProblem((name,), f"no file is left after {', '.join(left_out)}")
        for index, pattern in _patterns_in(data, name):
            if pattern.startswith("!"):
                continue
            path = _below(folder, pattern)
            location, matched = (name, index), matching(files, [path])
            changed = matching(matched, [*patterns])
            overlap = matching(changed, protected) if name == "artifacts" else []
            if not matched and (root / path).exists():
                words = f"{pattern!r} is in no commit, and a run has the files of one"
                yield TaskProblem(location, words, to_add=path)
            elif not matched:
                prefix = "" if folder == PurePosixPath() else f"{folder}/"
                names = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
                words = f"{pattern!r} matches no file{did_you_mean(pattern, names)}"
                if prefix and matching(files, [pattern]):
                    words = f"{pattern!r} matches no file below {prefix}, but at the top of the"
                    words += " repository; to begin there: `root: repository`"
                yield TaskProblem(location, words)
            elif overlap:
                words = f"{pattern!r} matches {overlap[0]!r}, which is protected"
                yield TaskProblem(location, words)
            elif name == "artifacts" and matched == [source]:
                words = f"{pattern!r} matches the task file itself, which never changes"
                yield TaskProblem(location, words)


def _patterns_in(data: Mapping[str, Any], name: str) -> Iterator[tuple[int, str]]:
    """Yield the usable patterns of a list; the model reports the others."""
    listed = data.get(name)
    for index, pattern in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(pattern, str) and pattern_problem(pattern) is None:
            yield index, pattern


def _missing_names(task: Task, files: list[str]) -> Iterator[TaskProblem]:
    evaluator = task.scorer.evaluator
    if evaluator is not None and evaluator not in files:
        words = f"{evaluator!r} is no tracked file{did_you_mean(evaluator, files)}"
        yield TaskProblem(("scorer", "evaluator"), words)
    elif evaluator is not None and task.is_artifact(evaluator):
        words = f"{evaluator!r} is an artifact; what scores a change may not be changed by it"
        yield TaskProblem(("scorer", "evaluator"), words)
    parents = (parent for name in files for parent in PurePosixPath(name).parents)
    folders = sorted({".", *map(str, parents)})
    for section, cwd in (
        ("run", task.run.cwd), ("mutator", task.mutator.cwd), ("scorer", task.scorer.cwd or "."),
    ):  # fmt: skip
        if cwd.rstrip("/") not in folders:
            words = f"{cwd!r} is no folder{did_you_mean(cwd, folders)}"
            yield TaskProblem((section, "cwd"), words)


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read(path: Path) -> tuple[dict[str, Any], Marks]:
    """Return the mapping that a task file holds, and the line of each key."""

    def wrong(words: str, line: int = 1) -> TaskFileError:
        return TaskFileError(path, [TaskProblem((), words)], {(): line})

    marks: Marks = {}
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise wrong(f"is larger than {MAX_BYTES:,} bytes")
        loader = _Loader(content.decode("utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise wrong("is not a mapping of keys to values")
        if problems := list(mark_lines(node, (), marks, set())):
            raise TaskFileError(path, problems, marks)
        return loader.construct_document(node), marks
    except OSError as error:
        raise wrong(error.strerror or str(error)) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise wrong(f"is not YAML: {error.problem or error.context or error}", line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise wrong(f"is not YAML: {error}") from error
    except RecursionError as error:
        raise wrong("is nested too deep") from error


def mark_lines(
    node: yaml.Node, location: Location, marks: Marks, seen: set[int]
) -> Iterator[TaskProblem]:
    """Note the lines of all that is in `node`; refuse what a plain file never has."""
    marks.setdefault(location, node.start_mark.line + 1)
    if id(node) in seen:
        yield TaskProblem(location, "uses a YAML alias; write the value out")
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from mark_lines(item, (*location, index), marks, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, str(key.value))
            if inner in marks:
                yield TaskProblem(inner, f"is there twice, first on line {marks[inner]}")
            elif not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                yield TaskProblem(inner, "is not a plain name")
            marks[inner] = key.start_mark.line + 1
            yield from mark_lines(value, inner, marks, seen)


def line_of(location: Location, marks: Mapping[Location, int]) -> int:
    """Return the line of `location`, or of the nearest thing around it that has one."""
    around = (location[:end] for end in range(len(location), -1, -1))
    return next((marks[location] for location in around if location in marks), 1)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[TaskProblem]:
    """Say what pydantic refused in words for the person who wrote the file."""
    return [TaskProblem(tuple(fault["loc"]), _words(fault, model)) for fault in error.errors()]


def _words(fault: ErrorDetails, model: type[BaseModel]) -> str:
    value, context = fault["input"], fault.get("ctx", {})
    if fault["type"] == "extra_forbidden":
        *section, key = fault["loc"]
        return f"unknown key{did_you_mean(str(key), _known_keys(model, section))}"
    if fault["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", context.get("expected", ""))
        return f"{value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
    if fault["type"] == "missing":
        return "is missing"
    if fault["type"] == "value_error":
        return str(context.get("error", fault["msg"]))
    given = "empty" if value is None else repr(value)[:60]
    for kind, words in _KINDS.items():
        if fault["type"].startswith(kind):
            return f"should be {words}, not {given}"
    return f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {given}"


_KINDS = {
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "string_type": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
"""How a type of pydantic's faults begins -> the word for what belongs there."""


def _known_keys(model: type[BaseModel], section: Iterable[str | int]) -> list[str]:
    """Return the keys that may stand in the section at that location."""
    schema = model.model_json_schema()
    found = schema
    for part in section:
        inner = found.get("properties", {}).get(part) or found.get("additionalProperties")
        reference = re.search(r"#/\$defs/(\w+)", str(inner))
        found = schema["$defs"][reference[1]] if reference else {}
    return sorted(found.get("properties", {}))
