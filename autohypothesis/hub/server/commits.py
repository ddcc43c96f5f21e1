"""The index of commits: every one of them, with all its parents, in the order of arrival."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, insert, select, text, update

from autohypothesis.hub.server.database import Database, commits, parents, pushes, stamp
from autohypothesis.hub.server.refusals import bad, missing
from autohypothesis.hub.server.walk import NewCommit

HASH = re.compile(r"[0-9a-f]{4,64}")
FULL = 40
SHOWN = (
    commits.c.hash,
    commits.c.parent_hash,
    commits.c.agent_id,
    commits.c.message,
    commits.c.created_at,
)
_AT_ONCE = 500
"""Names in one query, and rows of a lineage that are read together."""
_LINEAGE = text(
    "WITH RECURSIVE line(step, hash) AS ("
    " SELECT 0, CAST(:start AS VARCHAR) UNION ALL"
    " SELECT step + 1, commits.parent_hash FROM line JOIN commits ON commits.hash = line.hash"
    " WHERE commits.parent_hash <> '' AND step < :most)"
    " SELECT commits.hash, parent_hash, agent_id, message, created_at"
    " FROM line JOIN commits ON commits.hash = line.hash ORDER BY step"
)

Row = dict[str, Any]


def known(database: Database, names: Iterable[str]) -> set[str]:
    """Which of `names` are indexed."""
    wanted = list(names)
    found: set[str] = set()
    with database.read() as connection:
        for part in _parts(wanted):
            query = select(commits.c.hash).where(commits.c.hash.in_(part))
            found.update(connection.execute(query).scalars())
    return found


def every(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(select(commits.c.hash)).scalars())


def resolve(database: Database, prefix: str) -> str | None:
    """The one commit that begins with `prefix`, of 4 characters or more; None: there is none.

    Raises:
        RefusedError: 400, `prefix` is no hash, or several commits begin with it.
    """
    if not HASH.fullmatch(prefix):
        raise bad(f"{prefix[:80]!r} is not a hash: 4 to 64 characters of 0-9 and a-f")
    column = commits.c.hash
    query = select(column).where(column >= prefix, column < prefix + "g").limit(2)
    with database.read() as connection:
        found = connection.execute(query).scalars().all()
    if len(found) > 1:
        raise bad(f"{prefix} is ambiguous: several commits begin with it", hint="give more of it")
    return found[0] if found else None


def required(database: Database, prefix: str) -> str:
    """As `resolve`.

    Raises:
        RefusedError: 404 as well, when there is no such commit.
    """
    found = resolve(database, prefix)
    if found is None:
        raise missing(f"there is no commit {prefix}")
    return found


def one(database: Database, prefix: str) -> Row:
    name = required(database, prefix)
    return _rows(database, select(*SHOWN).where(commits.c.hash == name))[0]


def newest(database: Database, agent: str | None, limit: int, offset: int) -> list[Row]:
    query = select(*SHOWN).order_by(commits.c.number.desc()).limit(limit).offset(offset)
    return _rows(database, query.where(commits.c.agent_id == agent) if agent else query)


def children(database: Database, prefix: str, limit: int) -> list[Row]:
    """Newest first; merges are children of all their parents."""
    name = resolve(database, prefix)
    if name is None:
        return []
    query = select(*SHOWN).join(parents, parents.c.child == commits.c.hash)
    query = query.where(parents.c.parent == name).distinct()
    return _rows(database, query.order_by(commits.c.number.desc()).limit(limit))


def leaves(database: Database, limit: int) -> list[Row]:
    query = select(*SHOWN).where(commits.c.leaf.is_(True))
    return _rows(database, query.order_by(commits.c.number.desc()).limit(limit))


def lineage(database: Database, name: str) -> Iterator[Row]:
    """`name`, its first parent, and so on to the root, read piece by piece."""
    while name:
        with database.read() as connection:
            found = connection.execute(_LINEAGE, {"start": name, "most": _AT_ONCE - 1}).all()
        yield from (dict(row._mapping) for row in found)
        name = found[-1].parent_hash if found else ""


def record(database: Database, push: str, agent: str, found: Sequence[NewCommit]) -> None:
    """One transaction that makes a push true: its commits, parents first, and that it happened."""
    with database.write() as connection:
        fresh = _without_known(connection, found)
        if fresh:
            _insert(connection, agent, fresh)
        connection.execute(insert(pushes).values(id=push, agent_id=agent, created_at=stamp()))


def recorded(database: Database, push: str) -> bool:
    with database.read() as connection:
        return (
            connection.execute(select(pushes.c.id).where(pushes.c.id == push)).first() is not None
        )


def _without_known(connection: Connection, found: Sequence[NewCommit]) -> list[NewCommit]:
    names = [commit.hash for commit in found]
    there: set[str] = set()
    for part in _parts(names):
        query = select(commits.c.hash).where(commits.c.hash.in_(part))
        there.update(connection.execute(query).scalars())
    return [commit for commit in found if commit.hash not in there]


def _insert(connection: Connection, agent: str, fresh: Sequence[NewCommit]) -> None:
    inner = {parent for commit in fresh for parent in commit.parents}
    connection.execute(
        insert(commits),
        [
            {
                "hash": commit.hash,
                "parent_hash": commit.parents[0] if commit.parents else "",
                "agent_id": agent,
                "message": commit.message,
                "created_at": stamp(later=place),
                "leaf": commit.hash not in inner,
            }
            for place, commit in enumerate(fresh)
        ],
    )
    edges = [
        {"child": commit.hash, "position": place, "parent": parent}
        for commit in fresh
        for place, parent in enumerate(commit.parents)
    ]
    if edges:
        connection.execute(insert(parents), edges)
    for part in _parts(list(inner)):
        connection.execute(update(commits).where(commits.c.hash.in_(part)).values(leaf=False))


def _rows(database: Database, query: Select[Any]) -> list[Row]:
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
