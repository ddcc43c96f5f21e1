"""Steering: what a person writes into program.md and steering.md, which binds every proposer.

The first block of a file that begins with ```` ```steering ```` (or ```` ```yaml steering ````) is
YAML of `schema.Steering`. `research/steering.md` binds on top of `program.md`: frozen constants of
both, the narrower range, the smaller memory limit, the directions of both. Both are people's
files; nothing here writes them. They are looked at every turn and parsed when they changed.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from autohypothesis.engine.constants import same
from autohypothesis.engine.task import Constraint, Knob
from autohypothesis.errors import RecordError
from autohypothesis.fleet.live.charter import MEMORY
from autohypothesis.fleet.live.presence import read_role
from autohypothesis.records.bundles import reason_in
from autohypothesis.records.files import PAGE_LIMIT, FileStamp, file_stamp, read_bytes
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Setting, Steering, did_you_mean, finite

_OPENING = re.compile(r"(?P<fence>`{3,}|~{3,})[ \t]*(?:ya?ml[ \t]+)?steering[ \t]*")


def parse(text: str) -> Steering:
    """Return the steering in the first fenced block of a page; an empty one where it has none.

    Raises:
        ValueError: in words that follow the file's name: "line 12: unknown key 'frozn' ...".
    """
    first, block = _block(text.splitlines())
    if not block:  # nearly every page: spare it the import of YAML
        return Steering()
    data, marks = _load_yaml(first, block)
    if data is None:
        return Steering()
    if not isinstance(data, dict):
        raise _error(first, f"the block is {type(data).__name__}, not `key: value` lines")
    try:
        steering = Steering.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        words, where = str(problem["msg"]).removeprefix("Value error, "), problem["loc"]
        unknown = re.search(r"unknown key '([^']*)'", words)
        line = marks.line((unknown[1],) if unknown else where)
        name = ".".join(map(str, where))
        raise _error(line, f"{name}: {words}" if name else words) from None
    _check_numbers(marks, data, steering)
    return steering


def _error(line: int, reason: str) -> ValueError:
    return ValueError(f"line {line}: {reason}")


def _block(lines: list[str]) -> tuple[int, list[str]]:
    """Return the number of the block's first line, from 1, and its lines; none without a block."""
    for index, line in enumerate(lines):
        opening = _OPENING.fullmatch(line.strip())
        if opening is None:
            continue
        fence = opening["fence"]
        for end in range(index + 1, len(lines)):
            closing = lines[end].strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                return index + 2, lines[index + 1 : end]
        raise _error(index + 1, f"the block has no end: a line {fence}")
    return 1, []


class _Marks(NamedTuple):
    """Where each key and item of a block stands."""

    first: int
    lines: dict[tuple[str | int, ...], int]

    def line(self, location: tuple[str | int, ...]) -> int:
        from autohypothesis.engine.task_file import line_of

        return self.first - 1 + line_of(location, self.lines)


def _load_yaml(first: int, block: list[str]) -> tuple[Any, _Marks]:
    import yaml

    from autohypothesis.engine.task_file import mark_lines

    marks = _Marks(first, {})
    try:
        loader = yaml.SafeLoader("\n".join(block))
        node = loader.get_single_node()
        if node is None:
            return None, marks
        list(mark_lines(node, (), marks.lines, set()))  # what it refuses is fine here
        return loader.construct_document(node), marks
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = first + (min(mark.line, len(block) - 1) if mark is not None else 0)
        raise _error(line, getattr(error, "problem", None) or "is not YAML") from None
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # What the loader makes of a tag that does not fit, or of a thousand open brackets.
        raise _error(first, f"is not YAML: {type(error).__name__}") from None


def _check_numbers(marks: _Marks, data: Mapping[str, Any], steering: Steering) -> None:
    """Refuse what the model lets pass: a limit that is no number, a range without a value."""
    limit = data.get("memory_limit_mb")
    if limit is not None and (steering.memory_limit_mb is None or steering.memory_limit_mb <= 0):
        line = marks.line(("memory_limit_mb",))
        raise _error(line, f"memory_limit_mb: {limit!r} is no number of MiB over 0")
    for name, (low, high) in steering.ranges.items():
        if not (math.isfinite(low) and math.isfinite(high)) or low > high:
            line = marks.line(("ranges", name))
            raise _error(line, f"ranges.{name}: {low:g} to {high:g} holds no value")


class _Page(NamedTuple):
    """One file as it was last read."""

    stamp: FileStamp | None
    good: Steering | None
    """The last that could be read; None before the first."""
    problem: str = ""


