"""What a search may turn, and how far: the task's knobs, or those that a script shows by itself.

Nothing is imported from a script; its literal constants are read from the text. Steering always
has the last word: a frozen constant is no knob, and a range only ever narrows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from autohypothesis.engine.constants import computed_names, read_constants
from autohypothesis.engine.task import Knob
from autohypothesis.errors import ChangeError
from autohypothesis.fleet.live.steering import narrowed
from autohypothesis.fleet.proposing import Situation
from autohypothesis.schema import Setting

REACH = 4.0
"""A discovered number may be divided and multiplied by so much."""
SMALL_SHARE = 0.2
"""How far a share that is 0 now may go."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_NOT_OURS = re.compile(
    r"(?:^|_)(?:SEED|RANDOM_STATE|BUDGET|SECONDS|MINUTES|HOURS|TIMEOUT|PORT|VERSION|PATH|DIR|FILE"
    r"|FOLDER|URL|FLOPS|WORKERS|THREADS|LOG|LOGGING|EVAL|VAL|TEST|DEBUG|VERBOSE|QUIET|INTERVAL"
    r"|EVERY|CHECKPOINT|SAVE|PROFILE|VOCAB_SIZE|GPU|GPUS|RANK|WORLD_SIZE|EPS|EPSILON"
    r"|PRINT|DOWNLOAD|CACHE|SLEEP)(?:_|$)"
)
"""Seeds, clocks, places, reporting and evaluation: nothing that makes a model better."""
_SHARE = re.compile(r"(?:RATIO|FRAC|FRACTION|SHARE|DROPOUT|PROB|MOMENTUM|BETA\d?|DECAY_RATE)$")
"""Names of numbers that stay between 0 and 1."""


def knobs_of(situation: Situation) -> dict[str, Knob]:
    """The knobs of the reference by their names in the script, inside the steering's limits."""
    found = situation.knobs or discovered(situation.sources, situation.reference)
    spelled = {name.lower(): name for name in situation.reference}
    left = narrowed(found, situation.steering)
    return {spelled[name.lower()]: knob for name, knob in left.items() if name.lower() in spelled}


def discovered(
    sources: Mapping[str, str], reference: Mapping[str, Setting] | None = None
) -> dict[str, Knob]:
    """Knobs for the UPPER_CASE numbers and truth values at the top of the Python `sources`.

    Args:
        reference: the values that ranges are laid around; without it, those in the text.
    """
    found: dict[str, Setting] = {}
    homes: Counter[str] = Counter()
    for path, text in sources.items():
        if path.endswith(".py"):
            constants = _constants(text)
            homes.update(constants.keys())
            found.update(constants)
    knobs = {}
    for name, written in found.items():
        if homes[name] == 1 and _NAME.fullmatch(name) and not _NOT_OURS.search(name):
            knob = _around(name, (reference or {}).get(name, written))
            if knob is not None:
                knobs[name] = knob
    return knobs


def _constants(text: str) -> dict[str, Setting]:
    try:
        return read_constants(text)
    except ChangeError:
        return {}  # a script that does not parse has no knobs; the engine says so at prepare


def _around(name: str, value: Setting) -> Knob | None:
    """A sensible range for a constant of this name and value; None: leave it alone."""
    if isinstance(value, bool):
        return Knob(type="choice", choices=(False, True))
    if not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e12:
        return None
    if isinstance(value, int):
        if value < 1:
            return None
        return Knob(type="int", low=max(1, value // int(REACH)), high=value * int(REACH))
    if _SHARE.search(name) and 0 <= value < 1:
        return _share(value)
    if value > 0:
        return Knob(low=value / REACH, high=value * REACH, log=True)
    return Knob(low=value * REACH, high=value / REACH) if value < 0 else None


def _share(value: float) -> Knob:
    """A number between 0 and 1; near 1 it is the distance to 1 that counts."""
    if value == 0:
        return Knob(low=0.0, high=SMALL_SHARE)
    if value > 0.8:
        return Knob(low=1 - (1 - value) * REACH, high=1 - (1 - value) / REACH)
    return Knob(low=value / REACH, high=min(1.0, value * REACH), log=True)


def computed_in(sources: Mapping[str, str]) -> set[str]:
    """Constants of any script that are computed from other ones."""
    computed: set[str] = set()
    for path, text in sources.items():
        if path.endswith(".py"):
            with suppress(ChangeError):
                computed |= computed_names(text.encode())
    return computed
