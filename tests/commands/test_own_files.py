"""Files of the user's under names that we write: kept, and named before a run is spent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.records.files import write_atomic
from autohypothesis.records.layout import Layout
from tests.conftest import Cli, Git, forked

RUN = ("run-experiment", "--baseline", "--tag", "t", "--settle")
THEIRS = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n0123abc\t0.99\t44.0\tkeep\tbaseline\n"


def seen(path: Path) -> tuple[int, object]:
    """What would change if it was written, moved or replaced."""
    status = path.lstat()
    return status.st_ino, path.read_bytes() if path.is_file() else status.st_mtime_ns


PUT: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("my own\n"),
    "json": lambda path: path.write_text('{"mine": 1}\n'),
    "row": lambda path: path.write_text('{"id": "a-1", "val_bpb": 1.0}\n'),
    "link": lambda path: path.symlink_to(path.parent / "data.txt"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", PUT)
def test_a_ledger_of_the_users_stops_the_run_before_it_begins(
    foreign: Path, cli: Cli, kind: str
) -> None:
    layout = Layout(foreign)
    PUT[kind](layout.ledger)
    before = seen(layout.ledger)
    answer = cli(*RUN)
    assert answer.returncode == 1 and str(layout.ledger) in answer.stderr
    assert "mv " in answer.stderr
    assert seen(layout.ledger) == before and not layout.runs.exists()
    if kind == "text":
        os.rename(layout.ledger, foreign / "mine")
        assert cli(*RUN).returncode == 0


def test_a_ledger_that_the_repository_tracks_stops_it_too(
    foreign: Path, cli: Cli, git: Git
) -> None:
    (foreign / "experiments.jsonl").write_text("")
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "a ledger")
    answer = cli(*RUN)
    assert answer.returncode == 1 and "git mv" in answer.stderr
    assert git(foreign, "status", "--porcelain") == ""


@pytest.mark.parametrize("kind", ["text", "link", "folder", "pipe"])
def test_a_table_or_picture_of_the_users_stays_and_ours_lies_elsewhere(
    foreign: Path, cli: Cli, kind: str
) -> None:
    layout = Layout(foreign)
    paths = (layout.results_tsv, layout.progress_png)
    for path in paths:
        PUT[kind](path)
    before = [seen(path) for path in paths]
    answer = cli(*RUN)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("results.tsv is") == 1, "said once"
    assert "results.tsv is" not in cli("decide", "baseline-t-1", "keep").stderr
    assert cli("sync", "--all").returncode == 0
    assert [seen(path) for path in paths] == before
    assert "baseline" in layout.aggregate_results_tsv.read_text()
    assert layout.aggregate_progress_png.read_bytes().startswith(b"\x89PNG")


def test_our_own_picture_is_drawn_again(foreign: Path, cli: Cli) -> None:
    layout = Layout(foreign)
    assert cli(*RUN).returncode == 0
    first = layout.progress_png.stat().st_ino
    assert cli("sync", "--all").returncode == 0
    assert layout.progress_png.stat().st_ino != first
    assert not layout.aggregate_progress_png.exists()


def test_tracked_files_stay_clean_and_what_was_kept_can_be_adopted(
    foreign: Path, cli: Cli, git: Git
) -> None:
    (foreign / "progress.png").write_bytes(b"an old picture")
    (foreign / "results.tsv").write_text(THEIRS)
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "as the originals have it")
    assert cli(*RUN).returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.2", "--settle").returncode == 0
    assert cli("sync", "--all").returncode == 0
    assert git(foreign, "status", "--porcelain") == ""
    answer = cli("adopt")
    assert answer.returncode == 0 and "moved" in answer.stdout, answer.stderr


def test_a_writer_that_is_killed_leaves_nothing_that_git_shows(
    foreign: Path, cli: Cli, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*RUN)
    layout = Layout(foreign)
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    for path in (layout.ledger, layout.results_tsv, layout.progress_png):
        forked(write_atomic, path, "half of it").join(60)
    assert len(list(foreign.glob(".*.tmp"))) == 3
    assert git(foreign, "status", "--porcelain") == ""


def test_a_worktree_of_the_users_is_not_worked_in(foreign: Path, cli: Cli, git: Git) -> None:
    git(foreign, "worktree", "add", "-q", "worktrees/solo-0", "-b", "feature")
    own = foreign / "worktrees" / "solo-0" / "wip.txt"
    own.write_text("not committed\n")
    plain = foreign / "worktrees" / "solo-1"
    plain.mkdir()
    (plain / "mine.txt").write_text("mine\n")
    assert cli(*RUN).returncode == 0
    assert own.read_text() == "not committed\n" and (plain / "mine.txt").exists()
    assert git(foreign / "worktrees" / "solo-0", "branch", "--show-current") == "feature"


def test_what_a_user_has_in_work_is_not_hidden_from_git(foreign: Path, cli: Cli, git: Git) -> None:
    (foreign / "work").mkdir()
    (foreign / "work" / "notes.txt").write_text("mine\n")
    assert cli(*RUN).returncode == 0
    assert "work/" in git(foreign, "status", "--porcelain")
