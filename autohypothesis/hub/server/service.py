"""One opened hub, and what its routes depend on: the caller, counted attempts, bodies of requests.

A body is read raw, whatever its type says, and never more of it than is allowed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import IO, Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from sqlalchemy import func, select

from autohypothesis.engine.task_file import problems_of
from autohypothesis.errors import AutohypothesisError
from autohypothesis.hub.server import agents, results
from autohypothesis.hub.server.agents import Caller
from autohypothesis.hub.server.database import Database, pushes
from autohypothesis.hub.server.intake import Intake
from autohypothesis.hub.server.refusals import HubRefusalError, bad
from autohypothesis.hub.server.settings import DataFolder, HubLimits, Settings
from autohypothesis.hub.server.store import CommitStore, DiffCache
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import has_hub_key

M = TypeVar("M", bound=BaseModel)

_HEALTH_S = 2.0
"""How long an answer about the repository is good for: any client may ask, and git costs."""
_SAID = 500
"""Characters of what is wrong with a body; a key may be as long as the body."""


@dataclass(slots=True)
class HubService:
    """The open database and repository of one hub."""

    settings: Settings
    database: Database
    store: CommitStore
    intake: Intake
    diffs: DiffCache = field(default_factory=DiffCache)
    _looked: float = -_HEALTH_S
    _looking: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, settings: Settings) -> HubService:
        """The hub in `settings.data`, made if need be, and swept."""
        folder = DataFolder.make(settings.data)
        store = CommitStore(folder.repository, folder.passing, settings.limits)
        store.make()
        database = Database(folder.database)
        results.read_old_posts(database)
        intake = Intake(folder, store, database, settings.limits)
        intake.sweep()
        return cls(settings, database, store, intake)

    def check(self) -> None:
        """
        Raises:
            HubRefusalError: 503, the database or the repository does not answer.
        """
        self.database.scalar(select(func.count()).select_from(pushes))
        with self._looking:
            if time.monotonic() - self._looked > _HEALTH_S:
                try:
                    self.store.check()
                except AutohypothesisError as error:
                    raise HubRefusalError(
                        503, f"the repository does not answer: {error}"
                    ) from error
                self._looked = time.monotonic()

    def count(self, kind: str, agent: str | None, address: str, most: int) -> None:
        """Count one attempt, of `agent` and from `address`.

        Without an agent the address has `most`; with one it may stand for many agents.

        Raises:
            HubRefusalError: 429.
        """
        where = agents.counted_address(address)
        whose = [(where, most)]
        if agent is not None:
            whose = [(f"agent {agent}", most), (where, most * self.settings.hourly.address_factor)]
        agents.count_attempt(self.database, kind, whose)

    def caller(self, key: str, address: str) -> Caller:
        """The agent that comes with `key`; wrong keys are counted.

        Raises:
            HubRefusalError: 401, 429.
        """
        found = agents.caller_of(self.database, key, self.settings.admin_key)
        if found is None:
            self.count("wrong key", None, address, self.settings.hourly.wrong_keys)
            raise HubRefusalError(401, "this key is nobody's, or was revoked")
        return found


def service_of(request: Request) -> HubService:
    service: HubService = request.app.state.hub
    return service


def address_of(request: Request) -> str:
    return str(request.state.address)


# ── who may ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class May:
    """A dependency: the caller, which must have `role`."""

    role: str

    def __call__(self, request: Request) -> Caller:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise HubRefusalError(401, "no key", hint="send `Authorization: Bearer KEY`")
        caller = service_of(request).caller(key.strip(), address_of(request))
        if not caller.may(self.role):
            raise HubRefusalError(
                403, f"this key may {caller.role}; this asks for {self.role}",
                hint="ask the operator: `hub admin role`",
            )  # fmt: skip
        if self.role in ("post", "push") and caller.agent_id == agents.OPERATOR:
            raise HubRefusalError(
                403, "the operator's key is no agent's", hint="make one: `hub admin create NAME`"
            )
        return caller


@dataclass(frozen=True, slots=True)
class Attempt:
    """A dependency: as `May`, and one attempt of `kind` is counted before the body is read."""

    kind: str
    limit: str
    """The attribute of the hourly limits."""
    role: str = "post"

    def __call__(self, request: Request) -> Caller:
        caller, service = May(self.role)(request), service_of(request)
        most = getattr(service.settings.hourly, self.limit)
        service.count(self.kind, caller.agent_id, address_of(request), most)
        return caller


Service = Annotated[HubService, Depends(service_of)]
Reader = Annotated[Caller, Depends(May("read"))]
Poster = Annotated[Caller, Depends(May("post"))]
Admin = Annotated[Caller, Depends(May("admin"))]
ResultTeller = Annotated[Caller, Depends(Attempt("result", "results"))]
Claimant = Annotated[Caller, Depends(Attempt("claim", "claims"))]


def registrant(request: Request) -> None:
    """A dependency: one attempt to register is counted.

    A body without a key has to come as JSON: a web page of another site can make a browser send
    any other type unasked.

    Raises:
        HubRefusalError: 403 when registration is closed; 415, 429.
    """
    service = service_of(request)
    if not service.settings.open_registration:
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
    most = service.settings.hourly.registrations
    service.count("registration", None, address_of(request), most)


# ── bodies ──────────────────────────────────────────────────────────────────────────────────


def body(model: type[M]) -> Callable[[Request], Coroutine[Any, Any, M]]:
    """A dependency: the body as `model`; an unknown key is refused with the nearest known one.

    Raises:
        HubRefusalError: 400, 413, 408.
    """

    async def read(request: Request) -> M:
        limits = service_of(request).settings.limits
        content = b"".join([piece async for piece in _pieces(request, limits.json_bytes, limits)])
        try:
            value = parse_json(content)
        except ValueError as error:
            raise bad(f"the body {error}") from error
        if not isinstance(value, dict):
            raise bad("the body is not a JSON object")
        if has_hub_key(content):  # every reader of the hub could act in its owner's name
            raise bad(
                "the body holds a key of a hub, so nothing was stored",
                hint="take it out, and have the operator rotate it: `hub admin rotate NAME`",
            )
        try:
            return model.model_validate(value)
        except ValidationError as error:
            first = problems_of(error, model)[0]
            where = ".".join(str(part) for part in first.location)
            said = f"{where}: {first.message}" if where else first.message
            raise bad(said[:_SAID]) from None

    return read


async def write_body(request: Request, target: IO[bytes]) -> None:
    """Write the body of a push to `target`.

    Raises:
        HubRefusalError: 413, 408.
    """
    limits = service_of(request).settings.limits
    async for piece in _pieces(request, limits.bundle_bytes, limits):
        target.write(piece)


async def _pieces(request: Request, most: int, limits: HubLimits) -> AsyncIterator[bytes]:
    too_large = HubRefusalError(413, f"the body is larger than {most:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > most:
        raise too_large
    stream, read = request.stream(), 0
    until = time.monotonic() + limits.upload_seconds
    while True:
        patience = min(limits.silence_seconds, until - time.monotonic())
        try:
            piece = await asyncio.wait_for(anext(stream), max(0.0, patience))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise HubRefusalError(408, "the body came too slowly") from None
        read += len(piece)
        if read > most:
            raise too_large
        yield piece
