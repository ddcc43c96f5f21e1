"""The constants that a search may turn: which, how far, and in which steps.

They are the task's knobs, or those that a script shows by itself: its literal constants are read
from the text, and nothing is imported. Steering always has the last word: a frozen constant is no
knob, and a range only ever narrows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal

from autohypothesis.engine.constants import computed_names, read_constants
from autohypothesis.engine.task import Knob
from autohypothesis.errors import ChangeError
from autohypothesis.fleet.live.steering import narrowed_knobs
from autohypothesis.fleet.proposing import Situation
from autohypothesis.schema import Setting

REACH = 4.0
"""A discovered number may be divided and multiplied by so much."""
SMALL_SHARE = 0.2
"""Upper end of the range of a share whose value is 0 now."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_NO_KNOB = re.compile(
    r"(?:^|_)(?:SEED|RANDOM_STATE|BUDGET|SECONDS|MINUTES|HOURS|TIMEOUT|PORT|VERSION|PATH|DIR|FILE"
    r"|FOLDER|URL|FLOPS|WORKERS|THREADS|LOG|LOGGING|EVAL|VAL|TEST|DEBUG|VERBOSE|QUIET|INTERVAL"
    r"|EVERY|CHECKPOINT|SAVE|PROFILE|GPU|GPUS|RANK|WORLD_SIZE|EPS|EPSILON"
    r"|PRINT|DOWNLOAD|CACHE|SLEEP"
    r"|VOCAB|VOCABULARY|ALPHABET|CLASSES|LABELS|DATASET|DATA_SIZE|TRAIN_SIZE|(?:N|NUM|IN)_FEATURES"
    r"|(?:IN|INPUT|OUT|OUTPUT)_(?:DIM|SIZE|CHANNELS))(?:_|$)"
)
"""Seeds, clocks, places, reporting and evaluation: nothing that makes a model better. In the last
two lines what follows from the data: another value is an index outside of it, or other data."""
_AMOUNTS = {"STEPS", "STEP", "ITERS", "ITER", "ITERATIONS", "ITERATION", "EPOCHS", "EPOCH"}
_AMOUNTS_BY_PREFIX = {
    "UPDATES", "TIMESTEPS", "EPISODES", "GENERATIONS", "ROUNDS", "ROUND", "TOKENS", "SAMPLES",
    "EXAMPLES", "BATCHES", "ESTIMATORS", "TREES", "TIME",
}  # fmt: skip
_PREFIXES = {"NUM", "N", "MAX", "TOTAL", "TRAIN", "TRAINING", "BOOST", "BOOSTING"}
_OF_A_SCHEDULE = {
    "WARMUP", "WARM", "WARMDOWN", "COOLDOWN", "DECAY", "RAMP", "ANNEAL", "RESTART", "LR",
    "SCHEDULER", "GRAD", "GRADIENT", "ACCUM", "ACCUMULATION", "MICRO", "NS", "NEWTON", "POLAR",
    "MUON", "DIFFUSION", "ROLLOUT", "UNROLL", "CONTEXT", "PATIENCE", "FREEZE", "SIZE", "RATE",
}  # fmt: skip
"""Words that make steps or epochs a matter of method: where a rate ends, how an update is made."""
_SHARE = re.compile(r"(?:RATIO|FRAC|FRACTION|SHARE|DROPOUT|PROB|MOMENTUM|BETA\d?|DECAY_RATE)$")
"""Names of numbers that stay between 0 and 1."""


# ── which constants ─────────────────────────────────────────────────────────────────────────


def knobs_of(situation: Situation) -> dict[str, Knob]:
    """Return the knobs of the reference by their names in the script, narrowed by steering."""
    knobs = situation.knobs or discovered(situation.sources, situation.reference)
    spelled = {name.lower(): name for name in situation.reference}
    left = narrowed_knobs(knobs, situation.steering)
    return {spelled[name.lower()]: knob for name, knob in left.items() if name.lower() in spelled}


