"""Every proposer of ours passes the suite, and is found by its name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from autohypothesis.errors import UsageError
from autohypothesis.fleet.proposing import Proposer, Situation
from autohypothesis.proposers.command import Command
from autohypothesis.proposers.configured import Inbox, configured, of_search
from autohypothesis.proposers.search import KnobSearch
from autohypothesis.schema import Proposal
from autohypothesis.testing import ProposerSuite

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


class TestSearch(ProposerSuite):
    @pytest.fixture(params=[None, 1.0], ids=["single", "joint"])
    def proposer(self, request: pytest.FixtureRequest) -> Proposer:
        return KnobSearch(mix=request.param)


class TestInbox(ProposerSuite):
    HAS_IDEAS = False

    @pytest.fixture
    def proposer(self) -> Proposer:
        return Inbox()


class TestCommand(ProposerSuite):
    @pytest.fixture
    def proposer(self, tmp_path: Path) -> Proposer:
        return program(tmp_path)


# ── naming them ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["search"]),
        (["command:llm -s 'be brief'", "search", "inbox", "search"],
         ["command:llm -s 'be brief'", "search", "inbox"]),
    ],
)  # fmt: skip
def test_proposers_are_asked_in_the_order_of_their_names_each_once(
    words: list[str], names: list[str], tmp_path: Path
) -> None:
    assert [made.name for made in configured(words, mix=0.3, root=tmp_path)] == names


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["command:llm"], ["command:llm", "search"]),
        (["command:llm", "inbox"], ["command:llm", "inbox"]),
        (["inbox"], ["inbox"]),
        (None, ["search"]),
    ],
)
def test_search_stands_in_for_a_program_unless_the_user_says_who_does(
    words: list[str] | None, names: list[str], tmp_path: Path
) -> None:
    made = of_search(None, words, mix=None, root=tmp_path)
    assert [proposer.name for proposer in made] == names


class Constant:
    """What another package brings."""

    def __init__(self, argument: str, root: Path) -> None:
        self.name = f"constant:{argument}"

    def propose(self, situation: Situation, count: int) -> list[Proposal]:
        return []


def test_another_packages_proposer_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "constant-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: constant\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[autohypothesis.proposers]\nconstant = constant_proposer:Constant\n"
    )
    module = ModuleType("constant_proposer")
    module.Constant = Constant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "constant_proposer", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    (made,) = configured(["constant:0.5"], mix=None, root=tmp_path)
    assert made.name == "constant:0.5"
    with pytest.raises(UsageError, match="did you mean 'constant'"):
        configured(["konstant"], mix=None, root=tmp_path)


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
