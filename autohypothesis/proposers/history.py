"""Evidence about the knobs: values that were tried, the effect of each move, crashes.

Only runs of the reference's code are evidence about its settings. An edit of the code is an arm of
its own: once one is kept, the search begins with what was measured on that code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.proposers.knobs import MISSING, Axis, Key, canonical, computed_in, settings_key
from autohypothesis.records.rows import DECIDED
from autohypothesis.schema import Direction, Setting

PLATEAU = 2
"""Moves a knob that lose in a row before moves of several knobs at once are worth a run."""
OVERRULED = ("not_confirmed", "constraint", "by_hand")
"""Reasons of a discard that stand against a better score."""
BASES = 50
"""Keeps back from a trial that it is compared with."""


@dataclass(frozen=True)
class Effect:
    """A trial that differs in one knob only from something it can be compared with."""

    knob: str
    direction: int
    before: Setting
    after: Setting
    gain: float | None
    """Positive is better, whatever the metric's direction; None where there is no number."""
    crashed: bool
    kept: bool
    overruled: bool
    """Discarded whatever its score: it was refuted, broke a limit, or a person took it out."""
    here: bool
    """Measured against the present reference."""
    experiment_id: str


class History:
    """The situation, seen from the present reference.

    Attributes:
        here: key of the reference's settings.
        trials: what says something about its settings, in the order of the runs: of its code.
        seen: keys of trials, open hypotheses, and those that were closed without a run.
        waiting: (knob, direction) of moves that are under way.
        effects: one for each trial and base that differ in one knob, oldest first.
    """

    def __init__(self, situation: Situation, axes: Mapping[str, Axis]) -> None:
        self.situation = situation
        self.axes = axes
        self.reference = dict(situation.reference)
        computed = computed_in(situation.sources) - axes.keys()
        self._names = tuple(sorted(self.reference.keys() - computed))
        self._spellings = {name.lower(): name for name in self._names}
        self.here = settings_key(self.reference, self._names)
        self.trials = self._evidence()
        self._keys = [settings_key(trial.settings, self._names) for trial in self.trials]
        self._by_key: dict[Key, list[Trial]] = defaultdict(list)
        for key, trial in zip(self._keys, self.trials, strict=True):
            self._by_key[key].append(trial)
        self.waiting: set[tuple[str, int]] = set()
        self.seen = {self.here, *self._keys}
        self._note_hypotheses()
        self.effects = list(self._effects())

    def with_overrides(self, overrides: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the reference with constants set, whatever case they are written in."""
        named = {self._spellings.get(name.lower(), name): new for name, new in overrides.items()}
        return {**self.reference, **named}

    def change_key(self, overrides: Mapping[str, Setting]) -> Key:
        """Return a key of the reference with these constants set, equal for equal settings."""
        return settings_key(self.with_overrides(overrides), self._names)

    def _evidence(self) -> list[Trial]:
        """Return the trials of the reference's code.

        Crashes of hypotheses that wait again, or were given up, are left out: those were the
        machine's.
        """
        situation = self.situation
        lost = {hypothesis.hypothesis_id for hypothesis in situation.open}
        lost |= {past.hypothesis_id for past in situation.closed if past.closed == "abandoned"}
        return [
            trial
            for trial in situation.trials
            if trial.code_hash == situation.code_hash
            and (trial.status != "crash" or trial.hypothesis_id not in lost)
        ]

    def _note_hypotheses(self) -> None:
        tried = {trial.hypothesis_id for trial in self.trials}
        tried |= {
            trial.hypothesis_id
            for trial in self.situation.trials
            if trial.code_hash != self.situation.code_hash
        }
        untried = [past for past in self.situation.closed if past.hypothesis_id not in tried]
        for hypothesis in (*self.situation.open, *untried):
            if hypothesis.config_overrides:
                self.seen.add(self.change_key(hypothesis.config_overrides))
        for hypothesis in self.situation.open:
            settings = self.with_overrides(hypothesis.config_overrides)
            knob = self._difference(settings_key(settings, self._names), self.here)
            if knob is not None:
                self.waiting.add((knob, self.way(knob, self.reference[knob], settings[knob])))

    # ── effects ─────────────────────────────────────────────────────────────────────────────

    def of(self, knob: str, direction: int) -> list[Effect]:
        """Return the effects of turning `knob` that way, oldest first."""
        return [e for e in self.effects if (e.knob, e.direction) == (knob, direction)]

    def is_plateau(self) -> bool:
        """Return whether moves of one knob have stopped to pay since the last keep."""
        singles = {effect.experiment_id for effect in self.effects}
        lost = 0
        for trial in reversed(self.trials):
            if trial.status == "keep":
                break
            lost += trial.status in DECIDED and trial.experiment_id in singles
        return lost >= max(1, PLATEAU * len(self.axes))

    def _value(self, key: Key, seed: int | None) -> float | None:
        """Return the metric of these settings, at one seed where it was run with it."""
        measured = [
            (trial.seed, trial.value)
            for trial in self._by_key.get(key, ())
            if trial.value is not None and trial.status != "crash"
        ]
        same = [value for at, value in measured if at == seed]
        values = same or [value for _, value in measured]
        return fmean(values) if values else None

    def _effects(self) -> Iterator[Effect]:
        """Yield each decided trial against the reference, and the last comparable keep before."""
        kept: list[Key] = []
        for key, trial in zip(self._keys, self.trials, strict=True):
            if trial.status in DECIDED and trial.experiment_id:
                earlier = (base for base in reversed(kept[-BASES:]) if self._difference(key, base))
                for base in dict.fromkeys((self.here, next(earlier, self.here))):
                    if knob := self._difference(key, base):
                        yield self._effect(trial, base, knob)
            if trial.status == "keep" and key not in kept:
                kept.append(key)

    def _effect(self, trial: Trial, base: Key, knob: str) -> Effect:
        settings = self.reference if base == self.here else self._by_key[base][-1].settings
        before, after = settings[knob], trial.settings[knob]
        crashed = trial.status == "crash" or trial.value is None
        was = None if crashed else self._value(base, trial.seed)
        gain = None
        if trial.value is not None and was is not None:
            gain = (
                was - trial.value if self.situation.direction == "minimize" else trial.value - was
            )
        return Effect(
            knob=knob, direction=self.way(knob, before, after), before=before, after=after,
            gain=gain, crashed=crashed, kept=trial.status == "keep",
            overruled=trial.status == "discard" and trial.reason in OVERRULED,
            here=base == self.here, experiment_id=trial.experiment_id,
        )  # fmt: skip

    def _difference(self, key: Key, other: Key) -> str | None:
        """Return the knob in which two keys differ, where that is all."""
        differ = [n for n, name in enumerate(self._names) if key[n] != other[n]]
        if len(differ) != 1 or MISSING in (key[differ[0]], other[differ[0]]):
            return None
        name = self._names[differ[0]]
        return name if name in self.axes else None

    def way(self, knob: str, before: Setting, after: Setting) -> int:
        """Return +1 or -1, the direction from one value of a knob to another."""
        old, new = self.axes[knob].position(before), self.axes[knob].position(after)
        if old is None or new is None or old == new:
            return 1 if str(canonical(after)) > str(canonical(before)) else -1
        return 1 if new > old else -1

    # ── crashes ─────────────────────────────────────────────────────────────────────────────

    def crashes(self, knob: str, value: Setting) -> bool:
        """Return whether `value` lies at or beyond one that crashed by itself."""
        return any(e.crashed and e.knob == knob and self.beyond(e, value) for e in self.effects)

    def beyond(self, effect: Effect, value: Setting) -> bool:
        """Return whether `value` is the one of `effect`, or further on in its direction."""
        axis = self.axes[effect.knob]
        there, tried = axis.position(value), axis.position(effect.after)
        if not axis.ordered or there is None or tried is None:
            return canonical(value) == canonical(effect.after)
        return effect.direction * (there - tried) >= 0


def best_and_latest(
    trials: Sequence[Trial], direction: Direction, *, most: int, best: int
) -> list[Trial]:
    """Return at most `most` trials in their order: the `best` best ones, and the latest."""
    if len(trials) <= most:
        return list(trials)
    sign = 1 if direction == "minimize" else -1
    values = {n: trial.value for n, trial in enumerate(trials) if trial.value is not None}
    chosen = {
        *sorted(values, key=lambda n: sign * values[n])[:best],
        *range(len(trials) - (most - best), len(trials)),
    }
    return [trials[n] for n in sorted(chosen)]
