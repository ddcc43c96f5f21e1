"""File names are bytes: one that is no text, or has a line break, stops nothing and is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autohypothesis.records.files import shown
from autohypothesis.records.layout import Layout
from tests.conftest import Cli, Git, rows

NAMES = (b"\xfe", b"caf\xe9.json", b"a\nb.json", b"\xfe.md", b"worker-\xfe.lock", b"\x1b[2J.json")
READ = ("runs", "best", "show-results", "status", "digest", "sync", "decide", "doctor")


def plant(research: Path) -> int:
    """Odd names in each folder under research/, as files and as folders; how many folders."""
    folders = [place for place, _, _ in os.walk(os.fsencode(research))]
    for place in folders:
        for name in NAMES:
            path = os.path.join(place, name)
            if not os.path.lexists(path):
                Path(os.fsdecode(path)).write_text('{"status": "completed"}')
        os.makedirs(os.path.join(place, b"d\xff"), exist_ok=True)
        Path(os.fsdecode(os.path.join(place, b"d\xff", b"result.json"))).write_text("{}")
    return len(folders)


def all_text(folder: Path) -> bool:
    """Whether every JSON file of ours is UTF-8."""
    for path in folder.rglob("*.json*"):
        if path.is_file():
            path.read_bytes().decode()
    return True


def test_one_odd_name_anywhere_under_research_freezes_nothing(cli: Cli, foreign: Path) -> None:
    assert cli("run-experiment", "--baseline", "--settle").returncode == 0
    assert cli("init-fleet", "--tag", "two", "--cpu-workers", "1").returncode == 0
    layout = Layout(foreign)
    for state in ("pending", "done"):
        layout.hypotheses(state).mkdir(parents=True, exist_ok=True)
    layout.hypotheses("dispatched", "cpu0").mkdir(parents=True, exist_ok=True)
    layout.inbox_refused.mkdir(parents=True, exist_ok=True)
    layout.published_tools.mkdir(parents=True, exist_ok=True)
    layout.outbox_state("pending").mkdir(parents=True, exist_ok=True)
    assert plant(layout.research) > 15
    for words in READ:
        answer = cli(words)
        expected = 1 if words in ("best", "show-results") else 0  # nothing is decided in this one
        assert answer.returncode == expected, (words, answer.stderr)
        assert "Error" not in answer.stderr, (words, answer.stderr)
    answer = cli("sync")
    assert r"research/runs/\xfe: " in answer.stderr
    assert r"damaged: research/plans/caf\xe9.json: has a name that is not UTF-8" in answer.stderr
    problems = json.loads(layout.problems.read_text())["problems"]
    assert all(problem["path"].isprintable() for problem in problems)
    assert all_text(layout.research)
    answer = cli("run-loop", "--tag", "two", "--max", "1")
    assert answer.returncode == 0, answer.stderr
    assert rows(cli)[0]["status"] == "keep"
    for words in (("sync", "--snapshot"), ("briefing",)):
        answer = cli(*words)
        assert answer.returncode == 0, answer.stderr


def test_a_tracked_file_with_such_a_name_is_named_when_a_run_changes_it(
    cli: Cli, foreign: Path, git: Git
) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(foreign), b"caf\xe9.txt"))).write_text("data\n")
    script = foreign / "train.py"
    script.write_text(
        f"import pathlib\nfor path in pathlib.Path('.').glob('caf*'):\n"
        f"    path.write_text('mine')\n{script.read_text()}"
    )
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "writes")
    answer = cli("run-experiment", "--baseline")
    (row,) = rows(cli)
    assert row["failure_kind"] == "invalid", answer.stderr
    assert r"caf\xe9.txt was changed" in row["notes"][0]


@pytest.mark.parametrize("name", [b"p\xfe", b"li\nne", b"end\n"])
@pytest.mark.parametrize("words", ["run-experiment", "show-results"])
def test_a_repository_at_such_a_path_is_refused_at_once(
    foreign: Path, cli: Cli, name: bytes, words: str
) -> None:
    there = Path(os.fsdecode(os.path.join(os.fsencode(foreign.parent), name)))
    foreign.rename(there)
    for cwd in (there, there / ".git" / "..", _linked(foreign.parent / "link", there)):
        answer = cli(words, cwd=cwd)
        assert answer.returncode == 1
        assert answer.stderr.startswith("error: the path of the repository, '")
        assert shown(there) in answer.stderr
        assert "move the folder" in answer.stderr
    assert not (there / "research").exists()


def _linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


def test_names_are_shown_so_that_a_terminal_and_json_can_take_them() -> None:
    assert shown("plain ü") == "plain ü"
    assert shown(os.fsdecode(b"a\xfe\n\x1b[2J\xc2\x85")) == r"a\xfe\n\x1b[2J\x85"
