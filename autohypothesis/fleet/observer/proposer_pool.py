"""Proposers: asked in threads, so that no turn waits for a thought; one that fails is asked later.

A proposer has one question at a time. The next ones are asked when those before them failed, had
too few ideas, or still think while a device is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

from pydantic import ValidationError

from autohypothesis.errors import AutohypothesisError, faults_in
from autohypothesis.fleet.proposing import Proposer, Situation, Stoppable
from autohypothesis.schema import Proposal

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
SHOWN = 300
"""Characters of the message of a proposer that failed."""
REMEMBERED = 50
"""Refusals that a proposer is told of."""
ENOUGH = 3
"""Answers in a row, on the same evidence, of which nothing could be used."""


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
    thinks: bool = False
    pause: float = 0.0
    again_at: float = 0.0
    problem: str = ""
    """How its last answer failed; it waits for that, and not because it had no ideas."""
    refused: dict[str, str] = field(default_factory=dict)
    unusable_answers: int = 0
    """Since the last decision, or the last idea that was taken."""

    def wait_longer(self) -> None:
        self.pause = min(max(self.pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self.again_at = monotonic() + self.pause

    def wait_no_longer(self) -> None:
        self.pause = self.again_at = 0.0


class ProposerPool:
    """Proposers in the order in which they are asked, each under its name."""

    def __init__(self, proposers: Sequence[Proposer]) -> None:
        self._members = {proposer.name: _Member(proposer) for proposer in proposers}
        self._answers: SimpleQueue[ProposerAnswer] = SimpleQueue()

    def next_to_ask(self, count: int, *, device_idle: bool) -> str | None:
        """Return the first that can answer.

        Args:
            device_idle: a device has nothing to do, so nobody waits for one that still thinks.
        """
        if count <= 0:
            return None
        for name, member in self._members.items():
            if member.thinks:
                if not device_idle:
                    return None
            elif member.again_at <= monotonic():
                return name
        return None

    def ask(self, name: str, situation: Situation, count: int) -> None:
        """Ask one proposer for `count` ideas."""
        member = self._members[name]
        member.thinks = True
        asked = replace(situation, refused=dict(member.refused))
        Thread(
            target=self._think,
            args=(member.proposer, name, asked, count),
            name=f"asking {name}",
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
                answer = self._answers.get_nowait()
            except Empty:
                return answers
            answers.append(answer)
            member = self._members[answer.proposer]
            member.thinks, member.problem = False, answer.problem
            if member.problem:
                member.wait_longer()

    def record_answer_outcome(self, proposer: str, taken: int, refused: dict[str, str]) -> None:
        """Note what became of an answer; one of which nothing could be used is a reason to wait."""
        member = self._members[proposer]
        member.refused = dict(list(refused.items())[-REMEMBERED:])
        if taken:
            member.wait_no_longer()
            member.unusable_answers = 0
        elif not member.problem:
            member.wait_longer()
            member.unusable_answers += 1

    def refuse(self, proposer: str, title: str, reason: str) -> None:
        """Note that an idea which was queued turned out to be of no use."""
        if (member := self._members.get(proposer)) is not None:
            kept = list(member.refused.items())[-(REMEMBERED - 1) :]
            member.refused = dict([*kept, (title, reason)])

    def reset_after_decision(self) -> None:
        """Let a proposer that had no ideas be asked again: it may have one now."""
        for member in self._members.values():
            if not member.problem:
                member.wait_no_longer()
            member.unusable_answers = 0

    def close(self) -> None:
        """Stop the proposers that still think and have a `stop`."""
        for member in self._members.values():
            if member.thinks and isinstance(member.proposer, Stoppable):
                member.proposer.stop()

    @property
    def is_exhausted(self) -> bool:
        """Whether no proposer has an idea left on this evidence; one that failed may have one."""
        return all(
            member.unusable_answers >= ENOUGH and not member.thinks and not member.problem
            for member in self._members.values()
        )

    @property
    def thinking(self) -> list[str]:
        return [name for name, member in self._members.items() if member.thinks]

    def problems(self) -> list[str]:
        """Return which proposers failed, how, and when they are asked again."""
        now = monotonic()
        return [
            f"proposer {name} failed: {member.problem}; asked again in"
            f" {max(0.0, member.again_at - now):.0f} s"
            for name, member in self._members.items()
            if member.problem
        ]

    def _think(self, proposer: Proposer, name: str, situation: Situation, count: int) -> None:
        answer = ProposerAnswer(name, problem="it ended without an answer")
        try:
            answer = _parse_proposals(name, proposer.propose(situation, count), count)
        except AutohypothesisError as error:
            answer = ProposerAnswer(name, problem=str(error)[:SHOWN])
        except Exception as error:  # a third party's code: anything it raises is its failure
            answer = ProposerAnswer(name, problem=f"{type(error).__name__}: {error}"[:SHOWN])
        finally:
            self._answers.put(answer)


def _parse_proposals(name: str, ideas: Sequence[object], count: int) -> ProposerAnswer:
    proposals: list[Proposal] = []
    refused: dict[str, str] = {}
    for idea in list(ideas)[:count]:
        try:
            proposals.append(Proposal.model_validate(idea, from_attributes=False))
        except ValidationError as error:
            title = idea.get("title") if isinstance(idea, dict) else getattr(idea, "title", None)
            refused[str(title or f"idea {len(refused) + 1}")[:200]] = faults_in(error)
    return ProposerAnswer(name, tuple(proposals), refused)
