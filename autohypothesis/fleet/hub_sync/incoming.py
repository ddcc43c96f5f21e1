"""News of other fleets: the hub's feed, their results as proposals, and claims.

A worker asks whether another fleet tries the same change once a candidate is made, while its device
still trains the one before. What is refused is not run; where no hub answers, the candidate is run
all the same, and recorded as unclaimed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from typing import Literal, NamedTuple

from autohypothesis.engine import runner
from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, ChangeError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import cut
from autohypothesis.records.files import FileStamp, file_stamp, load_or_none, write_json
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.normal_form import tree_of
from autohypothesis.schema import (
    HubFeed,
    Hypothesis,
    Metadata,
    OthersResult,
    Plan,
    Proposal,
    Runtime,
)
from autohypothesis.schema import Others as Quoted

_FEED_LIMIT = 1 << 20
_LINE = 280
_RESULTS, _FRONTIER, _DISCUSSION = 16, 8, 8


class HubConnection(NamedTuple):
    """The state of the connection, as the courier reports it."""

    is_open: bool
    """The last request got an answer."""
    problem: str = ""


def hub_connection(layout: Layout) -> HubConnection:
    """Return the connection by the courier's status, while it lives."""
    status = presence.read_role(layout, presence.COURIER)
    if status is None or not presence.role_lives(status):
        return HubConnection(False, "no courier is at work")
    return HubConnection(bool(status.details.get("reachable")), "; ".join(status.problems))


class FeedReader:
    """Reads the courier's last feed when it changed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._seen: FileStamp | None = None
        self._heard: HubFeed | None = None

    def heard(self) -> HubFeed | None:
        """Return the feed; None before the first."""
        signature = file_stamp(self._layout.hub_feed)
        if signature != self._seen:
            self._seen = signature
            self._heard = load_or_none(HubFeed, self._layout.hub_feed, _FEED_LIMIT)
        return self._heard


def summarize_feed(feed: HubFeed | None) -> Quoted | None:
    """Return the feed for the brief: a short line for each entry."""
    if feed is None:
        return None
    results = [*feed.board, *feed.results][:_RESULTS]
    return Quoted(
        server=feed.server[:200],
        results=[_line(result.agent_id, _summary(result)) for result in results],
        frontier=[
            _line(commit.agent_id, f"{commit.hash[:7]} {commit.message}")
            for commit in feed.frontier[:_FRONTIER]
        ],
        discussion=[_line(post.agent_id, post.content) for post in feed.discussion[:_DISCUSSION]],
    )


def _summary(result: OthersResult) -> str:
    value = "no value" if result.value is None else f"{result.metric} {result.value:g}"
    how = f"{result.state} by {result.reproduced}" if result.reproduced else result.state
    about = f"{result.commit[:7]} on {result.platform}: {value}, {result.status}, {how}"
    return f"{about}: {result.description}"


def _line(agent: str, text: str) -> str:
    """Return one line without control characters, so that it cannot look like a section of ours."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return cut(f"{agent} said: {words}", _LINE)


HUB_PROPOSER = "hub"
_SOURCE = re.compile(r"hub-result-([0-9]{1,18})")
BETTER_PRIORITY = 50.0
"""Priority of reported improvements: before new ideas, after the fleet's own needs."""
VERIFY_PRIORITY = -50.0
"""Priority of verifications: when nothing else waits."""


def source_id_of(result: int) -> str:
    return f"hub-result-{result}"


def result_number(idea: Proposal) -> int | None:
    """Return the number of the result that a proposal repeats; None for any other."""
    found = _SOURCE.fullmatch(idea.source_id)
    return int(found[1]) if found else None


