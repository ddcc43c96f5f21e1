"""Several knobs at once: Optuna is asked, with the full settings of every run told to it before.

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

from autohypothesis.fleet.proposing import Trial
from autohypothesis.proposers.axis import Axis, Key, canonical, number
from autohypothesis.proposers.history import History, best_and_latest
from autohypothesis.proposers.moves import in_order
from autohypothesis.schema import Setting

if TYPE_CHECKING:
    import optuna

MOST = 4
"""Knobs in one joint move; the fewest are 2."""
TRIES = 12
PATIENCE_S = 1.2
"""After so long a lot is drawn instead."""
MAX_TRIALS = 600
BEST = 100
"""Of those, so many of the best; the others are the latest."""
REACH = 4.0
SHARE = 0.5
"""How far a box reaches: by a factor, or in shares of a range."""


@dataclass(frozen=True)
class Suggestion:
    """Settings that differ from the reference in several knobs."""

    overrides: dict[str, Setting]
    how: str


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
        """`value` for the sampler; None when it is outside."""
        if self.values:
            keys = [canonical(one) for one in self.values]
            return keys.index(canonical(value)) if canonical(value) in keys else None
        found = number(value)
        if found is None or not self.low <= found <= self.high:
            return None
        return int(found) if self.axis.knob.type == "int" else found

    def meant(self, answer: float) -> Setting:
        """What the sampler's answer stands for."""
        return self.values[int(answer)] if self.values else self.axis.rounded(answer, self.here)

    def drawn(self, random: Random) -> Setting:
        """Any value, by lot."""
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
    """Up to `count` joint moves that nobody has tried, none of them in `besides`.

    The sampler's come before those by lot.
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
            found = _asked(history, study, boxes, taken, random, began)
        found = found or _by_lot(history, boxes, taken, random)
        if found is None:
            return
        taken.add(history.key(history.with_overrides(found.overrides)))
        yield found


# ── the box ─────────────────────────────────────────────────────────────────────────────────


def _boxes(history: History) -> dict[str, Box]:
    found = {name: _box(history, axis) for name, axis in history.axes.items()}
    return {name: box for name, box in found.items() if box is not None}


def _box(history: History, axis: Axis) -> Box | None:
    """None of a knob with nothing to choose near the reference."""
    here = history.reference[axis.name]
    if axis.knob.type == "choice":
        return _choice_box(history, axis, here)
    value, knob = number(here), axis.knob
    if value is None or knob.low is None or knob.high is None:
        return None
    if knob.type == "int":
        low, high = min(value - 2, value / 2), max(value + 2, value * 2)
    elif knob.log and value > 0:
        low, high = value / REACH, value * REACH
    else:
        reach = SHARE * (knob.high - knob.low)
        low, high = value - reach, value + reach
    low, high = max(low, knob.low), min(high, knob.high)
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
    """The reference's choice and what may be tried from it: of numbers, the neighbours only."""
    values = [step.value for step in axis.steps(here) if not history.crashes(axis.name, step.value)]
    if not values:
        return None
    values.append(here)
    if axis.ordered:
        values.sort(key=lambda one: number(one) or 0.0)
    return Box(axis, here, 0, len(values) - 1, tuple(values))


# ── asking ──────────────────────────────────────────────────────────────────────────────────


def _study(history: History, boxes: Mapping[str, Box], seed: int) -> optuna.Study:
    """A study that knows every trial inside the box, and every hypothesis under way."""
    library = _optuna()
    sampler = library.samplers.TPESampler(
        multivariate=True, constant_liar=True, n_startup_trials=5, seed=seed
    )
    study: optuna.Study = library.create_study(
        direction=history.situation.direction, sampler=sampler
    )
    distributions = _distributions(boxes)
    complete, failed, running = (
        library.trial.TrialState.COMPLETE,
        library.trial.TrialState.PRUNED,
        library.trial.TrialState.RUNNING,
    )
    told: list[tuple[Any, Mapping[str, Setting], float | None]] = []
    for trial in bounded(history):
        state = failed if trial.status == "crash" else running
        if trial.value is not None and trial.status != "crash":
            state = complete
        elif trial.status not in ("crash", "running", "review_pending"):
            continue
        told.append((state, trial.settings, trial.value if state is complete else None))
    for hypothesis in history.situation.open:
        if hypothesis.config_overrides:
            told.append((running, history.with_overrides(hypothesis.config_overrides), None))
    for state, settings, value in told:
        params = _params(boxes, settings)
        if params is not None:
            study.add_trial(
                library.trial.create_trial(
                    state=state, params=params, distributions=distributions, value=value
                )
            )
    return study


def bounded(history: History) -> list[Trial]:
    """The trials a study is told: the best and the latest, in their order."""
    return best_and_latest(history.trials, history.situation.direction, most=MAX_TRIALS, best=BEST)


def _params(boxes: Mapping[str, Box], settings: Mapping[str, Setting]) -> dict[str, Any] | None:
    params: dict[str, Any] = {}
    for name, box in boxes.items():
        told = box.told(settings[name]) if name in settings else None
        if told is None:
            return None
        params[name] = told
    return params


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


def _asked(
    history: History,
    study: optuna.Study,
    boxes: Mapping[str, Box],
    taken: set[Key],
    random: Random,
    began: float,
) -> Suggestion | None:
    """The sampler's idea for a few knobs while the others stay as they are; None: no new one."""
    library = _optuna()
    whole = study.sampler
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
                return Suggestion(overrides, "as a sampler that knows every run suggests")
            study.tell(asked, state=library.trial.TrialState.FAIL)
    finally:
        study.sampler = whole
    return None


def _by_lot(
    history: History, boxes: Mapping[str, Box], taken: set[Key], random: Random
) -> Suggestion | None:
    for _ in range(20 * TRIES):
        values = {name: boxes[name].drawn(random) for name in _few(history, boxes, random)}
        overrides = _accepted(history, values, taken)
        if overrides is not None:
            return Suggestion(overrides, "drawn by lot near the reference")
    return None


def _accepted(
    history: History, values: Mapping[str, Setting], taken: set[Key]
) -> dict[str, Setting] | None:
    """What of `values` changes the reference, if that is a joint move that nobody has tried."""
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
    new = history.key(history.with_overrides(overrides)) not in taken
    return overrides if new else None


def _few(history: History, boxes: Mapping[str, Box], random: Random) -> list[str]:
    """2 to 4 knobs, those that promise something more often than the others."""
    left = {name: _promise(history, name) for name in in_order(history.axes) if name in boxes}
    size = min(len(left), random.randint(2, MOST))
    chosen: list[str] = []
    while len(chosen) < size:
        name = random.choices(list(left), weights=list(left.values()))[0]
        chosen.append(name)
        del left[name]
    return chosen


def _promise(history: History, name: str) -> float:
    """How often a knob takes part: more, when turning it was not clearly for the worse."""
    gains = [one.gain for one in history.effects if one.knob == name and one.gain is not None]
    if not gains:
        return 2.0
    return 3.0 if max(gains) > -history.situation.min_delta else 1.0


def _optuna() -> Any:
    """Optuna, quiet: it is imported on the first joint move, which takes it a third of a second."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
