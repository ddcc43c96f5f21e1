"""Ctrl-C, as a terminal sends it to all processes of the group: each way in which it was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autohypothesis.fleet import single_loop
from autohypothesis.fleet.live.stop import SUPERVISOR, Stop
from autohypothesis.fleet.supervisor.process_specs import ProcessSpec
from autohypothesis.fleet.supervisor.supervisor import Supervisor
from autohypothesis.records.layout import Layout
from autohypothesis.system import CtrlC, process_start
from tests.conftest import ROOT, wait_until

SLOW_GIT = """#!{python} -S
# Says that it runs, and is at work for a while; what it does then is git's.
import os, sys, time
gate = os.environ["GATE"]
with open(gate + ".began", "w") as file:
    file.write(str(os.getpid()))
while not os.path.exists(gate):
    time.sleep(0.05)
os.execv("{git}", ["git", *sys.argv[1:]])
"""

SLOW = """
import sys
from pathlib import Path
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.records.git import Repository

with Stop() as stop:
    print(Repository(Path(sys.argv[1])).head(), stop.requested)
"""


INTERRUPTED = """
import signal, sys
from pathlib import Path
from autohypothesis.records.git import Repository
from autohypothesis.system import CtrlC

signal.signal(signal.SIGINT, CtrlC())
try:
    Repository(Path(sys.argv[1])).head()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def slow_git(tmp_path: Path) -> dict[str, str]:
    """An environment in which git waits for a gate, in this group's process."""
    import shutil

    folder = tmp_path / "slow"
    folder.mkdir()
    program = folder / "git"
    program.write_text(SLOW_GIT.format(git=shutil.which("git"), python=sys.executable))
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GATE": str(tmp_path / "gate")}


@pytest.fixture
def at_the_end() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def while_git_works(
    fleet_root: Path,
    slow_git: dict[str, str],
    until: Callable[..., None],
    at_the_end: list[subprocess.Popen[str]],
) -> Callable[[str], tuple[subprocess.Popen[str], int]]:
    """Runs code that calls the slow git; answers with its process and git's pid."""

    def begin(code: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(fleet_root)], env=slow_git, cwd=ROOT,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        at_the_end.append(process)
        began = Path(f"{slow_git['GATE']}.began")
        until(lambda: began.exists() and began.read_text())
        return process, int(began.read_text())

    return begin


def test_git_that_is_at_work_ends_its_work(
    while_git_works: Callable[[str], tuple[subprocess.Popen[str], int]], slow_git: dict[str, str]
) -> None:
    process, _ = while_git_works(SLOW)
    for _ in range(20):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    Path(slow_git["GATE"]).touch()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said, said
    head, requested = out.split()
    assert len(head) == 40 and requested == "True"


def test_a_git_that_never_answers_keeps_no_interrupted_command_alive(
    while_git_works: Callable[[str], tuple[subprocess.Popen[str], int]],
) -> None:
    process, git = while_git_works(INTERRUPTED)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=20)
    assert out == "interrupted\n" and not said
    assert process_start(git) is None


def test_what_the_interpreter_dropped_while_it_started_is_heard_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    former = signal.signal(signal.SIGINT, CtrlC())
    try:
        with Stop() as stop:
            assert not stop.requested
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            pass  # as an import does, in a callback of which nobody sees the error
        with Stop() as stop:
            assert stop.requested and not stop.hard
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("words", [("run-loop",), ("up",), ("runs",)])
def test_a_command_that_only_starts_ends_without_a_traceback(
    fleet_root: Path, tmp_path: Path, words: tuple[str, ...], delay: float,
    at_the_end: list[subprocess.Popen[str]],
) -> None:  # fmt: skip
    said = tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", str(ROOT / "orchestrator.py"), *words],
            cwd=fleet_root, start_new_session=True, stdout=subprocess.DEVNULL, stderr=out,
        )  # fmt: skip
    at_the_end.append(process)
    # Before that it is the start of Python, whose Ctrl-C is a traceback of its own.
    wait_until(lambda: "\n" in said.read_text().partition("autohypothesis.__main__\n")[2])
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    assert "Traceback" not in said.read_text(), said.read_text()


WHILE_A_CLASS_IS_MADE = """
from autohypothesis.commands.app import run_and_exit

class Field:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt

run_and_exit(lambda **_: type("Made", (), {"field": Field()}))
"""


def test_a_ctrl_c_while_an_import_makes_a_class_is_no_error_of_ours(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WHILE_A_CLASS_IS_MADE]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "error: stopped by you\n")


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
NOTES = "open({path!r}, 'a').write('began\\n')\ntime.sleep(600)\n"


def deaf(path: Path) -> tuple[str, ...]:
    """What a niced process is on a busy machine: it does not come to hear that it should end."""
    return (sys.executable, "-c", DEAF + NOTES.format(path=str(path)))


def test_a_loop_does_not_wait_for_who_draws(
    tmp_path: Path, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_loop, "SYNC_EXIT_S", 0.3)
    note = tmp_path / "note"
    process = subprocess.Popen(deaf(note), start_new_session=True)
    until(note.exists)
    single_loop._end(process)
    assert process.returncode == -signal.SIGKILL


def test_a_supervisor_does_not_wait_for_who_draws_and_ends_the_last_sync_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    from autohypothesis.fleet.supervisor import supervisor

    monkeypatch.setattr(supervisor, "LAST_SYNC_S", 0.5)
    monkeypatch.setattr(supervisor, "SYNC_EXIT_S", 0.5)
    drawing, asked = tmp_path / "drawing", list[bool]()

    def last_sync(layout: Layout, *, hurried: bool) -> ProcessSpec:
        asked.append(hurried)
        return ProcessSpec("sync", deaf(tmp_path / "last"))

    monkeypatch.setattr(supervisor, "last_sync", last_sync)
    made = Supervisor(Layout(tmp_path), [ProcessSpec("sync", deaf(drawing), nice=10)])
    with Stop() as stop:
        made.tick = lambda: drawing.exists() and stop.request("SIGINT")  # type: ignore[func-returns-value,assignment]
        assert made.run(stop) == "stopped"
    assert asked == [True], "somebody waits, so it is the short one"
