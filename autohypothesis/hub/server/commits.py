"""The index of commits: every one of them, with all its parents, in the order of arrival."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    cast,
    func,
    insert,
    literal,
    select,
    update,
)

from autohypothesis.hub.protocol import HASH, PAGE_LIMIT
from autohypothesis.hub.server.database import (
    Database,
    Row,
    commits,
    parents,
    pushes,
    row_of,
    rows_of,
    stamp,
)
from autohypothesis.hub.server.inspection import NewCommit
from autohypothesis.hub.server.refusals import bad, missing

FULL = 40
"""Characters of a whole hash."""
_SHOWN = (
    commits.c.hash,
    commits.c.parent_hash,
    commits.c.agent_id,
    commits.c.message,
    commits.c.created_at,
)
_AT_ONCE = 500
"""Names in one query, and rows of a lineage that are read together."""
_ANCESTORS = 8
"""Of a commit, shown on its page."""


def begins_with(column: ColumnElement[str], start: str) -> ColumnElement[bool]:
    """Whether a hash begins with `start`, read from the column's index."""
    return (column >= start) & (column < start + "g")


def checked_hash(text: str) -> str:
    """
    Raises:
        HubRefusalError: 400, `text` is no beginning of a hash.
    """
    if not HASH.fullmatch(text):
        raise bad(f"{text[:80]!r} is not a hash: 4 to 64 characters of 0-9 and a-f")
    return text


def known(database: Database, names: Iterable[str]) -> set[str]:
    """The indexed ones of `names`."""
    with database.read() as connection:
        return _known(connection, list(names))


def every(database: Database) -> set[str]:
    return set(database.scalars(select(commits.c.hash)))


def resolve(database: Database, prefix: str) -> str | None:
    """The one commit that begins with `prefix`, of 4 characters or more; None: there is none.

    Raises:
        HubRefusalError: 400, `prefix` is no hash, or several commits begin with it.
    """
    column = commits.c.hash
    query = select(column).where(begins_with(column, checked_hash(prefix))).limit(2)
    found: list[str] = database.scalars(query)
    if len(found) > 1:
        raise bad(f"{prefix} is ambiguous: several commits begin with it", hint="give more of it")
    return found[0] if found else None


def required(database: Database, prefix: str) -> str:
    """As `resolve`.

    Raises:
        HubRefusalError: 404 as well, when there is no such commit.
    """
    found = resolve(database, prefix)
    if found is None:
        raise missing(f"there is no commit {prefix}")
    return found


def one(database: Database, prefix: str) -> Row:
    name = required(database, prefix)
    return database.rows(select(*_SHOWN).where(commits.c.hash == name))[0]


def newest(database: Database, agent: str | None, limit: int, offset: int) -> list[Row]:
    query = _narrowed(select(*_SHOWN), agent, frontier=False).order_by(commits.c.number.desc())
    return database.rows(query.limit(limit).offset(offset))


def children(database: Database, prefix: str, limit: int = PAGE_LIMIT) -> list[Row]:
    """Newest first; merges are children of all their parents."""
    name = resolve(database, prefix)
    query = select(*_SHOWN).join(parents, parents.c.child == commits.c.hash)
    query = query.where(parents.c.parent == name).distinct()
    return database.rows(query.order_by(commits.c.number.desc()).limit(limit)) if name else []


def leaves(database: Database) -> list[Row]:
    query = _narrowed(select(*_SHOWN), None, frontier=True).order_by(commits.c.number.desc())
    return database.rows(query.limit(PAGE_LIMIT))


def lineage(database: Database, name: str) -> Iterator[Row]:
    """`name`, its first parent, and so on to the root, read piece by piece."""
    while name:
        found = database.rows(_line_from(name))
        yield from found
        name = found[-1]["parent_hash"] if found else ""


def _line_from(name: str) -> Select[Any]:
    """`_AT_ONCE` commits of a lineage, by a recursive query."""
    start = select(literal(0).label("step"), cast(literal(name), String).label("hash"))
    line = start.cte("line", recursive=True)
    here = select(line.c.step + 1, commits.c.parent_hash).join(
        commits, commits.c.hash == line.c.hash
    )
    line = line.union_all(here.where(commits.c.parent_hash != "", line.c.step < _AT_ONCE - 1))
    return select(*_SHOWN).join(line, line.c.hash == commits.c.hash).order_by(line.c.step)


def record(database: Database, push: str, agent: str, found: Sequence[NewCommit]) -> None:
    """One transaction that makes a push true: its commits, parents first, and the push itself."""
    with database.write() as connection:
        there = _known(connection, [commit.hash for commit in found])
        fresh = [commit for commit in found if commit.hash not in there]
        if fresh:
            _insert(connection, agent, fresh)
        connection.execute(insert(pushes).values(id=push, agent_id=agent, created_at=stamp()))


def recorded(database: Database, push: str) -> bool:
    return bool(database.rows(select(pushes.c.id).where(pushes.c.id == push)))


def _known(connection: Connection, names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for part in _parts(names):
        query = select(commits.c.hash).where(commits.c.hash.in_(part))
        found.update(connection.execute(query).scalars())
    return found


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


# ── for the pages ───────────────────────────────────────────────────────────────────────────


def number_of(database: Database, agent: str | None = None, frontier: bool = False) -> int:
    query = select(func.count()).select_from(commits)
    return int(database.scalar(_narrowed(query, agent, frontier)))


def with_parents(
    database: Database, agent: str | None, frontier: bool, limit: int, offset: int
) -> list[Row]:
    """Newest first, each with its `parents` and whether it is a `leaf`."""
    query = _narrowed(select(*_SHOWN, commits.c.leaf), agent, frontier)
    query = query.order_by(commits.c.number.desc()).limit(limit).offset(offset)
    with database.read() as connection:
        rows = rows_of(connection, query)
        above = _parents(connection, [row["hash"] for row in rows])
    return [{**row, "parents": above[row["hash"]]} for row in rows]


def with_relatives(database: Database, name: str, most_children: int) -> Row:
    """A commit with its `parents`, `children` and nearest `ancestors`."""
    with database.read() as connection:
        row = row_of(connection, select(*_SHOWN).where(commits.c.hash == name)) or {}
        row["parents"] = _parents(connection, [name])[name]
    row["ancestors"] = list(islice(lineage(database, name), 1, _ANCESTORS + 1))
    row["children"] = children(database, name, most_children)
    return row


def pages_of(database: Database, names: Iterable[str]) -> dict[str, str]:
    """Whole hashes of the commits that are here, by what results call them: maybe beginnings."""
    wanted = set(names)
    whole = {name for name in wanted if len(name) >= FULL}
    found = {name: name for name in known(database, whole)}
    column = commits.c.hash
    for start in wanted - whole:
        there = database.scalars(select(column).where(begins_with(column, start)).limit(2))
        if len(there) == 1:
            found[start] = there[0]
    return found


def _narrowed(query: Select[Any], agent: str | None, frontier: bool) -> Select[Any]:
    if agent:
        query = query.where(commits.c.agent_id == agent)
    return query.where(commits.c.leaf.is_(True)) if frontier else query


def _parents(connection: Connection, names: Sequence[str]) -> dict[str, list[str]]:
    query = select(parents.c.child, parents.c.parent).where(parents.c.child.in_(names))
    found: dict[str, list[str]] = defaultdict(list)
    for child, parent in connection.execute(query.order_by(parents.c.position)):
        found[child].append(parent)
    return found
