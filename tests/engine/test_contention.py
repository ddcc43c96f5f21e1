"""Runs that another process slowed down, judged against their like and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.evidence import (
    MAX_CONTENTION_RETRIES,
    contaminated,
    judged,
    restored,
    slot_speed,
)
from autohypothesis.engine.failures import is_device_evidence
from autohypothesis.records.history import DecisionHistory
from autohypothesis.schema import Decision, Metadata, Metrics, Result, RunIdentity, Runtime, now


def metadata(hypothesis: str = "h-t-0009", slot: str = "cpu-0", diff: str = "mine") -> Metadata:
    return Metadata(
        recorded_at=now(),
        run=RunIdentity(experiment_id=f"{hypothesis}-1", hypothesis_id=hypothesis, gpu_id=slot),
        runtime=Runtime(platform_key="p", diff_hash=diff),
    )


def result(kernel: float = 1.0, rate: float = 20_000.0, base: str | None = "base") -> Result:
    return Result(
        status="completed",
        recorded_at=now(),
        commit="c9",
        parent_commit=base,
        metric_value=1.5,
        evidence={"contention": {"kernel_before_ms": kernel, "kernel_after_ms": kernel * 2}},
        metrics=Metrics(val_bpb=1.5, total_tokens_M=rate * 10 / 1e6, training_seconds=10.0),
    )


def past(kernels: list[float], **other: object) -> DecisionHistory:
    """Decisions about unlike runs on one CPU slot."""
    return DecisionHistory(
        Decision(
            **{
                "decision_id": f"d-{number}",
                "recorded_at": now(),
                "tag": "t",
                "experiment_id": f"h-t-000{number}-1",
                "hypothesis_id": f"h-t-000{number}",
                "decision_status": "discard",
                "reason": "worse",
                "platform_key": "p",
                "lane": "cpu-0",
                "lane_kernel_ms": kernel,
                "tokens_per_second": 40_000.0,
                "base_commit": "base",
                "diff_hash": f"d{number}",
                **other,
            }
        )
        for number, kernel in enumerate(kernels)
    )


def test_a_run_on_a_slowed_slot_is_no_evidence() -> None:
    counted, flag = judged(past([1.0, 1.01, 0.99]), metadata(), result(kernel=1.2))
    assert (counted.status, counted.failure_kind, counted.metric_value) == (
        "failed", "contended", None,
    )  # fmt: skip
    assert "1.20 ms" in counted.failure_detail and not flag
    assert counted.evidence["voided_value"] == 1.5


@pytest.mark.parametrize(
    ("kernels", "now_ms"),
    [
        ([1.0, 1.01, 0.99], 1.09),
        ([1.0, 1.0], 9.0),  # too few to know what is usual
        ([1.0, 1.2, 0.8, 1.3, 0.7], 1.4),  # a slot that always spreads that much
        ([1.0, 1.5, 1.0, 1.0, 1.5], 1.5),  # two speeds, both usual
        ([1.0] * 8 + [2.0] * 9, 2.05),  # it became slower for good
    ],
)
def test_what_is_usual_on_a_slot_contaminates_nothing(kernels: list[float], now_ms: float) -> None:
    counted, flag = judged(past(kernels), metadata(), result(kernel=now_ms))
    assert counted.status == "completed" and not flag


def test_an_unlike_run_is_never_a_measure_of_speed() -> None:
    counted, _ = judged(past([1.0] * 5), metadata(), result(rate=5_000.0))
    assert counted.status == "completed"


def test_the_same_diff_at_half_the_speed_is_no_evidence() -> None:
    like = past([1.0], diff_hash="mine")
    counted, _ = judged(like, metadata(), result(rate=20_000.0))
    assert counted.failure_kind == "contended"
    elsewhere = past([1.0], diff_hash="mine", lane="cpu-1")
    assert judged(elsewhere, metadata(), result(rate=20_000.0))[0].status == "completed"
    another_base = past([1.0], diff_hash="mine", base_commit="other")
    assert judged(another_base, metadata(), result(rate=20_000.0))[0].status == "completed"


def test_a_machine_that_is_always_slow_still_gets_an_answer() -> None:
    busy = past([1.0] * 3)
    for number in range(MAX_CONTENTION_RETRIES):
        counted, _ = judged(busy, metadata(), result(kernel=2.0))
        assert counted.failure_kind == "contended"
        busy.add(
            past([2.0], experiment_id=f"h-t-0009-{number}", hypothesis_id="h-t-0009",
                 reason="contended").decisions[0]
        )  # fmt: skip
    counted, flag = judged(busy, metadata(), contaminated(result(kernel=2.0), "seen by the shim"))
    assert (counted.status, counted.metric_value) == ("completed", 1.5)
    assert "contaminated twice" in flag


def test_a_failure_of_its_own_is_not_excused_by_a_slow_slot() -> None:
    failed = result(kernel=9.0).model_copy(update={"status": "failed", "failure_kind": "oom"})
    assert judged(past([1.0] * 5), metadata(), failed)[0].failure_kind == "oom"


@given(st.floats(min_value=-1e6, max_value=1e6, allow_nan=False))
def test_contamination_loses_no_value(value: float) -> None:
    before = result().model_copy(update={"metric_value": value})
    marked = contaminated(contaminated(before, "slow"), "slow again")
    assert restored(marked).metric_value == value
    assert restored(before) == before


@pytest.mark.parametrize(
    "said", ["x", 1, [], ["kernel_before_ms"], {"kernel_before_ms": {}, "kernel_after_ms": [1]}]
)
def test_evidence_of_another_shape_is_no_speed_and_no_accident(said: object) -> None:
    strange = result().model_copy(update={"evidence": {"contention": said, "device": said}})
    assert slot_speed(metadata(), strange) == ("cpu-0", None, None)
    assert judged(past([1.0] * 5), metadata(), strange)[0].status == "completed"
    assert is_device_evidence(strange) is False


@pytest.mark.parametrize("foreign", ["x", [1], [{"pid": 1}], {"pid": 1, "grown_mb": "much"}])
def test_a_neighbour_of_another_shape_is_a_neighbour_all_the_same(foreign: object) -> None:
    beside = result().model_copy(update={"evidence": {"contention": {"foreign": foreign}}})
    assert is_device_evidence(beside)
