"""Proposals: validated against all that was tried, queued or refused; a person's as well."""

from __future__ import annotations

from dataclasses import dataclass, field

from autohypothesis.engine.change import Change, tree_of
from autohypothesis.engine.guard import check_candidate
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError, QueueError, UsageError
from autohypothesis.fleet.live.steering import current_steering
from autohypothesis.fleet.observer.proposer_pool import ProposerAnswer, ProposerPool
from autohypothesis.fleet.observer.search_state import ExperimentIndex, Reference, SearchState
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.ledger import active_tag
from autohypothesis.schema import Brief, Hypothesis, Proposal

BY_HAND = "person"
"""The proposer of what a person queued."""


def needs_implementing(hypothesis: Hypothesis, task: Task) -> bool:
    """Return whether it is words, and the task has no program that turns them into a change."""
    return bool(hypothesis.instructions) and task.mutator.command is None


@dataclass
class ProposalQueueing:
    """The way of proposals into the queue."""

    task: Task
    queue: Queue
    pool: ProposerPool
    state: SearchState | None = None
    """Set anew every turn; None before the first."""
    proposed: int = 0
    refused: int = 0
    _validated: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Hypothesis -> the reference and the steering under which it was found to be fine."""

    @property
    def _ready_state(self) -> SearchState | None:
        return self.state if self.state and self.state.reference.settings is not None else None

    def may_begin(self, hypothesis: Hypothesis) -> bool:
        """Return whether it was validated, and can be run as it is."""
        name = hypothesis.hypothesis_id
        if name == baseline_id(self.queue.tag):
            return True
        return name in self._validated and not needs_implementing(hypothesis, self.task)

    def ask(self, count: int, *, device_idle: bool, brief: Brief | None) -> None:
        """Ask a proposer, if any can answer; none before the reference's settings are known."""
        name = self.pool.next_to_ask(count, device_idle=device_idle)
        if name is not None and (state := self._ready_state) is not None:
            self.pool.ask(name, state.situation(self.queue, brief), count)

    def collect(self) -> list[str]:
        """Queue what was answered meanwhile; return a line for each idea."""
        return [line for answer in self.pool.answers() for line in self._take(answer)]

    def _take(self, answer: ProposerAnswer) -> list[str]:
        name = answer.proposer
        if answer.problem:
            return [f"proposer {name} failed: {answer.problem}"]
        lines, refused = [], dict(answer.refused)
        for proposal in answer.proposals:
            reason = "there is no reference to hold it against"
            if self.state is not None:
                reason = self.state.reason_against(proposal, self.queue.open())
            if reason:
                refused[proposal.title] = reason
            else:
                added = self.queue.add(proposal, proposer=name)
                lines.append(f"{added.hypothesis_id} from {name}: {added.title}")
        self.proposed += len(lines)
        self.refused += len(refused)
        self.pool.record_answer_outcome(name, len(lines), refused)
        return lines + [
            f"refused an idea of {name}, {title!r}: {reason}" for title, reason in refused.items()
        ]

    def validate(self) -> list[str]:
        """Validate everything pending, also a person's; abandon what is no good.

        Returns a line for each that was refused.
        """
        state, pending = self._ready_state, self.queue.pending()
        if state is None:  # only repeats of the reference may begin
            repeats = (one for one in pending if one.proposer == "observer" and one.replicates)
            self._validated.update({one.hypothesis_id: ("", "") for one in repeats})
            return []
        under = (state.reference.commit, state.steering.model_dump_json())
        lines = []
        for idea in pending:
            name = idea.hypothesis_id
            if self._validated.get(name) == under or name == baseline_id(self.queue.tag):
                continue
            reason = state.reason_against(idea, self._before(idea), besides=name)
            if not reason:
                self._validated[name] = under
                continue
            self._validated.pop(name, None)
            self.queue.abandon(name, reason)
            self.pool.refuse(idea.proposer, idea.title, reason)
            self.refused += 1
            lines.append(f"{name} ({idea.title}) was refused: {reason}")
        return lines

    def _before(self, idea: Hypothesis) -> list[Hypothesis]:
        """Return what was queued before: of two that are the same, the first stays."""
        age = (idea.created_at, idea.hypothesis_id)
        return [
            other for other in self.queue.open() if (other.created_at, other.hypothesis_id) < age
        ]


def suggest(project: Project, queue: Queue, proposal: Proposal, *, proposer: str = BY_HAND) -> str:
    """Queue `proposal` after the checks that a worker would make later; return its id.

    Raises:
        ChangeError: it does not apply to the reference, or touches what may not change.
        QueueError: the steering forbids it, it waits already, or it was run before; the message
            says what came of that.
        LockError: another process has held the queue for half a minute.
    """
    commit = project.reference()
    _check_change(project, commit, proposal)
    history = LiveHistory(project.layout, project.active())
    history.refresh()
    index = ExperimentIndex(project, history)
    index.refresh()
    state = SearchState(index, Reference.of(index, commit), current_steering(project.layout))
    if reason := state.reason_against(proposal, queue.open()):
        raise QueueError(
            f"{proposal.title!r} is not taken: {reason}",
            hint="see `python orchestrator.py hypotheses` and `python orchestrator.py runs`",
        )
    return queue.add(proposal, proposer=proposer).hypothesis_id


def check_worker(project: Project, workers: list[str], worker: str) -> None:
    """Refuse a worker that the manifest does not name.

    Raises:
        UsageError: naming those that it does.
    """
    if worker in workers:
        return
    tag = project.tag or active_tag(project.layout)
    raise UsageError(
        f"tag {tag!r} has no worker {worker!r}; it has {', '.join(workers) or 'none'}",
        hint="make one: python orchestrator.py init-fleet --help"
        if not workers
        else "see them: python orchestrator.py status",
    )


def _check_change(project: Project, commit: str, proposal: Proposal) -> None:
    if proposal.instructions:
        return  # what comes of them is seen when they are implemented
    tree = tree_of(project.repository, project.task, commit, Change.of(proposal))
    changes = project.repository.changes(commit, tree)
    if not changes:
        raise ChangeError(
            f"{proposal.title!r} changes nothing in the reference {commit[:7]}",
            hint="see what it is: python orchestrator.py best",
        )
    check_candidate(project.repository, project.task, tree, changes)
