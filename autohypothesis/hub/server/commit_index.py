"""The table of commits as pushes write it: which commits are indexed, and by which push."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, insert, select, update

from autohypothesis.hub.server.database import Database, commits, parents, pushes, stamp
from autohypothesis.hub.server.inspection import NewCommit

_AT_ONCE = 500
"""Names in one query."""


def record(database: Database, push_id: str, agent: str, new: Sequence[NewCommit]) -> None:
    """Make a push true in one transaction: its commits, parents first, and the push itself."""
    with database.write() as connection:
        there = known(connection, [commit.hash for commit in new])
        fresh = [commit for commit in new if commit.hash not in there]
        if fresh:
            _insert(connection, agent, fresh)
        connection.execute(insert(pushes).values(id=push_id, agent_id=agent, created_at=stamp()))


def recorded(database: Database, push_id: str) -> bool:
    return database.row(select(pushes.c.id).where(pushes.c.id == push_id)) is not None


def every(database: Database) -> set[str]:
    return set(database.scalars(select(commits.c.hash)))


def known(connection: Connection, names: Iterable[str]) -> set[str]:
    """Return the indexed ones of `names`."""
    there: set[str] = set()
    for part in _parts(list(names)):
        query = select(commits.c.hash).where(commits.c.hash.in_(part))
        there.update(connection.execute(query).scalars())
    return there


def _insert(connection: Connection, agent: str, fresh: Sequence[NewCommit]) -> None:
    inner = {parent for commit in fresh for parent in commit.parents}
    rows = [
        {
            "hash": commit.hash,
            "parent_hash": commit.parents[0] if commit.parents else "",
            "agent_id": agent,
            "message": commit.message,
            "created_at": stamp(later=place),
            "leaf": commit.hash not in inner,
        }
        for place, commit in enumerate(fresh)
    ]
    connection.execute(insert(commits), rows)
    edges = [
        {"child": commit.hash, "position": place, "parent": parent}
        for commit in fresh
        for place, parent in enumerate(commit.parents)
    ]
    if edges:
        connection.execute(insert(parents), edges)
    for part in _parts(list(inner)):
        connection.execute(update(commits).where(commits.c.hash.in_(part)).values(leaf=False))


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
