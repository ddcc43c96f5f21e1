"""Claimed results of others, queued for workers that have nothing better to do.

The run is a hypothesis like any other: it may win here. What it came to is told as a verification,
and the hub decides by the task's own min_delta whether it reproduces the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, UsageError
from autohypothesis.fleet.hub_sync import incoming
from autohypothesis.fleet.observer.proposals import suggest
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.hub.client import sharing
from autohypothesis.hub.client.refusals import PassingError
from autohypothesis.hub.client.typed import TypedHub
from autohypothesis.hub.client.wire import Result
from autohypothesis.hub.fleet.listening import others
from autohypothesis.records.ledger import read_ledger

BOARD = 200


class Queued(NamedTuple):
    """What became of one result."""

    result: int
    agent: str
    description: str
    hypothesis_id: str | None
    reason: str = ""
    """Why it is not queued."""


def verify(
    hub: TypedHub, agent: str, project: Project, wanted: Sequence[int], most: int
) -> list[Queued]:
    """Queue runs of `wanted` results; without any, of those on our platforms that are only claimed.

    Raises:
        UsageError: nothing has run here yet, so no result can be compared.
        HubError: the hub does not answer, or has no such result.
    """
    keys = sorted({str(row["platform_key"]) for row in read_ledger(project.layout)} - {"", "None"})
    if not keys:
        raise UsageError(
            "nothing has run here yet, so it is not known which results can be compared",
            hint="run the baseline first: python orchestrator.py up",
        )
    queue = Queue(project.layout, project.active())
    known = queue.sources()
    chosen = [hub.result(number) for number in wanted] or _claimed(hub, agent, keys, known)
    return [_queue(hub, agent, project, queue, known, keys, one) for one in chosen[:most]]


def _claimed(hub: TypedHub, agent: str, keys: Sequence[str], known: dict[str, str]) -> list[Result]:
    board = [row for key in keys for row in hub.leaderboard(platform_key=key, limit=BOARD)]
    return [
        row
        for row in board
        if row.agent_id != agent
        and row.state == "claimed"
        and row.task_hash
        and incoming.source_id_of(row.id) not in known
    ]


def _queue(
    hub: TypedHub,
    agent: str,
    project: Project,
    queue: Queue,
    known: dict[str, str],
    keys: Sequence[str],
    one: Result,
) -> Queued:
    found = Queued(one.id, one.agent_id, one.description, None)
    if reason := _why_not(one, agent, keys, known):
        return found._replace(reason=reason)
    try:
        commit = sharing.fetch(hub, project.repository, one.commit).commit.hash
        told = others(one).model_copy(update={"commit": commit})
        wish = incoming.proposal_from_result(told, priority=incoming.VERIFY_PRIORITY)
        return found._replace(
            hypothesis_id=suggest(project, queue, wish, proposer=incoming.HUB_PROPOSER)
        )
    except PassingError:
        raise
    except AutohypothesisError as error:
        return found._replace(reason=error.problem)


def _why_not(one: Result, agent: str, keys: Sequence[str], known: dict[str, str]) -> str:
    if one.agent_id == agent:
        return "it is our own"
    if one.platform_key not in keys:
        return f"it is of another platform: {one.platform}"
    if one.value is None or one.verifies is not None:
        return "it claims no value of its own"
    if (before := known.get(incoming.source_id_of(one.id))) is not None:
        return f"it is {before} here"
    return ""
