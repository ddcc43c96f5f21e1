"""One opened hub: its database, its repository, and who may ask them what."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Query, Request
from sqlalchemy import text

from autohypothesis.errors import AutohypothesisError
from autohypothesis.hub.server import agents, attempts, result_lines
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.intake import Intake
from autohypothesis.hub.server.pages.diffs import Diffs
from autohypothesis.hub.server.refusals import RefusedError, bad
from autohypothesis.hub.server.settings import Home, Settings
from autohypothesis.hub.server.store import Store

_HEALTH_S = 2.0
"""How long an answer about the repository is good for: anybody may ask, and git costs."""


@dataclass(slots=True)
class Hub:
    """What the routes work on."""

    settings: Settings
    database: Database
    store: Store
    intake: Intake
    diffs: Diffs = field(default_factory=Diffs)
    _looked: float = -_HEALTH_S
    _looking: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, settings: Settings) -> Hub:
        """The hub in `settings.data`, made if need be, and swept."""
        home = Home.make(settings.data)
        store = Store(home.repository, home.passing, settings.limits)
        store.make()
        database = Database(home.database)
        result_lines.catch_up(database)
        intake = Intake(home, store, database, settings.limits)
        intake.sweep()
        return cls(settings, database, store, intake)

    def check(self) -> None:
        """Raises RefusedError (503) when the database or the repository does not answer."""
        with self.database.read() as connection:
            connection.execute(text("SELECT count(*) FROM pushes")).scalar_one()
        with self._looking:
            if time.monotonic() - self._looked > _HEALTH_S:
                try:
                    self.store.check()
                except AutohypothesisError as error:
                    raise RefusedError(503, f"the repository does not answer: {error}") from error
                self._looked = time.monotonic()

    def count(self, kind: str, agent: str | None, address: str, most: int) -> None:
        """One attempt, of `agent` and from `address`; without an agent the address has `most`."""
        whose = [(attempts.address(address), most)]
        if agent is not None:
            factor = self.settings.hourly.address_factor
            whose = [(attempts.agent(agent), most), (whose[0][0], most * factor)]
        attempts.count(self.database, kind, whose)


def of(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


def address_of(request: Request) -> str:
    return str(request.state.address)


def whose(hub: Hub, key: str, address: str) -> agents.Caller:
    """Who comes with `key`; wrong ones are counted.

    Raises:
        RefusedError: 401, 429.
    """
    found = agents.caller(hub.database, key, hub.settings.admin_key)
    if found is None:
        hub.count("wrong key", None, address, hub.settings.hourly.wrong_keys)
        raise RefusedError(401, "this key is nobody's, or was revoked")
    return found


@dataclass(frozen=True, slots=True)
class May:
    """A dependency: the caller, who has to have `role`."""

    role: str

    def __call__(self, request: Request) -> agents.Caller:
        hub = of(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise RefusedError(401, "no key", hint="send `Authorization: Bearer KEY`")
        found = whose(hub, key.strip(), address_of(request))
        if not found.may(self.role):
            raise RefusedError(
                403, f"this key may {found.role}; this asks for {self.role}",
                hint="ask the operator: `hub admin role`",
            )  # fmt: skip
        if self.role in ("post", "push") and found.agent_id == agents.OPERATOR:
            raise RefusedError(
                403, "the operator's key is no agent's", hint="make one: `hub admin create NAME`"
            )
        return found


Reader = Annotated[agents.Caller, Depends(May("read"))]
Poster = Annotated[agents.Caller, Depends(May("post"))]
Pusher = Annotated[agents.Caller, Depends(May("push"))]
Admin = Annotated[agents.Caller, Depends(May("admin"))]


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    limit: int
    offset: int


def limit(
    request: Request,
    limit: Annotated[str, Query(description="Rows, 1 or more; default 50.")] = "50",
) -> int:
    """More rows than the hub gives at once are no error: it is as many as there are at most."""
    return min(_count("limit", limit, 1), of(request).settings.limits.page)


Limited = Annotated[int, Depends(limit)]


def page(
    limit: Limited,
    offset: Annotated[str, Query(description="Rows to pass over.")] = "0",
) -> Page:
    return Page(limit, _count("offset", offset, 0))


def _count(what: str, value: str, least: int) -> int:
    if value.isascii() and value.isdigit() and len(value) <= 15 and int(value) >= least:
        return int(value)
    raise bad(f"{what} must be a number, {least} or more: {value[:40]!r}")


Paged = Annotated[Page, Depends(page)]
