"""What others wrote reaches no terminal with characters that act on one; JSON has them exactly."""

from __future__ import annotations

import json
import re
import unicodedata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from autohypothesis.engine.candidate import commit_message
from autohypothesis.engine.experiment import Change, Experiment, plan_page
from autohypothesis.plain import plain, plain_line
from autohypothesis.schema import Plan
from autohypothesis.terminal.screen import Screen
from tests.conftest import Cli, Git, rows

HOSTILE = "\x1b]0;owned\x07\x1b[2Jgone\x00\x9b31m\u202eevil\u2066\u2028line\x7f"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@given(st.text(st.characters(), max_size=60))
def test_only_line_breaks_and_tabs_are_left_of_what_is_no_character(text: str) -> None:
    left = plain(text)
    assert not [c for c in left if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
    assert plain(left) == left
    assert "\n" not in plain_line(text) and "\t" not in plain_line(text)


def test_text_of_any_language_stays_as_it_is() -> None:
    words = "größer – 模型 – عربي – ▁▂█ – \ttab\nnext"
    assert plain(words) == words


def test_a_byte_that_is_no_character_is_shown() -> None:
    assert plain("a\udcfeb") == "a\\xfeb"


@pytest.mark.parametrize("hostile", [HOSTILE, HOSTILE * 40])
def test_nothing_that_is_printed_through_the_console_acts(hostile: str) -> None:
    screen = Screen()
    screen.file = shown = StringIO()
    table = Table(title=Text(hostile))
    table.add_column(Text(hostile))
    table.add_row(Text(hostile), style="red")
    screen.print(table)
    screen.print(hostile, markup=False, soft_wrap=True)
    screen.print(Text(hostile))
    screen.rule(hostile)
    assert not ACTS.search(shown.getvalue())


def test_a_table_keeps_its_columns() -> None:
    screen = Screen()
    screen.file = shown = StringIO()
    table = Table(box=None)
    for name in ("first", "second"):
        table.add_column(name, no_wrap=True)
    table.add_row("\x1b\x1b\x1bab", "|")
    table.add_row("abcdef", "|")
    screen.print(table)
    assert len({line.index("|") for line in shown.getvalue().splitlines() if "|" in line}) == 1


def test_a_log_and_a_failure_are_shown_without_their_escapes(
    foreign: Path, cli: Cli, git: Git
) -> None:
    script = f"print({HOSTILE!r})\nraise SystemExit({HOSTILE!r})\n"
    (foreign / "train.py").write_text(script, encoding="utf-8")
    git(foreign, "commit", "-qam", "hostile")
    ran = cli("run-experiment", "--baseline", "--tag", "t", "--desc", f"an {HOSTILE} idea")
    assert ran.returncode == 1 and "line" in ran.stderr
    for words in (("show", "baseline-t-1"), ("runs",), ("status",), ("digest",),
                  ("show-results",), ("decide",)):  # fmt: skip
        said = cli(*words)
        assert not ACTS.search(said.stdout + said.stderr), words
    assert not ACTS.search(ran.stdout + ran.stderr)
    shown = json.loads(cli("show", "baseline-t-1", "--json").stdout)
    assert any("\x1b[2Jgone" in line for line in shown["log_tail"]), "JSON is exact"
    (row,) = rows(cli)
    assert HOSTILE in row["description"]
    assert not ACTS.search(cli("runs", "--json").stdout)


def test_a_commits_subject_is_one_clean_line() -> None:
    experiment = Experiment(
        Change(), f"{HOSTILE}\nsecond\ttab", f"why\n{HOSTILE}", "x", experiment_id="x-1"
    )
    subject, blank, *rest = commit_message(experiment).split("\n")
    assert subject.endswith("second tab") and blank == ""
    assert not ACTS.search(subject + "\n".join(rest)) and "gone" in subject


@pytest.mark.parametrize("key", [HOSTILE.replace("\x00", "").replace("\u2028", ""), "\x9b2J"])
def test_a_strange_key_in_a_task_is_named_without_its_escapes(
    foreign: Path, cli: Cli, key: str
) -> None:
    (foreign / "task.yaml").write_text(f"id: t\n{json.dumps(key)}: 1\n", encoding="utf-8")
    answer = cli("task", "check", "task.yaml")
    assert answer.returncode == 2 and not ACTS.search(answer.stderr)
    answer = cli("run-experiment", "--set", f"{key}=1")
    assert answer.returncode != 0 and not ACTS.search(answer.stderr)


def test_a_page_for_people_holds_none(page: Any) -> None:
    plan = Plan.model_validate(
        {
            "experiment_id": "x-1", "created_at": "2026-11-20T01:02:03Z",
            "based_on_commit": "b" * 40, "worker_id": HOSTILE, "tag": "t",
            "hypothesis": {"hypothesis_id": "x", "title": HOSTILE, "rationale": HOSTILE,
                           "instructions": HOSTILE, "config_overrides": {HOSTILE: HOSTILE}},
        }
    )  # fmt: skip
    assert not ACTS.search(plan_page(plan))
