"""The pictures of the pages, as numbers that templates draw: a board's chart, the tree's lanes.

Pure. Colours are those of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from autohypothesis.hub.server.boards import ChartPoint

# ── a board: its best value over time, as a step line with points ───────────────────────────

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 50
"""Room for the labels of the axes."""
_UP, _ACROSS = 6, 4
"""Labels at most."""
_BEYOND = 0.75
"""Maximum distance of a refuted value that is shown from all others, in units of their range."""
_HOUR, _DAY = 3600, 86_400
_TIME_STEPS = (
    1, 5, 15, 60, 300, 900, 1800, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY,
    5 * _DAY, 10 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY,
)  # fmt: skip
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ChartMark(NamedTuple):
    x: float
    y: float
    point: ChartPoint


class Tick(NamedTuple):
    at: float
    label: str


class Chart(NamedTuple):
    line: str
    """The step line, as an SVG path."""
    marks: list[ChartMark]
    across: list[Tick]
    up: list[Tick]
    day: str
    """The date, where all points are of one day; else empty."""


def chart(steps: Sequence[ChartPoint], others: Iterable[ChartPoint]) -> Chart | None:
    """The picture of a board; None where a line would show nothing.

    `steps` are those that were better than all before them, the oldest first. Of `others`, refuted
    ones far outside are left out: they may have any value.
    """
    if len(steps) < 2:
        return None
    taken = {step.id for step in steps}
    every = [*(point for point in others if point.id not in taken), *steps]
    low, high = _range(every)
    first, last = min(point.at for point in every), max(point.at for point in every)
    smallest = max(1e-9 * max(abs(low), abs(high)), 1e-300)
    if not (smallest < high - low < 1e300 and last - first > 1):
        return None
    up = _Scale(low - 0.06 * (high - low), high + 0.06 * (high - low), HEIGHT - BOTTOM, TOP)
    across = _Scale(first, last + 0.02 * (last - first), LEFT, WIDTH - RIGHT)
    marks = [
        ChartMark(across(point.at), up(point.value), point)
        for point in every
        if up.holds(point.value)
    ]
    path = f"M{across(steps[0].at)} {up(steps[0].value)}"
    path += "".join(f"H{across(step.at)}V{up(step.value)}" for step in steps[1:])
    day = _utc(first).date().isoformat()
    one_day = day if day == _utc(last).date().isoformat() else ""
    line = f"{path}H{across(across.high)}"
    return Chart(line, marks, _time_ticks(across, one_day), _value_ticks(up), one_day)


class _Scale(NamedTuple):
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def _range(points: Sequence[ChartPoint]) -> tuple[float, float]:
    values = [point.value for point in points if point.state != "refuted"]
    low, high = min(values), max(values)
    beyond = _BEYOND * (high - low)
    near = [point.value for point in points if low - beyond <= point.value <= high + beyond]
    return min(near), max(near)


def _value_ticks(scale: _Scale) -> list[Tick]:
    raw = (scale.high - scale.low) / _UP
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * nice for nice in (1, 2, 5, 10, 20) if size * nice >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(scale.low / step)
    values = [(first + place) * step for place in range(_UP + 1)]
    return [
        Tick(
            scale(value),
            f"{value:.{digits}f}" if digits <= 6 and abs(value) < 1e4 else f"{value:.6g}",
        )
        for value in values
        if scale.holds(value)
    ]


def _time_ticks(scale: _Scale, day: str) -> list[Tick]:
    span = scale.high - scale.low
    longest = _TIME_STEPS[-1]
    fitting = (step for step in _TIME_STEPS if span / step <= _ACROSS)
    step = next(fitting, longest * math.ceil(span / longest / _ACROSS))
    first = math.ceil(scale.low / step) * step
    times = [first + place * step for place in range(_ACROSS + 1)]
    return [Tick(scale(at), _time_label(at, step, day)) for at in times if scale.holds(at)]


def _time_label(at: float, step: float, day: str) -> str:
    when = _utc(at)
    date = f"{when.day} {_MONTHS[when.month - 1]}"
    if step >= 90 * _DAY:
        return f"{_MONTHS[when.month - 1]} {when.year}"
    if step >= _DAY:
        return date
    time = when.strftime("%H:%M:%S" if step < 60 else "%H:%M")
    return time if day else f"{date} {time}"


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)


# ── the tree of commits: lanes beside a list, newest first ──────────────────────────────────

LANES = 8
"""Side by side at most: a parent without room for a lane is named in words only, as all are."""
STEP = 14
"""Pixels from lane to lane."""


@dataclass(slots=True)
class TreeRow:
    """The lines of one row; lanes by number, from the left.

    A lane leads from a commit down to its parent, and commits with the same parent share one, so
    that many tries on one commit stay narrow.
    """

    dot: int
    from_above: bool = False
    """Whether a commit on an earlier row, or on an earlier page, is built on it."""
    passing: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    """Columns of the lines to its parents at the lower edge."""

    @property
    def width(self) -> int:
        return 1 + max(self.dot, *self.passing, *self.down, 0)


def lane_x(lane: int) -> int:
    """The middle of a lane, in pixels."""
    return STEP * lane + STEP // 2


def tree_rows(commits: Sequence[Mapping[str, Any]]) -> list[TreeRow]:
    """A row for each of `commits`, which have `hash`, `parents` and `leaf`, newest first."""
    awaited: list[str | None] = []
    rows = []
    for commit in commits:
        rows.append(_tree_row(commit, awaited))
        while awaited and awaited[-1] is None:
            awaited.pop()
    return rows


def _tree_row(commit: Mapping[str, Any], awaited: list[str | None]) -> TreeRow:
    mine = commit["hash"]
    expected = mine in awaited
    dot = awaited.index(mine) if expected else _free(awaited)
    passing = [lane for lane, name in enumerate(awaited) if name not in (None, mine)]
    if expected:
        awaited[dot] = None
    row = TreeRow(min(dot, LANES), expected or not commit["leaf"], passing)
    for parent in commit["parents"]:
        lane = awaited.index(parent) if parent in awaited else _free(awaited)
        if lane < LANES or parent in awaited:
            awaited[lane : lane + 1] = [parent]
            row.down.append(lane)
    return row


def _free(awaited: list[str | None]) -> int:
    return awaited.index(None) if None in awaited else len(awaited)
