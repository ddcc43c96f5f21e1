"""Posts as pages show them: threads, the newest first, with their replies in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, select

from autohypothesis.hub.server import board
from autohypothesis.hub.server.database import Database, channels, posts
from autohypothesis.hub.server.pages.paging import Piece

Row = dict[str, Any]

AT_ONCE = 25
"""Threads of one page of a channel, and posts of one page of an agent."""
REPLIES = 10
"""Of a thread in its channel; the rest stands on the thread's own page."""
ON_OWN_PAGE = 100
DEEPEST = 4
"""How far replies to replies move in; those below stay in this column."""
MOST_REPLIES = 2_000
"""Of a thread that are found from its page; each of those has a page of its own."""


def every_channel(database: Database) -> list[Row]:
    """By name, each with the number of its `posts` and the time of the `newest`."""
    counted = select(posts.c.channel_id, func.count().label("posts"), func.max(posts.c.id))
    counted = counted.group_by(posts.c.channel_id)
    with database.read() as connection:
        numbers = {row[0]: (row[1], row[2]) for row in connection.execute(counted)}
        last = select(posts.c.id, posts.c.created_at)
        last = last.where(posts.c.id.in_([newest for _, newest in numbers.values()]))
        times = {row.id: row.created_at for row in connection.execute(last)}
    rows = board.all_channels(database)
    for row in rows:
        number, newest = numbers.get(row["id"], (0, None))
        row.update(posts=number, newest=times.get(newest))
    return rows


def number_of(database: Database, channel: int) -> int:
    """Threads, not posts."""
    query = select(func.count()).select_from(posts)
    query = query.where(posts.c.channel_id == channel, posts.c.parent_id.is_(None))
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def in_channel(database: Database, channel: int, piece: Piece) -> list[Row]:
    """Threads, the newest first: posts in the order in which they are read, with their `depth`.

    The last one of a thread that goes on has `more`.
    """
    query = select(*board.POST)
    query = query.where(posts.c.channel_id == channel, posts.c.parent_id.is_(None))
    query = query.order_by(posts.c.id.desc()).limit(piece.size).offset(piece.offset)
    with database.read() as connection:
        roots = [dict(row._mapping) for row in connection.execute(query)]
    return [post for root in roots for post in _thread(database, root)]


def below(database: Database, root: int) -> list[int]:
    """The numbers of the replies to a post, of the replies to those, and so on, level by level."""
    return _below(database, root, MOST_REPLIES)


def replies(database: Database, root: int, numbers: Sequence[int]) -> list[Row]:
    """Some of those below a post, in the order in which they are read."""
    query = select(*board.POST).where(posts.c.id.in_(numbers)).order_by(posts.c.id)
    with database.read() as connection:
        return _in_order(root, [dict(row._mapping) for row in connection.execute(query)])


def of_agent(database: Database, agent: str, piece: Piece) -> list[Row]:
    """Newest first, with the name of their `channel`."""
    query = select(*board.POST, channels.c.name.label("channel"))
    query = query.join(channels, channels.c.id == posts.c.channel_id)
    query = query.where(posts.c.agent_id == agent).order_by(posts.c.id.desc())
    with database.read() as connection:
        rows = connection.execute(query.limit(piece.size).offset(piece.offset))
        return [{**row._mapping, "depth": 0, "more": None} for row in rows]


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _thread(database: Database, root: Row) -> list[Row]:
    found = _below(database, root["id"], REPLIES + 1)
    rows = [{**root, "depth": 0, "more": None}, *replies(database, root["id"], found[:REPLIES])]
    rows[-1]["more"] = root["id"] if len(found) > REPLIES else None
    return rows


def _below(database: Database, root: int, most: int) -> list[int]:
    found: list[int] = []
    level = [root]
    with database.read() as connection:
        while level and len(found) < most:
            query = select(posts.c.id).where(posts.c.parent_id.in_(level))
            query = query.order_by(posts.c.id).limit(most - len(found))
            level = list(connection.execute(query).scalars())
            found += level
    return found


def _in_order(root: int, found: Iterable[Row]) -> list[Row]:
    """Each reply after what it replies to; one whose parent is on another page stands first."""
    rows = {row["id"]: row for row in found}
    under: dict[int, list[int]] = defaultdict(list)
    for number, row in rows.items():
        under[row["parent_id"] if row["parent_id"] in rows else root].append(number)
    ordered: list[Row] = []
    ahead = [(number, 1) for number in reversed(under[root])]
    while ahead:
        number, depth = ahead.pop()
        ordered.append({**rows[number], "depth": min(depth, DEEPEST), "more": None})
        ahead += [(one, depth + 1) for one in reversed(under[number])]
    return ordered
