"""The routes for programs, each with the description of its body, answers and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import IO, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub import protocol
from autohypothesis.hub.protocol import LARGEST
from autohypothesis.hub.server import agents, boards, commits, posts, results, tasks
from autohypothesis.hub.server.agents import Caller
from autohypothesis.hub.server.database import Row
from autohypothesis.hub.server.intake import PushQuarantine
from autohypothesis.hub.server.refusals import disk_trouble
from autohypothesis.hub.server.service import (
    Admin,
    Attempt,
    Claimant,
    Poster,
    Reader,
    ResultTeller,
    Service,
    body,
    registrant,
    service_of,
    write_body,
)

router = APIRouter()
Route = TypeVar("Route", bound=Callable[..., Any])
RowNumber = Annotated[int, Path(ge=1, le=LARGEST)]
PostNumber = Annotated[int, Path(ge=0)]
AgentBody = Annotated[protocol.AgentRequest, Depends(body(protocol.AgentRequest))]
BestBody = Annotated[protocol.BestRequest, Depends(body(protocol.BestRequest))]
ChannelBody = Annotated[protocol.ChannelRequest, Depends(body(protocol.ChannelRequest))]
ClaimBody = Annotated[protocol.NewClaimRequest, Depends(body(protocol.NewClaimRequest))]
NewAgentBody = Annotated[protocol.NewAgentRequest, Depends(body(protocol.NewAgentRequest))]
PostBody = Annotated[protocol.PostRequest, Depends(body(protocol.PostRequest))]
ResultBody = Annotated[protocol.ResultRequest, Depends(body(protocol.ResultRequest))]
TaskBody = Annotated[protocol.TaskRequest, Depends(body(protocol.TaskRequest))]
PostAttempt = Annotated[Caller, Depends(Attempt("post", "posts"))]
PushAttempt = Annotated[Caller, Depends(Attempt("push", "pushes", "push"))]
DiffAttempt = Annotated[Caller, Depends(Attempt("diff", "diffs", "read"))]
_PIECE = 256 << 10
_ROWS = 500
"""Of a lineage, sent together."""

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


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, as its description has them."""
    every = sorted({*statuses, 421, 503})
    return {
        status: {"model": protocol.ErrorAnswer, "description": _STATUSES[status]}
        for status in every
    }


def _get(path: str, answer: Any, *statuses: int) -> Callable[[Route], Route]:
    responses = _problems(401, 403, 429, *statuses)
    return router.get(path, response_model=answer, responses=responses)


