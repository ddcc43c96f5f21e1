"""The picture of a board: its best value over time, as a step line with points. Pure.

Here is where things stand; `chart.svg.j2` draws them, in the colours of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 50
"""Room for the labels of the axes."""
_UP, _ACROSS = 6, 4
"""Labels at most."""
_BEYOND = 0.75
"""How far outside of all others a refuted value is still shown, in their range."""
_HOUR, _DAY = 3600, 86_400
_TIME_STEPS = (
    1, 5, 15, 60, 300, 900, 1800, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY,
    5 * _DAY, 10 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY,
)  # fmt: skip
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Told:
    """A result, as far as the picture shows it."""

    id: int
    at: float
    """Seconds since 1970."""
    value: float
    state: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point, where it is drawn."""

    x: float
    y: float
    told: Told


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the template draws."""

    line: str
    """The step line, as an SVG path."""
    marks: list[Mark]
    across: list[Tick]
    up: list[Tick]
    day: str
    """Where all of it is of one day, that day."""


def seconds(stamp: str) -> float:
    """A time as the hub writes it."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def chart(steps: Sequence[Told], others: Iterable[Told]) -> Chart | None:
    """The picture of a board; None where there is nothing that a line could show.

    `steps` are those that were better than all before them, the oldest first. Of `others`, refuted
    ones far outside are left out: they may be anything.
    """
    if len(steps) < 2:
        return None
    taken = {step.id for step in steps}
    rest = [one for one in others if one.id not in taken]
    low, high = _range([*steps, *rest])
    times = [one.at for one in (*steps, *rest)]
    first, last = min(times), max(times)
    smallest = max(1e-9 * max(abs(low), abs(high)), 1e-300)
    if not (smallest < high - low < 1e300 and last - first > 1):
        return None
    upright = _Scale(low - 0.06 * (high - low), high + 0.06 * (high - low), HEIGHT - BOTTOM, TOP)
    along = _Scale(first, last + 0.02 * (last - first), LEFT, WIDTH - RIGHT)
    shown = [one for one in (*rest, *steps) if upright.holds(one.value)]
    marks = [Mark(along(one.at), upright(one.value), one) for one in shown]
    one_day = _date(first) if _date(first) == _date(last) else ""
    return Chart(
        _step_line(steps, along, upright), marks, _times(along, one_day), _values(upright), one_day
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scale:
    """From what was measured to where it is drawn."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def _range(shown: Sequence[Told]) -> tuple[float, float]:
    values = [one.value for one in shown if one.state != "refuted"]
    low, high = min(values), max(values)
    beyond = _BEYOND * (high - low)
    near = [one.value for one in shown if low - beyond <= one.value <= high + beyond]
    return min(near), max(near)


def _step_line(steps: Sequence[Told], along: _Scale, upright: _Scale) -> str:
    first, *later = steps
    path = f"M{along(first.at)} {upright(first.value)}"
    for step in later:
        path += f"H{along(step.at)}V{upright(step.value)}"
    return path + f"H{along(along.high)}"


def _values(scale: _Scale) -> list[Tick]:
    raw = (scale.high - scale.low) / _UP
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * nice for nice in (1, 2, 5, 10, 20) if size * nice >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, ticks = math.ceil(scale.low / step), []
    for place in range(_UP + 1):
        value = (first + place) * step
        if scale.holds(value):
            plain = digits <= 6 and abs(value) < 1e4
            label = f"{value:.{digits}f}" if plain else f"{value:.6g}"
            ticks.append(Tick(scale(value), label))
    return ticks


def _times(scale: _Scale, day: str) -> list[Tick]:
    span = scale.high - scale.low
    longest = _TIME_STEPS[-1]
    fitting = (one for one in _TIME_STEPS if span / one <= _ACROSS)
    step = next(fitting, longest * math.ceil(span / longest / _ACROSS))
    first = math.ceil(scale.low / step) * step
    times = [first + place * step for place in range(_ACROSS + 1)]
    return [Tick(scale(at), _time_label(at, step, day)) for at in times if scale.holds(at)]


def _time_label(at: float, step: float, day: str) -> str:
    when = datetime.fromtimestamp(at, timezone.utc)
    date = f"{when.day} {_MONTHS[when.month - 1]}"
    if step >= 90 * _DAY:
        return f"{_MONTHS[when.month - 1]} {when.year}"
    if step >= _DAY:
        return date
    time = when.strftime("%H:%M:%S" if step < 60 else "%H:%M")
    return time if day else f"{date} {time}"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).date().isoformat()
