"""The published spelling of a task file, rewritten as ours.

The published artifact loop says `artifacts: {include, exclude}`, `runner`, `timeout`, a list of
`constraints` and `logging`. Each key that is accepted becomes one of ours, or is named with the
reason why it has no effect. Both spellings of one thing in a file are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Location = tuple[str | int, ...]

RENAMED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "runner": {
        "timeout": ("run", "deadline_seconds"),
        "timeout_seconds": ("run", "deadline_seconds"),
    },
    "mutator": {"timeout": ("mutator", "timeout_seconds")},
    "scorer": {"timeout": ("scorer", "timeout_seconds")},
}
"""Section -> published key -> our section and key. All else in `runner` is called as in `run`."""
NO_EFFECT = {
    "logging": "one JSON line for each iteration is always appended to work/results.jsonl",
    "runner.type": "there is one kind of runner, a command",
    "constraints": "code does not check a sentence; write METRIC: {hard: LIMIT}, or say it in"
    " program.md",
}


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
        from_include: whether `artifacts` was a mapping with `include`.
    """

    data: dict[str, Any]
    written: dict[Location, Location] = field(default_factory=dict)
    problems: list[TaskProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    from_include: bool = False

    def in_file(self, problem: TaskProblem) -> TaskProblem:
        """Return `problem` at the location that its author wrote."""
        location = problem.location
        for end in range(len(location), 0, -1):
            if (original := self.written.get(location[:end])) is not None:
                return problem._replace(location=(*original, *location[end:]))
        return problem


def respelled(data: Mapping[str, Any]) -> Respelled:
    """Return the content of a task file in our spelling; what is wrong in it stays as it is."""
    ours = Respelled(dict(data))
    if isinstance(data.get("artifacts"), dict):
        _artifacts(ours, data["artifacts"])
    if isinstance(data.get("constraints"), list):
        _constraints(ours, data["constraints"])
    for section, keys in RENAMED.items():
        if isinstance(data.get(section), dict):
            _section(ours, section, keys)
    scorer = ours.data.get("scorer")
    if isinstance(data.get("runner"), dict) and isinstance(scorer, dict) and scorer.get("command"):
        scorer.setdefault("cwd", ".")  # a published scorer does not follow the runner
    if "logging" in data:
        del ours.data["logging"]
        ours.notes.append(f"logging has no effect: {NO_EFFECT['logging']}")
    return ours


def _section(ours: Respelled, section: str, keys: Mapping[str, tuple[str, str]]) -> None:
    """Move the published keys of one section to where we have them."""
    given: dict[str, Any] = ours.data.pop(section)
    home = "run" if section == "runner" else section
    target = ours.data.get(home, {})
    if not isinstance(target, dict):
        ours.problems.append(TaskProblem((section,), f"is another name of `{home}`; keep one"))
        return
    moved = dict(target)
    for key, value in given.items():
        if f"{section}.{key}" in NO_EFFECT:
            ours.notes.append(f"{section}.{key} has no effect: {NO_EFFECT[f'{section}.{key}']}")
            continue
        _, name = keys.get(key, (home, key))
        if name in moved or (name != key and name in given):
            words = f"is another name of `{home}.{name}`, which is there too; keep one"
            ours.problems.append(TaskProblem((section, key), words))
            continue
        moved[name] = value
        if (section, key) != (home, name):
            ours.written[home, name] = (section, key)
    ours.data[home] = moved
    if not target:
        ours.written.setdefault((home,), (section,))


def _artifacts(ours: Respelled, given: Mapping[str, Any]) -> None:
    """Make one list of `include` and `exclude`, whose patterns begin with `!` there."""
    patterns: list[Any] = []
    ours.from_include = True
    for key in ("include", "exclude"):
        listed = [given[key]] if isinstance(given.get(key), str) else given.get(key) or []
        if not isinstance(listed, list):
            ours.problems.append(TaskProblem(("artifacts", key), "is no list of patterns"))
            continue
        for index, pattern in enumerate(listed):
            is_text = key == "exclude" and isinstance(pattern, str)
            ours.written["artifacts", len(patterns)] = ("artifacts", key, index)
            patterns.append(f"!{pattern}" if is_text else pattern)
    if not given.get("include"):
        ours.problems.append(TaskProblem(("artifacts", "include"), "is missing"))
        patterns = patterns or ["."]  # said already
    for key in given:
        if key not in ("include", "exclude"):
            words = "unknown key; `artifacts` has `include` and `exclude`"
            ours.problems.append(TaskProblem(("artifacts", key), words))
    ours.data["artifacts"] = patterns


def _constraints(ours: Respelled, given: list[Any]) -> None:
    """Make a mapping of a list of `{metric: NAME, hard: LIMIT}`."""
    limits: dict[str, Any] = {}
    for index, item in enumerate(given):
        location = ("constraints", index)
        if isinstance(item, str):
            ours.notes.append(f"constraint {item!r} has no effect: {NO_EFFECT['constraints']}")
        elif not isinstance(item, dict) or not isinstance(item.get("metric"), str):
            words = "is not {metric: NAME, hard: LIMIT}"
            ours.problems.append(TaskProblem(location, words))
        elif item["metric"] in limits:
            words = f"limits {item['metric']} a second time; keep one"
            ours.problems.append(TaskProblem(location, words))
        else:
            limits[item["metric"]] = {name: item[name] for name in item if name != "metric"}
            ours.written["constraints", item["metric"]] = location
    ours.data["constraints"] = limits


# ── the schema, for editors ─────────────────────────────────────────────────────────────────


def spellings_of(section: str) -> Callable[[dict[str, Any]], None]:
    """Return what adds the published keys of a section to its JSON Schema."""

    def add(schema: dict[str, Any]) -> None:
        properties = schema["properties"]
        for key, (home, name) in RENAMED[section].items():
            properties[key] = {
                **{word: value for word, value in properties[name].items() if word != "title"},
                "description": f"The published name of `{home}.{name}`.",
            }

    return add


def add_published_sections(schema: dict[str, Any]) -> None:
    """Add the published sections and forms of a task file to its JSON Schema."""
    properties = schema["properties"]
    ours = {name: properties[name] for name in ("artifacts", "constraints")}
    patterns = {"type": "array", "items": {"type": "string"}}
    globs = {
        "type": "object",
        "properties": {"include": patterns, "exclude": patterns},
        "required": ["include"],
        "additionalProperties": False,
    }
    limits = {"type": "array", "items": {"type": ["object", "string"]}}
    for name, other in (("artifacts", globs), ("constraints", limits)):
        about = {word: ours[name][word] for word in ("title", "description") if word in ours[name]}
        own = {word: value for word, value in ours[name].items() if word not in about}
        properties[name] = {**about, "anyOf": [own, other]}
    properties["runner"] = {
        "type": "object",
        "description": "The published name of `run`; `timeout` is its `deadline_seconds`.",
    }
    properties["logging"] = {"description": f"No effect: {NO_EFFECT['logging']}."}
