"""Nothing that a command did is lost because it cannot be printed, and nobody else may write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from tests.conftest import ROOT, Cli, Git

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(foreign: Path) -> Shell:
    """A line of bash in which `ah` is the command line."""

    def run(line: str, **env: str) -> subprocess.CompletedProcess[str]:
        ah = f'ah() {{ "{sys.executable}" "{ROOT / "orchestrator.py"}" "$@"; }}\n'
        return subprocess.run(
            ["bash", "-c", f"{ah}{line}"], cwd=foreign, env={**os.environ, **env}, timeout=120,
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


RUN = "ah run-experiment --baseline --tag t --settle"


@pytest.mark.parametrize(
    "line",
    [RUN, f"{RUN} <&- >&- 2>&-", f"{RUN} 2>/dev/full >/dev/full",
     f"set -o pipefail; {RUN} 2>&1 | true"],
)  # fmt: skip
def test_a_run_is_decided_and_in_the_ledger_whoever_can_read_its_line(
    foreign: Path, shell: Shell, line: str
) -> None:
    answer = shell(line, PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    (row,) = read_ledger(Layout(foreign))
    assert row["status"] == "keep"
    if line == RUN:
        path = answer.stdout.rstrip("\n").split("\t")[3]
        assert path.encode("ascii", "backslashreplace").isascii() and path.endswith("run.log")
    if ">&-" in line:  # the next file that is opened gets the number of none
        ledger = Layout(foreign).ledger.read_bytes()
        assert (
            shell("ah runs >&- 2>&-").returncode == shell("ah sync --all >&- 2>&-").returncode == 0
        )
        assert Layout(foreign).ledger.read_bytes() == ledger
        files = [path for path in foreign.rglob("*") if path.is_file()]
        assert not [path for path in files if b"\t12.5\t" in path.read_bytes()]


def test_a_crash_is_told_by_the_exit_code_also_where_nobody_reads(
    foreign: Path, shell: Shell, git: Git
) -> None:
    (foreign / "train.py").write_text("raise SystemExit(3)\n")
    git(foreign, "commit", "-qam", "crash")
    assert shell(f"set -o pipefail; {RUN} 2>/dev/full | true").returncode == 1


def test_json_is_the_same_document_on_any_stdout_and_an_error_where_it_cannot_be_written(
    shell: Shell,
) -> None:
    assert shell(RUN + " --desc 'größer – \u202e模型'").returncode == 0
    answers = [
        shell("ah runs --json", **env).stdout
        for env in ({}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"})
    ]
    assert answers[1].isascii()
    assert [json.loads(one) for one in answers] == [json.loads(answers[0])] * 3
    assert json.loads(answers[0])[0]["description"] == "größer – \u202e模型"
    full = shell("ah runs --json >/dev/full")
    assert full.returncode == 1 and "stdout could not be written" in full.stderr
    assert shell("set -o pipefail; ah runs | true").returncode == 0, "a reader that left is none"
    gone = shell("ah monitor --interval 0.1 | true; echo ${PIPESTATUS[0]}")
    assert gone.stdout == "0\n", "the monitor ends with its reader"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """`os.umask`, put back after the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_whatever_the_umask_nobody_else_may_write(
    foreign: Path, cli: Cli, own_locks: Path, umask: Callable[[int], int]
) -> None:
    for words in (RUN, "ah init-fleet --cpu-workers 1", "ah sync --all --snapshot"):
        umask(0o000)
        answer = cli(*words.split()[1:])
        assert answer.returncode == 0, answer.stderr
    made = [path for path in foreign.rglob("*") if not path.is_symlink()]
    assert not [path for path in made if path.stat().st_mode & 0o002]
    assert own_locks.stat().st_mode & 0o7777 == 0o1777, "its folder alone is everybody's"


def test_a_stricter_umask_stays(foreign: Path, cli: Cli, umask: Callable[[int], int]) -> None:
    umask(0o077)
    assert cli("init-fleet", "--cpu-workers", "1").returncode == 0
    assert Layout(foreign).research.stat().st_mode & 0o077 == 0
