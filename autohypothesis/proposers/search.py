"""A search over knobs that needs no model: one knob at a time, then several at once.

Single moves are ordered by places in a line: a knob's place among the knobs, then how much later
its other direction, its smaller steps and what lost before come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from autohypothesis.fleet.proposing import Situation
from autohypothesis.proposers import joint
from autohypothesis.proposers.history import Effect, History
from autohypothesis.proposers.knobs import (
    Axis,
    Key,
    KnobStep,
    canonical,
    in_order,
    kind_of,
    knobs_of,
)
from autohypothesis.schema import Prediction, Proposal, Setting

FIRST = -0.1
"""Priority of the best idea: what a person writes without a priority (0) goes before it."""
STEP = 0.01
LEAST = -1.0
OTHER_WAY = 6
"""Places by which the second direction of a knob comes later."""
FOLLOW = 100
"""Places that a direction which improved jumps ahead."""
HOPELESS = 3.0
"""A loss of so many min_delta against an older reference counts against the present one too."""
SHOWN = 6
"""Earlier trials of a knob that a reason mentions."""
MAX_TITLE = 200
MAX_RATIONALE = 4_000


class KnobSearch:
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
        """Return at most `count` ideas, best first; none before the reference's settings."""
        if count < 1 or not situation.reference or situation.steering.stop:
            return []
        axes = {name: Axis(name, knob) for name, knob in knobs_of(situation).items()}
        history = History(situation, axes)
        self._remember(situation, history)
        random = Random(
            f"{situation.tag} {len(situation.trials)} {len(situation.open)} {len(self._refused)}"
        )
        singles = [
            move
            for move in moves(history)
            if title_of(history, {move.knob: move.after}) not in self._refused
        ]
        alone = count - self._joint_share(history, singles, count, random)
        answer = [_single(history, move, n) for n, move in enumerate(singles[:alone])]
        taken = {history.key_of(proposal.config_overrides) for proposal in answer}
        for overrides, how in joint.suggestions(history, count - len(answer), random, taken):
            if title_of(history, overrides) not in self._refused:
                answer.append(_joint(history, overrides, how, len(answer)))
        taken = {history.key_of(proposal.config_overrides) for proposal in answer}
        for move in singles[alone:]:
            if history.key_of({move.knob: move.after}) not in taken:
                answer.append(_single(history, move, len(answer)))
        return answer[:count]

    def _joint_share(
        self, history: History, singles: list[Move], count: int, random: Random
    ) -> int:
        """Return how many of `count` ideas turn several knobs."""
        if not singles or history.is_plateau():
            return count
        return sum(random.random() < (self._mix or 0.0) for _ in range(count))

    def _remember(self, situation: Situation, history: History) -> None:
        """Note what was refused; that counts until the reference moves."""
        if history.here != self._around:
            self._around, self._refused = history.here, set()
        self._refused.update(situation.refused)


# ── moves of one knob ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Move:
    """One knob's next value."""

    knob: str
    after: Setting
    direction: int
    place: float
    """Lower is sooner."""
    follows: Effect | None = None
    """The improvement whose direction it keeps."""


def moves(history: History) -> list[Move]:
    """Return every move that is worth a run, best first."""
    order = in_order(history.axes)
    found = [
        move
        for index, name in enumerate(order)
        for move in _moves_of(history, history.axes[name], index, len(order))
    ]
    return sorted(found, key=lambda move: move.place)


def _moves_of(history: History, axis: Axis, index: int, knobs: int) -> Iterator[Move]:
    # Smaller sizes and batches first: more steps in the same time, and never out of memory.
    first_way = -1 if kind_of(axis) in ("size", "batch") else 1
    for step in axis.steps(history.reference[axis.name]):
        effects = history.of(axis.name, step.direction)
        is_new = history.key_of({axis.name: step.value}) not in history.seen
        if not is_new or _is_lost(history, step, effects):
            continue
        follows = _improvement(history, effects)
        place = float(index)
        place += OTHER_WAY * (step.direction != first_way)
        place += 2 * knobs * step.fine
        place += 3 * knobs * any(_lost(history, effect) for effect in effects)
        place += 3 * knobs * _was_left(history, axis, step)
        place += 3 * knobs * ((axis.name, step.direction) in history.waiting)
        if follows is not None and not step.fine:
            place -= FOLLOW
        yield Move(axis.name, step.value, step.direction, place, follows)


def _lost(history: History, effect: Effect) -> bool:
    """Whether this was clearly worse, and not by chance."""
    return effect.crashed or (
        effect.gain is not None and effect.gain < -history.situation.min_delta
    )


