"""Channels and posts, as lists for programs and as threads for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

from fastapi import Path
from sqlalchemy import func, select

from autohypothesis.hub.protocol import (
    LARGEST,
    PAGE_LIMIT,
    ChannelRequest,
    HubChannel,
    HubPost,
    PageQuery,
    PostRequest,
)
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
from autohypothesis.hub.server.service import POST, Caller, HubService, May, route

THREADS = 25
"""Threads of one page of a channel, and posts of one page of an agent."""
_REPLIES = 10
"""Replies shown of a thread in its channel; its own page has the others."""
_DEEPEST = 4
"""Maximum level of indentation of replies to replies."""
_MAX_REPLIES = 2_000
"""Maximum replies of a thread that its page links to; each has a page of its own."""
PostNumber = Annotated[int, Path(ge=0)]


@route("GET", "/api/channels", list[HubChannel])
def all_channels(database: Database) -> list[Row]:
    """Every channel, by name."""
    return database.rows(select(channels).order_by(channels.c.name))


@route("POST", "/api/channels", HubChannel, 409, may=POST, status=201)
def make_channel(hub: HubService, wanted: ChannelRequest) -> Row:
    """A new channel; 409 when there is one of that name."""
    with hub.database.write() as connection:
        named = select(channels.c.id).where(channels.c.name == wanted.name)
        if row_of(connection, named) is not None:
            raise HubRefusalError(409, f"channel {wanted.name} exists")
        number = connection.execute(select(func.count()).select_from(channels)).scalar_one()
        if number >= hub.settings.limits.channels:
            raise HubRefusalError(403, f"there are {number} channels, and may be no more")
        row = {**wanted.model_dump(), "created_at": stamp()}
        return {"id": inserted(connection, channels, row), **row}


@route("GET", "/api/channels/{name}/posts", list[HubPost], 400, 404)
def in_channel(database: Database, name: str, page: PageQuery) -> list[Row]:
    """The posts of a channel, newest first, replies among them."""
    query = select(posts).where(posts.c.channel_id == channel(database, name)["id"])
    return database.rows(query.order_by(posts.c.id.desc()).limit(page.limit).offset(page.offset))


@route(
    "POST", "/api/channels/{name}/posts", HubPost, 404, may=May("post", "post", "posts"), status=201
)
def make_post(database: Database, caller: Caller, name: str, wanted: PostRequest) -> Row:
    """A new post, markdown; with `parent_id` a reply."""
    place = channel(database, name)
    with database.write() as connection:
        if wanted.parent_id is not None:
            query = select(posts.c.channel_id).where(posts.c.id == wanted.parent_id)
            if connection.execute(query).scalar_one_or_none() != place["id"]:
                raise bad(f"parent_id {wanted.parent_id} is no post in channel {name}")
        row = {
            "channel_id": place["id"], "agent_id": caller.agent_id, "parent_id": wanted.parent_id,
            "content": wanted.content, "created_at": stamp(),
        }  # fmt: skip
        stored = {"id": inserted(connection, posts, row), **row}
        if name == results.LINES_CHANNEL:
            results.store_lines(connection, stored)
    return stored


@route("GET", "/api/posts/{number}", HubPost, 400, 404)
def post(database: Database, number: PostNumber) -> Row:
    """One post."""
    row = database.row(select(posts).where(posts.c.id == min(number, LARGEST)))
    if row is None:
        raise missing(f"there is no post {str(number)[:20]}")
    return row


@route("GET", "/api/posts/{number}/replies", list[HubPost], 400, 404)
def replies(database: Database, number: PostNumber) -> list[Row]:
    """The replies to a post, oldest first."""
    parent = post(database, number)["id"]
    query = select(posts).where(posts.c.parent_id == parent).order_by(posts.c.id)
    return database.rows(query.limit(PAGE_LIMIT))


def channel(database: Database, name: str) -> Row:
    """Return a channel, or raise HubRefusalError 404."""
    row = database.row(select(channels).where(channels.c.name == name))
    if row is None:
        raise missing(f"there is no channel {name[:80]!r}")
    return row


# ── threads, for the pages ──────────────────────────────────────────────────────────────────


def channels_with_counts(database: Database) -> list[Row]:
    """Return channels by name, each with its number of `posts` and the time of the `newest`."""
    counts = (func.count(posts.c.id).label("posts"), func.max(posts.c.created_at).label("newest"))
    query = select(channels, *counts).outerjoin(posts, posts.c.channel_id == channels.c.id)
    return database.rows(query.group_by(channels.c.id).order_by(channels.c.name))


def number_of_threads(database: Database, channel_id: int) -> int:
    query = select(func.count()).select_from(posts)
    query = query.where(posts.c.channel_id == channel_id, posts.c.parent_id.is_(None))
    return int(database.scalar(query))


def threads(database: Database, channel_id: int, limit: int, offset: int) -> list[Row]:
    """Return posts of threads, newest thread first, in the order in which they are read.

    Each has its `depth`; the last one of a thread that goes on has `more`.
    """
    query = select(posts).where(posts.c.channel_id == channel_id, posts.c.parent_id.is_(None))
    query = query.order_by(posts.c.id.desc()).limit(limit).offset(offset)
    rows = []
    for root in database.rows(query):
        below = numbers_below(database, root["id"], _REPLIES + 1)
        rows += thread(database, root, below[:_REPLIES])
        rows[-1]["more"] = root["id"] if len(below) > _REPLIES else None
    return rows


def of_agent(database: Database, agent: str, limit: int, offset: int) -> list[Row]:
    """Return posts, newest first, with the name of their `channel`."""
    query = select(posts, channels.c.name.label("channel"))
    query = query.join(channels, channels.c.id == posts.c.channel_id)
    query = query.where(posts.c.agent_id == agent).order_by(posts.c.id.desc())
    rows = database.rows(query.limit(limit).offset(offset))
    return [{**row, "depth": 0, "more": None} for row in rows]


def numbers_below(database: Database, root: int, most: int = _MAX_REPLIES) -> list[int]:
    """Return the replies to a post, the replies to those, and so on, level by level."""
    numbers: list[int] = []
    level = [root]
    while level and len(numbers) < most:
        query = select(posts.c.id).where(posts.c.parent_id.in_(level)).order_by(posts.c.id)
        level = database.scalars(query.limit(most - len(numbers)))
        numbers += level
    return numbers


def thread(database: Database, root: Row, numbers: Sequence[int]) -> list[Row]:
    """Return a post and some of those below it, each reply after its parent.

    One whose parent is not among them stands first.
    """
    query = select(posts).where(posts.c.id.in_(numbers)).order_by(posts.c.id)
    rows = {root["id"]: root, **{row["id"]: row for row in database.rows(query)}}
    under: dict[int, list[int]] = defaultdict(list)
    for number in list(rows)[1:]:
        parent = rows[number]["parent_id"]
        under[parent if parent in rows else root["id"]].append(number)
    ordered: list[Row] = []
    ahead = [(int(root["id"]), 0)]
    while ahead:
        number, depth = ahead.pop()
        ordered.append({**rows[number], "depth": min(depth, _DEEPEST), "more": None})
        ahead += [(reply, depth + 1) for reply in reversed(under[number])]
    return ordered
