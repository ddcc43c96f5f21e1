"""The application: routes, and refusals in one shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from autohypothesis import __version__
from autohypothesis.errors import GitError
from autohypothesis.hub.server import (
    routes_agents,
    routes_board,
    routes_claims,
    routes_git,
    routes_pages,
    routes_results,
    shapes,
)
from autohypothesis.hub.server.frame import Frame
from autohypothesis.hub.server.hub import Hub, of
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
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.hub = hub
    app.add_middleware(Frame, settings=hub.settings)
    for module in (routes_agents, routes_board, routes_git, routes_results, routes_claims):
        app.include_router(module.router)
    app.add_api_route(
        "/api/health", health, response_model=shapes.Health, responses=problems(503)
    )  # fmt: skip
    app.include_router(routes_pages.open_router)
    app.include_router(routes_pages.router)
    _answer_in_one_shape(app)
    return app


def health(request: Request) -> Any:
    """Whether the database and the repository answer."""
    of(request).check()
    return JSONResponse({"status": "ok"})


def _answer_in_one_shape(app: FastAPI) -> None:
    """`{"error": ...}`, whatever went wrong and wherever; browsers get the same words on a page."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
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
    paged = routes_pages.is_page(request)
    answer: Response = JSONResponse({"error": words}, status)
    if paged and "text/html" in request.headers.get("accept", ""):
        answer = routes_pages.problem(request, status, words)
    if wait:
        answer.headers["Retry-After"] = str(wait)
    if status == 401:
        answer.headers["WWW-Authenticate"] = routes_pages.ASKS if paged else "Bearer"
    return answer
