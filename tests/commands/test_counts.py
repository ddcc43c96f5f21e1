"""A run that its user stopped is no crash, and every page counts the same things."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.fleet.overview.digest import digest
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.fleet.overview.results import from_rows
from autohypothesis.fleet.sync import sync
from autohypothesis.records.files import read_json
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.outcomes import WORDS, tally_rows, tried
from autohypothesis.schema import Row
from autohypothesis.terminal.experiments import results_page, runs_table
from autohypothesis.terminal.fleet import digest_page, status_page

COUNTED = {"keep": 2, "discard": 1, "crash": 1, "nothing_new": 1, "lost": 1, "cancelled": 3,
           "undecided": 1}  # fmt: skip
LINE = "4: 2 keep, 1 discard, 1 crash; 1 nothing_new, 1 lost, 3 cancelled, 1 undecided"


def test_every_page_counts_the_same_experiments_under_the_same_words(
    fleet: Any, page: Callable[..., str]
) -> None:
    fleet.ran("baseline-nov20", "keep", 1.5)
    fleet.ran("h-nov20-0001", "keep", 1.4, reference=1.5)
    fleet.ran("h-nov20-0002", "discard", 1.6, reference=1.4)
    fleet.ran("h-nov20-0003", "crash", kind="oom")
    fleet.ran("h-nov20-0004", "crash", kind="infra")
    fleet.ran("h-nov20-0009", "discard", kind="nothing_new")
    for name in ("h-nov20-0005", "h-nov20-0006"):
        fleet.ran(name, "cancelled", kind="cancelled")
    fleet.bundle("h-nov20-0007-1", None, tag="nov20", status="failed", failure_kind="cancelled")
    fleet.bundle("h-nov20-0008-1", 1.3, tag="nov20")
    sync(fleet.layout)
    rows, view, found = read_ledger(fleet.layout), overview(fleet.layout), digest(fleet.layout)
    results, board = from_rows(rows, "nov20", []), read_json(fleet.layout.leaderboard)

    assert board["outcomes"] == view.outcomes == found.decided == results.outcomes == COUNTED
    assert board["decided_runs"] == view.decided == results.experiments == 4
    assert board["keep_rate"] == view.keep_rate == round(results.keep_rate or 0.0, 4) == 0.3333
    for shown in (status_page(view), digest_page(found), results_page(results, 3)):
        assert LINE in page(shown, 120)
    assert "cancelled  " in page(runs_table(rows), 120), "the word alone"
    assert (results.crashes, [one.kind for one in found.crashes]) == ({"oom": 1}, ["oom"])
    assert "cancelled" not in fleet.layout.results_tsv.read_text()


def test_a_run_that_ctrl_c_ended_shows_as_cancelled_before_and_after_it_is_decided(
    fleet: Any, cli: Callable[..., Any]
) -> None:
    fleet.ran("baseline-nov20", "keep", 1.5)
    fleet.bundle(
        "h-nov20-0001-1", None, tag="nov20", status="failed", failure_kind="cancelled",
        failure_detail="stopped before its end",
    )  # fmt: skip
    row = json.loads(cli("runs", "--json").stdout)[-1]
    assert (row["status"], row["execution_status"]) == ("cancelled", "failed")
    assert "1 cancelled" in cli("show-results").stdout
    said = cli("decide", "h-nov20-0001-1")
    assert said.stdout.startswith("h-nov20-0001-1: cancelled, stopped before its end")
    assert "crash" not in cli("runs").stdout
    row = json.loads(cli("runs", "--json").stdout)[-1]
    assert (row["status"], row["decision_status"]) == ("cancelled", "cancelled")


statuses = st.sampled_from(
    ["keep", "discard", "crash", "replicate", "cancelled", "failed", "running", "planned",
     "damaged", "artifact_invalid", "completed"]
)  # fmt: skip
kinds = st.sampled_from([None, "oom", "nothing_new", "infra", "contended", "cancelled"])
ledgers = st.lists(
    st.builds(
        lambda status, kind, ordinal, repeats: Row(
            id="x-1", status=status, failure_kind=kind, ordinal=ordinal, replicates=repeats
        ).model_dump(),
        statuses, kinds, st.sampled_from([None, 1]), st.sampled_from([None, "h-1-1"]),
    )
)  # fmt: skip


@given(ledgers)
def test_every_experiment_is_counted_once_and_what_was_cancelled_is_in_no_rate(
    rows: list[dict[str, Any]],
) -> None:
    counted = tally_rows(rows)
    assert sum(counted.outcomes.values()) == len(rows)
    assert counted.outcomes.keys() <= set(WORDS)
    rest = [row for row in rows if row["status"] != "cancelled"]
    others = {word: n for word, n in counted.outcomes.items() if word != "cancelled"}
    assert tally_rows(rest).keep_rate == counted.keep_rate
    assert tally_rows(rest).outcomes == others and tried(others) == tried(counted.outcomes)