def discovered(
    sources: Mapping[str, str],
    reference: Mapping[str, Setting] | None = None,
    *,
    any_case: bool = False,
) -> dict[str, Knob]:
    """Return knobs for the UPPER_CASE numbers and truth values at the top of the Python `sources`.

    What buys score with compute is none, see `budget_constants`.

    Args:
        reference: the values that ranges are laid around; without it, those in the text.
        any_case: take other names as well, as they are judged in capitals.
    """
    constants: dict[str, Setting] = {}
    homes: Counter[str] = Counter()
    for text in _scripts(sources):
        written = _constants_in(text)
        homes.update(written.keys())
        constants.update(written)
    read_as = {name: name.upper() if any_case else name for name in constants}
    knobs = {
        name: _around(read_as[name], (reference or {}).get(name, value))
        for name, value in constants.items()
        if homes[name] == 1
        and _NAME.fullmatch(read_as[name])
        and not _NO_KNOB.search(read_as[name])
        and not _buys_score(name, value)
    }
    return {name: knob for name, knob in knobs.items() if knob is not None}


def set_twice(sources: Mapping[str, str], *, any_case: bool = False) -> dict[str, list[str]]:
    """Return constant -> paths, where several of the Python `sources` set what is a knob of one."""
    homes: dict[str, list[str]] = {}
    for path, text in sources.items():
        for name in discovered({path: text}, any_case=any_case):
            homes.setdefault(name, []).append(path)
    return {name: paths for name, paths in homes.items() if len(paths) > 1}


def budget_constants(sources: Mapping[str, str], *, any_case: bool = False) -> list[str]:
    """Return the constants of the Python `sources` that buy a better score with more compute.

    Those say how long a training is: STEPS, EPOCHS, MAX_ITERS, NUM_TRAIN_EPOCHS, TOTAL_TOKENS. A
    search leaves them alone unless the task names them as knobs.
    """
    found = dict.fromkeys(
        name
        for text in _scripts(sources)
        for name, value in _constants_in(text).items()
        if _NAME.fullmatch(name.upper() if any_case else name) and _buys_score(name, value)
    )
    return list(found)


def _buys_score(name: str, value: Setting) -> bool:
    words = name.upper().split("_")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1:
        return False
    if words[-2:] == ["PER", "EPOCH"]:
        words = words[:-2]
    if not _OF_A_SCHEDULE.isdisjoint(words) or _NO_KNOB.search(name):
        return False
    if words[-1] in _AMOUNTS:
        return words[-1].endswith("S") or len(words) > 1
    return words[-1] in _AMOUNTS_BY_PREFIX and not _PREFIXES.isdisjoint(words[:-1])


def _constants_in(text: str) -> dict[str, Setting]:
    """Return the literal constants of a script; none of one that does not parse, as prepare says
    of it."""
    with suppress(ChangeError):
        return read_constants(text)
    return {}


def computed_in(sources: Mapping[str, str]) -> set[str]:
    """Return the constants of any script that are computed from other ones."""
    computed: set[str] = set()
    for text in _scripts(sources):
        with suppress(ChangeError):
            computed |= computed_names(text.encode())
    return computed


def _scripts(sources: Mapping[str, str]) -> Iterator[str]:
    return (text for path, text in sources.items() if path.endswith(".py"))


