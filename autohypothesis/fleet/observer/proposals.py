"""Proposals: asked for in threads, validated against all that was tried, queued or refused.

No turn of the observer waits for a proposer. Each has one question at a time; the next ones are
asked when those before them failed, had too few ideas, or are still busy while a device is idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from pydantic import ValidationError

from autohypothesis.engine.candidate import check_candidate, tree_of
from autohypothesis.engine.experiment import Change
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Task
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    QueueError,
    UsageError,
    faults_in,
)
from autohypothesis.fleet.live.steering import current_steering
from autohypothesis.fleet.observer.search_state import (
    ExperimentIndex,
    Reference,
    Repeats,
    SearchState,
)
from autohypothesis.fleet.proposing import Proposer, Situation, Stoppable, is_asked_early
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.plain import shortened
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.ledger import latest_tag
from autohypothesis.schema import Brief, Hypothesis, Proposal

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
MAX_ERROR_CHARS = 300
"""Characters of the message of a proposer that failed; its hint comes after them."""
MAX_REFUSALS = 50
"""Refusals that a proposer is told of."""
THINKING_S = 60.0
"""Seconds that an idle device waits for a proposer before another one fills in."""
MAX_UNUSABLE_ANSWERS = 3
"""Answers in a row, on the same evidence, of which nothing could be used. After as many ideas that
turned out to be of no use, as a patch that does not apply, every answer is a reason to wait."""

BY_HAND = "person"
"""The proposer of what a person queued."""


@dataclass(frozen=True, slots=True)
class ProposerAnswer:
    """The proposals of one proposer."""

    proposer: str
    proposals: tuple[Proposal, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    """Title -> reason, of what is no proposal at all."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Title -> the fields that were left out, with the reason."""
    problem: str = ""
    """Error message; empty when it did not fail."""


