"""results.tsv goes on working with the one-liners and notebooks that people have for it."""

from __future__ import annotations

import json
import re
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.fleet import sync as sync_module
from autohypothesis.fleet.sync import sync
from autohypothesis.plain import table_text
from autohypothesis.records.tables import HEADER

HOSTILE = (
    'tab\there, line\nbreak, return\r, "quote, \x00\x07\x1b[31m, \x85\u2028\u2029, \u202eback, '
    "$(id) `id` 'x' | keep"
)
SORTED = "awk -F'\\t' '$4==\"keep\"' results.tsv | sort -t$'\\t' -k2 -n"
COUNTED = "awk -F'\\t' '{print $4}' results.tsv | sort | uniq -c"


@pytest.fixture
def searched(lab: Any) -> Any:
    """A search with keeps, discards and crashes, whose titles try to break the table."""
    ran = [("baseline-nov20-1", 1.5, "keep", "baseline"), ("a-1", 1.31, "keep", HOSTILE),
           ("b-1", 1.6, "discard", "keep\tkeep\tkeep\tkeep\tkeep"),
           ("c-1", 10.25, "keep", "Attention: GQA"), ("d-1", 1.4, "keep", "# no comment"),
           ("e-1", 1.7, "discard", "")]  # fmt: skip
    for name, value, status, title in ran:
        lab.plan(name)
        lab.decide(name, status, value)
        lab.bundle(name, value, title=title)
    lab.bundle("f-1", None, status="failed", failure_kind="oom", title='"\n"keep')
    lab.decide("f-1", "crash", None)
    sync(lab.layout)
    return lab


def shell(command: str, lab: Any) -> list[str]:
    answer = subprocess.run(
        ["bash", "-c", command], cwd=lab.root, check=True, capture_output=True, text=True
    )
    return answer.stdout.splitlines()


def test_one_liners_of_a_shell_go_on_working(searched: Any) -> None:
    keeps = [line.split("\t") for line in shell(SORTED, searched)]
    assert [line[1] for line in keeps] == ["1.310000", "1.400000", "1.500000", "10.250000"]
    assert all(len(line) == 5 for line in keeps)
    counted = [line.split() for line in shell(COUNTED, searched)]
    assert sorted(counted) == [["1", "crash"], ["1", "status"], ["2", "discard"], ["4", "keep"]]
    (found,) = shell('grep -i "attention\\|GQA\\|MLA\\|MHA" results.tsv', searched)
    assert found.endswith("Attention: GQA")
    (last,) = shell("tail -1 results.tsv", searched)
    assert last.split("\t")[1:4] == ["0.000000", "0.0", "crash"]
    assert shell("tail -n +2 results.tsv | wc -l", searched) == ["7"]
    assert shell("tail -c 1 results.tsv | od -An -c", searched) == ["  \\n"]


def test_a_description_is_words_on_one_line(searched: Any) -> None:
    text = searched.layout.results_tsv.read_bytes().decode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\u202e\"]", text)
    (line,) = (line for line in text.split("\n") if line.startswith("tab") or "tab here" in line)
    assert line.split("\t")[4].startswith("tab here, line break, return , 'quote")


