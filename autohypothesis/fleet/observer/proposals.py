"""Proposals: asked for in the background, validated against all that was tried, queued or refused.

The observer's turn never waits for a thought: each proposer has a thread of its own while it
thinks. What validates a proposal binds a person as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import ValidationError

from autohypothesis.engine.change import Change, tree_of
from autohypothesis.engine.guard import check_candidate
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Task
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    QueueError,
    UsageError,
    faults_in,
)
from autohypothesis.fleet.live.steering import current_steering, narrowed_knobs, violation
from autohypothesis.fleet.observer.experiment_index import (
    DuplicateCheck,
    ExperimentIndex,
    IndexedRun,
    Reference,
    key_of,
)
from autohypothesis.fleet.proposing import Proposer, Situation, Stoppable, Trial
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.ledger import active_tag
from autohypothesis.schema import Brief, Hypothesis, Proposal, Setting, Steering, nearest, now

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
SHOWN = 300
"""Characters of the message of a proposer that failed."""
REMEMBERED = 50
"""Refusals that a proposer is told of."""
ENOUGH = 3
"""Answers in a row, on the same evidence, of which nothing could be used."""
RECENT = 200
"""Closed hypotheses that a proposer is told of."""
BY_HAND = "person"
"""The proposer of what a person queued."""


# ── asking proposers ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ProposerAnswer:
    """The proposals of one proposer."""

    proposer: str
    proposals: tuple[Proposal, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    """Title -> reason, of what is no proposal at all."""
    problem: str = ""
    """How it failed; empty when it did not."""


@dataclass(slots=True)
class _Member:
    """One proposer of the pool, and its state."""

    proposer: Proposer
    name: str
    thinks: bool = False
    pause: float = 0.0
    again_at: float = 0.0
    failed: bool = False
    """It waits because it failed, and not because it had no ideas."""
    problem: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    fruitless: int = 0
    """Answers since the last decision, or the last idea that was taken, without one."""

    def wait_longer(self, now: float) -> None:
        self.pause = min(max(self.pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self.again_at = now + self.pause


class ProposerPool:
    """Proposers in the order in which they are asked.

    Each is asked one thing at a time. The next ones are asked when those before them failed, had
    too few ideas, or still think while a device is idle. One that fails is asked again later and
    later.
    """

    def __init__(
        self, proposers: Sequence[Proposer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._members = [_Member(proposer, proposer.name) for proposer in proposers]
        self._answers: SimpleQueue[ProposerAnswer] = SimpleQueue()
        self._clock = clock

    def wants(self, count: int, *, hungry: bool) -> bool:
        """Return whether `ask` would ask a proposer."""
        return next(self._askable(count, hungry), None) is not None

    def ask(self, situation: Situation, count: int, *, hungry: bool) -> None:
        """Ask for `count` ideas.

        Args:
            hungry: a device is idle; any proposer that can answer now is welcome.
        """
        for member in self._askable(count, hungry):
            member.thinks = True
            asked = replace(situation, refused=dict(member.refused))
            Thread(
                target=self._think,
                args=(member.proposer, member.name, asked, count),
                name=f"asking {member.name}",
                daemon=True,  # a thought must not hold up the end of the process
            ).start()

    @property
    def answered(self) -> bool:
        """Whether `answers` would return any."""
        return not self._answers.empty()

    def answers(self) -> list[ProposerAnswer]:
        """Return what was answered since the last call."""
        answers: list[ProposerAnswer] = []
        while True:
            try:
                answers.append(self._answers.get_nowait())
            except Empty:
                return answers
            for member in self._named(answers[-1].proposer):
                member.thinks = False
                member.problem = answers[-1].problem
                member.failed = bool(member.problem)
                if member.failed:
                    member.wait_longer(self._clock())

    def took(self, proposer: str, taken: int, refused: dict[str, str]) -> None:
        """Note what became of an answer; one of which nothing could be used is a reason to wait."""
        for member in self._named(proposer):
            member.refused = dict(list(refused.items())[-REMEMBERED:])
            if taken:
                member.pause = member.again_at = 0.0
                member.fruitless = 0
            elif not member.failed:
                member.wait_longer(self._clock())
                member.fruitless += 1

    def refuse(self, proposer: str, title: str, reason: str) -> None:
        """Note that an idea which was queued turned out to be of no use."""
        for member in self._named(proposer):
            kept = list(member.refused.items())[-(REMEMBERED - 1) :]
            member.refused = dict([*kept, (title, reason)])

    def news(self) -> None:
        """Note a decision: a proposer that had no ideas may have one now."""
        for member in self._members:
            if not member.failed:
                member.pause = member.again_at = 0.0
            member.fruitless = 0

    def close(self) -> None:
        """Stop the proposers that still think and have a `stop`."""
        for member in self._members:
            if member.thinks and isinstance(member.proposer, Stoppable):
                member.proposer.stop()

    @property
    def is_exhausted(self) -> bool:
        """Whether no proposer has an idea left on this evidence; one that failed may have one."""
        return all(
            member.fruitless >= ENOUGH and not member.thinks and not member.failed
            for member in self._members
        )

    @property
    def thinking(self) -> list[str]:
        return [member.name for member in self._members if member.thinks]

    def problems(self) -> list[str]:
        """Return which proposers failed, how, and when they are asked again."""
        now = self._clock()
        return [
            f"proposer {member.name} failed: {member.problem}; asked again in"
            f" {max(0.0, member.again_at - now):.0f} s"
            for member in self._members
            if member.failed
        ]

    def _askable(self, count: int, hungry: bool) -> Iterator[_Member]:
        """Yield the first that can answer; none while one before it thinks and no device idles."""
        if count <= 0:
            return
        now = self._clock()
        for member in self._members:
            if member.thinks:
                if not hungry:
                    return
                continue
            if member.again_at <= now:
                yield member
                return

    def _named(self, name: str) -> list[_Member]:
        return [member for member in self._members if member.name == name]

    def _think(self, proposer: Proposer, name: str, situation: Situation, count: int) -> None:
        """Ask one proposer, in its thread."""
        answer = ProposerAnswer(name, problem="it ended without an answer")
        try:
            answer = _sorted_out(name, proposer.propose(situation, count), count)
        except AutohypothesisError as error:
            answer = ProposerAnswer(name, problem=str(error)[:SHOWN])
        except Exception as error:  # a third party's code: anything it raises is its failure
            answer = ProposerAnswer(name, problem=f"{type(error).__name__}: {error}"[:SHOWN])
        finally:
            self._answers.put(answer)


def _sorted_out(name: str, ideas: Sequence[object], count: int) -> ProposerAnswer:
    """Return what can be read as proposals, and why the rest cannot."""
    proposals: list[Proposal] = []
    refused: dict[str, str] = {}
    for idea in list(ideas)[:count]:
        try:
            proposals.append(Proposal.model_validate(idea, from_attributes=False))
        except ValidationError as error:
            title = idea.get("title") if isinstance(idea, dict) else getattr(idea, "title", None)
            refused[str(title or f"idea {len(refused) + 1}")[:200]] = faults_in(error)
    return ProposerAnswer(name, tuple(proposals), refused)


def situation(
    project: Project,
    history: LiveHistory,
    index: ExperimentIndex,
    reference: Reference,
    *,
    steering: Steering,
    waiting: Sequence[Hypothesis],
    closed: Sequence[Hypothesis],
    brief: Brief,
) -> Situation:
    """Return what a proposer is told about the search; all of it are copies.

    Args:
        waiting: hypotheses that are not done.
    """
    objective = project.task.objective
    return Situation(
        tag=project.active(),
        metric=objective.metric,
        direction=objective.direction,
        min_delta=objective.min_delta,
        reference=dict(reference.settings or {}),
        sources=dict(reference.sources),
        knobs=narrowed_knobs(project.task.knobs, steering),
        steering=steering.model_copy(deep=True),
        trials=tuple(_trials(project, history, index, reference)),
        open=tuple(hypothesis.model_copy(deep=True) for hypothesis in waiting),
        closed=tuple(closed),
        brief=brief.model_copy(deep=True),
    )


def _trials(
    project: Project, history: LiveHistory, index: ExperimentIndex, reference: Reference
) -> Iterator[Trial]:
    spelled = {name.lower(): name for name in reference.names}
    for run in sorted(index.runs.values(), key=lambda run: (run.begun, run.experiment_id)):
        decision = history.latest.get(run.experiment_id)
        if decision is not None and is_lost(decision):
            continue  # it is no evidence, and its hypothesis is in the queue again
        if decision is not None:
            status, value = str(decision.decision_status), decision.metric_value
        else:
            ended = project.layout.run(run.experiment_id).result.exists()
            status, value = "review_pending" if ended else "running", None
        yield Trial(
            experiment_id=run.experiment_id,
            hypothesis_id=run.hypothesis_id,
            settings=named(run.settings, spelled),
            value=value,
            status=status,
            seed=run.seed,
            replicates=run.replicates,
        )


def named(settings: Mapping[str, Setting], spelled: Mapping[str, str]) -> dict[str, Setting]:
    """Return the settings of a config.json by the constants' names."""
    return {spelled.get(key, key.upper()): value for key, value in settings.items()}


