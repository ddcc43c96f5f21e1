"""The inbox: everything is taken once, and what cannot be taken says why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from autohypothesis.fleet.queue.inbox import take_inbox
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Proposal
from tests.fleet.conftest import Forked


def put(queue: Queue, name: str, content: object, *, old: bool = True) -> Path:
    path = queue.layout.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if old:
        os.utime(path, (1e9, 1e9))
    return path


def left(queue: Queue) -> list[str]:
    return sorted(name for name in os.listdir(queue.layout.inbox) if name != "refused")


def refused(queue: Queue) -> dict[str, str]:
    """Name -> reason."""
    folder = queue.layout.inbox_refused
    if not folder.is_dir():
        return {}
    reasons = {path.name: path.read_text().strip() for path in folder.glob("*.reason")}
    files = {path.name for path in folder.iterdir()} - reasons.keys()
    assert {f"{name}.reason" for name in files} == reasons.keys()
    return {name: reasons[f"{name}.reason"] for name in files}


def test_a_file_and_a_list_are_taken_and_removed(queue: Queue) -> None:
    put(queue, "one.json", {"title": "one", "config_overrides": {"RATE": 2}})
    put(queue, "two.json", [{"title": "two", "patch": "x"}, {"title": "three", "priority": 5}])
    assert [one.title for one in take_inbox(queue)] == ["one", "two", "three"]
    assert [one.title for one in queue.pending()] == ["three", "one", "two"]
    assert {one.proposer for one in queue.pending()} == {"inbox"}
    assert left(queue) == []
    assert take_inbox(queue) == []


def test_another_tools_hypothesis_keeps_its_id_as_source(queue: Queue) -> None:
    theirs = {"hypothesis_id": "H 7/ä", "title": "x", "tag": "old", "status": "pending"}
    put(queue, "x.json", {**theirs, "created_at": "yesterday"})
    (taken,) = take_inbox(queue)
    assert (taken.hypothesis_id, taken.source_id, taken.tag) == ("h-t-0001", "H 7/ä", "t")


def test_the_same_idea_twice_is_refused_with_the_id_of_the_first(queue: Queue) -> None:
    put(
        queue,
        "a.json",
        [{"hypothesis_id": "mine", "title": "x"}, {"source_id": "mine", "title": "y"}],
    )
    assert len(take_inbox(queue)) == 1
    put(queue, "b.json", {"hypothesis_id": "mine", "title": "z"})
    put(queue, "c.json", {"hypothesis_id": "h-t-0001", "title": "z"})
    queue.abandon("h-t-0001", "no")
    assert take_inbox(queue) == []
    assert refused(queue) == {
        "a.json": "'mine' is in the queue already, as h-t-0001",
        "b.json": "'mine' is in the queue already, as h-t-0001",
        "c.json": "'h-t-0001' is in the queue already, as h-t-0001",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"title": "x", "config_ov', "is not JSON"),
        ("", "is empty"),
        ("[]", "holds no hypothesis"),
        ("3", "holds no hypothesis"),
        ('{"titel": "x"}', "unknown key 'titel' (did you mean 'title'?)"),
        ('{"rationale": "why"}', "title: Field required"),
        ('{"title": "x", "patch": "p", "instructions": "i"}', "a hypothesis has one kind"),
        ('{"title": "' + "x" * 300 + '"}', "title: String should have at most 200"),
        ("[" * 5000, "nested deeper"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_a_reason_and_stops_nothing(
    queue: Queue, content: str, reason: str
) -> None:
    put(queue, "bad.json", content)
    put(queue, "good.json", {"title": "good"})
    assert [one.title for one in take_inbox(queue)] == ["good"]
    assert list(refused(queue)) == ["bad.json"]
    assert reason in refused(queue)["bad.json"]
    assert left(queue) == []


def test_one_bad_proposal_in_a_list_costs_itself_only(queue: Queue) -> None:
    put(queue, "a.json", [{"title": "one"}, "two", {"title": ""}, {"title": "three"}])
    assert [one.title for one in take_inbox(queue)] == ["one", "three"]
    assert refused(queue)["a.json"].splitlines() == [
        "is str, no hypothesis",
        "title: String should have at least 1 character",
    ]
    kept = json.loads((queue.layout.inbox_refused / "a.json").read_text())
    assert kept == ["two", {"title": ""}]


def test_a_file_that_is_still_written_waits(queue: Queue) -> None:
    path = put(queue, "slow.json", '{"title": "x"', old=False)
    assert take_inbox(queue) == []
    assert left(queue) == ["slow.json"]
    path.write_text('{"title": "x"}')
    assert [one.title for one in take_inbox(queue)] == ["x"]
    put(queue, "ahead.json", '{"title": "x"', old=False)
    os.utime(queue.layout.inbox / "ahead.json", (4e9, 4e9))
    take_inbox(queue)
    assert list(refused(queue)) == ["ahead.json"]


def test_a_wrong_field_is_set_aside_and_the_idea_is_taken(queue: Queue) -> None:
    put(queue, "a.json", {"title": "a", "patch": "p", "prediction": "better", "priority": 2})
    (taken,) = take_inbox(queue)
    assert (taken.title, taken.priority, taken.prediction) == ("a", 2.0, None)
    assert refused(queue)["a.json"].startswith(f"is queued as {taken.hypothesis_id}, without what")
    kept = json.loads((queue.layout.inbox_refused / "a.json").read_text())
    assert kept == {"prediction": "better"}


def test_names_that_are_no_good_names_are_taken_or_refused(queue: Queue) -> None:
    put(queue, "ä" * 120 + ".json", {"title": "long"})
    put(queue, "b" * 250 + ".json", "{")
    put(queue, "notes.txt", "mine")
    put(queue, ".hidden.json", "{")
    assert [one.title for one in take_inbox(queue)] == ["long"]
    assert list(refused(queue)) == ["b" * 180 + ".json"]
    assert left(queue) == [".hidden.json", "notes.txt"]


def test_something_that_is_no_file_is_set_aside(queue: Queue) -> None:
    put(queue, "good.json", {"title": "good"})
    inbox = queue.layout.inbox
    (inbox / "folder.json").mkdir()
    os.utime(inbox / "folder.json", (1e9, 1e9))
    os.mkfifo(inbox / "pipe.json")
    os.utime(inbox / "pipe.json", (1e9, 1e9))
    (inbox / "link.json").symlink_to("/dev/zero")
    os.utime(inbox / "link.json", (1e9, 1e9), follow_symlinks=False)
    assert len(take_inbox(queue)) == 1
    assert sorted(refused(queue)) == ["folder.json", "link.json", "pipe.json"]
    assert left(queue) == []


def test_two_refused_files_of_one_name_are_both_kept(queue: Queue) -> None:
    for _ in range(3):
        put(queue, "a.json", "{")
        take_inbox(queue)
    assert sorted(refused(queue)) == ["a-2.json", "a-3.json", "a.json"]


CALLS = [
    "autohypothesis.fleet.queue.inbox.rename_exclusive",
    "autohypothesis.fleet.queue.inbox.write_json",
    "autohypothesis.fleet.queue.states.write_json",
    "autohypothesis.fleet.queue.states.allocate_hypothesis",
    "autohypothesis.fleet.queue.inbox.Path.unlink",
]


@pytest.mark.parametrize("moment", range(1, 40, 3))
def test_a_kill_while_taking_loses_none_and_doubles_none(
    queue: Queue, moment: int, killed_at: Callable[..., bool]
) -> None:
    put(queue, "a.json", [{"title": "one"}, {"title": "two"}, {"title": ""}])
    put(queue, "b.json", {"title": "three"})
    died = True
    while died:
        died = killed_at(moment, CALLS, partial(take_inbox, Queue(queue.layout, "t")))
        moment += 7
    take_inbox(Queue(queue.layout, "t"))
    assert sorted(one.title for one in queue.open()) == ["one", "three", "two"]
    assert left(queue) == []
    assert set(refused(queue).values()) == {"title: String should have at least 1 character"}


def take_for_ever(tell: Callable[[str], None], root: Path) -> None:
    queue = Queue(Layout(root), "t")
    take_inbox(queue)
    tell("looked")
    while True:
        take_inbox(queue)


def test_kills_beside_a_writer_lose_none(queue: Queue, forked: Callable[..., Forked]) -> None:
    titles = []
    for kill in range(6):
        taker = forked(take_for_ever, queue.layout.root)
        assert taker.hear() == "looked"
        for number in range(5 + kill):
            titles.append(f"idea {kill} {number}")
            put(queue, f"{kill}-{number}.json", {"title": titles[-1]}, old=False)
        taker.end(kill=True)
    while left(queue):
        take_inbox(queue)
    assert sorted(one.title for one in queue.pending()) == sorted(titles)


def test_control_characters_of_a_title_reach_neither_git_nor_a_terminal() -> None:
    said = {"title": "a\0b\x1b[2J\x9bc\nd\te", "rationale": "\0why\r\n"}
    one = Proposal.model_validate(said)
    assert (one.title, one.rationale) == ("ab[2Jc\nd\te", "why\n")
    with pytest.raises(ValidationError, match="title"):
        Proposal(title="\0\x1b")
