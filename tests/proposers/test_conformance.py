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
from autohypothesis.proposers.configured import Inbox, configured
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
    assert len(answer) == (0 if isinstance(proposer, Inbox) else count)
    assert all(isinstance(idea, Proposal) for idea in answer)


def test_an_answer_is_sound_and_can_be_had_again(proposer: Proposer, project: MakeProject) -> None:
    """Every idea is a change that survives its file, the best come first, nothing is altered."""
    situation = project().baseline().situation()
    before = deepcopy(situation)
    answer = list(proposer.propose(situation, 3))
    assert len(answer) == (0 if isinstance(proposer, Inbox) else 3)
    for idea in answer:
        assert Proposal.model_validate_json(idea.model_dump_json()) == idea
        assert idea.title == " ".join(idea.title.split())
        assert idea.config_overrides or idea.patch or idea.instructions
    priorities = [idea.priority for idea in answer]
    assert priorities == sorted(priorities, reverse=True)
    assert situation == before
    assert list(proposer.propose(situation, 3)) == answer


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
