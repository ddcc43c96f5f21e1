"""A read-only research/: what reads reads, what has to write says so at once and begins nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, Git, rows

BWRAP = ("bwrap", "--dev-bind", "/", "/")
GUARD_S = 120
"""A hang guard: each command takes a second or two."""

READING = ("runs", "best", "show EXPERIMENT", "show-results", "status", "digest", "runs --json")
WRITING = (
    "sync", "decide", "decide EXPERIMENT discard", "run-experiment --set RATE=0.3",
    "run-experiment --baseline", "run-loop --max 1", "up", "init-fleet --tag z --cpu-workers 1",
    "propose --set RATE=0.4 --title x", "record train.py",
)  # fmt: skip


@pytest.fixture
def frozen(cli: Cli, foreign: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A search with a decided and an undecided run; calls of the command line that cannot write."""
    if shutil.which("bwrap") is None or subprocess.run([*BWRAP, "true"], check=False).returncode:
        pytest.skip("bubblewrap does not work here")
    assert cli("run-experiment", "--baseline", "--settle").returncode == 0
    assert cli("run-experiment", "--set", "RATE=0.2").returncode == 0
    assert cli("init-fleet", "--cpu-workers", "1").returncode == 0
    research = str(foreign / "research")
    first = rows(cli)[0]["id"]

    def call(words: str) -> subprocess.CompletedProcess[str]:
        command = words.replace("EXPERIMENT", first).split()
        return subprocess.run(
            [*BWRAP, "--ro-bind", research, research, "--chdir",
             str(foreign), sys.executable, str(ROOT / "orchestrator.py"), *command],
            capture_output=True, text=True, timeout=GUARD_S, check=False,
        )  # fmt: skip

    return call


def all_files(root: Path) -> dict[str, int]:
    """Every path but git's objects, with its size."""
    found = {}
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in ("objects", "logs")]
        found |= {os.path.join(place, n): os.lstat(os.path.join(place, n)).st_size for n in names}
    return found


def test_what_reads_shows_the_same(
    frozen: Callable[[str], subprocess.CompletedProcess[str]], cli: Cli, foreign: Path
) -> None:
    before = cli("runs", "--json").stdout
    (foreign / "experiments.jsonl").unlink()  # so that nothing can come from there
    for words in READING:
        answer = frozen(words)
        assert answer.returncode == 0, (words, answer.stderr)
        assert "baseline" in answer.stdout or words == "status", (words, answer.stdout)
    assert frozen("runs --json").stdout == before


def test_what_has_to_write_says_so_and_leaves_nothing_behind(
    frozen: Callable[[str], subprocess.CompletedProcess[str]], foreign: Path, git: Git
) -> None:
    before, refs = all_files(foreign), git(foreign, "for-each-ref")
    for words in WRITING:
        answer = frozen(words)
        assert answer.returncode == 1, (words, answer.stdout, answer.stderr)
        assert answer.stderr.startswith("error: "), (words, answer.stderr)
        assert f"{foreign}/research" in answer.stderr, (words, answer.stderr)
        assert "Traceback" not in answer.stderr
    assert git(foreign, "for-each-ref") == refs
    assert all_files(foreign) == before
