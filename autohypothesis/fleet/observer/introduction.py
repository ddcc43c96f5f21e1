"""A first question to a proposer that is new to a search, before a fleet relies on it.

The question and the way of the answer into the queue are the observer's. What is wrong with the
program is seen before its user leaves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from autohypothesis.engine.candidate import settings_of
from autohypothesis.engine.project import Project
from autohypothesis.fleet.knowledge.brief import BriefPublisher, BriefSources, compose_brief
from autohypothesis.fleet.observer.proposals import (
    ProposalIntake,
    ProposerPool,
    answer_of,
    current_state,
)
from autohypothesis.fleet.observer.search_state import SearchState
from autohypothesis.fleet.proposing import Proposer, Situation, is_asked_early
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import load_or_none
from autohypothesis.records.history import of_tag
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Brief


@dataclass(frozen=True, slots=True)
class Introduction:
    """What came of a first question."""

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
        if proposer.name not in known and not is_asked_early(proposer)
    ]


def situation_now(project: Project, queue: Queue) -> Situation:
    """Return the situation that a proposer is asked in, with the brief as it was last written."""
    state = current_state(project)
    written = load_or_none(Brief, project.layout.brief)
    brief = written or compose_brief(project, _sources(project, queue, state), queue.problems)
    return state.situation(queue, brief)


def brief_now(project: Project, queue: Queue) -> Brief:
    """Return the brief as it would be written now; nothing is written."""
    return compose_brief(project, _sources(project, queue, current_state(project)), queue.problems)


def _sources(project: Project, queue: Queue, state: SearchState) -> BriefSources:
    settings = state.reference.settings
    if settings is None:
        written = settings_of(project.repository, project.task, project.reference())
        settings = {name.upper(): value for name, value in written.items()}
    rows = of_tag(read_ledger(project.layout), queue.tag)
    return BriefSources(rows, state.steering, settings, [], None, queue.placed(), queue.done())


def introduce(project: Project, queue: Queue, proposer: Proposer, count: int) -> Introduction:
    """Ask a proposer for `count` ideas, wait for its answer, and queue what can be run."""
    state, pool = current_state(project), ProposerPool([proposer])
    intake = ProposalIntake(project.task, queue, pool, state=state)
    publisher = BriefPublisher(project, queue)
    publisher.write(_sources(project, queue, state))
    started = time.monotonic()
    answer = answer_of(proposer, state.situation(queue, publisher.brief), count)
    seconds = time.monotonic() - started
    lines = intake.take(answer)
    return Introduction(seconds, intake.proposed, answer.problem, lines)
