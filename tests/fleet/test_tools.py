"""Helper scripts: what must not be published, what must not be run, and what is never lost."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from autohypothesis import sandbox
from autohypothesis.engine.program import ProgramEnd
from autohypothesis.errors import ToolError, UsageError
from autohypothesis.fleet.live.presence import read_role
from autohypothesis.fleet.toolbuilder import builder, checks, guard, tools
from autohypothesis.fleet.toolbuilder.builder import ATTEMPTS, ToolBuilder, from_catalogue
from autohypothesis.fleet.toolbuilder.checks import run_script
from autohypothesis.records import jsonl
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Tool
from tests.conftest import wait_until as until
from tests.fleet.conftest import Forked

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0

GOOD = '''"""Answers with a number."""
import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--research", type=pathlib.Path)
parser.add_argument("--json", action="store_true")
parser.add_argument("--self-test", action="store_true")
parser.add_argument("--sleep", type=float, default=0)
parser.add_argument("--fail", type=int, default=0)
# FIRST
words = parser.parse_args()
# THEN
time.sleep(words.sleep)
print(json.dumps({"answer": 42}) if words.json else "42")
sys.exit(words.fail)
'''


def script(first: str = "", then: str = "") -> bytes:
    return GOOD.replace("# FIRST", dedent(first)).replace("# THEN", dedent(then)).encode()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "a repository ü")
    layout.research.mkdir(parents=True)
    layout.decisions.write_text("kept\n")
    return layout


def publish(layout: Layout, tool_id: str = "answer", source: bytes = script()) -> Tool:
    return tools.publish(layout, tool_id, source, decided_by="a test")


def ask(layout: Layout, tool_id: str, problem: str = "why?") -> Tool:
    return tools.request(layout, tool_id, problem=problem, requested_by="a test")


def status(layout: Layout, tool_id: str) -> str | None:
    return {tool.tool_id: tool.status for tool in tools.registry(layout).tools}.get(tool_id)


# ── checks ──────────────────────────────────────────────────────────────────────────────────


WAYS = """
    if words.json:
        os.symlink(words.research, 'link')
        ways = [
            lambda: (words.research / 'x').write_text('x'),
            lambda: open('link/x', 'a'),
            lambda: open(words.research.parent / 'experiments.jsonl', 'a'),
            lambda: os.remove(words.research / 'decisions.jsonl'),
            lambda: os.remove('decisions.jsonl', dir_fd=os.open(words.research, os.O_RDONLY)),
            lambda: os.rename(words.research, str(words.research) + '2'),
        ]
        for way in ways:
            try:
                way()
            except OSError:
                pass
"""


def test_a_tool_that_writes_to_research_is_not_published(
    layout: Layout, tmp_path: Path, held_by: str
) -> None:
    before = sorted(layout.root.rglob("*"))
    path, source = tmp_path / "aside" / "tool.py", script(then=WAYS)
    path.parent.mkdir()
    path.write_bytes(source)
    ended = run_script(
        path, sha256(source).hexdigest(), ["--research", str(layout.research), "--json"],
        read_only=layout.root, cwd=path.parent, timeout_s=60,
    )  # fmt: skip
    assert ended.exit_code == guard.EXIT_WROTE and ended.err.count("refused: ") == 6, ended
    with pytest.raises(ToolError, match="changes the research with --json"):
        publish(layout, source=source)
    assert sorted(layout.root.rglob("*")) == before
    assert layout.decisions.read_text() == "kept\n"
    assert status(layout, "answer") is None


def test_a_program_that_a_tool_starts_cannot_write_either(layout: Layout, held_by: str) -> None:
    if held_by == "none":
        pytest.skip("only a sandbox holds what is not Python")
    shell = "import subprocess; subprocess.run(['touch', str(words.research / 'x')], check=True)"
    with pytest.raises(ToolError, match="exit code"):
        publish(layout, source=script(then=shell))
    assert not (layout.research / "x").exists()


@pytest.mark.parametrize(
    "words",
    ["import scipy.stats", "from scipy import stats", "import autohypothesis.records",
     "from . import x", "__import__('scipy')", "__import__('sci' + 'py')",
     "import importlib; importlib.import_module('scipy')"],
)  # fmt: skip
def test_one_that_imports_something_outside_is_refused_by_name(layout: Layout, words: str) -> None:
    with pytest.raises(
        ToolError, match=r"imports ('(scipy|autohypothesis|\.)|a name that is only)"
    ):
        publish(layout, source=script(first=words))


def test_our_dependencies_may_be_imported_by_the_names_that_they_have() -> None:
    names = "yaml markdown_it pynvml numpy matplotlib optuna torch json requests"
    assert set(names.split()) <= checks.allowed_modules()


def running(*words: str) -> list[int]:
    """Processes with these words on their command line."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if all(os.fsencode(word) in line for word in words):
                found.append(pid)
    return found


