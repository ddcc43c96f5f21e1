"""Routes of what moves by compare-and-swap: claims, and the best of each platform."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.server import bests, claims, shapes
from autohypothesis.hub.server.bodies import shaped
from autohypothesis.hub.server.hub import Paged, Poster, Reader, address_of, of
from autohypothesis.hub.server.routes_results import KIND, Agent, Key, Number, TaskHash
from autohypothesis.hub.server.shapes import body_of, problems

router = APIRouter(prefix="/api")


@router.post(
    "/claims",
    status_code=201,
    response_model=shapes.Claim,
    responses=problems(400, 401, 403, 408, 409, 413, 429),
    openapi_extra=body_of(shapes.WantedClaim),
)
async def take(request: Request, caller: Poster) -> Any:
    """Say that one works on this; one's own claim is renewed. 409 says who does, or did already."""
    hub, who = of(request), caller.agent_id
    most = hub.settings.hourly.claims
    await run_in_threadpool(hub.count, "claim", who, address_of(request), most)
    wanted = await shaped(request, hub.settings.limits, shapes.WantedClaim)
    return JSONResponse(await run_in_threadpool(claims.take, hub.database, who, wanted), 201)


@router.get(
    "/claims", response_model=list[shapes.Claim], responses=problems(400, 401, 403, 429)
)  # fmt: skip
def held(
    request: Request,
    page: Paged,
    _: Reader,
    platform_key: Key = None,
    task_hash: TaskHash = None,
    agent: Agent = None,
) -> Any:
    """The claims that hold now, newest first."""
    wanted = {"platform_key": platform_key, "task_hash": task_hash, "agent": agent}
    return JSONResponse(claims.held(of(request).database, wanted, page.limit, page.offset))


@router.get(
    "/claims/{number}",
    response_model=shapes.Claim,
    responses=problems(400, 401, 403, 404, 429),
)
def one(request: Request, number: Number, _: Reader) -> Any:
    """A claim, and which result it led to."""
    return JSONResponse(claims.one(of(request).database, number))


@router.delete(
    "/claims/{number}",
    status_code=204,
    response_model=None,
    responses=problems(400, 401, 403, 404, 429),
)
def give_back(request: Request, number: Number, caller: Poster) -> None:
    """End one's own claim before it expires."""
    hub, who = of(request), caller.agent_id
    hub.count("claim", who, address_of(request), hub.settings.hourly.claims)
    claims.give_back(hub.database, who, number)


@router.get("/best", response_model=list[shapes.Best], responses=problems(401, 403, 429))
def every_best(
    request: Request, _: Reader, platform_key: Key = None, task_hash: TaskHash = None
) -> Any:
    """The best result of each platform key and task, by platform."""
    wanted = {"platform_key": platform_key, "task_hash": task_hash}
    return JSONResponse(bests.all(of(request).database, wanted))


@router.post(
    "/best",
    response_model=shapes.Best,
    responses=problems(400, 401, 403, 404, 408, 409, 413, 429),
    openapi_extra=body_of(shapes.SwappedBest),
)
async def swap_best(request: Request, caller: Poster) -> Any:
    """Make a result the best of its platform and task; 409 when another one is than `expected`."""
    hub, who = of(request), caller.agent_id
    await run_in_threadpool(hub.count, KIND, who, address_of(request), hub.settings.hourly.results)
    wanted = await shaped(request, hub.settings.limits, shapes.SwappedBest)
    return JSONResponse(await run_in_threadpool(bests.swap, hub.database, wanted))
