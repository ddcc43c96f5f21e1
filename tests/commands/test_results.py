"""show-results: the numbers are those of the rows, and what a bare table cannot tell is null."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.overview.results import Results, from_rows
from autohypothesis.schema import Row
from autohypothesis.terminal.experiments import results_page
from tests.conftest import ROOT

EXAMPLE = ROOT / "docs" / "example"
OTHER = """\
commit\tval_bpb\tpeak_vram_mb\tstatus\tdescription
0aaaaaa\t0.9979\t38420\tkeep\tbaseline
a3f2c91\t0.9697\t37.2\tkeep\tSwiGLU activation + depth-12
b8e1d04\t0.9821\tN/A\tdiscard\tMoE 4-expert: marginal gain
c1a5f30\tcrash\t—\tcrash\tOOM: sequence length 4096
"""
Answer = subprocess.CompletedProcess[str]
Cli = Callable[..., Answer]
START = datetime(2026, 11, 20, 22, 0, tzinfo=timezone.utc)


class Search:
    """Rows of a ledger, one decided experiment after another."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def ran(self, status: str, value: float | None = None, **more: Any) -> Search:
        number = len(self.rows) + 1
        name = "baseline-t" if number == 1 else f"h-t-{number:04d}"
        row = {
            "id": f"{name}-1", "hypothesis_id": name, "tag": "t", "ordinal": number,
            "status": status, "metric_value": value, "platform_key": "p",
            "description": f"idea {number}", "commit": f"{number:07d}", **more,
        }  # fmt: skip
        self.rows.append(Row.model_validate(row).model_dump(mode="json"))
        return self

    def results(self, minutes: float = 6.0, apart: float = 10.0) -> Results:
        begun = [START + timedelta(minutes=apart * n) for n in range(len(self.rows))]
        spans = [("w", start, start + timedelta(minutes=minutes)) for start in begun]
        return from_rows(self.rows, "t", spans)


def test_each_keep_is_measured_against_the_one_before_it_and_the_first() -> None:
    search = Search().ran("keep", 1.0).ran("discard", 1.1).ran("keep", 0.9).ran("keep", 0.92)
    found = search.results()
    steps = [(step.value, step.gain, step.total_gain) for step in found.keeps]
    assert steps[0] == (1.0, None, None)
    assert steps[1] == (0.9, pytest.approx(0.1), pytest.approx(0.1))
    assert steps[2] == (0.92, pytest.approx(-0.02), pytest.approx(0.08)), "simpler, and worse"
    assert found.start and found.best and (found.start.value, found.best.value) == (1.0, 0.9)
    assert found.gain == pytest.approx(0.1)
    assert found.keep_rate == pytest.approx(2 / 3), "the baseline is no idea"


def test_a_reference_that_a_person_moved_is_a_start_and_no_gain(page: Callable[..., str]) -> None:
    search = Search().ran("keep", 1.2).ran("keep", 1.15).ran("keep", 1.0, reason="baseline")
    moved = search.results()
    assert moved.start == moved.best and moved.gain == 0
    found = search.ran("keep", 0.9).results()
    assert found.start and found.start.value == 1.0 and found.gain == pytest.approx(0.1)
    gains = [(step.gain, step.total_gain) for step in found.keeps]
    assert gains[0] == gains[2] == (None, None)
    assert gains[3] == (pytest.approx(0.1), pytest.approx(0.1))
    said = " ".join(page(results_page(found, 9), 80).split())
    assert "start val_bpb 1.000000, where the reference was moved to; at first 1.200000" in said
    assert "better by 0.100000 (10.0 %)" in said


def test_where_more_is_better_so_are_the_gains() -> None:
    up = {"direction": "maximize", "metric_name": "score"}
    found = (
        Search().ran("keep", 1.0, **up).ran("keep", 1.5, **up).ran("discard", 0.5, **up).results()
    )
    assert found.metric == "score" and found.gain == pytest.approx(0.5)
    assert found.best and found.best.value == 1.5
    assert [one.value for one in found.top(9)] == [1.5, 1.0, 0.5]


