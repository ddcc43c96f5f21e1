"""A person's word binds everybody, and a slip in it frees nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Knob
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.steering import (
    SteeringFiles,
    merge_steering,
    narrowed_knobs,
    parse,
    unknown_names,
    violation,
)
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Steering
from tests.fleet.observing import Hands, Listed, idea, observer, turns
from tests.fleet.observing import calm as calm

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = {"DEPTH": 4, "RATE": 0.1, "BETAS": [0.8, 0.95], "PATTERN": "L"}


def page(block: str, fence: str = "```steering") -> str:
    return f"# a page\n\nwords\n\n{fence}\n{block}\n```\n\nmore words\n"


def write(layout: Layout, block: str, *, program: bool = False) -> None:
    path = layout.program if program else layout.steering
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(block), encoding="utf-8")


@pytest.mark.parametrize(
    "fence", ["```steering", "```yaml steering", "``` steering", "~~~steering"]
)
def test_a_block_is_found_however_its_fence_is_written(fence: str) -> None:
    text = page("frozen: [DEPTH]", fence)
    assert parse(text.replace("\n```\n", "\n~~~\n") if "~" in fence else text).frozen == ["DEPTH"]


def test_another_block_is_not_taken_for_the_steering() -> None:
    text = "```yaml\nfrozen: [A]\n```\n" + page("frozen: [B]") + page("frozen: [C]")
    assert parse(text).frozen == ["B"]


def test_our_own_charter_binds_nothing_by_itself() -> None:
    assert parse((ROOT / "program.md").read_text(encoding="utf-8")) == Steering()
    assert len((ROOT / "program.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.parametrize(
    ("block", "line", "words"),
    [
        ("frozen: [DEPTH]\nrnages: {}", 7, "did you mean 'ranges'"),
        ("frozen: [DEPTH\nranges: {}", 7, "expected"),
        ("frozen: []\nranges:\n  A: [1, 2]\n  DEPTH: [8, 2]", 9, "8 to 2 holds no value"),
        ("ranges:\n  DEPTH: 4", 7, "ranges.DEPTH"),
        ("ranges:\n  DEPTH: [1, .nan]", 7, "holds no value"),
        ("stop: false\nmemory_limit_mb: lots", 7, "'lots' is no number"),
        ("memory_limit_mb: -1", 6, "-1 is no number of MiB over 0"),
        ("just words", 6, "str"),
    ],
)
def test_a_slip_is_named_with_its_line(block: str, line: int, words: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(page(block))
    assert str(error.value).startswith(f"line {line}: ") and words in str(error.value)


def test_a_block_without_an_end_is_a_slip_and_not_the_rest_of_the_page() -> None:
    with pytest.raises(ValueError, match="line 3: the block has no end"):
        parse("a\n\n```steering\nfrozen: [A]\n")


def test_a_slip_leaves_the_last_good_steering_in_force(layout: Layout) -> None:
    files = SteeringFiles(layout)
    write(layout, "frozen: [DEPTH]")
    assert files.combined().frozen == ["DEPTH"] and not files.problems()
    write(layout, "frozen: [DEPTH, RATE\nmore: 1")
    assert files.combined().frozen == ["DEPTH"]
    (problem,) = files.problems()
    assert problem.startswith("research/steering.md line ") and "stays in force" in problem
    layout.steering.write_bytes(b"\xff\xfe```steering")
    assert files.combined().frozen == ["DEPTH"]
    write(layout, "frozen: [RATE]")
    assert files.combined().frozen == ["RATE"] and not files.problems()
    layout.steering.unlink()
    assert files.combined() == Steering()


def test_a_slip_that_was_there_before_the_process_frees_nothing(layout: Layout) -> None:
    """A successor of a killed observer finds a damaged page, and what was in force before it."""
    binding = Steering(frozen=["DEPTH"])
    details = {"steering": binding.model_dump(mode="json")}
    presence.write_role(layout, presence.own_status("observer", details=details))
    write(layout, "frozen: [")
    assert SteeringFiles(layout).combined() == binding


def test_steering_binds_on_top_of_the_program(layout: Layout) -> None:
    write(
        layout,
        "frozen: [A]\nranges: {DEPTH: [2, 10], RATE: [0, 1]}\nmemory_limit_mb: 900\n"
        "directions: [one]",
        program=True,
    )
    write(
        layout,
        "frozen: [B, A]\nranges: {depth: [4, 20]}\nmemory_limit_mb: 500\n"
        "directions: [two, one]\nstop: true",
    )
    assert SteeringFiles(layout).combined() == Steering(
        frozen=["A", "B"], ranges={"DEPTH": (4, 10), "RATE": (0, 1)}, memory_limit_mb=500,
        directions=["one", "two"], stop=True,
    )  # fmt: skip


def test_two_pages_that_contradict_each_other_allow_no_value() -> None:
    steering = merge_steering(Steering(ranges={"RATE": (0, 1)}), Steering(ranges={"RATE": (2, 3)}))
    for value in (0.5, 1.5, 2.5):
        assert violation(steering, REFERENCE, {**REFERENCE, "RATE": value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"DEPTH": 5}, "DEPTH is frozen"),
        ({"depth": 5}, "DEPTH is frozen"),
        ({"DEPTH": 4.0}, ""),
        ({"RATE": 0.5}, ""),
        ({"RATE": 1.5}, "outside 0.05 to 1"),
        ({"RATE": "0.5"}, "outside"),
        ({"RATE": True}, "outside"),
        ({"RATE": None}, "outside"),
        ({"BETAS": [0.9, 0.95]}, ""),
    ],
)
def test_what_was_forbidden_is_refused_and_nothing_else(
    change: dict[str, object], words: str
) -> None:
    steering = Steering(
        frozen=["depth" if "depth" in change else "DEPTH"], ranges={"rate": (0.05, 1)}
    )
    settings = {**{k: v for k, v in REFERENCE.items() if k.lower() not in change}, **change}
    said = violation(steering, REFERENCE, settings)  # type: ignore[arg-type]
    assert words.lower() in said.lower() if words else said == ""


def test_a_reference_outside_a_range_does_not_forbid_everything_else() -> None:
    steering = Steering(ranges={"DEPTH": (8, 12)})
    assert violation(steering, REFERENCE, {**REFERENCE, "RATE": 0.2}) == ""
    assert violation(steering, REFERENCE, {**REFERENCE, "DEPTH": 6}) != ""


def test_a_frozen_constant_that_a_patch_removed_is_a_violation() -> None:
    left = {name: value for name, value in REFERENCE.items() if name != "DEPTH"}
    assert "gone" in violation(Steering(frozen=["DEPTH"]), REFERENCE, left)


def test_a_misspelt_constant_is_named_and_not_silently_free() -> None:
    (said,) = unknown_names(Steering(frozen=["DEPHT"], ranges={"rate": (0, 1)}), list(REFERENCE))
    assert "DEPHT" in said and "did you mean 'DEPTH'" in said


def test_knobs_stay_within_the_ranges() -> None:
    knobs = {
        "DEPTH": Knob(type="int", low=1, high=12),
        "RATE": Knob(type="float", low=0.01, high=1, log=True),
        "SIZE": Knob(type="choice", choices=(1, 2, 4, 8)),
        "PATTERN": Knob(type="choice", choices=("L", "SL")),
        "GONE": Knob(type="float", low=0, high=1),
    }
    steering = Steering(
        frozen=["gone"],
        ranges={"depth": (2.5, 7.9), "RATE": (0.5, 9), "SIZE": (2, 4), "PATTERN": (0, 1)},
    )
    left = narrowed_knobs(knobs, steering)
    assert (left["DEPTH"].low, left["DEPTH"].high) == (3, 7)
    assert (left["RATE"].low, left["RATE"].high) == (0.5, 1)
    assert left["SIZE"].choices == (2, 4)
    assert set(left) == {"DEPTH", "RATE", "SIZE"}
    assert narrowed_knobs(knobs, Steering(ranges={"DEPTH": (3, 3)})).keys() == knobs.keys() - {
        "DEPTH"
    }


def test_a_frozen_constant_binds_every_proposer(fleet_project: Project) -> None:
    """A proposer, the inbox and a person's own hand: each is refused, and told why."""
    hand = Hands(fleet_project, "w0")
    write(fleet_project.layout, "frozen: [WIDTH]\nranges: {RATE: [1, 3]}")
    listed = Listed([[idea(WIDTH=16), idea(RATE=2.0)]] * 2)
    watched = observer(fleet_project, listed)
    fleet_project.layout.inbox.mkdir(parents=True)
    write_json(
        fleet_project.layout.inbox / "mine.json",
        {"title": "inboxed", "config_overrides": {"WIDTH": 32}},
    )
    by_hand = watched.queue.add(idea("too high", RATE=9.0), proposer="ada")
    turns(watched, lambda: watched.history.has_reference(), hand)
    turns(watched, lambda: len(listed.told) >= 3, hand)
    done = {one.title: one for one in watched.queue.done()}
    assert done["inboxed"].closed == "abandoned" and "frozen" in done["inboxed"].outcome
    assert "outside 1 to 3" in done["too high"].outcome
    assert done["too high"].hypothesis_id == by_hand.hypothesis_id
    assert {row.settings["width"] for row in watched.index.runs.values()} == {8}
    assert "frozen" in listed.told[1].refused["WIDTH 16"]


