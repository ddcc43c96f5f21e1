"""Whether a win is real: the change and its base, run again in pairs, a further seed each. Pure.

The first pair was looked at because it was good, so luck is in it for certain: what it says counts
in the mean that is reported, and never outvotes the others. Those, which nobody chose, have to be
better by `min_delta` on their own average. Then the mean over all pairs is so as well, since the
first would be no win otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from autohypothesis.errors import SettleError

Side = Literal["change", "base"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The change and its base, run again at one further seed; a value that is None is missing.

    Attributes:
        failure: of the change's run, by its own fault: a failure kind, or `constraint`.
    """

    seed: int
    value: float | None = None
    base_value: float | None = None
    failure: str = ""
    failure_detail: str = ""


class Missing(NamedTuple):
    """One run of a pair that is not there yet."""

    side: Side
    seed: int


class Repeat(NamedTuple):
    """A missing run, as somebody can order it: a commit again, at one seed, on one platform."""

    first: str
    """An experiment of the commit: what `replicates` names."""
    commit: str
    platform_key: str
    seed: int
    title: str
    rationale: str
    hypothesis_id: str | None = None
    """That of an earlier try which was lost; how often it may be is counted by it."""


class UnconfirmedError(SettleError):
    """A win on one seed, which is no decision before it was run again.

    Attributes:
        missing: what has to be run, the change's runs before those of its base.
        wanted: how many runs confirm it, those that are there included.
        repeats: the same as `missing`, once it is known whose.
    """

    def __init__(
        self,
        said: str,
        missing: Sequence[Missing],
        wanted: int,
        *,
        experiment_id: str = "",
        repeats: Sequence[Repeat] = (),
    ) -> None:
        run = "python orchestrator.py run-experiment --replicate"
        super().__init__(
            f"it awaits {len(missing)} of {wanted} runs that confirm it: {said}, on one seed",
            hint=f"run what is missing: `{run} {experiment_id or 'ID'}`",
        )
        self.said = said
        self.missing = tuple(missing)
        self.wanted = wanted
        self.repeats = tuple(repeats)

    def of(self, experiment_id: str, repeats: Sequence[Repeat]) -> UnconfirmedError:
        """The same about a named experiment."""
        return UnconfirmedError(
            self.said, self.missing, self.wanted, experiment_id=experiment_id, repeats=repeats
        )


class Found(NamedTuple):
    """What all pairs come to; positive is better, whatever the direction."""

    holds: bool
    mean: float
    """Over all pairs."""
    words: str


def missing_of(pairs: Sequence[Pair]) -> list[Missing]:
    """Pair by pair, the change first: if that fails, its base need not be run."""
    found = []
    for pair in sorted(pairs, key=lambda one: one.seed):
        if pair.value is None:
            found.append(Missing("change", pair.seed))
        if pair.base_value is None:
            found.append(Missing("base", pair.seed))
    return found


def failed_of(pairs: Sequence[Pair]) -> Pair | None:
    """The first pair, by its seed, whose change failed."""
    return min((one for one in pairs if one.failure), key=lambda one: one.seed, default=None)


def weighed(first: float, further: Sequence[float], least: float) -> Found:
    """What the improvements say.

    Args:
        first: of the pair that made it a win.
        further: of the pairs after it; at least one.
        least: a smaller difference is noise.
    """
    alone, every = fmean(further), [first, *further]
    mean = fmean(every)
    return Found(
        holds=alone > 0 and alone >= least,
        mean=mean,
        words=f"{len(every)} pairs: better by {mean:.6g} on average, spread {stdev(every):.2g}; "
        f"by {alone:.6g} without the first",
    )
