"""What every proposer must do, whoever wrote it. A new one is added to PROPOSERS."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.errors import UsageError
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.proposers.command import Command
from autohypothesis.proposers.configured import configured
from autohypothesis.proposers.inbox import Inbox
from autohypothesis.proposers.search import Search
from autohypothesis.schema import Proposal, Steering

SCRIPT = """
import json, sys
asked = json.load(sys.stdin)
depth = asked["reference"].get("DEPTH", 0)
ideas = [depth + n for n in range(1, 4)]
for idea in ideas[: asked["count"]]:
    print(json.dumps({"title": f"DEPTH {idea}", "config_overrides": {"DEPTH": idea}}))
"""


def program(folder: Path) -> Proposer:
    (folder / "mine.py").write_text(SCRIPT)
    return Command(f"{sys.executable} mine.py", root=folder)


PROPOSERS: dict[str, Callable[[Path], Proposer]] = {
    "search": lambda folder: Search(),
    "search, joint": lambda folder: Search(mix=1.0),
    "inbox": lambda folder: Inbox(),
    "command": program,
}


@pytest.fixture(params=PROPOSERS)
def proposer(request: pytest.FixtureRequest, tmp_path: Path) -> Proposer:
    return PROPOSERS[request.param](tmp_path)


MakeProject = Callable[..., Any]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_more_than_asked_for(proposer: Proposer, project: MakeProject, count: int) -> None:
    answer = proposer.propose(project().baseline().situation(), count)
    assert len(answer) <= count
    assert all(isinstance(one, Proposal) for one in answer)


def test_an_answer_survives_its_file(proposer: Proposer, project: MakeProject) -> None:
    for one in proposer.propose(project().baseline().situation(), 3):
        assert Proposal.model_validate_json(one.model_dump_json()) == one
        assert one.title == " ".join(one.title.split())
        assert one.config_overrides or one.patch or one.instructions


def test_best_first(proposer: Proposer, project: MakeProject) -> None:
    priorities = [one.priority for one in proposer.propose(project().baseline().situation(), 3)]
    assert priorities == sorted(priorities, reverse=True)


def test_the_situation_is_left_alone(proposer: Proposer, project: MakeProject) -> None:
    situation = project().baseline().situation()
    before = deepcopy(situation)
    proposer.propose(situation, 3)
    assert situation == before


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": {}},
        {"knobs": {}, "sources": {}},
        {"steering": Steering(frozen=["DEPTH"], ranges={"MATRIX_LR": (1, 0)})},
        {"min_delta": 0.0},
        {"maximize": True},
    ],
    ids=str,
)
def test_an_odd_situation_is_no_error(
    proposer: Proposer, project: MakeProject, changes: dict[str, Any]
) -> None:
    proposer.propose(project(**changes).situation(), 2)


def test_it_can_be_asked_again(proposer: Proposer, project: MakeProject) -> None:
    situation = project().baseline().situation()
    first = proposer.propose(situation, 2)
    assert list(proposer.propose(situation, 2)) == list(first)


def test_it_has_the_name_by_which_it_is_called(proposer: Proposer, tmp_path: Path) -> None:
    (again,) = configured([proposer.name], mix=None, root=tmp_path)
    assert again.name == proposer.name and type(again) is type(proposer)


# ── naming them ─────────────────────────────────────────────────────────────────────────────


def test_without_a_word_it_is_the_search(tmp_path: Path) -> None:
    assert [one.name for one in configured([], mix=None, root=tmp_path)] == ["search"]


def test_their_order_is_kept_and_a_second_mention_is_none(tmp_path: Path) -> None:
    words = ["command:llm -s 'be brief'", "search", "inbox", "search"]
    assert [one.name for one in configured(words, mix=0.3, root=tmp_path)] == words[:3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serch"], "did you mean 'search'"),
        (["command"], "no proposer 'command'"),
        (["command:"], "names no program"),
        (["command:say 'it"], "cannot be read"),
        ([""], "no proposer ''"),
    ],
)
def test_a_wrong_name_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        configured(words, mix=None, root=tmp_path)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(mix: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no share"):
        configured(["search"], mix=mix, root=tmp_path)
