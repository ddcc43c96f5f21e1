"""A fleet's dealings with a hub beside the courier: the task, claims, results to verify."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import read_reference
from autohypothesis.engine.task import protected_blobs, task_hash
from autohypothesis.errors import (
    AutohypothesisError,
    HubError,
    LaunchError,
    SecretError,
    UsageError,
)
from autohypothesis.fleet.hub_sync import incoming
from autohypothesis.fleet.hub_sync.incoming import ClaimAnswer, ClaimRequest, hub_connection
from autohypothesis.fleet.hub_sync.outgoing import PublishedHistory
from autohypothesis.fleet.observer.proposals import propose_checked
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.client.http import (
    HURRIED,
    HubConflictError,
    HubNotFoundError,
    HubUnavailableError,
)
from autohypothesis.hub.client.hub import HubClient, fetch
from autohypothesis.hub.protocol import HubResult
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import OthersResult

SILENT_S = 30.0
"""Seconds without questions after one that had no answer."""
_BOARD = 200

TaskTerms = Mapping[str, str | float]

# ── the task ────────────────────────────────────────────────────────────────────────────────


def task_terms(project: Project) -> TaskTerms:
    """The body of `POST /api/tasks` for the active search, else for HEAD; without a baseline.

    `data_hash` is empty where a task has no data of its own, or has none prepared yet.
    """
    repository, task = project.repository, project.task
    blobs = protected_blobs(task, repository.entries(_start(project)))
    try:
        inputs = locate_inputs(task, project.layout.root, project.layout.root, os.environ)
    except LaunchError:
        inputs = Inputs()
    return {
        "task_hash": task_hash(task, blobs),
        "name": task.id,
        "metric": task.objective.metric,
        "direction": task.objective.direction,
        "min_delta": task.objective.min_delta,
        "profile": inputs.profile,
        "data_hash": inputs.data_hash,
    }


def refuse_other_task(hub: HubClient, terms: TaskTerms) -> None:
    """Check that the hub has no other task of this name, and no other data.

    A hub without typed routes compares nothing.

    Raises:
        HubError: naming what differs.
    """
    try:
        known = hub.tasks()
    except HubNotFoundError:
        return
    for task in known:
        if task.name != terms["name"]:
            continue
        if task.task_hash != terms["task_hash"]:
            raise _differs(hub, f"task {task.name!r}", task.task_hash, terms["task_hash"])
        there = task.data.get(str(terms["profile"]))
        if terms["data_hash"] and there and there != terms["data_hash"]:
            what = f"profile {terms['profile']!r} of task {task.name!r}: its data"
            raise _differs(hub, what, there, terms["data_hash"])


def tell_task(hub: HubClient, project: Project) -> None:
    """Tell the hub which task is searched here; a hub without typed routes is told nothing.

    Raises:
        HubError: it knows a task of this name with other files, terms or data.
    """
    baseline = PublishedHistory(project).baseline(_start(project))
    try:
        hub.tell_task({**task_terms(project), "baseline": baseline})
    except HubNotFoundError:
        return
    except HubConflictError as error:
        raise HubError(
            error.problem,
            hint="results of other tasks or data cannot be compared: use the hub's, or give the"
            " task another id",
        ) from None


def _start(project: Project) -> str:
    """The commit where the search stands, or would begin."""
    repository, tag = project.repository, project.tag
    return (tag and read_reference(repository, project.layout, tag)) or repository.head()


def _differs(hub: HubClient, what: str, theirs: str, ours: object) -> HubError:
    return HubError(
        f"{what} is {theirs[:12]} on {hub.server}, and {str(ours)[:12]} here",
        hint="the files that the task protects and the prepared data have to be the same; or give"
        " the task another id",
    )


# ── claims ──────────────────────────────────────────────────────────────────────────────────


class HubClaims:
    """Asks a hub for claims; where it does not answer at once, no worker waits."""

    def __init__(self, credentials: Credentials, layout: Layout) -> None:
        self._hub = credentials.client(HURRIED)
        self._layout = layout
        self._silent_until = 0.0
        self._turn = threading.Lock()

    def claim(self, idea: ClaimRequest) -> ClaimAnswer:
        with self._turn:
            if time.monotonic() < self._silent_until:
                return ClaimAnswer("unknown", "the hub has just not answered")
            if not (way := hub_connection(self._layout)).is_open:
                return ClaimAnswer("unknown", way.problem or "the hub cannot be reached")
            return self._ask(idea)

    def _ask(self, idea: ClaimRequest) -> ClaimAnswer:
        try:
            self._hub.claim(
                platform_key=idea.platform_key,
                task_hash=idea.task_hash,
                tree=idea.tree,
                title=idea.title[:200],
                lease_seconds=int(idea.lease_seconds),
            )
        except HubConflictError as error:
            return ClaimAnswer("refused", error.problem)
        except SecretError as error:
            return ClaimAnswer("unknown", error.problem)
        except HubError as error:
            self._silent_until = time.monotonic() + SILENT_S
            return ClaimAnswer("unknown", error.problem)
        return ClaimAnswer("granted")


# ── results of others ───────────────────────────────────────────────────────────────────────


class QueuedVerification(NamedTuple):
    """The outcome for one result that was to be verified."""

    result: int
    agent: str
    description: str
    hypothesis_id: str | None
    reason: str = ""
    """Why it is not queued."""


def verify(
    hub: HubClient, agent: str, project: Project, wanted: Sequence[int], most: int
) -> list[QueuedVerification]:
    """Queue runs of `wanted` results; without any, of those on our platforms that are only claimed.

    Such a run is a hypothesis like any other, which waits until no other idea does: it may win
    here. Its result is told as a verification, and the hub decides by the task's own min_delta
    whether it reproduces the claim.

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
    chosen: list[HubResult] = [hub.result(number) for number in wanted]
    if not wanted:
        board = [row for key in keys for row in hub.leaderboard(_BOARD, platform_key=key)]
        chosen += [
            row
            for row in board
            if row.state == "claimed" and row.task_hash and not _why_not(row, agent, keys, known)
        ]
    return [_queue(hub, project, queue, row, _why_not(row, agent, keys, known))
            for row in chosen[:most]]  # fmt: skip


def _queue(
    hub: HubClient, project: Project, queue: Queue, result: HubResult, reason: str
) -> QueuedVerification:
    queued = QueuedVerification(result.id, result.agent_id, result.description, None, reason)
    if reason:
        return queued
    try:
        commit = fetch(hub, project.repository, result.commit).commit.hash
        told = others_result(result).model_copy(update={"commit": commit})
        proposal = incoming.proposal_from_result(told, priority=incoming.VERIFY_PRIORITY)
        name = propose_checked(project, queue, proposal, proposer=incoming.HUB_PROPOSER)
        return queued._replace(hypothesis_id=name)
    except HubUnavailableError:
        raise
    except AutohypothesisError as error:
        return queued._replace(reason=error.problem)


def _why_not(result: HubResult, agent: str, keys: Sequence[str], known: dict[str, str]) -> str:
    if result.agent_id == agent:
        return "it is our own"
    if result.platform_key not in keys:
        return f"it is of another platform: {result.platform}"
    if result.value is None or result.verifies is not None:
        return "it claims no value of its own"
    if (before := known.get(incoming.source_id_of(result.id))) is not None:
        return f"it is {before} here"
    return ""


def others_result(result: HubResult) -> OthersResult:
    """A hub's result as the feed and the brief hold it."""
    return OthersResult.model_validate(result, from_attributes=True)
