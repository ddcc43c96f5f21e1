"""Wins on the way to their confirmation: which runs count, for whom, and for nobody else."""

from __future__ import annotations

import pytest

from autohypothesis.engine.decide import NeedsRuns, Settlement, settle
from autohypothesis.engine.task import Constraint, Objective, Policy, Task
from autohypothesis.engine.task_file import foreign_task
from autohypothesis.errors import SettleError
from autohypothesis.schema import FailureKind
from tests.engine.searching import PLATFORM, Search

CAREFUL = foreign_task().model_copy(
    update={"policy": Policy(replicates=2), "objective": Objective(min_delta=0.02)}
)
"""Two further pairs confirm a win."""


@pytest.fixture
def task() -> Task:
    return CAREFUL


@pytest.fixture
def win(search: Search, start: str) -> str:
    """The commit of `h-1`, which is better than the reference on its first seed."""
    commit = search.change(start, "A = 1\n")
    search.ended("h-1", commit, start, 1.4)
    return commit


def missing(search: Search, name: str) -> list[tuple[str | None, int | None]]:
    return [(run.replicates, run.seed) for run in needed(search, name).runs]


def needed(search: Search, name: str) -> NeedsRuns:
    (win,) = settle(search.project, [name], decided_by="test").needs_runs
    return win


def pair(search: Search, start: str, win: str, seed: int, value: float, base: float) -> None:
    """The two runs of one further seed, undecided."""
    search.ended(f"again-{seed}", win, None, value, seed=seed, of="h-1")
    search.ended(f"base-{seed}", start, None, base, seed=seed, of="baseline-t-1")


# ── what is missing ─────────────────────────────────────────────────────────────────────────


def test_a_win_moves_nothing_before_it_was_run_again(search: Search, win: str, start: str) -> None:
    wins = [needed(search, "h-1")]
    assert "run-experiment --replicate h-1" in wins[0].error.hint
    assert search.project.reference() == start
    assert search.past().of("h-1") is None
    assert missing(search, "h-1") == [
        ("h-1", 43), ("baseline-t-1", 43), ("h-1", 44), ("baseline-t-1", 44),
    ]  # fmt: skip
    assert settle(search.project, decided_by="test") == Settlement(needs_runs=wins)


@pytest.mark.parametrize("names", [["h-1"], None])
def test_pairs_that_have_ended_are_decided_before_the_win_and_serve_the_next_change(
    search: Search, win: str, start: str, names: list[str] | None
) -> None:
    pair(search, start, win, 43, 1.42, 1.5)
    pair(search, start, win, 44, 1.41, 1.5)
    settlement = settle(search.project, names, decided_by="test")
    *replicates, decision = settlement.decisions
    assert settlement.undecided == {}
    assert {one.decision_status for one in replicates} == {"replicate"}
    assert (decision.experiment_id, decision.decision_status) == ("h-1", "keep")
    assert decision.confirmation == "confirmed" and "2 further pairs" in decision.detail
    assert decision.improvement == pytest.approx((0.08 + 0.09) / 2)
    assert search.project.reference() == win
    search.ended("h-2", search.change(win, "A = 2\n"), win, 1.3)
    assert missing(search, "h-2") == [("h-2", 43), ("h-2", 44)]


def test_a_lucky_seed_is_not_kept_and_the_runs_of_its_base_are_not_made_again(
    search: Search, win: str, start: str
) -> None:
    pair(search, start, win, 43, 1.51, 1.5)
    pair(search, start, win, 44, 1.49, 1.5)
    decision = search.settled("h-1")
    assert (decision.decision_status, decision.reason) == ("discard", "not_confirmed")
    assert decision.confirmation == "refuted"
    assert search.project.reference() == start
    search.ended("h-2", search.change(start, "B = 1\n"), start, 1.4)
    assert missing(search, "h-2") == [("h-2", 43), ("h-2", 44)]


def test_a_win_at_a_seed_of_its_own_is_confirmed_at_those_that_follow(
    search: Search, start: str
) -> None:
    search.ended("base-7", start, None, 1.5, seed=7, of="baseline-t-1")
    search.settled("base-7")
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.4, seed=7)
    assert [seed for _, seed in missing(search, "h-1")] == [8, 8, 9, 9]


# ── what counts as a pair ───────────────────────────────────────────────────────────────────


def test_a_replicate_is_taken_for_nothing_else(search: Search, win: str, start: str) -> None:
    search.ended("again-43", win, None, 0.5, seed=43, of="h-1")
    decision = search.settled("again-43")
    assert (decision.decision_status, decision.base_commit) == ("replicate", None)
    past = search.past()
    assert past.best_value(PLATFORM, "minimize") == 1.5
    assert past.anchor(PLATFORM, 42) == 1.5
    assert [one.experiment_id for one in past.keeps(PLATFORM)] == ["baseline-t-1"]
    search.ended("h-2", search.change(start, "B = 1\n"), start, 1.6)
    assert search.settled("h-2").reference_value == 1.5
    assert search.project.reference() == start