@dataclass(slots=True)
class _Member:
    """One proposer of the pool, and its state."""

    proposer: Proposer
    thinks: bool = False
    asked_at: float = 0.0
    pause: float = 0.0
    next_attempt_at: float = 0.0
    problem: str = ""
    """Error message of its last answer, for which it waits; empty when it had no ideas."""
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Of its last answer, as in `ProposerAnswer`."""
    late: dict[str, str] = field(default_factory=dict)
    """What was refused of earlier answers while it thinks."""
    unusable_answers: int = 0
    """Since the last decision, or the last idea that was taken."""
    useless: int = 0
    """Ideas that were queued and then refused, since the last decision."""

    def wait_longer(self) -> None:
        self.pause = min(max(self.pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self.next_attempt_at = monotonic() + self.pause

    def wait_no_longer(self) -> None:
        self.pause = self.next_attempt_at = 0.0


class ProposerPool:
    """Proposers in the order in which they are asked, each under its name."""

    def __init__(self, proposers: Sequence[Proposer]) -> None:
        self._members = {proposer.name: _Member(proposer) for proposer in proposers}
        self._answers: SimpleQueue[ProposerAnswer] = SimpleQueue()

    def next_to_ask(self, count: int, *, device_idle: bool, has_results: bool = True) -> str | None:
        """Return the first that can answer.

        Args:
            device_idle: a device has nothing to do, so the next proposer is asked while another
                one still thinks.
            has_results: the baseline is decided. Before that only proposers that are asked early
                are asked, up to the first one that is not.
        """
        if count <= 0:
            return None
        now, asked_at = monotonic(), float("-inf")
        for name, member in self._members.items():
            if not has_results and not is_asked_early(member.proposer):
                return None
            if member.thinks:
                if not device_idle:
                    return None
                asked_at = member.asked_at
            elif member.next_attempt_at <= now and (
                now - asked_at >= THINKING_S or not getattr(member.proposer, "fills_in", False)
            ):
                return name
        return None

    def ask(self, name: str, situation: Situation, count: int) -> None:
        """Ask one proposer for `count` ideas."""
        member = self._members[name]
        member.thinks, member.asked_at = True, monotonic()
        asked = replace(situation, refused={**member.left_out, **member.refused})
        Thread(
            target=self._think,
            args=(member.proposer, name, asked, count),
            name=f"asking {name}",
            daemon=True,  # a busy proposer must not block the exit of the process
        ).start()

    @property
    def answered(self) -> bool:
        """Return whether `answers` would return any."""
        return not self._answers.empty()

    def answers(self) -> list[ProposerAnswer]:
        """Return what was answered since the last call."""
        answers = [self._answers.get() for _ in range(self._answers.qsize())]
        for answer in answers:
            member = self._members[answer.proposer]
            member.thinks, member.problem = False, answer.problem
            member.left_out = answer.left_out
            if member.problem:
                member.wait_longer()
        return answers

    def record_answer_outcome(self, proposer: str, taken: int, refused: dict[str, str]) -> None:
        """Note what became of an answer; one of which nothing could be used is a reason to wait."""
        member = self._members[proposer]
        told = {**member.late, **refused}
        member.refused, member.late = dict(list(told.items())[-MAX_REFUSALS:]), {}
        if taken and member.useless < MAX_UNUSABLE_ANSWERS:
            member.wait_no_longer()
            member.unusable_answers = 0
        elif not member.problem:
            member.wait_longer()
            member.unusable_answers += 1

    def refuse(self, proposer: str, title: str, reason: str) -> None:
        """Note that an idea which was queued turned out to be of no use."""
        if (member := self._members.get(proposer)) is not None:
            (member.late if member.thinks else member.refused)[title] = reason
            member.useless += 1

    def reset_after_decision(self) -> None:
        """Let a proposer that had no ideas be asked again: it may have one now."""
        for member in self._members.values():
            if not member.problem:
                member.wait_no_longer()
            member.unusable_answers = member.useless = 0

    def close(self) -> None:
        """Stop the proposers that still think and have a `stop`."""
        for member in self._members.values():
            if member.thinks and isinstance(member.proposer, Stoppable):
                member.proposer.stop()

    @property
    def is_exhausted(self) -> bool:
        """Return whether no proposer has an idea left; one that failed may have one."""
        return all(
            member.unusable_answers >= MAX_UNUSABLE_ANSWERS
            and not member.thinks
            and not member.problem
            for member in self._members.values()
        )

    @property
    def thinking(self) -> list[str]:
        return [name for name, member in self._members.items() if member.thinks]

    def problems(self) -> list[str]:
        """Return which proposers failed, how, and when they are asked again; wrong fields; and of
        which program all ideas are refused."""
        now = monotonic()
        lines = [
            f"proposer {name}: {title!r} {reason}"
            for name, member in self._members.items()
            for title, reason in list(member.left_out.items())[:1]
        ]
        lines += [
            f"proposer {name}: nothing of its last answer is taken; {title!r}: {reason}"
            for name, member in self._members.items()
            if (member.unusable_answers or member.useless)
            and not getattr(member.proposer, "fills_in", False)
            for title, reason in list(member.refused.items())[:1]
            if not isinstance(reason, Repeats)
        ]
        return lines + [
            f"proposer {name} failed: {member.problem}; asked again in"
            f" {max(0.0, member.next_attempt_at - now):.0f} s"
            for name, member in self._members.items()
            if member.problem
        ]

    def _think(self, proposer: Proposer, name: str, situation: Situation, count: int) -> None:
        answer = ProposerAnswer(name, problem="it ended without an answer")
        try:
            answer = answer_of(proposer, situation, count)
        finally:
            self._answers.put(answer)


def answer_of(proposer: Proposer, situation: Situation, count: int) -> ProposerAnswer:
    """Ask a proposer and wait; whatever it raises is the problem of its answer."""
    try:
        return _parse_proposals(proposer.name, proposer.propose(situation, count), count)
    except AutohypothesisError as error:
        return ProposerAnswer(proposer.name, problem=_problem_of(error))
    except Exception as error:  # a third party's code: anything it raises is its failure
        problem = shortened(f"{type(error).__name__}: {error}", MAX_ERROR_CHARS)
        return ProposerAnswer(proposer.name, problem=problem)


def _parse_proposals(name: str, ideas: Sequence[object], count: int) -> ProposerAnswer:
    proposals: list[Proposal] = []
    refused: dict[str, str] = {}
    for idea in list(ideas)[:count]:
        try:
            proposals.append(Proposal.read(idea))
        except ValidationError as error:
            title = idea.get("title") if isinstance(idea, dict) else getattr(idea, "title", None)
            refused[str(title or f"idea {len(refused) + 1}")[:200]] = faults_in(error)
    left_out = {idea.title: _without(idea.left_out) for idea in proposals if idea.left_out}
    return ProposerAnswer(name, tuple(proposals), refused, left_out)


def _problem_of(error: AutohypothesisError) -> str:
    """Return the message of a bounded length, and the hint whole."""
    problem = shortened(error.problem, MAX_ERROR_CHARS)
    return f"{problem}; {error.hint}" if error.hint else problem


def _without(left_out: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{field} ({reason})" for field, reason in left_out.items())
    return f"was taken without {reasons}"


def needs_implementing(hypothesis: Hypothesis, task: Task) -> bool:
    """Return whether it is words, and the task has no program that turns them into a change."""
    return bool(hypothesis.instructions) and task.mutator.command is None


@dataclass
class ProposalIntake:
    """Validates proposals and queues them."""

    task: Task
    queue: Queue
    pool: ProposerPool
    state: SearchState | None = None
    """Set anew every turn; None before the first."""
    proposed: int = 0
    refused: int = 0
    _taken: dict[str, str] = field(default_factory=dict)
    """Hypothesis that has not ended -> its proposer."""
    _validated: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Hypothesis -> the reference and the steering under which it was found to be fine."""

    def may_begin(self, hypothesis: Hypothesis) -> bool:
        """Return whether it was validated, and can be run as it is."""
        name = hypothesis.hypothesis_id
        if name == baseline_id(self.queue.tag):
            return True
        return name in self._validated and not needs_implementing(hypothesis, self.task)

    def ask(self, count: int, *, device_idle: bool, brief: Brief | None) -> None:
        """Ask a proposer, if any can answer; none before the reference's settings are known.

        Args:
            brief: None before the baseline is decided.
        """
        has_results = brief is not None
        name = self.pool.next_to_ask(count, device_idle=device_idle, has_results=has_results)
        if name is not None and self.state is not None and self.state.is_ready:
            self.pool.ask(name, self.state.situation(self.queue, brief), count)

    def collect(self) -> list[str]:
        """Queue what was answered; return a line for each idea, and each that a worker refused."""
        lines = [line for name in list(self._taken) for line in self._follow(name)]
        return lines + [line for answer in self.pool.answers() for line in self.take(answer)]

    def _follow(self, name: str) -> list[str]:
        """Tell a proposer when a worker has refused its idea; return a line about it."""
        placed = self.queue.read(name)
        if placed is not None and placed[0].state != "done":
            return []
        proposer = self._taken.pop(name)
        if placed is None or placed[1].closed != "abandoned":
            return []
        title, reason = placed[1].title, placed[1].outcome
        self.pool.refuse(proposer, title, reason)
        self.refused += 1
        return [f"{name} ({title}) was refused: {reason}"]

    def take(self, answer: ProposerAnswer) -> list[str]:
        """Queue what can be run; return a line for each idea, and for each that is refused."""
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
                self._taken[added.hypothesis_id] = name
                lines.append(f"{added.hypothesis_id} from {name}: {added.title}")
        self.proposed += len(lines)
        self.refused += len(refused)
        self.pool.record_answer_outcome(name, len(lines), refused)
        lines += [
            f"an idea of {name}, {title!r}, {reason}"
            for title, reason in answer.left_out.items()
            if title not in refused
        ]
        return lines + [
            f"refused an idea of {name}, {title!r}: {reason}" for title, reason in refused.items()
        ]

    def validate(self) -> list[str]:
        """Validate everything pending, also a person's; abandon what is no good.

        Returns a line for each that was refused.
        """
        state, pending = self.state, self.queue.pending()
        if state is None or not state.is_ready:  # only runs of the reference may begin
            repeats = (idea for idea in pending if idea.proposer == "observer")
            self._validated.update({idea.hypothesis_id: ("", "") for idea in repeats})
            return []
        under = (state.reference.commit, state.steering.model_dump_json())
        lines = []
        for idea in pending:
            name = idea.hypothesis_id
            if self._validated.get(name) == under or name == baseline_id(self.queue.tag):
                continue
            reason = state.reason_against(idea, self.queue.queued_before(idea), besides=name)
            if not reason:
                self._validated[name] = under
                continue
            self._validated.pop(name, None)
            self.queue.abandon(name, reason)
            self._taken.pop(name, None)
            self.pool.refuse(idea.proposer, idea.title, reason)
            self.refused += 1
            lines.append(f"{name} ({idea.title}) was refused: {reason}")
        return lines


