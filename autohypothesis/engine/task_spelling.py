"""The published spelling of a task file, rewritten as ours.

The published artifact loop says `artifacts: {include, exclude}`, `runner`, `timeout`, a list of
`constraints` and `logging`. Each key that is accepted becomes one of ours, or is named with the
reason why it has no effect. Both spellings of one thing in a file are an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Location = tuple[str | int, ...]

_LIMIT = {"timeout": "deadline_seconds", "timeout_seconds": "deadline_seconds"}
RENAMED: Mapping[str, Mapping[str, str]] = {
    "run": _LIMIT,
    "runner": _LIMIT,
    "mutator": {"timeout": "timeout_seconds"},
    "scorer": {"timeout": "timeout_seconds"},
}
"""Section -> published key -> our key. `runner` is our `run`; all else is called the same."""


class TaskProblem(NamedTuple):
    location: Location
    message: str
    to_add: str = ""
    """The file that is there, and has to be committed."""

    def __str__(self) -> str:
        name = ".".join(map(str, self.location))
        return f"{name}: {self.message}" if name else self.message


@dataclass
class Respelled:
    """A task file in our spelling.

    Attributes:
        data: what the model reads.
        written: our location -> the location in the file, where the two differ.
        notes: what was accepted without an effect, and why.
    """

    data: dict[str, Any]
    written: dict[Location, Location] = field(default_factory=dict)
    problems: list[TaskProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def in_file(self, problem: TaskProblem) -> TaskProblem:
        """Return `problem` at the location that its author wrote."""
        location = problem.location
        for end in range(len(location), 0, -1):
            if (original := self.written.get(location[:end])) is not None:
                return problem._replace(location=(*original, *location[end:]))
        return problem


def respelled(data: Mapping[str, Any]) -> Respelled:
    """Return the content of a task file in our spelling; what is wrong in it stays as it is."""
    # A key without a value is one that is not there.
    ours = Respelled({key: value for key, value in data.items() if value is not None})
    if isinstance(data.get("artifacts"), dict):
        _artifacts(ours, data["artifacts"])
    if isinstance(data.get("constraints"), list):
        _constraints(ours, data["constraints"])
    for section in RENAMED:
        if isinstance(data.get(section), dict):
            _section(ours, section)
    scorer = ours.data.get("scorer")
    if isinstance(data.get("runner"), dict) and isinstance(scorer, dict) and scorer.get("command"):
        scorer.setdefault("cwd", ".")  # a published scorer does not follow the runner
    if "logging" in ours.data:
        del ours.data["logging"]
        ours.notes.append(
            "logging has no effect: one JSON line for each iteration is always appended to"
            " work/results.jsonl"
        )
    return ours


def _section(ours: Respelled, section: str) -> None:
    """Move the published keys of one section to where we have them."""
    given: dict[str, Any] = ours.data.pop(section)
    home = "run" if section == "runner" else section
    target = ours.data.get(home, {})
    if not isinstance(target, dict):
        ours.problems.append(TaskProblem((section,), f"is another name of `{home}`; keep one"))
        return
    moved = ours.data[home] = dict(target)
    if not target:
        ours.written[home,] = (section,)
    for key, value in given.items():
        name = RENAMED[section].get(key, key)
        if (section, key) == ("runner", "type"):
            ours.notes.append("runner.type has no effect: there is one kind of runner, a command")
        elif name in moved or (name != key and name in given):
            words = f"is another name of `{home}.{name}`, which is there too; keep one"
            ours.problems.append(TaskProblem((section, key), words))
        else:
            moved[name] = value
            ours.written[home, name] = (section, key)


def _artifacts(ours: Respelled, given: Mapping[str, Any]) -> None:
    """Make one list of `include` and `exclude`, whose patterns begin with `!` there."""
    patterns = ours.data["artifacts"] = []
    for key, listed in given.items():
        if key not in ("include", "exclude"):
            words = "unknown key; `artifacts` has `include` and `exclude`"
            ours.problems.append(TaskProblem(("artifacts", key), words))
            continue
        items = listed if isinstance(listed, list) else [] if listed is None else [listed]
        for index, pattern in enumerate(items):
            ours.written["artifacts", len(patterns)] = ("artifacts", key, index)
            patterns.append(f"!{pattern}" if key == "exclude" else pattern)
    if not given.get("include"):
        ours.problems.append(TaskProblem(("artifacts", "include"), "is missing"))


def _constraints(ours: Respelled, given: list[Any]) -> None:
    """Make a mapping of a list of `{metric: NAME, hard: LIMIT}`."""
    limits = ours.data["constraints"] = {}
    for index, item in enumerate(given):
        name = item.get("metric") if isinstance(item, dict) else None
        if isinstance(item, str):
            ours.notes.append(
                f"constraint {item!r} has no effect: code does not check a sentence; write"
                " METRIC: {hard: LIMIT}, or say it in program.md"
            )
        elif not isinstance(name, str) or name in limits:
            again = f"limits {name} a second time; keep one"
            words = again if isinstance(name, str) else "is not {metric: NAME, hard: LIMIT}"
            ours.problems.append(TaskProblem(("constraints", index), words))
        else:
            limits[name] = {key: value for key, value in item.items() if key != "metric"}
            ours.written["constraints", name] = ("constraints", index)
