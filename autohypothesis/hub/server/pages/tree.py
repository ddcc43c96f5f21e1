"""The lines beside a list of commits that show what is built on what. Pure.

Newest first, each row of the list has a dot; a lane leads from a commit down to its parent, and
commits with the same parent share one, so that many tries on one commit stay narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LANES = 8
"""Side by side at most: what has no room is named in words only, as all parents are."""
STEP = 14
"""Pixels from lane to lane."""


@dataclass(slots=True)
class Drawn:
    """The lines of one row; lanes by number, from the left."""

    dot: int
    from_above: bool = False
    """Whether something on an earlier row, or on an earlier page, is built on it."""
    passing: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    """Where the lanes to its parents are at the lower edge."""

    @property
    def width(self) -> int:
        return 1 + max(self.dot, *self.passing, *self.down, 0)


def x(lane: int) -> int:
    """The middle of a lane, in pixels."""
    return STEP * lane + STEP // 2


def drawn(commits: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """A row for each of `commits`, which have `hash`, `parents` and `leaf`, newest first."""
    awaited: list[str | None] = []
    rows = []
    for commit in commits:
        rows.append(_row(commit, awaited))
        while awaited and awaited[-1] is None:
            awaited.pop()
    return rows


def _row(commit: Mapping[str, Any], awaited: list[str | None]) -> Drawn:
    mine = commit["hash"]
    expected = mine in awaited
    dot = awaited.index(mine) if expected else _free(awaited)
    passing = [lane for lane, name in enumerate(awaited) if name not in (None, mine)]
    if expected:
        awaited[dot] = None
    row = Drawn(min(dot, LANES), expected or not commit["leaf"], passing)
    for parent in commit["parents"]:
        lane = awaited.index(parent) if parent in awaited else _taken(awaited, parent)
        if lane is not None:
            row.down.append(lane)
    return row


def _free(awaited: list[str | None]) -> int:
    return awaited.index(None) if None in awaited else len(awaited)


def _taken(awaited: list[str | None], parent: str) -> int | None:
    """The lane that leads to `parent` from here on; None: there is no room."""
    lane = _free(awaited)
    if lane >= LANES:
        return None
    awaited[lane : lane + 1] = [parent]
    return lane
