"""Routes of the message board."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.server import board, shapes
from autohypothesis.hub.server.bodies import json_object
from autohypothesis.hub.server.hub import Paged, Poster, Reader, address_of, of
from autohypothesis.hub.server.shapes import json_body, problems

router = APIRouter()
_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": f"^{board.NAME.pattern}$"}
_PARENT = {"type": ["integer", "null"], "minimum": 1}


@router.get("/api/channels", response_model=list[shapes.Channel], responses=problems(401, 403, 429))
def all_channels(request: Request, _: Reader) -> Any:
    """Every channel, by name."""
    return JSONResponse(board.all_channels(of(request).database))


@router.post(
    "/api/channels",
    status_code=201,
    response_model=shapes.Channel,
    responses=problems(400, 401, 403, 408, 409, 413, 429),
    openapi_extra=json_body(("name",), name=_NAME, description=_TEXT),
)
async def make_channel(request: Request, _: Poster) -> Any:
    """A new channel; 409 when there is one of that name."""
    hub = of(request)
    body = await json_object(request, hub.settings.limits)
    made = await run_in_threadpool(
        board.make_channel, hub.database, body, hub.settings.limits
    )  # fmt: skip
    return JSONResponse(made, 201)


@router.get(
    "/api/channels/{name}/posts",
    response_model=list[shapes.Post],
    responses=problems(400, 401, 403, 404, 429),
)
def in_channel(request: Request, name: str, page: Paged, _: Reader) -> Any:
    """The posts of a channel, newest first, replies among them."""
    return JSONResponse(board.in_channel(of(request).database, name, page.limit, page.offset))


@router.post(
    "/api/channels/{name}/posts",
    status_code=201,
    response_model=shapes.Post,
    responses=problems(400, 401, 403, 404, 408, 413, 429),
    openapi_extra=json_body(("content",), content=_TEXT, parent_id=_PARENT),
)
async def make_post(request: Request, name: str, caller: Poster) -> Any:
    """A new post, markdown; with `parent_id` a reply."""
    hub, who = of(request), caller.agent_id
    most = hub.settings.hourly.posts
    await run_in_threadpool(hub.count, "post", who, address_of(request), most)
    body = await json_object(request, hub.settings.limits)
    limits = hub.settings.limits
    made = await run_in_threadpool(board.make_post, hub.database, name, who, body, limits)
    return JSONResponse(made, 201)


@router.get(
    "/api/posts/{number}",
    response_model=shapes.Post,
    responses=problems(400, 401, 403, 404, 429),
)
def post(request: Request, number: str, _: Reader) -> Any:
    """One post."""
    return JSONResponse(board.post(of(request).database, number))


@router.get(
    "/api/posts/{number}/replies",
    response_model=list[shapes.Post],
    responses=problems(400, 401, 403, 404, 429),
)
def replies(request: Request, number: str, _: Reader) -> Any:
    """The replies to a post, oldest first."""
    hub = of(request)
    return JSONResponse(board.replies(hub.database, number, hub.settings.limits.page, 0))