def test_platforms_are_not_compared() -> None:
    found = Search().ran("keep", 1.0).ran("keep", 3.0, platform_key="q").ran(
        "keep", 2.9, platform_key="q"
    ).results()  # fmt: skip
    assert [step.gain for step in found.keeps] == [None, None, pytest.approx(0.1)]
    assert found.start and found.best and (found.start.value, found.best.value) == (3.0, 2.9)


def test_crashes_are_counted_by_kind_and_the_machines_own_are_not() -> None:
    search = Search().ran("keep", 1.0).ran("crash", failure_kind="oom").ran(
        "crash", failure_kind="oom").ran("crash", failure_kind="timeout").ran(
        "crash", failure_kind="infra").ran("crash", failure_kind="contended").ran(
        "crash")  # fmt: skip
    found = search.results()
    assert found.crashes == {"oom": 2, "timeout": 1, "unknown": 1}
    assert (found.experiments, found.outcomes["crash"], found.keep_rate) == (5, 4, 0.0)


def test_repeats_and_undecided_runs_are_no_ideas() -> None:
    search = Search().ran("keep", 1.0).ran("replicate", 1.1, replicates="baseline-t-1")
    search.ran("discard", 1.05, replicates="baseline-t-1").ran("running", ordinal=None)
    found = search.results()
    assert found.experiments == 1
    assert found.outcomes == {"keep": 1, "replicate": 2, "undecided": 1}
    assert found.keep_rate is None


def test_a_refuted_keep_is_not_the_best() -> None:
    found = Search().ran("keep", 1.0).ran("keep", 0.9).ran(
        "keep", 0.5, confirmation="refuted").results()  # fmt: skip
    assert found.best and found.best.value == 0.9 and found.outcomes["keep"] == 3


def test_hours_are_those_in_experiments_and_those_that_went_by() -> None:
    search = Search().ran("keep", 1.0).ran("discard", 1.1).ran("discard", 1.1).ran("crash")
    found = search.results(minutes=6, apart=18)
    assert found.device_hours == pytest.approx(0.4)
    assert found.hours == pytest.approx(1.0)
    assert found.per_hour == pytest.approx(4.0)
    nothing = from_rows(search.rows, "t", [])
    assert (nothing.device_hours, nothing.hours, nothing.per_hour) == (None, None, None)


def test_the_best_come_first_and_crashes_are_not_among_them() -> None:
    search = Search().ran("keep", 1.0).ran("crash").ran("discard", 0.95).ran("keep", 0.9)
    search.ran("discard", 1.0)
    found = search.results()
    assert [one.value for one in found.top(3)] == [0.9, 0.95, 1.0]
    assert found.top(9)[2].description == "idea 1", "of equal ones the earlier first"
    assert [one.status for one in found.top(9, kept_only=True)] == ["keep", "keep"]


def test_a_search_of_nothing_has_no_numbers() -> None:
    found = from_rows([], None, [])
    assert (found.experiments, found.start, found.best, found.keep_rate) == (0, None, None, None)
    json.dumps(found.as_dict(10), allow_nan=False)


# ── the command ─────────────────────────────────────────────────────────────────────────────


def test_the_example_in_the_documents_is_told_in_numbers(cli: Cli, tmp_path: Path) -> None:
    answer = cli("show-results", "--json", "--top", "3", "--repo", str(EXAMPLE))
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    rows = [json.loads(line) for line in (EXAMPLE / "experiments.jsonl").read_text().splitlines()]
    assert said["tag"] == "demo-2" and said["experiments"] == 11
    assert said["outcomes"]["replicate"] == 1
    assert said["start"]["value"] == rows[0]["val_bpb"]
    assert said["best"]["experiment_id"] == "h-demo-2-0002-1"
    assert said["gain"] == pytest.approx(0.0583, abs=1e-4)
    assert [one["total_gain"] for one in said["keeps"]] == [None, said["gain"]]
    assert said["keep_rate"] == pytest.approx(0.1) and len(said["top"]) == 3
    spent = sum(row["total_seconds"] for row in rows) / 3600
    assert said["device_hours"] == pytest.approx(spent) and said["hours"] < spent, "two lanes"
    assert said["per_hour"] == pytest.approx(12 / said["hours"])
    names = {"README.md", "experiments.jsonl", "progress.png", "results.tsv"}
    of_a_hub = {"hub.png", "hub-commits.png"}
    assert {path.name for path in EXAMPLE.iterdir()} == names | of_a_hub


