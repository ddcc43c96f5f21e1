"""`propose`, `dispatch`, `hypotheses`, `briefing`: what goes in, what is refused, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.commands.ideas import complete_hypothesis, complete_worker
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import BestResult, Brief, Finding, Proposal, QueueEntry, now


@pytest.fixture
def queue(fleet: Any) -> Queue:
    queue: Queue = fleet.queue
    return queue


def refused(answer: Any, *words: str) -> None:
    """One line on stderr that has all of `words`, nothing on stdout."""
    assert answer.returncode not in (0, 130), answer.stdout
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: "), answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    for word in words:
        assert word in answer.stderr, answer.stderr


# ── propose ─────────────────────────────────────────────────────────────────────────────────


def test_an_idea_is_in_the_queue_and_its_id_alone_on_stdout(queue: Queue, cli: Any) -> None:
    answer = cli(
        "propose", "--set", "RATE=0.2", "--set", 'MODE="fast"', "--title", "less",
        "--rationale", "it overshoots", "--priority", "2.5",
    )  # fmt: skip

    assert answer.returncode == 0, answer.stderr
    (one,) = queue.pending()
    assert answer.stdout == f"{one.hypothesis_id}\n"
    assert one.config_overrides == {"RATE": 0.2, "MODE": "fast"}
    assert (one.title, one.rationale, one.priority) == ("less", "it overshoots", 2.5)
    assert one.proposer == "person"


def test_an_idea_for_a_worker_is_dispatched_at_once(queue: Queue, cli: Any) -> None:
    answer = cli("propose", "--set", "RATE=0.2", "--worker", "cpu1", "--json")

    document = json.loads(answer.stdout)
    assert (document["state"], document["worker"]) == ("dispatched", "cpu1")
    assert document["title"] == "RATE = 0.2"
    assert [one.hypothesis_id for one in queue.dispatched("cpu1")["cpu1"]] == [
        document["hypothesis_id"]
    ]


def test_an_unknown_worker_is_refused_before_anything_is_queued(queue: Queue, cli: Any) -> None:
    refused(
        cli("propose", "--set", "RATE=0.2", "--worker", "gpu7"), "'gpu7'", "cpu0, cpu1", "status"
    )
    assert queue.open() == []


def test_the_change_in_the_working_tree_becomes_a_patch(
    foreign: Path, queue: Queue, cli: Any, git: Any
) -> None:
    refused(cli("propose", "--diff", "--title", "x"), "equal to the reference", "train.py")
    script = foreign / "train.py"
    script.write_text(script.read_text().replace("RATE = 0.1", "RATE = 0.1 * 2"))

    answer = cli("propose", "--diff", "--title", "twice the rate")

    assert answer.returncode == 0, answer.stderr
    patch = queue.pending()[0].patch
    assert patch is not None
    assert "+RATE = 0.1 * 2" in patch
    assert git(foreign, "diff", "--cached") == ""
    git(foreign, "checkout", "--", "train.py")
    (foreign.parent / "p.diff").write_text(patch)
    again = cli("propose", "--patch", str(foreign.parent / "p.diff"), "--title", "once more")
    refused(again, "'once more'", "in the queue already", queue.pending()[0].hypothesis_id)


def test_a_protected_file_in_the_working_tree_is_refused(
    foreign: Path, queue: Queue, cli: Any
) -> None:
    (foreign / "data.txt").write_text("better data\n")

    refused(cli("propose", "--diff", "--title", "x"), "data.txt")
    assert queue.open() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--title", "nothing"], "no change was given"),
        (["--set", "RATE=1", "--instructions", "do it"], "--set and --instructions"),
        (["--set", "RATE=1", "--diff"], "--set and --diff"),
        (["--set", "RATE"], "'RATE' is not NAME=VALUE"),
        (["--set", "RATE=null"], "'RATE=null' names no value"),
        (["--set", "RAET=0.2"], "did you mean 'RATE'"),
        (["--set", "RATE=0.1"], "changes nothing"),
        (["--set", "RATE=1", "--title", "x" * 300], "title"),
        (["--set", "RATE=1", "--rationale", "x" * 5000], "rationale"),
        (["--patch", "/nowhere/p.diff", "--title", "x"], "/nowhere/p.diff"),
        (["--patch", "/dev/null", "--title", "x"], "is empty"),
        (["--diff"], "equal to the reference"),
        (["--patch", "data.txt", "--title", "x"], "patch"),
        (["--patch", "data.txt"], "--title"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_reason(
    queue: Queue, cli: Any, words: list[str], said: str
) -> None:
    refused(cli("propose", *words), said)
    assert queue.open() == []


def test_bytes_that_are_no_text_are_not_queued_as_something_else(
    foreign: Path, queue: Queue, cli: Any
) -> None:
    """A replacement character in a patch would be another change than the one that was meant."""
    patch = foreign / "p.diff"
    patch.write_bytes(b"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-x\n+\xff\n")

    refused(cli("propose", "--patch", str(patch), "--title", "x"), "not UTF-8", "run-experiment")
    assert queue.open() == []


def test_what_was_tried_is_refused_with_its_result(foreign: Path, cli: Any) -> None:
    for words in (["--baseline"], ["--set", "RATE=0.2"]):
        ran = cli("run-experiment", *words, "--settle", "--tag", "nov20")
        assert ran.returncode == 0, ran.stderr
    document = json.loads(cli("status", "--json").stdout)
    best = document["best"]["experiment_id"]
    assert best.startswith("h-nov20-")

    # The reference is at 0.2 now; back at 0.1 it would be the baseline again.
    again = cli("propose", "--set", "RATE=0.1")

    refused(again, "run before", "baseline-nov20-1", "keep", "python orchestrator.py runs")
    assert cli("propose", "--set", "RATE=0.25").returncode == 0


def test_what_the_steering_forbids_is_refused(fleet: Any, queue: Queue, cli: Any) -> None:
    fleet.layout.steering.write_text("```yaml steering\nfrozen: [RATE]\n```\n")

    refused(cli("propose", "--set", "RATE=0.2"), "RATE is frozen by the steering")
    assert queue.open() == []


def test_instructions_say_when_nobody_implements_them(queue: Queue, cli: Any) -> None:
    answer = cli("propose", "--instructions", "make it better\nsomehow")

    assert answer.returncode == 0, answer.stderr
    assert queue.pending()[0].title == "make it better"
    assert "turn them into a change" in answer.stderr


def test_without_a_search_it_says_how_to_start_one(foreign: Path, cli: Any) -> None:
    refused(cli("propose", "--set", "RATE=0.2"), "no tag is active", "python orchestrator.py")
    refused(cli("hypotheses"), "no search was started", "init-fleet")
    refused(cli("briefing"), "no search was started", "init-fleet")
    assert not (foreign / "research").exists()


# ── dispatch ────────────────────────────────────────────────────────────────────────────────


def test_a_hypothesis_is_given_to_one_worker_only(queue: Queue, cli: Any) -> None:
    name = queue.add(Proposal(title="x", config_overrides={"RATE": 1}), proposer="x").hypothesis_id

    assert cli("dispatch", name, "cpu0").stdout == f"{name} waits for cpu0 now\n"
    refused(cli("dispatch", name, "cpu1"), name, "dispatched for cpu0", "hypotheses")
    refused(cli("dispatch", "h-nov20-0999", "cpu1"), "h-nov20-0999", "hypotheses")
    refused(cli("dispatch", name, "cpu9"), "'cpu9'", "cpu0, cpu1")
    refused(cli("dispatch", "../../x", "cpu1"), "'../../x'")
    assert [one.hypothesis_id for one in queue.dispatched("cpu0")["cpu0"]] == [name]


def test_a_hypothesis_is_taken_back_and_abandoned(queue: Queue, cli: Any) -> None:
    name = queue.add(Proposal(title="x", config_overrides={"RATE": 1}), proposer="x").hypothesis_id
    queue.dispatch(name, "cpu0")

    assert cli("withdraw", name).stdout == f"{name} is pending now\n"
    refused(cli("withdraw", name), f"{name} is pending")
    assert cli("abandon", name, "--reason", "no\nuse").stdout == f"{name} is abandoned\n"
    (closed,) = queue.done()
    assert (closed.closed, closed.outcome) == ("abandoned", "no use")
    refused(cli("withdraw", "h-nov20-0999"), "h-nov20-0999", "hypotheses")


# ── hypotheses ──────────────────────────────────────────────────────────────────────────────


def test_the_list_shows_each_state_and_one_damaged_file_stops_nothing(
    fleet: Any, queue: Queue, cli: Any
) -> None:
    evil = "title\nh-nov20-0001 forged\x1b[31m [red]x[/]"
    names = [
        queue.add(Proposal(title=evil, config_overrides={"RATE": n}), proposer="s").hypothesis_id
        for n in range(4)
    ]
    for name in names[1:3]:
        queue.dispatch(name, "cpu0")
    queue.claim("cpu0")
    queue.abandon(names[3], "a reason")
    fleet.layout.hypothesis("h-nov20-0900", "pending").write_bytes(b'{"hyp\xff')

    answer = cli("hypotheses", COLUMNS="120")

    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert len(lines) == 4
    assert [line.split()[:2] for line in lines[1:]] == [
        [names[1], "running"], [names[2], "dispatched"], [names[0], "pending"],
    ]  # fmt: skip
    assert "title h-nov20-0001 forged[31m [red]x[/]" in lines[3]
    assert "\x1b" not in answer.stdout
    assert "h-nov20-0900.json" in answer.stderr
    assert "1 are done" in answer.stderr

    done = json.loads(cli("hypotheses", "--state", "done", "--json").stdout)
    assert [(one["hypothesis_id"], one["closed"], one["outcome"]) for one in done] == [
        (names[3], "abandoned", "a reason")
    ]
    assert json.loads(cli("hypotheses", "--json", "--tag", "other").stdout) == []


# ── briefing ────────────────────────────────────────────────────────────────────────────────


def test_the_brief_is_a_page_and_a_document(fleet: Any, cli: Any) -> None:
    brief = Brief(
        generated_at=now(),
        objective="lower val_bpb\n\nnotes\n· forged",
        constraints=["RATE is frozen"],
        current_config={"RATE": 0.1, "MODE": "train"},
        best_result=BestResult(commit="abcdef0123", val_bpb=1.4, description="the best [bold]"),
        findings=[Finding(finding_id="f1", title="more is less", evidence="three runs")],
        open_questions=["why?"],
        hypothesis_queue=[QueueEntry(hypothesis_id="h-nov20-0001", title="an idea\x1b[2J")],
        notes=["noise is 0.002"],
    )
    write_json(fleet.layout.brief, brief)

    text = cli("briefing").stdout
    assert "\x1b" not in text
    assert text.splitlines().count("notes") == 1
    for word in ("lower val_bpb", "RATE is frozen", "MODE=train", "1.400000", "[bold]",
                 "more is less", "three runs", "why?", "h-nov20-0001", "noise is 0.0"):  # fmt: skip
        assert word in text, word
    document = json.loads(cli("briefing", "--json").stdout)
    assert Brief.model_validate(document) == brief


@pytest.mark.parametrize("content", [b'{"objective": "x', b"[]", b'{"objektive": "x"}', b"\xff"])
def test_a_damaged_brief_is_named(fleet: Any, cli: Any, content: bytes) -> None:
    fleet.layout.brief.write_bytes(content)

    refused(cli("briefing"), "research_brief.json")


# ── completion ──────────────────────────────────────────────────────────────────────────────


def test_the_shell_completes_ids_and_workers(
    fleet: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.add(Proposal(title="x", config_overrides={"RATE": 1}), proposer="x")
    monkeypatch.chdir(fleet.layout.root)

    assert complete_hypothesis("h-") == ["h-nov20-0001"]
    assert complete_hypothesis("x") == []
    assert complete_worker("cpu") == ["cpu0", "cpu1"]
    fleet.layout.manifest.write_bytes(b'{"workers": [{"wor')
    assert complete_worker("cpu") == []
    monkeypatch.chdir(Layout(fleet.layout.root).research)
    assert complete_hypothesis("h-") == []


def test_a_new_fleet_has_a_brief_before_its_observer_writes_one(cli: Any, foreign: Path) -> None:
    assert cli("init-fleet", "--tag", "one", "--cpu-workers", "1").returncode == 0
    first = json.loads(cli("briefing", "--json").stdout)
    assert first["current_config"] == {"RATE": 0.1, "SLEEP": 0.0, "MODE": "train"}
    assert "val_bpb" in cli("briefing").stdout
    asked = json.loads(cli("briefing", "--question", "1").stdout)
    assert asked["brief"]["objective"] == first["objective"]
    assert not Layout(foreign).brief.exists(), "it was a look"
    assert cli("init-fleet", "--tag", "two", "--cpu-workers", "1").returncode == 0
    assert json.loads(cli("briefing", "--tag", "one", "--json").stdout)["objective"]
    refused(cli("briefing", "--tag", "three"), "there is no search 'three'", "runs --all")


def test_a_search_has_its_own_task_wherever_the_file_of_that_lies(
    cli: Any, foreign: Path, git: Any
) -> None:
    (foreign / "deep").mkdir()
    git(foreign, "mv", "train.py", "deep/train.py")
    task = "id: t\nartifacts: [train.py]\nrun: {command: [python, deep/train.py]}\n"
    (foreign / "deep" / "task.yaml").write_text(task)
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "a task in a folder")
    begun = cli("run-experiment", "--decide", "--tag", "one", "--task", "deep/task.yaml")
    assert begun.returncode == 0, begun.stderr
    assert cli("run-experiment", "--decide", "--set", "RATE=0.2").returncode == 0
    (foreign / "train.py").write_text("OTHER = 1\n")
    asked = json.loads(cli("briefing", "--question", "1").stdout)
    assert (asked["reference"]["RATE"], asked["trials_in_all"]) == (0.2, 2)


def test_a_knob_in_small_letters_beside_constants_in_capitals_is_a_setting(
    cli: Any, foreign: Path, git: Any
) -> None:
    script = 'DATA = "x"\nrate = 0.5\nprint("val_bpb:", 1 + rate)\nprint("peak_vram_mb: 0")\n'
    (foreign / "train.py").write_text(script)
    (foreign / "task.yaml").write_text(
        "id: t\nartifacts: [train.py]\nrun: {command: [python, train.py]}\n"
        "knobs: {rate: {low: 0.1, high: 0.9}}\n"
    )
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "a script and its task")
    for words in (["--baseline"], ["--set", "rate=0.4"]):
        ran = cli("run-experiment", *words, "--decide", "--tag", "one")
        assert ran.returncode == 0, ran.stderr
    asked = json.loads(cli("briefing", "--question", "1").stdout)
    assert list(asked["knobs"]) == ["rate"] and asked["reference"]["rate"] == 0.4
    assert [(trial["same_code"], trial["differs"]) for trial in asked["trials"]] == [
        (True, {"rate": 0.5}), (True, {}),
    ]  # fmt: skip
