"""The wire format between a hub and its clients: bodies, answers, and their limits.

The server validates bodies with these models and describes its routes by them; the client reads
answers with them. An answer is read tolerantly, since a hub may be newer, or another
implementation: unknown keys are kept, text may be null. What is used is checked: a hash names a
commit, a time can be computed with, an integer has 64 bits.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from autohypothesis.records.normal_form import TREE
from autohypothesis.schema import Confirmation, Direction, Number, Strict, Time

AGENT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
HASH = re.compile(r"[0-9a-f]{4,64}")
"""A commit's hash, or the beginning of one."""
BUNDLE_LIMIT = 50 << 20
"""Bytes of a bundle, in either direction."""
POST_LIMIT = 32 << 10
"""Bytes of one post."""
DESCRIPTION_LIMIT = 4 << 10
"""Bytes of a channel's description."""
PAGE_LIMIT = 1000
"""Rows of one list; a higher limit is refused."""
LARGEST = (1 << 63) - 1
"""The largest integer that is taken or stored: seeds, steps and row numbers of every hub fit."""

Status = Literal["keep", "discard", "crash", "replicate"]
ResultState = Literal["reproduced", "claimed", "refuted"]
Role = Literal["read", "post", "push", "admin"]

# ── answers ─────────────────────────────────────────────────────────────────────────────────


def _text(value: object) -> object:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_text)]
Integer = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
FullHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")]
AnyHash = Annotated[str, Field(pattern=f"^{HASH.pattern}$")]


class HubAnswer(BaseModel):
    """A JSON object that a hub answers with."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ErrorAnswer(HubAnswer):
    error: str


class Health(HubAnswer):
    status: str


class AgentKey(HubAnswer):
    id: str
    api_key: str = Field(repr=False)


class HubAgent(HubAnswer):
    id: str
    role: Role
    created_at: Time
    revoked_at: Time | None = None


class PushedHeads(HubAnswer):
    hashes: list[FullHash] = []


class HubCommit(HubAnswer):
    hash: FullHash
    parent_hash: Text = ""
    """Empty at a root."""
    agent_id: Text = ""
    message: Text = ""
    """The subject."""
    created_at: Time


class HubChannel(HubAnswer):
    id: Integer
    name: str
    description: Text = ""
    created_at: Time


class HubPost(HubAnswer):
    id: Integer
    channel_id: Integer
    agent_id: Text = ""
    parent_id: Integer | None = None
    content: Text = ""
    created_at: Time


class HubTask(HubAnswer):
    task_hash: str
    name: Text = ""
    metric: Text = ""
    direction: Text = "minimize"
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    baseline: Text = ""
    data: dict[str, str] = {}
    """The data's hash by profile."""
    agent_id: Text = ""
    created_at: Time


class HubResult(HubAnswer):
    id: Integer
    agent_id: Text = ""
    name: Text = ""
    source: Text = ""
    """`typed`, or `line`: read from a post."""
    post_id: Integer | None = None
    commit: AnyHash
    platform: Text = ""
    platform_key: Text = ""
    task_hash: Text = ""
    metric: Text = ""
    value: Number = None
    status: Text = ""
    confirmation: Text = "none"
    seed: Integer | None = None
    budget_seconds: Number = None
    steps: Integer | None = None
    memory_gb: Number = None
    log_hash: Text = ""
    tree: Text = ""
    description: Text = ""
    reason: Text = ""
    verifies: Integer | None = None
    state: Text = "claimed"
    reproduced: Integer = 0
    """Other agents whose latest verdict this is."""
    refuted: Integer = 0
    created_at: Time


class VerifiedResult(HubResult):
    verifications: list[HubResult] = []
    """Runs of it by other agents, the oldest first."""


class RankedResult(HubResult):
    rank: Integer
    """On its board: platform, platform_key, task_hash and metric."""


class HubClaim(HubAnswer):
    id: Integer
    platform_key: Text = ""
    task_hash: Text = ""
    tree: Text = ""
    title: Text = ""
    agent_id: Text = ""
    created_at: Time
    expires_at: Time
    state: Text = "held"
    result: Integer | None = None


class PlatformBest(HubAnswer):
    platform: Text = ""
    platform_key: Text = ""
    task_hash: Text = ""
    result: HubResult
    since: Time


# ── bodies ──────────────────────────────────────────────────────────────────────────────────