def test_one_whose_help_hangs_is_refused_within_the_limit(
    layout: Layout, held_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "HELP_S", 1.5)
    began = time.monotonic()
    with ThreadPoolExecutor() as beside:
        asked = beside.submit(publish, layout, source=script(first="time.sleep(600)"))
        until(lambda: running("--help", str(layout.research)))
        with pytest.raises(ToolError, match=r"does not end --help within 1\.5 s"):
            asked.result()
    assert time.monotonic() - began < 30
    until(lambda: not running("--help", str(layout.research)))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (script(then="if words.self_test: sys.exit('two is not three')"), "two is not three"),
        (script(first="sys.exit(3)"), "--help with exit code 3"),
        (b"import sys\n", "no docstring"),
        (b'"""x"""\ndef (:\n', "is no Python"),
        (b"\0\xff\xfe", "is no Python"),
        (b"", "no docstring"),
        (script(then="if words.json: print('x' * 5_000_000)"), "prints more than"),
    ],
    ids=["self-test", "help", "docstring", "syntax", "bytes", "empty", "flood"],
)
def test_what_fails_a_check_is_not_published(layout: Layout, source: bytes, why: str) -> None:
    with pytest.raises(ToolError, match=why):
        publish(layout, source=source)
    assert not layout.published_tool("answer").exists()


def test_what_is_no_file_or_no_name_is_not_published(layout: Layout) -> None:
    for path in ("/dev/zero", "/", "none.py"):
        with pytest.raises(ToolError, match="cannot be published"):
            tools.publish(layout, "answer", layout.root / path, decided_by="a test")
    with pytest.raises(UsageError):
        publish(layout, "../../evil")
    with pytest.raises(UsageError):
        ask(layout, "a/b")


# ── running ─────────────────────────────────────────────────────────────────────────────────


def test_a_published_file_that_was_changed_is_not_run(layout: Layout) -> None:
    publish(layout)
    path = layout.published_tool("answer")
    assert path.stat().st_mode & 0o222 == 0
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ToolError, match="is not the file that was published") as refused:
        tools.run(layout, "answer")
    assert refused.value.hint.endswith(f"tools publish answer '{path}'")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ToolError, match="is not the file that was published"):
        tools.run(layout, "answer")
    assert tools.registry(layout).tools[0].calls == 0


