"""The journal of decisions: chained, signed, anchored; old ones go on, a cut line costs itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.chain import (
    ANCHOR,
    Anchor,
    DecisionChain,
    problems_of,
    read_anchor,
    read_links,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.records.signing import trusted_keys
from autohypothesis.schema import Decision, now
from tests.conftest import NewRepository, forked


class Journal:
    def __init__(self, root: Path) -> None:
        self.repository, self.layout = Repository(root), Layout(root)
        self.path = self.layout.decisions

    @property
    def chain(self) -> DecisionChain:
        return DecisionChain(self.repository, self.layout)

    def append(self, *names: str) -> None:
        for name in names:
            self.chain.append(decided(name))

    def settle(self, *names: str) -> None:
        self.chain.begin()
        self.append(*names)
        self.chain.advance()

    @property
    def anchor(self) -> Anchor:
        return read_anchor(self.repository, self.repository.refs(ANCHOR)[ANCHOR], trusted_keys())

    def problems(self) -> list[str]:
        return [*problems_of(read_links(self.layout), self.anchor, trusted_keys())]

    def records(self) -> list[str]:
        return [decision.experiment_id for decision in read_decisions(self.layout)[0]]


def decided(name: str) -> Decision:
    return Decision(
        decision_id=f"d-{name}", recorded_at=now(), tag="t", experiment_id=name,
        decision_status="discard",
    )  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path, new_repository: NewRepository) -> Journal:
    return Journal(new_repository(tmp_path / "a search", {"train.py": "A = 1\n"}))


def test_lines_are_chained_from_the_first_and_anchored_to_the_last(journal: Journal) -> None:
    journal.settle("a-1", "a-2")
    journal.settle("a-3")
    assert [link.place for link in read_links(journal.layout)] == [0, 1, 2]
    assert (journal.anchor.lines, journal.anchor.pinned_lines) == (3, 0)
    assert journal.problems() == []


def test_a_journal_from_before_the_chain_is_pinned_and_goes_on(journal: Journal) -> None:
    journal.path.parent.mkdir(parents=True)
    old = [decided(f"old-{n}").model_dump(mode="json", exclude={"place"}) for n in range(3)]
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in old))
    before = journal.path.read_bytes()
    journal.settle("a-1")
    assert journal.path.read_bytes().startswith(before)
    assert journal.records() == ["old-0", "old-1", "old-2", "a-1"]
    assert journal.anchor.pinned_lines == 3
    assert read_links(journal.layout)[3].genesis
    assert journal.problems() == []
    journal.path.write_bytes(journal.path.read_bytes().replace(b"old-1", b"new-1"))
    assert journal.problems() == [
        "has other lines than were pinned: one of the first 3 was edited or deleted"
    ]


def test_a_line_that_a_kill_cut_off_is_named_by_the_next_and_costs_itself(
    journal: Journal,
) -> None:
    journal.settle("a-1", "a-2")
    content = journal.path.read_bytes()
    journal.path.write_bytes(content + content[:100])
    assert journal.problems() == []
    journal.settle("a-3")
    assert journal.records() == ["a-1", "a-2", "a-3"]
    assert b'"repaired":100' in journal.path.read_bytes()
    assert journal.problems() == []
    assert journal.anchor.lines == 4


def test_what_was_put_in_as_a_line_without_its_end_is_not_repaired(journal: Journal) -> None:
    journal.settle("a-1")
    forged = decided("forged-1").model_dump_json(exclude={"place"}).encode()
    journal.path.write_bytes(journal.path.read_bytes() + forged)
    journal.settle("a-2")
    assert journal.problems()[0].startswith("line 2 is signed by no key")


def test_a_kill_before_the_anchor_is_made_up_for_by_the_next_settle(journal: Journal) -> None:
    journal.settle("a-1")
    journal.append("a-2")
    assert (journal.anchor.lines, journal.problems()) == (1, [])
    journal.settle()
    assert (journal.anchor.lines, journal.problems()) == (2, [])


def test_a_line_added_by_hand_is_never_anchored(journal: Journal) -> None:
    journal.settle("a-1")
    forger = journal.chain
    forger.signer = None
    forger.append(decided("forged-1"))
    journal.settle("a-2")
    assert journal.anchor.lines == 1
    assert journal.problems() == ["line 2 is signed by no key: no command of this fleet wrote it"]


def test_an_end_that_was_taken_off_is_found_although_more_was_decided(journal: Journal) -> None:
    journal.settle("a-1", "a-2")
    first, _ = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(first)
    assert journal.problems() == ["lacks its last 1 decision: 2 lines were anchored"]
    journal.settle("a-3")
    assert journal.problems() == ["has another line 2 than was anchored: that one was deleted"]
    journal.chain.accept([], [])
    assert journal.problems() == []
    journal.settle("a-4")
    assert (journal.anchor.lines, journal.anchor.pinned_lines) == (3, 2)
    assert journal.problems() == []


def test_several_processes_make_one_chain(journal: Journal) -> None:
    journal.chain.begin()
    names = [[f"{worker}-{n}" for n in range(20)] for worker in "abcd"]
    processes = [forked(journal.append, *some) for some in names]
    for process in processes:
        process.join()
    journal.settle()
    assert sorted(journal.records()) == sorted(name for some in names for name in some)
    assert (journal.anchor.lines, journal.problems()) == (80, [])


def test_a_key_of_another_is_not_believed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal.settle("a-1")
    monkeypatch.setenv("AUTOHYPOTHESIS_CONFIG", str(tmp_path / "another user"))
    journal.append("a-2")
    monkeypatch.undo()
    (problem,) = journal.problems()
    assert problem.startswith("line 2 is signed by the key ")
    assert os.path.exists(tmp_path / "another user" / "keys" / "fleet.pem")
