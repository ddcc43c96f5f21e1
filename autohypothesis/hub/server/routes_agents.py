"""Routes about agents: how one gets in, and what an administrator does."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from autohypothesis.hub.server import agents, shapes
from autohypothesis.hub.server.bodies import json_object, require_json
from autohypothesis.hub.server.hub import Admin, address_of, of
from autohypothesis.hub.server.refusals import RefusedError
from autohypothesis.hub.server.shapes import json_body, problems

router = APIRouter()
_ID = {"type": "string", "pattern": f"^{agents.NAME.pattern}$"}
_ROLE = {"type": "string", "enum": list(agents.ROLES)}


@router.post(
    "/api/register",
    status_code=201,
    response_model=shapes.Key,
    responses=problems(400, 403, 408, 409, 413, 415, 429),
    openapi_extra=json_body(("id",), id=_ID),
)
async def register(request: Request) -> Any:
    """A new agent and its key, which is shown once."""
    hub = of(request)
    if not hub.settings.open_registration:
        raise RefusedError(
            403,
            "registration is closed on this hub",
            hint="ask its operator for a key: `orchestrator.py hub admin create NAME --data DIR`",
        )
    require_json(request)
    most = hub.settings.hourly.registrations
    await run_in_threadpool(hub.count, "registration", None, address_of(request), most)
    body = await json_object(request, hub.settings.limits)
    key = await run_in_threadpool(agents.create, hub.database, body.get("id"))
    return JSONResponse({"id": body["id"], "api_key": key}, 201)


@router.post(
    "/api/admin/agents",
    status_code=201,
    response_model=shapes.Key,
    responses=problems(400, 401, 403, 408, 409, 413, 429),
    openapi_extra=json_body(("id",), id=_ID, role=_ROLE),
)
async def create(request: Request, _: Admin) -> Any:
    """A new agent, also when registration is closed; `role` is push unless said."""
    hub = of(request)
    body = await json_object(request, hub.settings.limits)
    role = body.get("role", "push")
    key = await run_in_threadpool(agents.create, hub.database, body.get("id"), role)
    return JSONResponse({"id": body["id"], "api_key": key}, 201)


@router.get(
    "/api/admin/agents",
    response_model=list[shapes.Agent],
    responses=problems(401, 403, 429),
)
def listing(request: Request, _: Admin) -> Any:
    """Every agent, by name; no key and no hash of one."""
    return JSONResponse(agents.listing(of(request).database))


@router.post(
    "/api/admin/agents/{name}/rotate",
    response_model=shapes.Key,
    responses=problems(400, 401, 403, 404, 429),
)
def rotate(request: Request, name: str, _: Admin) -> Any:
    """A new key in place of the old one."""
    return JSONResponse({"id": name, "api_key": agents.rotate(of(request).database, name)})


@router.post(
    "/api/admin/agents/{name}/revoke",
    status_code=204,
    response_model=None,
    responses=problems(400, 401, 403, 404, 429),
)
def revoke(request: Request, name: str, _: Admin) -> None:
    """From here on no key of this agent is worth anything."""
    agents.revoke(of(request).database, name)