# ── validation ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ProposalValidation:
    """What proposals are validated against at one moment."""

    index: ExperimentIndex
    reference: Reference
    history: LiveHistory
    steering: Steering

    def reason_against(
        self, idea: Proposal, others: Sequence[Hypothesis], *, besides: str = ""
    ) -> str:
        """Return why a proposal is not to be run; empty when it may.

        Args:
            others: of the queue, those that came before it.
            besides: its own id, where it has one: its own runs are no duplicates.
        """
        if not (idea.config_overrides or key_of(idea)):
            return "" if idea.replicates else _NOTHING
        return (
            self._about_settings(idea)
            or ("" if idea.replicates else self._was_tried(idea, besides))
            or ("" if idea.replicates else self._is_waiting(idea, others, besides))
        )

    def _about_settings(self, idea: Proposal) -> str:
        if not idea.config_overrides:
            return ""  # what a patch sets is seen once it is applied: the worker looks again
        reference = self.reference
        known = {name.lower() for name in (*reference.names, *(reference.settings or {}))}
        for name in idea.config_overrides:
            if known and name.lower() not in known:
                near = nearest(name, list(reference.names))
                return f"the script has no constant {name!r} to set{near}"
        if DuplicateCheck(self.index, reference).changes_nothing(idea):
            return "the reference has these settings already"
        settings = reference.with_overrides(idea.config_overrides)
        return violation(self.steering, reference.settings or {}, settings)

    def _was_tried(self, idea: Proposal, besides: str) -> str:
        run = DuplicateCheck(self.index, self.reference).before(idea, besides=besides)
        if run is None:
            return ""
        return f"it was run before, as {run.experiment_id}: {self._came(run)}"

    def _came(self, run: IndexedRun) -> str:
        """Return the outcome of a run in a few words."""
        decision = self.history.latest.get(run.experiment_id)
        if decision is None:
            return "not decided yet"
        words = [decision.decision_status, decision.reason, decision.detail]
        return ", ".join(word for word in words if word)[:300]

    def _is_waiting(self, idea: Proposal, others: Sequence[Hypothesis], besides: str) -> str:
        check = DuplicateCheck(self.index, self.reference)
        for other in others:
            if other.hypothesis_id != besides and check.equal(idea, other):
                return f"the same is in the queue already, as {other.hypothesis_id}"
        return ""


