"""Helper scripts: what must not be published, what must not be run, and what is never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.errors import LockError, ToolError, UsageError
from autohypothesis.fleet.live.roles import read_role
from autohypothesis.fleet.toolbuilder import builder, tools
from autohypothesis.fleet.toolbuilder import registry as tool_registry
from autohypothesis.fleet.toolbuilder.builder import ATTEMPTS, ToolBuilder, from_catalogue
from autohypothesis.fleet.toolbuilder.checks import Limits
from autohypothesis.records import jsonl
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Tool

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
    tool = tool_registry.find(tools.registry(layout), tool_id)
    return tool.status if tool else None


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


# ── checks ──────────────────────────────────────────────────────────────────────────────────


WRITES = {
    "in its self-test": "if words.self_test: (words.research / 'x').write_text('x')",
    "when it is called": "if words.json: (words.research / 'x').write_text('x')",
    "and hides it": """
        try:
            open(words.research / 'x', 'w')
        except OSError:
            pass
    """,
    "by taking away": "if words.self_test: os.remove(words.research / 'decisions.jsonl')",
    "by moving": "if words.self_test: os.rename(words.research, str(words.research) + '2')",
    "through a link": """
        if words.self_test:
            os.symlink(words.research, 'link')
            open('link/x', 'a')
    """,
    "from an open folder": """
        if words.self_test:
            os.remove('decisions.jsonl', dir_fd=os.open(words.research, os.O_RDONLY))
    """,
    "beside research": "if words.json: open(words.research.parent / 'experiments.jsonl', 'a')",
}


@pytest.mark.parametrize("then", WRITES.values(), ids=WRITES.keys())
def test_a_tool_that_writes_to_research_is_not_published(
    layout: Layout, then: str, held_by: str
) -> None:
    before = sorted(layout.root.rglob("*"))
    with pytest.raises(ToolError, match="changes the research"):
        publish(layout, source=script(then=then))
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
     "from . import x", "__import__('scipy')",
     "import importlib; importlib.import_module('scipy')"],
)  # fmt: skip
def test_one_that_imports_something_outside_is_refused_by_name(layout: Layout, words: str) -> None:
    with pytest.raises(ToolError, match=r"imports '(scipy|autohypothesis|\.)"):
        publish(layout, source=script(first=words))


def test_an_import_that_nobody_can_read_is_refused(layout: Layout) -> None:
    with pytest.raises(ToolError, match="only known when it runs"):
        publish(layout, source=script(first="__import__('sci' + 'py')"))


def test_our_dependencies_may_be_imported_by_the_names_that_they_have(layout: Layout) -> None:
    names = "import yaml, markdown_it, pynvml, numpy, matplotlib, optuna, torch, tomllib, requests"
    lazy = f"def never():\n    {names}\n"
    assert publish(layout, source=script(first=lazy)).status == "published"


def asked_for_help(layout: Layout) -> list[int]:
    """Processes that run a helper script of this repository for its help."""
    found = []
    for pid in system.all_pids():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"--help" in words and os.fsencode(layout.root) in b" ".join(words):
                found.append(pid)
    return found


def test_one_whose_help_hangs_is_refused_within_the_limit(layout: Layout, held_by: str) -> None:
    hangs, limits = script(first="time.sleep(600)"), Limits(help_s=2.0)
    began = time.monotonic()
    with ThreadPoolExecutor() as beside:
        asked = beside.submit(
            tools.publish, layout, "answer", hangs, decided_by="a test", limits=limits
        )
        until(lambda: asked_for_help(layout))
        with pytest.raises(ToolError, match="does not end --help within 2 s"):
            asked.result()
    assert time.monotonic() - began < 30
    until(lambda: not asked_for_help(layout))


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


@pytest.mark.parametrize("path", ["/dev/zero", "/", "none.py"])
def test_what_is_no_file_is_not_published(layout: Layout, path: str) -> None:
    with pytest.raises(ToolError, match="cannot be published"):
        tools.publish(layout, "answer", layout.root / path, decided_by="a test")


def test_a_name_cannot_leave_the_folder(layout: Layout) -> None:
    with pytest.raises(UsageError):
        publish(layout, "../../evil")
    with pytest.raises(UsageError):
        ask(layout, "a/b")


def test_a_module_named_like_one_of_ours_does_not_hide_the_standard_one(layout: Layout) -> None:
    """The folder of the guard holds a queue.py of its own."""
    assert publish(layout, source=script(first="import queue; queue.SimpleQueue()")).sha256


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


def test_one_that_is_only_requested_or_discarded_is_not_run(layout: Layout) -> None:
    ask(layout, "answer")
    with pytest.raises(ToolError, match="is requested, not published"):
        tools.run(layout, "answer")
    publish(layout)
    tools.decide(layout, "answer", "discarded", decided_by="a test")
    with pytest.raises(ToolError, match="is discarded"):
        tools.run(layout, "answer")
    with pytest.raises(ToolError, match="did you mean 'answer'"):
        tools.run(layout, "anwser")


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


def test_the_figure_of_a_tool_that_fails_is_an_error(layout: Layout) -> None:
    publish(layout)
    assert tools.figure(layout, "answer") == {"answer": 42}
    with pytest.raises(ToolError, match="ended with 3"):
        tools.figure(layout, "answer", ["--fail", "3"])
    with pytest.raises(ToolError, match=r"took over 0\.5 s"):
        tools.figure(layout, "answer", ["--sleep", "600"], timeout_s=0.5)
    publish(layout, source=script().replace(b'json.dumps({"answer": 42})', b"'no json'"))
    with pytest.raises(ToolError, match="is not JSON"):
        tools.figure(layout, "answer")
    tool = tools.registry(layout).tools[0]
    assert (tool.calls, tool.failures) == (4, 2)


NO_SANDBOX = """
from autohypothesis import sandbox
sandbox.best_kind = lambda **_: "none"
"""
CALL = """
import sys
from pathlib import Path
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.layout import Layout
tools.run(Layout(Path(sys.argv[1])), "answer", sys.argv[2:])
"""


def sleeping(mark: str) -> list[int]:
    """Processes that were told to sleep for `mark` seconds."""
    found = []
    for pid in system.all_pids():
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


@pytest.mark.parametrize("held", ["sandbox", "no sandbox"])
def test_calls_are_counted_across_a_kill(layout: Layout, held: str) -> None:
    mark = f"6{os.getpid()}"
    publish(layout)
    tools.run(layout, "answer")
    code = CALL if held == "sandbox" else NO_SANDBOX + CALL
    words = [sys.executable, "-c", code, str(layout.root), "--sleep", mark]
    caller = subprocess.Popen(words, cwd=ROOT)
    until(lambda: len(sleeping(mark)) > 1)  # the caller, and the script with what holds it
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    until(lambda: not sleeping(mark))
    with layout.tool_calls.open("ab") as file:
        file.write(b'{"time":"2026-11-20T12:00:00Z","tool_')  # killed while it wrote its line
    tools.run(layout, "answer", ["--fail", "2"])
    tool = tools.registry(layout).tools[0]
    assert (tool.calls, tool.failures) == (2, 1)
    calls, problems = jsonl.read(layout.tool_calls)
    assert [call["exit_code"] for call in calls] == [0, 2]
    assert len(problems) == 1


# ── the registry ────────────────────────────────────────────────────────────────────────────


def test_requests_at_once_lose_none(layout: Layout) -> None:
    code = (
        "import sys; from pathlib import Path; from autohypothesis.fleet.toolbuilder import tools\n"
        "from autohypothesis.records.layout import Layout\n"
        "for n in range(10): tools.request(Layout(Path(sys.argv[1])), f'tool-{sys.argv[2]}-{n}',"
        " problem='', requested_by='')"
    )
    askers = [
        subprocess.Popen([sys.executable, "-c", code, str(layout.root), str(n)], cwd=ROOT)
        for n in range(4)
    ]
    assert [asker.wait(PATIENCE_S) for asker in askers] == [0] * 4
    names = {f"tool-{a}-{n}" for a in range(4) for n in range(10)}
    assert {tool.tool_id for tool in tools.registry(layout).tools} == names
    assert {tool["tool_id"] for tool in json.loads(layout.registry.read_text())["tools"]} == names


REQUESTS = """
import sys
from pathlib import Path
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.layout import Layout
for n in range(1000):
    name = f"{sys.argv[2]}-{n}"
    tools.request(Layout(Path(sys.argv[1])), name, problem="", requested_by="")
    print(name, flush=True)
