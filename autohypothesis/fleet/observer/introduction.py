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
from autohypothesis.fleet.proposing import AskedEarly, Proposer, Situation
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.history import of_tag
from autohypothesis.records.ledger import read_ledger


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


def question(project: Project, queue: Queue) -> Situation:
    """Return the situation of now, with a brief that is written for it."""
    state = current_state(project)
    publisher = BriefPublisher(project, queue)
    publisher.publish(
        rows=[dict(row) for row in of_tag(read_ledger(project.layout), project.tag)],
        steering=state.steering,
        settings=state.reference.settings or {},
    )
    return state.situation(queue, publisher.brief)


def introduce(project: Project, queue: Queue, proposer: Proposer, count: int) -> Introduction:
    """Ask a proposer for `count` ideas, wait for its answer, and queue what can be run."""
    pool = ProposerPool([proposer])
    intake = ProposalIntake(project.task, queue, pool, state=current_state(project))
    situation, started = question(project, queue), time.monotonic()
    answer = answer_of(proposer, situation, count)
    seconds = time.monotonic() - started
    lines = intake.take(answer)
    return Introduction(proposer.name, seconds, intake.proposed, answer.problem, lines)
