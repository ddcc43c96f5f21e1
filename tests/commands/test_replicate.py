"""A win on one seed, from the command line of somebody's repository with `replicates: 2`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine import evidence
from autohypothesis.engine.project import Project
from tests.conftest import Cli, Git, rows

SCRIPT = '''"""RATE makes it better at every seed."""
import os
import time

SEED = int(os.environ["SEED"])
RATE = 0.1
SLEEP = 0.0

time.sleep(SLEEP)
noise = 0.001 * (SEED % 3)
print(f"val_bpb: {1.5 - RATE + noise:.6f}")
print("peak_vram_mb: 12.5")
'''
TASK = """id: careful
artifacts: [train.py]
run: {command: [python, train.py]}
objective: {metric: val_bpb, direction: minimize, min_delta: 0.02}
policy: {replicates: 2}
"""


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ENOUGH", 1_000_000)


@pytest.fixture
def careful(cli: Cli, foreign: Path, git: Git) -> Path:
    """`foreign` with a task that wants wins confirmed, its baseline decided."""
    (foreign / "train.py").write_text(SCRIPT, encoding="utf-8")
    (foreign / "task.yaml").write_text(TASK, encoding="utf-8")
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "a careful task")
    assert cli("run-experiment", "--settle").returncode == 0
    return foreign


def of_status(cli: Cli, status: str) -> list[dict[str, Any]]:
    return [row for row in rows(cli) if row["decision_status"] == status]


def test_a_real_win_is_run_again_and_kept_as_confirmed(cli: Cli, careful: Path) -> None:
    before = Project.open(careful).reference()
    answer = cli("run-experiment", "--settle", "--set", "RATE=0.2")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("1.300000\t") and answer.stdout.count("\n") == 1
    assert (
        "(4 of 4 runs)" in answer.stderr
        and "keep: improved, 2 further pairs: 0.1 better than its base" in answer.stderr
    )
    assert Project.open(careful).reference() != before
    kept = of_status(cli, "keep")[-1]
    assert kept["confirmation"] == "confirmed"
    repeats = of_status(cli, "replicate")
    assert sorted((row["replicates"], row["seed"]) for row in repeats) == sorted(
        (name, seed) for name in (kept["id"], rows(cli)[0]["id"]) for seed in (43, 44)
    )
    assert len((careful / "results.tsv").read_text().splitlines()) == 3  # no replicate is in it
    digest = json.loads(cli("digest", "--json").stdout)
    assert [one["confirmation"] for one in digest["kept"]] == ["none", "confirmed"]
    assert "confirmed" in cli("digest").stdout


def test_what_is_missing_is_named_and_made_by_its_command(cli: Cli, careful: Path) -> None:
    answer = cli("run-experiment", "--set", "RATE=0.2")
    (waits,) = of_status(cli, "review_pending")
    for words in (("decide", waits["id"]), ("decide",)):
        said = cli(*words)
        assert said.returncode == 1
        assert "it awaits 4 of 4 runs" in said.stderr
        assert f"run-experiment --replicate {waits['id']}" in said.stderr
    answer = cli("run-experiment", "--replicate", waits["id"])
    assert answer.returncode == 0, answer.stderr
    assert [line.split("\t")[0] for line in answer.stdout.splitlines()] == [
        "1.301000", "1.401000", "1.302000", "1.402000",
    ]  # fmt: skip
    assert of_status(cli, "keep")[-1]["id"] == waits["id"]
    assert "is decided already" in cli("run-experiment", "--replicate", waits["id"]).stderr
    for more in (("--set", "RATE=0.3"), ("--seed", "0"), ("--baseline",)):
        wrong = cli("run-experiment", "--replicate", waits["id"], *more)
        assert wrong.returncode == 1 and f"--replicate and {more[0]}" in wrong.stderr


def test_a_near_miss_is_named_and_one_command_runs_it_at_more_seeds(
    cli: Cli, careful: Path
) -> None:
    assert cli("run-experiment", "--settle", "--set", "RATE=0.112").returncode == 0
    (near,) = of_status(cli, "discard")
    assert (near["reason"], near["min_delta"], near["pairs"]) == ("within_noise", 0.02, 0)
    assert near["improvement"] == pytest.approx(0.012) and near["reference_value"] == 1.4
    for page in ("runs", "digest"):
        shown = cli(page).stdout
        assert f"{near['id']}  0.012 better, once; it takes 0.02" in shown
        assert f"run-experiment --replicate {near['id']}" in shown
    assert "-0.0120/0.02" in cli("runs").stdout
    answer = cli("run-experiment", "--replicate", near["id"])
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 4 and "(4 of 4 runs)" in answer.stderr
    assert (
        "within_noise, 2 further pairs: 0.012 better than its base (min_delta 0.02)"
        in answer.stderr
    )
    assert "0.012 better, twice; it takes 0.02" in cli("runs").stdout
    more = cli("run-experiment", "--replicate", near["id"], "--seeds", "1")
    assert len(more.stdout.splitlines()) == 2 and "3 further pairs" in more.stderr
    assert "better, 3 times" in cli("digest").stdout
    brief = json.loads(cli("briefing", "--json").stdout)
    assert brief["findings"][0]["confidence"] == "4 runs"
    for status in ("keep", "discard"):  # by hand it is decided, not measured
        shown = cli("show", near["id"]).stdout
        assert "-0.0120/0.02 against its base, the mean of 3 further pairs" in shown
        assert cli("decide", near["id"], status).returncode == 0
    assert "the mean of 3 further pairs" in cli("show", near["id"]).stdout


def test_a_reference_that_was_moved_and_measured_anew_is_no_gain_and_has_near_misses(
    cli: Cli, careful: Path, git: Git
) -> None:
    script = careful / "train.py"
    script.write_text(script.read_text().replace("RATE = 0.1\n", "RATE = 0.15\n"))
    git(careful, "commit", "-qam", "my own edit")
    git(careful, "update-ref", git(careful, "for-each-ref", "--format=%(refname)",
                                   "refs/autohypothesis/reference/"), "HEAD")  # fmt: skip
    loop = cli("run-loop", "--max", "1")
    assert loop.returncode == 0 and "1 baseline" in loop.stderr, loop.stderr
    assert "best: val_bpb 1.350000, the baseline" in loop.stderr
    assert "next: python orchestrator.py digest" in loop.stderr
    assert "best --diff" not in cli("digest").stdout
    for page in ("status", "show-results"):
        assert json.loads(cli(page, "--json").stdout)["keep_rate"] is None, "nothing was tried"
    assert cli("run-experiment", "--settle", "--set", "RATE=0.162").returncode == 0
    for page in ("runs", "digest"):
        assert "near misses; to run one at more seeds" in cli(page).stdout
    assert cli("run-experiment", "--settle", "--set", "RATE=0.3").returncode == 0
    assert "near misses on an earlier reference" in cli("runs").stdout
    assert "adopt" in cli("run-loop", "--max", "1").stderr


def test_only_a_near_miss_of_the_present_reference_is_run_at_more_seeds(
    cli: Cli, careful: Path
) -> None:
    assert cli("run-experiment", "--settle", "--set", "RATE=0.112").returncode == 0
    (near,) = of_status(cli, "discard")
    assert cli("run-experiment", "--settle", "--set", "RATE=0.2").returncode == 0
    assert "near misses on an earlier reference" in cli("runs").stdout
    late = cli("run-experiment", "--replicate", near["id"])
    assert late.returncode == 1 and "no longer the reference" in late.stderr
    assert "--patch" in late.stderr and "change.diff" in late.stderr
    kept = cli("run-experiment", "--replicate", of_status(cli, "keep")[-1]["id"], "--seeds", "2")
    assert kept.returncode == 1 and "only a near miss" in kept.stderr
    alone = cli("run-experiment", "--seeds", "2")
    assert alone.returncode == 1 and "--seeds needs --replicate" in alone.stderr
