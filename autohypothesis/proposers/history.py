"""What is known about the knobs: what was tried, what each move did, and what only crashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.proposers.axis import MISSING, Axis, Key, canonical, settings_key
from autohypothesis.proposers.knobs import computed_in
from autohypothesis.schema import Direction, Hypothesis, Setting

PLATEAU = 2
"""Moves a knob that lose in a row before moves of several knobs at once are worth a run."""
BASES = 50
"""Keeps back from a trial that it is compared with."""
DECIDED = ("keep", "discard", "crash")


@dataclass(frozen=True)
class Effect:
    """A trial that differs from something it can be compared with in one knob only."""

    knob: str
    direction: int
    before: Setting
    after: Setting
    gain: float | None
    """Positive is better, whatever the metric's direction; None where there is no number."""
    crashed: bool
    kept: bool
    here: bool
    """Measured against the present reference."""
    experiment_id: str


class History:
    """The situation, seen from the present reference."""

    def __init__(self, situation: Situation, axes: Mapping[str, Axis]) -> None:
        self.situation = situation
        self.axes = axes
        self.reference = dict(situation.reference)
        computed = computed_in(situation.sources) - axes.keys()
        self._names = tuple(sorted(self.reference.keys() - computed))
        self._spellings = {name.lower(): name for name in self._names}
        self.here = self.key(self.reference)
        self.trials = self._evidence()
        self._keys = [self.key(trial.settings) for trial in self.trials]
        self._settings = dict(
            zip(self._keys, (trial.settings for trial in self.trials), strict=True)
        )
        self._values = self._measured()
        self.waiting: set[tuple[str, int]] = set()
        """(knob, direction) of moves that are under way."""
        self.seen = self._everything_seen()
        self.effects = list(self._effects())

    # ── settings ────────────────────────────────────────────────────────────────────────────

    def key(self, settings: Mapping[str, Setting]) -> Key:
        """Equal for equal full settings."""
        return settings_key(settings, self._names)

    def with_overrides(self, overrides: Mapping[str, Setting]) -> dict[str, Setting]:
        """The reference with constants set, whatever case they are written in."""
        named = {self._spellings.get(name.lower(), name): one for name, one in overrides.items()}
        return {**self.reference, **named}

    def is_new(self, overrides: Mapping[str, Setting]) -> bool:
        """Whether nobody has tried, or is about to try, what these overrides come to."""
        return self.key(self.with_overrides(overrides)) not in self.seen

    def _evidence(self) -> list[Trial]:
        """The trials that say something about their settings.

        A crash whose hypothesis waits again, or was given up, was the machine's.
        """
        again = {one.hypothesis_id for one in self.situation.open}
        given_up = {o.hypothesis_id for o in self.situation.closed if o.closed == "abandoned"}
        lost = again | given_up
        return [
            trial
            for trial in self.situation.trials
            if trial.status != "crash" or trial.hypothesis_id not in lost
        ]

    def _everything_seen(self) -> set[Key]:
        """Trials, open hypotheses, and those that were closed without a run."""
        seen = {self.here, *self._keys}
        tried = {trial.hypothesis_id for trial in self.trials}
        for hypothesis in self.situation.open:
            if hypothesis.config_overrides:
                seen.add(self.key(self.with_overrides(hypothesis.config_overrides)))
                self._note_waiting(hypothesis)
        for hypothesis in self.situation.closed:
            if hypothesis.config_overrides and hypothesis.hypothesis_id not in tried:
                seen.add(self.key(self.with_overrides(hypothesis.config_overrides)))
        return seen

    def _note_waiting(self, hypothesis: Hypothesis) -> None:
        settings = self.with_overrides(hypothesis.config_overrides)
        changed = self._difference(self.key(settings), self.here)
        if changed is not None:
            way = self.way(changed, self.reference[changed], settings[changed])
            self.waiting.add((changed, way))

    # ── effects ─────────────────────────────────────────────────────────────────────────────

    def of(self, knob: str, direction: int) -> list[Effect]:
        """Effects of turning `knob` that way, oldest first."""
        return [one for one in self.effects if (one.knob, one.direction) == (knob, direction)]

    def is_plateau(self) -> bool:
        """Whether moves of one knob have stopped to pay since the last keep."""
        singles = {effect.experiment_id for effect in self.effects}
        lost = 0
        for trial in reversed(self.trials):
            if trial.status == "keep":
                break
            lost += trial.status in DECIDED and trial.experiment_id in singles
        return lost >= max(1, PLATEAU * len(self.axes))

    def _measured(self) -> dict[Key, dict[int | None, list[float]]]:
        """Key -> seed -> values, replicates included."""
        values: dict[Key, dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
        for key, trial in zip(self._keys, self.trials, strict=True):
            if trial.value is not None and trial.status != "crash":
                values[key][trial.seed].append(trial.value)
        return values

    def value(self, key: Key, seed: int | None) -> float | None:
        """The metric of these settings, at one seed where it was run with it."""
        by_seed = self._values.get(key)
        if not by_seed:
            return None
        found = by_seed.get(seed) or [one for values in by_seed.values() for one in values]
        return fmean(found)

    def _effects(self) -> Iterator[Effect]:
        """Each decided trial against the last thing kept before it, and against the reference."""
        kept: list[Key] = []
        for key, trial in zip(self._keys, self.trials, strict=True):
            if trial.status in DECIDED:
                yield from self._effects_of(trial, key, kept)
            if trial.status == "keep" and key not in kept:
                kept.append(key)

    def _effects_of(self, trial: Trial, key: Key, kept: Sequence[Key]) -> Iterator[Effect]:
        bases = [self.here]
        latest = reversed(kept[-BASES:])
        earlier = (base for base in latest if self._difference(key, base) is not None)
        bases += [base for base in (next(earlier, None),) if base not in (None, self.here)]
        for base in bases:
            knob = self._difference(key, base)
            if knob is not None and trial.experiment_id:
                yield self._effect(trial, key, base, knob)

    def _effect(self, trial: Trial, key: Key, base: Key, knob: str) -> Effect:
        before = self.reference[knob] if base == self.here else self._settings[base][knob]
        after = trial.settings[knob]
        was = self.value(base, trial.seed)
        crashed = trial.status == "crash" or trial.value is None
        gain = None
        if trial.value is not None and not crashed and was is not None:
            gain = trial.value - was
            if self.situation.direction == "minimize":
                gain = -gain
        return Effect(
            knob=knob, direction=self.way(knob, before, after), before=before, after=after,
            gain=gain, crashed=crashed, kept=trial.status == "keep", here=base == self.here,
            experiment_id=trial.experiment_id,
        )  # fmt: skip

    def _difference(self, one: Key, other: Key) -> str | None:
        """The knob in which they differ, if that is all."""
        found = -1
        for place, pair in enumerate(zip(one, other, strict=True)):
            if pair[0] != pair[1]:
                if found >= 0:
                    return None
                found = place
        if found < 0 or MISSING in (one[found], other[found]):
            return None
        return self._names[found] if self._names[found] in self.axes else None

    def way(self, knob: str, before: Setting, after: Setting) -> int:
        old, new = self.axes[knob].position(before), self.axes[knob].position(after)
        if old is None or new is None or old == new:
            return 1 if str(canonical(after)) > str(canonical(before)) else -1
        return 1 if new > old else -1

    # ── what does not work ──────────────────────────────────────────────────────────────────

    def crashes(self, knob: str, value: Setting) -> bool:
        """Whether `value` lies at or beyond one that crashed by itself."""
        return any(
            effect.crashed and effect.knob == knob and self.beyond(effect, value)
            for effect in self.effects
        )

    def beyond(self, effect: Effect, value: Setting) -> bool:
        """Whether `value` is the one of `effect`, or further on in its direction."""
        axis = self.axes[effect.knob]
        there, tried = axis.position(value), axis.position(effect.after)
        if not axis.ordered or there is None or tried is None:
            return canonical(value) == canonical(effect.after)
        return effect.direction * (there - tried) >= 0


def best_and_latest(
    trials: Sequence[Trial], direction: Direction, *, most: int, best: int
) -> list[Trial]:
    """At most `most` trials in their order: the `best` best ones, and the latest."""
    if len(trials) <= most:
        return list(trials)
    sign = 1 if direction == "minimize" else -1
    values = {n: one.value for n, one in enumerate(trials) if one.value is not None}
    chosen = {
        *sorted(values, key=lambda n: sign * values[n])[:best],
        *range(len(trials) - (most - best), len(trials)),
    }
    return [trials[n] for n in sorted(chosen)]
