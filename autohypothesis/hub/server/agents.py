"""Who may do what: agents, their roles and their keys. A key is shown once, and kept as a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from autohypothesis.hub.server.database import Database, agents, stamp
from autohypothesis.hub.server.refusals import RefusedError, bad, missing

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
ROLES = ("read", "post", "push", "admin")
"""Each may do what those before it may."""
PREFIX = "ahk_"
OPERATOR = ""
"""The name of whoever holds the key that the server was started with: no agent's."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key came with a request."""

    agent_id: str
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def valid_name(value: object) -> str:
    """An agent's name.

    Raises:
        RefusedError: 400, `value` is none.
    """
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise bad(
        "id must be a letter or digit, then at most 62 letters, digits, '.', '_' or '-'",
        hint='send {"id": "NAME"}',
    )


def create(database: Database, name: object, role: object = "push") -> str:
    """A new agent; its key, which nobody can be told again.

    Raises:
        RefusedError: 400 for a wrong name or role, 409 when the name is taken.
    """
    name, role, key = valid_name(name), _valid_role(role), new_key()
    with database.write() as connection:
        if _row(connection, name) is not None:
            raise RefusedError(409, f"agent {name} is taken", hint="choose another id")
        row = {"id": name, "role": role, "key_hash": hashed(key), "created_at": stamp()}
        connection.execute(insert(agents).values(row))
    return key


def rotate(database: Database, name: str) -> str:
    """A new key for `name`; the old one is worth nothing from here on. Revives a revoked agent."""
    key = new_key()
    _change(database, name, key_hash=hashed(key), revoked_at=None)
    return key


def revoke(database: Database, name: str) -> None:
    """No key of `name` is worth anything; what it sent stays."""
    _change(database, name, revoked_at=stamp())


def set_role(database: Database, name: str, role: str) -> None:
    _change(database, name, role=_valid_role(role))


def listing(database: Database) -> list[dict[str, str | None]]:
    columns = (agents.c.id, agents.c.role, agents.c.created_at, agents.c.revoked_at)
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(select(*columns).order_by("id"))]


def caller(database: Database, key: str, admin_key: str) -> Caller | None:
    """Whose `key` this is; None when it is nobody's. Hashes are compared, never keys."""
    given = hashed(key)
    if admin_key and hmac.compare_digest(given, hashed(admin_key)):
        return Caller(OPERATOR, "admin")
    columns = (agents.c.id, agents.c.role)
    query = select(*columns).where(agents.c.key_hash == given, agents.c.revoked_at.is_(None))
    with database.read() as connection:
        row = connection.execute(query).first()
    return Caller(row.id, row.role) if row else None


def _change(database: Database, name: str, **values: str | None) -> None:
    with database.write() as connection:
        if _row(connection, name) is None:
            raise missing(f"there is no agent {name!r}")
        connection.execute(update(agents).where(agents.c.id == name).values(**values))


def _row(connection: Connection, name: str) -> object | None:
    return connection.execute(select(agents.c.id).where(agents.c.id == name)).first()


def _valid_role(role: object) -> str:
    if isinstance(role, str) and role in ROLES:
        return role
    raise bad(f"role must be one of {', '.join(ROLES)}")
