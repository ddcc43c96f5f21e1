"""One opened hub, who may ask it and how often, and the decorator that makes a function a route.

A body is read raw, whatever its type says, and never more of it than is allowed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import inspect
import ipaddress
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy import delete, func, insert, select

from autohypothesis.engine.task_file import problems_of
from autohypothesis.errors import AutohypothesisError
from autohypothesis.hub.protocol import LARGEST, ErrorAnswer, Health, Role
from autohypothesis.hub.server.database import Database, Row, agents, attempts, pushes
from autohypothesis.hub.server.refusals import HubRefusalError, bad
from autohypothesis.hub.server.settings import HubLimits, Settings
from autohypothesis.hub.server.store import CommitStore, DiffCache
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import has_hub_key

if TYPE_CHECKING:
    from autohypothesis.hub.server.intake import Intake

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)

ROLES: tuple[Role, ...] = get_args(Role)
"""In ascending order: each may do what those before it may."""
OPERATOR = ""
"""The agent id of the operator's own key, which is no agent's."""
RowNumber = Annotated[int, Path(ge=1, le=LARGEST)]
_HOUR_S = 3600.0
_HEALTH_S = 2.0
"""Seconds for which an answer about the repository is reused: any client may ask, and git costs."""
_ERROR_LENGTH = 500
"""Characters of what is wrong with a body; a key may be as long as the body."""
_STATUSES = {
    400: "The request is wrong.",
    401: "No key, or one that is not known.",
    403: "This key may not.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It exists, or is another than was said.",
    413: "Too large.",
    415: "Not of type application/json.",
    421: "Not under this host name.",
    429: "Too many attempts in an hour; Retry-After says how long to wait.",
    503: "Busy; try again.",
    507: "The disk is full.",
}

# ── the opened hub ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent whose key came with a request."""

    agent_id: str
    role: str


@dataclass(slots=True)
class HubService:
    """The open database and repository of one hub."""

    settings: Settings
    database: Database
    store: CommitStore
    intake: Intake
    diffs: DiffCache = field(default_factory=DiffCache)
    _checked_at: float = -_HEALTH_S
    _checking: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise HubRefusalError 503 where the database or the repository does not answer."""
        self.database.scalar(select(func.count()).select_from(pushes))
        with self._checking:
            if time.monotonic() - self._checked_at > _HEALTH_S:
                try:
                    self.store.check()
                except AutohypothesisError as error:
                    raise HubRefusalError(
                        503, f"the repository does not answer: {error}"
                    ) from error
                self._checked_at = time.monotonic()

    def count(self, kind: str, agent: str | None, address: str, limit: int) -> None:
        """Count one attempt, of `agent` and from `address`.

        Attempts count, not successes, and they are stored, so a restart forgets none. A refused
        one is not counted: to wait always helps, and the table stays small. Without an agent the
        address has `limit`; with one it may stand for many agents.

        Raises:
            HubRefusalError: 429, all attempts of the last hour are made.
        """
        counted = {counted_address(address): limit}
        if agent is not None:
            shared = limit * self.settings.hourly.address_factor
            counted = {f"agent {agent}": limit, counted_address(address): shared}
        moment = time.time()
        with self.database.write() as connection:
            connection.execute(delete(attempts).where(attempts.c.at <= moment - _HOUR_S))
            for who, most in counted.items():
                mine = (attempts.c.kind == kind) & (attempts.c.who == who)
                query = select(func.count(), func.min(attempts.c.at)).where(mine)
                made, first = connection.execute(query).one()
                if made >= most:
                    wait = max(1, math.ceil((first or moment) + _HOUR_S - moment))
                    raise HubRefusalError(
                        429, f"too many attempts: {who} may make {most} of kind {kind!r} an hour",
                        hint=f"try again in {wait} s", wait=wait,
                    )  # fmt: skip
                connection.execute(insert(attempts).values(kind=kind, who=who, at=moment))

    def caller(self, key: str, address: str) -> Caller:
        """Return the agent that comes with `key`; wrong keys are counted.

        Hashes are compared, never keys.

        Raises:
            HubRefusalError: 401, 429.
        """
        digest, admin_key = key_hash(key), self.settings.admin_key
        if admin_key and hmac.compare_digest(digest, key_hash(admin_key)):
            return Caller(OPERATOR, "admin")
        query = select(agents.c.id, agents.c.role)
        query = query.where(agents.c.key_hash == digest, agents.c.revoked_at.is_(None))
        row = self.database.row(query)
        if row is None:
            self.count("wrong key", None, address, self.settings.hourly.wrong_keys)
            raise HubRefusalError(401, "this key is nobody's, or was revoked")
        return Caller(row["id"], row["role"])


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def counted_address(value: str) -> str:
    """Return the name under which an address is counted: one for all 2^64 of an IPv6 user."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        return f"address {value[:60]}"
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        parsed = mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
    return f"address {parsed}"


# ── dependencies of routes ──────────────────────────────────────────────────────────────────


async def service_of(request: Request) -> HubService:
    service: HubService = request.app.state.hub
    return service


async def database_of(request: Request) -> Database:
    return (await service_of(request)).database


def address_of(request: Request) -> str:
    return str(request.state.address)


