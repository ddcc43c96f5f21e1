"""The application: what holds for every request, the routes, and refusals in one shape."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

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
from autohypothesis.hub.server import api
from autohypothesis.hub.server.pages import routes as pages
from autohypothesis.hub.server.refusals import HubRefusalError
from autohypothesis.hub.server.service import HubService
from autohypothesis.hub.server.settings import Settings, loopback

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


def application(hub: HubService) -> FastAPI:
    """The ASGI application that uvicorn serves."""

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
    app.include_router(api.router)
    app.include_router(pages.open_router)
    app.include_router(pages.router)
    _answer_errors_in_one_shape(app)
    return app


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def _answer_errors_in_one_shape(app: FastAPI) -> None:
    """`{"error": ...}`, whatever went wrong; browsers get the same words on a page."""

    @app.exception_handler(HubRefusalError)
    async def refused(request: Request, error: HubRefusalError) -> Response:
        return problem(request, error.status, str(error), error.wait)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        answer = problem(request, error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(request, 400, f"{where}: {first['msg']}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, _: ClientDisconnect) -> Response:
        return problem(request, 400, "the body ended early")

    @app.exception_handler(GitError)
    async def broken(request: Request, error: GitError) -> Response:
        log.error("%s", error)
        return problem(request, 500, "the repository failed; the hub's log has more")

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return problem(request, 500, "the hub failed; its log has more")


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


@dataclass(slots=True)
class RequestGuard:
    """The outermost layer: refuses foreign host names, tells the client's address, adds headers."""

    app: ASGIApp
    settings: Settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["address"] = client_address(scope, self.settings.proxies)
        body = _RequestBody(receive)
        waits = "100-continue" in headers.get("expect", "").lower()
        empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                if message["status"] >= 400 and not empty and (body.begun or not waits):
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(body.drain(), _DRAIN_S)
            await send(message)

        app = self.app
        if not is_ours(headers.get("host", ""), self.settings):
            error = "this hub is not reached under that name; `--name` adds one"
            app = JSONResponse({"error": error}, 421)
        await app(scope, body, answer)


@dataclass(slots=True)
class _RequestBody:
    """Receives a request's body, and knows how much of it has come."""

    receive: Receive
    begun: bool = False
    done: bool = False

    async def __call__(self) -> Message:
        self.begun = True
        message = await self.receive()
        self.done = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read on for a while, so that the sender comes to see our answer."""
        left = _DRAIN_BYTES
        while not self.done and left > 0:
            left -= len((await self()).get("body", b""))


def is_ours(header: str, settings: Settings) -> bool:
    """Whether a Host header names this hub.

    A web page can make its own name point here; it cannot name an address.
    """
    name, listening = _host_of(header), settings.host.lower()
    if name in {listening, *map(str.lower, settings.names)} - set(_WILDCARDS):
        return True
    if loopback(name):
        return True
    if loopback(listening):
        return False
    return _is_address(name) or name == socket.gethostname().lower()


def _host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def client_address(scope: Scope, proxies: Collection[str]) -> str:
    """The address that counts: the last one in X-Forwarded-For that no proxy of ours has."""
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
