"""What `status` and `monitor` show, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from autohypothesis.fleet.overview.standing import Best
from autohypothesis.schema import now


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a person should know of, and what to run about it."""

    what: str
    run: str = ""


@dataclass(frozen=True, slots=True)
class RoleView:
    """The supervisor, the observer, the tool-builder or a loop."""

    role: str
    state: str
    """Its own word while it lives, and after it said goodbye; else `dead` or `not started`."""
    alive: bool
    pid: int | None = None
    last_action: str = ""
    age_s: float | None = None
    """Since its last action."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, and what it does."""

    worker_id: str
    device: str
    state: str
    """As of a role; while it lives, a word of `schema.WorkerState`."""
    alive: bool
    pid: int | None = None
    state_s: float | None = None
    """How long it has been in its state."""
    age_s: float | None = None
    """Since its last word."""
    experiment_id: str | None = None
    hypothesis_id: str | None = None
    next_hypothesis_id: str | None = None
    title: str = ""
    progress: float | None = None
    """Share of the budget, 0 to 1."""
    loss: float | None = None
    tokens_per_second: float | None = None
    diff_stat: str = ""
    busy_share: float | None = None
    """Share of its life in which its device trained or scored."""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A hypothesis that is not begun."""

    hypothesis_id: str
    title: str
    state: str
    worker: str | None
    proposer: str
    priority: float


@dataclass(frozen=True, slots=True)
class Awaiting:
    """A win on one seed that is run again before it counts."""

    experiment_id: str
    missing: int
    wanted: int
    """Runs that confirm it, those that are there included."""
    found: str
    """Its value against that of its base."""

    @property
    def words(self) -> str:
        return f"awaits {self.missing} of {self.wanted} runs"


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that `status` shows."""

    root: str
    tag: str
    reference: str | None
    best: Best | None
    counts: dict[str, int]
    """Hypotheses of the tag: pending, dispatched, running, done."""
    experiments: int | None
    decided: int | None
    keep_rate: float | None
    roles: list[RoleView]
    workers: list[WorkerView]
    waiting: list[Waiting]
    """The first few that are not begun."""
    awaiting: list[Awaiting]
    """Wins to be confirmed, as the observer last saw it."""
    needs: list[Need]
    next_command: str
    generated_at: datetime = field(default_factory=now)

    @property
    def alive(self) -> bool:
        """Whether any process of the fleet lives."""
        return any_alive(self.roles, self.workers)


def any_alive(roles: Iterable[RoleView], workers: Iterable[WorkerView]) -> bool:
    return any(role.alive for role in roles) or any(worker.alive for worker in workers)
