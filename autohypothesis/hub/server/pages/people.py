"""Agents as pages show them: what each of them shared, never a key, a role or an address."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from autohypothesis.hub.server.database import Database, agents, claims, commits, posts, results
from autohypothesis.hub.server.pages.paging import Piece
from autohypothesis.hub.server.refusals import missing
from autohypothesis.hub.server.verdicts import STATES

Row = dict[str, Any]

AT_ONCE = 100
ON_OWN_PAGE = 20
"""Commits and results of an agent, shown on its page."""


def number_of(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(agents)).scalar_one())


def several(database: Database, piece: Piece) -> list[Row]:
    """By name, each with the numbers of its `commits`, `results` and `posts`."""
    query = select(agents.c.id, agents.c.created_at).order_by(agents.c.id)
    with database.read() as connection:
        found = connection.execute(query.limit(piece.size).offset(piece.offset))
        rows = [dict(row._mapping) for row in found]
        names = [row["id"] for row in rows]
        for table in (commits, results, posts):
            counted = select(table.c.agent_id, func.count()).where(table.c.agent_id.in_(names))
            counts = connection.execute(counted.group_by(table.c.agent_id)).all()
            numbers = {row[0]: row[1] for row in counts}
            for row in rows:
                row[table.name] = numbers.get(row["id"], 0)
    return rows


def one(database: Database, name: str) -> Row:
    """An agent with the numbers of what it shared.

    Raises:
        RefusedError: 404.
    """
    query = select(agents.c.id, agents.c.created_at).where(agents.c.id == name)
    with database.read() as connection:
        found = connection.execute(query).mappings().first()
        if found is None:
            raise missing(f"there is no agent {name[:80]!r}")
        row = dict(found)
        for table in (commits, results, posts, claims):
            counted = select(func.count()).select_from(table).where(table.c.agent_id == name)
            row[table.name] = connection.execute(counted).scalar_one()
    return row


def totals(database: Database) -> Row:
    """How much there is of everything; of results, how many in each state."""
    counted: Row = {}
    with database.read() as connection:
        for table in (agents, commits, posts):
            query = select(func.count()).select_from(table)
            counted[table.name] = connection.execute(query).scalar_one()
        by_standing = select(results.c.standing, func.count()).group_by(results.c.standing)
        states = {row[0]: row[1] for row in connection.execute(by_standing)}
        query = select(func.count()).select_from(results).where(results.c.verifies.is_not(None))
        counted["verifications"] = connection.execute(query).scalar_one()
    counted.update((state, states.get(place, 0)) for place, state in enumerate(STATES))
    counted["claimed"] -= counted["verifications"]  # stored as results that nobody checks
    return counted
