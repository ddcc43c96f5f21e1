"""Verdicts about results: what a run by another agent says, and what all of them amount to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Connection, or_, select, update

from autohypothesis.hub.protocol import ResultRequest, ResultState
from autohypothesis.hub.server.commits import begins_with
from autohypothesis.hub.server.database import Row, results, row_of
from autohypothesis.hub.server.refusals import bad, missing
from autohypothesis.schema import Direction

Verdict = Literal["reproduced", "refuted"]

STATES: tuple[ResultState, ...] = get_args(ResultState)
"""In the order in which a board shows them."""
REFUTED = STATES.index("refuted")
LINE_DIRECTION: Direction = "minimize"
"""Of results without a task: the protocol's lines are about a loss."""

_EXACT = 1e-12
"""Relative rounding error of measured numbers."""
_SHORTEST = 4
"""Characters of a commit's hash."""

# ── pure ────────────────────────────────────────────────────────────────────────────────────


class Standing(NamedTuple):
    """The verdicts of other agents about a result, summed up."""

    state: ResultState
    reproduced: int
    refuted: int

    @property
    def columns(self) -> dict[str, int]:
        """As stored with the result."""
        rank = STATES.index(self.state)
        return {"standing": rank, "reproduced": self.reproduced, "refuted": self.refuted}


def verdict_of(
    original: float, again: float | None, direction: Direction, min_delta: float
) -> Verdict:
    """The verdict of a run that repeats another; `again` is None where it has no value."""
    if again is None:
        return "refuted"
    worse_by = again - original if direction == "minimize" else original - again
    exact = _EXACT * max(1.0, abs(original), abs(again))
    return "reproduced" if worse_by <= min_delta + exact else "refuted"


def standing_of(author: str, verdicts: Iterable[tuple[str, Verdict]]) -> Standing:
    """From (agent, verdict), the oldest first: the latest of each agent counts.

    The author's own verdict is that the result is taken back, which is final.
    """
    latest = dict(verdicts)
    taken_back = latest.pop(author, None) is not None
    counted = Counter(latest.values())
    reproduced, refuted = counted["reproduced"], counted["refuted"]
    state: ResultState = "claimed"
    if taken_back or refuted > reproduced:
        state = "refuted"
    elif reproduced > refuted:
        state = "reproduced"
    return Standing(state, reproduced, refuted)


def derived(content: Row, direction: Direction) -> dict[str, Any]:
    """The columns of a new result that follow from its content."""
    value, verifies = content["value"], content["verifies"]
    turned = value is not None and direction == "maximize"
    return {
        **Standing("claimed", 0, 0).columns,
        "ranked": content["status"] == "keep" and value is not None and verifies is None,
        "score": -value if turned else value,
    }


def same_commit(one: str, other: str) -> bool:
    """Whether both can be the same commit: a hash may be cut short."""
    return one.startswith(other) or other.startswith(one)


# ── stored ──────────────────────────────────────────────────────────────────────────────────


def of_commit(commit: str) -> ColumnElement[bool]:
    """Results with the `same_commit`."""
    shorter = [commit[:end] for end in range(_SHORTEST, len(commit))]
    column = results.c.commit
    return or_(begins_with(column, commit), column.in_(shorter))


def judged(connection: Connection, agent: str, told: ResultRequest, task: Row | None) -> Verdict:
    """The verdict of `told` about the result that it verifies; `task` is that of both.

    Raises:
        HubRefusalError: 404; 400 when the two cannot be compared.
    """
    original = row_of(connection, select(results).where(results.c.id == told.verifies))
    if original is None:
        raise missing(f"there is no result {told.verifies}")
    _check_comparable(original, told)
    if original["agent_id"] == agent:
        if told.confirmation != "refuted":
            raise bad(
                f"result {told.verifies} is your own: others verify it",
                hint='take it back with "confirmation": "refuted"',
            )
        return "refuted"
    assert task is not None  # comparable ones have a task, and this one's is known
    return verdict_of(original["value"], told.value, task["direction"], task["min_delta"])


def weigh(connection: Connection, number: int) -> None:
    """Store what all verdicts about a result amount to."""
    mine = results.c.id == number
    author = connection.execute(select(results.c.agent_id).where(mine)).scalar_one()
    query = select(results.c.agent_id, results.c.verdict).where(results.c.verifies == number)
    rows = connection.execute(query.order_by(results.c.id))
    standing = standing_of(author, [(row[0], row[1]) for row in rows])
    connection.execute(update(results).where(mine).values(standing.columns))


def _check_comparable(original: Row, told: ResultRequest) -> None:
    number = told.verifies
    if original["verifies"] is not None:
        raise bad(f"result {number} verifies another one: verify {original['verifies']}")
    if original["value"] is None:
        raise bad(f"result {number} has no value to verify")
    for name in ("platform_key", "task_hash"):
        ours, theirs = original[name], getattr(told, name)
        if not ours or ours != theirs:
            said = f"{ours[:7]}…, not {theirs[:7]}…" if ours and theirs else "not said by both"
            raise bad(f"result {number} cannot be compared: its {name} is {said}")
    if not same_commit(original["commit"], told.commit):
        raise bad(f"result {number} is of commit {original['commit']}, not {told.commit}")
