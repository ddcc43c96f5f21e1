"""A train.py in the published style runs on our prepare.py, and is scored by what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autohypothesis.engine.project import make_repository
from autohypothesis.records.layout import Layout
from tests.conftest import called, run_git

PUBLISHED = Path(__file__).with_name("published_train.py")


@pytest.fixture
def research(tmp_path: Path, cache: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
    make_repository(tmp_path / "research")
    return tmp_path / "research"


def test_a_published_script_is_run_and_what_it_prints_is_its_score_attested_by_nobody(
    research: Path,
) -> None:
    (research / "train.py").write_text(PUBLISHED.read_text())
    run_git(research, "commit", "-qam", "a winner of another search")
    answer = called("run-experiment", "--settle", cwd=research)
    assert answer.returncode == 0, answer.stderr
    value, _, _, log = answer.stdout.rstrip("\n").split("\t")
    assert 2 < float(value) < 6 and f"val_bpb:          {value}\n" in Path(log).read_text()
    assert "its score is what it prints" in answer.stderr
    (row,) = json.loads(called("runs", "--json", cwd=research).stdout)
    assert (row["status"], row["attested"], row["val_bpb"]) == ("keep", False, float(value))
    run = Layout(research).run(row["id"])
    assert json.loads(run.metadata.read_text())["run"]["seed"] is not None
    assert json.loads(run.run_spec.read_text())["task"]["scorer"]["type"] == "log"


def test_in_a_search_of_scored_weights_such_a_script_is_a_crash_that_says_what_to_do(
    research: Path,
) -> None:
    run_git(research, "config", "user.name", "a")
    source = (research / "train.py").read_text().replace("build_model", "make_model")
    (research / "train.py").write_text(source)
    answer = called("run-experiment", cwd=research)
    assert answer.returncode == 1 and answer.stdout.startswith("-\t")
    assert "train.py has no build_model(config)" in answer.stderr and "--tag NAME" in answer.stderr