"""


def test_requests_that_were_answered_outlive_a_kill(layout: Layout) -> None:
    answered: list[str] = []
    for number in range(8):
        asker = subprocess.Popen(
            [sys.executable, "-c", REQUESTS, str(layout.root), f"kill-{number}"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert asker.stdout is not None
        heard = [asker.stdout.readline() for _ in range(1 + number % 3)]
        asker.send_signal(signal.SIGKILL)  # in the middle of whatever the next one does
        heard += asker.stdout.readlines()
        asker.wait()
        asker.stdout.close()
        answered += [line.strip() for line in heard if line.endswith("\n")]
        json.loads(layout.registry_state.read_text())
    assert tools.take_registry_edits(layout) == []
    found = {tool.tool_id for tool in tools.registry(layout).tools}
    assert found >= set(answered) and len(answered) >= 8
    assert {tool["tool_id"] for tool in json.loads(layout.registry.read_text())["tools"]} == found


def test_an_edit_that_was_caught_in_a_replacement_is_an_edit(layout: Layout) -> None:
    """Written in the moment before a process that replaced the file was killed."""
    ask(layout, "other")
    edit(layout, lambda page: page.append({"tool_id": "mine", "status": "requested"}))
    layout.registry.rename(layout.registry.with_name(".registry.old"))
    assert tools.take_registry_edits(layout) == []
    assert (status(layout, "mine"), status(layout, "other")) == ("requested", "requested")


def test_edits_and_requests_at_once_lose_none(layout: Layout) -> None:
    """An editor that replaces the file whole, beside requests and whoever takes its edits."""
    ask(layout, "first")
    done = threading.Event()

    def taking() -> None:
        while not done.is_set():
            tools.take_registry_edits(layout)

    def asking() -> None:
        for number in range(30):
            ask(layout, f"asked-{number}")

    def editing() -> None:
        for number in range(30):
            try:
                page = json.loads(layout.registry.read_text())
            except FileNotFoundError:
                page = {"tools": []}
            page["tools"].append({"tool_id": f"edited-{number}", "status": "requested"})
            beside = layout.registry.with_name("mine.tmp")
            beside.write_text(json.dumps(page))
            beside.replace(layout.registry)
            until(lambda n=number: status(layout, f"edited-{n}"))

    with ThreadPoolExecutor(3) as pool:
        taker = pool.submit(taking)
        for work in [pool.submit(asking), pool.submit(editing)]:
            work.result()
        done.set()
        taker.result()
    names = {f"{kind}-{n}" for kind in ("asked", "edited") for n in range(30)} | {"first"}
    assert {tool.tool_id for tool in tools.registry(layout).tools} == names


def test_two_builders_at_once_publish_everything(layout: Layout) -> None:
    names = ("noise", "compare", "curves")
    for name in names:
        ask(layout, name)
    builders = [ToolBuilder(layout), ToolBuilder(layout)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: [one.turn() for _ in range(6)], builders))
    assert [status(layout, name) for name in names] == ["published"] * 3
    assert len(tools.registry(layout).tools) == 3
    ended = [tools.run(layout, name, ["--self-test"]) for name in names]
    assert [one.exit_code for one in ended] == [0] * 3, ended


def age(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("content", [b"", b'{"tools": [{"tool', b"\xff\xfe", b"[1, 2", b'{"a": 1}'])
def test_a_torn_registry_does_not_stop_the_builder(layout: Layout, content: bytes) -> None:
    publish(layout)
    for path in (layout.registry, layout.registry_state):
        path.write_bytes(content)
        age(path)
    assert status(layout, "answer") == "published"
    ask(layout, "noise")
    builder = ToolBuilder(layout)
    assert builder.turn()
    assert status(layout, "noise") == status(layout, "answer") == "published"
    assert tools.figure(layout, "answer") == {"answer": 42}
    aside = tool_registry.damaged(layout)
    assert [path.read_bytes() for path in aside] == [content] * 2
    builder.turn()
    said = read_role(layout, "tool-builder")
    assert said is not None
    assert all(any(str(path) in line for line in said.problems) for path in aside)


def test_a_torn_copy_of_ours_alone_loses_nothing(layout: Layout) -> None:
    publish(layout)
    ask(layout, "later", "a problem")
    layout.registry_state.write_bytes(b'{"registry": ')
    assert tools.take_registry_edits(layout) == []
    assert (status(layout, "answer"), status(layout, "later")) == ("published", "requested")
    assert tools.registry(layout).tools[1].problem == "a problem"


def test_a_registry_that_is_no_file_is_moved_away(layout: Layout) -> None:
    publish(layout)
    layout.registry.unlink()
    layout.registry.mkdir()
    age(layout.registry)
    tools.take_registry_edits(layout)
    assert json.loads(layout.registry.read_text())["tools"][0]["tool_id"] == "answer"


def test_the_registry_is_back_after_somebody_removed_it(layout: Layout) -> None:
    publish(layout)
    layout.registry.unlink()
    assert status(layout, "answer") == "published"
    tools.take_registry_edits(layout)
    assert layout.registry.exists()


def test_asking_twice_is_asking_once(layout: Layout) -> None:
    first = ask(layout, "answer", "first")
    assert ask(layout, "answer", "second") == first
    publish(layout)
    assert ask(layout, "answer").status == "published"
    tools.decide(layout, "answer", "discarded", decided_by="a test")
    again = ask(layout, "answer", "third")
    assert (again.status, again.problem) == ("discarded", "first")


def test_a_tool_that_a_person_discarded_comes_back_for_a_person_only(layout: Layout) -> None:
    publish(layout, "noise")
    tools.decide(layout, "noise", "discarded", decided_by="ada")
    assert ask(layout, "noise").status == "discarded"
    tools.request(layout, "noise", problem="after all", requested_by="ada", by_person=True)
    assert status(layout, "noise") == "requested"
    tools.decide(layout, "noise", "discarded", decided_by="ada")
    edit(layout, lambda page: page[0].update(status="requested"))
    assert tools.take_registry_edits(layout) == []
    assert status(layout, "noise") == "requested"


# ── edits by hand ───────────────────────────────────────────────────────────────────────────


def edit(layout: Layout, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """As a person or an agent does it: read, change, write over."""
    try:
        page = json.loads(layout.registry.read_text())
    except FileNotFoundError:
        page = {"updated_at": "2026-11-20T12:00:00Z", "shared_tools_dir": "x", "tools": []}
    change(page["tools"])
    layout.registry.parent.mkdir(parents=True, exist_ok=True)
    layout.registry.write_text(json.dumps(page))


def test_an_entry_that_somebody_adds_is_a_request(layout: Layout) -> None:
    ask(layout, "other")
    edit(layout, lambda page: page.append({"tool_id": "mine", "status": "requested", "title": "t"}))
    assert tools.take_registry_edits(layout) == []
    assert status(layout, "mine") == status(layout, "other") == "requested"
    assert len(list(layout.registry_edits.glob("*.json"))) == 1  # kept as it was
    assert tools.take_registry_edits(layout) == []
    assert len(list(layout.registry_edits.glob("*.json"))) == 1


def test_an_edit_is_not_overwritten_by_a_request_beside_it(layout: Layout) -> None:
    ask(layout, "other")
    edit(layout, lambda page: page.append({"tool_id": "mine", "status": "requested", "title": "t"}))
    ask(layout, "third")
    tools.take_registry_edits(layout)
    assert [tool.tool_id for tool in tools.registry(layout).tools] == ["other", "third", "mine"]
    assert "mine" in layout.registry.read_text()
    assert "third" in layout.registry.read_text()


def test_what_somebody_publishes_by_hand_is_checked_first(layout: Layout) -> None:
    layout.published_tools.mkdir(parents=True)
    layout.published_tool("mine").write_bytes(script())
    (layout.root / "bad.py").write_bytes(script(first="import scipy"))

    def both(page: list[dict[str, Any]]) -> None:
        page.append(
            {"tool_id": "mine", "status": "published", "path": "mine.py", "title": "My own"}
        )
        page.append({"tool_id": "bad", "status": "published", "path": "bad.py"})
        page.append({"tool_id": "nowhere", "status": "published", "path": "nowhere.py"})
        page.append({"tool_id": "pathless", "status": "adopted"})

    edit(layout, both)
    refused = tools.take_registry_edits(layout)
    assert len(refused) == 3
    assert "'scipy'" in refused[0] and "nowhere.py" in refused[1] and "'pathless'" in refused[2]
    mine = tool_registry.find(tools.registry(layout), "mine")
    assert mine is not None and (mine.status, mine.title) == ("published", "My own")
    assert tools.figure(layout, "mine") == {"answer": 42}
    assert status(layout, "bad") is None


def test_adopting_and_discarding_by_hand_is_recorded(layout: Layout) -> None:
    publish(layout, "one")
    publish(layout, "two")

    def decide(page: list[dict[str, Any]]) -> None:
        page[0].update(status="adopted", decided_by="ada", notes="used for min_delta")
        page[1].update(status="discarded")
        page.append({"tool_id": "unknown", "status": "discarded"})

    edit(layout, decide)
    refused = tools.take_registry_edits(layout)
    assert len(refused) == 1 and "'unknown'" in refused[0]
    one, two = tools.registry(layout).tools
    assert (one.status, one.decided_by, one.notes) == ("adopted", "ada", "used for min_delta")
    assert two.status == "discarded"
    assert tools.figure(layout, "one") == {"answer": 42}


def test_a_bad_entry_does_not_stop_the_others(layout: Layout) -> None:
    def several(page: list[Any]) -> None:
        page += [{"tool_id": "../x", "status": "requested"}, "no entry", {"title": "no id"}]
        page += [{"tool_id": "a", "status": "requested", "porblem": ""}, {"tool_id": 3}]
        page += [{"tool_id": "good", "status": "requested"}]

    edit(layout, several)
    refused = tools.take_registry_edits(layout)
    assert len(refused) == 3
    assert any("did you mean 'problem'" in line for line in refused)
    assert [tool.tool_id for tool in tools.registry(layout).tools] == ["good"]


SHAPES: dict[str, dict[str, Any]] = {
    "a NUL": {"path": "a\0b"},
    "a long path": {"path": "a" * 5_000},
    "a folder": {"path": "."},
    "a NUL in its text": {"status": "requested", "problem": "a\0b", "sha256": "\0"},
    "a lone surrogate": {"path": "\ud800"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_entry_of_any_shape_is_a_line_and_does_not_end_the_builder(
    layout: Layout, shape: str
) -> None:
    ask(layout, "other")
    entry = {"tool_id": "x", "status": "published", **SHAPES[shape]}
    edit(layout, lambda page: page.append(entry))
    ToolBuilder(layout).run(Stop(3))
    assert not list(layout.registry_edits.glob("*.todo.json"))
    said = read_role(layout, "tool-builder")
    assert said is not None and said.state == "stopped"
    assert status(layout, "x") == entry["status"] or any("'x'" in one for one in said.problems)


@pytest.mark.parametrize("content", ['{"entries": 3, "removed": []}', '{"entries": ["x"]}', "[]"])
def test_a_damaged_note_of_an_edit_is_a_line(layout: Layout, content: str) -> None:
    ask(layout, "other")
    note = layout.registry_edits / "20261120-000000-aaaaaa.todo.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(content)
    assert len(tools.take_registry_edits(layout)) == 1
    assert not note.exists()


def test_an_edit_that_fails_in_a_way_nobody_foresaw_is_not_tried_for_ever(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(layout, lambda page: page.append({"tool_id": "mine", "status": "requested"}))
    monkeypatch.setattr(tools, "_obey", lambda *words: [][1])
    with pytest.raises(IndexError):
        tools.take_registry_edits(layout)
    assert tools.take_registry_edits(layout) == []


def test_a_machine_that_cannot_check_is_a_failed_attempt(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(layout, "noise")

    def full(**words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    ToolBuilder(layout, back_off_s=0.0).run(Stop(10))
    (tool,) = tools.registry(layout).tools
    assert (tool.status, tool.attempts) == ("requested", ATTEMPTS)
    assert "No space left" in tool.notes


def test_an_entry_that_is_left_out_stays(layout: Layout) -> None:
    publish(layout)
    edit(layout, lambda page: page.clear())
    assert "left out" in tools.take_registry_edits(layout)[0]
    assert status(layout, "answer") == "published"
    assert "answer" in layout.registry.read_text()


def test_a_file_that_is_still_being_written_is_left_alone(layout: Layout) -> None:
    ask(layout, "other")
    layout.registry.write_text('{"tools": [')
    assert tools.take_registry_edits(layout) == []
    assert layout.registry.read_text() == '{"tools": ['


def test_an_edit_whose_taker_was_killed_is_obeyed_by_the_next(layout: Layout) -> None:
    ask(layout, "other")
    edit(layout, lambda page: page.append({"tool_id": "mine", "status": "requested"}))
    assert tool_registry.take(layout)  # and killed here
    assert status(layout, "mine") is None
    assert tools.take_registry_edits(layout) == []
    assert status(layout, "mine") == "requested"


def test_a_version_that_is_older_than_ours_takes_nothing_back(layout: Layout) -> None:
    """Somebody read it before a tool was published, and wrote it back with another entry."""
    ask(layout, "answer")
    old = layout.registry.read_text()
    publish(layout)
    page = json.loads(old)
    page["tools"].append({"tool_id": "mine", "status": "requested"})
    layout.registry.write_text(json.dumps(page))
    tools.take_registry_edits(layout)
    assert (status(layout, "answer"), status(layout, "mine")) == ("published", "requested")


# ── the builder ─────────────────────────────────────────────────────────────────────────────


class Stop:
    """Asked to stop after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0

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


