"""A person who works on a branch `autoresearch/<tag>`, as published loops have always told them.

The reference of a search is a branch of such a name, and no checkout may stand on it when it moves.
"""

from __future__ import annotations

import json
import re
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


def test_a_loop_of_ours_on_todays_branch_takes_another_name(
    cli: Cli, foreign: Path, git: Git
) -> None:
    own = f"autoresearch/{todays_tag()}"
    git(foreign, "checkout", "-q", "-b", own)
    before = git(foreign, "rev-parse", "HEAD")
    answer = cli("run-loop", "--max", "2")
    assert answer.returncode == 0, answer.stderr
    assert f"of {todays_tag()}-2 in" in answer.stderr
    assert git(foreign, "rev-parse", own) == before
    assert git(foreign, "status", "--porcelain") == ""
    assert cli("adopt").returncode == 0
    assert git(foreign, "rev-parse", own) == git(foreign, "rev-parse", f"{own}-2")
    assert git(foreign, "status", "--porcelain") == ""


@pytest.fixture
def on_the_reference(cli: Cli, foreign: Path, git: Git) -> Path:
    """A person who went to look at a search's branch while something better waits, and edits."""
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.3").returncode == 0
    git(foreign, "switch", "-q", "autoresearch/t")
    (foreign / "data.txt").write_text("mine\n")
    return foreign


REFUSED = [
    ("decide",),
    ("record", "run.log"),
    ("run-experiment", "--baseline"),
    ("run-loop", "--max", "1"),
    ("init-fleet", "--cpu-workers", "1"),
]


def test_the_branch_of_a_search_does_not_move_under_who_stands_on_it(
    cli: Cli, on_the_reference: Path, git: Git
) -> None:
    root = on_the_reference
    (root / "run.log").write_text("val_bpb: 1.0\n")
    before = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")
    for words in REFUSED:
        answer = cli(*words)
        assert answer.returncode == 1, (words, answer.stderr)
        assert "autoresearch/t is the search's, and checked out in" in answer.stderr, words
    assert cli("sync").returncode == 0
    after = git(root, "rev-parse", "autoresearch/t"), git(root, "status", "--porcelain")
    assert after == before
    git(root, "switch", "-q", "-c", "mine")
    decided = cli("decide")
    assert decided.returncode == 0 and "the reference is now" in decided.stdout, decided.stderr
    assert (git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")) == before


def test_a_keep_that_its_user_took_back_is_not_put_back(cli: Cli, foreign: Path, git: Git) -> None:
    """As the printed loop has it: git reset, on the branch of the search itself."""
    assert cli("run-experiment", "--baseline", "--settle", "--tag", "t").returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.3", "--settle").returncode == 0
    git(foreign, "switch", "-q", "autoresearch/t")
    git(foreign, "reset", "-q", "--hard", "HEAD~1")
    before = git(foreign, "rev-parse", "HEAD")
    for where in ("on it", "beside it"):
        answer = cli("decide")
        assert answer.returncode == 0 and "nothing waits" in answer.stderr, where
        assert git(foreign, "rev-parse", "autoresearch/t") == before
        assert git(foreign, "status", "--porcelain") == ""
        git(foreign, "switch", "-q", "-C", "mine")


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
