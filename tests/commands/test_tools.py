"""`tools` on the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autohypothesis.fleet.toolbuilder.builder import ToolBuilder
from autohypothesis.fleet.toolbuilder.tools import registry
from autohypothesis.records.layout import Layout
from tests.conftest import ROOT, Cli
from tests.conftest import wait_until as until

SCRIPT = '''"""Says where it looks."""
import argparse, json, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("--research")
parser.add_argument("--json", action="store_true")
parser.add_argument("--self-test", action="store_true")
parser.add_argument("--code", type=int, default=0)
parser.add_argument("--limit", type=int, default=0)
parser.add_argument("--hang", action="store_true")
words = parser.parse_args()
if words.hang:
    import time
    time.sleep(600)
print(words.research, words.limit, os.getcwd())
if words.code < 0:
    os.kill(os.getpid(), -words.code)
sys.exit(words.code)
'''


@pytest.fixture
def published(cli: Cli, tmp_path: Path) -> Path:
    """A tool `where`, published as a person does it."""
    path = tmp_path / "my script.py"
    path.write_text(SCRIPT)
    answer = cli("tools", "publish", "where", str(path))
    assert answer.returncode == 0, answer.stderr
    assert "where is published: Says where it looks." in answer.stdout
    return path


def test_a_request_is_listed_built_and_run(cli: Cli, foreign: Path) -> None:
    asked = cli("tools", "request", "noise", "--problem", "how far does it move by itself?")
    assert asked.returncode == 0, asked.stderr
    assert "noise" in cli("tools", "list").stdout
    (tool,) = json.loads(cli("tools", "list", "--json").stdout)["tools"]
    assert (tool["status"], tool["problem"]) == ("requested", "how far does it move by itself?")
    early = cli("tools", "run", "noise")
    assert early.returncode == 1
    assert early.stderr.startswith("error: tool 'noise' is requested, not published; ")
    assert ToolBuilder(Layout(foreign)).turn()
    assert "too little" in cli("tools", "run", "noise").stdout
    assert json.loads(cli("tools", "run", "noise", "--json").stdout)["tool"] == "noise"
    (tool,) = json.loads(cli("tools", "list", "--json").stdout)["tools"]
    assert (tool["status"], tool["calls"], tool["failures"]) == ("published", 2, 0)
    assert "published already" in cli("tools", "request", "noise", "--problem", "again").stdout
    assert cli("tools", "adopt", "noise").stdout == "noise is adopted\n"
    assert cli("tools", "discard", "noise", "--notes", "not used").stdout == "noise is discarded\n"
    (tool,) = json.loads(cli("tools", "list", "--json").stdout)["tools"]
    assert (tool["status"], tool["notes"]) == ("discarded", "not used")
    assert "is discarded, not published" in cli("tools", "run", "noise").stderr


def test_words_behind_the_name_are_the_tools_own(cli: Cli, foreign: Path, published: Path) -> None:
    answer = cli("tools", "run", "--limit", "60", "where", "--limit", "5", cwd=foreign.parent)
    assert answer.returncode == 1  # no repository there
    answer = cli(
        "--repo", str(foreign), "tools", "run", "where", "--limit", "5", cwd=foreign.parent
    )
    assert answer.stdout == f"{foreign}/research 5 {foreign.parent}\n", answer.stderr
    assert "--hang" in cli("tools", "run", "where", "--help").stdout


def test_the_exit_code_of_a_tool_is_passed_on(cli: Cli, published: Path) -> None:
    assert cli("tools", "run", "where", "--code", "7").returncode == 7
    late = cli("tools", "run", "--limit", "1", "where", "--hang")
    assert late.returncode == 124
    assert "took over 1 s" in late.stderr
    (tool,) = json.loads(cli("tools", "list", "--json").stdout)["tools"]
    assert (tool["calls"], tool["failures"]) == (2, 2)


def test_a_signal_ends_a_tool_as_in_a_shell(cli: Cli, published: Path) -> None:
    assert cli("tools", "run", "where", "--code", "-15").returncode == 143


def test_a_changed_file_is_refused_with_the_next_command(
    cli: Cli, foreign: Path, published: Path
) -> None:
    path = Layout(foreign).published_tool("where")
    path.unlink()
    path.write_text(SCRIPT.replace("print(", "print('more', ", 1))
    answer = cli("tools", "run", "where")
    assert answer.returncode == 1
    assert f"python orchestrator.py tools publish where '{path}'" in answer.stderr
    assert cli("tools", "publish", "where", str(path)).returncode == 0
    assert cli("tools", "run", "where").stdout.startswith("more ")


def test_what_fails_a_check_is_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(SCRIPT + "import scipy\n")
    answer = cli("tools", "publish", "bad", str(path))
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: tool 'bad' imports 'scipy' in line ")
    assert len(answer.stderr.splitlines()) == 1
    assert cli("tools", "publish", "bad", str(tmp_path / "none.py")).returncode == 1
    assert cli("tools", "publish", "Bad/../x", str(path)).returncode == 2
    assert json.loads(cli("tools", "list", "--json").stdout)["tools"] == []


def test_a_builder_asks_its_command_and_a_second_one_is_refused(
    cli: Cli, foreign: Path, tmp_path: Path
) -> None:
    (tmp_path / "good.py").write_text(SCRIPT)
    assert cli("tools", "request", "where", "--problem", "where am I?").returncode == 0
    asked = shlex.join(["cat", str(tmp_path / "good.py")])
    words = [sys.executable, str(ROOT / "orchestrator.py"), "tool-builder", "--command", asked]
    builder = subprocess.Popen(words, cwd=foreign)
    try:
        until(lambda: registry(Layout(foreign)).tools[0].status == "published")
        late = cli("tool-builder")
        assert late.returncode == 1 and f"pid {builder.pid}" in late.stderr
    finally:
        builder.terminate()
    assert builder.wait(60) == 0
    assert cli("tools", "run", "where").returncode == 0
    status = json.loads(Layout(foreign).role("tool-builder").read_text())
    assert (status["state"], status["pid"]) == ("stopped", builder.pid)
    assert status["last_action"].startswith("published where, built by ")
