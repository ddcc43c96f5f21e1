"""The one difference that people are shown: against the base on which a run was decided. Pure.

Rows and decisions carry it. The ledger's `delta`, against the best that was kept before, is for
other programs: it may have another sign, and says nothing about a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autohypothesis.records.rows import IMPORTED
from autohypothesis.schema import finite, whole

EXACT = 1e-12
"""Tolerance for errors of floating-point arithmetic."""
DELTA = "delta/min"
"""The head of a column of `Comparison.cell`: the difference, then the threshold `min_delta`."""
TINY = 1e-6
"""What is smaller is written with an exponent."""
RUN_AT_MORE_SEEDS = "python orchestrator.py run-experiment --replicate"
"""The command that runs a near miss at more seeds; its argument is an experiment."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """An experiment beside its base."""

    improvement: float
    """Positive is better, whatever the direction. After runs at further seeds, their mean."""
    min_delta: float | None = None
    """The improvement that it takes; None where it is not known."""
    maximize: bool = False
    pairs: int = 0
    """Pairs of runs at further seeds of which the improvement is the mean; 0: it is of one pair."""

    @property
    def cell(self) -> str:
        """The difference and the threshold for a table: `-0.0450/0.03`."""
        is_lower = self.improvement < 0 if self.maximize else self.improvement > 0
        small = max(abs(self.improvement), self.min_delta or 0.0) < 1e-4
        delta = f"{'-' if is_lower else '+'}{self._size(self._decimals if small else 4)}"
        return delta if self.min_delta is None else f"{delta}/{_short(self.min_delta)}"

    @property
    def words(self) -> str:
        """`0.045 better than its base (min_delta 0.03)`."""
        takes = "" if self.min_delta is None else f" (min_delta {_short(self.min_delta)})"
        return f"{self.size} {'better' if self.improvement >= 0 else 'worse'} than its base{takes}"

    @property
    def near_miss(self) -> str:
        """`0.024 better, twice; it takes 0.03`, of an experiment that is a near miss."""
        times = {0: "once", 1: "once", 2: "twice"}.get(self.pairs, f"{self.pairs} times")
        takes = "" if self.min_delta is None else f"; it takes {_short(self.min_delta)}"
        return f"{self.size} better, {times}{takes}"

    @property
    def size(self) -> str:
        """The difference without its sign, with two digits at least."""
        text = self._size(self._decimals)
        return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text

    @property
    def _decimals(self) -> int:
        size = abs(self.improvement)
        return max(4, 1 - math.floor(math.log10(size))) if size else 4

    def _size(self, decimals: int) -> str:
        """Return the size with as many decimals as it takes to read as it was judged.

        Rounded to four, 0.02996 would be no noise where 0.03 is none.
        """
        size, least = abs(self.improvement), self.min_delta or 0.0
        if abs(size - least) <= EXACT and size:
            size = least or size
        is_noise = size < least or not size
        for number in range(decimals, 18):
            text = f"{size:.{number}f}"
            if 0 < size < TINY:
                text = f"{size:.{number - decimals + 2}g}"
            if (float(text) < least or not float(text)) == is_noise:
                return text
        return repr(size)


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """Return a number with so many decimals, of a small one with two digits; of None a dash."""
    if value is None:
        return "–"
    if 0 < abs(value) < 10.0 ** (1 - digits):
        return f"{value:{sign}.2g}"
    return f"{value:{sign}.{digits}f}"


def value_words(value: float, base: float | None = None) -> str:
    """Return `1.95582 against 1.95134`: six digits, and more where it takes them to tell the two
    apart or to write a large number in full; without a base the value alone."""
    numbers = [value] if base is None else [value, base]
    largest = max(map(abs, numbers))
    first = max(6, math.floor(math.log10(largest)) + 1) if 0 < largest < 1e15 else 6
    for digits in range(first, 18):
        texts = [f"{one:.{digits}g}" for one in numbers]
        if len(set(texts)) == len(set(numbers)):
            break
    return " against ".join(texts)


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def comparison_of(decided: Mapping[str, Any]) -> Comparison | None:
    """Return how a row, or a decision as a document, stands beside its base; None without one.

    Another tool decided its runs against the best before them. A replicate was decided on nothing.
    """
    if decided.get("decision_status") == "replicate":
        return None
    improvement = finite(decided.get("improvement"))
    maximize = decided.get("direction") == "maximize"
    if improvement is None and decided.get("decided_by") == IMPORTED:
        delta = finite(decided.get("delta"))
        improvement = delta if delta is None or maximize else -delta
    if improvement is None:
        return None
    min_delta, pairs = finite(decided.get("min_delta")), whole(decided.get("pairs"))
    return Comparison(improvement, min_delta, maximize, pairs or 0)


def cell_of(compared: Comparison | None) -> str:
    """Return the difference and the threshold for a table; an en dash where there is none."""
    return "–" if compared is None else compared.cell


def is_near_miss(decided: Mapping[str, Any]) -> bool:
    """Return whether a run is better than its base by less than it takes, and was not refuted."""
    better = (decided.get("improvement") or 0.0) > 0
    return better and decided.get("reason") == "within_noise"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A run that is better than its base by less than it takes."""

    experiment_id: str
    title: str
    compared: Comparison
    is_current: bool
    """Whether its base is the reference still, so that it can be run at more seeds."""


def near_misses(rows: Sequence[Mapping[str, Any]], reference: str | None) -> list[NearMiss]:
    """Return the near misses on the platform that was kept on last.

    Those of the present reference come first, then the nearest.

    Args:
        rows: of one search.
        reference: the commit that the search stands at; it may be one that no decision made.
    """
    kept = [row for row in rows if row.get("status") == "keep" and row.get("ordinal") is not None]
    platform = max(kept, key=lambda row: row["ordinal"]).get("platform_key") if kept else None
    found = [
        NearMiss(
            str(row["id"]),
            str(row.get("description") or ""),
            compared,
            is_current=row.get("parent_commit") == reference,
        )
        for row in rows
        if row.get("status") == "discard"
        and is_near_miss(row)
        and row.get("platform_key") == platform
        and (compared := comparison_of(row)) is not None
    ]
    return sorted(found, key=lambda each: (not each.is_current, -each.compared.improvement))
