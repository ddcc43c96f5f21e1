"""Any program as a proposer: what it says is data, and nothing of it outlives the answer."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.errors import ProposerError, UsageError
from autohypothesis.proposers.command import Command, document_of, read_answer
from tests.conftest import wait_until as until

GUARD_S = 60.0
"""Hang guard: what it bounds takes well under a second."""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Command]:
    """A proposer whose program is this Python code; `asked` is what it was told."""

    def make(code: str, *, timeout_s: float = GUARD_S) -> Command:
        script = tmp_path / "proposer of mine.py"
        script.write_text(
            "import json, os, subprocess, sys, time\n"
            "asked = json.load(sys.stdin)\n"
            "def say(**words): print(json.dumps(words), flush=True)\n" + code
        )
        line = f"{sys.executable} '{script}'"
        return Command(line, root=tmp_path, timeout_s=timeout_s)

    return make


Program = Callable[..., Command]


@pytest.fixture
def situation(project: Callable[..., Any]) -> Any:
    return project().baseline().situation()


def test_a_program_is_told_the_situation_and_its_lines_become_proposals(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    proposer = program(
        "open('told.json', 'w').write(json.dumps(asked))\n"
        "say(title='wider\\nand wider', config_overrides={'ASPECT_RATIO': 48}, priority=0.5)\n"
        "say(title='clip', patch='--- a\\n+++ b\\n', rationale='because')\n"
    )
    first, second = proposer.propose(situation, 5)
    assert first.title == "wider and wider" and first.config_overrides == {"ASPECT_RATIO": 48}
    assert second.patch and second.rationale == "because"
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["count"] == 5 and told["reference"]["DEPTH"] == 3 and told["errors"] == []
    assert told["charter"] == situation.charter == "at most 39 GB\r\n"
    assert told["knobs"]["DEPTH"]["high"] == 12 and "title" in told["schema"]["properties"]
    assert {"brief", "steering", "trials", "refused", "open", "sources"} <= set(told)


def test_a_program_can_tell_an_edit_of_the_code_from_the_reference(
    project: Callable[..., Any],
) -> None:
    place = project().baseline()
    place.edited("squared ReLU", 1.5, diff_hash="d1")
    place.edited("no warm-up", 1.6, diff_hash="d2", DEPTH=2)
    told = document_of(place.situation(), 1)
    reference, first, second = told["trials"]  # type: ignore[misc]
    assert reference["same_code"] and not first["same_code"] and not second["same_code"]
    assert (first["title"], first["differs"]) == ("squared ReLU", {})
    assert (second["description"], second["differs"]) == ("to see", {"DEPTH": 2})
    assert first["diff_hash"] != second["diff_hash"]
    assert told["code_hash"] == reference["code_hash"] != first["code_hash"]


def test_bad_lines_are_returned_once_with_the_reason(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    proposer = program(
        "open('calls', 'a').write('x')\n"
        "if not asked['errors']:\n"
        "    say(title='good', config_overrides={'DEPTH': 2})\n"
        "    say(title='slip', config_override={'DEPTH': 4})\n"
        "    print('and one more thing')\n"
        "else:\n"
        "    reasons = ' / '.join(one['reason'] for one in asked['errors'])\n"
        "    say(title='corrected', config_overrides={'DEPTH': 4}, rationale=reasons)\n"
        "    say(title='still', wrong=1)\n"
    )
    good, corrected = proposer.propose(situation, 5)
    assert (good.title, corrected.title) == ("good", "corrected")
    assert "did you mean 'config_overrides'" in corrected.rationale
    assert "no JSON" in corrected.rationale
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_wrong_field_costs_that_field_and_the_idea_stays(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    proposer = program(
        "open('calls', 'a').write('x')\n"
        "say(title='deeper', config_overrides={'DEPTH': 4}, prediction='it falls')\n"
        "say(title='wider', config_overrides={'ASPECT_RATIO': 48}, priority='high', why='so',\n"
        "    prediction={'delta': -0.01, 'confidence': 90}, rationale='r' * 5000)\n"
        "say(config_overrides={'DEPTH': 5, 'WIDTH': None})\n"
    )
    deeper, wider, untitled = proposer.propose(situation, 5)
    assert deeper.prediction is None and list(deeper.left_out) == ["prediction"]
    assert "'it falls' is no object with delta and confidence" in deeper.left_out["prediction"]
    assert wider.prediction is not None and wider.prediction.delta == -0.01
    assert wider.config_overrides == {"ASPECT_RATIO": 48} and len(wider.rationale) == 4000
    assert set(wider.left_out) == {"why", "priority", "prediction.confidence", "rationale"}
    assert untitled.title == "DEPTH = 5" and untitled.config_overrides == {"DEPTH": 5}
    assert list(untitled.left_out) == ["config_overrides.WIDTH", "title"]
    assert untitled.left_out["config_overrides.WIDTH"].startswith("null keeps a constant")
    assert (tmp_path / "calls").read_text() == "x"


PRETTY = (
    "print('Here is my idea [1]:\\n```json')\n"
    "print(json.dumps([{'title': 'a', 'config_overrides': {'DEPTH': 2}}], indent=1))\n"
    "print('```\\nLet me know how it goes!')\n"
)
LINES = "print('loading')\nsay(title='a', config_overrides={'DEPTH': 2})\nprint('done in 3 s')\n"


@pytest.mark.parametrize("code", [PRETTY, LINES])
def test_words_around_an_idea_cost_no_second_question(
    program: Program, situation: Any, tmp_path: Path, code: str
) -> None:
    proposer = program("open('calls', 'a').write('x')\n" + code)
    assert [one.title for one in proposer.propose(situation, 5)] == ["a"]
    assert (tmp_path / "calls").read_text() == "x"


def test_of_json_that_breaks_off_whole_ideas_are_taken(program: Program, situation: Any) -> None:
    code = "if asked['errors']: sys.exit()\nideas = [{'title': n, 'patch': n} for n in 'abc']\n"
    proposer = program(code + "print(json.dumps(ideas, indent=1)[:-20])\n")
    assert [one.title for one in proposer.propose(situation, 5)] == ["a", "b"]


def test_a_failed_correction_costs_the_bad_lines_only(program: Program, situation: Any) -> None:
    proposer = program(
        "if asked['errors']: sys.exit(3)\n"
        "say(title='good', config_overrides={'DEPTH': 2})\nprint('{')\n"
    )
    assert [one.title for one in proposer.propose(situation, 5)] == ["good"]


def test_no_more_than_asked_for_is_taken(program: Program, situation: Any) -> None:
    proposer = program("for n in range(1, 9): say(title=str(n), config_overrides={'DEPTH': n})")
    assert [one.title for one in proposer.propose(situation, 2)] == ["1", "2"]


def test_an_exit_status_is_not_believed(program: Program, situation: Any) -> None:
    proposer = program("say(title='good', config_overrides={'DEPTH': 2})\nsys.exit(7)")
    assert len(proposer.propose(situation, 1)) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('quota is gone', file=sys.stderr)", "exit status 0.*quota is gone"),
        ("print('quota is gone', file=sys.stderr)\nsys.exit(1)", "exit status 1.*quota is gone"),
        ("print('Invalid API key · Please run /login')", "Invalid API key · Please run /login"),
        ("while True: print('x' * 99_999)", "more than can be read"),
        ("for n in range(200_000): print(n, 'x' * 20, file=sys.stderr)\nsys.exit('why')", "why"),
    ],
)
def test_an_answer_without_a_hypothesis_is_a_failure_in_the_programs_own_words(
    program: Program, situation: Any, code: str, reason: str
) -> None:
    with pytest.raises(ProposerError, match=reason) as caught:
        program(code).propose(situation, 1)
    assert len(str(caught.value)) < 10_000


def test_a_program_that_says_nothing_is_named(program: Program, situation: Any) -> None:
    with pytest.raises(ProposerError, match=r"did not answer within 0\.5 s"):
        program("time.sleep(600)", timeout_s=0.5).propose(situation, 1)


def test_what_came_before_a_flood_is_used(program: Program, situation: Any) -> None:
    flood = "while True: print('x' * 99_999)"
    good = program("say(title='good', config_overrides={'DEPTH': 2})\n" + flood)
    assert [one.title for one in good.propose(situation, 2)] == ["good"]


def test_having_no_idea_can_be_said(program: Program, situation: Any) -> None:
    assert list(program("print('[]')").propose(situation, 1)) == []


def test_a_program_that_hangs_is_killed_with_its_children_and_what_it_said_is_used(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    """One hides its origin, one leaves the group, and both hold the pipes open."""
    proposer = program(
        "say(title='good', config_overrides={'DEPTH': 2})\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "pids = [subprocess.Popen(sleep, env={}).pid,\n"
        "        subprocess.Popen(sleep, start_new_session=True).pid, os.getpid()]\n"
        "open('pids.new', 'w').write(json.dumps(pids)); os.rename('pids.new', 'pids')\n"
        "print('{\"title\": ', flush=True)\ntime.sleep(600)",
        timeout_s=3.0,
    )
    began = time.monotonic()
    assert [one.title for one in proposer.propose(situation, 2)] == ["good"]
    assert time.monotonic() - began < GUARD_S
    pids = json.loads((tmp_path / "pids").read_text())
    until(lambda: all(system.process_start(pid) is None for pid in pids))


def test_a_child_that_stays_behind_an_answer_is_ended(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    proposer = program(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                         start_new_session=True)\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "say(title='good', config_overrides={'DEPTH': 2})"
    )
    assert len(proposer.propose(situation, 1)) == 1
    pid = int((tmp_path / "pid").read_text())
    until(lambda: system.process_start(pid) is None)


def test_a_program_that_does_not_read_is_no_trouble(tmp_path: Path, situation: Any) -> None:
    script = tmp_path / "deaf.py"
    script.write_text('print(\'{"title": "a", "config_overrides": {"DEPTH": 2}}\')')
    proposer = Command(f"{sys.executable} '{script}'", root=tmp_path)
    assert proposer.propose(situation, 1)[0].title == "a"


def test_a_program_sees_its_keys_but_no_device_and_nothing_of_ours(
    program: Program, situation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTOHYPOTHESIS_DATA", "SOME_API_KEY", "SEED"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    proposer = program(
        "say(title='environment', config_overrides={'SEEN': sorted(os.environ),\n"
        "    'CUDA': os.environ['CUDA_VISIBLE_DEVICES']})"
    )
    found = proposer.propose(situation, 1)[0].config_overrides
    assert {"SOME_API_KEY", "PATH"} <= set(found["SEEN"])
    assert not {"AUTOHYPOTHESIS_DATA", "SEED"} & set(found["SEEN"]) and found["CUDA"] == ""


def test_a_stop_ends_a_program_that_thinks(
    program: Program, situation: Any, tmp_path: Path
) -> None:
    proposer = program("open('thinks', 'w')\ntime.sleep(600)")
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            proposer.propose(situation, 1)
        except ProposerError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until((tmp_path / "thinks").exists)
    proposer.stop()
    thread.join(GUARD_S)
    assert not thread.is_alive() and "was stopped" in str(caught[0])


@pytest.mark.skipif(not system.LINUX, reason="needs a parent-death signal")
def test_a_killed_observer_leaves_no_program_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from autohypothesis.engine import program\n"
        f"program.run([sys.executable, '-c', {THINK!r}], cwd=Path({str(tmp_path)!r}),\n"
        "            environment={}, timeout_s=1e12)"
    )
    import subprocess

    observer = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and pid.read_text() != "")
    observer.kill()
    observer.wait()
    until(lambda: system.process_start(int(pid.read_text())) is None)


THINK = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"


def test_a_missing_program_is_named(tmp_path: Path, situation: Any) -> None:
    with pytest.raises(ProposerError, match="no program 'no-such-thing'"):
        Command("no-such-thing --now", root=tmp_path).propose(situation, 1)
    (tmp_path / "mine").write_text("#!/bin/sh\necho []\n")
    with pytest.raises(ProposerError, match="does not start"):
        Command("./mine", root=tmp_path).propose(situation, 1)
    os.chmod(tmp_path / "mine", 0o755)
    assert list(Command("./mine", root=tmp_path).propose(situation, 1)) == []


def test_words_are_split_as_a_shell_splits_them_and_no_shell_runs(
    tmp_path: Path, situation: Any
) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Command("say 'it", root=tmp_path)
    script = tmp_path / "echo.py"
    script.write_text(
        "import json, sys\n"
        "print(json.dumps({'title': 't', 'config_overrides': {'WORDS': sys.argv[1:]}}))"
    )
    proposer = Command(f"{sys.executable} {script} 'a b' '$HOME;x' '*'", root=tmp_path)
    assert proposer.propose(situation, 1)[0].config_overrides["WORDS"] == ["a b", "$HOME;x", "*"]


# ── what counts as a line ───────────────────────────────────────────────────────────────────

LINE = '{"title": "a", "config_overrides": {"DEPTH": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        f"```json\n{LINE}\n```",
        f"\n\n  {LINE}  \r\n",
        f"[{LINE}]",
        json.dumps(json.loads(LINE), indent=2),
        f"\ufeff{LINE}\r\n",
        f"\x1b[32m{LINE}\x1b[0m",
        f"\x1b[1m```json\x1b[0m\n{json.dumps(json.loads(LINE), indent=2)}\n\x1b[K```",
        f"```\n{json.dumps([json.loads(LINE)], indent=2)}\n```",
    ],
)
def test_lines_are_read_as_models_write_them(text: str) -> None:
    good, bad = read_answer(text)
    assert good is not None and [one.title for one in good] == ["a"] and not bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON"),
        ("3", "JSON object"),
        ('{"title": ""}', "at least 1 character"),
        ('{"title": "a"}', "changes nothing"),
        ('{"title": "a", "config_overrides": {"LR": NaN}}', "no JSON"),
        ('{"title": "a", "patch": "x", "instructions": "y"}', "one kind"),
        ('{"title": "a", "config_overrides": {"X": "\\ud800"}}', "no JSON"),
        ('{"title": "a", "patchs": "x"}', "did you mean 'patch'"),
        ('{"title": "a", "config_overrides": {"X": 1}, "pach": "x"}', "did you mean 'patch'"),
        ('{"title": "a", "prediction": "better"}', "nothing: .*; prediction: 'better' is no"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_line_has_a_reason(line: str, reason: str) -> None:
    good, bad = read_answer(line)
    assert not good and re.search(reason, bad[0].reason)


def test_the_manual_has_every_key_of_the_question_and_no_other(situation: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    table = page.split("### A proposer of your own")[1].split("| key |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    told = document_of(situation, 3)
    assert list(rows) == list(told)
    assert set(re.findall(r"`(\w+)`", rows["trials"])) == set(told["trials"][0])  # type: ignore[index]


def test_the_document_stays_small_whatever_the_history(project: Callable[..., Any]) -> None:
    place = project(sources={"train.py": "x" * 150_000, "other.py": "y" * 150_000}).baseline()
    place.trials *= 5_000
    place.refused = {f"title {n}": "why " * 1000 for n in range(1000)}
    told = document_of(place.situation(), 3)
    assert len(json.dumps(told)) < 400_000
    assert list(told["sources"]) == ["train.py"] and told["trials_in_all"] == 5_000
