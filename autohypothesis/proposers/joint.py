"""Moves of several knobs at once: Optuna's sampler suggests them, knowing every run.

A study lives for one question. Runs under way are added as running, so that the sampler stays
away from them; crashes are added as pruned trials, which rank behind everything measured. The
sampler answers in a box around the reference: what lies outside of it belongs to another recipe.
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
TRIES, RANDOM_TRIES = 12, 240
PATIENCE_S = 1.2
"""Seconds after which values are drawn at random instead."""
MAX_TRIALS = 600
BEST = 100
"""The number of best trials among them; the others are the latest."""
REACH = 4.0
SHARE = 0.5
"""Half the width of a box: as a factor, or as a share of a range."""

Overrides = dict[str, Setting]


@dataclass(frozen=True)
class Box:
    """The part of an axis around the reference, in the numbers that a sampler sees."""

    axis: Axis
    here: Setting
    low: float
    high: float
    choices: tuple[Setting, ...] = ()
    """The values that the numbers stand for, of a choice."""

    @property
    def distribution(self) -> Any:
        distributions = _optuna().distributions
        if self.choices and not self.axis.ordered:
            return distributions.CategoricalDistribution(range(len(self.choices)))
        if self.choices or self.axis.knob.type == "int":
            return distributions.IntDistribution(int(self.low), int(self.high))
        log = self.axis.knob.log and self.low > 0
        return distributions.FloatDistribution(self.low, self.high, log=log)

    def number_of(self, value: Setting) -> float | int | None:
        """Return `value` for the sampler; None where it is outside."""
        if self.choices:
            keys = [canonical(choice) for choice in self.choices]
            return keys.index(canonical(value)) if canonical(value) in keys else None
        inside = number(value)
        if inside is None or not self.low <= inside <= self.high:
            return None
        return int(inside) if self.axis.knob.type == "int" else inside

    def setting_of(self, answer: float) -> Setting:
        """Return the value that the sampler's answer stands for."""
        return self.choices[int(answer)] if self.choices else self.axis.rounded(answer, self.here)


def suggestions(
    history: History, count: int, random: Random, besides: set[Key]
) -> Iterator[tuple[Overrides, str]]:
    """Yield up to `count` joint moves that are new, none of them in `besides`, and their origin.

    The sampler's come before random ones.
    """
    boxes = {
        name: box for name, axis in history.axes.items() if (box := _box(history, axis)) is not None
    }
    if not boxes or count < 1:
        return
    library, taken = _optuna(), history.seen | besides
    began = time.monotonic()  # without the import, which is paid once
    informed: optuna.Study | None = None
    blind = library.create_study(sampler=library.samplers.RandomSampler(random.randrange(2**31)))
    for _ in range(count):
        for attempt in range(TRIES + RANDOM_TRIES):
            if attempt < TRIES and time.monotonic() - began < PATIENCE_S:
                informed = informed or _study(history, boxes, random.randrange(2**31))
                study, origin = informed, "as a sampler that knows every run suggests"
            else:
                study, origin = blind, "drawn by lot near the reference"
            overrides = _asked(history, study, boxes, taken, random)
            if overrides is not None:
                taken.add(history.change_key(overrides))
                yield overrides, origin
                break
        else:
            return


def _asked(
    history: History,
    study: optuna.Study,
    boxes: Mapping[str, Box],
    taken: set[Key],
    random: Random,
) -> Overrides | None:
    """Return a study's idea for a few knobs, the others as they are; None: it is no new one."""
    library, sampler = _optuna(), study.sampler
    chosen = _sample_knobs(history, boxes, random)
    reference = {
        name: here
        for name, box in boxes.items()
        if name not in chosen and (here := box.number_of(history.reference[name])) is not None
    }
    study.sampler = library.samplers.PartialFixedSampler(reference, sampler)
    trial = study.ask({name: box.distribution for name, box in boxes.items()})
    study.sampler = sampler
    values = {name: boxes[name].setting_of(trial.params[name]) for name in chosen}
    overrides = _accepted(history, values, taken)
    if overrides is None:
        study.tell(trial, state=library.trial.TrialState.FAIL)
    return overrides


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
    return overrides if history.change_key(overrides) not in taken else None


def _sample_knobs(history: History, boxes: Mapping[str, Box], random: Random) -> list[str]:
    """Return 2 to 4 knobs; promising ones are drawn more often."""
    names = [name for name in in_order(history.axes) if name in boxes]
    # Efraimidis and Spirakis: the largest of these are a weighted sample without replacement.
    drawn = {name: random.random() ** (1 / _weight(history, name)) for name in names}
    return sorted(names, key=lambda name: -drawn[name])[: random.randint(2, MOST)]


def _weight(history: History, name: str) -> float:
    """Return a knob's weight: more, when turning it was not clearly for the worse."""
    gains = [e.gain for e in history.effects if e.knob == name and e.gain is not None]
    if not gains:
        return 2.0
    return 3.0 if max(gains) > -history.situation.min_delta else 1.0


# ── the box ─────────────────────────────────────────────────────────────────────────────────


def _box(history: History, axis: Axis) -> Box | None:
    """Return the box of a knob; None where it has nothing to choose near the reference."""
    here, knob = history.reference[axis.name], axis.knob
    if knob.type == "choice":
        return _choice_box(history, axis, here)
    value = number(here)
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


# ── the study ───────────────────────────────────────────────────────────────────────────────


def _study(history: History, boxes: Mapping[str, Box], seed: int) -> optuna.Study:
    """Return a study that knows every trial inside the box, and every hypothesis under way."""
    library, direction = _optuna(), history.situation.direction
    sampler = library.samplers.TPESampler(
        multivariate=True, constant_liar=True, n_startup_trials=5, seed=seed
    )
    study: optuna.Study = library.create_study(direction=direction, sampler=sampler)
    distributions = {name: box.distribution for name, box in boxes.items()}
    states = library.trial.TrialState

    def add(state: Any, settings: Mapping[str, Setting], value: float | None = None) -> None:
        params = {
            name: box.number_of(settings[name]) for name, box in boxes.items() if name in settings
        }
        if len(params) == len(boxes) and None not in params.values():
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


def _optuna() -> Any:
    """Import optuna, which takes a third of a second, and silence it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
