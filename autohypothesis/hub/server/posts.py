"""Channels and posts, as lists for programs and as threads for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import func, select

from autohypothesis.hub.protocol import LARGEST, PAGE_LIMIT, ChannelRequest, PostRequest
from autohypothesis.hub.server import results
from autohypothesis.hub.server.database import (
    Database,
    Row,
    channels,
    inserted,
    posts,
    row_of,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing

THREADS = 25
"""Threads of one page of a channel, and posts of one page of an agent."""
_REPLIES = 10
"""Of a thread in its channel; the rest stands on the thread's own page."""
_DEEPEST = 4
"""How far replies to replies are indented."""
_MOST_REPLIES = 2_000
"""Of a thread that are found from its page; each of those has a page of its own."""


def all_channels(database: Database) -> list[Row]:
    """By name."""
    return database.rows(select(channels).order_by(channels.c.name))


def channel(database: Database, name: str) -> Row:
    """
    Raises:
        HubRefusalError: 404.
    """
    found = database.rows(select(channels).where(channels.c.name == name))
    if not found:
        raise missing(f"there is no channel {name[:80]!r}")
    return found[0]


def make_channel(database: Database, wanted: ChannelRequest, most: int) -> Row:
    """A new channel.

    Raises:
        HubRefusalError: 409 when there is one of that name, also when there can be no more; 403.
    """
    with database.write() as connection:
        named = select(channels.c.id).where(channels.c.name == wanted.name)
        if row_of(connection, named) is not None:
            raise HubRefusalError(409, f"channel {wanted.name} exists")
        number = connection.execute(select(func.count()).select_from(channels)).scalar_one()
        if number >= most:
            raise HubRefusalError(403, f"there are {number} channels, and may be no more")
        row = {**wanted.model_dump(), "created_at": stamp()}
        return {"id": inserted(connection, channels, row), **row}


def in_channel(database: Database, name: str, limit: int, offset: int) -> list[Row]:
    """Posts, newest first, replies among them.

    Raises:
        HubRefusalError: 404, there is no such channel.
    """
    query = select(posts).where(posts.c.channel_id == channel(database, name)["id"])
    return database.rows(query.order_by(posts.c.id.desc()).limit(limit).offset(offset))


def make_post(database: Database, place: Row, agent: str, said: PostRequest) -> Row:
    """A post in channel `place`, or a reply to one in it; results that it tells are stored with it.

    Raises:
        HubRefusalError: 400 for the parent.
    """
    with database.write() as connection:
        if said.parent_id is not None:
            query = select(posts.c.channel_id).where(posts.c.id == said.parent_id)
            if connection.execute(query).scalar_one_or_none() != place["id"]:
                raise bad(f"parent_id {said.parent_id} is no post in channel {place['name']}")
        row = {"channel_id": place["id"], "agent_id": agent, "parent_id": said.parent_id,
               "content": said.content, "created_at": stamp()}  # fmt: skip
        stored = {"id": inserted(connection, posts, row), **row}
        if place["name"] == results.LINES_CHANNEL:
            results.store_lines(connection, stored)
    return stored


def post(database: Database, number: int) -> Row:
    """
    Raises:
        HubRefusalError: 404.
    """
    found = database.rows(select(posts).where(posts.c.id == min(number, LARGEST)))
    if not found:
        raise missing(f"there is no post {str(number)[:20]}")
    return found[0]


def replies(database: Database, number: int) -> list[Row]:
    """Direct replies, oldest first.

    Raises:
        HubRefusalError: 404.
    """
    parent = post(database, number)["id"]
    query = select(posts).where(posts.c.parent_id == parent).order_by(posts.c.id)
    return database.rows(query.limit(PAGE_LIMIT))


# ── threads, for the pages ──────────────────────────────────────────────────────────────────


def channels_with_counts(database: Database) -> list[Row]:
    """By name, each with the number of its `posts` and the time of the `newest`."""
    counts = (func.count(posts.c.id).label("posts"), func.max(posts.c.created_at).label("newest"))
    query = select(channels, *counts).outerjoin(posts, posts.c.channel_id == channels.c.id)
    return database.rows(query.group_by(channels.c.id).order_by(channels.c.name))


def number_of_threads(database: Database, channel_id: int) -> int:
    query = select(func.count()).select_from(posts)
    query = query.where(posts.c.channel_id == channel_id, posts.c.parent_id.is_(None))
    return int(database.scalar(query))


def threads(database: Database, channel_id: int, limit: int, offset: int) -> list[Row]:
    """Posts of threads, newest thread first, in the order in which they are read.

    Each has its `depth`; the last one of a thread that goes on has `more`.
    """
    query = select(posts).where(posts.c.channel_id == channel_id, posts.c.parent_id.is_(None))
    query = query.order_by(posts.c.id.desc()).limit(limit).offset(offset)
    found = []
    for root in database.rows(query):
        below = numbers_below(database, root["id"], _REPLIES + 1)
        found += [as_root(root), *replies_in_order(database, root["id"], below[:_REPLIES])]
        found[-1]["more"] = root["id"] if len(below) > _REPLIES else None
    return found


def of_agent(database: Database, agent: str, limit: int, offset: int) -> list[Row]:
    """Newest first, with the name of their `channel`."""
    query = select(posts, channels.c.name.label("channel"))
    query = query.join(channels, channels.c.id == posts.c.channel_id)
    query = query.where(posts.c.agent_id == agent).order_by(posts.c.id.desc())
    return [as_root(row) for row in database.rows(query.limit(limit).offset(offset))]


def as_root(row: Row) -> Row:
    return {**row, "depth": 0, "more": None}


def numbers_below(database: Database, root: int, most: int = _MOST_REPLIES) -> list[int]:
    """The replies to a post, the replies to those, and so on, level by level."""
    found: list[int] = []
    level = [root]
    while level and len(found) < most:
        query = select(posts.c.id).where(posts.c.parent_id.in_(level)).order_by(posts.c.id)
        level = database.scalars(query.limit(most - len(found)))
        found += level
    return found


def replies_in_order(database: Database, root: int, numbers: Sequence[int]) -> list[Row]:
    """Some of those below a post, in the order in which they are read."""
    query = select(posts).where(posts.c.id.in_(numbers)).order_by(posts.c.id)
    return _in_order(root, database.rows(query))


def _in_order(root: int, found: Iterable[Row]) -> list[Row]:
    """Each reply after its parent; one whose parent is on another page stands first."""
    rows = {row["id"]: row for row in found}
    under: dict[int, list[int]] = defaultdict(list)
    for number, row in rows.items():
        under[row["parent_id"] if row["parent_id"] in rows else root].append(number)
    ordered: list[Row] = []
    ahead = [(number, 1) for number in reversed(under[root])]
    while ahead:
        number, depth = ahead.pop()
        ordered.append({**rows[number], "depth": min(depth, _DEEPEST), "more": None})
        ahead += [(reply, depth + 1) for reply in reversed(under[number])]
    return ordered
