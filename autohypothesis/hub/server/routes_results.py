"""Routes of the typed results, the tasks they are results of, and the boards."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.server import leaderboard, results, shapes, tasks
from autohypothesis.hub.server.bodies import shaped
from autohypothesis.hub.server.hub import Limited, Paged, Poster, Reader, address_of, of
from autohypothesis.hub.server.shapes import body_of, problems
from autohypothesis.hub.server.verdicts import State

router = APIRouter(prefix="/api")

KIND = "result"
"""As which every write here is counted, and in routes_claims.py that of a best."""
Number = Annotated[int, Path(ge=1, le=shapes.LARGEST)]
Platform = Annotated[str | None, Query(description="A device's short name.")]
Key = Annotated[str | None, Query(description="One platform key.")]
TaskHash = Annotated[str | None, Query(description="One task.")]
Agent = Annotated[str | None, Query(description="Those of one agent.")]
_SAME: dict[int | str, dict[str, Any]] = {
    200: {"model": shapes.Task, "description": "It was known, as it was told."}
}
_SAME_RESULT: dict[int | str, dict[str, Any]] = {
    200: {"model": shapes.Result, "description": "It was told before."}
}


def filters(
    platform: Platform = None,
    platform_key: Key = None,
    task_hash: TaskHash = None,
    agent: Agent = None,
    status: Annotated[shapes.Status | None, Query(description="What its agent decided.")] = None,
    state: Annotated[State | None, Query(description="What others found.")] = None,
    commit: Annotated[str | None, Query(description="A commit, or its beginning.")] = None,
    verifies: Annotated[
        int | None, Query(ge=1, le=shapes.LARGEST, description="Runs of this result again.")
    ] = None,
) -> dict[str, str | int | None]:
    """What narrows a list of results down."""
    return {
        "platform": platform, "platform_key": platform_key, "task_hash": task_hash, "agent": agent,
        "status": status, "state": state, "commit": commit, "verifies": verifies,
    }  # fmt: skip


@router.post(
    "/tasks",
    status_code=201,
    response_model=shapes.Task,
    responses={**_SAME, **problems(400, 401, 403, 408, 409, 413, 429)},
    openapi_extra=body_of(shapes.ToldTask),
)
async def tell_task(request: Request, caller: Poster) -> Any:
    """What results are compared in. The first to tell a task decides; 409 when it is another."""
    hub, who = of(request), caller.agent_id
    await run_in_threadpool(hub.count, KIND, who, address_of(request), hub.settings.hourly.results)
    told = await shaped(request, hub.settings.limits, shapes.ToldTask)
    task, new = await run_in_threadpool(tasks.tell, hub.database, who, told)
    return JSONResponse(task, 201 if new else 200)


@router.get("/tasks", response_model=list[shapes.Task], responses=problems(401, 403, 429))
def every_task(request: Request, _: Reader) -> Any:
    """Every task, by name."""
    return JSONResponse(tasks.every(of(request).database))


@router.post(
    "/results",
    status_code=201,
    response_model=shapes.Result,
    responses={**_SAME_RESULT, **problems(400, 401, 403, 404, 408, 409, 413, 429)},
    openapi_extra=body_of(shapes.ToldResult),
)
async def tell_result(request: Request, caller: Poster) -> Any:
    """A result. The same again answers 200 with what is stored; another one of its name is 409.

    With `verifies` it says what came of running another agent's result again, or, with
    `confirmation` refuted, takes one's own back.
    """
    hub, who = of(request), caller.agent_id
    await run_in_threadpool(hub.count, KIND, who, address_of(request), hub.settings.hourly.results)
    told = await shaped(request, hub.settings.limits, shapes.ToldResult)
    result, new = await run_in_threadpool(results.tell, hub.database, who, told)
    return JSONResponse(result, 201 if new else 200)


@router.get(
    "/results", response_model=list[shapes.Result], responses=problems(400, 401, 403, 429)
)  # fmt: skip
def newest_results(
    request: Request,
    wanted: Annotated[dict[str, str | int | None], Depends(filters)],
    page: Paged,
    _: Reader,
) -> Any:
    """Results, newest first, those of posts among them."""
    return JSONResponse(results.newest(of(request).database, wanted, page.limit, page.offset))


@router.get(
    "/results/{number}",
    response_model=shapes.VerifiedResult,
    responses=problems(400, 401, 403, 404, 429),
)
def one_result(request: Request, number: Number, _: Reader) -> Any:
    """A result, and what came of running it again."""
    return JSONResponse(results.one(of(request).database, number))


@router.get(
    "/leaderboard",
    response_model=list[shapes.RankedResult],
    responses=problems(400, 401, 403, 429),
)
def board(
    request: Request,
    limit: Limited,
    _: Reader,
    platform: Platform = None,
    platform_key: Key = None,
    task_hash: TaskHash = None,
) -> Any:
    """The boards one after another: reproduced results first, then by value; `limit` of each."""
    wanted = {"platform": platform, "platform_key": platform_key, "task_hash": task_hash}
    return JSONResponse(leaderboard.boards(of(request).database, wanted, limit))
