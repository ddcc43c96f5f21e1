"""What follows from results: verdicts, states, what is better. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from autohypothesis.schema import Direction

State = Literal["reproduced", "claimed", "refuted"]
Verdict = Literal["reproduced", "refuted"]

STATES: tuple[State, ...] = ("reproduced", "claimed", "refuted")
"""In the order in which a board shows them."""
CLAIMED, REFUTED = STATES.index("claimed"), STATES.index("refuted")
LINE_DIRECTION: Direction = "minimize"
"""Of what was told without a task: the protocol's lines are about a loss."""

_EXACT = 1e-12
"""Differences of measured numbers are this far from what they are on paper, for each unit."""


class Standing(NamedTuple):
    """What other agents found about a result."""

    state: State
    reproduced: int
    refuted: int

    @property
    def rank(self) -> int:
        return STATES.index(self.state)


UNTRIED = Standing("claimed", 0, 0)


def score(value: float | None, direction: Direction) -> float | None:
    """`value` so that less is better."""
    return -value if value is not None and direction == "maximize" else value


def verdict(
    original: float, again: float | None, direction: Direction, min_delta: float
) -> Verdict:
    """Of a run that repeats another one; `again` is None where it has no value, as a crash has."""
    if again is None:
        return "refuted"
    worse_by = again - original if direction == "minimize" else original - again
    exact = _EXACT * max(1.0, abs(original), abs(again))
    return "reproduced" if worse_by <= min_delta + exact else "refuted"


def standing(author: str, verdicts: Iterable[tuple[str, Verdict]]) -> Standing:
    """From (agent, verdict), the oldest first: the latest of each agent counts.

    The author has no say but to take the result back, which is final.
    """
    latest = dict(verdicts)
    taken_back = latest.pop(author, None) is not None
    counted = Counter(latest.values())
    reproduced, refuted = counted["reproduced"], counted["refuted"]
    state: State = "claimed"
    if taken_back or refuted > reproduced:
        state = "refuted"
    elif reproduced > refuted:
        state = "reproduced"
    return Standing(state, reproduced, refuted)


def ranked(status: str, value: float | None, verifies: int | None) -> bool:
    """Whether a result has a place on a board."""
    return status == "keep" and value is not None and verifies is None
