"""The command line itself: help, version, completion; no command is imported for another."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis import __version__, installation
from autohypothesis.commands.main import Loaded
from autohypothesis.plain import typeable
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


def test_the_commands_that_take_a_tag_are_known() -> None:
    takes = {
        name
        for name, command in Loaded().items()
        if any("--tag" in option.opts for option in command.params)
    }
    assert takes == installation.TAKES_TAG


def test_suggestions_repeat_the_repository_and_the_search_that_were_given(
    cli: Cli, foreign: Path, tmp_path: Path
) -> None:
    name = f"'{foreign.name}'"
    refused = cli("best", "--repo", foreign.name, "--tag", "t", cwd=tmp_path).stderr
    assert f"orchestrator.py --repo {name} run-experiment --tag t --baseline" in refused
    unknown = cli("--repo", foreign.name, "show", "nosuch", cwd=tmp_path).stderr
    assert f"`python orchestrator.py --repo {name} runs --all`" in unknown
    shown = cli("status", "--repo", foreign.name, cwd=tmp_path).stdout
    assert shown.rstrip().endswith(f"next: python orchestrator.py --repo {name} up")
    assert cli("status").stdout.rstrip().endswith("next: python orchestrator.py up")


def test_suggestions_can_be_typed_where_the_script_is_not_in_the_current_directory(
    program: Cli, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for answer in (program("nosuch"), program("show", "nosuch"), program("status")):
        assert f"python {ROOT / 'orchestrator.py'} " in answer.stdout + answer.stderr, answer
    there = program("new", "my search", cwd=tmp_path).stderr.rstrip()
    assert there.endswith(f"python {ROOT / 'orchestrator.py'} --repo 'my search' setup")
    here = program("status", "--repo", str(foreign), cwd=ROOT).stdout
    assert f"next: python orchestrator.py --repo {shlex.quote(str(foreign))} up" in here


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("see '/r é/b\\c' --x", "see $'/r \\xc3\\xa9/b\\\\c' --x"),
        ("log=/é/\udcfe.log, größe", "log=/$'\\xc3\\xa9'/$'\\xfe'.log, größe"),
        ("the run's name isn't größe", "the run's name isn't größe"),
    ],
)
def test_a_path_that_a_terminal_cannot_show_is_written_as_bash_reads_it(
    text: str, typed: str
) -> None:
    assert typeable(text, "ascii") == typed
    assert typeable("/é '/é'", "utf-8") == "/é '/é'"


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("a: python orchestrator.py runs, then python orchestrator.py show x",
         "a: python orchestrator.py --repo r runs --tag t, then python orchestrator.py --repo r"
         " show x"),
        ("`python orchestrator.py decide x --tag u`", "`python orchestrator.py --repo r decide x"
         " --tag u`"),
        ("python orchestrator.py --repo q runs", "python orchestrator.py --repo q runs"),
        ("python orchestrator.py runs --all", "python orchestrator.py --repo r runs --all"),
        ("run it again", "run it again"),
    ],
)  # fmt: skip
def test_a_command_that_names_its_own_keeps_it(
    monkeypatch: pytest.MonkeyPatch, text: str, suggested: str
) -> None:
    monkeypatch.setattr(installation, "given", {"--repo": "r", "--tag": "t"})
    assert installation.suggested(text) == suggested


def test_the_commands_can_be_counted() -> None:
    """As newer releases of typer do, for the nearest name of an unknown one."""
    assert len(Loaded()) == len(list(Loaded().keys())) > 30