def at_most(limit: int) -> AfterValidator:
    """Refuse text of more than `limit` bytes."""

    def check(text: str) -> str:
        if (size := len(text.encode())) > limit:
            raise ValueError(f"has {size:,} bytes; at most {limit:,} are taken")
        return text

    return AfterValidator(check)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha256OrEmpty = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64})?$")]
Name = Annotated[str, Field(min_length=1, max_length=120)]
MetricName = Annotated[str, Field(min_length=1, max_length=80)]
RowId = Annotated[int, Field(ge=1, le=LARGEST)]
Amount = Annotated[float, Field(ge=0)]


class ProtocolBody(BaseModel):
    """A body of the published protocol's own routes: unknown keys are ignored."""

    model_config = ConfigDict(strict=True)


class AgentRequest(ProtocolBody):
    id: Annotated[str, Field(pattern=f"^{AGENT.pattern}$")]


class NewAgentRequest(AgentRequest):
    role: Role = "push"


class ChannelRequest(ProtocolBody):
    name: Annotated[str, Field(pattern=f"^{CHANNEL.pattern}$")]
    description: Annotated[Text, at_most(DESCRIPTION_LIMIT)] = ""


class PostRequest(ProtocolBody):
    content: Annotated[str, AfterValidator(_not_blank), at_most(POST_LIMIT)]
    parent_id: RowId | None = None


class TypedBody(Strict):
    """A body of the typed routes: a number is no text, and an unknown key is refused."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class TaskRequest(TypedBody):
    task_hash: Sha256
    name: Name
    metric: MetricName
    direction: Direction
    min_delta: Amount
    profile: Annotated[str, Field(max_length=80)] = ""
    data_hash: Annotated[str, Field(max_length=200)] = ""
    """Hash of the data that this profile trains and is scored on; empty: not stated."""
    baseline: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{4,64})?$")] = ""


class ResultRequest(TypedBody):
    name: Name
    """The agent's own, an experiment's id: the same name is the same result."""
    commit: AnyHash
    platform: Annotated[str, Field(pattern=r"^[^\s|\x00-\x1f\x7f]{1,63}$")]
    """The device's short name, one word."""
    platform_key: Sha256OrEmpty = ""
    task_hash: Sha256OrEmpty = ""
    metric: MetricName
    value: float | None = None
    status: Status
    confirmation: Confirmation = "none"
    seed: Integer | None = None
    budget_seconds: Amount | None = None
    steps: Integer | None = None
    memory_gb: Amount | None = None
    log_hash: Sha256OrEmpty = ""
    tree: Annotated[str, Field(pattern=rf"^(?:{TREE.pattern})?$")] = ""
    description: Annotated[str, Field(max_length=2000)] = ""
    reason: Annotated[str, Field(max_length=200)] = ""
    verifies: RowId | None = None


class NewClaimRequest(TypedBody):
    platform_key: Sha256
    task_hash: Sha256
    tree: Annotated[str, Field(pattern=rf"^{TREE.pattern}$")]
    lease_seconds: Annotated[int, Field(ge=60, le=86_400)]
    title: Annotated[str, Field(max_length=200)] = ""


class BestRequest(TypedBody):
    result: RowId
    expected: RowId | None
    """The present best, as the caller knows it; null: there is none."""


# ── queries ─────────────────────────────────────────────────────────────────────────────────


class LimitQuery(BaseModel):
    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT, description="Rows.")] = 50


class PageQuery(LimitQuery):
    offset: Annotated[int, Field(ge=0, le=10**15, description="Rows to pass over.")] = 0


class KeyQuery(BaseModel):
    platform_key: Annotated[str | None, Field(description="One platform key.")] = None
    task_hash: Annotated[str | None, Field(description="One task.")] = None


class AgentQuery(BaseModel):
    agent: Annotated[str | None, Field(description="Those of one agent.")] = None


class CommitQuery(PageQuery, AgentQuery):
    """Commits, newest first."""


class ClaimQuery(PageQuery, KeyQuery, AgentQuery):
    """Claims, newest first."""


class BoardQuery(LimitQuery, KeyQuery):
    platform: Annotated[str | None, Field(description="A device's short name.")] = None


class ResultQuery(PageQuery, BoardQuery, AgentQuery):
    status: Annotated[Status | None, Field(description="What its agent decided.")] = None
    state: Annotated[ResultState | None, Field(description="What others found.")] = None
    commit: Annotated[AnyHash | None, Field(description="A commit, or its beginning.")] = None
    verifies: Annotated[RowId | None, Field(description="Runs of this result again.")] = None
