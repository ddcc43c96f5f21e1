"""Agents, their roles and keys, and how often they may ask. A key is stored as a hash only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import Select, delete, func, insert, select, update

from autohypothesis.hub.protocol import AGENT, Role
from autohypothesis.hub.server.database import (
    Database,
    Row,
    agents,
    attempts,
    claims,
    commits,
    posts,
    results,
    row_of,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing

ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""
OPERATOR = ""
"""The agent id of the operator's own key, which is no agent's."""
_KEY_PREFIX = "ahk_"
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent whose key came with a request."""

    agent_id: str
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """256 random bits."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def create(database: Database, name: str, role: str = "push") -> str:
    """The key of a new agent; it cannot be read again.

    Raises:
        HubRefusalError: 400 for a wrong name or role, 409 when the name is taken.
    """
    if not AGENT.fullmatch(name):
        raise bad("id must be a letter or digit, then at most 62 letters, digits, '.', '_' or '-'")
    row = {"id": name, "role": _checked_role(role), "created_at": stamp()}
    key = new_key()
    with database.write() as connection:
        if row_of(connection, select(agents.c.id).where(agents.c.id == name)) is not None:
            raise HubRefusalError(409, f"agent {name} is taken", hint="choose another id")
        connection.execute(insert(agents).values(**row, key_hash=_hashed(key)))
    return key


def rotate(database: Database, name: str) -> str:
    """A new key for `name`; the old one ends here. Revives a revoked agent."""
    key = new_key()
    _change(database, name, key_hash=_hashed(key), revoked_at=None)
    return key


def revoke(database: Database, name: str) -> None:
    """End the key of `name`; what it sent stays."""
    _change(database, name, revoked_at=stamp())


def set_role(database: Database, name: str, role: str) -> None:
    _change(database, name, role=_checked_role(role))


def every_agent(database: Database) -> list[Row]:
    """Agents by name, without keys or hashes."""
    columns = (agents.c.id, agents.c.role, agents.c.created_at, agents.c.revoked_at)
    return database.rows(select(*columns).order_by(agents.c.id))


def caller_of(database: Database, key: str, admin_key: str) -> Caller | None:
    """The agent that `key` belongs to, or None. Hashes are compared, never keys."""
    given = _hashed(key)
    if admin_key and hmac.compare_digest(given, _hashed(admin_key)):
        return Caller(OPERATOR, "admin")
    query = select(agents.c.id, agents.c.role)
    query = query.where(agents.c.key_hash == given, agents.c.revoked_at.is_(None))
    found = database.rows(query)
    return Caller(found[0]["id"], found[0]["role"]) if found else None


def _change(database: Database, name: str, **values: str | None) -> None:
    with database.write() as connection:
        changed = connection.execute(update(agents).where(agents.c.id == name).values(**values))
        if not changed.rowcount:
            raise missing(f"there is no agent {name!r}")


def _checked_role(role: str) -> str:
    if role not in ROLES:
        raise bad(f"role must be one of {', '.join(ROLES)}")
    return role


# ── what agents shared, for the pages ───────────────────────────────────────────────────────


def with_counts() -> Select[Any]:
    """Agents with the numbers of their `commits`, `results`, `posts` and `claims`."""
    counts = (
        select(func.count())
        .where(table.c.agent_id == agents.c.id)
        .scalar_subquery()
        .label(table.name)
        for table in (commits, results, posts, claims)
    )
    return select(agents.c.id, agents.c.created_at, *counts).order_by(agents.c.id)


def one_with_counts(database: Database, name: str) -> Row:
    """
    Raises:
        HubRefusalError: 404.
    """
    found = database.rows(with_counts().where(agents.c.id == name))
    if not found:
        raise missing(f"there is no agent {name[:80]!r}")
    return found[0]


# ── hourly limits ───────────────────────────────────────────────────────────────────────────


def count_attempt(database: Database, kind: str, whose: Iterable[tuple[str, int]]) -> None:
    """Count one attempt at `kind` for each of `whose`: names with their limits.

    Attempts count, not successes, and they are stored, so a restart forgets none. A refused one is
    not counted: to wait always helps, and the table stays small.

    Raises:
        HubRefusalError: 429, one of the names has made all its attempts of the last hour.
    """
    moment = time.time()
    with database.write() as connection:
        connection.execute(delete(attempts).where(attempts.c.at <= moment - _HOUR_S))
        for who, limit in whose:
            mine = (attempts.c.kind == kind) & (attempts.c.who == who)
            query = select(func.count(), func.min(attempts.c.at)).where(mine)
            made, first = connection.execute(query).one()
            if made >= limit:
                wait = max(1, math.ceil((first or moment) + _HOUR_S - moment))
                raise HubRefusalError(
                    429, f"too many attempts: {who} may make {limit} of kind {kind!r} an hour",
                    hint=f"try again in {wait} s", wait=wait,
                )  # fmt: skip
            connection.execute(insert(attempts).values(kind=kind, who=who, at=moment))


def counted_address(value: str) -> str:
    """The name under which an address is counted: one for all 2^64 of an IPv6 user."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        return f"address {value[:60]}"
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        parsed = mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
    return f"address {parsed}"
