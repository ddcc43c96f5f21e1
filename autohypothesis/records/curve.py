"""The course of a training, from its samples: where it stood, and whether it still fell."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

CHECKPOINTS = (0.25, 0.50, 0.75, 1.00)
"""Shares of the budget."""
_NAMES = {share: f"{share * 100:.0f}" for share in CHECKPOINTS}
_NEAR = 0.05
"""A sample this far from a checkpoint, as a share of the budget, still stands for it."""
_FEWEST = 4
"""Samples in the last quarter; fewer have no slope worth naming."""

Sample = Sequence[float | None]


class Curve(NamedTuple):
    checkpoints: dict[str, float]
    still_improving: bool | None
    rate: float | None
    """bpb per minute of budget over the last quarter, positive is improving."""
    last: float | None


def curve(samples: Sequence[Sample], budget_seconds: float | None) -> Curve:
    """The course of the training bpb, from rows of [share, loss, bpb, tokens per second]."""
    shares, values = _columns(samples)
    if not shares:
        return Curve({}, None, None, None)
    start = bisect_left(shares, CHECKPOINTS[-2])
    slope, error = _slope(shares[start:], values[start:])
    rate = None
    if slope is not None and budget_seconds and budget_seconds > 0:
        rate = round(-slope / (budget_seconds / 60), 9)
    improving = None if slope is None or error is None else -slope > 2 * error
    return Curve(_at_checkpoints(shares, values), improving, rate, values[-1])


def _columns(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Share and bpb of the samples that have both, by share."""
    columns = list(zip(*samples, strict=False))
    if len(columns) > 2 and None not in columns[0] and None not in columns[2]:
        shares, values = list(columns[0]), list(columns[2])
        if shares == sorted(shares):
            return shares, values
    points = sorted(
        (sample[0], sample[2])
        for sample in samples
        if len(sample) > 2 and sample[0] is not None and sample[2] is not None
    )
    return [share for share, _ in points], [value for _, value in points]


def _at_checkpoints(shares: list[float], values: list[float]) -> dict[str, float]:
    """The sample nearest to each checkpoint, where there is one near."""
    found = {}
    for checkpoint in CHECKPOINTS:
        after = min(bisect_left(shares, checkpoint), len(shares) - 1)
        before = max(after - 1, 0)
        at = before if checkpoint - shares[before] < abs(shares[after] - checkpoint) else after
        if abs(shares[at] - checkpoint) <= _NEAR:
            found[_NAMES[checkpoint]] = values[at]
    return found


def _slope(shares: list[float], values: list[float]) -> tuple[float | None, float | None]:
    """Least squares: bpb per whole budget, and the standard error of that.

    A fall counts as one only beyond twice its error: a noisy flat line is no improvement.
    """
    count = len(shares)
    if count < _FEWEST:
        return None, None
    mean_x, mean_y = sum(shares) / count, sum(values) / count
    x = [share - mean_x for share in shares]
    y = [value - mean_y for value in values]
    spread = sum([a * a for a in x])
    if not 0 < spread < math.inf:
        return None, None
    slope = sum([a * b for a, b in zip(x, y, strict=True)]) / spread
    rest = sum([b * b for b in y]) - slope * slope * spread
    if not math.isfinite(slope) or not math.isfinite(rest):
        return None, None
    return slope, math.sqrt(max(rest, 0.0) / (count - 2) / spread)
