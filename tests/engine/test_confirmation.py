"""Wins that must not be believed: a lucky seed, a change that fails when it is run again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.confirmation import Missing, Pair, UnconfirmedError
from autohypothesis.engine.policy import Evidence, Measured, Verdict, decide
from autohypothesis.errors import SettleError

WIN = Evidence(value=1.50, reference_value=1.55, min_delta=0.02, lines_changed=3, replicates=2)
"""Better by 0.05 on its first seed."""


def at(*pairs: Pair, **changes: object) -> Evidence:
    return dataclasses.replace(WIN, pairs=pairs, **changes)  # type: ignore[arg-type]


def pairs(*improvements: float) -> list[Pair]:
    """Complete pairs that are better by so much."""
    return [Pair(43 + i, 1.6 - better, 1.6) for i, better in enumerate(improvements)]


def said(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.decision_status, verdict.reason, verdict.confirmation


@pytest.mark.parametrize(
    ("improvements", "expected"),
    [
        ((0.05, 0.04), ("keep", "improved", "confirmed")),
        ((0.02, 0.02), ("keep", "improved", "confirmed")),  # exactly, which floats miss
        ((0.06, -0.01), ("keep", "improved", "confirmed")),
        ((0.02, 0.01), ("discard", "not_confirmed", "refuted")),
        ((0.0, 0.0), ("discard", "not_confirmed", "refuted")),
        ((-0.05, 0.0), ("discard", "not_confirmed", "refuted")),
    ],
)
def test_a_win_is_kept_when_the_pairs_that_nobody_chose_are_better_as_well(
    improvements: tuple[float, float], expected: tuple[str, str, str]
) -> None:
    assert said(decide(at(*pairs(*improvements)))) == expected


def test_a_very_lucky_first_seed_does_not_outvote_the_others() -> None:
    """Better by fifty times min_delta once, and not at all twice: the mean would be a win."""
    verdict = decide(at(*pairs(0.0, 0.0), value=0.55))
    assert verdict.improvement == pytest.approx(1 / 3)
    assert said(verdict) == ("discard", "not_confirmed", "refuted")


def test_the_record_says_how_many_pairs_their_mean_and_their_spread() -> None:
    verdict = decide(at(*pairs(0.04, 0.03)))
    assert verdict.improvement == pytest.approx(0.04)
    assert "3 pairs: better by 0.04 on average, spread 0.01" in verdict.detail
    assert "by 0.035 without the first" in verdict.detail
    assert "1.5 against 1.55" in verdict.detail


def test_without_noise_a_win_has_to_be_better_every_time() -> None:
    exact = {"min_delta": 0.0, "value": 1.5499}
    assert decide(at(*pairs(1e-4, 1e-4), **exact)).confirmation == "confirmed"
    assert decide(at(*pairs(0.0, 0.0), **exact)).confirmation == "refuted"


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        ([Pair(43), Pair(44)],
         [("change", 43), ("base", 43), ("change", 44), ("base", 44)]),
        ([Pair(43, 1.5, 1.6), Pair(44, None, 1.6)], [("change", 44)]),
        ([Pair(44, 1.5, 1.6), Pair(43, 1.5, None)], [("base", 43)]),
    ],
)  # fmt: skip
def test_a_win_is_no_decision_before_every_pair_is_there(
    found: list[Pair], missing: list[Missing]
) -> None:
    with pytest.raises(UnconfirmedError) as waits:
        decide(at(*found))
    assert list(waits.value.missing) == missing
    assert f"awaits {len(missing)} of 4 runs" in str(waits.value)
    assert "1.5 against 1.55" in str(waits.value)
    assert "run-experiment --replicate h-t-0001-1" in waits.value.of("h-t-0001-1", []).hint


def test_no_replicates_is_what_it_always_was() -> None:
    assert said(decide(at(replicates=0))) == ("keep", "improved", "provisional")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"value": 1.54}, ("discard", "within_noise")),
        ({"value": 1.60}, ("discard", "worse")),
        ({"base_is_reference": False}, ("discard", "stale_base")),
        ({"unattested": True}, ("discard", "unattested")),
        ({"constraints": {"peak_vram_mb": Measured(9.0, hard=8.0)}}, ("discard", "constraint")),
        ({"failure": "oom"}, ("crash", "oom")),
        ({"is_baseline": True}, ("keep", "baseline")),
        ({"value": 1.55, "lines_changed": -4}, ("keep", "simpler")),
    ],
)
def test_nothing_is_run_again_but_a_win(
    changes: dict[str, object], expected: tuple[str, str]
) -> None:
    verdict = decide(at(Pair(43), Pair(44), **changes))
    assert (verdict.decision_status, verdict.reason) == expected


@pytest.mark.parametrize(
    ("failure", "reason"), [("oom", "not_confirmed"), ("constraint", "constraint")]
)
def test_a_change_that_fails_at_a_further_seed_is_refuted_before_the_rest_is_run(
    failure: str, reason: str
) -> None:
    verdict = decide(at(Pair(43, failure=failure, failure_detail="why it did"), Pair(44)))
    assert said(verdict) == ("discard", reason, "refuted")
    assert f"run again at seed 43: {failure}: why it did" in verdict.detail


def test_a_base_that_fails_at_every_seed_confirms_nothing() -> None:
    with pytest.raises(SettleError, match="its base fails") as refused:
        decide(at(*pairs(0.05)))
    assert not isinstance(refused.value, UnconfirmedError)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "replicate"),
        ({"unattested": True}, "unattested"),
        ({"constraints": {"peak_vram_mb": Measured(9.0, hard=8.0)}}, "constraint"),
    ],
)
def test_a_replicate_says_what_it_is_not_good_for(changes: dict[str, object], reason: str) -> None:
    verdict = decide(at(is_replicate=True, **changes))
    assert (verdict.decision_status, verdict.reason) == ("replicate", reason)


# ── properties ──────────────────────────────────────────────────────────────────────────────

some = st.lists(st.floats(-1, 1), min_size=1, max_size=5)
deltas = st.floats(0, 0.5)


def decided(first: float, further: Sequence[float], least: float) -> Verdict:
    return decide(
        Evidence(
            value=-first,
            reference_value=0.0,
            metric="score",
            min_delta=least,
            replicates=len(further),
            pairs=tuple(Pair(43 + i, -one, 0.0) for i, one in enumerate(further)),
        )
    )


@given(st.floats(-1, 1), some, deltas, st.randoms())
def test_the_order_of_the_pairs_says_nothing(
    first: float, further: list[float], least: float, chance: object
) -> None:
    shuffled = list(further)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decided(first, further, least) == decided(first, shuffled, least)


@given(st.floats(-1, 1), some, deltas)
def test_what_is_kept_is_better_by_min_delta_on_average(
    first: float, further: list[float], least: float
) -> None:
    verdict = decided(first, further, least)
    if verdict.decision_status == "keep":
        assert verdict.confirmation == "confirmed"
        assert fmean([first, *further]) >= least - 1e-9
        assert verdict.improvement is not None
        assert math.isclose(verdict.improvement, fmean([first, *further]), abs_tol=1e-12)


@given(st.floats(-1, 1), some, deltas, st.integers(0, 5), st.floats(0, 1))
def test_a_better_pair_never_turns_a_keep_into_a_discard(
    first: float, further: list[float], least: float, which: int, more: float
) -> None:
    before = decided(first, further, least)
    every = [first, *further]
    every[which % len(every)] += more
    after = decided(every[0], every[1:], least)
    if before.decision_status == "keep":
        assert after.decision_status == "keep"