def propose_checked(
    project: Project, queue: Queue, proposal: Proposal, *, proposer: str = BY_HAND
) -> str:
    """Queue `proposal` after the checks that a worker would make later; return its id.

    Raises:
        ChangeError: it does not apply to the reference, or touches what may not change.
        QueueError: the steering forbids it, it waits already, or it was run before; the message
            says what came of that.
        LockError: another process has held the queue for half a minute.
    """
    commit = project.reference()
    _check_change(project, commit, proposal)
    if reason := current_state(project).reason_against(proposal, queue.open()):
        raise QueueError(
            f"{proposal.title!r} is not taken: {reason}",
            hint="see `python orchestrator.py hypotheses` and `python orchestrator.py runs`",
        )
    return queue.add(proposal, proposer=proposer).hypothesis_id


def current_state(project: Project) -> SearchState:
    """Return the search as its files have it now."""
    history = LiveHistory(project.layout, project.active())
    history.refresh()
    index = ExperimentIndex(project, history)
    index.refresh()
    reference = Reference.of(index, project.reference())
    return SearchState(index, reference, current_steering(project.layout))


def check_worker(project: Project, workers: list[str], worker: str) -> None:
    """Refuse a worker that the manifest does not name.

    Raises:
        UsageError: naming those that it does.
    """
    if worker in workers:
        return
    tag = project.tag or latest_tag(project.layout)
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