def _post(
    path: str, model: type[BaseModel], answer: Any, *statuses: int, status: int = 201,
    again: str = "",
) -> Callable[[Route], Route]:  # fmt: skip
    """A route that takes a JSON body; bodies are read raw, so they are described here.

    `again`: what a 200 in place of the 201 means.
    """
    content = {"application/json": {"schema": model.model_json_schema()}}
    same: dict[int | str, dict[str, Any]] = {}
    if again:
        same[200] = {"model": answer, "description": again}
    return router.post(
        path, status_code=status, response_model=answer,
        responses={**same, **_problems(400, 403, 408, 413, 429, *statuses)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )  # fmt: skip


def _raw(media: str) -> dict[str, Any]:
    return {"content": {media: {"schema": {"type": "string", "format": "binary"}}}}


@router.get("/api/health", response_model=protocol.Health, responses=_problems(503))
def health(hub: Service) -> Any:
    """Whether the database and the repository answer."""
    hub.check()
    return JSONResponse({"status": "ok"})


# ── agents ──────────────────────────────────────────────────────────────────────────────────


@_post("/api/register", protocol.AgentRequest, protocol.AgentKey, 409, 415)
def register(hub: Service, _: Annotated[None, Depends(registrant)], wanted: AgentBody) -> Any:
    """A new agent and its key, which is shown once."""
    key = agents.create(hub.database, wanted.id)
    return JSONResponse({"id": wanted.id, "api_key": key}, 201)


@_post("/api/admin/agents", protocol.NewAgentRequest, protocol.AgentKey, 401, 409)
def create_agent(hub: Service, _: Admin, wanted: NewAgentBody) -> Any:
    """A new agent, also when registration is closed; `role` is push unless said."""
    key = agents.create(hub.database, wanted.id, wanted.role)
    return JSONResponse({"id": wanted.id, "api_key": key}, 201)


@_get("/api/admin/agents", list[protocol.HubAgent])
def every_agent(hub: Service, _: Admin) -> Any:
    """Every agent, by name; no key and no hash of one."""
    return JSONResponse(agents.every_agent(hub.database))


@router.post(
    "/api/admin/agents/{name}/rotate",
    response_model=protocol.AgentKey,
    responses=_problems(400, 401, 403, 404, 429),
)
def rotate(hub: Service, name: str, _: Admin) -> Any:
    """A new key in place of the old one."""
    return JSONResponse({"id": name, "api_key": agents.rotate(hub.database, name)})


@router.post(
    "/api/admin/agents/{name}/revoke",
    status_code=204,
    response_model=None,
    responses=_problems(400, 401, 403, 404, 429),
)
def revoke(hub: Service, name: str, _: Admin) -> None:
    """From here on no key of this agent is worth anything."""
    agents.revoke(hub.database, name)


# ── channels and posts ──────────────────────────────────────────────────────────────────────


@_get("/api/channels", list[protocol.HubChannel])
def all_channels(hub: Service, _: Reader) -> Any:
    """Every channel, by name."""
    return JSONResponse(posts.all_channels(hub.database))


@_post("/api/channels", protocol.ChannelRequest, protocol.HubChannel, 401, 409)
def make_channel(hub: Service, _: Poster, wanted: ChannelBody) -> Any:
    """A new channel; 409 when there is one of that name."""
    most = hub.settings.limits.channels
    return JSONResponse(posts.make_channel(hub.database, wanted, most), 201)


@_get("/api/channels/{name}/posts", list[protocol.HubPost], 400, 404)
def in_channel(
    hub: Service, name: str, page: Annotated[protocol.PageQuery, Query()], _: Reader
) -> Any:
    """The posts of a channel, newest first, replies among them."""
    return JSONResponse(posts.in_channel(hub.database, name, page.limit, page.offset))


def _channel(hub: Service, name: str) -> Row:
    """A dependency: the channel, which is looked for before the body is read."""
    return posts.channel(hub.database, name)


@_post("/api/channels/{name}/posts", protocol.PostRequest, protocol.HubPost, 401, 404)
def make_post(
    hub: Service, caller: PostAttempt, channel: Annotated[Row, Depends(_channel)], said: PostBody
) -> Any:
    """A new post, markdown; with `parent_id` a reply."""
    return JSONResponse(posts.make_post(hub.database, channel, caller.agent_id, said), 201)


@_get("/api/posts/{number}", protocol.HubPost, 400, 404)
def post(hub: Service, number: PostNumber, _: Reader) -> Any:
    """One post."""
    return JSONResponse(posts.post(hub.database, number))


@_get("/api/posts/{number}/replies", list[protocol.HubPost], 400, 404)
def replies(hub: Service, number: PostNumber, _: Reader) -> Any:
    """The replies to a post, oldest first."""
    return JSONResponse(posts.replies(hub.database, number))


# ── commits ─────────────────────────────────────────────────────────────────────────────────


@router.post(
    "/api/git/push",
    status_code=201,
    response_model=protocol.PushedHeads,
    responses=_problems(400, 401, 403, 408, 413, 429, 507),
    openapi_extra={"requestBody": {"required": True, **_raw("application/octet-stream")}},
)
async def push(request: Request, caller: PushAttempt) -> Any:
    """A git bundle, as the raw body; the commits it leads to, once all of it is indexed."""
    intake = service_of(request).intake
    try:
        quarantine = await run_in_threadpool(intake.quarantine)
    except OSError as error:
        raise disk_trouble(error) from error
    await _receive(request, quarantine)
    heads = await run_in_threadpool(intake.take, quarantine, caller.agent_id)
    return JSONResponse({"hashes": heads}, 201)


async def _receive(request: Request, quarantine: PushQuarantine) -> None:
    """The body into quarantine; if that fails the quarantine is gone."""
    try:
        with quarantine.body.open("wb") as target:
            await write_body(request, target)
    except OSError as error:
        quarantine.remove()
        raise disk_trouble(error) from error
    except BaseException:
        quarantine.remove()
        raise


@router.get(
    "/api/git/fetch/{name}",
    response_class=Response,
    responses={
        200: _raw("application/octet-stream"), **_problems(400, 401, 403, 404, 413, 429, 507)
    },
)  # fmt: skip
def fetch(hub: Service, name: str, _: Reader) -> Response:
    """A self-contained bundle of the commit and its history."""
    commit = commits.required(hub.database, name)
    try:
        content = hub.store.bundle(commit)
    except OSError as error:
        raise disk_trouble(error) from error
    size = content.seek(0, 2)
    content.seek(0)
    headers = {"Content-Length": str(size), "Content-Disposition": f"filename={commit}.bundle"}
    media = "application/octet-stream"
    return StreamingResponse(_sent(content), media_type=media, headers=headers)


def _sent(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(_PIECE):
            yield piece


@_get("/api/git/commits", list[protocol.HubCommit], 400)
def newest_commits(
    hub: Service, wanted: Annotated[protocol.CommitQuery, Query()], _: Reader
) -> Any:
    """Commits, newest first."""
    found = commits.newest(hub.database, wanted.agent, wanted.limit, wanted.offset)
    return JSONResponse(found)


@_get("/api/git/commits/{name}", protocol.HubCommit, 400, 404)
def one_commit(hub: Service, name: str, _: Reader) -> Any:
    """One commit, by its hash or an unambiguous beginning of it."""
    return JSONResponse(commits.one(hub.database, name))


@_get("/api/git/commits/{name}/children", list[protocol.HubCommit], 400)
def children(hub: Service, name: str, _: Reader) -> Any:
    """Commits on top of a commit, newest first; empty for one that is not known."""
    return JSONResponse(commits.children(hub.database, name))


@_get("/api/git/commits/{name}/lineage", list[protocol.HubCommit], 400)
def lineage(hub: Service, name: str, _: Reader) -> Any:
    """A commit, its parent, and so on to the root; empty for one that is not known."""
    found = commits.resolve(hub.database, name)
    rows = commits.lineage(hub.database, found) if found else iter(())
    return StreamingResponse(_array(rows), media_type="application/json")


def _array(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """A JSON array, in pieces."""
    yield "[" + ",".join(map(json.dumps, islice(rows, _ROWS)))
    for row in rows:
        more = chain((row,), islice(rows, _ROWS - 1))
        yield "".join("," + json.dumps(one) for one in more)
    yield "]"


@_get("/api/git/leaves", list[protocol.HubCommit])
def leaves(hub: Service, _: Reader) -> Any:
    """The frontier: commits without children, newest first."""
    return JSONResponse(commits.leaves(hub.database))


@router.get(
    "/api/git/diff/{old}/{new}",
    response_class=Response,
    responses={200: _raw("text/plain"), **_problems(400, 401, 403, 404, 413, 429, 507)},
)
def diff(hub: Service, old: str, new: str, _: DiffAttempt) -> Response:
    """The patch from one commit to another."""
    names = [commits.required(hub.database, name) for name in (old, new)]
    return Response(hub.store.diff(*names), media_type="text/plain; charset=utf-8")


# ── tasks and results ───────────────────────────────────────────────────────────────────────


@_post(
    "/api/tasks", protocol.TaskRequest, protocol.HubTask, 401, 409,
    again="It was known, as it was told.",
)  # fmt: skip
def tell_task(hub: Service, caller: ResultTeller, told: TaskBody) -> Any:
    """Tell a task, in which results are compared. The first to tell it decides; 409 for another."""
    task, new = tasks.tell(hub.database, caller.agent_id, told)
    return JSONResponse(task, 201 if new else 200)


@_get("/api/tasks", list[protocol.HubTask])
def every_task(hub: Service, _: Reader) -> Any:
    """Every task, by name."""
    return JSONResponse(tasks.every(hub.database))


@_post(
    "/api/results", protocol.ResultRequest, protocol.HubResult, 401, 404, 409,
    again="It was told before.",
)  # fmt: skip
def tell_result(hub: Service, caller: ResultTeller, told: ResultBody) -> Any:
    """A result. The same again answers 200 with what is stored; another one of its name is 409.

    With `verifies` it says what came of running another agent's result again, or, with
    `confirmation` refuted, takes one's own back.
    """
    result, new = results.tell(hub.database, caller.agent_id, told)
    return JSONResponse(result, 201 if new else 200)


@_get("/api/results", list[protocol.HubResult], 400)
def newest_results(
    hub: Service, wanted: Annotated[protocol.ResultQuery, Query()], _: Reader
) -> Any:
    """Results, newest first, those of posts among them."""
    return JSONResponse(results.newest(hub.database, wanted))


@_get("/api/results/{number}", protocol.VerifiedResult, 400, 404)
def one_result(hub: Service, number: RowNumber, _: Reader) -> Any:
    """A result, and what came of running it again."""
    return JSONResponse(results.one(hub.database, number))


@_get("/api/leaderboard", list[protocol.RankedResult], 400)
def leaderboard(hub: Service, wanted: Annotated[protocol.BoardQuery, Query()], _: Reader) -> Any:
    """The boards one after another: reproduced results first, then by value; `limit` of each."""
    return JSONResponse(boards.leaderboard(hub.database, wanted))


# ── claims and bests ────────────────────────────────────────────────────────────────────────


@_post("/api/claims", protocol.NewClaimRequest, protocol.HubClaim, 401, 409)
def claim(hub: Service, caller: Claimant, wanted: ClaimBody) -> Any:
    """Say that one works on this; one's own claim is renewed. 409 says who does, or did already."""
    return JSONResponse(tasks.claim(hub.database, caller.agent_id, wanted), 201)


@_get("/api/claims", list[protocol.HubClaim], 400)
def held_claims(hub: Service, wanted: Annotated[protocol.ClaimQuery, Query()], _: Reader) -> Any:
    """The claims that hold now, newest first."""
    return JSONResponse(tasks.held_claims(hub.database, wanted))


@_get("/api/claims/{number}", protocol.HubClaim, 400, 404)
def one_claim(hub: Service, number: RowNumber, _: Reader) -> Any:
    """A claim, and which result it led to."""
    return JSONResponse(tasks.one_claim(hub.database, number))


@router.delete(
    "/api/claims/{number}",
    status_code=204,
    response_model=None,
    responses=_problems(400, 401, 403, 404, 429),
)
def release_claim(hub: Service, number: RowNumber, caller: Claimant) -> None:
    """End one's own claim before it expires."""
    tasks.release(hub.database, caller.agent_id, number)


@_get("/api/best", list[protocol.PlatformBest])
def every_best(hub: Service, wanted: Annotated[protocol.KeyQuery, Query()], _: Reader) -> Any:
    """The best result of each platform key and task, by platform."""
    return JSONResponse(boards.every_best(hub.database, wanted))


@_post("/api/best", protocol.BestRequest, protocol.PlatformBest, 401, 404, 409, status=200)
def swap_best(hub: Service, _: ResultTeller, wanted: BestBody) -> Any:
    """Make a result the best of its platform and task; 409 when another one is than `expected`."""
    return JSONResponse(boards.swap_best(hub.database, wanted))