def _is_lost(history: History, step: KnobStep, effects: list[Effect]) -> bool:
    """Whether evidence is against this step: measured here, or overwhelming elsewhere."""
    hopeless = -HOPELESS * history.situation.min_delta
    for effect in effects:
        if _lost(history, effect):
            against = effect.here or effect.gain is None or effect.gain < hopeless
            if against and history.beyond(effect, step.value):
                return True
            if effect.here and history.axes[effect.knob].ordered:
                return True  # a smaller step the same way: the joint moves may still take it
    return False


def _was_left(history: History, axis: Axis, step: KnobStep) -> bool:
    """Whether this is the way back to where a keep came from, or past it."""
    there = axis.position(step.value)
    for effect in history.effects:
        if effect.knob != axis.name or not effect.kept:
            continue
        if canonical(effect.before) == canonical(step.value):
            return True
        before = axis.position(effect.before)
        if not axis.ordered or effect.direction == step.direction or None in (there, before):
            continue
        if step.direction * (there - before) >= 0:  # type: ignore[operator]
            return True
    return False


def _improvement(history: History, effects: list[Effect]) -> Effect | None:
    """Return the last effect in this direction, where it was for the better."""
    if not effects:
        return None
    last = effects[-1]
    if last.gain is None:
        return last if last.kept else None
    better = last.kept or last.gain > history.situation.min_delta
    return last if better and last.gain > 0 else None


# ── proposals in words ──────────────────────────────────────────────────────────────────────


def title_of(history: History, overrides: Mapping[str, Setting]) -> str:
    """Return `DEPTH 3 -> 2`, for each knob."""
    parts = (
        f"{name} {shown(history.reference[name])} -> {shown(value)}"
        for name, value in overrides.items()
    )
    return _cut(", ".join(parts), MAX_TITLE)


def shown(value: Setting) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(shown, value))})"
    return " ".join(str(value).split())


def _single(history: History, move: Move, place: int) -> Proposal:
    overrides = {move.knob: move.after}
    reasons = [f"One change to the reference: {title_of(history, overrides)}."]
    if move.follows is not None:
        reasons.append(_following(history, move.follows))
    return _proposal(history, overrides, reasons, [(move.knob, move.direction)], place)


def _joint(history: History, overrides: dict[str, Setting], how: str, place: int) -> Proposal:
    what = "Several knobs at once" if len(overrides) > 1 else "One change to the reference"
    ways = [
        (name, history.way(name, history.reference[name], value))
        for name, value in overrides.items()
    ]
    reasons = [f"{what}, {how}: {title_of(history, overrides)}."]
    return _proposal(history, overrides, reasons, ways, place)


def _proposal(
    history: History,
    overrides: dict[str, Setting],
    reasons: list[str],
    ways: Sequence[tuple[str, int]],
    place: int,
) -> Proposal:
    """Return a proposal that is the `place`th of its answer.

    Args:
        ways: (knob, direction) of each change.
    """
    reasons = reasons + [_tried(history, name) for name in overrides]
    return Proposal(
        title=title_of(history, overrides),
        rationale=_cut(" ".join(reasons), MAX_RATIONALE),
        config_overrides=overrides,
        prediction=_prediction(history, ways),
        priority=max(LEAST, round(FIRST - STEP * place, 4)),
    )


def _prediction(history: History, ways: Sequence[tuple[str, int]]) -> Prediction:
    """Predict half of what each direction did when it was last tried; else no effect."""
    effects = [history.of(*way) for way in ways]
    last = [tried[-1].gain for tried in effects if tried]
    gains = [gain for gain in last if gain is not None]
    if not gains:
        return Prediction(delta=0.0, confidence=0.1)
    return Prediction(delta=float(f"{_delta(history, sum(gains) / 2):.4g}") + 0.0, confidence=0.3)


def _delta(history: History, gain: float) -> float:
    """Return the change of the metric that a gain stands for."""
    return -gain if history.situation.direction == "minimize" else gain


def _following(history: History, effect: Effect) -> str:
    went = f"{shown(effect.before)} -> {shown(effect.after)}"
    gain = "" if effect.gain is None else f" by {effect.gain:.4g}"
    return (
        f"{went} improved {history.situation.metric}{gain} ({effect.experiment_id}), "
        "so the next step goes the same way."
    )


def _tried(history: History, knob: str) -> str:
    """Tell the earlier trials of a knob, newest last."""
    seen = {effect.experiment_id: effect for effect in history.effects if effect.knob == knob}
    if not seen:
        return f"{knob} has not been turned alone before."
    parts = [
        f"{shown(effect.before)} -> {shown(effect.after)} {_effect(history, effect)}"
        for effect in list(seen.values())[-SHOWN:]
    ]
    return f"{knob} so far: {'; '.join(parts)}."


def _effect(history: History, effect: Effect) -> str:
    if effect.crashed:
        return "crashed"
    if effect.gain is None:
        return "has nothing to compare with"
    return f"{_delta(history, effect.gain) + 0.0:+.4f}{' (kept)' if effect.kept else ''}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
