"""Channels and posts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select

from autohypothesis.hub.server import result_lines
from autohypothesis.hub.server.database import Database, channels, posts, stamp
from autohypothesis.hub.server.refusals import RefusedError, bad, missing
from autohypothesis.hub.server.settings import Limits

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
_LARGEST = (1 << 63) - 1
_CHANNEL = (channels.c.id, channels.c.name, channels.c.description, channels.c.created_at)
POST = (
    posts.c.id,
    posts.c.channel_id,
    posts.c.agent_id,
    posts.c.parent_id,
    posts.c.content,
    posts.c.created_at,
)

Row = dict[str, Any]


def all_channels(database: Database) -> list[Row]:
    return _rows(database, select(*_CHANNEL).order_by(channels.c.name))


def make_channel(database: Database, body: Mapping[str, Any], limits: Limits) -> Row:
    """A new channel.

    Raises:
        RefusedError: 400; 409 when there is one of that name, also when there can be no more; 403.
    """
    name, description = body.get("name"), body.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise bad("name must be a lower-case letter or digit, then at most 30 of those, '_' or '-'")
    if not isinstance(description, str) or _size(description) > limits.description_bytes:
        raise bad(f"description must be text of at most {limits.description_bytes:,} bytes")
    with database.write() as connection:
        if _channel(connection, name) is not None:
            raise RefusedError(409, f"channel {name} exists")
        number = connection.execute(select(func.count()).select_from(channels)).scalar_one()
        if number >= limits.channels:
            raise RefusedError(403, f"there are {number} channels, and may be no more")
        row = {"name": name, "description": description, "created_at": stamp()}
        made = connection.execute(insert(channels).values(row)).inserted_primary_key
    return {"id": made[0] if made else None, **row}


def in_channel(database: Database, name: str, limit: int, offset: int) -> list[Row]:
    """Newest first, replies among them.

    Raises:
        RefusedError: 404, there is no such channel.
    """
    with database.read() as connection:
        channel = _required(connection, name)
        query = select(*POST).where(posts.c.channel_id == channel)
        query = query.order_by(posts.c.id.desc()).limit(limit).offset(offset)
        return [dict(row._mapping) for row in connection.execute(query)]


def make_post(
    database: Database, channel: str, agent: str, body: Mapping[str, Any], limits: Limits
) -> Row:
    """A post in `channel`, or a reply to one in it; results that it tells are stored with it.

    Raises:
        RefusedError: 404 for the channel; 400 for the content or the parent.
    """
    content, parent = body.get("content"), body.get("parent_id")
    with database.write() as connection:
        place = _required(connection, channel)
        if not isinstance(content, str) or not content.strip():
            raise bad("content must be text, and not empty")
        if _size(content) > limits.post_bytes:
            raise bad(f"content has {_size(content):,} bytes; at most {limits.post_bytes:,}")
        if parent is not None:
            _check_parent(connection, place, channel, parent)
        row = {
            "channel_id": place,
            "agent_id": agent,
            "parent_id": parent,
            "content": content,
            "created_at": stamp(),
        }
        made = connection.execute(insert(posts).values(row)).inserted_primary_key
        stored = {"id": made[0] if made else None, **row}
        if channel == result_lines.CHANNEL:
            result_lines.take_in(connection, stored)
    return stored


def post(database: Database, number: str) -> Row:
    """The post of that number.

    Raises:
        RefusedError: 400 when `number` is none, 404 when there is no such post.
    """
    wanted = _number(number)
    found = _rows(database, select(*POST).where(posts.c.id == wanted))
    if not found:
        raise missing(f"there is no post {number[:20]}")
    return found[0]


def replies(database: Database, number: str, limit: int, offset: int) -> list[Row]:
    """Oldest first.

    Raises:
        RefusedError: as `post`.
    """
    parent = post(database, number)["id"]
    query = select(*POST).where(posts.c.parent_id == parent).order_by(posts.c.id)
    return _rows(database, query.limit(limit).offset(offset))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 40:
        raise bad(f"{text[:40]!r} is not the number of a post")
    return min(int(text), _LARGEST)


def _check_parent(connection: Connection, place: int, channel: str, parent: object) -> None:
    if not isinstance(parent, int) or isinstance(parent, bool) or not 0 < parent <= _LARGEST:
        raise bad("parent_id must be the number of a post")
    query = select(posts.c.channel_id).where(posts.c.id == parent)
    found = connection.execute(query).scalar_one_or_none()
    if found != place:
        raise bad(f"parent_id {parent} is no post in channel {channel}")


def _required(connection: Connection, name: str) -> int:
    found = _channel(connection, name)
    if found is None:
        raise missing(f"there is no channel {name[:80]!r}")
    return found


def _channel(connection: Connection, name: str) -> int | None:
    query = select(channels.c.id).where(channels.c.name == name)
    return connection.execute(query).scalar_one_or_none()


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _rows(database: Database, query: Select[Any]) -> list[Row]:
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
