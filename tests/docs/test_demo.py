"""The two commands of the README, from a fresh clone."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIMIT_S = 360.0 * 5
"""A hang guard: five times the goal, six minutes on an idle machine."""


@pytest.mark.slow
@pytest.mark.timeout(4500)
def test_make_demo_from_a_fresh_clone_twice_in_a_row(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    subprocess.run(["make", "venv"], cwd=clone, check=True, timeout=1200)
    for number in (1, 2):
        started = time.monotonic()
        answer = subprocess.run(
            ["make", "demo"], cwd=clone, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert answer.returncode == 0, answer.stderr
        print(f"demo {number}: {time.monotonic() - started:.0f} s")
        assert "experiments.jsonl" in answer.stdout
        assert "progress.png" in answer.stdout
        assert answer.stdout.split("Next:")[1].count("orchestrator.py ") == 3
    repository = clone / "demo"
    lines = (repository / "experiments.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for tag in ("demo", "demo-2"):
        own = [row for row in rows if row["tag"] == tag]
        ended = [row for row in own if row["failure_kind"] not in ("infra", "contended")]
        assert len(ended) >= 11, own
        assert {row["status"] for row in ended} <= {"keep", "discard", "replicate"}
        assert all(row["attested"] for row in ended)
        assert {row["worker_id"] for row in ended} == {"cpu0", "cpu1"}
    registry = json.loads((repository / "research/tools/registry.json").read_text())
    assert [tool["status"] for tool in registry["tools"]] == ["published"]
    assert "noise" in (repository / "research/research_brief.json").read_text()
    assert (repository / "progress.png").read_bytes().startswith(b"\x89PNG")
    dirty = ["git", "status", "--porcelain"]
    assert subprocess.run(dirty, cwd=clone, capture_output=True, text=True).stdout == ""
    assert subprocess.run(dirty, cwd=repository, capture_output=True, text=True).stdout == ""
    for command in answer.stdout.split("Next:")[1].strip().splitlines()[:2]:
        subprocess.run(command.split(), cwd=clone, check=True, timeout=120, capture_output=True)
