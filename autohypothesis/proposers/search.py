"""A search over knobs that needs no model: one knob at a time, then several at once.

Single moves are ordered by a penalty: the rank of the knob, more for its other direction, for its
smaller steps and for what lost before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

from autohypothesis.fleet.proposing import Situation
from autohypothesis.plain import cut
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
from autohypothesis.records.comparison import fixed
from autohypothesis.schema import Prediction, Proposal, Setting

FIRST = -0.1
"""Priority of the best idea: what a person writes without a priority (0) goes before it."""
STEP = 0.01
LEAST = -1.0
OTHER_WAY = 6
"""Places by which the second direction of a knob comes later."""
SAME_DIRECTION_BONUS = 100
"""Places that a direction which improved jumps ahead."""
CLEARLY_WORSE_FACTOR = 3.0
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
    asked_early = True

    def __init__(self, *, mix: float | None = None, fills_in: bool = False) -> None:
        """
        Args:
            mix: share of joint moves while moves of one knob still pay; None: no such moves then.
            fills_in: it stands in for proposers that a user named: it gets what they leave, and is
                not asked while an idle device may still wait for them.
        """
        self._mix = mix
        self.fills_in = fills_in
        self._refused: set[str] = set()
        self._around: tuple[str, Key] | None = None

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return at most `count` ideas, best first; none before the reference's settings."""
        if count < 1 or not situation.reference or situation.steering.stop:
            return []
        axes = {name: Axis(name, knob) for name, knob in knobs_of(situation).items()}
        history = History(situation, axes)
        here = situation.code_hash, history.here
        if here != self._around:  # what was refused counts until the reference moves
            self._around, self._refused = here, set()
        self._refused.update(situation.refused)
        random = Random(
            f"{situation.tag} {len(situation.trials)} {len(situation.open)} {len(self._refused)}"
        )
        singles = [
            ({move.knob: move.after}, _reason(history, move))
            for move in moves(history)
            if title_of(history, {move.knob: move.after}) not in self._refused
        ]
        joint_share = sum(random.random() < (self._mix or 0.0) for _ in range(count))
        alone = 0 if not singles or history.is_plateau() else count - joint_share
        ideas = singles[:alone]
        taken = {history.change_key(overrides) for overrides, _ in ideas}
        for overrides, origin in joint.suggestions(history, count - len(ideas), random, taken):
            title = title_of(history, overrides)
            if title not in self._refused:
                several = len(overrides) > 1
                what = "Several knobs at once" if several else "One change to the reference"
                ideas.append((overrides, f"{what}, {origin}: {title}."))
        taken = {history.change_key(overrides) for overrides, _ in ideas}
        ideas += [idea for idea in singles[alone:] if history.change_key(idea[0]) not in taken]
        return [_proposal(history, *idea, place) for place, idea in enumerate(ideas[:count])]


# ── moves of one knob ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Move:
    """One knob's next value."""

    knob: str
    after: Setting
    rank: float
    """Lower is sooner."""
    follows: Effect | None
    """The improvement whose direction it keeps."""


def moves(history: History) -> list[Move]:
    """Return every move that is worth a run, best first."""
    order = in_order(history.axes)
    each = (_moves_of(history, history.axes[name], n, len(order)) for n, name in enumerate(order))
    return sorted(chain.from_iterable(each), key=lambda move: move.rank)


def _moves_of(history: History, axis: Axis, index: int, knobs: int) -> Iterator[Move]:
    # Smaller sizes and batches first: more steps in the same time, and never out of memory.
    first_way = -1 if kind_of(axis) in ("size", "batch") else 1
    for step in axis.steps(history.reference[axis.name]):
        effects = history.of(axis.name, step.direction)
        is_new = history.change_key({axis.name: step.value}) not in history.seen
        if not is_new or _is_lost(history, step, effects):
            continue
        follows = _improvement(history, effects)
        rank = float(index)
        rank += OTHER_WAY * (step.direction != first_way)
        rank += 2 * knobs * step.fine
        rank += 3 * knobs * any(_lost(history, effect) for effect in effects)
        rank += 3 * knobs * _reverts_keep(history, axis, step)
        rank += 3 * knobs * ((axis.name, step.direction) in history.waiting)
        if follows is not None and not step.fine:
            rank -= SAME_DIRECTION_BONUS
        yield Move(axis.name, step.value, rank, follows)


def _lost(history: History, effect: Effect) -> bool:
    """Return whether this was clearly worse, and not by chance."""
    gain = effect.gain
    return effect.crashed or (gain is not None and gain < -history.situation.min_delta)


def _is_lost(history: History, step: KnobStep, effects: list[Effect]) -> bool:
    """Return whether evidence is against this step: measured here, or overwhelming elsewhere."""
    hopeless = -CLEARLY_WORSE_FACTOR * history.situation.min_delta
    for effect in effects:
        if _lost(history, effect):
            against = effect.here or effect.gain is None or effect.gain < hopeless
            if against and history.beyond(effect, step.value):
                return True
            if effect.here and history.axes[effect.knob].ordered:
                return True  # a smaller step the same way: the joint moves may still take it
    return False


def _reverts_keep(history: History, axis: Axis, step: KnobStep) -> bool:
    """Return whether this is the way back to where a keep came from, or past it."""
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
    if not effects or (last := effects[-1]).overruled:
        return None
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
    return cut(", ".join(parts), MAX_TITLE)


def shown(value: Setting) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(shown, value))})"
    return " ".join(str(value).split())


def _reason(history: History, move: Move) -> str:
    reason = f"One change to the reference: {title_of(history, {move.knob: move.after})}."
    if (effect := move.follows) is None:
        return reason
    gain = "" if effect.gain is None else f" by {effect.gain:.4g}"
    went = f"{shown(effect.before)} -> {shown(effect.after)}"
    return (
        f"{reason} {went} improved {history.situation.metric}{gain} ({effect.experiment_id}), "
        "so the next step goes the same way."
    )


def _proposal(history: History, overrides: dict[str, Setting], reason: str, place: int) -> Proposal:
    """Return a proposal that is the `place`th of its answer."""
    reasons = [reason, *(_tried(history, name) for name in overrides)]
    return Proposal(
        title=title_of(history, overrides),
        rationale=cut(" ".join(reasons), MAX_RATIONALE),
        config_overrides=overrides,
        prediction=_prediction(history, overrides),
        priority=max(LEAST, round(FIRST - STEP * place, 4)),
    )


def _prediction(history: History, overrides: Mapping[str, Setting]) -> Prediction:
    """Predict half of what each direction did when it was last tried; else no effect."""
    tried = [
        history.of(name, history.way(name, history.reference[name], value))
        for name, value in overrides.items()
    ]
    gains = [effects[-1].gain for effects in tried if effects and effects[-1].gain is not None]
    if not gains:
        return Prediction(delta=0.0, confidence=0.1)
    return Prediction(delta=float(f"{_delta(history, sum(gains) / 2):.4g}") + 0.0, confidence=0.3)


def _delta(history: History, gain: float) -> float:
    """Return the change of the metric that a gain stands for."""
    return -gain if history.situation.direction == "minimize" else gain


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
    delta = fixed(_delta(history, effect.gain) + 0.0, 4, "+")
    return f"{delta}{' (kept)' if effect.kept else ''}"
