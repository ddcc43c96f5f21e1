"""The bench: two in a row that speak against a device, and never for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from autohypothesis.fleet.live.bench import BENCH_FOR, bench, benched, clear, judge
from autohypothesis.records.files import write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Result, now, rfc3339

GPU = "GPU-0000"


def result(**changes: object) -> Result:
    said = {"status": "completed", "recorded_at": now(), "metric_value": 1.0, **changes}
    return Result.model_validate(said)


LOST = result(
    status="failed", failure_kind="infra", failure_detail="NVML: GPU is lost",
    metric_value=None, evidence={"device": {"lost": True}},
)  # fmt: skip
CANCELLED = result(
    status="failed", failure_kind="infra", failure_detail="cancelled", metric_value=None
)


def test_one_failure_of_a_device_is_chance_and_two_in_a_row_are_not(layout: Layout) -> None:
    assert judge(layout, GPU, LOST) == ""
    assert benched(layout) == {}
    assert "lost" in judge(layout, GPU, LOST)
    assert "lost" in benched(layout)[GPU]


def test_a_good_run_in_between_starts_the_count_anew(layout: Layout) -> None:
    judge(layout, GPU, LOST)
    judge(layout, GPU, result())
    assert judge(layout, GPU, LOST) == ""
    assert benched(layout) == {}


def test_a_run_that_was_cancelled_says_nothing_about_its_device(layout: Layout) -> None:
    judge(layout, GPU, LOST)
    for _ in range(5):
        assert judge(layout, GPU, CANCELLED) == ""
    assert judge(layout, GPU, LOST), "the count stood"


def test_devices_are_counted_apart(layout: Layout) -> None:
    judge(layout, GPU, LOST)
    judge(layout, "GPU-1111", LOST)
    assert benched(layout) == {}
    judge(layout, "GPU-1111", LOST)
    assert list(benched(layout)) == ["GPU-1111"]


def test_the_count_survives_the_worker(layout: Layout) -> None:
    """It lies on disk: `judge` knows nothing but the layout."""
    judge(layout, GPU, LOST)
    assert judge(Layout(layout.root), GPU, LOST)


@pytest.mark.parametrize("shift", [-BENCH_FOR - timedelta(seconds=1), timedelta(days=400)])
def test_a_device_is_benched_for_ten_minutes_and_a_wrong_clock_is_not_for_ever(
    layout: Layout, shift: timedelta
) -> None:
    entry = {"since": rfc3339(now() + shift), "reason": "lost"}
    write_json(layout.benched, {"devices": {GPU: entry}})
    assert benched(layout) == {}
    entry["since"] = rfc3339(now() - BENCH_FOR / 2)
    write_json(layout.benched, {"devices": {GPU: entry}})
    assert benched(layout) == {GPU: "lost"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"devices": [1], "in_a_row": 3}', '{"devices": {"GPU-0000": 1}}']
)
def test_a_damaged_bench_is_an_empty_one(layout: Layout, content: str) -> None:
    layout.benched.parent.mkdir(parents=True)
    layout.benched.write_text(content)
    assert benched(layout) == {}
    bench(layout, GPU, "lost")
    assert benched(layout) == {GPU: "lost"}


def test_up_gives_every_device_another_chance(layout: Layout) -> None:
    clear(layout)
    assert not layout.benched.exists(), "nothing to clear, nothing written"
    bench(layout, GPU, "lost")
    judge(layout, "GPU-1111", LOST)
    clear(layout)
    assert benched(layout) == {}
    assert judge(layout, "GPU-1111", LOST) == ""
