"""Decisions that must never be taken: a keep without a number, a drift, a lucky seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from operator import attrgetter
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.policy import (
    Evidence,
    Missing,
    NeedsConfirmation,
    Pair,
    Verdict,
    verdict_of,
)
from autohypothesis.engine.task import Constraint
from autohypothesis.errors import SettleError
from autohypothesis.records.comparison import Comparison, fixed, is_near_miss
from autohypothesis.schema import FAILURE_KINDS

BASE = Evidence(value=1.50, reference_value=1.55, min_delta=0.02, lines_changed=3)


def memory(value: float | None, **limits: float) -> dict[str, Any]:
    """The fields of a run whose memory is limited."""
    limited = {"peak_vram_mb": Constraint(**limits)}
    return {"constraints": limited, "metrics": {"peak_vram_mb": value}}


def at(**changes: object) -> Evidence:
    return dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]


def outcome(verdict: Verdict) -> tuple[str, str]:
    return verdict.decision_status, verdict.reason


def said(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.decision_status, verdict.reason, verdict.confirmation


def judged(evidence: Evidence) -> Verdict:
    verdict = verdict_of(evidence)
    assert isinstance(verdict, Verdict)
    return verdict


HUNGRY = memory(9.0, hard=8.0)
EXACT = {"min_delta": 0.0, "reference_value": 1.5, "lines_changed": -1}


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, "keep", "improved"),
        ({"value": 1.53}, "keep", "improved"),  # exactly min_delta, which floats miss by 2e-17
        ({"value": 1.531}, "discard", "within_noise"),
        ({"value": 1.569}, "discard", "within_noise"),
        ({"value": 1.57}, "discard", "worse"),
        ({"value": 1.56, "lines_changed": -4}, "keep", "simpler"),
        ({"value": 1.56, "lines_changed": 0}, "discard", "within_noise"),
        ({"value": 1.56, "lines_changed": None}, "discard", "within_noise"),
        ({"value": 1.56, "lines_changed": -4, "keep": "improve"}, "discard", "within_noise"),
        ({"value": 1.58, "lines_changed": -4}, "discard", "worse"),
        ({**EXACT, "value": 1.5}, "keep", "simpler"),
        ({**EXACT, "value": 1.5, "last_improvement": 1.5}, "keep", "simpler"),
        ({**EXACT, "value": 1.5, "lines_changed": 1}, "discard", "within_noise"),
        ({**EXACT, "value": 1.4999}, "keep", "improved"),
        ({**EXACT, "value": 1.5001}, "discard", "worse"),
        ({"base_is_reference": False}, "discard", "stale_base"),
        ({"base_is_reference": False, "value": 1.55, "lines_changed": -5}, "discard", "stale_base"),
        ({"base_is_reference": False, "value": 1.6}, "discard", "worse"),
        ({"base_is_reference": False, "reference_value": None}, "discard", "stale_base"),
        ({"unattested": True}, "discard", "unattested"),
        ({"unattested": True, "base_is_reference": False}, "discard", "unattested"),
        ({"unattested": True, "lines_changed": -5}, "discard", "unattested"),
        (HUNGRY, "discard", "constraint"),
        ({"is_baseline": True, "reference_value": None}, "keep", "baseline"),
        ({"is_replicate": True, "reference_value": None}, "replicate", "replicate"),
        ({"is_replicate": True, "unattested": True}, "replicate", "unattested"),
        ({"is_replicate": True, **HUNGRY}, "replicate", "constraint"),
    ],
)  # fmt: skip
def test_evidence_has_one_outcome_and_nothing_but_a_win_is_run_again(
    changes: dict[str, object], status: str, reason: str
) -> None:
    evidence = at(**changes)
    verdict = judged(evidence)
    kept = reason in ("improved", "simpler")
    assert said(verdict) == (status, reason, "provisional" if kept else "none")
    assert verdict.requeue is (reason == "stale_base")
    if status not in ("keep", "replicate"):
        assert verdict.improvement == pytest.approx(evidence.improvement)
    again = verdict_of(dataclasses.replace(evidence, replicates=2, pairs=(Pair(43), Pair(44))))
    assert isinstance(again, NeedsConfirmation) if reason == "improved" else again == verdict


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_without_a_real_number_nothing_is_kept(value: float | None) -> None:
    """The crash that was stamped `keep` at 0.0 is the best for ever."""
    for baseline in (False, True):
        verdict = judged(at(value=value, is_baseline=baseline))
        assert outcome(verdict) == ("crash", "no_metric")


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_a_failure_is_a_crash_of_its_kind_whatever_the_number(kind: str) -> None:
    verdict = judged(at(failure=kind, failure_detail="why", value=0.1))
    status = {"nothing_new": "discard", "cancelled": "cancelled"}.get(kind, "crash")
    assert (verdict.decision_status, verdict.reason, verdict.detail) == (status, kind, "why")
    assert verdict.requeue is (kind in ("infra", "contended", "cancelled"))
    assert verdict.improvement is None


@pytest.mark.parametrize("kind", ["infra", "contended"])
def test_what_was_lost_too_often_stands_as_a_crash_and_says_so(kind: str) -> None:
    verdict = judged(at(failure=kind, failure_detail="killed with SIGALRM", may_retry=False))
    assert (verdict.decision_status, verdict.reason, verdict.requeue) == ("crash", kind, False)
    assert "too often" in verdict.detail and "SIGALRM" in verdict.detail


def test_a_chain_of_simplifications_does_not_drift() -> None:
    """Each is equal to the one before it; together they must stay near the last improvement."""
    reference, kept = 1.50, 0
    for _ in range(10):
        value = reference + 0.015
        evidence = at(
            value=value, reference_value=reference, lines_changed=-1, last_improvement=1.50
        )
        if judged(evidence).decision_status == "keep":
            reference, kept = value, kept + 1
    assert kept == 1
    assert reference - 1.50 < BASE.min_delta


@pytest.mark.parametrize(
    ("value", "limits", "status", "said"),
    [
        (9_000, {"soft": 8_000, "hard": 10_000}, "keep", "over its soft limit 8000"),
        (11_000, {"soft": 8_000, "hard": 10_000}, "discard", "over its hard limit 10000"),
        (None, {"hard": 10_000}, "discard", "was not measured"),
        (math.nan, {"hard": 10_000}, "discard", "was not measured"),
        (None, {"soft": 10_000}, "keep", "1.5 against"),
        (10_000, {"soft": 10_000, "hard": 10_000}, "keep", "1.5 against"),
    ],
)
def test_a_hard_limit_discards_and_a_soft_one_is_noted(
    value: float | None, limits: dict[str, float], status: str, said: str
) -> None:
    verdict = judged(at(**memory(value, **limits)))
    assert verdict.decision_status == status
    assert said in verdict.detail


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "run-experiment --baseline`"),
        ({"seed": 7, "other_seeds": True}, "run-experiment --baseline --seed 7 --decide"),
    ],
)
def test_nothing_to_compare_with_is_no_decision_and_names_the_command(
    changes: dict[str, object], command: str
) -> None:
    with pytest.raises(SettleError) as refused:
        verdict_of(at(reference_value=None, **changes))
    assert command in refused.value.hint


# ── a win is run again ─────────────────────────────────────────────────────────────────────

WIN = Evidence(value=1.50, reference_value=1.55, min_delta=0.02, lines_changed=3, replicates=2)
"""Better by 0.05 on its first seed."""


def win(*pairs: Pair, **changes: object) -> Evidence:
    return dataclasses.replace(WIN, pairs=pairs, **changes)  # type: ignore[arg-type]


def pairs(*improvements: float) -> list[Pair]:
    """Complete pairs that are better by so much."""
    return [Pair(43 + i, 1.6 - better, 1.6) for i, better in enumerate(improvements)]


@pytest.mark.parametrize(
    ("value", "base", "cell", "words"),
    [
        (1.5e-9, 2e-9, "-5e-10/1e-10", "1.5e-09 against 2e-09, 5e-10 better"),
        (0.4999999, 0.5, "-1e-07/0", "0.4999999 against 0.5, 1e-07 better"),
        (1234567.25, 1235067.25, "-500.0000/1000", "1234567 against 1235067, 500 better"),
        (1.95582, 1.95134, "+0.0045/0.03", "1.95582 against 1.95134, 0.0045 worse"),
    ],
)
def test_small_and_large_numbers_are_told_apart(
    value: float, base: float, cell: str, words: str
) -> None:
    least = float(cell.partition("/")[2])
    shown = Comparison(base - value, least)
    detail = judged(
        Evidence(
            value=value, reference_value=base, metric="score", min_delta=least, direction="minimize"
        )
    ).detail
    assert shown.cell == cell and f"score {words}" in detail
    assert fixed(value, 6) == {1.5e-9: "1.5e-09"}.get(value, f"{value:.6f}")


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
    assert said(judged(win(*pairs(*improvements)))) == expected
    exact = judged(win(*pairs(*improvements), min_delta=0.0))
    assert (exact.confirmation == "confirmed") is (sum(improvements) > 0)


def test_a_very_lucky_first_seed_does_not_outvote_the_others() -> None:
    """Better by fifty times min_delta once, and not at all twice: the mean would be a win."""
    verdict = judged(win(*pairs(0.0, 0.0), value=0.55))
    assert verdict.improvement == pytest.approx(0.0), "the mean that was decided"
    assert said(verdict) == ("discard", "not_confirmed", "refuted")


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
    unconfirmed = verdict_of(win(*found))
    assert isinstance(unconfirmed, NeedsConfirmation)
    assert (list(unconfirmed.missing), unconfirmed.wanted) == (missing, 4)
    assert "1.5 against 1.55" in unconfirmed.words


@pytest.mark.parametrize(
    ("failure", "reason"), [("oom", "not_confirmed"), ("constraint", "constraint")]
)
def test_a_change_that_fails_at_a_further_seed_is_refuted_before_the_rest_is_run(
    failure: str, reason: str
) -> None:
    verdict = judged(win(Pair(43, failure=failure, failure_detail="why it did"), Pair(44)))
    assert said(verdict) == ("discard", reason, "refuted")
    assert f"run again at seed 43: {failure}: why it did" in verdict.detail


def test_a_base_that_fails_at_every_seed_confirms_nothing() -> None:
    with pytest.raises(SettleError, match="its base fails"):
        judged(win(*pairs(0.05)))


# ── properties ──────────────────────────────────────────────────────────────────────────────

numbers = st.floats(-1e6, 1e6)
evidences = st.builds(
    Evidence,
    value=st.one_of(st.none(), st.floats()),
    reference_value=numbers,
    direction=st.sampled_from(["minimize", "maximize"]),
    min_delta=st.floats(0, 10),
    metric=st.sampled_from(["val_bpb", "score"]),
    failure=st.one_of(st.none(), st.sampled_from(FAILURE_KINDS)),
    lines_changed=st.one_of(st.none(), st.integers(-50, 50)),
    base_is_reference=st.booleans(),
    is_baseline=st.booleans(),
    is_replicate=st.booleans(),
    last_improvement=st.one_of(st.none(), numbers),
    keep=st.sampled_from(["improve", "simpler"]),
)


@given(evidences)
def test_a_keep_always_rests_on_a_finite_number_and_no_failure(evidence: Evidence) -> None:
    verdict = judged(evidence)
    if verdict.decision_status == "keep":
        assert evidence.value is not None
        assert math.isfinite(evidence.value)
        assert evidence.failure is None
        assert evidence.is_baseline or evidence.base_is_reference
        assert verdict.reason in ("baseline", "improved", "simpler")
    if verdict.requeue:
        assert verdict.decision_status in ("crash", "discard", "cancelled")


@given(evidences)
def test_both_directions_are_mirror_images(evidence: Evidence) -> None:
    if evidence.metric == "val_bpb":
        evidence = dataclasses.replace(evidence, metric="score")
    mirrored = dataclasses.replace(
        evidence,
        direction="maximize" if evidence.direction == "minimize" else "minimize",
        value=None if evidence.value is None else -evidence.value,
        reference_value=-(evidence.reference_value or 0.0),
        last_improvement=None if evidence.last_improvement is None else -evidence.last_improvement,
    )
    facts = attrgetter("decision_status", "reason", "requeue", "simplification")
    assert facts(judged(evidence)) == facts(judged(mirrored))


some = st.lists(st.floats(-1, 1), min_size=1, max_size=5)
deltas = st.floats(0, 0.5)


def decided(first: float, further: Sequence[float], least: float) -> Verdict:
    return judged(
        Evidence(
            value=-first,
            reference_value=0.0,
            metric="score",
            min_delta=least,
            replicates=len(further),
            pairs=tuple(Pair(43 + i, -one, 0.0) for i, one in enumerate(further)),
        )
    )


@given(st.floats(-1, 1), some, deltas)
def test_what_is_kept_is_better_by_min_delta_on_average(
    first: float, further: list[float], least: float
) -> None:
    verdict = decided(first, further, least)
    if verdict.decision_status == "keep":
        assert verdict.confirmation == "confirmed"
        assert fmean(further) >= least - 1e-9
        assert verdict.improvement is not None
        assert math.isclose(verdict.improvement, fmean(further), abs_tol=1e-12)


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


# ── the number that people are shown ────────────────────────────────────────────────────────

near = st.floats(-0.12, 0.12)
judgements = st.builds(
    Evidence,
    value=near, reference_value=st.just(0.0), metric=st.just("score"),
    direction=st.sampled_from(["minimize", "maximize"]),
    min_delta=st.one_of(st.sampled_from([0.0, 0.03, 0.05]), st.floats(0, 0.1)),
    lines_changed=st.sampled_from([None, -2, 2]),
    base_is_reference=st.booleans(), unattested=st.booleans(),
    replicates=st.just(2), is_near_miss=st.booleans(),
    pairs=st.tuples(near, near).map(
        lambda two: tuple(Pair(43 + i, value, 0.0) for i, value in enumerate(two))
    ),
)  # fmt: skip


@given(judgements)
def test_the_number_that_is_shown_never_contradicts_the_verdict(evidence: Evidence) -> None:
    verdict = judged(evidence)
    shown = Comparison(
        verdict.improvement or 0.0, evidence.min_delta, evidence.direction == "maximize",
        verdict.pairs,
    )  # fmt: skip
    delta, _, least = map(str, shown.cell.partition("/"))
    better = float(delta) if evidence.direction == "maximize" else -float(delta)
    improved = better > 0 and better >= float(least)
    worse = better < 0 and -better >= float(least)
    expected: dict[str, bool] = {
        "improved": improved,
        "stale_base": improved or (verdict.simplification and not worse),
        "simpler": not improved and not worse,
        "within_noise": not improved and not worse,
        "not_confirmed": not improved,
        "worse": worse,
        "unattested": True,
    }
    assert expected[verdict.reason], (verdict, shown.cell)
    assert shown.words in verdict.detail
    if is_near_miss(verdict._asdict()):
        assert float(shown.near_miss.split()[0]) < evidence.min_delta


@pytest.mark.parametrize(
    ("improvement", "pairs", "cell", "words"),
    [
        (0.024, 2, "-0.0240/0.03", "0.024 better, twice; it takes 0.03"),
        (0.02999999, 1, "-0.02999999/0.03", "0.02999999 better, once; it takes 0.03"),
        (0.00001234, 3, "-0.0000/0.03", "0.000012 better, 3 times; it takes 0.03"),
    ],
)
def test_a_near_miss_is_told_in_a_few_words(
    improvement: float, pairs: int, cell: str, words: str
) -> None:
    shown = Comparison(improvement, 0.03, pairs=pairs)
    assert (shown.cell, shown.near_miss) == (cell, words)


@pytest.mark.parametrize(
    ("improvements", "expected"),
    [
        ((0.03, 0.02), ("keep", "improved", "confirmed")),
        ((0.015, 0.015), ("discard", "within_noise", "none")),
        ((-0.02, 0.01), ("discard", "not_confirmed", "refuted")),
    ],
)
def test_a_near_miss_that_is_run_again_is_settled_by_the_further_pairs_alone(
    improvements: tuple[float, float], expected: tuple[str, str, str]
) -> None:
    verdict = judged(win(*pairs(*improvements), value=1.54, is_near_miss=True))
    assert said(verdict) == expected
    assert (verdict.pairs, verdict.improvement) == (2, pytest.approx(fmean(improvements)))