def test_a_new_range_refuses_what_was_waiting_already(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hand)
    for rate in (2.0, 3.0):
        watched.queue.add(idea(RATE=rate), proposer="ada")
    turns(watched, lambda: watched.queue.dispatched("w0")["w0"])
    (waiting,) = watched.queue.pending()
    write(fleet_project.layout, "frozen: [RATE]")
    watched.turn()
    assert watched.queue.pending() == []
    found = watched.queue.read(waiting.hypothesis_id)
    assert found is not None and "frozen" in found[1].outcome


def test_a_run_over_the_memory_limit_is_discarded_although_it_is_better(
    fleet_project: Project,
) -> None:
    write(fleet_project.layout, "memory_limit_mb: 0.5")
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: watched.history.counted() == 2, hand)
    assert [one.reason for one in watched.history.latest.values()] == ["baseline", "constraint"]


def test_stop_in_the_steering_starts_nothing_new_until_it_is_lifted(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    write(fleet_project.layout, "stop: true")
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    for _ in range(5):
        assert watched.turn() and hand.work(watched) is None
    assert watched.status.state == "waiting"
    write(fleet_project.layout, "stop: false")
    turns(watched, lambda: watched.history.counted() == 2, hand)


def test_a_slip_in_the_steering_is_a_problem_in_the_status(fleet_project: Project) -> None:
    Hands(fleet_project, "w0")
    write(fleet_project.layout, "frozn: [RATE]")
    watched = observer(fleet_project)
    watched.turn()
    (problem,) = read_json(fleet_project.layout.role("observer"))["problems"]
    assert problem.startswith("research/steering.md line 6: unknown key 'frozn'")


@pytest.mark.parametrize(
    "block",
    ["stop: !!bool maybe", "frozen: !!timestamp x", "frozen: " + "[" * 5_000, "a: !!int ''"],
)
def test_yaml_that_its_loader_trips_over_is_a_slip_like_any_other(
    layout: Layout, block: str
) -> None:
    write(layout, "frozen: [DEPTH]", program=True)
    write(layout, block)
    files = SteeringFiles(layout)
    assert files.combined().frozen == ["DEPTH"]
    assert len(files.problems()) == 1


def test_a_page_that_another_thread_still_reads_is_not_taken_for_empty(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(layout, "frozen: [DEPTH]")
    files, reading, go_on = SteeringFiles(layout), Event(), Event()

    def slow(text: str) -> Steering:
        reading.set()
        go_on.wait(60)
        return parse(text)

    monkeypatch.setattr("autohypothesis.fleet.live.steering.parse", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(files.combined)
        assert reading.wait(60)
        second = pool.submit(files.combined)
        wait([second], timeout=0.2)  # time to answer wrongly; a right answer needs none
        go_on.set()
        assert first.result(60).frozen == second.result(60).frozen == ["DEPTH"]
