"""Asking proposers in the background: the observer's turn never waits for a thought.

Each proposer has a thread of its own while it thinks, and is asked one thing at a time. The first
is asked first; the next ones are asked when those before them failed, had too few ideas, or are
still thinking while a device has nothing to do. What fails is asked again later and later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import ValidationError

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.proposing import Proposer, Situation, Stoppable
from autohypothesis.schema import Proposal

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
SHOWN = 300
"""Characters of what a proposer said when it failed."""
REMEMBERED = 50
"""Refusals that a proposer is told of."""
ENOUGH = 3
"""Answers in a row, on the same evidence, of which nothing could be used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one proposer came up with."""

    proposer: str
    proposals: tuple[Proposal, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    """Title -> reason, of what is no proposal at all."""
    problem: str = ""
    """How it failed; empty when it did not."""


@dataclass(slots=True)
class _Desk:
    """One proposer, and how it stands."""

    proposer: Proposer
    name: str
    thinks: bool = False
    pause: float = 0.0
    again_at: float = 0.0
    failed: bool = False
    """It waits because it failed, and not because it had no ideas."""
    problem: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    taken: int = 0
    fruitless: int = 0
    """Answers since the last decision, or the last idea that was taken, without one."""

    def wait_longer(self, now: float) -> None:
        self.pause = min(max(self.pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self.again_at = now + self.pause


class Refill:
    """Keeps a list of proposers busy, and gives out what they answer."""

    def __init__(
        self, proposers: Sequence[Proposer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._desks = [_Desk(proposer, proposer.name) for proposer in proposers]
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._clock = clock

    def wants(self, count: int, *, hungry: bool) -> bool:
        """Whether `ask` would ask anybody."""
        return next(self._askable(count, hungry), None) is not None

    def ask(self, situation: Situation, count: int, *, hungry: bool) -> None:
        """Ask for `count` ideas.

        Args:
            hungry: a device has nothing to do; whoever can answer now is welcome.
        """
        for desk in self._askable(count, hungry):
            desk.thinks = True
            told = replace(situation, refused=dict(desk.refused))
            Thread(
                target=self._think,
                args=(desk.proposer, desk.name, told, count),
                name=f"asking {desk.name}",
                daemon=True,  # a thought must not hold up the end of the process
            ).start()

    @property
    def answered(self) -> bool:
        """Whether `answers` would have any."""
        return not self._answers.empty()

    def answers(self) -> list[Answer]:
        """What was answered since the last call."""
        found: list[Answer] = []
        while True:
            try:
                answer = self._answers.get_nowait()
            except Empty:
                return found
            found.append(answer)
            self._note(answer)

    def took(self, proposer: str, taken: int, refused: dict[str, str]) -> None:
        """What became of an answer. One of which nothing could be used is a reason to wait."""
        for desk in self._named(proposer):
            desk.taken += taken
            desk.refused = dict(list(refused.items())[-REMEMBERED:])
            if taken:
                desk.pause = desk.again_at = 0.0
                desk.fruitless = 0
            elif not desk.failed:
                desk.wait_longer(self._clock())
                desk.fruitless += 1

    def refuse(self, proposer: str, title: str, reason: str) -> None:
        """An idea that was taken, and turned out to be of no use."""
        for desk in self._named(proposer):
            kept = list(desk.refused.items())[-(REMEMBERED - 1) :]
            desk.refused = dict([*kept, (title, reason)])

    def news(self) -> None:
        """Something was decided: who had no ideas may have one now."""
        for desk in self._desks:
            if not desk.failed:
                desk.pause = desk.again_at = 0.0
            desk.fruitless = 0

    def close(self) -> None:
        """Call off who still thinks; whoever can be stopped says so by having `stop`."""
        for desk in self._desks:
            if desk.thinks and isinstance(desk.proposer, Stoppable):
                desk.proposer.stop()

    @property
    def is_exhausted(self) -> bool:
        """Whether nobody has an idea left on the evidence there is; who failed may have one."""
        return all(
            desk.fruitless >= ENOUGH and not desk.thinks and not desk.failed for desk in self._desks
        )

    @property
    def thinking(self) -> list[str]:
        return [desk.name for desk in self._desks if desk.thinks]

    def problems(self) -> list[str]:
        """Who failed, how, and when it is asked again."""
        now = self._clock()
        return [
            f"proposer {desk.name} failed: {desk.problem}; asked again in"
            f" {max(0.0, desk.again_at - now):.0f} s"
            for desk in self._desks
            if desk.failed
        ]

    # ── who is asked ──────────────────────────────────────────────────────────────────────

    def _askable(self, count: int, hungry: bool) -> Iterator[_Desk]:
        """The first that can answer; none while one before it thinks and nobody is hungry."""
        if count <= 0:
            return
        now = self._clock()
        for desk in self._desks:
            if desk.thinks:
                if not hungry:
                    return
                continue
            if desk.again_at <= now:
                yield desk
                return

    def _named(self, name: str) -> list[_Desk]:
        return [desk for desk in self._desks if desk.name == name]

    # ── in the thread ─────────────────────────────────────────────────────────────────────

    def _think(self, proposer: Proposer, name: str, situation: Situation, count: int) -> None:
        answer = Answer(name, problem="it ended without an answer")
        try:
            answer = _sorted_out(name, proposer.propose(situation, count), count)
        except AutohypothesisError as error:
            answer = Answer(name, problem=str(error)[:SHOWN])
        except Exception as error:  # somebody else's code: whatever it raises is its failure
            answer = Answer(name, problem=f"{type(error).__name__}: {error}"[:SHOWN])
        finally:
            self._answers.put(answer)

    def _note(self, answer: Answer) -> None:
        for desk in self._named(answer.proposer):
            desk.thinks = False
            desk.failed, desk.problem = bool(answer.problem), answer.problem
            if desk.failed:
                desk.wait_longer(self._clock())


def _sorted_out(name: str, said: Sequence[object], count: int) -> Answer:
    """What can be read as proposals, and what cannot."""
    proposals: list[Proposal] = []
    refused: dict[str, str] = {}
    for one in list(said)[:count]:
        try:
            proposals.append(Proposal.model_validate(one, from_attributes=False))
        except ValidationError as error:
            title = one.get("title") if isinstance(one, dict) else getattr(one, "title", None)
            first = error.errors(include_url=False, include_input=False)[0]
            refused[str(title or f"idea {len(refused) + 1}")[:200]] = str(first["msg"])
    return Answer(name, tuple(proposals), refused)