def test_a_bare_table_is_shown_without_a_repository_and_stays_as_it_is(
    cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "results.tsv").write_text(OTHER)
    answer = cli("show-results", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert "0.969700, better by 0.028200" in answer.stdout and "SwiGLU" in answer.stdout
    said = json.loads(cli("show-results", "--json", cwd=folder).stdout)
    assert said["crashes"] is None and said["hours"] is None
    assert [path.name for path in folder.iterdir()] == ["results.tsv"]
    assert (folder / "results.tsv").read_text() == OTHER


def test_a_repository_with_a_table_of_another_loop_keeps_it(cli: Cli, foreign: Path) -> None:
    (foreign / "results.tsv").write_text(OTHER)
    assert "SwiGLU" in cli("show-results").stdout
    assert cli("runs").returncode == 0
    assert (foreign / "results.tsv").read_text() == OTHER, "nothing of ours has been run here"
    assert cli("run-experiment", "--baseline", "--settle").returncode == 0
    said = json.loads(cli("show-results", "--json").stdout)
    assert said["source"] == "experiments.jsonl" and said["experiments"] == 1
    assert (foreign / "results.tsv").read_text() == OTHER, "it is another table, and stays"
    ours = foreign / "research" / "aggregate" / "results.tsv"
    assert "baseline" in ours.read_text()


def test_a_table_that_is_none_is_an_error_that_names_it(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "results.tsv").write_text("a\tb\n1\t2\n")
    answer = cli("show-results", cwd=folder)
    assert answer.returncode == 2 and "results.tsv has no column val_bpb" in answer.stderr
    assert "--warm-start" not in answer.stderr


def test_a_tag_that_is_not_there_is_refused_with_those_that_are(cli: Cli) -> None:
    answer = cli("show-results", "--tag", "nov1", "--repo", str(EXAMPLE))
    assert answer.returncode == 2 and "demo-2" in answer.stderr


def test_before_the_first_experiment_it_says_how_to_begin(cli: Cli) -> None:
    answer = cli("show-results")
    assert answer.returncode == 1 and "run-loop" in answer.stderr and not answer.stdout


def test_a_decided_value_is_shown_though_its_file_was_edited_and_status_says_how_to_mend_it(
    cli: Cli, foreign: Path
) -> None:
    assert cli("run-experiment", "--baseline", "--settle").returncode == 0
    (path,) = foreign.glob("research/runs/*/result.json")
    before = path.read_text()
    value = json.loads(before)["metric_value"]
    path.write_text(json.dumps({**json.loads(before), "metric_value": 0.2}))
    cli("sync")
    answer = cli("show-results")
    assert answer.returncode == 0 and "1 damaged" in answer.stdout
    assert f"{value:.6f}" in answer.stdout and "0.200000" not in answer.stdout
    assert f"says metric_value 0.2, and {value:g} was decided" in answer.stderr
    (need,) = json.loads(cli("status", "--json").stdout)["needs"]
    assert "write it back into the file, then sync" in need["what"]
    path.write_text(before)
    cli(*need["run"].split()[2:])
    assert "damaged" not in cli("status").stdout


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_description_is_no_markup_and_breaks_no_line(
    page: Callable[..., str], width: int
) -> None:
    search = (
        Search().ran("keep", 1.0).ran("keep", 0.9, description="[red]x[/] \x1b[31m\n\tend " * 9)
    )
    text = page(results_page(search.results(), 5), width)
    assert "\x1b" not in text and ("[red]x" in text or width == 40)
    assert all(len(line) <= width for line in text.splitlines())


def test_only_what_was_kept_is_listed(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "results.tsv", tmp_path)
    answer = cli("show-results", "--kept-only", "--top", "5", cwd=tmp_path)
    assert "discard " not in answer.stdout.split("the best")[1]
    assert "the best 2 kept" in answer.stdout
