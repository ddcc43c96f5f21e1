"""What was decided stands above what a bundle says by now, and a bundle that differs is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.overview.results import from_rows
from autohypothesis.fleet.sync import sync
from autohypothesis.records.history import best_kept

COMMIT = "c" * 40
KEPT, CRASHED = "kept-1", "crashed-1"


@pytest.fixture
def decided(lab: Any) -> Any:
    """A keep, a better one, and a crash, as the engine records them; synced once."""
    for name, value, status in (("first-1", 1.6, "keep"), (KEPT, 1.5, "keep")):
        more = {"commit": COMMIT, "base_commit": "b" * 40, "metric_name": "val_bpb"}
        stamp = lab.decide(name, status, value, direction="minimize", seed=7, **more)
        lab.bundle(
            name, value, commit=COMMIT, parent_commit="b" * 40, decision_status=status,
            decision_id=stamp,
        )  # fmt: skip
    stamp = lab.decide(CRASHED, "crash", None, reason="timeout")
    lab.bundle(
        CRASHED, None, status="failed", failure_kind="timeout", decision_status="crash",
        decision_id=stamp,
    )  # fmt: skip
    assert sync(lab.layout).problems == []
    return lab


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def named(lab: Any) -> dict[str, str]:
    """Path and reason of each problem; a fold from nothing finds the same."""
    found = {problem.path: problem.reason for problem in sync(lab.layout).problems}
    rows = lab.rows()
    lab.layout.fold_index.unlink()
    assert {one.path: one.reason for one in sync(lab.layout).problems} == found
    assert lab.rows() == rows
    return found


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"metric_value": 0.123}, "says metric_value 0.123, and 1.5 was decided"),
    "no value": ({"metric_value": None}, "says metric_value null, and 1.5 was decided"),
    "commit": ({"commit": "d" * 40}, f"says commit {'d' * 40}, and {COMMIT} was decided"),
    "parent": ({"parent_commit": "e" * 40}, f"says parent_commit {'e' * 40}, and"),
    "status": ({"status": "failed"}, "says metric_value null, and 1.5 was decided"),
    "direction": ({"direction": "maximize"}, "says direction maximize, and minimize was decided"),
    "decision": ({"decision_status": "discard"}, "says decision_status discard, and keep was"),
    "no decision": (
        {"decision_status": "discard", "decision_id": None},
        "says decision_status discard, and keep was decided",
    ),
    "confirmation": ({"confirmation": "confirmed"}, "says confirmation confirmed, and none was"),
    "another's record": ({"decision_id": "d-1"}, "names the decision 'd-1', which is about first"),
    "no record": ({"decision_id": "d-99"}, "names the decision 'd-99', which decisions.jsonl lac"),
    "metric": ({"metric_name": "accuracy"}, "says metric_name accuracy, and val_bpb was decided"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_result_shows_what_was_decided_and_is_named_and_never_ranked(
    decided: Any, name: str
) -> None:
    changes, reason = EDITS[name]
    before = decided.rows()[KEPT]
    path = decided.layout.run(KEPT).result
    edit(path, **changes)
    found = named(decided)
    short = f"research/runs/{KEPT}/result.json"
    assert list(found) == [short]
    assert found[short].startswith(reason)
    row = decided.rows()[KEPT]
    assert row["status"] == "damaged"
    for key in ("metric_value", "val_bpb", "commit", "parent_commit", "decision_status",
                "confirmation", "direction", "metric_name", "delta", "ordinal"):  # fmt: skip
        assert row[key] == before[key], key
    assert row["notes"] == [f"result.json {found[short]}"]
    board = json.loads(decided.layout.leaderboard.read_text())
    best = best_kept(list(decided.rows().values()))
    assert best is not None
    assert board["best_run"]["id"] == best["id"] == "first-1"
    assert f"{COMMIT[:7]}\t1.500000\t2.0\tkeep" in decided.layout.results_tsv.read_text()
    results = from_rows(list(decided.rows().values()), "nov20", [])
    assert results.best is not None
    assert results.best.experiment_id == "first-1"
    assert [(one.experiment_id, one.value) for one in results.top(9)][-1] == (KEPT, 1.5)
    assert found[short] in results.notes[0]


def test_a_crash_that_claims_a_value_or_another_kind_has_none(decided: Any) -> None:
    path = decided.layout.run(CRASHED).result
    edit(path, failure_kind="infra")
    assert [*named(decided).values()] == ["says failure_kind infra, and timeout was decided"]
    edit(path, status="completed", failure_kind=None, metric_value=0.1)
    assert [*named(decided).values()] == ["says metric_value 0.1, and null was decided"]
    row = decided.rows()[CRASHED]
    assert (row["status"], row["metric_value"], row["val_bpb"]) == ("damaged", None, None)


@pytest.mark.parametrize("field", ["platform_key", "tag", "seed"])
def test_metadata_that_moves_a_run_elsewhere_is_named(decided: Any, field: str) -> None:
    path = decided.layout.run(KEPT).metadata
    value = json.loads(path.read_text())
    value["runtime" if field == "platform_key" else "run"][field] = 8 if field == "seed" else "x"
    path.write_text(json.dumps(value))
    before = decided.rows()[KEPT]
    ((where, reason),) = named(decided).items()
    assert where == f"research/runs/{KEPT}/metadata.json"
    assert reason.startswith(f"says {field} ")
    row = decided.rows()[KEPT]
    assert (row["status"], row[field]) == ("damaged", before[field])


@pytest.mark.parametrize("renamed", [False, True])
def test_a_bundle_under_another_name_is_of_its_own_experiment(decided: Any, renamed: bool) -> None:
    runs = decided.layout.runs
    (shutil.move if renamed else shutil.copytree)(runs / KEPT, runs / "other-1")
    found = named(decided)
    assert {path.split("/")[2] for path in found} == {"other-1"}
    rows = decided.rows()
    assert (rows["other-1"]["status"], rows["other-1"]["ordinal"]) == ("damaged", None)
    assert (rows[KEPT]["status"], rows[KEPT]["metric_value"]) == ("keep", 1.5)
    best = best_kept(list(rows.values()))
    assert best is not None
    assert best["id"] == KEPT


def test_a_copy_that_takes_the_id_along_is_no_keep_without_a_record(decided: Any) -> None:
    runs = decided.layout.runs
    shutil.copytree(runs / KEPT, runs / "other-1")
    for file in ("metadata.json", "exit.json"):
        path = runs / "other-1" / file
        path.write_text(path.read_text().replace(KEPT, "other-1"))
    (reason,) = named(decided).values()
    assert reason == "names the decision 'd-2', which is about kept-1"
    assert decided.rows()["other-1"]["status"] == "damaged"


def test_a_mended_bundle_is_damaged_no_more(decided: Any) -> None:
    path = decided.layout.run(KEPT).result
    before = path.read_text()
    edit(path, metric_value=0.123)
    assert named(decided)
    path.write_text(before)
    assert named(decided) == {}
    assert decided.rows()[KEPT]["status"] == "keep"


def test_a_run_voided_by_its_decision_agrees_before_and_after_it_is_stamped(lab: Any) -> None:
    stamp = lab.decide("a-1", "crash", None, reason="contended", requeue=True)
    lab.bundle("a-1", 1.5)
    assert named(lab) == {}
    assert lab.rows()["a-1"]["val_bpb"] is None
    lab.bundle(
        "a-1", None, status="failed", failure_kind="contended", decision_status="crash",
        decision_id=stamp, evidence={"voided_value": 1.5},
    )  # fmt: skip
    assert named(lab) == {}


def test_a_record_that_was_lost_with_its_file_makes_no_keep(decided: Any) -> None:
    decided.layout.decisions.unlink()
    assert len(named(decided)) == 3
    assert {row["status"] for row in decided.rows().values()} == {"damaged"}
    assert best_kept(list(decided.rows().values())) is None
