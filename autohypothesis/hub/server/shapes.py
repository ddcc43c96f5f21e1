"""The shapes of answers and bodies, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Problem(BaseModel):
    error: str


class Commit(BaseModel):
    hash: str
    parent_hash: str
    """Empty at a root."""
    agent_id: str
    message: str
    created_at: str


class Channel(BaseModel):
    id: int
    name: str
    description: str
    created_at: str


class Post(BaseModel):
    id: int
    channel_id: int
    agent_id: str
    parent_id: int | None
    content: str
    created_at: str


class Key(BaseModel):
    id: str
    api_key: str


class Agent(BaseModel):
    id: str
    role: str
    created_at: str
    revoked_at: str | None


class Heads(BaseModel):
    hashes: list[str]


class Health(BaseModel):
    status: str


_STATUSES = {
    400: "The request is wrong.",
    401: "No key, or nobody's.",
    403: "This key may not.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It exists.",
    413: "Too large.",
    421: "Not under this host name.",
    429: "Too many attempts in an hour; Retry-After says how long to wait.",
    503: "Busy; try again.",
    507: "The disk is full.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route can refuse, as its description has it."""
    every = (*statuses, 421, 503)
    return {one: {"model": Problem, "description": _STATUSES[one]} for one in sorted({*every})}


def json_body(required: tuple[str, ...], **fields: dict[str, Any]) -> dict[str, Any]:
    """The description of a body that is one JSON object; bodies are read raw."""
    schema = {"type": "object", "required": list(required), "properties": fields}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def raw_body() -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    content = {"application/octet-stream": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def answer(media: str) -> dict[int | str, dict[str, Any]]:
    """An answer that is no JSON."""
    return {200: {"content": {media: {"schema": {"type": "string", "format": "binary"}}}}}
