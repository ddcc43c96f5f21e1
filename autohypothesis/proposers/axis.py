"""One knob as a line to walk on: positions, steps from a value, and values that are the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from autohypothesis.engine.task import Knob
from autohypothesis.schema import Setting

Key = tuple[object, ...]

MISSING = ("missing",)
"""In a key, the place of a constant that the settings lack: it equals no value."""
DIGITS = 3
"""Significant digits of a proposed number: more only makes titles long."""
FEW = 16
"""Up to here a whole number moves by one, over it by a factor."""
FAR = 4.0
"""Neighbours in a list of numbers that are further apart belong to different machines."""
STEP, FINE_STEP = 2.0, 1.4
SHARE, FINE_SHARE = 0.25, 0.125
"""Steps of a knob that is not logarithmic, in shares of its range."""
CLOSE_FACTOR, CLOSE_SHARE = 0.14, 0.04
"""Differences that are not worth a run: of logarithms (15 %), and in shares of a range."""


def canonical(value: object) -> object:
    """`value` so that equal settings are equal keys: 1 is 1.0 but not True, a list is a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(canonical(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((str(name), canonical(item)) for name, item in value.items()))
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
        return float(f"{value:.9g}")
    return value if isinstance(value, (int, str, bytes, type(None))) else repr(value)


def settings_key(settings: Mapping[str, Setting], names: tuple[str, ...]) -> Key:
    """The settings in the order of `names`."""
    return tuple(canonical(settings[name]) if name in settings else MISSING for name in names)


def number(value: object) -> float | None:
    """`value` as a number; None of texts, lists and truth values."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Step:
    """A value to try from here."""

    value: Setting
    direction: int
    """+1 or -1: towards larger values, or the end of the list of choices."""
    fine: bool
    """A second choice: a smaller step, or a choice that is no neighbour."""


@dataclass(frozen=True)
class Axis:
    """A knob and its name."""

    name: str
    knob: Knob

    @cached_property
    def choices(self) -> tuple[Setting, ...]:
        return tuple(self.knob.choices or ())

    @cached_property
    def ordered(self) -> bool:
        """Whether values beyond a bad one can be expected to be bad as well."""
        if self.knob.type != "choice":
            return True
        numbers = [number(choice) for choice in self.choices]
        known = [one for one in numbers if one is not None]
        return len(known) == len(numbers) > 1 and known == sorted(set(known))

    def position(self, value: Setting) -> float | None:
        """Where `value` lies on the line; None when it lies nowhere on it."""
        if self.knob.type != "choice":
            found = number(value)
            if found is None or not self.knob.log:
                return found
            return math.log(found) if found > 0 else None
        if self.ordered:
            return number(value)
        keys = [canonical(choice) for choice in self.choices]
        key = canonical(value)
        return float(keys.index(key)) if key in keys else None

    def allows(self, value: Setting) -> bool:
        """Whether the knob has this value."""
        if self.knob.type == "choice":
            return canonical(value) in {canonical(choice) for choice in self.choices}
        found = number(value)
        assert self.knob.low is not None and self.knob.high is not None
        return found is not None and self.knob.low <= found <= self.knob.high

    def steps(self, value: Setting) -> list[Step]:
        """What to try from `value`: the plain step both ways, then the second choices."""
        made = (
            self._choice_steps(value) if self.knob.type == "choice" else self._number_steps(value)
        )
        steps: dict[object, Step] = {}
        for step in made:
            key = canonical(step.value)
            if key != canonical(value) and self.allows(step.value):
                steps.setdefault(key, step)
        return list(steps.values())

    def _number_steps(self, value: Setting) -> Iterator[Step]:
        here = number(value)
        if here is None:
            return
        for fine in (False, True):
            for direction in (-1, 1):
                there = self.fitted(self._moved(here, direction, fine))
                if direction * (float(there) - here) > 0:
                    yield Step(there, direction, fine)

    def _moved(self, here: float, direction: int, fine: bool) -> float:
        assert self.knob.low is not None and self.knob.high is not None
        if self.knob.type == "int":
            if here <= FEW:
                return here + direction * (2 if fine else 1)
            if not fine:
                return here * STEP**direction
            grain = _grain(int(here))
            return round(here * (1.5 if direction > 0 else 0.75) / grain) * grain
        if self.knob.log and here > 0:
            return float(here * (FINE_STEP if fine else STEP) ** direction)
        share = FINE_SHARE if fine else SHARE
        return here + direction * share * (self.knob.high - self.knob.low)

    def fitted(self, value: float) -> int | float:
        """`value` inside the bounds, whole or with few digits."""
        assert self.knob.low is not None and self.knob.high is not None
        low, high = self.knob.low, self.knob.high
        if self.knob.type == "int":
            return int(min(max(round(value), low), high))
        rounded = float(f"{value:.{DIGITS}g}")
        return min(max(rounded, low), high)

    def rounded(self, value: float, like: Setting) -> int | float:
        """`value` inside the bounds, and as round as the setting that it would replace."""
        known = number(like)
        if self.knob.type == "int" and known is not None and known > FEW:
            grain = _grain(int(known))
            value = round(value / grain) * grain
        return self.fitted(value)

    def is_near(self, one: Setting, other: Setting) -> bool:
        """Whether two values are so close that no run can tell them apart."""
        if canonical(one) == canonical(other):
            return True
        first, second = self.position(one), self.position(other)
        if self.knob.type != "float" or first is None or second is None:
            return False
        assert self.knob.low is not None and self.knob.high is not None
        whole = self.knob.high - self.knob.low
        return abs(first - second) < (CLOSE_FACTOR if self.knob.log else CLOSE_SHARE * whole)

    def _choice_steps(self, value: Setting) -> Iterator[Step]:
        if self.ordered:
            yield from self._neighbours(value)
            return
        here = self.position(value)
        start = -1 if here is None else int(here)
        far = sorted(range(len(self.choices)), key=lambda index: abs(index - start))
        for index in far:
            if index != start:
                distance = abs(index - start)
                yield Step(self.choices[index], 1 if index > start else -1, fine=distance > 1)

    def _neighbours(self, value: Setting) -> Iterator[Step]:
        """The next number either way, unless it is meant for another machine."""
        here = number(value)
        if here is None:
            return
        for direction in (-1, 1):
            beyond = [
                (abs(there - here), choice)
                for choice in self.choices
                if (there := number(choice)) is not None and direction * (there - here) > 0
            ]
            if beyond:
                choice = min(beyond, key=lambda pair: pair[0])[1]
                if near(here, number(choice)):
                    yield Step(choice, direction, fine=False)


def near(one: float | None, other: float | None) -> bool:
    """Whether two numbers of a list can be meant for one machine."""
    if one is None or other is None:
        return False
    if one <= 0 or other <= 0:
        return True
    return max(one, other) / min(one, other) <= FAR


def _grain(value: int) -> int:
    """A quarter of the largest power of two in `value`: sizes stay as round as they were."""
    return max(1, (value & -value) // 4)
