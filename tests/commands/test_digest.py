"""`digest`: the figures of the morning, from a night that was written down by hand."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from autohypothesis.fleet.overview.digest import digest
from autohypothesis.fleet.sync import sync
from autohypothesis.records.chain import DecisionChain
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.schema import Decision, now
from autohypothesis.terminal.fleet import digest_page


@pytest.fixture
def night(fleet: Any) -> Any:
    """Eight experiments, one an hour, each half an hour long, on two workers."""
    fleet.ran("baseline-nov20", "keep", 1.5, confirmation="confirmed")
    fleet.ran("h-nov20-0001", "keep", 1.4, reference=1.5, predicted=-0.2, confirmation="confirmed")
    fleet.ran("h-nov20-0002", "discard", 1.6, reference=1.4, predicted=-0.1)
    fleet.ran("h-nov20-0003", "crash", kind="oom", proposer="command:idea")
    fleet.ran("h-nov20-0004", "crash", kind="oom", worker="cpu1")
    fleet.ran("h-nov20-0005", "crash", kind="infra", worker="cpu1")
    fleet.ran("h-nov20-0006", "keep", 1.35, reference=1.4, confirmation="provisional")
    fleet.ran("h-nov20-0007", "keep", 1.34, reference=1.35, proposer="person")
    sync(fleet.layout)
    return fleet


def test_a_keep_with_a_remark_of_the_engine_is_looked_at_first(night: Any) -> None:
    path, remark = night.layout.run("h-nov20-0006-1").result, "train.py:7 is a line of 9,000"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "evidence": {"remarks": [remark]}}))
    sync(night.layout)
    first = digest(night.layout).first
    assert [notice.what for notice in first if remark in notice.what] == [
        f"h-nov20-0006-1 was kept: {remark}"
    ]


def test_each_keep_is_told_with_its_gain(night: Any) -> None:
    page = digest(night.layout)

    assert page.decided == {"keep": 4, "discard": 1, "crash": 2, "lost": 1}
    assert [step.experiment_id for step in page.kept] == [
        "baseline-nov20-1", "h-nov20-0001-1", "h-nov20-0006-1", "h-nov20-0007-1",
    ]  # fmt: skip
    assert page.kept[0].gain is None
    assert [step.gain for step in page.kept[1:]] == pytest.approx([0.1, 0.05, 0.01])
    assert page.kept[1].gain_share == pytest.approx(0.1 / 1.5)
    assert page.provisional == ["h-nov20-0006-1"]
    assert page.taken_back == {}
    assert page.confirmed == ["baseline-nov20-1", "h-nov20-0001-1"]
    assert page.not_confirmed == []


def test_crashes_are_counted_by_kind_with_an_example(night: Any) -> None:
    page = digest(night.layout)

    assert [(one.kind, one.count, one.example) for one in page.crashes] == [
        ("oom", 2, "h-nov20-0004-1")
    ]
    assert page.crashes[0].detail == "why it failed: oom"
    assert [(one.kind, one.count) for one in page.lost] == [("infra", 1)]


def test_device_hours_and_idle_time_come_from_what_the_shims_wrote(night: Any) -> None:
    page = digest(night.layout)

    assert page.device_hours == pytest.approx(4.0)
    assert page.hours == pytest.approx(7.5)
    assert page.experiments_per_hour == pytest.approx(7 / 7.5, abs=0.01), (
        "what was lost is in no rate"
    )
    first, second = page.workers
    assert (first.worker_id, first.experiments, first.device_hours) == ("cpu0", 6, 3.0)
    assert first.idle_share == pytest.approx(1 - 3 / 7.5, abs=1e-3)
    assert second.idle_share == pytest.approx(1 - 1 / 1.5, abs=1e-3)
    assert page.idle_share == pytest.approx(1 - 4 / 9, abs=1e-3)


def test_proposers_are_judged_by_what_says_something_about_an_idea(night: Any) -> None:
    """Faults of the machine and baselines are nobody's ideas."""
    records = {one.proposer: one for one in digest(night.layout).proposers}

    search = records["search"]
    assert (search.tried, search.kept, search.predictions) == (4, 2, 2)
    assert search.hit_rate == 0.5
    assert search.right_direction == 0.5  # better as foreseen once, worse instead of better once
    assert search.mean_error == pytest.approx((0.1 + 0.3) / 2)
    assert records["command:idea"].kept == 0
    assert records["command:idea"].right_direction is None
    assert records["person"].hit_rate == 1.0


@pytest.mark.parametrize("state", ["dispatched", "running"])
def test_an_idea_that_is_run_once_more_is_still_its_proposers(night: Any, state: str) -> None:
    queue = night.queue
    queue.requeue("h-nov20-0002")
    queue.dispatch("h-nov20-0002", "cpu0")
    if state == "running":
        queue.claim("cpu0")
    records = {one.proposer: one.tried for one in digest(night.layout).proposers}
    assert records["search"] == 4 and "by hand" not in records


def test_a_prediction_of_no_change_is_neither_right_nor_wrong(fleet: Any) -> None:
    fleet.ran("baseline-nov20", "keep", 1.5)
    fleet.ran("h-nov20-0001", "keep", 1.4, reference=1.5, predicted=0.0)
    sync(fleet.layout)

    (search,) = digest(fleet.layout).proposers

    assert search.predictions == 1
    assert search.right_direction is None
    assert search.mean_error == pytest.approx(0.1)


def test_only_the_last_hours_are_counted(night: Any) -> None:
    page = digest(night.layout, since_hours=4.25)

    assert sum(page.decided.values()) == 2
    assert [step.experiment_id for step in page.kept] == ["h-nov20-0006-1", "h-nov20-0007-1"]
    assert page.device_hours == pytest.approx(1.0)
    assert digest(night.layout, since_hours=0).decided == {}


