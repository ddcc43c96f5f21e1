"""`run-loop` on the real training pair: from a fresh repository, and past a kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autohypothesis.engine.project import make_repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fresh_repository_comes_to_a_baseline_and_five_decided_rows_past_a_kill(
    tmp_path: Path, cache: Path, own_locks: Path
) -> None:
    root = tmp_path / "research repository"
    make_repository(root)
    layout = Layout(root)
    command = [
        sys.executable, str(ROOT / "orchestrator.py"), "--repo", str(root), "run-loop",
        "--max", "6", "--tag", "t",
    ]  # fmt: skip
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300.0
        while not (layout.decisions.exists() and layout.decisions.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        time.sleep(2.0)  # in the middle of the third
    finally:
        process.kill()
        process.wait(timeout=30)
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr
    assert "goes on with the session" in answer.stderr
    rows = [line.split("\t") for line in layout.results_tsv.read_text().splitlines()[1:]]
    assert len(rows) == 6 and rows[0][3:] == ["keep", "baseline"], rows
    counted = [row for row in read_ledger(layout) if row["status"] in ("keep", "discard")]
    assert all(row["attested"] and row["profile"] == "test" for row in counted)