def test_a_file_that_changes_between_look_and_start_is_not_run(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(layout)
    path = layout.published_tool("answer")
    start = tools.run_script

    def late(*words: Any, **more: Any) -> Any:
        path.unlink()
        path.write_text("print('evil')")
        return start(*words, **more)

    monkeypatch.setattr(tools, "run_script", late)
    with pytest.raises(ToolError, match="is not the file that was published"):
        tools.run(layout, "answer")


def test_a_published_tool_cannot_write_to_research_later(layout: Layout, held_by: str) -> None:
    """It behaved while it was looked at."""
    trick = "if words.fail == 5: (words.research / 'x').write_text('x')"
    publish(layout, source=script(then=trick))
    assert tools.run(layout, "answer", ["--fail", "5"]).exit_code not in (0, 5)
    assert not (layout.research / "x").exists()


def test_a_tool_may_have_a_research_folder_of_its_own(layout: Layout, held_by: str) -> None:
    """Its names are not mistaken for ours when it is run in the repository's root."""
    own = """
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(folder + '/research')
            open(folder + '/research/decisions.jsonl', 'w').close()
            os.symlink(words.research, folder + '/link')
    """
    publish(layout, source=script(then=own))
    assert tools.run(layout, "answer", cwd=layout.root).exit_code == 0
    assert layout.decisions.read_text() == "kept\n"


def test_the_figure_of_a_tool_that_fails_is_an_error(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(0, "{}", {}), (3, "", "ended with 3"), (None, "", "took over 300 s"),
               (0, "no json", "is not JSON"), (0, "[1]", "no JSON object")]  # fmt: skip
    for code, out, expected in answers:
        ended = ProgramEnd(code, out, "", 1.0)
        monkeypatch.setattr(tools, "run", lambda *words, ended=ended: ended)
        if isinstance(expected, dict):
            assert tools.figure(layout, "answer") == expected
        else:
            with pytest.raises(ToolError, match=expected):
                tools.figure(layout, "answer")


def call(tell: Callable[[object], None], root: Path, kind: str, *words: str) -> None:
    sandbox.best_kind = lambda **_: kind
    tools.run(Layout(root), "answer", words)


def test_calls_are_counted_across_a_kill(
    layout: Layout, held_by: str, forked: Callable[..., Forked]
) -> None:
    mark = f"6{os.getpid()}"
    publish(layout)
    tools.run(layout, "answer")
    caller = forked(call, layout.root, held_by, "--sleep", mark)
    until(lambda: running(mark))
    caller.end(kill=True)
    until(lambda: not running(mark))
    with layout.tool_calls.open("ab") as file:
        file.write(b'{"time":"2026-11-20T12:00:00Z","tool_')  # killed while it wrote its line
    tools.run(layout, "answer", ["--fail", "2"])
    tool = tools.registry(layout).tools[0]
    assert (tool.calls, tool.failures) == (2, 1)
    calls, problems = jsonl.read(layout.tool_calls)
    assert [call["exit_code"] for call in calls] == [0, 2]
    assert len(problems) == 1


# ── the registry ────────────────────────────────────────────────────────────────────────────


def request_for_ever(tell: Callable[[object], None], root: Path, name: str) -> None:
    for number in itertools.count():
        tools.request(Layout(root), f"{name}-{number}", problem="", requested_by="")
        tell(f"{name}-{number}")
        time.sleep(0.02)  # those who wait look this often: without a gap one may never find it free


def test_requests_of_several_at_once_that_were_answered_outlive_a_kill(
    layout: Layout, forked: Callable[..., Forked]
) -> None:
    askers = [forked(request_for_ever, layout.root, f"asker-{number}") for number in range(4)]
    answered: list[object] = []
    for number, asker in enumerate(askers):
        answered += [asker.hear() for _ in range(2 + number)]
        answered += asker.end(kill=True)  # in the middle of whatever the next one does
        json.loads(layout.written_copy(layout.registry).read_text())
    tools.refresh(layout)
    assert not layout.conflicts.exists()
    found = {tool.tool_id for tool in tools.registry(layout).tools}
    assert found >= set(answered) and len(answered) >= 14
    assert {tool["tool_id"] for tool in json.loads(layout.registry.read_text())["tools"]} == found


def test_a_torn_registry_loses_no_published_tool(layout: Layout) -> None:
    publish(layout)
    for content in (b"", b'{"tools": [{"tool', b"\xff\xfe", b"[1, 2", b'{"a": 1}'):
        layout.written_copy(layout.registry).write_bytes(content)
        assert status(layout, "answer") == "published"
        layout.registry.write_bytes(content)
        assert status(layout, "answer") == "published"
        ask(layout, "mine")
        assert (status(layout, "mine"), status(layout, "answer")) == ("requested", "published")
    assert tools.figure(layout, "answer") == {"answer": 42}
    layout.registry.write_text(mine := '{"tools": []}')
    ToolBuilder(layout).turn()
    reasons = layout.conflicts.glob("*.reason")
    aside = {path.with_suffix("").read_bytes(): path.read_text() for path in reasons}
    assert "tools request" in aside[mine.encode()], "an edit is moved aside and named"


def test_a_second_request_changes_nothing_unless_a_person_makes_it(layout: Layout) -> None:
    first = ask(layout, "noise", "first")
    assert ask(layout, "noise", "second") == first
    tools.note_failure(layout, first, "no idea", 600)
    again = tools.request(layout, "noise", problem="better", requested_by="ada", by_person=True)
    assert (again.problem, again.attempts, again.retry_at) == ("better", 0, None)
    publish(layout, "noise")
    assert ask(layout, "noise").status == "published"
    tools.decide(layout, "noise", "adopted", decided_by="ada", notes="used for min_delta")
    assert tools.figure(layout, "noise") == {"answer": 42}
    tools.decide(layout, "noise", "discarded", decided_by="ada")
    assert ask(layout, "noise").status == "discarded"
    tools.request(layout, "noise", problem="after all", requested_by="ada", by_person=True)
    assert status(layout, "noise") == "requested"
    with pytest.raises(ToolError, match="only a published one is adopted"):
        tools.decide(layout, "noise", "adopted", decided_by="ada")


def test_a_machine_that_cannot_check_is_a_failed_attempt(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(layout, "noise")

    def full(**words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    monkeypatch.setattr(builder, "BACK_OFF_S", 0.0)
    ToolBuilder(layout).run(Stop(10))
    (tool,) = tools.registry(layout).tools
    assert (tool.status, tool.attempts) == ("requested", ATTEMPTS)
    assert "No space left" in tool.notes


# ── the builder ─────────────────────────────────────────────────────────────────────────────


class Stop:
    """Asked to stop after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    abandoned = hard = False

    def wait(self, seconds: float) -> bool:
        return self.requested


def command(tmp_path: Path, code: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text("import json, sys\nasked = json.load(sys.stdin)\n" + dedent(code))
    return [sys.executable, str(path)]


def test_a_request_is_built_from_the_catalogue_by_its_name_or_by_its_problem() -> None:
    def found(tool_id: str, problem: str = "") -> str:
        path = from_catalogue(
            Tool(tool_id=tool_id, title=tool_id, status="requested", problem=problem)
        )
        return path.stem if path else ""

    assert found("noise") == "noise"
    assert found("spread") == "noise"
    assert found("x", "What is the spread of val_bpb?") == "noise"
    assert found("x", "which settings are important?") == "importance"
    assert found("x", "noise, and curves too") == ""
    assert found("x", "something else") == ""


def test_what_the_command_prints_is_published_after_the_checks(
    layout: Layout, tmp_path: Path
) -> None:
    (tmp_path / "good.py").write_bytes(script())
    code = f"""
        assert asked["tool_id"] == "mine" and "numpy" in asked["rules"]
        print("```python\\n" + open({str(tmp_path / "good.py")!r}).read() + "```")
    """
    ask(layout, "mine", "a hard problem")
    ToolBuilder(layout, command=command(tmp_path, code)).turn()
    assert status(layout, "mine") == "published"
    assert tools.figure(layout, "mine") == {"answer": 42}


def test_an_idle_builder_reads_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(layout, "mine")
    idle = ToolBuilder(layout)
    assert not idle.turn() and not idle.turn()
    monkeypatch.setattr(tools, "refresh", None)
    assert not idle.turn()


@pytest.mark.parametrize(
    ("code", "why"),
    [("sys.exit('no idea')", "no idea"), ("print('x = (')", "is no Python"),
     ("import time; time.sleep(600)", "took over 0.5 s"), ("print('import scipy')", "docstring")],
    ids=["fails", "syntax", "hangs", "docstring"],
)  # fmt: skip
def test_a_command_that_fails_is_asked_three_times_and_then_a_person(
    layout: Layout, tmp_path: Path, code: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "BACK_OFF_S", 0.0)
    if "took over" in why:
        monkeypatch.setattr(builder, "COMMAND_S", 0.5)
    ask(layout, "mine")
    asking = ToolBuilder(layout, command=command(tmp_path, code))
    for _ in range(ATTEMPTS):
        assert asking.turn()
    assert not asking.turn()
    tool = tools.registry(layout).tools[0]
    assert (tool.status, tool.attempts) == ("requested", ATTEMPTS)
    assert why in tool.notes
    said = read_role(layout, "tool-builder")
    assert said is not None and said.state == "waiting"
    assert "tools publish mine PATH" in said.problems[0]


def test_a_failure_is_told_and_not_tried_again_at_once(layout: Layout, tmp_path: Path) -> None:
    ask(layout, "mine")
    words = command(tmp_path, "sys.exit('told: ' + asked['last_failure'])")
    assert ToolBuilder(layout, command=words).turn()
    assert not ToolBuilder(layout, command=words).turn()
    tools.request(layout, "mine", problem="said better", requested_by="ada", by_person=True)
    assert ToolBuilder(layout, command=words).turn()  # a new problem is worth a new attempt
    assert tools.registry(layout).tools[0].problem == "said better"


def test_without_a_command_a_request_waits_for_a_person(layout: Layout) -> None:
    ask(layout, "mine")
    assert not ToolBuilder(layout).turn()
    said = read_role(layout, "tool-builder")
    assert said is not None and "'mine' is requested, for a person" in said.problems[0]
    publish(layout, "mine")
    ToolBuilder(layout).turn()
    said = read_role(layout, "tool-builder")
    assert said is not None and not said.problems
    assert said.details == {"requested": 0, "published": 1, "adopted": 0, "discarded": 0}


def test_a_builder_that_is_asked_to_stop_ends_its_command(layout: Layout, tmp_path: Path) -> None:
    ask(layout, "mine")
    words = command(tmp_path, "import time; time.sleep(600)")
    began = time.monotonic()
    ToolBuilder(layout, command=words).run(Stop(10))
    assert time.monotonic() - began < PATIENCE_S
    tool = tools.registry(layout).tools[0]
    assert (tool.status, tool.attempts) == ("requested", 0)
    said = read_role(layout, "tool-builder")
    assert said is not None and said.state == "stopped" and said.pid == os.getpid()
