"""The ledger in the root: people's lines become rows, people's files stay."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.sync import sync
from autohypothesis.records import outputs
from autohypothesis.records.outputs import MOST


def asides(root: Path) -> list[Path]:
    return [*root.glob("experiments.jsonl.set-aside-*")]


def appended(lab: Any, *lines: str) -> Any:
    with lab.layout.ledger.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return sync(lab.layout)


@pytest.fixture
def searched(lab: Any) -> Any:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    lab.whole("a-1", 1.4, "keep")
    sync(lab.layout)
    return lab


def test_a_row_that_was_added_is_a_row_with_its_id_and_never_the_best(searched: Any) -> None:
    own = {"id": "mine-1", "val_bpb": 0.9, "status": "keep", "description": "on my laptop",
           "commit": "abc1234", "peak_vram_gb": 3.0}  # fmt: skip
    assert appended(searched, json.dumps(own)).taken == ["mine-1"]
    for _ in range(2):
        row = searched.rows()["mine-1"]
        assert {key: row[key] for key in ("val_bpb", "description", "commit", "peak_vram_gb")} == {
            key: own[key] for key in ("val_bpb", "description", "commit", "peak_vram_gb")
        }
        assert (row["ordinal"], row["attested"], row["tag"]) == (None, False, "nov20")
        assert sync(searched.layout).taken == []
    assert json.loads(searched.layout.leaderboard.read_text())["best_run"]["id"] == "a-1"
    assert json.loads(searched.layout.run("mine-1").log.read_text()) == own
    assert asides(searched.root) == []


@pytest.mark.parametrize(
    "line",
    ['{"mine": 1}',   '{"id": "../../x", "val_bpb": 1}', '{"id": 7}',
     '{"id": "b-1", "val_bpb": "NaN", "timestamp": "0001-01-01T00:00:00+01:00"}',
     '{"val_bpb": 1e999, "peak_vram_gb": "much", "metric_name": 3, "tag": "No Tag", "status": []}',
     '{"description": "\\u001b[2Jgone\\u0000", "val_bpb": 1.0}'],
)  # fmt: skip
def test_whatever_was_added_is_kept_word_by_word_and_stops_nothing(
    searched: Any, line: str
) -> None:
    (name,) = appended(searched, line).taken
    assert searched.layout.run(name).log.read_text() == line + "\n"
    assert searched.rows().keys() == {"baseline-nov20-1", "a-1", name}
    assert sync(searched.layout).problems == []


@pytest.mark.parametrize("name", ["mine-1", None])
@pytest.mark.parametrize("step", ["write_json", "write_atomic", "write_result"])
def test_a_line_whose_taking_in_was_killed_is_taken_in_by_the_next_sync(
    searched: Any, monkeypatch: pytest.MonkeyPatch, name: str | None, step: str
) -> None:
    class Killed(BaseException): ...

    def killed(*_args: object, **_options: object) -> None:
        raise Killed

    at = outputs.bundles if step == "write_result" else outputs
    with monkeypatch.context() as patch:
        patch.setattr(at, step, killed)
        with pytest.raises(Killed):
            appended(searched, json.dumps({"id": name, "val_bpb": 0.9, "status": "keep"}))
    (taken,) = sync(searched.layout).taken
    assert taken == (name or taken)
    row = searched.rows()[taken]
    assert (row["val_bpb"], row["tag"]) == (0.9, "nov20")


def test_a_row_about_a_run_of_ours_is_not_taken_for_another_run(searched: Any) -> None:
    before = searched.layout.ledger.read_text()
    assert appended(searched, before.splitlines()[0]).taken == []
    assert searched.layout.ledger.read_text() == before


def test_a_file_of_the_users_is_left_where_nothing_was_run(lab: Any) -> None:
    lab.layout.ledger.write_text('{"mine": 1}\n')
    report = sync(lab.layout)
    assert lab.layout.ledger.read_text() == '{"mine": 1}\n'
    assert [problem.path for problem in report.problems] == ["experiments.jsonl"]


def test_a_file_that_takes_its_place_in_the_middle_of_a_search_is_kept(searched: Any) -> None:
    searched.layout.ledger.unlink()
    searched.layout.ledger.write_text('{"mine": 1}\n')
    report = sync(searched.layout)
    assert [path.read_text() for path in asides(searched.root)] == ['{"mine": 1}\n']
    assert searched.rows().keys() == {"baseline-nov20-1", "a-1"}
    assert any("was set aside" in problem.reason for problem in report.problems)


def test_so_many_lines_are_data_and_are_set_aside_whole(searched: Any) -> None:
    appended(searched, *(f'{{"n": {n}}}' for n in range(MOST + 1)))
    (aside,) = asides(searched.root)
    assert aside.read_text().count("\n") == MOST + 3
    assert searched.rows().keys() == {"baseline-nov20-1", "a-1"}


def test_a_row_that_was_edited_is_derived_again_and_the_edit_is_kept(searched: Any) -> None:
    time.sleep(0.15)
    sync(searched.layout)
    edited = searched.layout.ledger.read_text().replace("idea a-1", "what I think of it")
    searched.layout.ledger.write_text(edited)
    report = sync(searched.layout)
    (aside,) = asides(searched.root)
    assert aside.read_text() == edited
    assert "idea a-1" in searched.layout.ledger.read_text()
    assert [problem.path for problem in report.problems] == [aside.name]
    assert sync(searched.layout).problems == report.problems, "as long as it lies there"
    aside.unlink()
    assert sync(searched.layout).problems == []


def test_what_is_no_row_is_damage_and_kept_aside(searched: Any) -> None:
    lines = ["no JSON at all", "[1, 2]", '{"id": "torn']
    assert appended(searched, *lines).taken == []
    (aside,) = asides(searched.root)
    assert aside.read_text().splitlines()[-3:] == lines
    assert searched.rows().keys() == {"baseline-nov20-1", "a-1"}


def test_the_row_of_a_run_that_was_removed_is_not_taken_for_a_persons(searched: Any) -> None:
    shutil.rmtree(searched.layout.run("a-1").folder)
    shutil.rmtree(searched.layout.plans)
    searched.layout.decisions.unlink()
    searched.layout.fold_index.unlink()
    assert sync(searched.layout).taken == []
    assert searched.rows().keys() == {"baseline-nov20-1"}


def test_a_ledger_that_only_lags_was_edited_by_nobody(searched: Any) -> None:
    time.sleep(0.15)
    sync(searched.layout)
    lagging = searched.layout.ledger.read_bytes()
    searched.decide("a-1", "discard", 1.4)
    searched.whole("b-1", 1.3, "keep")
    sync(searched.layout)
    searched.layout.ledger.write_bytes(lagging)
    searched.layout.fold_index.unlink()
    searched.layout.ledger.write_bytes(lagging)
    sync(searched.layout)
    assert searched.rows().keys() == {"baseline-nov20-1", "a-1", "b-1"}
