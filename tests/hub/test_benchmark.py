"""The benchmark of the hub measures what it says, and ends by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hub
from tests.conftest import ROOT

PARTS = {"goals", "push", "reads", "crowd", "sizes", "missed"}
TINY = hub.Plan((40,), 40, pushes=3, read_s=0.02, crowd_s=1.0, crowd_pushes=1)


def check(report: dict[str, Any], sizes: dict[str, int]) -> None:
    """Every figure is there, and is of what it says."""
    assert set(report) == PARTS
    for commits, every in sizes.items():
        row = report["sizes"][commits]
        assert row["commits"] == every
        assert row["lineage_commits"] == int(commits)
        assert row["leaves"] == every - int(commits) + 1, "the tips, and the line's end"
        assert 0 < row["lineage_first_byte_s"] <= row["lineage_s"]
        assert 0 < row["start_mb"] <= row["peak_mb"]
    push = report["push"]
    assert 0 < push["index_pack"]["p50_s"] <= push["index_pack"]["p99_s"]
    assert push["met"] == (push["push"]["p50_s"] <= push["limit_p50_s"])
    assert {"leaves", "commits", "posts", "results", "leaderboard"} < set(report["reads"])
    assert all(row["per_s"] > 0 and row["bytes"] > 10 for row in report["reads"].values())
    crowd = report["crowd"]
    assert crowd["errors"] == 0, crowd["first_error"]
    assert crowd["polls"] >= crowd["polling"] and crowd["pushes"] >= crowd["pushing"]


@pytest.mark.slow
def test_a_small_hub_is_measured(tmp_path: Path) -> None:
    report = hub.measure(tmp_path, TINY)
    check(report, {"40": 44})
    assert hub.table(report).count("goal") >= 2


@pytest.mark.slow
def test_the_quick_form_prints_one_object() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hub", "--quick", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), {"100": 110, "1000": 1100})