def test_a_run_across_the_start_of_the_window_counts_in_part(fleet: Any) -> None:
    fleet.ran("baseline-nov20", "keep", 1.5, at=now() - timedelta(hours=3), minutes=120)
    sync(fleet.layout)

    assert digest(fleet.layout, since_hours=2).device_hours == pytest.approx(1.0, abs=0.01)


def test_an_overruled_decision_counts_once_and_as_it_stands(night: Any) -> None:
    before = json.loads(night.layout.decisions.read_text().splitlines()[1])
    overruled = {**before, "decision_id": "d-000100-x", "decision_status": "discard",
                 "reason": "by_hand"}  # fmt: skip
    DecisionChain(Repository(night.layout.root), night.layout).append(
        Decision.model_validate({**overruled, "recorded_at": now().isoformat()})
    )
    sync(night.layout)

    page = digest(night.layout)

    assert page.decided == {"keep": 3, "discard": 2, "crash": 2, "lost": 1}
    assert "h-nov20-0001-1" not in [step.experiment_id for step in page.kept]
    assert page.taken_back == {"h-nov20-0001-1": "by_hand"}
    assert page.first[0].what == "h-nov20-0001-1 was kept, and taken back: by_hand"
    assert page.first[0].run.endswith("show h-nov20-0001-1")


def test_damaged_files_cost_their_own_figures_only(night: Any) -> None:
    run = night.layout.run("h-nov20-0001-1")
    run.exit.write_bytes(b'{"started_at": "20')
    night.layout.hypothesis("h-nov20-0002", "done").write_bytes(b"\xff")
    with night.layout.ledger.open("ab") as file:
        file.write(b'{"id": "torn')
    with night.layout.decisions.open("ab") as file:
        file.write(b"no record\n")
    night.layout.heartbeat("cpu0").parent.mkdir(parents=True)
    night.layout.heartbeat("cpu0").write_bytes(b"{")

    page = digest(night.layout)

    assert sum(page.decided.values()) == 8
    assert page.device_hours == pytest.approx(3.5)
    assert any("cpu0.json" in need.what for need in page.first)


def test_an_older_bundle_counts_by_its_training_time(night: Any) -> None:
    run = night.layout.run("h-nov20-0001-1")
    run.exit.unlink()
    result = read_json(run.result)
    write_json(run.result, {**result, "metrics": {"training_seconds": 900.0}})
    sync(night.layout)

    assert digest(night.layout).device_hours == pytest.approx(3.75)


def test_decisions_that_cannot_be_read_do_not_stop_the_page(night: Any) -> None:
    night.layout.decisions.unlink()
    night.layout.decisions.mkdir()

    page = digest(night.layout)

    assert page.decided == {}
    assert any("decisions.jsonl" in need.what for need in page.first)


def test_what_to_look_at_first_begins_with_what_is_wrong(night: Any) -> None:
    night.role("observer", problems=["proposer command:idea failed"])

    first = [need.what for need in digest(night.layout).first]

    assert first[0] == "observer: proposer command:idea failed"
    assert any("2 of 7 crashed, most often: oom" in line for line in first)
    assert any("the largest gain of one step: title of h-nov20-0001-1" in line for line in first)


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_is_whole_on_a_narrow_screen(night: Any, page: Any, width: int) -> None:
    text = page(digest_page(digest(night.layout)), width)

    assert all(len(line) <= width for line in text.splitlines())
    for word in ("7: 4 keep, 1 discard, 2 crash; 1 lost", "baseline-nov20-1", "-0.1000", "+6.7 %",
                 "provisional", "oom", "4.00 device-hours", "command:idea"):  # fmt: skip
        assert word in text, word


def test_a_title_cannot_forge_a_line(night: Any, page: Any) -> None:
    row = json.loads(night.layout.ledger.read_text().splitlines()[1])
    assert row["id"] == "h-nov20-0001-1"
    run = night.layout.run("h-nov20-0001-1")
    evil = "x\nlook at this first\n! run it\x1b[2J[bold]"
    write_json(run.result, {**read_json(run.result), "title": evil, "metric_name": evil})
    sync(night.layout)

    text = page(digest_page(digest(night.layout)), 120)

    assert text.splitlines().count("look at this first") == 1
    assert not any(line.startswith("! run it") for line in text.splitlines())
    assert "\x1b" not in text


def test_the_morning_after_nothing(foreign: Any, fleet: Any, cli: Any) -> None:
    answer = cli("digest")
    assert answer.returncode == 0, answer.stderr
    assert "nothing yet" in answer.stdout and "device-hours" not in answer.stdout
    assert answer.stdout.rstrip().endswith("next: python orchestrator.py up")

    document = json.loads(cli("digest", "--json", "--since", "12").stdout)
    assert document["decided"] == {}
    assert document["experiments_per_hour"] is None


def test_the_page_as_json_is_one_document(night: Any, cli: Any) -> None:
    before = night.files()
    answer = cli("digest", "--json")

    document = json.loads(answer.stdout)
    assert document["kept"][1]["at"].endswith("Z")
    assert document["overview"]["tag"] == "nov20"
    assert document["metric"] == "val_bpb"
    assert night.files() == before


def test_another_tag_is_asked_for_by_name(night: Any, cli: Any) -> None:
    document = json.loads(cli("digest", "--json", "--tag", "other").stdout)
    assert document["tag"] == "other"
    assert document["decided"] == {}

    answer = cli("digest", "--tag", "../x")
    assert answer.returncode == 2
    assert "'../x'" in answer.stderr
