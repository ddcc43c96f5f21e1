"""How a search says what it proposes: titles, reasons from the evidence, predictions."""

from __future__ import annotations

from collections.abc import Sequence

from autohypothesis.proposers.history import Effect, History
from autohypothesis.proposers.moves import Move
from autohypothesis.schema import Prediction, Proposal, Setting

SHOWN = 6
"""Earlier trials of a knob that a reason mentions."""
MAX_TITLE = 200
MAX_RATIONALE = 4_000


def shown(value: Setting) -> str:
    """A setting in a title."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(shown(one) for one in value)})"
    return " ".join(str(value).split())


def title_of(history: History, overrides: dict[str, Setting]) -> str:
    """`DEPTH 3 -> 2`, for each knob."""
    parts = [
        f"{name} {shown(history.reference[name])} -> {shown(value)}"
        for name, value in overrides.items()
    ]
    return _cut(", ".join(parts), MAX_TITLE)


def single(history: History, move: Move, priority: float) -> Proposal:
    """A move of one knob as a proposal."""
    overrides = {move.knob: move.after}
    reasons = [f"One change to the reference: {title_of(history, overrides)}."]
    if move.follows is not None:
        reasons.append(_following(history, move, move.follows))
    reasons.append(_tried(history, move.knob))
    return Proposal(
        title=title_of(history, overrides),
        rationale=_cut(" ".join(reasons), MAX_RATIONALE),
        config_overrides=overrides,
        prediction=prediction(history, [history.of(move.knob, move.direction)]),
        priority=priority,
    )


def joint(
    history: History, overrides: dict[str, Setting], *, how: str, priority: float
) -> Proposal:
    """A move of several knobs as a proposal."""
    title = title_of(history, overrides)
    what = "Several knobs at once" if len(overrides) > 1 else "One change to the reference"
    reasons = [f"{what}, {how}: {title}."]
    reasons += [_tried(history, name) for name in overrides]
    ways = [
        history.of(name, history.way(name, history.reference[name], value))
        for name, value in overrides.items()
    ]
    return Proposal(
        title=title,
        rationale=_cut(" ".join(reasons), MAX_RATIONALE),
        config_overrides=overrides,
        prediction=prediction(history, ways),
        priority=priority,
    )


def prediction(history: History, ways: Sequence[Sequence[Effect]]) -> Prediction:
    """Half of what each direction did when it was last tried; no effect, where it never was."""
    last = [effects[-1].gain for effects in ways if effects]
    gains = [gain for gain in last if gain is not None]
    if not gains:
        return Prediction(delta=0.0, confidence=0.1)
    expected = sum(gains) / 2
    delta = -expected if history.situation.direction == "minimize" else expected
    return Prediction(delta=float(f"{delta:.4g}") + 0.0, confidence=0.3)


def _following(history: History, move: Move, effect: Effect) -> str:
    went = f"{shown(effect.before)} -> {shown(effect.after)}"
    gain = "" if effect.gain is None else f" by {effect.gain:.4g}"
    return (
        f"{went} improved {history.situation.metric}{gain} ({effect.experiment_id}), "
        "so the next step goes the same way."
    )


def _tried(history: History, knob: str) -> str:
    """What was seen of a knob, newest last."""
    found = {one.experiment_id: one for one in history.effects if one.knob == knob}
    if not found:
        return f"{knob} has not been turned alone before."
    parts = [
        f"{shown(one.before)} -> {shown(one.after)} {_effect(history, one)}"
        for one in list(found.values())[-SHOWN:]
    ]
    return f"{knob} so far: {'; '.join(parts)}."


def _effect(history: History, effect: Effect) -> str:
    if effect.crashed:
        return "crashed"
    if effect.gain is None:
        return "has nothing to compare with"
    delta = -effect.gain if history.situation.direction == "minimize" else effect.gain
    return f"{delta + 0.0:+.4f}{' (kept)' if effect.kept else ''}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
