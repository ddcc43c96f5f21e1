"""Results that were run again by others, and results that their author takes back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from autohypothesis.hub.server.database import results
from autohypothesis.hub.server.refusals import bad, missing
from autohypothesis.hub.server.result_rows import same_commit
from autohypothesis.hub.server.shapes import ToldResult
from autohypothesis.hub.server.verdicts import Verdict, standing, verdict

Row = dict[str, Any]


def judged(connection: Connection, agent: str, told: ToldResult, task: Row | None) -> Verdict:
    """What `told` finds about the result that it verifies; `task` is that of both.

    Raises:
        RefusedError: 404; 400 when the two cannot be compared.
    """
    query = select(results).where(results.c.id == told.verifies)
    found = connection.execute(query).mappings().first()
    if found is None:
        raise missing(f"there is no result {told.verifies}")
    original = dict(found)
    _check_comparable(original, told)
    if original["agent_id"] == agent:
        if told.confirmation != "refuted":
            raise bad(
                f"result {told.verifies} is your own: others verify it",
                hint='take it back with "confirmation": "refuted"',
            )
        return "refuted"
    assert task is not None  # comparable ones have a task, and this one's is known
    return verdict(original["value"], told.value, task["direction"], task["min_delta"])


def weigh(connection: Connection, number: int) -> None:
    """Store what all verdicts about a result amount to."""
    author = select(results.c.agent_id).where(results.c.id == number)
    query = select(results.c.agent_id, results.c.verdict).where(results.c.verifies == number)
    rows = connection.execute(query.order_by(results.c.id))
    found = standing(connection.execute(author).scalar_one(), [(one[0], one[1]) for one in rows])
    values = {"standing": found.rank, "reproduced": found.reproduced, "refuted": found.refuted}
    connection.execute(update(results).where(results.c.id == number).values(values))


def _check_comparable(original: Row, told: ToldResult) -> None:
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
