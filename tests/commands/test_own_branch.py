"""A person who works on a branch `autoresearch/<tag>`, as published loops have always told them.

A search has a branch of such a name as well. Nothing moves it while a person stands on it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis.engine.project import todays_tag
from tests.conftest import Cli, Git, rows


def change(foreign: Path, git: Git, rate: float) -> None:
    """Edit train.py, and commit."""
    script = foreign / "train.py"
    script.write_text(re.sub(r"(?m)^RATE = .*$", f"RATE = {rate}", script.read_text()))
    git(foreign, "commit", "-qam", f"RATE {rate}")


def train_and_record(cli: Cli, foreign: Path, title: str) -> str:
    """Run it by hand, record it, have it decided; what was decided."""
    with (foreign / "run.log").open("w") as log:
        subprocess.run([sys.executable, "train.py"], cwd=foreign, stdout=log, check=True)
    assert (answer := cli("record", "run.log", "--desc", title)).returncode == 0, answer.stderr
    decided = cli("decide", "--json")
    assert decided.returncode == 0, decided.stderr
    return str(json.loads(decided.stdout)[0]["decision_status"])


def test_a_loop_by_hand_is_decided_and_its_branch_left_alone(
    cli: Cli, foreign: Path, git: Git
) -> None:
    """Also where the branch has the name that a search would take today."""
    name = todays_tag()
    git(foreign, "checkout", "-q", "-b", f"autoresearch/{name}")
    assert train_and_record(cli, foreign, "baseline") == "keep"
    change(foreign, git, 0.2)
    assert train_and_record(cli, foreign, "better") == "keep"
    better = git(foreign, "rev-parse", "HEAD")
    change(foreign, git, 0.9)
    assert train_and_record(cli, foreign, "worse") == "discard"
    git(foreign, "reset", "-q", "--hard", "HEAD~1")
    assert cli("sync").returncode == 0
    table = [line.split("\t") for line in (foreign / "results.tsv").read_text().splitlines()]
    assert [row[3:] for row in table[1:]] == [
        ["keep", "baseline"], ["keep", "better"], ["discard", "worse"],
    ]  # fmt: skip
    assert git(foreign, "branch", "--show-current") == f"autoresearch/{name}"
    assert git(foreign, "rev-parse", "HEAD") == better
    assert git(foreign, "status", "--porcelain") == "?? run.log"


@pytest.mark.parametrize("tag", ["mar5", None])
def test_the_published_first_steps_search_from_the_commit_that_their_user_stands_on(
    cli: Cli, foreign: Path, git: Git, tag: str | None
) -> None:
    own = f"autoresearch/{tag or todays_tag()}"
    git(foreign, "checkout", "-q", "-b", own)
    git(foreign, "commit", "-q", "--allow-empty", "-m", "mine")
    head = git(foreign, "rev-parse", "HEAD")
    words = ("--tag", tag) if tag else ()
    answer = cli("run-loop", "--max", "2", *words)
    assert answer.returncode == 0, answer.stderr
    assert "better by" in answer.stderr and own not in answer.stderr
    assert git(foreign, "rev-parse", "HEAD", own) == f"{head}\n{head}"
    assert git(foreign, "status", "--porcelain") == ""
    assert git(foreign, "branch", "--list", "--format=%(refname:short)") == f"{own}\nmain"
    assert cli("adopt").returncode == 0
    kept = git(foreign, "rev-parse", f"refs/autohypothesis/reference/{own[13:]}")
    assert git(foreign, "rev-parse", "HEAD", own) == f"{kept}\n{kept}" and kept != head
    assert git(foreign, "log", "-1", "--format=%P") == head


def test_a_fleet_begins_on_the_branch_that_its_user_stands_on(
    cli: Cli, foreign: Path, git: Git
) -> None:
    git(foreign, "checkout", "-q", "-b", "autoresearch/mar5")
    answer = cli("init-fleet", "--tag", "mar5", "--cpu-workers", "1")
    assert answer.returncode == 0, answer.stderr
    head = git(foreign, "rev-parse", "HEAD")
    assert git(foreign, "rev-parse", "autoresearch/mar5-cpu0") == head
    assert json.loads(cli("status", "--json").stdout)["reference"] == head


def test_commands_work_while_a_person_edits_on_the_branch_of_the_search(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    git(foreign, "switch", "-q", "autoresearch/t")
    (foreign / "data.txt").write_text("mine\n")
    before = git(foreign, "rev-parse", "HEAD"), git(foreign, "status", "--porcelain")
    for words in (
        ("run-experiment", "--set", "RATE=0.3", "--settle"), ("run-experiment", "--baseline"),
        ("decide",), ("run-loop", "--max", "1"), ("init-fleet", "--cpu-workers", "1"),
    ):  # fmt: skip
        answer = cli(*words)
        assert answer.returncode == 0, (words, answer.stderr)
        now = git(foreign, "rev-parse", "HEAD"), git(foreign, "status", "--porcelain")
        assert now == before, words
    git(foreign, "stash", "-q")
    git(foreign, "switch", "-q", "main")
    assert cli("decide").returncode == 0
    status = json.loads(cli("status", "--json").stdout)
    assert git(foreign, "rev-parse", "autoresearch/t") == status["reference"] != before[0]
    assert not status["needs"]


def test_status_says_once_how_commits_on_the_branch_come_into_the_search(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    git(foreign, "switch", "-q", "autoresearch/t")
    git(foreign, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = git(foreign, "rev-parse", "HEAD")
    (need,) = json.loads(cli("status", "--json").stdout)["needs"]
    assert "1 commit that the search t does not have" in need["what"]
    assert "git branch -m autoresearch/t NAME" in need["what"]
    git(foreign, *need["run"].split()[1:])
    status = json.loads(cli("status", "--json").stdout)
    assert status["reference"] == mine and not status["needs"]
    answer = cli("run-experiment", "--set", "RATE=0.3")
    assert answer.returncode == 0, answer.stderr
    assert rows(cli)[-1]["parent_commit"] == mine


def test_what_a_person_gained_on_the_branch_is_no_gain_of_the_search(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment", "--baseline", "--decide", "--tag", "t").returncode == 0
    git(foreign, "switch", "-q", "autoresearch/t")
    script = foreign / "train.py"
    script.write_text(script.read_text().replace("RATE = 0.1", "RATE = 0.2"))
    git(foreign, "commit", "-qam", "mine")
    (need,) = json.loads(cli("status", "--json").stdout)["needs"]
    git(foreign, *need["run"].split()[1:])
    for words in (["--baseline"], ["--set", "RATE=0.3"]):
        assert cli("run-experiment", *words, "--decide").returncode == 0
    first, moved, best = (row["metric_value"] for row in rows(cli))
    assert first > moved > best
    told = json.loads(cli("status", "--json").stdout)["best"]
    assert (told["value"], told["baseline"]) == (best, moved)
    results = json.loads(cli("show-results", "--json").stdout)
    assert (results["start"]["value"], results["gain"]) == (moved, pytest.approx(moved - best))


def test_a_keep_is_taken_back_by_a_decision_and_not_by_a_reset_of_the_branch(
    cli: Cli, foreign: Path, git: Git
) -> None:
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.3", "--settle").returncode == 0
    kept, start = git(foreign, "rev-parse", "autoresearch/t", "main").split("\n")
    git(foreign, "switch", "-q", "autoresearch/t")
    git(foreign, "reset", "-q", "--hard", "HEAD~1")
    assert "nothing waits" in cli("decide").stderr
    assert git(foreign, "rev-parse", "HEAD", "autoresearch/t") == f"{start}\n{start}"
    git(foreign, "switch", "-q", "main")
    assert "nothing waits" in cli("decide").stderr
    assert git(foreign, "rev-parse", "autoresearch/t") == kept
    assert cli("decide", rows(cli)[-1]["id"], "discard").returncode == 0
    assert git(foreign, "rev-parse", "autoresearch/t") == start


def test_a_clone_says_how_to_fetch_the_search_and_goes_on_with_it(
    cli: Cli, foreign: Path, git: Git, tmp_path: Path
) -> None:
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.3", "--settle").returncode == 0
    assert cli("sync", "--snapshot").returncode == 0
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(foreign), str(clone))
    (need,) = json.loads(cli("status", "--json", cwd=clone).stdout)["needs"]
    refused = cli("adopt", cwd=clone)
    assert refused.returncode == 1 and need["run"] in refused.stderr
    fetch, restore = need["run"].split(", then ")
    git(clone, *shlex.split(fetch)[1:])
    answer = cli(*restore.split()[2:], cwd=clone)
    assert answer.returncode == 0, answer.stderr
    answer = cli("run-experiment", "--set", "RATE=0.35", "--settle", cwd=clone)
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(cli("runs", "--json", cwd=clone).stdout)) == 3
    assert git(clone, "rev-parse", "autoresearch/t") == git(foreign, "rev-parse", "autoresearch/t")


def test_record_takes_the_commit_of_the_checkout_it_is_called_in(
    cli: Cli, foreign: Path, git: Git, tmp_path: Path
) -> None:
    assert train_and_record(cli, foreign, "baseline") == "keep"
    other = tmp_path / "other"
    git(foreign, "worktree", "add", "-q", "-b", "autoresearch/other", str(other))
    change(other, git, 0.2)
    (other / "run.log").write_text("val_bpb: 1.01\n")
    answer = cli("record", "run.log", "--desc", "there", cwd=other)
    assert answer.returncode == 0, answer.stderr
    commit = rows(cli)[-1]["commit"]
    assert commit == git(other, "rev-parse", "HEAD")


def test_a_run_by_hand_without_one_of_its_reference_says_which_is_missing(
    cli: Cli, foreign: Path, git: Git
) -> None:
    """`run-experiment --baseline` would not help: that is another platform."""
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    change(foreign, git, 0.2)
    (foreign / "run.log").write_text("val_bpb: 1.01\n")
    assert cli("record", "run.log").returncode == 0
    answer = cli("decide")
    assert answer.returncode == 1
    assert "record run.log --commit COMMIT" in answer.stderr
    (foreign / "run.log").write_text("val_bpb: 1.04\n")
    assert cli("record", "run.log", "--commit", "main~1").returncode == 0
    cli("decide")
    decided = cli("decide", "--json")  # what waits longer was looked at first
    assert json.loads(decided.stdout)[0]["decision_status"] == "keep", decided.stderr
