"""What a proposer is told is what there is: every run with all its settings, nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.fleet.observer import search_state
from autohypothesis.fleet.observer.search_state import (
    ExperimentIndex,
    IndexedRun,
    Reference,
    SearchState,
    change_key,
)
from autohypothesis.fleet.single_loop import LoopSession
from autohypothesis.records import bundles, jsonl
from autohypothesis.records.files import write_json
from autohypothesis.records.history import DecisionHistory, LiveHistory
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Decision, Plan, PlannedHypothesis, Proposal, Steering, now
from tests.fleet.observing import Hands, Listed, idea, members, observer, turns
from tests.fleet.observing import calm as calm


def decision(experiment_id: str, **more: Any) -> Decision:
    given = {"decision_status": "discard", "tag": "t", **more}
    return Decision(
        decision_id=f"d-{experiment_id}", recorded_at=now(), experiment_id=experiment_id, **given
    )


def test_a_proposer_sees_every_run_with_all_its_settings_running_ones_included(
    fleet_project: Project,
) -> None:
    hands = [Hands(fleet_project, "w0"), Hands(fleet_project, "w1")]
    listed = Listed([[idea(RATE=2.0)], [idea(MODE="crash")], []])
    watched = observer(fleet_project, listed)
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: watched.history.counted() >= 3, *hands)
    watched.queue.add(idea(RATE=5.0), proposer="ada")
    turns(watched, lambda: watched.queue.dispatched())
    worker = next(iter(watched.queue.dispatched()))
    hand = next(one for one in hands if one.name == worker)
    one = hand.claim(watched)
    assert one is not None
    handle = hand.begin(one)
    before = len(listed.told)
    watched.pool.reset_after_decision()
    turns(watched, lambda: len(listed.told) > before)
    told = listed.told[-1]
    assert [(trial.settings["RATE"], trial.settings["MODE"], trial.status) for trial in told.trials
            if trial.replicates is None] == [
        (1.0, "train", "keep"), (2.0, "train", "keep"), (2.0, "crash", "crash"),
        (5.0, "train", "running"),
    ]  # fmt: skip
    assert [trial.value for trial in told.trials if trial.replicates is None] == [
        1.4, 1.3, None, None,
    ]  # fmt: skip
    assert told.reference["RATE"] == 2.0 and "RATE = 2.0" in told.sources["train.py"]
    assert (told.metric, told.direction, told.tag) == ("val_bpb", "minimize", "t")
    assert [each.title for each in told.open] == ["RATE 5.0"]
    assert "baseline" in {each.title for each in told.closed}
    assert told.brief.objective
    told.closed[0].title = "edited by a proposer"
    assert watched.queue.done()[0].title == "baseline", "a proposer has copies"
    hand.end(watched, one, handle)


def test_a_run_is_read_once_however_often_a_proposer_asks(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, listed = Hands(fleet_project, "w0"), Listed([[idea(RATE=2.0)]])
    watched = observer(fleet_project, listed)
    turns(watched, lambda: watched.history.counted() == 2, hand)
    monkeypatch.setattr(search_state, "read_json", None)
    before = len(listed.told)
    watched.pool.reset_after_decision()
    turns(watched, lambda: len(listed.told) > before)
    assert len(listed.told[-1].trials) == 2


def test_another_tags_runs_are_not_told(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hand)
    other = fleet_project.with_tag("other")
    members(other, "w0")
    history = LiveHistory(other.layout, "other")
    index = ExperimentIndex(other, history)
    history.refresh()
    index.refresh()
    assert index.runs == {} and not history.has_reference() and not history.undecided


def test_a_live_history_reads_only_what_was_appended(layout: Layout) -> None:
    history = LiveHistory(layout, "t")
    assert not history.refresh() or not history.latest
    bundles.append_decision(layout, decision("h-t-0001-1", requeue=True))
    history.refresh()
    bundles.append_decision(layout, decision("h-t-0001-2"))
    bundles.append_decision(layout, decision("h-x-0001-1", tag="x"))
    history.refresh()
    assert list(history.latest) == ["h-t-0001-1", "h-t-0001-2"]
    assert not history.refresh()


def test_a_record_that_was_written_twice_counts_once(layout: Layout) -> None:
    history, first = LiveHistory(layout, "t"), decision("h-t-0001-1")
    for each in (first, decision("h-t-0002-1"), first):
        bundles.append_decision(layout, each)
    history.refresh()
    assert list(history.latest) == list(DecisionHistory.of_tag(layout, "t").latest)
    assert len(history.decisions) == 2


def test_what_is_overruled_in_a_session_of_a_loop_takes_no_place_of_its_own(
    layout: Layout,
) -> None:
    history = LiveHistory(layout, "t")
    overruled = decision("h-t-0001-1").model_copy(update={"decision_id": "d-3"})
    for each in (decision("h-t-0001-1"), decision("h-t-0002-1"), overruled):
        bundles.append_decision(layout, each)
    history.refresh()
    session = LoopSession(tag="t", first=1, begun=now())
    assert [each.experiment_id for each in session.decisions(history)] == ["h-t-0002-1"]


def test_decisions_that_were_restored_are_read_from_the_start(layout: Layout) -> None:
    history = LiveHistory(layout, "t")
    for number in range(5):
        bundles.append_decision(layout, decision(f"h-t-000{number}-1"))
    history.refresh()
    layout.decisions.unlink()
    bundles.append_decision(layout, decision("h-t-0009-1"))
    history.refresh()
    assert list(history.latest) == ["h-t-0009-1"]


def test_a_line_that_is_no_decision_costs_itself(layout: Layout) -> None:
    jsonl.append(layout.decisions, {"hello": 1})
    bundles.append_decision(layout, decision("h-t-0001-1"))
    layout.decisions.write_bytes(b"\xff{broken\n" + layout.decisions.read_bytes())
    history = LiveHistory(layout, "t")
    history.refresh()
    assert list(history.latest) == ["h-t-0001-1"]


def test_attempts_are_in_their_order_and_not_in_that_of_their_names(layout: Layout) -> None:
    history = LiveHistory(layout, "t")
    for number in (10, 9, 2):
        write_json(layout.plan(f"h-t-0001-{number}"), {})
    layout.plans.joinpath("not an id.json").write_text("{}")
    history.refresh()
    assert history.attempts("h-t-0001") == ["h-t-0001-2", "h-t-0001-9", "h-t-0001-10"]
    assert history.decision_about("h-t-0001") is None


def test_only_what_settle_has_not_seen_as_it_is_now_is_fresh(layout: Layout) -> None:
    history = LiveHistory(layout, "t")
    result = layout.run("h-t-0001-1").result
    result.parent.mkdir(parents=True)
    history.refresh()
    assert history.fresh() == []
    write_json(result, {"a": 1})
    assert history.fresh() == ["h-t-0001-1"]
    history.seen(history.results())
    assert history.fresh() == [] and history.ended() == ["h-t-0001-1"]
    write_json(result, {"mended": True})
    assert history.fresh() == ["h-t-0001-1"]
    shutil.rmtree(result.parent)
    history.refresh()
    assert history.fresh() == []


def test_a_patch_is_known_again_wherever_in_the_file_it_lands() -> None:
    patch = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+b\n"
    moved = "index 1..2 100644\n" + patch.replace("@@ -1,2 +1,2 @@", "@@ -9,2 +9,2 @@ def f():")
    spaced, other = patch.replace("+b", "+b  "), patch.replace("+b", "+c")
    keys = {change_key(Proposal(title="x", patch=text)) for text in (patch, moved, spaced, other)}
    assert len(keys) == 2
    assert change_key(Proposal(title="x")) == ""


def test_a_win_that_comes_back_is_no_duplicate_of_its_own_replicates() -> None:
    """It was voided for contention after they had run."""
    first, again = run_of_rate_2("h-t-0001"), run_of_rate_2("h-t-0002", replicates="h-t-0001-1")
    state = state_with(again, first)
    assert state.earlier_run(idea(RATE=2.0), besides="h-t-0001") is None
    assert state.earlier_run(idea(RATE=2.0)) is first


def test_a_run_that_was_lost_is_no_earlier_run_of_its_idea() -> None:
    run = run_of_rate_2("h-t-0001")
    lost = decision("h-t-0001-1", decision_status="crash", reason="infra", requeue=True)
    assert state_with(run, latest=[lost]).reason_against(idea(RATE=2.0), []) == ""
    own_fault = lost.model_copy(update={"reason": "code_error", "requeue": False})
    assert "it was run before" in state_with(run, latest=[own_fault]).reason_against(
        idea(RATE=2.0), []
    )


def run_of_rate_2(name: str, replicates: str | None = None) -> IndexedRun:
    plan = Plan(
        experiment_id=f"{name}-1", created_at=now(), based_on_commit="c0", replicates=replicates,
        hypothesis=PlannedHypothesis(hypothesis_id=name, config_overrides={"RATE": 2.0}),
    )  # fmt: skip
    return IndexedRun(plan, settings={"rate": 2.0}, commit="c1", key="")


def state_with(*runs: IndexedRun, latest: Sequence[Decision] = ()) -> SearchState:
    stand_in = SimpleNamespace(
        runs={run.plan.experiment_id: run for run in runs},
        code_ancestor=lambda commit: "the same",
        history=DecisionHistory(latest),
    )
    reference = Reference("c0", {}, {"RATE": 1.0}, names=("RATE",))
    return SearchState(cast(ExperimentIndex, stand_in), reference, Steering())