@given(title=st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_no_title_makes_a_line_or_a_column(title: str) -> None:
    text = (
        HEADER
        + f"abc1234\t1.000000\t1.0\tkeep\t{table_text(title)}\n"
        + ("abc1235\t2.000000\t1.0\tdiscard\tnext\n")
    )
    table = pandas.read_csv(StringIO(text), sep="\t")
    assert table["val_bpb"].tolist() == [1.0, 2.0]
    assert table["status"].tolist() == ["keep", "discard"]


# ── somebody else's ─────────────────────────────────────────────────────────────────────────

THEIRS = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n0123abc\t0.99\t44.0\tkeep\tbaseline\n"


def asides(root: Path) -> list[str]:
    return [path.read_text() for path in root.glob("results.tsv.set-aside-*")]


def test_a_table_that_was_there_is_the_beginning_of_ours(lab: Any) -> None:
    lab.layout.results_tsv.write_text(THEIRS)
    sync(lab.layout)
    assert lab.layout.results_tsv.read_text() == THEIRS
    lab.whole("baseline-nov20-1", 1.5, "keep")
    for _ in range(3):
        report = sync(lab.layout)
        head, ours = lab.layout.results_tsv.read_text().split(THEIRS)
        assert head == "" and ours.count("\n") == 1 and "\t1.500000\t" in ours
    assert report.rows == 1 and report.problems == [], "it is history, and no row of a search here"
    assert asides(lab.root) == []


def test_a_line_of_the_same_commit_as_ours_is_kept_beside_it(lab: Any) -> None:
    lab.whole("baseline-nov20-1", 1.5, "keep")
    commit = json.loads(lab.layout.run("baseline-nov20-1").result.read_text())["commit"][:7]
    theirs = f"{commit}\t1.400000\t9.0\tkeep\tthe same on my machine\n"
    sync(lab.layout)
    with lab.layout.results_tsv.open("a") as file:
        file.write(theirs)
    sync(lab.layout)
    assert theirs in lab.layout.results_tsv.read_text()
    assert lab.layout.results_tsv.read_text().count(commit) == 2


def test_a_line_that_somebody_added_stays_and_is_a_row_of_its_own(searched: Any) -> None:
    line = "9999999\t1.0\t2.0\tkeep\tby hand\n"
    with searched.layout.results_tsv.open("a") as file:
        file.write(line)
    report = sync(searched.layout)
    assert len(report.taken) == 1 and asides(searched.root) == []
    for _ in range(2):
        assert searched.layout.results_tsv.read_text().count(line) == 1
        lines = map(json.loads, searched.layout.ledger.read_bytes().splitlines())
        (row,) = [row for row in lines if row["id"] == report.taken[0]]
        assert (row["val_bpb"], row["peak_vram_gb"], row["commit"]) == (1.0, 2.0, "9999999")
        assert row["description"] == "by hand" and "as keep" in row["outcome"]
        assert row["ordinal"] is None and not row["attested"] and row["tag"] == "nov20"
        assert sync(searched.layout).taken == []


@pytest.mark.parametrize("content", ["my own notes\n", "a\tb\n1\t2\n", "\n\nnotes"])
def test_another_file_of_that_name_stays_and_ours_lies_elsewhere(lab: Any, content: str) -> None:
    lab.layout.results_tsv.write_text(content)
    lab.whole("baseline-nov20-1", 1.5, "keep")
    report = sync(lab.layout)
    assert lab.layout.results_tsv.read_text() == content
    assert "1.500000" in lab.layout.aggregate_results_tsv.read_text()
    (problem,) = report.problems
    assert problem.path == "results.tsv" and "research/aggregate/results.tsv" in problem.reason


def test_after_a_kill_between_the_two_tables_no_line_of_ours_is_a_persons(
    searched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sync_module._Sync._table

    def killed(run: Any, path: Path, *words: Any, **more: Any) -> None:
        if path == searched.layout.results_tsv:
            raise KeyboardInterrupt
        real(run, path, *words, **more)

    monkeypatch.setattr(sync_module._Sync, "_table", killed)
    searched.bundle("a-1", 1.31, title="its bundle came after its decision")
    with pytest.raises(KeyboardInterrupt):
        sync(searched.layout)
    monkeypatch.undo()
    searched.bundle("a-1", 1.31, title="and changed again")
    assert sync(searched.layout).taken == []
    assert searched.layout.results_tsv.read_text().count("\n") == 8


def test_our_own_table_is_never_set_aside(searched: Any) -> None:
    lines = searched.layout.results_tsv.read_text().splitlines(keepends=True)
    searched.layout.results_tsv.write_text("".join(lines[:3]))
    searched.whole("g-1", 1.2, "keep")
    sync(searched.layout)
    other = json.dumps({"tag": "nov21", "created_at": "2026-11-21T00:00:00Z",
                        "repository_root": "", "shared_research_dir": ""})  # fmt: skip
    searched.put(searched.layout.manifest, other)
    sync(searched.layout)
    assert searched.layout.results_tsv.read_text().count("\n") == 1, "another tag begins"
    searched.layout.results_tsv.unlink()
    sync(searched.layout)
    assert asides(searched.root) == []
