"""Quarantine: two failures in a row that speak against a device, and never for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from autohypothesis.fleet.live.quarantine import (
    QUARANTINE_FOR,
    clear_quarantine,
    count_device_failure,
    quarantine,
    quarantined,
)
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
CANCELLED = result(status="failed", failure_kind="cancelled", metric_value=None)


def test_one_failure_of_a_device_is_chance_and_two_in_a_row_are_not(layout: Layout) -> None:
    assert count_device_failure(layout, GPU, LOST) == ""
    assert quarantined(layout) == {}
    assert "lost" in count_device_failure(layout, GPU, LOST)
    assert "lost" in quarantined(layout)[GPU]


def test_a_good_run_in_between_starts_the_count_anew(layout: Layout) -> None:
    count_device_failure(layout, GPU, LOST)
    count_device_failure(layout, GPU, result())
    assert count_device_failure(layout, GPU, LOST) == ""
    assert quarantined(layout) == {}


def test_a_run_that_was_cancelled_says_nothing_about_its_device(layout: Layout) -> None:
    count_device_failure(layout, GPU, LOST)
    for _ in range(5):
        assert count_device_failure(layout, GPU, CANCELLED) == ""
    assert count_device_failure(layout, GPU, LOST), "the count stood"


def test_devices_are_counted_apart_and_the_count_survives_the_worker(layout: Layout) -> None:
    count_device_failure(layout, GPU, LOST)
    count_device_failure(layout, "GPU-1111", LOST)
    assert quarantined(layout) == {}
    count_device_failure(Layout(layout.root), "GPU-1111", LOST)
    assert list(quarantined(layout)) == ["GPU-1111"]


@pytest.mark.parametrize("shift", [-QUARANTINE_FOR - timedelta(seconds=1), timedelta(days=400)])
def test_a_device_is_quarantined_for_ten_minutes_and_a_wrong_clock_is_not_for_ever(
    layout: Layout, shift: timedelta
) -> None:
    entry = {"since": rfc3339(now() + shift), "reason": "lost"}
    write_json(layout.benched, {"devices": {GPU: entry}})
    assert quarantined(layout) == {}
    entry["since"] = rfc3339(now() - QUARANTINE_FOR / 2)
    write_json(layout.benched, {"devices": {GPU: entry}})
    assert quarantined(layout) == {GPU: "lost"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"devices": [1], "in_a_row": 3}', '{"devices": {"GPU-0000": 1}}']
)
def test_a_damaged_file_is_an_empty_quarantine(layout: Layout, content: str) -> None:
    layout.benched.parent.mkdir(parents=True)
    layout.benched.write_text(content)
    assert quarantined(layout) == {}
    quarantine(layout, GPU, "lost")
    assert quarantined(layout) == {GPU: "lost"}


def test_up_gives_every_device_another_chance(layout: Layout) -> None:
    clear_quarantine(layout)
    assert not layout.benched.exists(), "nothing to clear, nothing written"
    quarantine(layout, GPU, "lost")
    count_device_failure(layout, "GPU-1111", LOST)
    clear_quarantine(layout)
    assert quarantined(layout) == {}
    assert count_device_failure(layout, "GPU-1111", LOST) == ""