def proposal_from_result(result: OthersResult, *, priority: float) -> Proposal:
    """Return the proposal to run another agent's commit here, before its result is believed."""
    value = "" if result.value is None else f", {result.metric} {result.value:g}"
    return Proposal(
        title=f"{result.agent_id}'s {result.commit[:7]}: {result.description}"[:200],
        rationale=(
            f"agent {result.agent_id} tells of it on {result.platform}{value}"
            f" ({result.state}); what it is worth here, a run here says"
        ),
        artifacts_from=result.commit,
        priority=priority,
        source_id=source_id_of(result.id),
    )


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A change, as the artifacts that it leads to, on a platform, for a task."""

    platform_key: str
    task_hash: str
    tree: str
    """`n1:<hash>`, see `records.normal_form`."""
    title: str
    lease_seconds: float
    """Duration of the claim."""


class ClaimAnswer(NamedTuple):
    verdict: Literal["granted", "refused", "unknown"]
    """unknown: no hub could be asked."""
    reason: str = ""


ClaimService = Callable[[ClaimRequest], ClaimAnswer]
"""Grants the right to try a change. It never raises, and takes a few seconds at most."""


def tree_of_commit(project: Project, commit: str) -> str:
    """Return the hash of the artifacts of a commit in their normal form."""
    repository = project.repository
    paths = project.task.artifacts_in(repository.entries(commit))
    return tree_of({path: repository.show_file(commit, path) for path in paths})


CLAIM_BUDGETS = 6
"""Duration of a claim in budgets: the run before it, its own, and its report."""
LEAST_LEASE_S, LONGEST_LEASE_S = 900.0, 86_400.0
_LOOK_BACK = 50
"""Runs, the latest folder first, among which a worker's own is looked for."""


def claim_change(
    service: ClaimService, project: Project, hypothesis: Hypothesis, spec: RunSpec
) -> None:
    """Get the right to run a candidate; a baseline, a repeat and a verification need none.

    Raises:
        ChangeError: another fleet has tried it, or does now; its plan is taken back.
    """
    if spec.parent_commit is None or spec.replicates or hypothesis.artifacts_from:
        return
    answer = ClaimAnswer("unknown", "this worker has run nothing yet")
    last = _last_run(project, spec.worker_id)
    if last.platform_key and last.task_hash:
        seconds = CLAIM_BUDGETS * (last.budget_seconds or 0.0)
        answer = service(
            ClaimRequest(
                platform_key=last.platform_key,
                task_hash=last.task_hash,
                tree=tree_of_commit(project, spec.commit),
                title=spec.title,
                lease_seconds=min(max(seconds, LEAST_LEASE_S), LONGEST_LEASE_S),
            )
        )
    if answer.verdict == "refused":
        runner.forget(project, spec.experiment_id)
        raise ChangeError(f"another fleet has it: {answer.reason}")
    # Noted in the plan, for the ledger, and in the queue, for the observer.
    claimed, path = answer.verdict == "granted", project.layout.plan(spec.experiment_id)
    with suppress(AutohypothesisError):
        if (plan := load_or_none(Plan, path)) is not None:
            write_json(path, plan.model_copy(update={"claimed": claimed}))
    with suppress(AutohypothesisError):
        queue = Queue(project.layout, project.active())
        queue.note_claim(hypothesis.hypothesis_id, spec.worker_id, claimed)


def _last_run(project: Project, worker_id: str) -> Runtime:
    """Return that of this worker's newest run; of another worker's where it has none."""
    other, newest = Runtime(), list[tuple[int, str]]()
    with suppress(OSError), os.scandir(project.layout.runs) as entries:
        stamps = ((each.stat(follow_symlinks=False).st_mtime_ns, each.name) for each in entries)
        newest = nlargest(_LOOK_BACK, (stamp for stamp in stamps if ID.fullmatch(stamp[1])))
    for _, name in newest:
        found = load_or_none(Metadata, project.layout.run(name).metadata)
        if found is None or found.run.tag != project.active() or not found.runtime.platform_key:
            continue
        if found.run.worker_id == worker_id:
            return found.runtime
        other = other if other.platform_key else found.runtime
    return other