@pytest.mark.parametrize(
    ("code", "why"),
    [("sys.exit('no idea')", "no idea"), ("print('x = (')", "is no Python"),
     ("import time; time.sleep(600)", "took over 1 s"), ("print('import scipy')", "docstring")],
    ids=["fails", "syntax", "hangs", "docstring"],
)  # fmt: skip
def test_a_command_that_fails_is_asked_three_times_and_then_a_person(
    layout: Layout, tmp_path: Path, code: str, why: str
) -> None:
    ask(layout, "mine")
    asking = ToolBuilder(layout, command=command(tmp_path, code), command_s=1.0, back_off_s=0.0)
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
    assert ToolBuilder(layout, command=words, back_off_s=600.0).turn()
    assert not ToolBuilder(layout, command=words, back_off_s=600.0).turn()
    edit(layout, lambda page: page[0].update(problem="said better"))
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


def test_an_idle_builder_reads_nothing_and_hears_of_what_comes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(layout)
    for _ in range(50):
        jsonl.append(layout.tool_calls, {"tool_id": "answer", "exit_code": 0})
    monkeypatch.setattr(builder, "NEWS_S", 0.0)
    idle = ToolBuilder(layout)
    assert not idle.turn() and not idle.turn()
    real, read = os.open, list[str]()

    def noted(path: Any, *words: Any, **more: Any) -> int:
        read.append(str(path))
        return real(path, *words, **more)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(5):
        assert not idle.turn()
    assert read == []
    ask(layout, "noise")
    assert idle.turn() and status(layout, "noise") == "published"


