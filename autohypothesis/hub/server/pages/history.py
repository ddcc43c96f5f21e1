"""The commits as pages show them: a piece of the list, and one commit with what belongs to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from autohypothesis.hub.server import commits as index
from autohypothesis.hub.server.database import Database, commits, parents, results
from autohypothesis.hub.server.pages.checks import judged
from autohypothesis.hub.server.pages.paging import Piece
from autohypothesis.hub.server.result_rows import SHOWN, of_commit, shown

Row = dict[str, Any]

AT_ONCE = 100
"""Commits of one page; 10,000 of them are a hundred pages, each as quick as the first."""
ANCESTORS = 8
"""Of a commit, shown on its page."""
_RESULTS = 100
_SHORT = 7
"""Characters of a hash in a line of a post."""


def number_of(database: Database, agent: str | None = None, frontier: bool = False) -> int:
    query = select(func.count()).select_from(commits).where(*_which(agent, frontier))
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def piece(
    database: Database, piece: Piece, agent: str | None = None, frontier: bool = False
) -> list[Row]:
    """Newest first, each with its `parents`, whether it is a `leaf`, and its best `result`."""
    columns = (*index.SHOWN, commits.c.leaf)
    query = select(*columns).where(*_which(agent, frontier)).order_by(commits.c.number.desc())
    with database.read() as connection:
        found = connection.execute(query.limit(piece.size).offset(piece.offset))
        rows = [dict(row._mapping) for row in found]
        above = _parents(connection, [row["hash"] for row in rows])
        told = _results(connection, [row["hash"] for row in rows])
    for row in rows:
        row.update(parents=above[row["hash"]], result=told.get(row["hash"]))
    return rows


def one(database: Database, name: str) -> Row:
    """A commit with its `parents`, `children`, `ancestors`, and `results`, each before its checks.

    Each list is cut.
    """
    row = index.one(database, name)
    with database.read() as connection:
        above = _parents(connection, [row["hash"]])[row["hash"]]
        checked = func.coalesce(results.c.verifies, results.c.id)
        query = select(*SHOWN).where(of_commit(row["hash"])).order_by(checked, results.c.id)
        query = query.limit(_RESULTS)
        told = [shown(one) for one in connection.execute(query)]
    line = list(islice(index.lineage(database, row["hash"]), 1, ANCESTORS + 1))
    below = index.children(database, row["hash"], AT_ONCE)
    row.update(parents=above, children=below, ancestors=line, results=judged(database, told))
    return row


def pages_of(database: Database, names: Iterable[str]) -> dict[str, str]:
    """The commits that are here, by what results call them: whole hashes, or beginnings."""
    wanted = set(names)
    whole = {name for name in wanted if len(name) >= index.FULL}
    found = {name: name for name in index.known(database, whole)}
    with database.read() as connection:
        for start in wanted - whole:
            column = commits.c.hash
            query = select(column).where(column >= start, column < start + "g").limit(2)
            there = connection.execute(query).scalars().all()
            if len(there) == 1:
                found[start] = there[0]
    return found


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _which(agent: str | None, frontier: bool) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if agent is not None:
        found.append(commits.c.agent_id == agent)
    if frontier:
        found.append(commits.c.leaf.is_(True))
    return found


def _parents(connection: Connection, names: Sequence[str]) -> dict[str, list[str]]:
    query = select(parents.c.child, parents.c.parent).where(parents.c.child.in_(names))
    found: dict[str, list[str]] = defaultdict(list)
    for child, parent in connection.execute(query.order_by(parents.c.position)):
        found[child].append(parent)
    return found


def _results(connection: Connection, names: Sequence[str]) -> dict[str, Row]:
    """The first of each commit in the order of a board: whole hashes, and those that lines have."""
    full = {name[:_SHORT]: name for name in names}
    wanted = results.c.commit.in_([*names, *full])
    query = select(*SHOWN).where(wanted, results.c.ranked.is_(True))
    found: dict[str, Row] = {}
    for row in connection.execute(query.order_by(results.c.standing, results.c.score)):
        found.setdefault(full.get(row.commit, row.commit), shown(row))
    return found
