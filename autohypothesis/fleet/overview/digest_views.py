"""What `digest` shows, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from autohypothesis.fleet.overview.views import Need, Overview


@dataclass(frozen=True, slots=True)
class Step:
    """One kept experiment."""

    experiment_id: str
    title: str
    value: float | None
    gain: float | None
    """Over the reference before it, positive is better; None of a baseline."""
    gain_share: float | None
    confirmation: str
    reason: str
    at: datetime
    worker_id: str


@dataclass(frozen=True, slots=True)
class Crash:
    """Failures of one kind."""

    kind: str
    count: int
    example: str
    detail: str


@dataclass(frozen=True, slots=True)
class Use:
    """What one worker's device did."""

    worker_id: str
    experiments: int
    device_hours: float
    busy_share: float | None
    """From the start of its first experiment to the end of its last, or to now while it lives."""
    idle_share: float | None
    busy_share_now: float | None
    """As its own heartbeat gives it, since it was started."""


@dataclass(frozen=True, slots=True)
class Record:
    """How one proposer's ideas fared; replicates, baselines and faults of the machine left out."""

    proposer: str
    tried: int
    kept: int
    hit_rate: float
    predictions: int
    """Of those tried, how many came with a prediction and have a value."""
    right_direction: float | None
    """Share of the predicted changes that went the way that was foreseen."""
    mean_error: float | None
    """Mean of |predicted - measured change|, in the metric's unit."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Everything that `digest` shows."""

    tag: str
    metric: str
    since: datetime | None
    until: datetime
    hours: float
    """From the first experiment's start in the window to its last decision or end."""
    decided: dict[str, int]
    """By decision status."""
    experiments_per_hour: float | None
    kept: list[Step]
    confirmed: list[str]
    """Kept after they were met again at further seeds."""
    provisional: list[str]
    refuted: list[str]
    """Kept, and found to be nothing later."""
    not_confirmed: list[str]
    """Wins on one seed that were not kept, since they were none at others."""
    crashes: list[Crash]
    device_hours: float
    idle_share: float | None
    workers: list[Use]
    proposers: list[Record]
    overview: Overview
    first: list[Need] = field(default_factory=list)
    """What to look at first, the most pressing first."""
