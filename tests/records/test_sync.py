"""What sync writes, what it reports, and that it can be killed and run at once."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import Any

import pytest

from autohypothesis.errors import LockError
from autohypothesis.fleet import sync as sync_module
from autohypothesis.fleet.sync import sync
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import latest_tag
from autohypothesis.records.locks import Process, hold
from autohypothesis.records.tables import HEADER
from autohypothesis.schema import Leaderboard, Row
from tests.conftest import forked


def test_everything_is_written_and_fits_its_model(lab: Any) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    lab.whole("a-1", 1.4, "keep")
    lab.whole("b-1", 1.6, "discard")
    lab.plan("c-1")
    report = sync(lab.layout)
    assert (report.rows, report.changed, report.tag, report.hand_edits) == (4, 4, "nov20", [])
    rows = [Row.model_validate_json(line) for line in lab.layout.ledger.read_bytes().splitlines()]
    assert [row.id for row in rows] == ["baseline-nov20-1", "a-1", "b-1", "c-1"]
    whole = json.loads(lab.layout.aggregate_experiments.read_text())
    assert whole == {
        "experiments": [json.loads(s) for s in lab.layout.ledger.read_text().split("\n")[:-1]]
    }
    board = Leaderboard.model_validate_json(lab.layout.leaderboard.read_text())
    assert (board.total_runs, board.decided_runs, board.keep_rate) == (4, 3, 0.5)
    assert board.best_run is not None
    assert board.best_run["id"] == "a-1"
    page = lab.layout.fleet_brief.read_text()
    assert "a-1" in page and "c-1: planned" in page
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(lab.layout.aggregate_parquet)
    assert table.column_names == list(Row.model_fields)
    assert table.column("val_bpb").to_pylist() == [1.5, 1.4, 1.6, None]
    assert not lab.layout.progress_png.exists()


def test_results_tsv(lab: Any) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    lab.whole("a-1", 1.6, "discard")
    lab.bundle("b-1", None, status="failed", failure_kind="invalid", commit="f" * 40, title="b\t\n")
    lab.decide("b-1", "crash", None)
    lab.whole("c-1", 1.55, "replicate")
    lab.bundle("d-1", None, status="failed", failure_kind="infra")
    lab.decide("d-1", "crash", None)
    lab.bundle("e-1", 1.2)
    lab.bundle("other-1", 1.1, tag="nov19")
    lab.decide("other-1", "keep", 1.1, tag="nov19")
    lab.put(lab.layout.manifest, {"tag": "nov20"})
    sync(lab.layout)
    header, *lines = lab.layout.results_tsv.read_text().splitlines()
    assert header == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    cells = [line.split("\t") for line in lines]
    assert [row[1:] for row in cells] == [
        ["1.500000", "2.0", "keep", "idea baseline-nov20-1"],
        ["1.600000", "2.0", "discard", "idea a-1"],
        ["0.000000", "0.0", "crash", "b"],
    ]
    assert {len(row[0]) for row in cells} == {7}
    lab.put(lab.layout.manifest, {"tag": "nov19"})
    sync(lab.layout)
    assert lab.layout.results_tsv.read_text().count("\n") == 2


def test_hand_stamps_are_reported_and_lagging_copies_are_not(lab: Any) -> None:
    lab.whole("agrees-1", 1.5, "keep")
    lab.whole("lags-1", 1.4, "keep")
    lab.decide("lags-1", "discard", 1.4)
    named = lab.decide("differs-1", "discard", 1.3)
    lab.bundle("differs-1", 1.3, decision_status="keep", decision_id=named)
    lab.bundle("wish-1", 1.2, decision_status="keep")
    lab.bundle("failed-1", None, status="failed", decision_status="crash")
    lab.bundle("open-1", 1.2)
    lab.decide("unstamped-1", "discard", 1.2)
    lab.bundle("unstamped-1", 1.2)
    lab.decide("same-1", "keep", 1.1)
    lab.bundle("same-1", 1.1, decision_status="keep")
    report = sync(lab.layout)
    assert [asdict(edit) for edit in report.hand_edits] == [
        {"experiment_id": "wish-1", "status": "keep"}
    ]
    assert [problem.model_dump() for problem in report.problems] == [
        {
            "path": "research/runs/differs-1/result.json",
            "reason": "says decision_status keep, and discard was decided",
            "experiment_id": "differs-1",
            "decided_otherwise": True,
        }
    ]
    assert lab.rows()["wish-1"]["decision_status"] == "review_pending"


def test_the_best_is_never_a_zero_nor_refuted_nor_of_another_platform(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    lab.whole("zero-1", 0.0, "keep")
    lab.whole("minus-1", -1.0, "keep")
    lab.whole("refuted-1", 1.1, "keep", confirmation="refuted")
    lab.whole("broken-1", 1.2, "keep")
    lab.layout.run("broken-1").config.write_bytes(b"\xff")
    lab.whole("b-1", 1.45, "keep")
    sync(lab.layout)
    board = json.loads(lab.layout.leaderboard.read_text())
    assert board["best_run"]["id"] == "b-1"


def test_a_worker_whose_pid_belongs_to_a_later_process_is_not_counted_as_active(lab: Any) -> None:
    own = Process.own()
    for worker, start in (("cpu0", own.start), ("cpu1", own.start - 5)):
        beat = {"worker_id": worker, "updated_at": "2026-11-20T01:02:03Z", "pid": own.pid}
        lab.put(lab.layout.heartbeat(worker), {**beat, "process_start": start})
    sync(lab.layout)
    assert json.loads(lab.layout.leaderboard.read_text())["active_workers"] == 1


def test_the_second_sync_writes_nothing(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    sync(lab.layout)
    time.sleep(0.15)
    sync(lab.layout)
    assert sync(lab.layout).written == []
    assert set(sync(lab.layout, all=True).written) == {
        "research/aggregate/fleet_brief.md", "research/aggregate/experiments.parquet",
    }  # fmt: skip


def test_nothing_at_all_is_an_empty_ledger(lab: Any) -> None:
    report = sync(lab.layout)
    assert (report.rows, report.tag, report.problems) == (0, "", [])
    assert lab.layout.ledger.read_text() == ""
    assert lab.layout.results_tsv.read_text() == HEADER
    assert latest_tag(lab.layout) == ""


def test_the_active_tag_is_the_manifests_else_the_last_ones(lab: Any) -> None:
    lab.plan("p-1", tag="oct31")
    sync(lab.layout)
    assert latest_tag(lab.layout) == "oct31"
    lab.decide("p-1", "keep", tag="oct30")
    assert latest_tag(lab.layout) == "oct30"
    lab.put(lab.layout.manifest, {"tag": "nov01"})
    assert latest_tag(lab.layout) == "nov01"
    assert sync(lab.layout).tag == "nov01"


def test_a_held_lock_is_waited_for_and_then_named(lab: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sync_module, "LOCK_TIMEOUT_S", 0.1)
    with hold(lab.layout, "sync", doing="the other sync"), pytest.raises(LockError, match="other"):
        sync(lab.layout)


def sync_on(layout: Layout, cold: bool = False) -> None:
    while True:
        if cold:
            layout.fold_index.unlink(missing_ok=True)
        sync(layout)


def test_two_syncs_beside_a_writer_lose_nothing(lab: Any) -> None:
    jobs = [forked(sync_on, lab.layout) for _ in range(2)]
    for n in range(40):
        lab.whole(f"a-{n}", 2.0 - n / 100, "keep")
        if lab.layout.ledger.exists():
            for line in lab.layout.ledger.read_text().splitlines():
                json.loads(line)
    assert all(job.is_alive() for job in jobs)
    for job in jobs:
        job.kill()
        job.join()
    sync(lab.layout)
    assert lab.rows().keys() == {f"a-{n}" for n in range(40)}
    assert lab.layout.results_tsv.read_text().count("\n") == 41


def test_a_sync_killed_at_any_moment_leaves_whole_files(lab: Any) -> None:
    for n in range(40):
        lab.whole(f"a-{n}", 2.0 - n / 100, "keep")
    sync(lab.layout)
    for attempt in range(12):
        lab.whole(f"b-{attempt}", 1.0, "discard")
        job = forked(sync_on, lab.layout, cold=True)
        time.sleep(0.003 * attempt)
        job.kill()
        job.join()
        rows = lab.rows()
        assert len(rows) >= 40
        assert json.loads(lab.layout.aggregate_experiments.read_text())["experiments"]
        json.loads(lab.layout.leaderboard.read_text())
        json.loads(lab.layout.problems.read_text())
    for folder in (lab.root, lab.layout.aggregate):
        for left in folder.glob(".*.tmp"):
            os.utime(left, (1, 1))
    report = sync(lab.layout)
    assert report.rows == 52
    assert not [*lab.root.glob(".*.tmp"), *lab.layout.aggregate.glob(".*.tmp")]


def test_nobody_waits_for_who_makes_parquet_and_the_fleet_brief(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    inside: list[Any] = []

    def slow(*words: Any) -> bytes:
        with hold(lab.layout, "sync", doing="a test", timeout=0.5):
            inside.append(words)
        return b"made"

    monkeypatch.setattr(sync_module, "_as_parquet", slow)
    monkeypatch.setattr(sync_module._Sync, "_brief", slow)
    report = sync(lab.layout)
    assert len(inside) == 2 and lab.layout.fleet_brief.read_bytes() == b"made"
    assert {"research/aggregate/fleet_brief.md", "research/aggregate/experiments.parquet"} <= set(
        report.written
    )


def test_a_slow_sync_does_not_replace_what_a_later_one_made(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    real = sync_module._Sync._brief

    def overtaken(*words: Any) -> bytes:
        page: bytes = real(*words)
        monkeypatch.setattr(sync_module._Sync, "_brief", real)
        lab.whole("a-1", 1.4, "keep")
        sync(lab.layout, all=True)
        return page

    monkeypatch.setattr(sync_module._Sync, "_brief", overtaken)
    sync(lab.layout, all=True)
    assert "a-1" in lab.layout.fleet_brief.read_text()


def test_a_page_dated_tomorrow_is_made_anew_all_the_same(lab: Any) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    sync(lab.layout)
    os.utime(lab.layout.fleet_brief, (2e9 * 2, 2e9 * 2))
    lab.whole("a-1", 1.4, "keep")
    sync(lab.layout, all=True)
    assert "a-1" in lab.layout.fleet_brief.read_text()