def test_a_call_costs_reading_that_call_and_no_other(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(layout)
    for _ in range(100):
        jsonl.append(layout.tool_calls, {"tool_id": "answer", "exit_code": 1})
    tools.registry(layout)
    real, parsed = jsonl.parse, list[bytes]()

    def noted(content: bytes) -> Any:
        parsed.append(content)
        return real(content)

    monkeypatch.setattr(jsonl, "parse", noted)
    jsonl.append(layout.tool_calls, {"tool_id": "answer", "exit_code": 0})
    for _ in range(3):
        (tool,) = tools.registry(layout).tools
        assert (tool.calls, tool.failures) == (101, 100)
    assert [one.count(b"\n") for one in parsed] == [1]
    layout.tool_calls.unlink()  # another file counts from its start
    jsonl.append(layout.tool_calls, {"tool_id": "answer", "exit_code": 0})
    assert tools.registry(layout).tools[0].calls == 1


def test_a_failed_attempt_is_made_again_when_it_is_due(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "NEWS_S", 0.0)
    ask(layout, "mine")
    idle = ToolBuilder(layout, command=command(tmp_path, "sys.exit(1)"), back_off_s=0.3)
    assert idle.turn() and not idle.turn()
    until(idle.turn)
    assert tools.registry(layout).tools[0].attempts == 2


def test_a_second_builder_is_refused_by_name(layout: Layout) -> None:
    class Inside(Stop):
        def wait(self, seconds: float) -> bool:
            with pytest.raises(LockError, match=f"pid {os.getpid()}"):
                ToolBuilder(layout).run(Stop(1))
            self.looks = 0
            return True

    ToolBuilder(layout).run(Inside(5))