_NOTHING = "it changes nothing, and names no experiment to repeat in `replicates`"


def needs_implementing(hypothesis: Hypothesis, task: Task) -> bool:
    """Return whether it is words, and the task has no program that turns them into a change."""
    return bool(hypothesis.instructions) and task.mutator.command is None


@dataclass
class ProposalQueueing:
    """The way of proposals into the queue. Reference and steering are set anew every turn."""

    project: Project
    queue: Queue
    history: LiveHistory
    index: ExperimentIndex
    pool: ProposerPool
    reference: Reference | None = None
    steering: Steering = field(default_factory=Steering)
    proposed: int = 0
    refused: int = 0
    _validated: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Hypothesis -> the reference and the steering under which it was found to be fine."""

    def may_begin(self, hypothesis: Hypothesis) -> bool:
        """Return whether it was validated, and can be run as it is."""
        if hypothesis.hypothesis_id == baseline_id(self.queue.tag):
            return True
        implemented = not needs_implementing(hypothesis, self.project.task)
        return hypothesis.hypothesis_id in self._validated and implemented

    def ask(self, count: int, *, hungry: bool, brief: Brief | None) -> None:
        """Ask the proposers, if any can answer; none before the reference's settings are known."""
        reference = self.reference
        if reference is None or reference.settings is None:
            return
        if not self.pool.wants(count, hungry=hungry):
            return
        asked = situation(
            self.project,
            self.history,
            self.index,
            reference,
            steering=self.steering,
            waiting=self.queue.open(),
            closed=self.queue.done()[-RECENT:],
            brief=brief or Brief(generated_at=now()),
        )
        self.pool.ask(asked, count, hungry=hungry)

    def collect(self) -> list[str]:
        """Take what was answered meanwhile; return a line for each idea."""
        return [line for answer in self.pool.answers() for line in self._take(answer)]

    def _take(self, answer: ProposerAnswer) -> list[str]:
        name = answer.proposer
        if answer.problem:
            return [f"proposer {name} failed: {answer.problem}"]
        lines, refused = [], dict(answer.refused)
        for proposal in answer.proposals:
            reason = self._reason_against(proposal, self.queue.open())
            if reason:
                refused[proposal.title] = reason
            else:
                added = self.queue.add(proposal, proposer=name)
                lines.append(f"{added.hypothesis_id} from {name}: {added.title}")
        self.proposed += len(lines)
        self.refused += len(refused)
        self.pool.took(name, len(lines), refused)
        return lines + [
            f"refused an idea of {name}, {title!r}: {reason}" for title, reason in refused.items()
        ]

    def validate(self) -> list[str]:
        """Validate everything pending, also a person's; abandon what is no good.

        Returns a line for each that was refused.
        """
        if self.reference is None or self.reference.settings is None:
            self._admit_repeats()
            return []
        under = (self.reference.commit, self.steering.model_dump_json())
        lines = []
        for idea in self.queue.pending():
            name = idea.hypothesis_id
            if self._validated.get(name) == under or name == baseline_id(self.queue.tag):
                continue
            reason = self._reason_against(idea, self._before(idea), besides=name)
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
        mark = (idea.created_at, idea.hypothesis_id)
        return [
            other for other in self.queue.open() if (other.created_at, other.hypothesis_id) < mark
        ]

    def _admit_repeats(self) -> None:
        """Before the reference's settings are known, only its own repeats may begin."""
        for hypothesis in self.queue.pending():
            if hypothesis.proposer == "observer" and hypothesis.replicates:
                self._validated[hypothesis.hypothesis_id] = ("", "")

    def _reason_against(
        self, idea: Proposal, others: Sequence[Hypothesis], *, besides: str = ""
    ) -> str:
        if self.reference is None:
            return "there is no reference to hold it against"
        validation = ProposalValidation(self.index, self.reference, self.history, self.steering)
        return validation.reason_against(idea, others, besides=besides)


# ── a person's proposal ─────────────────────────────────────────────────────────────────────


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
    reference = Reference.of(project, index, commit)
    validation = ProposalValidation(index, reference, history, current_steering(project.layout))
    reason = validation.reason_against(proposal, queue.open())
    if reason:
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
    """Check that the change applies to the reference as it is now, and does something."""
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
