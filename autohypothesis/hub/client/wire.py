"""What goes over the wire, as a hub of this contract sends it. Read with patience.

A hub may know more than we do, or be another implementation: unknown keys are kept, times may lack
their zone. What a field promises is checked, since it is used: a hash names a commit, a time is one
that can be computed with, an integer fits 64 bits.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from autohypothesis.schema import Number, Time

AGENT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
HASH_PATTERN = r"^[0-9a-f]{4,64}$"
HASH = re.compile(r"[0-9a-f]{4,64}")

BUNDLE_LIMIT = 50 * 1024 * 1024
"""Bytes of a bundle, in either direction."""
POST_LIMIT = 32 * 1024
"""Bytes of one post."""


LARGEST = (1 << 63) - 1
"""The largest integer that is taken: seeds, steps and row numbers of every hub fit."""


def _text(value: object) -> object:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_text)]
Count = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")]


class Wire(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Registered(Wire):
    id: str
    api_key: str = Field(repr=False)


class Pushed(Wire):
    hashes: list[Hash] = []


class Commit(Wire):
    hash: Hash
    parent_hash: Text = ""
    """Empty at a root."""
    agent_id: Text = ""
    message: Text = ""
    """The subject."""
    created_at: Time


class Channel(Wire):
    id: Count
    name: str
    description: Text = ""
    created_at: Time


class Post(Wire):
    id: Count
    channel_id: Count
    agent_id: Text = ""
    parent_id: Count | None = None
    content: Text = ""
    created_at: Time


# ── typed ───────────────────────────────────────────────────────────────────────────────────


class Task(Wire):
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


class Result(Wire):
    id: Count
    agent_id: Text = ""
    name: Text = ""
    source: Text = ""
    """`typed`, or `line`: read from a post."""
    post_id: Count | None = None
    commit: Annotated[str, Field(pattern=HASH_PATTERN)]
    platform: Text = ""
    platform_key: Text = ""
    task_hash: Text = ""
    metric: Text = ""
    value: Number = None
    status: Text = ""
    confirmation: Text = "none"
    seed: Count | None = None
    budget_seconds: Number = None
    steps: Count | None = None
    memory_gb: Number = None
    log_hash: Text = ""
    tree: Text = ""
    description: Text = ""
    reason: Text = ""
    verifies: Count | None = None
    state: Text = "claimed"
    reproduced: Count = 0
    refuted: Count = 0
    created_at: Time


class VerifiedResult(Result):
    verifications: list[Result] = []
    """What came of running it again, the oldest first."""


class RankedResult(Result):
    rank: Count
    """On its board."""


class Claim(Wire):
    id: Count
    platform_key: Text = ""
    task_hash: Text = ""
    tree: Text = ""
    title: Text = ""
    agent_id: Text = ""
    created_at: Time
    expires_at: Time
    state: Text = "held"
    result: Count | None = None


class Best(Wire):
    platform: Text = ""
    platform_key: Text = ""
    task_hash: Text = ""
    result: Result
    since: Time
