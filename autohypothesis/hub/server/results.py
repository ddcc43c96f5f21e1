"""Typed results: told, stored once, found again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from autohypothesis.hub.server import claims, result_lines, tasks, verifications
from autohypothesis.hub.server.commits import HASH
from autohypothesis.hub.server.database import Database, results, stamp
from autohypothesis.hub.server.refusals import RefusedError, bad, missing
from autohypothesis.hub.server.result_rows import SHOWN, derived, shown
from autohypothesis.hub.server.shapes import ToldResult
from autohypothesis.hub.server.verdicts import STATES, Verdict
from autohypothesis.schema import Direction

Row = dict[str, Any]

_OF_A_LINE = re.compile(r"post-[0-9]+-[0-9]+")
_EQUAL = {
    "platform": results.c.platform,
    "platform_key": results.c.platform_key,
    "task_hash": results.c.task_hash,
    "agent": results.c.agent_id,
    "status": results.c.status,
    "verifies": results.c.verifies,
}
"""Filters that ask for one value."""


def tell(database: Database, agent: str, told: ToldResult) -> tuple[Row, bool]:
    """The result as it is stored, and whether it is new: told twice, it is stored once.

    It may stand where its line stood before. What repeats another one moves that one's state; what
    does not ends the agent's claim on the same key. All of it is one transaction.

    Raises:
        RefusedError: 400; 404 for what it verifies; 409 when the name is another result's.
    """
    _check_alone(told)
    content = told.model_dump()
    with database.write() as connection:
        there = _named(connection, agent, told)
        if there is not None:
            return there, False
        direction, verdict = _judged(connection, agent, told)
        values = {**content, **derived(content, direction), "source": "typed", "verdict": verdict}
        number = _stored(connection, agent, values)
        if told.verifies is not None:
            verifications.weigh(connection, told.verifies)
        else:
            claims.close(connection, agent, told, number)
        return _one(connection, number), True


def newest(
    database: Database,
    filters: Mapping[str, str | int | None] | None = None,
    limit: int = 50,
    offset: int = 0,
) -> list[Row]:
    """Newest first. `filters`: those of `_EQUAL`, `state`, and `commit`, the beginning of one.

    Raises:
        RefusedError: 400, `commit` is no beginning of a hash.
    """
    query = _filtered(select(*SHOWN), filters or {})
    query = query.order_by(results.c.id.desc()).limit(limit).offset(offset)
    with database.read() as connection:
        return [shown(row) for row in connection.execute(query)]


def number_of(database: Database, filters: Mapping[str, str | int | None]) -> int:
    """How many `newest` would list."""
    query = _filtered(select(func.count()).select_from(results), filters)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def one(database: Database, number: int) -> Row:
    """A result with what others found when they ran it again, the oldest first.

    Raises:
        RefusedError: 404.
    """
    query = select(*SHOWN).where(results.c.verifies == number).order_by(results.c.id)
    with database.read() as connection:
        found = _one(connection, number)
        return {**found, "verifications": [shown(row) for row in connection.execute(query)]}


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _check_alone(told: ToldResult) -> None:
    """What can be seen without looking at anything else."""
    if told.status == "crash" and told.value is not None:
        raise bad("value: a crash has none", hint="leave it out, or send null")
    if _OF_A_LINE.fullmatch(told.name):
        raise bad(
            f"name: {told.name!r} is how the lines of posts are named", hint="choose another name"
        )


def _named(connection: Connection, agent: str, told: ToldResult) -> Row | None:
    """The result that this agent told under this name, if it is this one."""
    mine = (results.c.agent_id == agent) & (results.c.name == told.name)
    found = connection.execute(select(*SHOWN).where(mine)).first()
    if found is None:
        return None
    there = shown(found)
    for key, value in told.model_dump().items():
        if there[key] != value:
            raise RefusedError(
                409,
                f"result {there['id']} of {agent} is named {told.name!r} and has another {key}",
                hint="a result does not change; tell another one under another name",
            )
    return there


def _judged(
    connection: Connection, agent: str, told: ToldResult
) -> tuple[Direction, Verdict | None]:
    """The direction of its metric, and the verdict about what it verifies."""
    task = tasks.known(connection, told.task_hash) if told.task_hash else None
    if told.task_hash and task is None:
        raise bad(f"task {told.task_hash[:7]}… is not known here", hint="POST /api/tasks first")
    if task is not None and task["metric"] != told.metric:
        raise bad(f"task {task['name']!r} has metric {task['metric']}, not {told.metric}")
    verdict = verifications.judged(connection, agent, told, task) if told.verifies else None
    return (task["direction"] if task is not None else "minimize"), verdict


def _stored(connection: Connection, agent: str, values: Row) -> int:
    """The number under which it stands from here on: its line's, if that was told before."""
    place = result_lines.waiting(connection, agent, values)
    if place is not None:
        connection.execute(update(results).where(results.c.id == place).values(values))
        return place
    row = {**values, "agent_id": agent, "post_id": None, "created_at": stamp()}
    made = connection.execute(insert(results).values(row)).inserted_primary_key
    assert made is not None  # SQLite tells the number of a row that it stored
    return int(made[0])


def _one(connection: Connection, number: int) -> Row:
    found = connection.execute(select(*SHOWN).where(results.c.id == number)).first()
    if found is None:
        raise missing(f"there is no result {number}")
    return shown(found)


def _filtered(query: Select[Any], filters: Mapping[str, str | int | None]) -> Select[Any]:
    for name, value in filters.items():
        if value is not None:
            query = query.where(_condition(name, value))
    return query


def _condition(name: str, value: str | int) -> ColumnElement[bool]:
    if name == "state":
        return results.c.standing == STATES.index(value)
    if name == "commit":
        start = str(value)
        if not HASH.fullmatch(start):
            raise bad(f"{start[:80]!r} is not a hash: 4 to 64 characters of 0-9 and a-f")
        return (results.c.commit >= start) & (results.c.commit < start + "g")
    return _EQUAL[name] == value
