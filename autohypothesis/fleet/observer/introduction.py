"""A first question to a proposer that is new to a search, before a fleet relies on it.

It is the question that the observer asks, with the baseline decided, and what is answered goes the
same way into the queue. So nothing of it is lost, and what is wrong with the program is seen while
its user still looks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from autohypothesis.engine.project import Project
from autohypothesis.fleet.knowledge.brief import BriefPublisher
from autohypothesis.fleet.observer.proposals import (
    ProposalIntake,
    ProposerPool,
    answer_of,
    current_state,
)
from autohypothesis.fleet.observer.search_state import SearchState
from autohypothesis.fleet.proposing import AskedEarly, Proposer, Situation
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import load_or_none
from autohypothesis.records.history import of_tag
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Brief


@dataclass(frozen=True, slots=True)
class Introduction:
    """What came of a first question."""

    proposer: str
    seconds: float
    taken: int
    """The number of ideas that were queued."""
    problem: str
    """Error message; empty when it did not fail."""
    lines: Sequence[str]
    """A line for each idea, refusal and wrong field."""


def strangers(proposers: Sequence[Proposer], queue: Queue) -> list[Proposer]:
    """Return the programs and packages of which the search has no idea yet."""
    known = {hypothesis.proposer for hypothesis in (*queue.open(), *queue.done())}
    return [
        proposer
        for proposer in proposers
        if proposer.name not in known and not isinstance(proposer, AskedEarly)
    ]


def situation_now(project: Project, queue: Queue) -> Situation:
    """Return the situation that a proposer is asked in, with the brief as it was last written."""
    brief = load_or_none(Brief, project.layout.brief)
    return current_state(project).situation(queue, brief)


def _write_brief(project: Project, queue: Queue, state: SearchState) -> None:
    BriefPublisher(project, queue).publish(
        rows=[dict(row) for row in of_tag(read_ledger(project.layout), project.tag)],
        steering=state.steering,
        settings=state.reference.settings or {},
    )


def introduce(project: Project, queue: Queue, proposer: Proposer, count: int) -> Introduction:
    """Ask a proposer for `count` ideas, wait for its answer, and queue what can be run."""
    state, pool = current_state(project), ProposerPool([proposer])
    intake = ProposalIntake(project.task, queue, pool, state=state)
    _write_brief(project, queue, state)
    situation, started = situation_now(project, queue), time.monotonic()
    answer = answer_of(proposer, situation, count)
    seconds = time.monotonic() - started
    lines = intake.take(answer)
    return Introduction(proposer.name, seconds, intake.proposed, answer.problem, lines)
