"""The command line itself: help, version, completion; no command is imported for another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis import __version__
from tests.conftest import ROOT, Cli


@pytest.mark.parametrize("words", [[], ["hub"], ["task"], ["tools"], ["hub", "admin"]], ids=str)
def test_a_group_by_itself_shows_its_help(cli: Cli, words: list[str]) -> None:
    bare, asked = cli(*words), cli(*words, "--help")
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout.strip() == asked.stdout.strip() and "Usage: " in bare.stdout


def test_the_version_is_printed_wherever_one_stands(cli: Cli, tmp_path: Path) -> None:
    answer = cli("--version", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, f"autohypothesis {__version__}\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sho", ["show", "show-results"]),
        ("hub jo", ["join"]),
        ("run-experiment --rep", ["--replicate", "--repo"]),
        ("show base", ["baseline-t-1"]),
    ],
)
def test_a_shell_completes_commands_options_and_names(
    program: Cli, foreign: Path, typed: str, offered: list[str]
) -> None:
    (foreign / "research" / "runs" / "baseline-t-1").mkdir(parents=True)
    line = f"orchestrator.py {typed}"
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    answer = program(**asked, **{"_ORCHESTRATOR.PY_COMPLETE": "complete_bash"})
    assert sorted(answer.stdout.split()) == offered, answer.stderr


def test_a_command_imports_no_module_of_another_one(tmp_path: Path) -> None:
    code = (
        "import sys, orchestrator\n"
        "sys.argv = ['orchestrator.py', 'runs', '--help']\n"
        "try:\n    orchestrator.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted(name.rpartition('.')[2] for name in sys.modules"
        " if name.startswith('autohypothesis.commands.')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.splitlines()[-1] == str(["app", "common", "main", "show"])
