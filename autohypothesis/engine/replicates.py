"""The further pairs of a change: which there are, and which runs are missing.

Both are derived from decisions.jsonl each time, so nothing is lost with whoever ordered a run, and
the runs of a base serve every change that was made to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from autohypothesis.engine.confirmation import Missing, Pair, Repeat
from autohypothesis.engine.iteration import further_seed
from autohypothesis.engine.past import Settled
from autohypothesis.schema import Decision, Metadata

MOST_PASSED_OVER = 3
"""Seeds at which a base may fail before it is too shaky to confirm anything with."""


def pairs_of(
    past: Settled, commit: str, base: str, metadata: Metadata, wanted: int
) -> tuple[Pair, ...]:
    """So many pairs at the seeds after the first, complete or not.

    A seed at which the base itself fails makes no pair, and is passed over. There are fewer pairs
    when that happens too often.
    """
    key, first = metadata.runtime.platform_key, metadata.run.seed
    found: list[Pair] = []
    for number in range(1, wanted + MOST_PASSED_OVER + 1):
        if len(found) == wanted:
            break
        seed = further_seed(first, number)
        of_base = past.again_at(base, key, seed)
        if of_base is None or of_base.metric_value is not None:
            found.append(_pair(seed, past.again_at(commit, key, seed), of_base))
    return tuple(found)


def _pair(seed: int, of_change: Decision | None, of_base: Decision | None) -> Pair:
    base_value = of_base.metric_value if of_base else None
    if of_change is None:
        return Pair(seed, base_value=base_value)
    failed = of_change.metric_value is None or of_change.reason == "constraint"
    return Pair(
        seed,
        of_change.metric_value,
        base_value,
        failure=of_change.reason if failed else "",
        failure_detail=of_change.detail if failed else "",
    )


def repeats_of(
    past: Settled, commit: str, base: str, metadata: Metadata, missing: Iterable[Missing]
) -> list[Repeat]:
    """Missing runs as somebody can order them."""
    name, key = metadata.run.experiment_id, metadata.runtime.platform_key
    found = []
    for side, seed in missing:
        of_change = side == "change"
        what, tried = (name, commit) if of_change else (f"the base of {name}", base)
        found.append(
            Repeat(
                first=name if of_change else past.first_of(base, key),
                commit=tried,
                platform_key=key,
                seed=seed,
                title=f"{what} again, at seed {seed}",
                rationale=f"{name} is kept when it is better at further seeds as well",
                hypothesis_id=past.lost_at(tried, seed),
            )
        )
    return found
