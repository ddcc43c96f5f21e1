"""scripts/: the published names, from inside any repository, with the published flags."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
PUBLISHED = ["check-hardware", "run-experiment", "run-loop", "setup", "show-results"]
ECHO = '#!/bin/sh\nprintf "%s\\n" "$0" "$@"\nexit 3\n'

Answer = subprocess.CompletedProcess[str]


def script(
    name: str, *words: str, cwd: Path, home: Path = ROOT, python: Path | None = None
) -> Answer:
    """`bash scripts/NAME.sh WORDS`, with `python3` being `python`, by default the one of the tests.

    A relative call, as people type it, where the scripts lie in `cwd` itself.
    """
    path = home / "scripts" / f"{name}.sh"
    if cwd == home:
        path = path.relative_to(home)
    folder = cwd / ".bin"
    folder.mkdir(exist_ok=True)
    shown = folder / "python3"  # no link: a venv is found by the path of its Python
    shown.write_text(f'#!/bin/sh\nexec "{python or sys.executable}" "$@"\n')
    shown.chmod(0o755)
    return subprocess.run(
        ["bash", str(path), *words], cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CDPATH": "/:/tmp"},
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder with a blank, and a Python that says how it was called."""
    home = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", home / "scripts")
    echo = home / "echo"
    echo.write_text(ECHO)
    echo.chmod(0o755)
    return home


def test_the_published_scripts_are_there_and_short() -> None:
    assert [path.stem for path in SCRIPTS] == PUBLISHED
    for path in SCRIPTS:
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
        assert len(lines) <= 7 and os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "elsewhere"])
def test_words_and_the_exit_code_are_passed_on_as_they_are(
    copy: Path, tmp_path: Path, name: str, inside: bool
) -> None:
    words = ["--max", "3", "--desc", "two words; $(id)", ""]
    cwd = copy if inside else tmp_path
    answer = script(name, *words, cwd=cwd, home=copy, python=copy / "echo")
    assert answer.returncode == 3, answer.stderr
    _, program, command, *passed = answer.stdout.split("\n")[:-1]
    assert (program, command, passed) == (str(copy / "orchestrator.py"), name, words)


def test_the_environment_beside_the_scripts_is_used_where_there_is_one(copy: Path) -> None:
    (copy / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(copy / "echo", copy / ".venv" / "bin" / "python")
    answer = script("setup", cwd=copy, home=copy, python=Path("/bin/false"))
    assert answer.stdout.splitlines()[0] == str(copy / ".venv/bin/python")


def test_they_act_on_the_repository_of_the_current_folder(foreign: Path) -> None:
    answer = script("run-experiment", cwd=foreign)
    assert answer.returncode == 0, answer.stderr
    value, memory, seconds, log = answer.stdout.rstrip("\n").split("\t")
    assert (float(value), float(memory)) == (pytest.approx(1.04), 12.5)
    assert float(seconds) > 0 and Path(log).is_relative_to(foreign)
    shown = script("show-results", "--json", "--kept-only", "--top", "5", cwd=foreign)
    assert json.loads(shown.stdout)["outcomes"]["undecided"] == 1


def test_a_task_is_named_as_published() -> None:
    """What it starts is `task run`; that it starts it with these words is told here."""
    answer = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run_task.py")], capture_output=True, text=True
    )
    assert answer.returncode == 2 and "--task" in answer.stderr
