"""The sources of the changes of a round: the task's program, a search over knobs, or people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from autohypothesis.engine.change import Change
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.project import Project
from autohypothesis.errors import RecordError
from autohypothesis.fleet.live.steering import SteeringFiles
from autohypothesis.fleet.observer.search_state import ExperimentIndex, Reference, SearchState
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.queue import inbox
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import read_bytes
from autohypothesis.records.history import LiveHistory

ASKED = 3
"""How often a proposer is asked when nothing that it said could be used."""
DIFF_LIMIT = 64 << 20
APART = 1_000_003
"""Between the seeds of two searches: neighbours share no change before a million of them."""


class ChangeSource(Protocol):
    """Has changes to try, a round at a time."""

    def next(self, count: int) -> Sequence[Experiment]:
        """Return at most `count` requests; none when there is nothing left to try."""

    def tidy(self) -> None:
        """Called after decisions."""


class MutatorSource:
    """The task's own program: each time it is asked it makes one change, whatever that is."""

    def __init__(self, project: Project, history: LiveHistory, seed: int) -> None:
        self._project = project
        self._history = history
        self._seed = seed

    def next(self, count: int) -> list[Experiment]:
        """Run first again what told nothing yet; seeds go on where the tag has come to."""
        again = list(self._again())[:count]
        first = APART * self._seed + sum(1 for _ in self._history.experiments())
        return again + [
            Experiment(Change(instructions=""), mutation_seed=first + number)
            for number in range(count - len(again))
        ]

    def tidy(self) -> None: ...

    def _again(self) -> Iterator[Experiment]:
        """Yield changes whose run was disturbed, or that won against an older reference."""
        for decision in list(self._history.latest.values()):
            name = decision.hypothesis_id
            if not decision.requeue or self._history.decision_about(name) is not decision:
                continue
            run = self._project.layout.run(decision.experiment_id)
            try:
                diff = read_bytes(run.diff, DIFF_LIMIT).decode("utf-8", "surrogateescape")
            except (FileNotFoundError, RecordError):
                continue  # it was lost before there was a change
            if diff:
                title = self._project.repository.subject(decision.commit)
                yield Experiment(Change(patch=diff), title=title, hypothesis_id=name)


class QueueSource:
    """Hypotheses of the queue, best first; a proposer fills it when it is empty."""

    def __init__(
        self, project: Project, history: LiveHistory, queue: Queue, proposer: Proposer | None
    ) -> None:
        self._project = project
        self._history = history
        self._queue = queue
        self._proposer = proposer
        self._index = ExperimentIndex(project, history)
        self._steering = SteeringFiles(project.layout)

    def next(self, count: int) -> list[Experiment]:
        inbox.take_inbox(self._queue)
        self.tidy()
        refused: dict[str, str] = {}
        proposer = self._proposer
        for _ in range(ASKED):
            missing = count - len(self._queue.pending())
            if missing <= 0 or proposer is None or self._ask(proposer, missing, refused):
                break
        return [Experiment.of(hypothesis) for hypothesis in self._queue.pending()[:count]]

    def tidy(self) -> None:
        """Close what was decided for good, also after a kill."""
        for hypothesis in self._queue.pending():
            name = hypothesis.hypothesis_id
            decision = self._history.decision_about(name)
            if decision is not None and not decision.requeue:
                outcome = f"{decision.decision_status}: {decision.reason}"
                self._queue.abandon(name, outcome, closed="completed")

    def _ask(self, proposer: Proposer, count: int, refused: dict[str, str]) -> bool:
        """Ask for proposals, validate and queue them; return whether any was taken."""
        self._index.refresh()
        reference = Reference.of(self._index, self._project.reference())
        state = SearchState(self._index, reference, self._steering.combined())
        situation = replace(state.situation(self._queue), refused=dict(refused))
        taken = 0
        for proposal in proposer.propose(situation, count):
            reason = state.reason_against(proposal, self._queue.open())
            if reason:
                refused[proposal.title] = reason
            else:
                self._queue.add(proposal, proposer=proposer.name)
                taken += 1
        return taken > 0
