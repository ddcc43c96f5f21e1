"""The application: routes, and refusals in one shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from autohypothesis import __version__
from autohypothesis.errors import GitError
from autohypothesis.hub.server import routes_agents, routes_board, routes_git, shapes
from autohypothesis.hub.server.frame import Frame
from autohypothesis.hub.server.hub import Hub, of
from autohypothesis.hub.server.page import index
from autohypothesis.hub.server.refusals import RefusedError
from autohypothesis.hub.server.shapes import problems

THREADS = 64
log = logging.getLogger("autohypothesis.hub")


def application(hub: Hub) -> FastAPI:
    """What uvicorn serves."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        hub.database.close()

    app = FastAPI(
        title="Autohypothesis hub", version=__version__, lifespan=life, redirect_slashes=False,
        redoc_url=None,
    )  # fmt: skip
    app.state.hub = hub
    app.add_middleware(Frame, settings=hub.settings)
    for module in (routes_agents, routes_board, routes_git):
        app.include_router(module.router)
    app.add_api_route(
        "/api/health", health, response_model=shapes.Health, responses=problems(503)
    )  # fmt: skip
    app.add_api_route("/", front, response_class=HTMLResponse, include_in_schema=False)
    _answer_in_one_shape(app)
    return app


def health(request: Request) -> Any:
    """Whether the database and the repository answer."""
    of(request).check()
    return JSONResponse({"status": "ok"})


def front(request: Request) -> HTMLResponse:
    """The channels and the newest commits, for people."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return HTMLResponse(index(of(request)), headers={"Content-Security-Policy": policy})


def _answer_in_one_shape(app: FastAPI) -> None:
    """`{"error": ...}`, whatever went wrong and wherever."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return problem(error.status, str(error), error.wait)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(400, f"{where}: {first['msg']}")

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return problem(400, "the body ended early")

    @app.exception_handler(GitError)
    async def broken(_: Request, error: GitError) -> Response:
        log.error("%s", error)
        return problem(500, "the repository failed; the hub's log has more")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return problem(500, "the hub failed; its log has more")


def problem(status: int, words: str, wait: int = 0) -> Response:
    headers = {"Retry-After": str(wait)} if wait else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": words}, status, headers=headers)