@dataclass(frozen=True, slots=True)
class May:
    """A dependency: the caller, which has `role`; one attempt of `kind` is counted, if named.

    `limit` is the attribute of the hourly limits. A body is read after this.
    """

    role: str
    kind: str = ""
    limit: str = ""

    def __call__(self, request: Request) -> Caller:
        hub: HubService = request.app.state.hub
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise HubRefusalError(401, "no key", hint="send `Authorization: Bearer KEY`")
        caller = hub.caller(key.strip(), address_of(request))
        if ROLES.index(caller.role) < ROLES.index(self.role):
            raise HubRefusalError(
                403, f"this key may {caller.role}; this asks for {self.role}",
                hint="ask the operator: `hub admin role`",
            )  # fmt: skip
        if self.role in ("post", "push") and caller.agent_id == OPERATOR:
            raise HubRefusalError(
                403, "the operator's key is no agent's", hint="make one: `hub admin create NAME`"
            )
        if self.kind:
            most = getattr(hub.settings.hourly, self.limit)
            hub.count(self.kind, caller.agent_id, address_of(request), most)
        return caller


READ, POST, ADMIN = May("read"), May("post"), May("admin")
TELL = May("post", "result", "results")
CLAIM = May("post", "claim", "claims")


def body(model: type[M]) -> Callable[[Request], Coroutine[Any, Any, M]]:
    """Return a dependency: the body as `model`; an unknown key is refused with the nearest one.

    It raises HubRefusalError 400, 413 and 408.
    """

    async def read(request: Request) -> M:
        limits = request.app.state.hub.settings.limits
        content = b"".join([piece async for piece in pieces(request, limits.json_bytes, limits)])
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
            message = f"{where}: {first.message}" if where else first.message
            raise bad(message[:_ERROR_LENGTH]) from None

    return read


async def pieces(request: Request, most: int, limits: HubLimits) -> AsyncIterator[bytes]:
    """Yield the body of a request.

    Raises:
        HubRefusalError: 413, it has more than `most` bytes; 408, it comes too slowly.
    """
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


# ── routes ──────────────────────────────────────────────────────────────────────────────────

router = APIRouter()
_SOURCES: dict[Any, Any] = {HubService: Depends(service_of), Database: Depends(database_of)}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a route, as its description has them."""
    return {
        status: {"model": ErrorAnswer, "description": _STATUSES[status]}
        for status in sorted({*statuses, 421, 503})
    }


def binary(media: str) -> dict[str, Any]:
    """Return the description of a body that is no JSON."""
    return {"content": {media: {"schema": {"type": "string", "format": "binary"}}}}


def route(
    method: str,
    path: str,
    answer: Any,
    *statuses: int,
    may: Callable[[Request], Any] | None = READ,
    status: int = 200,
    again: str = "",
) -> Callable[[F], F]:
    """Make a route of a function, which itself stays as it is.

    It is given what its parameters are typed as: the database, the hub, the caller, and a model
    of the query or of the body. Its rows are answered as JSON, a response as it is.

    Args:
        answer: the model of the answer, or the media type of one that is no JSON.
        statuses: refusals beside those that follow from `may` and from a body.
        may: who may ask; it is asked before a body is read.
        again: the meaning of a 200 in place of `status`; the function then returns the row, and
            whether it is new.
    """

    def add(function: F) -> F:
        signature = inspect.signature(function, eval_str=True)
        parameters, model = [], None
        for parameter in signature.parameters.values():
            kind, source = parameter.annotation, _SOURCES.get(parameter.annotation)
            if kind is Caller:
                source = Depends(may)
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind if method == "POST" else model
                source = Depends(body(kind)) if method == "POST" else Query()
            given = kind if source is None else Annotated[kind, source]
            parameters.append(parameter.replace(annotation=given))

        @functools.wraps(function)
        def answered(**given: Any) -> Response:
            value, code = function(**given), status
            if again:
                value, code = value[0], status if value[1] else 200
            if isinstance(value, Response):
                return value
            return JSONResponse(value, code) if value is not None else Response(status_code=code)

        answered.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        described: dict[int | str, dict[str, Any]] = {}
        if isinstance(answer, str):
            described[200] = binary(answer)
        if again:
            described[200] = {"model": answer, "description": again}
        asked = (401, 403, 429) if isinstance(may, May) else (403, 429) if may else ()
        sent: tuple[int, ...] = ()
        extra = None
        if model is not None:
            sent, schema = (400, 408, 413), {"schema": model.model_json_schema()}
            extra = {"requestBody": {"required": True, "content": {"application/json": schema}}}
        router.add_api_route(
            path, answered, methods=[method], status_code=status,
            response_model=None if isinstance(answer, str) else answer,
            response_class=Response if isinstance(answer, str) else JSONResponse,
            responses={**described, **problems(*asked, *sent, *statuses)},
            dependencies=[Depends(may)] if may else [], openapi_extra=extra,
        )  # fmt: skip
        return function

    return add


@route("GET", "/api/health", Health, may=None)
def health(hub: HubService) -> Row:
    """Whether the database and the repository answer."""
    hub.check()
    return {"status": "ok"}
