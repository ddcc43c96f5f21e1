"""The queue: none lost, none doubled, whatever is killed, damaged or put there by hand."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.errors import QueueError, RecordError
from autohypothesis.fleet.queue.states import Queue, QueuePlace
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis, Proposal
from tests.fleet.conftest import FORKS, Forked, propose


def where(layout: Layout) -> dict[str, list[str]]:
    """Id -> the folders that have it, from the disk alone."""
    root = layout.hypotheses("pending").parent
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.json")):
        if not path.name.startswith("."):
            found.setdefault(path.stem, []).append(str(path.parent.relative_to(root)))
    return found


def by_hand(layout: Layout, name: str, **said: object) -> Path:
    path = layout.hypotheses("pending") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"hypothesis_id": name, "tag": "t", "title": name, **said}))
    return path


# ── steps ───────────────────────────────────────────────────────────────────────────────────


def test_a_hypothesis_goes_through_its_states_and_says_how_it_ended(queue: Queue) -> None:
    name = propose(queue, "one", rationale="because")
    assert queue.counts() == {"pending": 1, "dispatched": 0, "running": 0, "done": 0}
    queue.dispatch(name, "cpu0")
    assert queue.read(name) is not None
    assert [one.hypothesis_id for one in queue.dispatched("cpu0")["cpu0"]] == [name]
    queue.withdraw(name)
    queue.dispatch(name, "cpu1")
    assert queue.claim("cpu0") is None
    claimed = queue.claim("cpu1")
    assert claimed is not None
    assert claimed.rationale == "because"
    assert list(queue.running()) == ["cpu1"]
    queue.release(name, "cpu1")
    assert queue.claim("cpu1") is not None
    queue.finish(name, "cpu1", outcome="better")
    queue.finish(name, "cpu1", outcome="a second time")
    assert [(one.closed, one.outcome) for one in queue.done()] == [("completed", "better")]
    assert queue.done_ids() == [name]
    assert queue.open() == []
    queue.requeue(name)
    assert [(one.closed, one.outcome) for one in queue.pending()] == [(None, "")]
    queue.abandon(name, "no use")
    assert [(one.closed, one.outcome) for one in queue.done()] == [("abandoned", "no use")]


def test_a_step_from_the_wrong_state_names_where_the_hypothesis_is(queue: Queue) -> None:
    name = propose(queue)
    queue.dispatch(name, "cpu0")
    with pytest.raises(QueueError, match=f"{name} is dispatched for cpu0, not pending"):
        queue.dispatch(name, "cpu1")
    queue.claim("cpu0")
    with pytest.raises(QueueError, match="is running for cpu0, not running for cpu1"):
        queue.finish(name, "cpu1")
    with pytest.raises(QueueError, match="is running for cpu0, not pending or dispatched"):
        queue.abandon(name, "no")
    with pytest.raises(QueueError, match="h-t-0099 is not in the queue"):
        queue.dispatch("h-t-0099", "cpu0")


def test_the_best_is_claimed_first_and_the_baseline_before_all(queue: Queue) -> None:
    for title, priority in (("low", -1), ("first", 0.5), ("second", 0.5), ("none", None)):
        propose(queue, title, priority=priority)
    assert queue.add_baseline() is not None
    assert queue.add_baseline() is None
    order = [one.title for one in queue.pending()]
    assert order == ["baseline", "first", "second", "none", "low"]
    for one in queue.pending():
        queue.dispatch(one.hypothesis_id, "cpu0")
    claimed = [queue.claim("cpu0") for _ in range(6)]
    assert [one.title if one else None for one in claimed] == [*order, None]
    assert queue.add_baseline() is None


def test_what_is_done_is_read_once(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        queue.abandon(propose(queue), "no")
    folder = queue.layout.hypotheses("done")
    for path in (*folder.iterdir(), folder):
        os.utime(path, ns=(0, 10**18))
    assert len(queue.done()) == 3
    monkeypatch.setattr("autohypothesis.fleet.queue.states.read_with_status", None)
    monkeypatch.setattr("os.listdir", None)
    assert len(queue.done()) == 3
    assert len(queue.done_ids()) == 3


# ── what lies there and should not ──────────────────────────────────────────────────────────


DAMAGE = {
    "torn": '{"hypothesis_id": "h-t-0007", "tit',
    "empty": "",
    "no title": json.dumps({"hypothesis_id": "h-t-0007", "tag": "t"}),
    "a list": "[]",
    "not UTF-8": b"\xff\xfe\x00",
    "unknown key": json.dumps({"hypothesis_id": "h-t-0007", "tag": "t", "title": "x", "tilte": 1}),
    "another name": json.dumps({"hypothesis_id": "h-t-0008", "tag": "t", "title": "x"}),
    "a tag that is not its name's": json.dumps(
        {"hypothesis_id": "h-t-0007", "tag": "u", "title": "x"}
    ),
}


@pytest.mark.parametrize("state", ["pending", "dispatched", "done"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_named_and_stops_nothing(queue: Queue, kind: str, state: str) -> None:
    content = DAMAGE[kind]
    worker = "cpu0" if state == "dispatched" else None
    path = queue.layout.hypothesis("h-t-0007", state, worker)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    good = propose(queue)
    assert good == "h-t-0008"
    queue.dispatch(good, "cpu0")
    claimed = queue.claim("cpu0")
    assert claimed is not None
    assert claimed.hypothesis_id == good
    assert queue.claim("cpu0") is None
    queue.finish(good, "cpu0")
    assert [one.hypothesis_id for one in queue.done()] == [good]
    assert queue.open() == []
    assert [problem.path for problem in queue.problems] == [
        str(path.relative_to(queue.layout.root))
    ]
    assert path.exists()
    path.unlink()
    assert queue.problems == []


def test_an_entry_without_a_rationale_does_not_wipe_the_queue(queue: Queue) -> None:
    kept = [propose(queue, f"idea {number}") for number in range(3)]
    by_hand(queue.layout, "h-t-0050")
    assert [one.hypothesis_id for one in queue.pending()] == [*kept, "h-t-0050"]
    assert queue.problems == []
    queue.dispatch("h-t-0050", "cpu0")
    assert queue.claim("cpu0") is not None


@pytest.mark.parametrize("name", ["My Idea", "-x", "x" * 70, "ä"])
def test_a_name_that_is_no_id_is_named_and_left(queue: Queue, name: str) -> None:
    by_hand(queue.layout, name)
    good = propose(queue)
    assert [one.hypothesis_id for one in queue.pending()] == [good]
    assert queue.counts()["pending"] == 1
    assert [problem.reason for problem in queue.problems] == ["has a name that is no id"]


def test_something_that_is_no_file_stops_nothing(queue: Queue) -> None:
    good = propose(queue)
    pending = queue.layout.hypotheses("pending")
    (pending / "h-t-0040.json").mkdir()
    os.mkfifo(pending / "h-t-0041.json")
    (pending / "h-t-0042.json").symlink_to("/dev/zero")
    (pending / "notes.txt").write_text("mine")
    assert [one.hypothesis_id for one in queue.pending()] == [good]
    assert len(queue.problems) == 3
    queue.dispatch(good, "cpu0")


def test_another_tags_hypotheses_stay_and_are_never_claimed(queue: Queue) -> None:
    other = Queue(queue.layout, "t-2")
    theirs = propose(other)
    other.add_baseline()
    assert theirs == "h-t-2-0001"
    mine = propose(queue)
    assert [one.hypothesis_id for one in queue.pending()] == [mine]
    assert queue.counts()["pending"] == 1
    assert other.counts()["pending"] == 2
    other.dispatch(theirs, "cpu0")
    assert queue.claim("cpu0") is None
    assert queue.dispatched() == {}
    with pytest.raises(QueueError, match="is of tag 't-2'"):
        queue.withdraw(theirs)
    assert queue.problems == []
    assert where(queue.layout)[theirs] == ["dispatched/cpu0"]


def test_a_torn_entry_in_the_way_stops_one_hypothesis_not_all(queue: Queue) -> None:
    first, second = propose(queue, priority=1), propose(queue)
    blocked = queue.layout.hypothesis(first, "running", "cpu0")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("{")
    for name in (first, second):
        queue.dispatch(name, "cpu0")
    claimed = queue.claim("cpu0")
    assert claimed is not None
    assert claimed.hypothesis_id == second
    with pytest.raises(QueueError, match="cannot be moved"):
        queue.claim("cpu0")
    assert where(queue.layout)[first] == ["dispatched/cpu0", "running/cpu0"]


# ── kills and systems without an exclusive rename ───────────────────────────────────────────


@pytest.fixture(params=["renameat2", "link and unlink"])
def any_rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "link and unlink":
        monkeypatch.setattr(system, "_rename_noreplace", lambda old, new: False)
    yield


@pytest.mark.usefixtures("any_rename")
def test_a_move_never_lands_on_another_file(tmp_path: Path) -> None:
    old, new = tmp_path / "ä", tmp_path / "b"
    old.write_text("old")
    new.write_text("new")
    with pytest.raises(FileExistsError):
        system.rename_exclusive(old, new)
    assert (old.read_text(), new.read_text()) == ("old", "new")
    new.unlink()
    system.rename_exclusive(old, new)
    assert not old.exists()
    assert new.read_text() == "old"
    with pytest.raises(FileNotFoundError):
        system.rename_exclusive(old, tmp_path / "c")


def test_a_kill_between_link_and_unlink_is_put_right_by_the_next_step(queue: Queue) -> None:
    name = propose(queue)
    for state, worker in (("dispatched", "cpu0"), ("running", "cpu0"), ("done", None)):
        before = where(queue.layout)[name][0]
        later = queue.layout.hypothesis(name, state, worker)
        later.parent.mkdir(parents=True, exist_ok=True)
        os.link(later.parents[1 if worker is None else 2] / before / later.name, later)
        assert len(where(queue.layout)[name]) == 2
        again = Queue(queue.layout, "t")
        seen = again.read(name)
        assert seen is not None
        assert seen[0] == QueuePlace(state, worker)
        everywhere = [one.hypothesis_id for one in (*again.open(), *again.done())]
        assert everywhere.count(name) == 1
        assert sum(again.counts().values()) == len(everywhere)
        propose(again)
        assert len(where(queue.layout)[name]) == 1


def test_an_abandoning_that_was_cut_off_is_ended_and_never_claimed(queue: Queue) -> None:
    name = propose(queue)
    queue.dispatch(name, "cpu0")
    path = queue.layout.hypothesis(name, "dispatched", "cpu0")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "closed": "abandoned", "outcome": "no"}))
    assert Queue(queue.layout, "t").claim("cpu0") is None
    assert where(queue.layout)[name] == ["done"]
    assert [one.outcome for one in queue.done()] == ["no"]


def test_what_killed_writers_left_is_swept(queue: Queue) -> None:
    propose(queue)
    pending = queue.layout.hypotheses("pending")
    left = pending / ".h-t-0009.json.4194304.0badcafe.tmp"
    left.write_text("{")
    os.utime(left, (0, 0))
    assert queue.counts()["pending"] == 1
    propose(Queue(queue.layout, "t"))
    assert not left.exists()


CALLS = [
    "autohypothesis.records.files.os.replace",
    "autohypothesis.fleet.queue.states.rename_exclusive",
    "autohypothesis.fleet.queue.states.write_json",
    "autohypothesis.fleet.queue.states.os.unlink",
]
A_LIFE = ["dispatch", "claim", "release", "withdraw", "dispatch", "claim", "finish", "requeue"]


def live(queue: Queue, step: str, name: str) -> None:
    match step:
        case "dispatch":
            queue.dispatch(name, "cpu0")
        case "claim":
            queue.claim("cpu0")
        case "release" | "finish":
            getattr(queue, step)(name, "cpu0")
        case "abandon":
            queue.abandon(name, "no")
        case _:
            getattr(queue, step)(name)


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_kill_between_any_two_calls_of_a_step_leaves_one_state(
    queue: Queue, moment: int, killed_at: Callable[..., bool]
) -> None:
    name = propose(queue)
    for step in (*A_LIFE, "abandon"):
        fresh = Queue(queue.layout, "t")
        if killed_at(moment, CALLS, partial(live, fresh, step, name)):
            assert len(where(queue.layout)[name]) == 1
            again = Queue(queue.layout, "t")
            before = again.read(name)
            assert before is not None
            with suppress(QueueError):  # it was taken to its end before the kill
                live(again, step, name)
        assert len(where(queue.layout)[name]) == 1
    assert where(queue.layout)[name] == ["done"]
    assert queue.done()[0].outcome == "no"


def take_random_steps(tell: Callable[[str], None], root: Path, seed: int, link: bool) -> None:
    if link:
        system._rename_noreplace = lambda old, new: False
    queue, chance = Queue(Layout(root), "t"), random.Random(seed)

    def one(found: list[Hypothesis]) -> str:
        return chance.choice(found).hypothesis_id if found else "h-t-9999"

    def step(worker: str) -> None:
        match chance.randrange(9):
            case 0:
                tell(queue.add(Proposal(title="x"), proposer="p").hypothesis_id)
            case 1 | 2:
                queue.dispatch(one(queue.pending()), worker)
            case 3:
                queue.withdraw(one(queue.dispatched(worker)[worker]))
            case 4:
                queue.claim(worker)
            case 5:
                queue.release(one(queue.running(worker)[worker]), worker)
            case 6:
                queue.finish(one(queue.running(worker)[worker]), worker, outcome="fine")
            case 7:
                queue.abandon(one(queue.pending()), "no")
            case 8:
                queue.requeue(one(queue.done()))

    tell("ready")
    while True:
        with suppress(QueueError):
            step(chance.choice(["cpu0", "cpu1", "cpu2"]))


@pytest.mark.parametrize(("link", "kills"), [(False, 30), (True, 10)])
def test_thirty_kills_leave_every_hypothesis_in_one_state(
    layout: Layout, forked: Callable[..., Forked], link: bool, kills: int
) -> None:
    queue, chance = Queue(layout, "t"), random.Random(3)
    added = {propose(queue, f"idea {number}") for number in range(12)}
    for kill in range(kills):
        stepping = forked(take_random_steps, layout.root, kill, link)
        assert stepping.hear() == "ready"
        time.sleep(chance.uniform(0.0, 0.12))  # the moment of the kill, not a wait
        added |= {str(name) for name in stepping.end(kill=True)}
        if not link:
            assert all(len(places) == 1 for places in where(layout).values())
        fresh = Queue(layout, "t")
        fresh.abandon(propose(fresh, "the next step"), "done with")
        found = where(layout)
        assert all(len(places) == 1 for places in found.values()), found
        assert added <= found.keys()
        assert sum(fresh.counts().values()) == len(found)
        assert {one.hypothesis_id for one in (*fresh.open(), *fresh.done())} == found.keys()
        assert fresh.problems == []


# ── many at once ────────────────────────────────────────────────────────────────────────────


def claim_all(tell: Callable[[str], None], root: Path, begin: Event) -> None:
    queue = Queue(Layout(root), "t")
    tell("ready")
    begin.wait()
    while (claimed := queue.claim("shared")) is not None:
        tell(claimed.hypothesis_id)
        queue.finish(claimed.hypothesis_id, "shared")


def test_eight_claimers_of_one_queue_lose_none_and_double_none(
    layout: Layout, forked: Callable[..., Forked]
) -> None:
    queue, begin = Queue(layout, "t"), FORKS.Event()
    names = [propose(queue, f"idea {number}") for number in range(80)]
    for name in names:
        queue.dispatch(name, "shared")
    claimers = [forked(claim_all, layout.root, begin) for _ in range(8)]
    assert {claimer.hear() for claimer in claimers} == {"ready"}
    begin.set()
    claimed = [claimer.end() for claimer in claimers]
    assert sorted(str(name) for several in claimed for name in several) == names
    assert sorted(queue.done_ids()) == names
    assert sum(bool(several) for several in claimed) > 1


def move_about(tell: Callable[[str], None], root: Path, name: str) -> None:
    queue = Queue(Layout(root), "t")
    tell("ready")
    for _ in range(150):
        queue.dispatch(name, "cpu0")
        queue.claim("cpu0")
        queue.release(name, "cpu0")
        queue.withdraw(name)


def test_who_looks_beside_a_writer_sees_every_hypothesis_once(
    layout: Layout, forked: Callable[..., Forked]
) -> None:
    queue = Queue(layout, "t")
    still, moving = propose(queue), propose(queue)
    writer = forked(move_about, layout.root, moving)
    assert writer.hear() == "ready"
    missed, looks = 0, 0
    while writer.process.is_alive():
        seen = [one.hypothesis_id for one in queue.open()]
        assert len(seen) == len(set(seen))
        assert still in seen
        missed += moving not in seen
        looks += 1
    assert writer.process.exitcode == 0
    assert missed <= looks / 100
    assert sorted(one.hypothesis_id for one in queue.open()) == [still, moving]


def test_a_full_disk_leaves_the_hypothesis_where_it_was(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = propose(queue)

    def full(old: object, new: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("autohypothesis.fleet.queue.states.rename_exclusive", full)
        with pytest.raises(RecordError, match="No space left"):
            queue.dispatch(name, "cpu0")
    assert [one.hypothesis_id for one in queue.pending()] == [name]
    queue.dispatch(name, "cpu0")


def test_a_folder_that_takes_nothing_is_told_from_a_hypothesis_that_is_elsewhere(
    queue: Queue,
) -> None:
    """The one is worth another try, the other is not."""
    name = propose(queue)
    folder = queue.layout.hypotheses("dispatched")
    folder.mkdir(parents=True)
    (folder / "cpu0").write_text("no folder")
    with pytest.raises(RecordError, match="cannot be moved"):
        queue.dispatch(name, "cpu0")
    (folder / "cpu0").unlink()
    queue.dispatch(name, "cpu0")
    queue.layout.hypothesis(name, "done").mkdir(parents=True)
    with pytest.raises(QueueError, match="cannot be moved"):
        queue.abandon(name, "no")


def test_a_requeueing_says_which_experiments_belong_to_earlier_tries(queue: Queue) -> None:
    name = propose(queue)
    for path in ("plans/{}-2.json", "runs/{}-3/result.json", "plans/{}1-7.json"):
        place = queue.layout.research / path.format(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
    queue.abandon(name, "no")
    assert queue.done()[0].tried == 0
    queue.requeue(name)
    assert queue.pending()[0].tried == 3


def test_a_reserved_id_is_added_once(queue: Queue) -> None:
    name = queue.reserve()
    assert propose(queue) == "h-t-0002"
    queue.add(Proposal(title="first"), proposer="me", hypothesis_id=name)
    with pytest.raises(QueueError, match="h-t-0001 is pending already"):
        queue.add(Proposal(title="second"), proposer="me", hypothesis_id=name)
