"""The shapes of answers and bodies, for the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from autohypothesis.hub.server.verdicts import State
from autohypothesis.schema import Confirmation, Direction, Strict

LARGEST = (1 << 63) - 1
"""The largest number that the database holds."""

HashOrNone = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64})?$")]
FullHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Tree = Annotated[str, Field(pattern=r"^n1:[0-9a-f]{40}$")]
Name = Annotated[str, Field(min_length=1, max_length=120)]
Metric = Annotated[str, Field(min_length=1, max_length=80)]
Number = Annotated[int, Field(ge=1, le=LARGEST)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0)]
Status = Literal["keep", "discard", "crash", "replicate"]


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


# ── typed bodies ────────────────────────────────────────────────────────────────────────────


class Body(Strict):
    """What is posted: a number is a number, no text that looks like one."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ToldTask(Body):
    task_hash: FullHash
    name: Name
    metric: Metric
    direction: Direction
    min_delta: Amount
    profile: Annotated[str, Field(max_length=80)] = ""
    data_hash: Annotated[str, Field(max_length=200)] = ""
    """Of what this profile trains and is scored on; empty: it is not said."""
    baseline: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{4,64})?$")] = ""


class ToldResult(Body):
    name: Name
    """The agent's own, an experiment's id: the same name is the same result."""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
    platform: Annotated[str, Field(pattern=r"^[^\s|\x00-\x1f\x7f]{1,63}$")]
    """The device's short name, one word."""
    platform_key: HashOrNone = ""
    task_hash: HashOrNone = ""
    metric: Metric
    value: float | None = None
    status: Status
    confirmation: Confirmation = "none"
    seed: Whole | None = None
    budget_seconds: Amount | None = None
    steps: Whole | None = None
    memory_gb: Amount | None = None
    log_hash: HashOrNone = ""
    tree: Annotated[str, Field(pattern=r"^(?:n1:[0-9a-f]{40})?$")] = ""
    description: Annotated[str, Field(max_length=2000)] = ""
    reason: Annotated[str, Field(max_length=200)] = ""
    verifies: Number | None = None


class WantedClaim(Body):
    platform_key: FullHash
    task_hash: FullHash
    tree: Tree
    lease_seconds: Annotated[int, Field(ge=60, le=86_400)]
    title: Annotated[str, Field(max_length=200)] = ""


class SwappedBest(Body):
    result: Number
    expected: Number | None
    """The present best, as the caller knows it; null: there is none."""


# ── typed answers ───────────────────────────────────────────────────────────────────────────


class Task(BaseModel):
    task_hash: str
    name: str
    metric: str
    direction: Direction
    min_delta: float
    baseline: str
    data: dict[str, str]
    """The data's hash by profile."""
    created_at: str
    agent_id: str


class Result(BaseModel):
    id: int
    agent_id: str
    name: str
    source: Literal["typed", "line"]
    post_id: int | None
    created_at: str
    commit: str
    platform: str
    platform_key: str
    task_hash: str
    metric: str
    value: float | None
    status: Status
    confirmation: Confirmation
    seed: int | None
    budget_seconds: float | None
    steps: int | None
    memory_gb: float | None
    log_hash: str
    tree: str
    description: str
    reason: str
    verifies: int | None
    state: State
    reproduced: int
    """Other agents whose latest verdict this is."""
    refuted: int


class VerifiedResult(Result):
    verifications: list[Result]
    """The oldest first."""


class RankedResult(Result):
    rank: int
    """Within its board: platform, platform_key, task_hash and metric."""


class Claim(BaseModel):
    id: int
    platform_key: str
    task_hash: str
    tree: str
    title: str
    agent_id: str
    created_at: str
    expires_at: str
    state: Literal["held", "done"]
    result: int | None


class Best(BaseModel):
    platform: str
    platform_key: str
    task_hash: str
    result: Result
    since: str


_STATUSES = {
    400: "The request is wrong.",
    401: "No key, or nobody's.",
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


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route can refuse, as its description has it."""
    every = (*statuses, 421, 503)
    return {one: {"model": Problem, "description": _STATUSES[one]} for one in sorted({*every})}


def json_body(required: tuple[str, ...], **fields: dict[str, Any]) -> dict[str, Any]:
    """The description of a body that is one JSON object; bodies are read raw."""
    schema = {"type": "object", "required": list(required), "properties": fields}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a body that `model` reads."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def raw_body() -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    content = {"application/octet-stream": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def answer(media: str) -> dict[int | str, dict[str, Any]]:
    """An answer that is no JSON."""
    return {200: {"content": {media: {"schema": {"type": "string", "format": "binary"}}}}}
