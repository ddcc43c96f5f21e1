"""A search over knobs that needs no model to ask: one knob at a time, then several at once."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from autohypothesis.fleet.proposing import Situation
from autohypothesis.proposers import joint, wording
from autohypothesis.proposers.axis import Axis, Key
from autohypothesis.proposers.history import History
from autohypothesis.proposers.knobs import knobs_of
from autohypothesis.proposers.moves import Move, moves
from autohypothesis.schema import Proposal

FIRST = -0.1
"""Priority of the best idea: what a person writes without a priority (0) goes before it."""
STEP = 0.01
LEAST = -1.0


class Search:
    """Proposes what the evidence points to; the same situation gets the same answer.

    It remembers nothing but what was refused around the present reference.
    """

    name = "search"

    def __init__(self, *, mix: float | None = None) -> None:
        """
        Args:
            mix: share of joint moves while moves of one knob still pay; None: no such moves then.
        """
        self._mix = mix
        self._refused: set[str] = set()
        self._around: Key | None = None

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """At most `count` ideas, best first; none before the reference's settings are known."""
        if count < 1 or not situation.reference or situation.steering.stop:
            return []
        axes = {name: Axis(name, knob) for name, knob in knobs_of(situation).items()}
        history = History(situation, axes)
        self._remember(situation, history)
        random = Random(
            f"{situation.tag} {len(situation.trials)} {len(situation.open)} {len(self._refused)}"
        )
        singles = [move for move in moves(history) if not self._is_refused(history, move)]
        wanted = self._joint_share(history, singles, count, random)
        answer = self._singles(history, singles[: count - wanted], first=0)
        answer += self._joint(history, answer, count - len(answer), random)
        rest = singles[count - wanted :]
        answer += self._singles(history, _others(history, rest, answer), first=len(answer))
        return answer[:count]

    def _joint_share(
        self, history: History, singles: list[Move], count: int, random: Random
    ) -> int:
        """How many of `count` shall turn several knobs."""
        if not singles or history.is_plateau():
            return count
        return sum(random.random() < (self._mix or 0.0) for _ in range(count))

    def _singles(self, history: History, found: list[Move], first: int) -> list[Proposal]:
        return [
            wording.single(history, move, _priority(place))
            for place, move in enumerate(found, start=first)
        ]

    def _joint(
        self, history: History, before: list[Proposal], count: int, random: Random
    ) -> list[Proposal]:
        """Joint moves to follow those of an answer."""
        taken = _keys(history, before)
        found: list[Proposal] = []
        for one in joint.suggestions(history, count, random, taken):
            place = len(before) + len(found)
            proposal = wording.joint(history, one.overrides, how=one.how, priority=_priority(place))
            if proposal.title not in self._refused:
                found.append(proposal)
        return found

    def _remember(self, situation: Situation, history: History) -> None:
        """What was refused counts until the reference moves."""
        if history.here != self._around:
            self._around, self._refused = history.here, set()
        self._refused.update(situation.refused)

    def _is_refused(self, history: History, move: Move) -> bool:
        return wording.title_of(history, {move.knob: move.after}) in self._refused


def _priority(place: int) -> float:
    return max(LEAST, round(FIRST - STEP * place, 4))


def _keys(history: History, answer: list[Proposal]) -> set[Key]:
    return {history.key(history.with_overrides(one.config_overrides)) for one in answer}


def _others(history: History, found: list[Move], answer: list[Proposal]) -> list[Move]:
    """The moves that an answer does not hold yet."""
    taken = _keys(history, answer)
    return [
        move
        for move in found
        if history.key(history.with_overrides({move.knob: move.after})) not in taken
    ]