def _around(name: str, value: Setting) -> Knob | None:
    """Return a sensible range for a constant of this name and value; None: leave it alone."""
    if isinstance(value, bool):
        return Knob(type="choice", choices=(False, True))
    if not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e12:
        return None
    if isinstance(value, int):
        low, high = max(1, value // int(REACH)), value * int(REACH)
        return Knob(type="int", low=low, high=high) if value >= 1 else None
    if _SHARE.search(name) and 0 <= value < 1:
        if value == 0:
            return Knob(low=0.0, high=SMALL_SHARE)
        if value > 0.8:  # its distance to 1 is scaled
            return Knob(low=1 - (1 - value) * REACH, high=1 - (1 - value) / REACH)
        return Knob(low=value / REACH, high=min(1.0, value * REACH), log=True)
    if value > 0:
        return Knob(low=value / REACH, high=value * REACH, log=True)
    return Knob(low=value * REACH, high=value / REACH) if value < 0 else None


# ── in which order ──────────────────────────────────────────────────────────────────────────

Kind = Literal["size", "batch", "rate", "other"]
FIRST_KINDS: tuple[Kind, ...] = ("size", "batch", "rate")
"""They take turns; the others come after them."""

_RATIO = re.compile(r"(?:RATIO|FRAC|FRACTION|SHARE|STEPS|DECAY|BETAS?)$")
_RATE = re.compile(r"(?:^|_)(?:LR|RATE|LEARNING_RATE)(?:_|$)")
_BATCH = re.compile(r"(?:^|_)(?:BATCH|BATCH_SIZE|ACCUM\w*)(?:_|$)")
_SIZE = re.compile(
    r"(?:^|_)(?:N_?)?(?:DEPTH|LAYERS?|WIDTH|DIM|HEADS?|EMBD|HIDDEN|SIZE|UNITS|CHANNELS|FILTERS"
    r"|ASPECT_RATIO|MODEL)(?:_|$)"
)


def kind_of(axis: Axis) -> Kind:
    """Return what a knob governs, by its name; whole numbers without a telling name are sizes."""
    name = axis.name.upper()
    if _BATCH.search(name):
        return "batch"
    if _SIZE.search(name):
        return "size"
    if _RATE.search(name) and not _RATIO.search(name):
        return "rate"
    return "size" if axis.knob.type == "int" and not _RATIO.search(name) else "other"


def in_order(axes: Mapping[str, Axis]) -> list[str]:
    """Return the knobs, most promising first: size, batch, rate in turns, choices, others."""
    kinds = {name: kind_of(axis) for name, axis in axes.items()}
    groups = [[name for name in axes if kinds[name] == kind] for kind in FIRST_KINDS]
    first = [name for turn in zip_longest(*groups) for name in turn if name is not None]
    rest = [name for name in axes if kinds[name] == "other"]
    return first + sorted(rest, key=lambda name: axes[name].knob.type != "choice")


# ── values ──────────────────────────────────────────────────────────────────────────────────

Key = tuple[object, ...]

MISSING = ("missing",)
"""Stands in a key for a constant that the settings lack: it equals no value."""
DIGITS = 3
"""Significant digits of a proposed number: more only makes titles long."""
FEW = 16
"""Up to here a whole number moves by one, over it by a factor."""
FAR = 4.0
"""Ratio of neighbours in a list of numbers from which on they are taken for settings of different
machines, between which no step is made."""
STEP, FINE_STEP = 2.0, 1.4
SHARE, FINE_SHARE = 0.25, 0.125
"""Steps of a knob that is not logarithmic, in shares of its range."""
CLOSE_FACTOR, CLOSE_SHARE = 0.14, 0.04
"""Differences that are not worth a run: of logarithms (15 %), and in shares of a range."""


def canonical(value: object) -> object:
    """Return `value` so that equal settings are equal keys: 1 is 1.0 but not True."""
    if isinstance(value, (list, tuple)):
        return tuple(canonical(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((str(name), canonical(item)) for name, item in value.items()))
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
        return float(f"{value:.9g}")
    return value if isinstance(value, (int, str, bytes, type(None))) else repr(value)


def settings_key(settings: Mapping[str, Setting], names: tuple[str, ...]) -> Key:
    """Return the settings in the order of `names`, comparable and hashable."""
    return tuple(canonical(settings[name]) if name in settings else MISSING for name in names)


def number(value: object) -> float | None:
    """Return a finite number as a float; None for texts, lists and truth values."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class KnobStep:
    """A value to try from the present one."""

    value: Setting
    direction: int
    """+1 or -1: towards larger values, or the end of the list of choices."""
    fine: bool
    """A second choice: a smaller step, or a choice that is no neighbour."""


@dataclass(frozen=True)
class Axis:
    """A knob as a line: positions on it, steps along it, and values that are too close."""

    name: str
    knob: Knob

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest value; of a knob that is no choice."""
        assert self.knob.low is not None and self.knob.high is not None
        return self.knob.low, self.knob.high

    @cached_property
    def choices(self) -> dict[object, Setting]:
        """Canonical value -> value, in their order."""
        return {canonical(choice): choice for choice in self.knob.choices or ()}

    @cached_property
    def ordered(self) -> bool:
        """Return whether values beyond a bad one can be expected to be bad as well."""
        if self.knob.type != "choice":
            return True
        numbers = [number(value) for value in self.choices.values()]
        known = [value for value in numbers if value is not None]
        return len(known) == len(numbers) > 1 and known == sorted(set(known))

    def position(self, value: Setting) -> float | None:
        """Return where `value` lies on the line; None where it does not."""
        if not self.ordered:
            keys = list(self.choices)
            return float(keys.index(canonical(value))) if canonical(value) in keys else None
        known = number(value)
        if known is None or not self.knob.log or self.knob.type == "choice":
            return known
        return math.log(known) if known > 0 else None

    def allows(self, value: Setting) -> bool:
        if self.knob.type == "choice":
            return canonical(value) in self.choices
        known, (low, high) = number(value), self.bounds
        return known is not None and low <= known <= high

    def steps(self, value: Setting) -> list[KnobStep]:
        """Return what to try from `value`: the plain step both ways, then the second choices."""
        if self.knob.type != "choice":
            made = self._number_steps(value)
        else:
            made = self._neighbours(value) if self.ordered else self._choice_steps(value)
        steps: dict[object, KnobStep] = {}
        for step in made:
            key = canonical(step.value)
            if key != canonical(value) and self.allows(step.value):
                steps.setdefault(key, step)
        return list(steps.values())

    def _number_steps(self, value: Setting) -> Iterator[KnobStep]:
        here = number(value)
        if here is None:
            return
        for fine in (False, True):
            for direction in (-1, 1):
                there = self.fitted(self._moved(here, direction, fine))
                if direction * (float(there) - here) > 0:
                    yield KnobStep(there, direction, fine)

    def _moved(self, here: float, direction: int, fine: bool) -> float:
        if self.knob.type == "int":
            if here <= FEW:
                return here + direction * (2 if fine else 1)
            if not fine:
                return here * STEP**direction
            grain = _grain(int(here))
            return round(here * (1.5 if direction > 0 else 0.75) / grain) * grain
        if self.knob.log and here > 0:
            return float(here * (FINE_STEP if fine else STEP) ** direction)
        low, high = self.bounds
        return here + direction * (FINE_SHARE if fine else SHARE) * (high - low)

    def _choice_steps(self, value: Setting) -> Iterator[KnobStep]:
        """Yield the other choices, those that are next to `value` first."""
        here = self.position(value)
        start = -1 if here is None else int(here)
        choices = enumerate(self.choices.values())
        for index, choice in sorted(choices, key=lambda item: abs(item[0] - start)):
            if index != start:
                fine = abs(index - start) > 1
                yield KnobStep(choice, 1 if index > start else -1, fine)

    def _neighbours(self, value: Setting) -> Iterator[KnobStep]:
        """Yield the next number either way, unless it is meant for another machine."""
        here = number(value)
        if here is None:
            return
        for direction in (-1, 1):
            gaps = {
                direction * (there - here): choice
                for choice in self.choices.values()
                if (there := number(choice)) is not None
            }
            gap = min((gap for gap in gaps if gap > 0), default=None)
            if gap is not None and _near(here, here + direction * gap):
                yield KnobStep(gaps[gap], direction, fine=False)

    def fitted(self, value: float) -> int | float:
        """Return `value` inside the bounds, whole or with few digits."""
        low, high = self.bounds
        if self.knob.type == "int":
            return int(min(max(round(value), low), high))
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)

    def rounded(self, value: float, like: Setting) -> int | float:
        """Return `value` inside the bounds, and as round as the setting that it would replace."""
        known = number(like)
        if self.knob.type == "int" and known is not None and known > FEW:
            grain = _grain(int(known))
            value = round(value / grain) * grain
        return self.fitted(value)

    def is_near(self, value: Setting, other: Setting) -> bool:
        """Return whether two values are so close that no run can tell them apart."""
        if canonical(value) == canonical(other):
            return True
        first, second = self.position(value), self.position(other)
        if self.knob.type != "float" or first is None or second is None:
            return False
        low, high = self.bounds
        return abs(first - second) < (CLOSE_FACTOR if self.knob.log else CLOSE_SHARE * (high - low))


def _near(value: float, other: float) -> bool:
    """Return whether two numbers of a list can be meant for one machine."""
    if value <= 0 or other <= 0:
        return True
    return max(value, other) / min(value, other) <= FAR


def _grain(value: int) -> int:
    """Return a quarter of the largest power of two in `value`: sizes stay as round as they were."""
    return max(1, (value & -value) // 4)
