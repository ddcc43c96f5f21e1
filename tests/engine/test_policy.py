"""Decisions that must never be taken: a keep without a number, a drift, a verdict without proof."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.policy import Evidence, Measured, decide
from autohypothesis.errors import SettleError
from autohypothesis.schema import FAILURE_KINDS

BASE = Evidence(value=1.50, reference_value=1.55, min_delta=0.02, lines_changed=3)


def at(**changes: object) -> Evidence:
    return dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]


def test_better_by_min_delta_is_kept_provisionally() -> None:
    verdict = decide(BASE)
    assert (verdict.decision_status, verdict.reason) == ("keep", "improved")
    assert verdict.confirmation == "provisional"
    assert verdict.improvement == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("value", "status", "reason"),
    [
        (1.53, "keep", "improved"),  # exactly min_delta, which floats miss by 2e-17
        (1.531, "discard", "within_noise"),
        (1.55, "discard", "within_noise"),
        (1.569, "discard", "within_noise"),
        (1.57, "discard", "worse"),
        (9.0, "discard", "worse"),
    ],
)
def test_the_line_between_noise_and_a_result(value: float, status: str, reason: str) -> None:
    verdict = decide(at(value=value))
    assert (verdict.decision_status, verdict.reason) == (status, reason)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_without_a_real_number_nothing_is_kept(value: float | None) -> None:
    """The crash that was stamped `keep` at 0.0 is the best for ever."""
    for baseline in (False, True):
        verdict = decide(at(value=value, is_baseline=baseline))
        assert (verdict.decision_status, verdict.reason) == ("crash", "no_metric")


def test_another_metric_may_be_negative() -> None:
    evidence = at(value=-3.0, reference_value=-5.0, metric="log_likelihood", direction="maximize")
    assert decide(evidence).decision_status == "keep"


def test_a_change_that_is_nothing_new_is_discarded_without_a_run() -> None:
    verdict = decide(at(failure="nothing_new", failure_detail="tried as h-1-1", value=None))
    assert (verdict.decision_status, verdict.reason) == ("discard", "nothing_new")
    assert verdict.detail == "tried as h-1-1" and not verdict.requeue


@pytest.mark.parametrize("kind", [kind for kind in FAILURE_KINDS if kind != "nothing_new"])
def test_a_failure_is_a_crash_of_its_kind_whatever_the_number(kind: str) -> None:
    verdict = decide(at(failure=kind, failure_detail="why", value=0.1))
    assert (verdict.decision_status, verdict.reason, verdict.detail) == ("crash", kind, "why")
    assert verdict.requeue is (kind in ("infra", "contended"))
    assert verdict.improvement is None


def test_an_equal_score_from_fewer_lines_is_kept() -> None:
    verdict = decide(at(value=1.56, lines_changed=-4))
    assert (verdict.decision_status, verdict.reason) == ("keep", "simpler")
    assert verdict.simplification
    assert "4 fewer lines" in verdict.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"lines_changed": 0},
        {"lines_changed": 4},
        {"lines_changed": None},
        {"lines_changed": -4, "keep": "improve"},
        {"lines_changed": -4, "value": 1.58},
    ],
)
def test_an_equal_score_is_not_kept_otherwise(changes: dict[str, object]) -> None:
    assert decide(at(**{"value": 1.56, **changes})).decision_status == "discard"


def test_a_chain_of_simplifications_does_not_drift() -> None:
    """Each is equal to the one before it; together they must stay near the last improvement."""
    reference, kept = 1.50, 0
    for _ in range(10):
        value = reference + 0.015
        evidence = at(
            value=value, reference_value=reference, lines_changed=-1, last_improvement=1.50
        )
        if decide(evidence).decision_status == "keep":
            reference, kept = value, kept + 1
    assert kept == 1
    assert reference - 1.50 < BASE.min_delta


def test_without_noise_equal_means_equal() -> None:
    exact = {"min_delta": 0.0, "reference_value": 1.5, "lines_changed": -1}
    assert decide(at(value=1.5, **exact)).reason == "simpler"
    assert decide(at(value=1.5, **{**exact, "last_improvement": 1.5})).reason == "simpler"
    assert decide(at(value=1.5, **{**exact, "lines_changed": 1})).reason == "within_noise"
    assert decide(at(value=1.4999, **exact)).reason == "improved"
    assert decide(at(value=1.5001, **exact)).reason == "worse"


@pytest.mark.parametrize(
    ("measured", "status", "said"),
    [
        (Measured(9_000, soft=8_000, hard=10_000), "keep", "over its soft limit 8000"),
        (Measured(11_000, soft=8_000, hard=10_000), "discard", "over its hard limit 10000"),
        (Measured(None, hard=10_000), "discard", "was not measured"),
        (Measured(math.nan, hard=10_000), "discard", "was not measured"),
        (Measured(None, soft=10_000), "keep", "1.5 against"),
        (Measured(10_000, soft=10_000, hard=10_000), "keep", "1.5 against"),
    ],
)
def test_a_hard_limit_discards_and_a_soft_one_is_noted(
    measured: Measured, status: str, said: str
) -> None:
    verdict = decide(at(constraints={"peak_vram_mb": measured}))
    assert verdict.decision_status == status
    assert said in verdict.detail
    assert (verdict.reason == "constraint") is (status == "discard")


def test_a_win_on_an_old_base_goes_back_to_the_queue() -> None:
    for changes in ({}, {"value": 1.55, "lines_changed": -5}):
        verdict = decide(at(base_is_reference=False, **changes))
        assert (verdict.decision_status, verdict.reason) == ("discard", "stale_base")
        assert verdict.requeue
    lost = decide(at(base_is_reference=False, value=1.6))
    assert (lost.reason, lost.requeue) == ("worse", False)


def test_a_baseline_is_kept_and_needs_no_reference() -> None:
    verdict = decide(at(is_baseline=True, reference_value=None))
    assert (verdict.decision_status, verdict.reason) == ("keep", "baseline")
    assert verdict.confirmation == "none"


def test_a_replicate_is_not_a_second_win() -> None:
    assert decide(at(is_replicate=True)).decision_status == "replicate"


def test_nothing_to_compare_with_is_no_decision() -> None:
    with pytest.raises(SettleError, match="run the baseline"):
        decide(at(reference_value=None))


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
    verdict = decide(evidence)
    if verdict.decision_status == "keep":
        assert evidence.value is not None
        assert math.isfinite(evidence.value)
        assert evidence.failure is None
        assert evidence.is_baseline or evidence.base_is_reference
        assert verdict.reason in ("baseline", "improved", "simpler")
    if verdict.requeue:
        assert verdict.decision_status in ("crash", "discard")


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
    one, other = decide(evidence), decide(mirrored)
    assert (one.decision_status, one.reason, one.requeue, one.simplification) == (
        other.decision_status,
        other.reason,
        other.requeue,
        other.simplification,
    )


@given(numbers, numbers, st.floats(0, 10), st.sampled_from(["minimize", "maximize"]))
def test_a_keep_for_its_score_is_better_and_the_reverse_is_not(
    value: float, reference: float, min_delta: float, direction: str
) -> None:
    def kept(one: float, other: float) -> bool:
        return (
            decide(
                Evidence(
                    value=one,
                    reference_value=other,
                    direction=direction,  # type: ignore[arg-type]
                    min_delta=min_delta,
                    metric="score",
                )
            ).decision_status
            == "keep"
        )

    assert not (kept(value, reference) and kept(reference, value))
    if kept(value, reference):
        assert (value < reference) is (direction == "minimize")
        assert abs(value - reference) >= min_delta - 1e-9


def test_a_missing_seed_of_the_reference_names_the_command_that_runs_it() -> None:
    with pytest.raises(SettleError) as refused:
        decide(at(reference_value=None, seed=7, other_seeds=True))
    assert "run-experiment --baseline --seed 7 --settle" in refused.value.hint


def test_a_replicate_needs_nothing_to_compare_with() -> None:
    verdict = decide(at(reference_value=None, is_replicate=True))
    assert (verdict.decision_status, verdict.improvement) == ("replicate", None)


@pytest.mark.parametrize("changes", [{}, {"base_is_reference": False}, {"lines_changed": -5}])
def test_an_unattested_win_is_no_win(changes: dict[str, object]) -> None:
    verdict = decide(at(unattested=True, **changes))
    assert (verdict.decision_status, verdict.reason, verdict.requeue) == (
        "discard",
        "unattested",
        False,
    )


@pytest.mark.parametrize("kind", ["infra", "contended"])
def test_what_was_lost_too_often_stands_as_a_crash_and_says_so(kind: str) -> None:
    verdict = decide(at(failure=kind, failure_detail="killed with SIGALRM", comes_back=False))
    assert (verdict.decision_status, verdict.reason, verdict.requeue) == ("crash", kind, False)
    assert "too often" in verdict.detail and "SIGALRM" in verdict.detail
