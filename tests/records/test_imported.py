"""A tree of an older tool of the published format is finished history: shown as it decided."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.overview.digest import digest
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.fleet.overview.results import from_rows
from autohypothesis.fleet.sync import sync
from autohypothesis.records import bundles
from autohypothesis.records.files import write_json
from autohypothesis.records.history import LiveHistory, best_kept, kept_rows, of_search
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import parse_ledger, refold
from autohypothesis.records.problems import problem_lines
from benchmarks._predecessor import decision_of, name_of, value_of, write_run
from tests.conftest import Cli

COUNT = 24


@pytest.fixture
def tree(lab: Any) -> Any:
    for number in range(COUNT):
        write_run(lab.layout, number)
    return lab


def change(lab: Any, number: int, file: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit one document of a run; what `edit` returns takes its place, unless that is None."""
    path = lab.layout.run(name_of(number)).folder / file
    document = json.loads(path.read_text())
    made = edit(document)
    path.write_text(json.dumps(document if made is None else made))


def test_finished_runs_are_shown_as_the_older_tool_decided(tree: Any) -> None:
    report = sync(tree.layout, all=True)
    assert (report.problems, report.hand_edits, report.rows) == ([], [], COUNT)
    assert report.imported == [name_of(number) for number in range(COUNT)]
    rows = list(tree.rows().values())
    assert [row["id"] for row in rows] == report.imported
    assert [row["status"] for row in rows] == [decision_of(number) for number in range(COUNT)]
    assert {(row["tag"], row["decided_by"], row["attested"]) for row in rows} == {
        ("imported", "imported", False)
    }
    assert [row["ordinal"] for row in rows] == list(range(1, COUNT + 1))
    for number, row in enumerate(rows):
        crashed = decision_of(number) == "crash"
        assert row["val_bpb"] == (None if crashed else value_of(number))
        assert (
            row["delta"] is None
            if crashed
            else row["delta"]
            == pytest.approx(value_of(number) - value_of(max((number - 1) // 7 * 7, 0)))
        )
    assert sync(tree.layout).imported == []


def test_they_stand_in_the_tables_and_are_never_our_best(tree: Any) -> None:
    tree.whole("baseline-nov20-1", 1.5, "keep")
    report = sync(tree.layout)
    rows = list(tree.rows().values())
    assert report.tag == "nov20"
    best = best_kept(rows)
    assert best is not None and best["id"] == "baseline-nov20-1"
    assert [row["id"] for row in kept_rows(rows)] == ["baseline-nov20-1"]
    board = json.loads(tree.layout.leaderboard.read_text())
    assert (board["best_run"]["id"], board["total_runs"]) == ("baseline-nov20-1", 1)
    statuses = [line.split("\t")[3] for line in tree.layout.results_tsv.read_text().splitlines()]
    wanted = Counter(map(decision_of, range(COUNT)))
    wanted.subtract({"replicate": wanted["replicate"]})
    assert Counter(statuses[1:-1]) == +wanted and statuses[-1] == "keep"
    results = from_rows([row for row in rows if row["tag"] == "imported"], "imported", [])
    assert results.best is not None and results.best.value == value_of(21)
    assert "nobody attests" in results.notes[0]


VARIANTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "no id": ("result.json", lambda made: made.pop("experiment_id")and None),
    "score at the top": (
        "result.json", lambda made: made.update(val_bpb=made["metrics"].pop("val_bpb")),
    ),
    "numbers as text": (
        "result.json", lambda made: made["metrics"].update(val_bpb=str(made["metrics"]["val_bpb"])),
    ),
    "score in the metadata": (
        "metadata.json", lambda made: made.update(metrics=made.pop("results")),
    ),
    "gpu as a number": ("metadata.json", lambda made: made["run"].update(gpu_id=0)),
    "settings flat": ("config.json", lambda made: made.pop("hyperparameters") and None),
    "nulls for what is absent": (
        "metadata.json", lambda made: made["run"].update(hypothesis_id=None, rationale=None),
    ),
    "settings nested": (
        "config.json", lambda made: {"hyperparameters": made["hyperparameters"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_what_versions_of_that_format_differ_in_changes_no_row(tree: Any, name: str) -> None:
    def rows() -> list[dict[str, Any]]:
        return parse_ledger(refold(tree.layout, cold=True).content)

    before = rows()
    file, edit = VARIANTS[name]
    change(tree, 3, file, edit)
    if name == "score in the metadata":
        change(tree, 3, "result.json", lambda made: made.pop("metrics") and None)
    tree.layout.run(name_of(3)).events.unlink()
    assert rows() == before


def test_ids_that_are_numbers_in_a_plan_or_in_events_invalidate_no_run(tree: Any) -> None:
    numbers = {"worker_id": 0, "hypothesis": {"hypothesis_id": 12, "title": "a title"}}
    made = {"experiment_id": 7, "created_at": "2026-03-28T00:00:00Z", **numbers}
    tree.put(tree.layout.plan(name_of(3)), made)
    event = {"event_type": "run_started", "recorded_at": "2026-03-28T00:00:00Z", "gpu_id": 0}
    tree.layout.run(name_of(3)).events.write_text(json.dumps(event) + "\n")
    assert sync(tree.layout).problems == []
    assert tree.rows()[name_of(3)]["status"] == decision_of(3)


def test_a_missing_plan_and_a_name_with_capitals_cost_nothing_else(tree: Any) -> None:
    layout = tree.layout
    layout.plan(name_of(3)).unlink()
    for path in (
        layout.run(name_of(4)).folder,
        layout.plan(name_of(4)),
        layout.plan_page(name_of(4)),
    ):
        path.rename(path.with_name(path.name.replace("exp", "Exp")))
    shutil.copy(layout.plan(name_of(5)), layout.plan("alone"))
    assert sync(layout).problems == []
    rows = tree.rows()
    assert rows[name_of(3)]["status"] == "discard"
    (capital,) = (row for row in rows.values() if row.get("source_id"))
    assert (capital["source_id"], capital["status"]) == ("Exp-00004", "discard")
    assert (layout.root / capital["decision_markdown_path"]).is_file()
    assert (rows["alone"]["status"], rows["alone"]["ordinal"]) == ("planned", None)


@pytest.mark.parametrize("bad", ["NaN", "-Infinity", "0.0", "true", "-1"])
def test_a_keep_without_a_real_score_is_a_crash_and_never_the_best(tree: Any, bad: str) -> None:
    path = tree.layout.run(name_of(7)).result
    path.write_text(path.read_text().replace(str(value_of(7)), bad))
    assert sync(tree.layout).problems == []
    row = tree.rows()[name_of(7)]
    assert (row["status"], row["val_bpb"], row["delta"]) == ("crash", None, None)
    best = best_kept(list(tree.rows().values()), imported=True)
    assert best is not None and best["val_bpb"] == value_of(21)


def test_damage_of_one_kind_is_one_line_and_costs_nothing_the_next_time(
    tree: Any, monkeypatch: Any
) -> None:
    for number in (2, 3, 4, 5):
        change(tree, number, "result.json", lambda made: [made])
    change(tree, 6, "config.json", lambda made: [made])
    for path in tree.layout.runs.rglob("*.json"):
        os.utime(path, (1_760_000_000, 1_760_000_000))
    report = sync(tree.layout)
    lines = problem_lines(report.problems)
    assert [line.partition(":")[0] for line in lines] == [
        "research/runs/exp-00006/config.json",
        "4 files, research/runs/exp-00002/result.json, research/runs/exp-00003/result.json,"
        " research/runs/exp-00004/result.json and 1 more",
    ]
    assert tree.rows()[name_of(2)]["status"] == "artifact_invalid"
    monkeypatch.setattr(bundles, "read", None)
    assert sync(tree.layout).problems == report.problems


def test_files_that_are_cut_off_anywhere_are_one_kind(tree: Any) -> None:
    for number in range(12):
        path = tree.layout.run(name_of(number)).result
        path.write_bytes(path.read_bytes()[: 40 + 7 * number])
    report = sync(tree.layout)
    assert len(problem_lines(report.problems)) == 1


def test_a_run_that_comes_later_is_placed_by_its_time(tree: Any) -> None:
    layout = tree.layout
    shutil.move(layout.run(name_of(3)).folder, layout.root / "away")
    sync(layout)
    write_run(layout, COUNT)
    sync(layout)
    assert tree.rows()[name_of(COUNT)]["ordinal"] == COUNT
    assert layout.ledger.read_bytes() == refold(layout, cold=True).content
    shutil.move(layout.root / "away", layout.run(name_of(3)).folder)
    assert sync(layout).imported == [name_of(3)]
    assert [row["ordinal"] for row in tree.rows().values()] == list(range(1, COUNT + 2))
    first, *lines = layout.ledger.read_bytes().splitlines(keepends=True)
    layout.ledger.write_bytes(b"".join(lines))
    assert sync(layout).imported == []
    assert layout.ledger.read_bytes() == first + b"".join(lines)
    layout.ledger.unlink()
    assert sync(layout).imported == []
    assert layout.ledger.read_bytes() == refold(layout, cold=True).content


def test_its_ledger_and_its_table_become_ours_without_doubles(tree: Any) -> None:
    row = {"id": name_of(0), "commit": "abc0000", "status": "keep", "val_bpb": value_of(0)}
    tree.layout.ledger.write_text(json.dumps(row) + "\n")
    table = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
    line = f"abc0000\t{value_of(0):.6f}\t44.0\tkeep\tmatrix rate, try 0\n"
    older = "0123456\t1.100000\t44.0\tkeep\tbefore all of these\n"
    tree.layout.results_tsv.write_text(table + older + line)
    report = sync(tree.layout)
    assert (report.rows, report.taken, report.problems) == (COUNT, [], [])
    text = tree.layout.results_tsv.read_text()
    assert text.startswith(table + older + line) and text.count("\n") == COUNT + 1


def test_the_heartbeat_of_an_older_tool_is_read(tree: Any) -> None:
    beat = {
        "worker_id": "worker-gpu0", "node_id": "n0", "gpu_id": "0", "run_id": "exp-1",
        "state": "running", "updated_at": "2026-03-28T00:00:00+00:00", "pid": os.getpid(),
    }  # fmt: skip
    tree.put(tree.layout.heartbeat("worker-gpu0"), beat)
    numbers = {"state": "between runs", "gpu_id": 0, "run_id": 7}
    tree.put(tree.layout.heartbeat("worker-gpu1"), {**beat, **numbers})
    assert sync(tree.layout).problems == []


def test_before_the_first_sync_pages_count_its_runs_and_say_what_removes_its_live_files(
    cli: Cli, foreign: Path
) -> None:
    layout = Layout(foreign)
    for number in range(COUNT):
        write_run(layout, number)
    beats = [layout.heartbeat(f"worker-gpu{number}") for number in (0, 1)]
    for path in beats:
        beat = {"worker_id": path.stem, "node_id": "n0", "state": "running", "pid": os.getpid()}
        write_json(path, {**beat, "updated_at": "2026-03-28T00:00:00+00:00"})
    for page in ("status", "digest"):
        assert f"{COUNT} not counted yet: python orchestrator.py sync" in cli(page).stdout
    assert json.loads(cli("status", "--json").stdout)["next_command"].endswith(" sync")
    cli("sync")
    view = json.loads(cli("status", "--json").stdout)
    assert view["next_command"].endswith(" digest"), "up is refused"
    refused = cli("run-loop", "--max", "1", "--tag", "t")
    assert refused.returncode == 1 and "worker-gpu0 of another machine, n0" in refused.stderr
    command = shlex.join(["rm", *map(str, beats)])
    assert command in refused.stderr and "`down`" not in refused.stderr
    assert any(command in need["run"] for need in view["needs"])
    subprocess.run(command, shell=True, check=True)
    assert json.loads(cli("status", "--json").stdout)["next_command"].endswith(" up")
    shown = cli("show-results", "--top", "2").stdout
    assert "the last 2 of 4" in shown and shown.count("matrix rate") <= 5


def test_pages_of_a_search_without_runs_count_those_of_the_older_tool(tree: Any) -> None:
    tree.put(tree.layout.manifest, {"tag": "t", "created_at": "2026-03-29T00:00:00Z"})
    sync(tree.layout)
    counted = overview(tree.layout).outcomes
    assert (sum(counted.values()), counted) == (COUNT, digest(tree.layout).decided)
    tree.bundle("h-t-0001-1", 1.5, tag="t")
    sync(tree.layout)
    assert overview(tree.layout).outcomes == digest(tree.layout).decided == {"undecided": 1}


def test_commands_show_them_and_no_command_moves_a_reference_by_them(
    cli: Cli, foreign: Path
) -> None:
    for number in range(COUNT):
        write_run(Layout(foreign), number)
    first = cli("sync")
    assert first.returncode == 0 and "24 runs of another tool" in first.stderr
    assert "damaged" not in first.stderr
    assert (foreign / "progress.png").is_file()
    table = cli("runs").stdout
    assert table.count("keep (imported)") == 4 and name_of(23) in table
    assert "0.997979" in cli("show-results").stdout
    assert " against the best before it" in cli("show", name_of(23)).stdout
    ours = cli("run-experiment", "--tag", "t", "--baseline", "--settle")
    assert ours.returncode == 0, ours.stderr
    refused = cli("decide", name_of(0), "discard", "--tag", "t")
    assert refused.returncode == 1 and "that is history, and moves nothing here" in refused.stderr
    assert json.loads(cli("best", "--json").stdout)["row"]["tag"] == "t"
    assert cli("adopt", name_of(0)).returncode == 2
    assert name_of(0) not in cli("runs").stdout and name_of(0) in cli("runs", "--all").stdout
    assert "0.997979" in cli("show-results", "--tag", "imported").stdout
    statuses = [line.split("\t")[3] for line in (foreign / "results.tsv").read_text().splitlines()]
    assert statuses.count("keep") == 5 and statuses[-1] == "keep"
    assert cli("doctor").stdout.count("records:") == 0


def test_what_the_other_tool_left_undecided_hides_nothing_and_every_page_counts_the_same(
    tree: Any,
) -> None:
    change(tree, 23, "result.json", lambda made: made.pop("decision_status") and None)
    sync(tree.layout)
    rows = of_search(list(tree.rows().values()), "")
    counted = from_rows(rows, "", []).outcomes
    assert counted == overview(tree.layout).outcomes == digest(tree.layout).decided
    assert (sum(counted.values()), counted["undecided"]) == (COUNT, 1)


def test_no_loop_looks_at_them_as_runs_that_wait_for_a_decision(tree: Any) -> None:
    tree.bundle("h-t-0001-1", 1.5, tag="t")
    tree.plan("h-t-0002-1", tag="t")
    tree.layout.run(name_of(3)).metadata.write_text("[]")
    history = LiveHistory(tree.layout, "t")
    assert history.refresh()
    assert history.undecided == {"h-t-0001-1", "h-t-0002-1"}
    assert history.ended() == ["h-t-0001-1"]
