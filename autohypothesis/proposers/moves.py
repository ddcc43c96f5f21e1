"""One knob at a time around the reference, the most promising move first.

The order is made of places in a line: a knob's place among the knobs, then how much later its
other direction, its smaller steps and what lost before come. Nothing that was seen is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from autohypothesis.proposers.axis import Axis, Step, canonical
from autohypothesis.proposers.history import Effect, History
from autohypothesis.schema import Setting

Kind = Literal["size", "batch", "rate", "other"]
KINDS: tuple[Kind, ...] = ("size", "batch", "rate")
"""What the rest is worth little before: they take turns."""

OTHER_WAY = 6
"""Places by which the second direction of a knob comes later."""
FOLLOW = 100
"""Places that a direction which improved jumps ahead."""
HOPELESS = 3.0
"""A loss of so many min_delta against an older reference counts against the present one too."""

_RATIO = re.compile(r"(?:RATIO|FRAC|FRACTION|SHARE|STEPS|DECAY|BETAS?)$")
_RATE = re.compile(r"(?:^|_)(?:LR|RATE|LEARNING_RATE)(?:_|$)")
_BATCH = re.compile(r"(?:^|_)(?:BATCH|BATCH_SIZE|ACCUM\w*)(?:_|$)")
_SIZE = re.compile(
    r"(?:^|_)(?:N_?)?(?:DEPTH|LAYERS?|WIDTH|DIM|HEADS?|EMBD|HIDDEN|SIZE|UNITS|CHANNELS|FILTERS"
    r"|ASPECT_RATIO|MODEL)(?:_|$)"
)


@dataclass(frozen=True)
class Move:
    """One knob's next value."""

    knob: str
    before: Setting
    after: Setting
    direction: int
    place: float
    """Lower is sooner."""
    follows: Effect | None = None
    """The improvement whose direction it keeps."""


def kind_of(axis: Axis) -> Kind:
    """What a knob governs, by its name; whole numbers without a telling name are sizes."""
    name = axis.name.upper()
    if _BATCH.search(name):
        return "batch"
    if _SIZE.search(name):
        return "size"
    if _RATE.search(name) and not _RATIO.search(name):
        return "rate"
    return "size" if axis.knob.type == "int" and not _RATIO.search(name) else "other"


def in_order(axes: Mapping[str, Axis]) -> list[str]:
    """The knobs, most promising first: size, batch and rate in turns, then choices and others."""
    groups = {kind: [n for n, axis in axes.items() if kind_of(axis) == kind] for kind in KINDS}
    turns = zip_longest(*groups.values())
    first = [name for turn in turns for name in turn if name is not None]
    rest = [name for name in axes if name not in first]
    return first + sorted(rest, key=lambda name: axes[name].knob.type != "choice")


def moves(history: History) -> list[Move]:
    """Every move that is worth a run, best first."""
    order = in_order(history.axes)
    found = [
        move
        for index, name in enumerate(order)
        for move in _moves_of(history, history.axes[name], index, len(order))
    ]
    return sorted(found, key=lambda move: move.place)


def _moves_of(history: History, axis: Axis, index: int, knobs: int) -> Iterator[Move]:
    here = history.reference[axis.name]
    for step in axis.steps(here):
        effects = history.of(axis.name, step.direction)
        if not history.is_new({axis.name: step.value}) or _is_lost(history, step, effects):
            continue
        follows = _improvement(history, effects)
        place = float(index)
        place += OTHER_WAY * (step.direction != _first_way(axis))
        place += 2 * knobs * step.fine
        place += 3 * knobs * any(_lost(history, one) for one in effects)
        place += 3 * knobs * _was_left(history, axis, step)
        place += 3 * knobs * ((axis.name, step.direction) in history.waiting)
        if follows is not None and not step.fine:
            place -= FOLLOW
        yield Move(axis.name, here, step.value, step.direction, place, follows)


def _first_way(axis: Axis) -> int:
    """Smaller sizes and batches first: more steps in the same time, and never out of memory."""
    return -1 if kind_of(axis) in ("size", "batch") else 1


def _lost(history: History, effect: Effect) -> bool:
    """Whether this was clearly worse, and not by chance."""
    return effect.crashed or (
        effect.gain is not None and effect.gain < -history.situation.min_delta
    )


def _is_lost(history: History, step: Step, effects: list[Effect]) -> bool:
    """Whether evidence is against this step: measured here, or overwhelming elsewhere."""
    hopeless = -HOPELESS * history.situation.min_delta
    for effect in effects:
        if _lost(history, effect):
            beyond = history.beyond(effect, step.value)
            against = effect.gain is None or effect.gain < hopeless
            if beyond and (effect.here or against):
                return True
            if effect.here and history.axes[effect.knob].ordered:
                return True  # a smaller step the same way: the joint moves may still take it
    return False


def _was_left(history: History, axis: Axis, step: Step) -> bool:
    """Whether this is the way back to where a keep came from, or past it."""
    there = axis.position(step.value)
    for effect in history.effects:
        if effect.knob != axis.name or not effect.kept:
            continue
        if canonical(effect.before) == canonical(step.value):
            return True
        before = axis.position(effect.before)
        back = axis.ordered and effect.direction == -step.direction
        known = there is not None and before is not None
        if back and known and step.direction * (there - before) >= 0:  # type: ignore[operator]
            return True
    return False


def _improvement(history: History, effects: list[Effect]) -> Effect | None:
    """The last effect in this direction, if it was for the better."""
    last = effects[-1] if effects else None
    if last is None or last.gain is None:
        return last if last is not None and last.kept else None
    better = last.kept or last.gain > history.situation.min_delta
    return last if better and last.gain > 0 else None
