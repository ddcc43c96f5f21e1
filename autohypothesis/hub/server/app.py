"""The application: the opened hub, its routes, what holds for every request, and refusals."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autohypothesis import __version__
from autohypothesis.errors import GitError
from autohypothesis.hub.server import results
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.intake import Intake
from autohypothesis.hub.server.pages import routes as pages
from autohypothesis.hub.server.refusals import HubRefusalError
from autohypothesis.hub.server.service import HubService, router
from autohypothesis.hub.server.settings import DataFolder, Settings, loopback
from autohypothesis.hub.server.store import CommitStore

THREADS = 64
_WILDCARDS = ("", "0.0.0.0", "::")
_DRAIN_BYTES = 64 << 20
_DRAIN_S = 2.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
log = logging.getLogger("autohypothesis.hub")


def open_hub(settings: Settings) -> HubService:
    """Open the hub in `settings.data`, made if need be, and swept."""
    folder = DataFolder(settings.data)
    store = CommitStore(folder.repository, folder.passing, settings.limits)
    store.make()
    database = Database(folder.database)
    results.read_old_posts(database)
    intake = Intake(folder, store, database, settings.limits)
    intake.sweep()
    return HubService(settings, database, store, intake)


def application(hub: HubService) -> FastAPI:
    """Make the ASGI application that uvicorn serves."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        hub.database.close()

    app = FastAPI(
        title="Autohypothesis hub", version=__version__, lifespan=life, redirect_slashes=False,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.hub = hub
    app.add_middleware(RequestGuard, settings=hub.settings)
    for routes in (router, pages.open_router, pages.router):
        app.include_router(routes)
    for error in _ERRORS:
        app.add_exception_handler(error, _refuse)
    return app


# ── refusals ────────────────────────────────────────────────────────────────────────────────


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer `{"error": ...}`, whatever went wrong; browsers get the same words on a page."""
    if isinstance(error, HubRefusalError):
        return problem(request, error.status, str(error), error.wait)
    if isinstance(error, HTTPException):
        answer = problem(request, error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(request, 400, f"{where}: {first['msg']}")
    if isinstance(error, ClientDisconnect):
        return problem(request, 400, "the body ended early")
    if isinstance(error, GitError):
        log.error("%s", error)
        return problem(request, 500, "the repository failed; the hub's log has more")
    return problem(request, 500, "the hub failed; its log has more")


_ERRORS = (
    HubRefusalError, HTTPException, RequestValidationError, ClientDisconnect, GitError, Exception
)  # fmt: skip


def problem(request: Request, status: int, words: str, wait: int = 0) -> Response:
    is_page = not request.url.path.startswith(("/api/", "/openapi.json"))
    answer: Response = JSONResponse({"error": words}, status)
    if is_page and "text/html" in request.headers.get("accept", ""):
        answer = pages.problem(request, status, words)
    if wait:
        answer.headers["Retry-After"] = str(wait)
    if status == 401:
        answer.headers["WWW-Authenticate"] = pages.CHALLENGE if is_page else "Bearer"
    return answer


# ── every request ───────────────────────────────────────────────────────────────────────────


class RequestGuard:
    """The outermost layer: refuses foreign host names, tells the client's address, adds headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["address"] = client_address(scope, self.settings.proxies)
        waits = "100-continue" in headers.get("expect", "").lower()
        empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        begun = done = False

        async def body() -> Message:
            nonlocal begun, done
            begun = True
            message = await receive()
            done = not message.get("more_body", False)
            return message

        async def drain() -> None:
            """Read on for a while, so that the sender comes to see our answer."""
            left = _DRAIN_BYTES
            while not done and left > 0:
                left -= len((await body()).get("body", b""))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                if message["status"] >= 400 and not empty and (begun or not waits):
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(drain(), _DRAIN_S)
            await send(message)

        app = self.app
        if not is_ours(headers.get("host", ""), self.settings):
            error = "this hub is not reached under that name; `--name` adds one"
            app = JSONResponse({"error": error}, 421)
        await app(scope, body, answer)


def is_ours(header: str, settings: Settings) -> bool:
    """Whether a Host header names this hub.

    A web page can make its own name point here; it cannot name an address.
    """
    name, listening = header.strip().lower(), settings.host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    else:
        name = name.partition(":")[0].rstrip(".")
    if name in {listening, *map(str.lower, settings.names)} - set(_WILDCARDS) or loopback(name):
        return True
    return not loopback(listening) and (_is_address(name) or name == socket.gethostname().lower())


def client_address(scope: Scope, proxies: Collection[str]) -> str:
    """Return the address that counts: the last one in X-Forwarded-For that no proxy of ours has."""
    peer = str((scope.get("client") or ("unknown", 0))[0])
    if peer not in proxies:
        return peer
    passed = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    for name in reversed([part.strip() for part in passed]):
        if not _is_address(name):
            break
        if name not in proxies:
            return name
    return peer


def _is_address(value: str) -> bool:
    try:
        return bool(ipaddress.ip_address(value))
    except ValueError:
        return False
