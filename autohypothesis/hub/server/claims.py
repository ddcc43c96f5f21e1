"""Claims: who works on what, so that no two do the same. A claim ends by itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, update

from autohypothesis.hub.server.database import Database, claims, now, results, written
from autohypothesis.hub.server.refusals import RefusedError, missing
from autohypothesis.hub.server.shapes import ToldResult, WantedClaim

Row = dict[str, Any]

HELD, DONE = "held", "done"
_EQUAL = {
    "platform_key": claims.c.platform_key,
    "task_hash": claims.c.task_hash,
    "agent": claims.c.agent_id,
}
"""Filters."""


def take(database: Database, agent: str, wanted: WantedClaim) -> Row:
    """The agent's claim, new or renewed: one transaction, under the one writer.

    Raises:
        RefusedError: 409 when another agent holds one that has not expired, or told a result.
    """
    with database.write() as connection:
        moment = now()
        there = _held(connection, wanted)
        expired = there is not None and there["expires_at"] <= written(moment)
        if there is not None and not expired:
            if there["agent_id"] == agent:
                return _renewed(connection, there, wanted, moment)
            raise RefusedError(409, f"claimed by {there['agent_id']} until {there['expires_at']}")
        _refuse_tried(connection, agent, wanted)
        if there is not None:
            connection.execute(delete(claims).where(claims.c.id == there["id"]))
        return _granted(connection, agent, wanted, moment)


def give_back(database: Database, agent: str, number: int) -> None:
    """End one's own claim. One that is done stays as it is.

    Raises:
        RefusedError: 403, 404.
    """
    with database.write() as connection:
        there = _one(connection, number)
        if there["agent_id"] != agent:
            raise RefusedError(403, f"claim {number} is {there['agent_id']}'s")
        if there["state"] == HELD:
            connection.execute(delete(claims).where(claims.c.id == number))


def close(connection: Connection, agent: str, told: ToldResult, result: int) -> None:
    """A result ends the claim of its agent that it answers, if there is one."""
    mine = _of_key(claims, told) & (claims.c.agent_id == agent) & (claims.c.state == HELD)
    connection.execute(update(claims).where(mine).values(state=DONE, result=result))


def held(
    database: Database,
    filters: Mapping[str, str | None] | None = None,
    limit: int = 50,
    offset: int = 0,
) -> list[Row]:
    """Those that hold now, newest first. `filters`: those of `_EQUAL`."""
    query = select(claims).where(claims.c.state == HELD, claims.c.expires_at > written(now()))
    for name, value in (filters or {}).items():
        if value is not None:
            query = query.where(_EQUAL[name] == value)
    query = query.order_by(claims.c.id.desc()).limit(limit).offset(offset)
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def one(database: Database, number: int) -> Row:
    """A claim, also one that is done or has expired.

    Raises:
        RefusedError: 404.
    """
    with database.read() as connection:
        return _one(connection, number)


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _of_key(table: Table, wanted: WantedClaim | ToldResult) -> ColumnElement[bool]:
    return (
        (table.c.platform_key == wanted.platform_key)
        & (table.c.task_hash == wanted.task_hash)
        & (table.c.tree == wanted.tree)
    )


def _held(connection: Connection, wanted: WantedClaim) -> Row | None:
    """The one claim on a key that was neither given back nor answered; it may have expired."""
    query = select(claims).where(_of_key(claims, wanted), claims.c.state == HELD)
    found = connection.execute(query).mappings().first()
    return dict(found) if found is not None else None


def _refuse_tried(connection: Connection, agent: str, wanted: WantedClaim) -> None:
    query = select(results.c.id, results.c.agent_id).where(
        _of_key(results, wanted), results.c.agent_id != agent, results.c.verifies.is_(None)
    )
    found = connection.execute(query.order_by(results.c.id).limit(1)).first()
    if found is not None:
        raise RefusedError(409, f"tried by {found.agent_id}: result {found.id}")


def _renewed(connection: Connection, there: Row, wanted: WantedClaim, moment: datetime) -> Row:
    values = {"title": wanted.title, "expires_at": _end(wanted, moment)}
    connection.execute(update(claims).where(claims.c.id == there["id"]).values(values))
    return {**there, **values}


def _granted(connection: Connection, agent: str, wanted: WantedClaim, moment: datetime) -> Row:
    row = {
        "platform_key": wanted.platform_key,
        "task_hash": wanted.task_hash,
        "tree": wanted.tree,
        "title": wanted.title,
        "agent_id": agent,
        "created_at": written(moment),
        "expires_at": _end(wanted, moment),
        "state": HELD,
        "result": None,
    }
    made = connection.execute(insert(claims).values(row)).inserted_primary_key
    return {"id": made[0] if made else None, **row}


def _end(wanted: WantedClaim, moment: datetime) -> str:
    return written(moment + timedelta(seconds=wanted.lease_seconds))


def _one(connection: Connection, number: int) -> Row:
    found = connection.execute(select(claims).where(claims.c.id == number)).mappings().first()
    if found is None:
        raise missing(f"there is no claim {number}")
    return dict(found)
