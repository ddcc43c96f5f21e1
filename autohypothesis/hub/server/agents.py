"""Agents, their roles and keys. A key is stored as a hash only."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Request
from sqlalchemy import Select, func, insert, select, update

from autohypothesis.hub.protocol import AGENT, AgentKey, AgentRequest, HubAgent, NewAgentRequest
from autohypothesis.hub.server.database import (
    Database,
    Row,
    agents,
    claims,
    commits,
    posts,
    results,
    row_of,
    stamp,
)
from autohypothesis.hub.server.refusals import HubRefusalError, bad, missing
from autohypothesis.hub.server.service import (
    ADMIN,
    ROLES,
    HubService,
    address_of,
    key_hash,
    route,
)

_KEY_PREFIX = "ahk_"


def new_key() -> str:
    """Return 256 random bits as a key."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def create(database: Database, name: str, role: str = "push") -> str:
    """Return the key of a new agent; it cannot be read again.

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
        connection.execute(insert(agents).values(**row, key_hash=key_hash(key)))
    return key


def set_role(database: Database, name: str, role: str) -> None:
    _change(database, name, role=_checked_role(role))


def _change(database: Database, name: str, **values: str | None) -> None:
    with database.write() as connection:
        changed = connection.execute(update(agents).where(agents.c.id == name).values(**values))
        if not changed.rowcount:
            raise missing(f"there is no agent {name!r}")


def _checked_role(role: str) -> str:
    if role not in ROLES:
        raise bad(f"role must be one of {', '.join(ROLES)}")
    return role


# ── routes ──────────────────────────────────────────────────────────────────────────────────


def registrant(request: Request) -> None:
    """Count one attempt to register, as a dependency.

    A body without a key has to come as JSON: a web page of another site can make a browser send
    any other type unasked.

    Raises:
        HubRefusalError: 403 when registration is closed; 415, 429.
    """
    hub: HubService = request.app.state.hub
    if not hub.settings.open_registration:
        raise HubRefusalError(
            403, "registration is closed on this hub",
            hint="ask its operator for a key: `orchestrator.py hub admin create NAME --data DIR`",
        )  # fmt: skip
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HubRefusalError(
            415, f"the body has to be of type application/json, not {kind[:80] or 'unnamed'!r}",
            hint="send `Content-Type: application/json`",
        )  # fmt: skip
    hub.count("registration", None, address_of(request), hub.settings.hourly.registrations)


@route("POST", "/api/register", AgentKey, 409, 415, may=registrant, status=201)
def register(database: Database, wanted: AgentRequest) -> Row:
    """A new agent and its key, which is shown once."""
    return {"id": wanted.id, "api_key": create(database, wanted.id)}


@route("POST", "/api/admin/agents", AgentKey, 409, may=ADMIN, status=201)
def create_agent(database: Database, wanted: NewAgentRequest) -> Row:
    """A new agent, also when registration is closed; `role` is push unless said."""
    return {"id": wanted.id, "api_key": create(database, wanted.id, wanted.role)}


@route("GET", "/api/admin/agents", list[HubAgent], may=ADMIN)
def every_agent(database: Database) -> list[Row]:
    """Every agent, by name; no key and no hash of one."""
    columns = (agents.c.id, agents.c.role, agents.c.created_at, agents.c.revoked_at)
    return database.rows(select(*columns).order_by(agents.c.id))


@route("POST", "/api/admin/agents/{name}/rotate", AgentKey, 400, 404, may=ADMIN)
def rotate(database: Database, name: str) -> Row:
    """A new key in place of the old one; it revives a revoked agent."""
    key = new_key()
    _change(database, name, key_hash=key_hash(key), revoked_at=None)
    return {"id": name, "api_key": key}


@route("POST", "/api/admin/agents/{name}/revoke", None, 400, 404, may=ADMIN, status=204)
def revoke(database: Database, name: str) -> None:
    """Revoke all keys of an agent; what it sent stays."""
    _change(database, name, revoked_at=stamp())


# ── what agents shared, for the pages ───────────────────────────────────────────────────────


def with_counts() -> Select[Any]:
    """Return the query for agents with the numbers of their commits, results, posts and claims."""
    counts = (
        select(func.count())
        .where(table.c.agent_id == agents.c.id)
        .scalar_subquery()
        .label(table.name)
        for table in (commits, results, posts, claims)
    )
    return select(agents.c.id, agents.c.created_at, *counts).order_by(agents.c.id)


def one_with_counts(database: Database, name: str) -> Row:
    """Return an agent with these numbers, or raise HubRefusalError 404."""
    row = database.row(with_counts().where(agents.c.id == name))
    if row is None:
        raise missing(f"there is no agent {name[:80]!r}")
    return row
