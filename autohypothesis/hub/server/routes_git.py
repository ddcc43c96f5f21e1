"""Routes of the commits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.server import commits, shapes
from autohypothesis.hub.server.bodies import into_file
from autohypothesis.hub.server.hub import Paged, Pusher, Reader, address_of, of
from autohypothesis.hub.server.quarantine import Quarantine
from autohypothesis.hub.server.refusals import disk_trouble
from autohypothesis.hub.server.shapes import answer, problems, raw_body

router = APIRouter(prefix="/api/git")
_PIECE = 256 << 10
_ROWS = 500
"""Of a lineage, sent together."""


@router.post(
    "/push",
    status_code=201,
    response_model=shapes.Heads,
    responses=problems(400, 401, 403, 408, 413, 429, 507),
    openapi_extra=raw_body(),
)
async def push(request: Request, caller: Pusher) -> Any:
    """A git bundle, as the raw body; the commits it leads to, once all of it is indexed."""
    hub, who = of(request), caller.agent_id
    most = hub.settings.hourly.pushes
    await run_in_threadpool(hub.count, "push", who, address_of(request), most)
    try:
        quarantine = await run_in_threadpool(hub.intake.quarantine)
    except OSError as error:
        raise disk_trouble(error) from error
    await _receive(request, quarantine)
    heads = await run_in_threadpool(hub.intake.take, quarantine, who)
    return JSONResponse({"hashes": heads}, 201)


async def _receive(request: Request, quarantine: Quarantine) -> None:
    """The body into quarantine; if that fails the quarantine is gone."""
    try:
        with quarantine.body.open("wb") as target:
            await into_file(request, target, of(request).settings.limits)
    except OSError as error:
        quarantine.remove()
        raise disk_trouble(error) from error
    except BaseException:
        quarantine.remove()
        raise


@router.get(
    "/fetch/{name}",
    response_class=Response,
    responses={
        **answer("application/octet-stream"), **problems(400, 401, 403, 404, 413, 429, 507)
    },
)  # fmt: skip
def fetch(request: Request, name: str, _: Reader) -> Response:
    """A self-contained bundle of the commit and its history."""
    hub = of(request)
    found = commits.required(hub.database, name)
    try:
        content = hub.store.bundle(found)
    except OSError as error:
        raise disk_trouble(error) from error
    size = content.seek(0, 2)
    content.seek(0)
    headers = {"Content-Length": str(size), "Content-Disposition": f"filename={found}.bundle"}
    media = "application/octet-stream"
    return StreamingResponse(_sent(content), media_type=media, headers=headers)


def _sent(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(_PIECE):
            yield piece


@router.get("/commits", response_model=list[shapes.Commit], responses=problems(400, 401, 403, 429))
def newest(
    request: Request,
    page: Paged,
    _: Reader,
    agent: Annotated[str | None, Query(description="Those of one agent.")] = None,
) -> Any:
    """Commits, newest first."""
    return JSONResponse(commits.newest(of(request).database, agent, page.limit, page.offset))


@router.get(
    "/commits/{name}",
    response_model=shapes.Commit,
    responses=problems(400, 401, 403, 404, 429),
)
def one(request: Request, name: str, _: Reader) -> Any:
    """One commit, by its hash or an unambiguous beginning of it."""
    return JSONResponse(commits.one(of(request).database, name))


@router.get(
    "/commits/{name}/children",
    response_model=list[shapes.Commit],
    responses=problems(400, 401, 403, 429),
)
def children(request: Request, name: str, _: Reader) -> Any:
    """What was tried on top of a commit, newest first; empty for one that is not known."""
    hub = of(request)
    return JSONResponse(commits.children(hub.database, name, hub.settings.limits.page))


@router.get(
    "/commits/{name}/lineage",
    response_model=list[shapes.Commit],
    responses=problems(400, 401, 403, 429),
)
def lineage(request: Request, name: str, _: Reader) -> Any:
    """A commit, its parent, and so on to the root; empty for one that is not known."""
    database = of(request).database
    found = commits.resolve(database, name)
    rows = commits.lineage(database, found) if found else iter(())
    return StreamingResponse(_array(rows), media_type="application/json")


def _array(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """A JSON array, in pieces."""
    first = list(islice(rows, _ROWS))
    yield "[" + ",".join(map(json.dumps, first))
    for row in rows:
        more = chain((row,), islice(rows, _ROWS - 1))
        yield "".join("," + json.dumps(one) for one in more)
    yield "]"


@router.get("/leaves", response_model=list[shapes.Commit], responses=problems(401, 403, 429))
def leaves(request: Request, _: Reader) -> Any:
    """The frontier: commits without children, newest first."""
    hub = of(request)
    return JSONResponse(commits.leaves(hub.database, hub.settings.limits.page))


@router.get(
    "/diff/{old}/{new}",
    response_class=Response,
    responses={**answer("text/plain"), **problems(400, 401, 403, 404, 413, 429, 507)},
)
def diff(request: Request, old: str, new: str, caller: Reader) -> Response:
    """The patch from one commit to another."""
    hub = of(request)
    hub.count("diff", caller.agent_id, address_of(request), hub.settings.hourly.diffs)
    names = [commits.required(hub.database, name) for name in (old, new)]
    return Response(hub.store.diff(*names), media_type="text/plain; charset=utf-8")