@pytest.mark.parametrize("changes", [{"platform": "another cpu"}, {"seed": 99}])
def test_a_run_elsewhere_is_no_pair(
    search: Search, win: str, start: str, changes: dict[str, object]
) -> None:
    search.ended("again-43", win, None, 1.4, of="h-1", **{"seed": 43, **changes})  # type: ignore[arg-type]
    search.settled("again-43")
    assert ("h-1", 43) in missing(search, "h-1")


def test_a_change_that_fails_by_its_own_fault_is_refuted_at_once(
    search: Search, win: str, start: str
) -> None:
    search.ended("again-43", win, None, None, seed=43, of="h-1", kind="oom")
    decision = search.settled("h-1")
    assert (decision.reason, decision.confirmation) == ("not_confirmed", "refuted")
    assert "at seed 43: oom: it was oom" in decision.detail


@pytest.mark.parametrize("kind", ["infra", "contended"])
def test_a_run_that_was_lost_is_run_again_under_its_own_hypothesis(
    search: Search, win: str, start: str, kind: FailureKind
) -> None:
    search.ended("again-43", win, None, None, seed=43, of="h-1", kind=kind)
    assert search.settled("again-43").requeue
    again = needed(search, "h-1").runs[0]
    assert (again.replicates, again.seed) == ("h-1", 43)
    assert again.hypothesis_id == "of-again-43"


def test_a_limit_that_a_replicate_breaks_discards_the_change(search: Search, start: str) -> None:
    limited = CAREFUL.model_copy(update={"constraints": {"peak_vram_mb": Constraint(hard=100.0)}})
    win = search.change(start, "A = 1\n")
    search.ended("h-1", win, start, 1.4, memory=50.0, task=limited)
    search.ended("again-43", win, None, 1.4, seed=43, of="h-1", memory=101.0, task=limited)
    decision = search.settled("h-1")
    assert (decision.decision_status, decision.reason) == ("discard", "constraint")
    assert decision.confirmation == "refuted"
    assert "peak_vram_mb 101 is over its hard limit 100" in decision.detail


def test_a_seed_at_which_the_base_fails_is_passed_over(
    search: Search, win: str, start: str
) -> None:
    search.ended("base-43", start, None, None, seed=43, of="baseline-t-1", kind="nan")
    search.settled("base-43")
    assert [seed for _, seed in missing(search, "h-1")] == [44, 44, 45, 45]
    for seed in (44, 45, 46):
        name = f"base-{seed}"
        search.ended(name, start, None, None, seed=seed, of="baseline-t-1", kind="nan")
        search.settled(name)
    with pytest.raises(SettleError, match="its base fails at too many seeds"):
        search.settled("h-1")


def test_a_win_that_the_engine_did_not_run_stays_provisional(search: Search, start: str) -> None:
    """It cannot be run again in the way that somebody ran it."""
    by_hand = Search(search.project)
    assert by_hand.decided("h-1", search.change(start, "A = 1\n"), start, 1.4).confirmation == (
        "provisional"
    )


# ── meanwhile ───────────────────────────────────────────────────────────────────────────────


def test_nothing_more_is_run_once_the_reference_has_moved(
    search: Search, win: str, start: str
) -> None:
    search.ended("again-43", win, None, 1.4, seed=43, of="h-1")
    other = search.change(start, "B = 1\n")
    search.ended("h-2", other, start, 1.3)
    search.by_hand("h-2", "keep")
    decision = search.settled("h-1")
    assert (decision.reason, decision.requeue) == ("stale_base", True)


@pytest.mark.parametrize(("status", "moved"), [("keep", True), ("discard", False)])
def test_a_person_need_not_wait_for_replicates(
    search: Search, win: str, start: str, status: str, moved: bool
) -> None:
    assert search.by_hand("h-1", status).reason == "by_hand"
    assert search.project.reference() == (win if moved else start)


def test_two_wins_on_one_base_do_not_both_become_the_reference(
    search: Search, win: str, start: str
) -> None:
    other = search.change(start, "B = 1\n")
    search.ended("h-2", other, start, 1.4)
    pair(search, start, win, 43, 1.42, 1.5)
    pair(search, start, win, 44, 1.41, 1.5)
    for seed in (43, 44):
        search.ended(f"more-{seed}", other, None, 1.4, seed=seed, of="h-2")
    settlement = settle(search.project, decided_by="test")
    assert settlement.undecided == {}
    reasons = {one.experiment_id: one.reason for one in settlement.decisions}
    assert (reasons["h-1"], reasons["h-2"]) == ("improved", "stale_base")
    assert search.project.reference() == win