class SteeringFiles:
    """The two files of one fleet, each parsed when its inode, time or size changed.

    A damaged one leaves the last good steering in force: what was forbidden stays forbidden.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pages: dict[Path, _Page] = {}
        self._looking = threading.Lock()  # a worker looks from two threads

    def combined(self) -> Steering:
        """Return what binds now. Never raises."""
        in_force = Steering()
        with self._looking:
            for path in (self.layout.program, self.layout.steering):
                good = self._look(path).good
                if good is None:  # damaged before this process could read it once
                    observer = read_role(self.layout, "observer")
                    good = Steering()
                    with suppress(ValidationError):
                        known = observer.details.get("steering", {}) if observer else {}
                        good = Steering.model_validate(known)
                in_force = merge_steering(in_force, good)
        return in_force

    def problems(self) -> list[str]:
        """Return what is wrong with the files, as of the last look: file, line and reason."""
        with self._looking:
            return [page.problem for page in self._pages.values() if page.problem]

    def _look(self, path: Path) -> _Page:
        before, stamp = self._pages.get(path), file_stamp(os.path.realpath(path))
        if before is not None and before.stamp == stamp:
            return before
        good, problem = before.good if before else None, ""
        try:
            good = parse(read_bytes(path, PAGE_LIMIT).decode("utf-8-sig"))
        except FileNotFoundError:
            good = Steering()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 at byte {error.start}"
        except RecordError as error:
            problem = reason_in(error, path)
        except ValueError as error:
            problem = str(error)
        if problem:
            short = path.relative_to(self.layout.root)
            problem = f"{short} {problem}; the last good steering stays in force"
        self._pages[path] = _Page(stamp, good, problem)
        return self._pages[path]


_FILES: dict[Layout, SteeringFiles] = {}
"""One reader per fleet and process, so that the last good steering is remembered."""


def current_steering(layout: Layout) -> Steering:
    """Return what binds now, from program.md and research/steering.md. Never raises."""
    return _FILES.setdefault(layout, SteeringFiles(layout)).combined()


def merge_steering(base: Steering, other: Steering) -> Steering:
    """Return what binds when both do."""
    ranges = dict(base.ranges)
    for name, (low, high) in other.ranges.items():
        key = next((known for known in ranges if known.lower() == name.lower()), name)
        before = ranges.get(key, (low, high))
        ranges[key] = (max(low, before[0]), min(high, before[1]))
    limits = [x.memory_limit_mb for x in (base, other) if x.memory_limit_mb is not None]
    return Steering(
        frozen=list(dict.fromkeys([*base.frozen, *other.frozen])),
        ranges=ranges,
        memory_limit_mb=min(limits, default=None),
        directions=list(dict.fromkeys([*base.directions, *other.directions])),
        stop=base.stop or other.stop,
    )


def violation(
    steering: Steering, reference: Mapping[str, Setting], settings: Mapping[str, Setting]
) -> str:
    """Return how `settings` violate `steering`; empty when they do not. Names match without case.

    A constant that is as in the reference breaks no rule: its value was not proposed.
    """
    before = {name.lower(): value for name, value in reference.items()}
    after = {name.lower(): value for name, value in settings.items()}
    changed = {name for name in after if name not in before or not same(before[name], after[name])}
    for name in steering.frozen:
        if name.lower() in changed:
            return f"{name} is frozen by the steering"
        if name.lower() in before and name.lower() not in after:
            return f"{name} is frozen by the steering, and gone"
    for name, (low, high) in steering.ranges.items():
        if name.lower() not in changed:
            continue
        value = after[name.lower()]
        if not _fits(value, low, high):
            return f"{name} = {value!r} is outside {low:g} to {high:g}, the steering's range"
    return ""


def unknown_names(steering: Steering, names: list[str]) -> list[str]:
    """Return a line with a hint for each constant of the steering that the script does not have."""
    known = {name.lower() for name in names}
    return [
        f"the steering names {name}, which the script does not have{did_you_mean(name, names)}"
        for name in (*steering.frozen, *steering.ranges)
        if name.lower() not in known
    ]


def narrowed_knobs(knobs: Mapping[str, Knob], steering: Steering) -> dict[str, Knob]:
    """Return the knobs in the ranges of the steering, without those whose range is empty."""
    frozen = {name.lower() for name in steering.frozen}
    ranges = {name.lower(): limits for name, limits in steering.ranges.items()}
    left: dict[str, Knob] = {}
    for name, knob in knobs.items():
        if name.lower() in frozen:
            continue
        limits = ranges.get(name.lower())
        kept = knob if limits is None else _within(knob, *limits)
        if kept is not None:
            left[name] = kept
    return left


def _within(knob: Knob, low: float, high: float) -> Knob | None:
    if knob.choices is not None:
        fitting = tuple(choice for choice in knob.choices if _fits(choice, low, high))
        return knob.model_copy(update={"choices": fitting}) if fitting else None
    lowest = max(low, knob.low if knob.low is not None else low)
    highest = min(high, knob.high if knob.high is not None else high)
    if knob.type == "int":
        lowest, highest = float(math.ceil(lowest)), float(math.floor(highest))
    if lowest >= highest:
        return None
    return knob.model_copy(update={"low": lowest, "high": highest})


def _fits(value: Setting, low: float, high: float) -> bool:
    """Return whether it is a number in the range; a text that looks like one is none."""
    number = None if isinstance(value, str) else finite(value)
    return number is not None and low <= number <= high


def steering_limits(steering: Steering) -> dict[str, Constraint]:
    """Return the memory limit as settle takes it: a run with a higher peak is discarded."""
    if steering.memory_limit_mb is None:
        return {}
    return {MEMORY: Constraint(hard=steering.memory_limit_mb)}
