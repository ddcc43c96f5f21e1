"""Moves of several knobs at once: Optuna's sampler suggests them, knowing every run.

A study lives for one question. Runs under way are told as running, so that the sampler stays
away from them; crashes are told as failures that rank behind everything measured. The sampler
answers in a box around the reference: what lies outside of it belongs to another recipe.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from autohypothesis.proposers.history import History, best_and_latest
from autohypothesis.proposers.knobs import Axis, Key, canonical, in_order, number
from autohypothesis.schema import Setting

if TYPE_CHECKING:
    import optuna

MOST = 4
"""Knobs in one joint move; the fewest are 2."""
TRIES = 12
PATIENCE_S = 1.2
"""After so long, values are drawn at random instead."""
MAX_TRIALS = 600
BEST = 100
"""Of those, so many of the best; the others are the latest."""
REACH = 4.0
SHARE = 0.5
"""How far a box reaches: by a factor, or in shares of a range."""


Overrides = dict[str, Setting]
Suggestion = tuple[Overrides, str]
"""Settings that differ from the reference in several knobs, and how they were found."""


@dataclass(frozen=True)
class Box:
    """The part of an axis around the reference, in the numbers that a sampler sees."""

    axis: Axis
    here: Setting
    low: float
    high: float
    values: tuple[Setting, ...] = ()
    """Of a choice: what the numbers stand for."""

    def told(self, value: Setting) -> float | int | None:
        """Return `value` for the sampler; None where it is outside."""
        if self.values:
            keys = [canonical(choice) for choice in self.values]
            return keys.index(canonical(value)) if canonical(value) in keys else None
        inside = number(value)
        if inside is None or not self.low <= inside <= self.high:
            return None
        return int(inside) if self.axis.knob.type == "int" else inside

    def meant(self, answer: float) -> Setting:
        """Return the value that the sampler's answer stands for."""
        return self.values[int(answer)] if self.values else self.axis.rounded(answer, self.here)

    def drawn(self, random: Random) -> Setting:
        """Return a random value."""
        if self.values:
            return random.choice(self.values)
        if self.axis.knob.type == "int":
            return self.meant(random.randint(int(self.low), int(self.high)))
        if self.axis.knob.log:
            return self.meant(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.meant(random.uniform(self.low, self.high))


def suggestions(
    history: History, count: int, random: Random, besides: set[Key]
) -> Iterator[Suggestion]:
    """Yield up to `count` joint moves that are new, none of them in `besides`.

    The sampler's come before random ones.
    """
    boxes = _boxes(history)
    if not boxes or count < 1:
        return
    taken = history.seen | besides
    study: optuna.Study | None = None
    _optuna()
    began = time.monotonic()  # without the import, which is paid once
    for _ in range(count):
        found = None
        if time.monotonic() - began < PATIENCE_S:
            study = study or _study(history, boxes, random.randrange(2**31))
            found = _sampled(history, study, boxes, taken, random, began)
        found = found or _drawn(history, boxes, taken, random)
        if found is None:
            return
        taken.add(history.key_of(found[0]))
        yield found


# ── the box ─────────────────────────────────────────────────────────────────────────────────


def _boxes(history: History) -> dict[str, Box]:
    """Return a box for each knob with something to choose near the reference."""
    boxes = {name: _box(history, axis) for name, axis in history.axes.items()}
    return {name: box for name, box in boxes.items() if box is not None}


def _box(history: History, axis: Axis) -> Box | None:
    here = history.reference[axis.name]
    if axis.knob.type == "choice":
        return _choice_box(history, axis, here)
    value, knob = number(here), axis.knob
    if value is None:
        return None
    least, most = axis.bounds
    if knob.type == "int":
        low, high = min(value - 2, value / 2), max(value + 2, value * 2)
    elif knob.log and value > 0:
        low, high = value / REACH, value * REACH
    else:
        reach = SHARE * (most - least)
        low, high = value - reach, value + reach
    low, high = max(low, least), min(high, most)
    for effect in history.effects:
        bad = number(effect.after) if effect.knob == axis.name and effect.crashed else None
        if bad is not None and effect.direction > 0 and bad > value:
            high = min(high, (bad + value) / 2)
        elif bad is not None and effect.direction < 0 and bad < value:
            low = max(low, (bad + value) / 2)
    if knob.type == "int":
        low, high = math.ceil(low), math.floor(high)
    return Box(axis, value, low, high) if low < high else None


def _choice_box(history: History, axis: Axis, here: Setting) -> Box | None:
    """Return the reference's choice and those next to it; of words, all."""
    values = [step.value for step in axis.steps(here) if not history.crashes(axis.name, step.value)]
    if not values:
        return None
    values.append(here)
    if axis.ordered:
        values.sort(key=lambda value: number(value) or 0.0)
    return Box(axis, here, 0, len(values) - 1, tuple(values))


# ── asking ──────────────────────────────────────────────────────────────────────────────────


def _study(history: History, boxes: Mapping[str, Box], seed: int) -> optuna.Study:
    """Return a study that knows every trial inside the box, and every hypothesis under way."""
    library, direction = _optuna(), history.situation.direction
    sampler = library.samplers.TPESampler(
        multivariate=True, constant_liar=True, n_startup_trials=5, seed=seed
    )
    study: optuna.Study = library.create_study(direction=direction, sampler=sampler)
    distributions = _distributions(boxes)
    states = library.trial.TrialState

    def add(state: Any, settings: Mapping[str, Setting], value: float | None = None) -> None:
        params = {
            name: told
            for name, box in boxes.items()
            if name in settings and (told := box.told(settings[name])) is not None
        }
        if len(params) == len(boxes):
            study.add_trial(
                library.trial.create_trial(
                    state=state, params=params, distributions=distributions, value=value
                )
            )

    for trial in best_and_latest(history.trials, direction, most=MAX_TRIALS, best=BEST):
        if trial.status == "crash":
            add(states.PRUNED, trial.settings)
        elif trial.value is not None:
            add(states.COMPLETE, trial.settings, trial.value)
        elif trial.status in ("running", "review_pending"):
            add(states.RUNNING, trial.settings)
    for hypothesis in history.situation.open:
        if hypothesis.config_overrides:
            add(states.RUNNING, history.with_overrides(hypothesis.config_overrides))
    return study


def _distributions(boxes: Mapping[str, Box]) -> dict[str, Any]:
    distributions = _optuna().distributions
    made: dict[str, Any] = {}
    for name, box in boxes.items():
        if box.values and not box.axis.ordered:
            made[name] = distributions.CategoricalDistribution(tuple(range(len(box.values))))
        elif box.values or box.axis.knob.type == "int":
            made[name] = distributions.IntDistribution(int(box.low), int(box.high))
        else:
            made[name] = distributions.FloatDistribution(
                box.low, box.high, log=box.axis.knob.log and box.low > 0
            )
    return made


def _sampled(
    history: History,
    study: optuna.Study,
    boxes: Mapping[str, Box],
    taken: set[Key],
    random: Random,
    began: float,
) -> Suggestion | None:
    """Return the sampler's idea for a few knobs, the others as they are; None: no new one."""
    library, whole = _optuna(), study.sampler
    distributions = _distributions(boxes)
    try:
        for _ in range(TRIES):
            if time.monotonic() - began > PATIENCE_S:
                return None
            chosen = _few(history, boxes, random)
            fixed = {
                name: told
                for name, box in boxes.items()
                if name not in chosen and (told := box.told(history.reference[name])) is not None
            }
            study.sampler = library.samplers.PartialFixedSampler(fixed, whole)
            asked = study.ask(distributions)
            values = {name: boxes[name].meant(asked.params[name]) for name in chosen}
            overrides = _accepted(history, values, taken)
            if overrides is not None:
                return overrides, "as a sampler that knows every run suggests"
            study.tell(asked, state=library.trial.TrialState.FAIL)
    finally:
        study.sampler = whole
    return None


def _drawn(
    history: History, boxes: Mapping[str, Box], taken: set[Key], random: Random
) -> Suggestion | None:
    for _ in range(20 * TRIES):
        values = {name: boxes[name].drawn(random) for name in _few(history, boxes, random)}
        overrides = _accepted(history, values, taken)
        if overrides is not None:
            return overrides, "drawn by lot near the reference"
    return None


def _accepted(history: History, values: Mapping[str, Setting], taken: set[Key]) -> Overrides | None:
    """Return the values that change the reference, where that is a new joint move."""
    overrides = {
        name: value
        for name, value in values.items()
        if not history.axes[name].is_near(value, history.reference[name])
    }
    allowed = all(
        history.axes[name].allows(value) and not history.crashes(name, value)
        for name, value in overrides.items()
    )
    if not allowed or len(overrides) < min(2, len(history.axes)):
        return None
    return overrides if history.key_of(overrides) not in taken else None


def _few(history: History, boxes: Mapping[str, Box], random: Random) -> list[str]:
    """Return 2 to 4 knobs; promising ones are drawn more often."""
    left = {name: _promise(history, name) for name in in_order(history.axes) if name in boxes}
    size = min(len(left), random.randint(2, MOST))
    chosen: list[str] = []
    while len(chosen) < size:
        name = random.choices(list(left), weights=list(left.values()))[0]
        chosen.append(name)
        del left[name]
    return chosen


def _promise(history: History, name: str) -> float:
    """Return a knob's weight: more, when turning it was not clearly for the worse."""
    effects = [effect for effect in history.effects if effect.knob == name]
    gains = [effect.gain for effect in effects if effect.gain is not None]
    if not gains:
        return 2.0
    return 3.0 if max(gains) > -history.situation.min_delta else 1.0


def _optuna() -> Any:
    """Import optuna, which takes a third of a second, and silence it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
