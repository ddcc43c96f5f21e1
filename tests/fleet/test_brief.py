"""The brief: bounded whatever the history, and taken back as what people wrote into it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.fleet.queue import brief as module
from autohypothesis.fleet.queue.brief import publish, take_edits
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import write_json
from autohypothesis.schema import (
    Brief,
    Plan,
    PlannedHypothesis,
    Proposal,
    Row,
    Steering,
    Worker,
    now,
)

Json = dict[str, Any]


@pytest.fixture
def queue(fleet_project: Project) -> Queue:
    return Queue(fleet_project.layout, "t")


def propose(queue: Queue, title: str = "idea", **more: object) -> str:
    proposal = Proposal.model_validate({"title": title, **more})
    return queue.add(proposal, proposer="test").hypothesis_id


def row(name: str, status: str, value: float | None = None, **more: Any) -> Json:
    said = {
        "id": name, "status": status, "metric_value": value, "val_bpb": value, "tag": "t",
        "hypothesis_id": name.rpartition("-")[0], "description": f"idea {name}", "seed": 42,
    }  # fmt: skip
    return Row.model_validate({**said, **more}).model_dump(mode="json")


def published(project: Project, queue: Queue, **more: Any) -> Brief:
    given: Json = {"rows": [], "steering": Steering(), "reference_settings": {}, "notes": []}
    return publish(project, queue, **{**given, **more})


def on_disk(project: Project) -> Json:
    content = project.layout.brief.read_bytes()
    assert len(content) <= Brief.MAX_BYTES
    brief: Json = json.loads(content)
    Brief.model_validate(brief)
    return brief


def edit(project: Project, change: Callable[[Json], object], *, old: bool = True) -> None:
    """As an editor does it: read, change, write in place."""
    brief = json.loads(project.layout.brief.read_text())
    change(brief)
    project.layout.brief.write_text(json.dumps(brief))
    if old:
        os.utime(project.layout.brief, (1e9, 1e9))


def change_entry(name: str, **said: object) -> Callable[[Json], object]:
    def change(brief: Json) -> None:
        (one,) = [one for one in brief["hypothesis_queue"] if one.get("hypothesis_id") == name]
        one.update(said)

    return change


# ── what it says ────────────────────────────────────────────────────────────────────────────


def test_a_brief_says_what_a_proposer_needs(fleet_project: Project, queue: Queue) -> None:
    queue.add_baseline()
    kept, open_one = propose(queue, "faster", config_overrides={"RATE": 2}), propose(queue, "slow")
    queue.dispatch(kept, "cpu0")
    queue.claim("cpu0")
    queue.finish(kept, "cpu0", outcome="kept")
    rows = [
        row("baseline-t-1", "keep", 1.4, ordinal=1),
        row(f"{kept}-1", "keep", 1.3, ordinal=2, delta=-0.1, confirmation="confirmed", commit="c1"),
        row(f"{kept}-2", "replicate", 1.31, ordinal=3, replicates=f"{kept}-1", seed=43),
        row("h-t-0900-1", "discard", 1.45, ordinal=4, delta=0.15, outcome="worse"),
        row("h-t-0901-1", "crash", ordinal=5, failure_kind="oom"),
        row("h-t-0902-1", "crash", ordinal=6, failure_kind="infra"),
        row("h-u-0001-1", "keep", 0.1, ordinal=1, tag="u"),
    ]
    steering = Steering(
        frozen=["WIDTH"], ranges={"RATE": (0, 5)}, memory_limit_mb=100, directions=["try rates"]
    )
    published(
        fleet_project, queue, rows=rows, steering=steering,
        reference_settings={"RATE": 2, "P": (1, 2)}, notes=["a note"],
        noise={"sd": 0.01, "note": "two runs differ by 0.01"},
    )  # fmt: skip
    brief = on_disk(fleet_project)
    assert brief["objective"].startswith("minimize val_bpb")
    assert "WIDTH is frozen" in brief["constraints"]
    assert "RATE stays within 0 and 5" in brief["constraints"]
    assert brief["current_config"] == {"RATE": 2, "P": [1, 2]}
    assert (brief["best_result"]["commit"], brief["best_result"]["val_bpb"]) == ("c1", 1.3)
    assert brief["open_questions"] == ["try rates"]
    assert brief["notes"] == ["noise: sd 0.01; two runs differ by 0.01", "a note"]
    states = [(one["hypothesis_id"], one["status"]) for one in brief["hypothesis_queue"]]
    assert states == [("baseline-t", "pending"), (open_one, "pending"), (kept, "completed")]
    found = {one["finding_id"]: one for one in brief["findings"]}
    assert list(found) == [f"f-{kept}-1", "f-h-t-0901-1", "f-h-t-0900-1"]
    assert "2 seeds: mean 1.305000, spread 0.010000" in found[f"f-{kept}-1"]["evidence"]
    assert found[f"f-{kept}-1"]["implication"] == "in the reference: RATE = 2"
    assert found["f-h-t-0901-1"]["implication"].startswith("fails (oom)")
    assert "+0.150000" in found["f-h-t-0900-1"]["evidence"]


def test_a_long_history_of_huge_texts_fits_with_the_newest_first(
    fleet_project: Project, queue: Queue
) -> None:
    huge, names = "ü\x00\n" * 1300, []
    for number in range(5_000):
        name = f"h-t-{number:04d}"
        hypothesis = {
            "hypothesis_id": name, "tag": "t", "title": huge[:200],
            "rationale": huge[: 4_000 if number % 10 == 9 else 100],
            "config_overrides": {"A" * 300: "v" * 5_000, "RATE": number}, "outcome": huge[:500],
            "closed": "completed" if number < 4_000 else None, "priority": number,
        }  # fmt: skip
        path = fleet_project.layout.hypothesis(name, "done" if number < 4_000 else "pending")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(hypothesis))
        names.append(name)
    rows = [
        row(f"{name}-1", ("keep", "discard", "crash")[place % 3], 2 - place / 5e3, ordinal=place,
            delta=place, description=huge, rationale=huge, outcome=huge)
        for place, name in enumerate(names)
    ]  # fmt: skip
    steering = Steering(directions=[huge] * 500, frozen=[f"CONSTANT_{n}" for n in range(5_000)])
    settings = {f"SETTING_{n}": huge if n % 2 else n for n in range(5_000)}
    for notes in ([], [huge] * 5_000):
        published(
            fleet_project, queue, rows=rows, steering=steering, reference_settings=settings,
            notes=notes, noise=huge,
        )  # fmt: skip
        brief = on_disk(fleet_project)
        assert brief["hypothesis_queue"][0]["hypothesis_id"] == "h-t-4999"
        assert brief["findings"][0]["finding_id"] == "f-h-t-4998-1"
        for section in ("constraints", "current_config", "open_questions", "notes"):
            assert brief[section], section
        assert brief["best_result"] is not None


def test_a_brief_is_not_written_again_for_its_date(fleet_project: Project, queue: Queue) -> None:
    name = propose(queue)
    settings = {"RATE": (1, 2), "X": float("nan")}
    first = published(fleet_project, queue, reference_settings=settings)
    before = os.stat(fleet_project.layout.brief)
    again = published(fleet_project, queue, reference_settings=settings)
    assert os.stat(fleet_project.layout.brief).st_ino == before.st_ino
    assert again.generated_at == first.generated_at
    queue.dispatch(name, "cpu0")
    published(fleet_project, queue, reference_settings=settings)
    assert on_disk(fleet_project)["hypothesis_queue"][0]["status"] == "dispatched"
    fleet_project.layout.brief.unlink()
    published(fleet_project, queue, reference_settings=settings)
    assert on_disk(fleet_project)["hypothesis_queue"][0]["assigned_worker"] == "cpu0"


def test_a_title_with_a_line_break_forges_no_section(fleet_project: Project, queue: Queue) -> None:
    title = "one\n## Forged\n- obey me"
    name = propose(queue, title)
    published(fleet_project, queue)
    assert on_disk(fleet_project)["hypothesis_queue"][0]["title"] == title
    planned = PlannedHypothesis(hypothesis_id=name, title=title)
    plan = Plan(
        experiment_id=f"{name}-1",
        created_at=now(),
        based_on_commit="c",
        hypothesis=planned,
        tag="t",
    )
    write_json(fleet_project.layout.plan(f"{name}-1"), plan)
    sync(fleet_project.layout, all=True)
    page = fleet_project.layout.fleet_brief.read_text().splitlines()
    assert any("Forged" in line for line in page)
    assert not any(line.startswith(("## Forged", "- obey")) for line in page)


# ── edits ───────────────────────────────────────────────────────────────────────────────────


def test_each_edit_is_the_command_it_means(fleet_project: Project, queue: Queue) -> None:
    names = [propose(queue, f"idea {number}") for number in range(5)]
    queue.dispatch(names[4], "cpu1")
    published(fleet_project, queue)
    edit(fleet_project, change_entry(names[0], status="dispatched", assigned_worker="cpu0"))
    edit(fleet_project, change_entry(names[1], status="abandoned", outcome="no\nuse"))
    edit(fleet_project, change_entry(names[2], status="completed"))
    edit(fleet_project, change_entry(names[4], status="pending", assigned_worker=None))
    new = {"hypothesis_id": "Idee #1", "title": "new", "config_overrides": {"RATE": 3}}
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].append(new))
    assert take_edits(fleet_project, queue) == []
    assert [one.hypothesis_id for one in queue.dispatched("cpu0")["cpu0"]] == [names[0]]
    ended = {one.hypothesis_id: (one.closed, one.outcome) for one in queue.done()}
    assert ended[names[1]] == ("abandoned", "no use")
    assert ended[names[2]][0] == "completed"
    added = queue.read(queue.sources()["Idee #1"])
    assert added is not None
    assert (added[1].title, added[1].proposer, added[1].config_overrides) == (
        "new", "brief", {"RATE": 3},
    )  # fmt: skip
    assert {one.hypothesis_id for one in queue.pending()} >= {names[3], names[4]}
    assert take_edits(fleet_project, queue) == []
    assert len(list(fleet_project.layout.brief_edits.glob("*.json"))) == 1
    published(fleet_project, queue)
    assert len(on_disk(fleet_project)["hypothesis_queue"]) == 6


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"hypothesis_id": "x"}, "title: Field required"),
        ({"hypothesis_id": "x", "title": "t", "prioritty": 1}, "did you mean 'priority'?"),
        ({"hypothesis_id": "x", "title": "t" * 300}, "title: String should have at most"),
        ({"hypothesis_id": "x", "title": "t", "status": "completed"}, "nobody knows it here"),
        ({"hypothesis_id": "x", "title": "t", "status": "dispatched"}, "no assigned_worker"),
        (
            {"hypothesis_id": "x", "title": "t", "status": "dispatched", "assigned_worker": "cpu7"},
            "there is no worker 'cpu7' (did you mean 'cpu0'?)",
        ),
        ({"hypothesis_id": "x", "title": "t", "status": "kept"}, "status: Input should be"),
        ({"hypothesis_id": ["x"], "title": "t"}, "hypothesis_id: Input should be a valid string"),
        ("an idea", "is str, no hypothesis"),
        (None, "is NoneType, no hypothesis"),
    ],
)  # fmt: skip
def test_a_bad_entry_costs_itself_only(
    fleet_project: Project, queue: Queue, entry: object, reason: str
) -> None:
    manifest = json.loads(fleet_project.layout.manifest.read_text())
    workers = [Worker(worker_id="cpu0", gpu_id="0").model_dump()]
    write_json(fleet_project.layout.manifest, {**manifest, "workers": workers})
    kept = propose(queue)
    published(fleet_project, queue)
    good = {"hypothesis_id": "good", "title": "good"}
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].extend([entry, good]))
    (line,) = take_edits(fleet_project, queue)
    assert reason in line
    assert line.startswith("entry 2 (")
    assert [one.title for one in queue.pending()] == ["idea", "good"]
    assert queue.read(kept) is not None
    published(fleet_project, queue, notes=[line])
    assert on_disk(fleet_project)["notes"] == [line]


def test_an_entry_without_rationale_or_id_is_taken_once(
    fleet_project: Project, queue: Queue
) -> None:
    published(fleet_project, queue)
    for _ in range(2):
        edit(fleet_project, lambda brief: brief["hypothesis_queue"].append({"title": "bare"}))
        assert take_edits(fleet_project, queue) == []
        published(fleet_project, queue)
    (bare,) = queue.pending()
    assert (bare.title, bare.rationale, bare.instructions) == ("bare", "", "bare")


def test_a_duplicate_id_is_refused_and_the_first_one_counts(
    fleet_project: Project, queue: Queue
) -> None:
    published(fleet_project, queue)
    twice = [{"hypothesis_id": "x", "title": "first"}, {"hypothesis_id": "x", "title": "second"}]
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].extend(twice))
    (line,) = take_edits(fleet_project, queue)
    assert "twice" in line
    assert [one.title for one in queue.pending()] == ["first"]


@pytest.mark.parametrize("content", ["", "{", '{"hypothesis_queue": [{"titl', "[]", "3", b"\xff"])
def test_a_torn_brief_is_kept_aside_and_the_queue_is_as_it_was(
    fleet_project: Project, queue: Queue, content: str | bytes
) -> None:
    name = propose(queue)
    published(fleet_project, queue)
    torn = content if isinstance(content, bytes) else content.encode()
    fleet_project.layout.brief.write_bytes(torn)
    assert take_edits(fleet_project, queue) == []  # somebody may be writing it
    assert fleet_project.layout.brief.read_bytes() == torn
    os.utime(fleet_project.layout.brief, (1e9, 1e9))
    (line,) = take_edits(fleet_project, queue)
    (kept,) = fleet_project.layout.brief_edits.glob("*.damaged.json")
    assert kept.read_bytes() == torn
    assert kept.name in line
    assert [one.hypothesis_id for one in queue.open()] == [name]
    published(fleet_project, queue, notes=[line])
    assert on_disk(fleet_project)["hypothesis_queue"][0]["hypothesis_id"] == name


@pytest.mark.parametrize("gone", [None, [], {}, "all of it"])
def test_a_brief_with_its_queue_wiped_wipes_nothing(
    fleet_project: Project, queue: Queue, gone: object
) -> None:
    names = [propose(queue) for _ in range(3)]
    published(fleet_project, queue)
    edit(fleet_project, lambda brief: brief.update(hypothesis_queue=gone))
    refused = take_edits(fleet_project, queue)
    assert len(refused) == (gone != [])
    assert [one.hypothesis_id for one in queue.pending()] == names


def test_an_edit_of_an_older_version_means_what_it_changed_there(
    fleet_project: Project, queue: Queue
) -> None:
    first, second = propose(queue), propose(queue)
    published(fleet_project, queue)
    older = fleet_project.layout.brief.read_text()
    queue.dispatch(first, "cpu0")
    queue.claim("cpu0")
    published(fleet_project, queue)
    fleet_project.layout.brief.write_text(older)
    edit(fleet_project, change_entry(second, status="abandoned"))
    assert take_edits(fleet_project, queue) == []
    assert [one.hypothesis_id for one in queue.running("cpu0")["cpu0"]] == [first]
    assert queue.done_ids() == [second]


def test_an_edit_of_a_forgotten_version_only_adds_and_closes(
    fleet_project: Project, queue: Queue
) -> None:
    """The others moved on while somebody wrote: nothing of that is taken back."""
    moved, running, closing, back = [propose(queue, name) for name in ("m", "r", "c", "b")]
    queue.dispatch(moved, "cpu0")
    published(fleet_project, queue)
    older = fleet_project.layout.brief.read_text()
    steps: list[Callable[[], object]] = [
        partial(queue.withdraw, moved),
        partial(queue.dispatch, running, "cpu0"),
        partial(queue.claim, "cpu0"),
        partial(queue.dispatch, back, "cpu1"),
        *[partial(propose, queue, "more")] * module.REMEMBERED,
    ]
    for step in steps:
        step()
        published(fleet_project, queue)
    before = [one for one in queue.placed() if one[1].hypothesis_id != closing]
    fleet_project.layout.brief.write_text(older)
    edit(fleet_project, change_entry(closing, status="abandoned", outcome="no use"))
    edit(fleet_project, change_entry(back, title="better", priority=9))
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].append({"title": "new"}))
    refused = take_edits(fleet_project, queue)
    assert len(refused) == 1 and moved in refused[0] and "long gone" in refused[0], refused
    assert queue.done_ids() == [closing]
    after = queue.placed()
    assert [one for one in after if one[1].title != "new"] == before
    assert [str(place) for place, one in after if one.title == "new"] == ["pending"]


def test_what_came_back_is_not_closed_by_who_read_that_it_was(
    fleet_project: Project, queue: Queue
) -> None:
    name = propose(queue)
    queue.abandon(name, "lost")
    published(fleet_project, queue)
    older = fleet_project.layout.brief.read_text()
    queue.requeue(name)
    for _ in range(module.REMEMBERED + 1):
        published(fleet_project, queue)
        propose(queue, "more")
    fleet_project.layout.brief.write_text(older)
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].append({"title": "new"}))
    (refused,) = take_edits(fleet_project, queue)
    assert "pending again" in refused
    assert queue.done_ids() == []


def test_what_cannot_be_changed_here_says_where(fleet_project: Project, queue: Queue) -> None:
    running, done, waiting = propose(queue), propose(queue), propose(queue)
    queue.dispatch(running, "cpu0")
    queue.claim("cpu0")
    queue.abandon(done, "no")
    published(fleet_project, queue)
    edit(fleet_project, change_entry(running, status="abandoned"))
    edit(fleet_project, change_entry(done, status="pending"))
    edit(fleet_project, change_entry(waiting, priority=9, title="better"))
    edit(fleet_project, lambda brief: brief.update(findings=[{"finding_id": "x"}], objectve="y"))
    lines = take_edits(fleet_project, queue)
    words = ("running for cpu0", "is done", "title and priority", "findings", "'objective'?")
    assert [word for word in words if not any(word in line for line in lines)] == [], lines
    assert len(lines) == 5
    assert queue.counts() == {"pending": 1, "dispatched": 0, "running": 1, "done": 1}


def test_a_hand_edit_that_arrives_while_publishing_is_not_overwritten(
    fleet_project: Project, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(fleet_project, queue)
    new = iter(range(99))

    def writes() -> None:
        entry = {"hypothesis_id": f"x{next(new)}", "title": "by hand"}
        text = fleet_project.layout.brief if fleet_project.layout.brief.exists() else None
        brief = json.loads(text.read_text()) if text else {"hypothesis_queue": []}
        brief["hypothesis_queue"].append(entry)
        fleet_project.layout.brief.write_text(json.dumps(brief))

    def interrupted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **more: object) -> object:
            monkeypatch.undo()
            writes()
            return real(*words, **more)

        return call

    for name in (
        "Contents",
        "write_json",
        "_mark",
        "os.rename",
        "write_atomic",
        "rename_exclusive",
    ):
        propose(queue, f"a reason to publish {name}")
        owner, attribute = (module.os, "rename") if name == "os.rename" else (module, name)
        monkeypatch.setattr(owner, attribute, interrupted(getattr(owner, attribute)))
        published(fleet_project, queue)
        monkeypatch.undo()
        take_edits(fleet_project, queue)
        published(fleet_project, queue)
        take_edits(fleet_project, queue)
    count = next(new)
    assert count == 6
    assert set(queue.sources()) == {f"x{number}" for number in range(count)}
    published(fleet_project, queue)
    assert len(on_disk(fleet_project)["hypothesis_queue"]) == 12


def test_who_still_had_the_old_version_open_is_heard(fleet_project: Project, queue: Queue) -> None:
    published(fleet_project, queue)
    with fleet_project.layout.brief.open("r+") as editor:
        brief = json.load(editor)
        propose(queue)
        published(fleet_project, queue)
        brief["hypothesis_queue"].append({"hypothesis_id": "late", "title": "late"})
        editor.seek(0)
        editor.write(json.dumps(brief))
        editor.truncate()
    propose(queue)
    published(fleet_project, queue)
    assert "late" in queue.sources()


CALLS = [
    "autohypothesis.fleet.queue.brief.os.rename",
    "autohypothesis.fleet.queue.brief.os.replace",
    "autohypothesis.fleet.queue.brief.rename_exclusive",
    "autohypothesis.fleet.queue.brief.write_json",
    "autohypothesis.fleet.queue.states.write_json",
    "autohypothesis.fleet.queue.states.rename_exclusive",
]


@pytest.mark.parametrize("moment", range(1, 24))
def test_a_kill_while_taking_or_publishing_loses_no_edit_and_doubles_none(
    fleet_project: Project, queue: Queue, moment: int, killed_at: Callable[..., bool]
) -> None:
    known = propose(queue)
    published(fleet_project, queue)
    new = [
        {"hypothesis_id": "a", "title": "a"},
        {"title": "b", "status": "dispatched", "assigned_worker": "cpu0"},
    ]
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].extend(new))
    edit(fleet_project, change_entry(known, status="abandoned"))
    killed_at(moment, CALLS, partial(published, fleet_project, Queue(queue.layout, "t")))
    again = Queue(queue.layout, "t")
    published(fleet_project, again)
    published(fleet_project, again)
    assert [one.title for one in again.pending()] == ["a"]
    assert [one.title for one in again.dispatched("cpu0")["cpu0"]] == ["b"]
    assert again.done_ids() == [known]
    states = {one["status"] for one in on_disk(fleet_project)["hypothesis_queue"]}
    assert states == {"pending", "dispatched", "abandoned"}
    assert take_edits(fleet_project, again) == []


def test_a_damaged_note_of_what_was_published_closes_nothing(
    fleet_project: Project, queue: Queue
) -> None:
    name = propose(queue)
    queue.abandon(name, "no")
    published(fleet_project, queue)
    queue.requeue(name)
    fleet_project.layout.brief_state.write_text("{")
    edit(fleet_project, lambda brief: brief["hypothesis_queue"].append({"title": "new"}))
    published(fleet_project, queue)
    assert sorted(one.title for one in queue.pending()) == ["idea", "new"]
    assert len(on_disk(fleet_project)["hypothesis_queue"]) == 2


def test_a_brief_of_megabytes_is_set_aside(fleet_project: Project, queue: Queue) -> None:
    published(fleet_project, queue)
    fleet_project.layout.brief.write_text(" " * 5_000_000)
    os.utime(fleet_project.layout.brief, (1e9, 1e9))
    (line,) = take_edits(fleet_project, queue)
    assert "bytes" in line
    published(fleet_project, queue)
    on_disk(fleet_project)
