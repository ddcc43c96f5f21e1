"""References that went astray: overruled keeps, stale baselines, other seeds, one bad bundle."""

from __future__ import annotations

import shutil

import pytest

from autohypothesis.engine import decide as settling
from autohypothesis.engine import weights
from autohypothesis.engine.decide import repair, settle
from autohypothesis.engine.evidence import Case
from autohypothesis.engine.reference import reference_ref
from autohypothesis.engine.task import Constraint, Objective, ScorerConfig
from autohypothesis.engine.task_file import foreign_task
from autohypothesis.errors import SettleError, UnwritableError
from autohypothesis.records import bundles
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.history import DecisionHistory
from autohypothesis.schema import Result
from tests.engine.searching import PLATFORM, Search

# ── overruled keeps ─────────────────────────────────────────────────────────────────────────


def killed(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_an_overruled_keep_gives_the_reference_back(
    search: Search, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = search.change(start, "A = 1\n")
    assert search.decided("h-1", kept, start, 1.4).decision_status == "keep"
    assert search.project.reference() == kept
    overruled = search.by_hand("h-1", "discard")
    assert (overruled.reference_before, overruled.reference_after) == (kept, start)
    repair(search.project)
    assert search.project.reference() == start, "its move is not made again"
    assert search.by_hand("h-1", "keep").reference_after == kept
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Repository, "move_refs", killed)
        search.by_hand("h-1", "discard")
    assert search.project.reference() == kept
    repair(search.project)
    assert search.project.reference() == start, "what a kill cut off is finished"
    search.by_hand("baseline-t-1", "discard")
    assert search.project.reference() == start


def test_an_overruled_keep_is_compared_with_no_more(search: Search, start: str) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.0)
    search.by_hand("h-1", "discard")
    past = search.past()
    assert past.value_of(kept, PLATFORM, 42) is None
    assert past.best_value(PLATFORM, "minimize") == past.anchor(PLATFORM, 42) == 1.5
    again = search.decided("h-2", search.change(start, "B = 1\n"), start, 1.3)
    assert (again.reason, again.reference_value) == ("improved", 1.5)
    assert again.delta == pytest.approx(-0.2)


def test_a_keep_that_another_was_built_on_is_not_pulled_away_under_it(
    search: Search, start: str
) -> None:
    first = search.change(start, "A = 1\n")
    second = search.change(first, "A = 2\n")
    search.decided("h-1", first, start, 1.4)
    search.decided("h-2", second, first, 1.3)
    with pytest.raises(SettleError, match="h-2") as refused:
        search.by_hand("h-1", "crash")
    assert "decide h-2 discard" in refused.value.hint
    assert search.project.reference() == second
    search.by_hand("h-2", "discard")
    search.by_hand("h-1", "discard")
    assert search.project.reference() == start


# ── baselines ───────────────────────────────────────────────────────────────────────────────


def test_a_keep_that_a_person_committed_on_is_not_overruled_in_silence(
    search: Search, start: str
) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    own = search.change(kept, "A = 1\nB = 1\n")
    assert search.project.repository.compare_and_swap(reference_ref("t"), own, kept)
    with pytest.raises(SettleError, match="built on h-1") as refused:
        search.by_hand("h-1", "discard")
    assert f"git revert {kept[:12]}" in refused.value.hint
    assert search.past().latest["h-1"].decision_status == "keep"


def test_a_reference_that_a_person_reset_stays_where_it_is(search: Search, start: str) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    assert search.project.repository.compare_and_swap(reference_ref("t"), start, kept)
    repair(search.project)
    assert search.project.reference() == start
    worse = search.decided("h-2", search.change(start, "B = 1\n"), start, 1.6)
    assert (worse.reason, worse.reference_before) == ("worse", start)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_stale_baseline_does_not_take_the_reference_back(
    search: Search, start: str, by_hand: bool
) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    search.ended("baseline-t-2", start, None, 1.7, platform="another cpu")
    if by_hand:
        decision = search.by_hand("baseline-t-2", "keep")
    else:
        decision = search.settled("baseline-t-2")
        assert decision.reason == "baseline"
    assert decision.decision_status == "keep"
    assert decision.reference_after == decision.reference_before == kept
    assert search.project.reference() == kept
    past = search.past()
    assert past.value_of(start, "another cpu", 42) == 1.7
    assert past.anchor("another cpu", 42) is None


# ── seeds ───────────────────────────────────────────────────────────────────────────────────


def test_a_lucky_seed_is_not_compared_with_another_one(search: Search, start: str) -> None:
    change = search.change(start, "A = 1\n")
    search.ended("h-1", change, start, 1.45, seed=7)
    with pytest.raises(SettleError) as refused:
        search.settled("h-1")
    command = "python orchestrator.py run-experiment --baseline --seed 7 --decide"
    assert command in refused.value.hint
    replicate = search.decided("baseline-t-2", start, None, 1.4, seed=7)
    assert (replicate.decision_status, replicate.seed) == ("replicate", 7)
    assert search.project.reference() == start
    decision = search.settled("h-1")
    assert (decision.reason, decision.reference_value) == ("worse", 1.4)
    same_seed = search.decided("h-2", search.change(start, "B = 1\n"), start, 1.45)
    assert (same_seed.reason, same_seed.reference_value) == ("improved", 1.5)


def test_a_change_is_never_compared_with_a_reference_that_came_after_its_base(
    search: Search, start: str
) -> None:
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.45, seed=7)
    kept = search.change(start, "B = 1\n")
    search.decided("h-2", kept, start, 1.3)
    search.decided("baseline-t-2", kept, None, 1.3, seed=7)
    decision = search.settled("h-1")
    assert (decision.reason, decision.requeue, decision.improvement) == ("stale_base", True, None)
    assert "its base has no val_bpb at seed 7" in decision.detail


# ── whose task, whose word ──────────────────────────────────────────────────────────────────


def test_a_run_is_not_decided_by_another_task_than_its_own(search: Search, start: str) -> None:
    coarse = foreign_task().model_copy(update={"objective": Objective(min_delta=0.5)})
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.4, task=coarse)
    decision = search.settled("h-1")
    assert decision.reason == "within_noise"


def test_a_number_that_nobody_vouches_for_moves_no_reference(search: Search, start: str) -> None:
    scored = ScorerConfig(type="model", evaluator="prepare.py")
    task = foreign_task().model_copy(update={"scorer": scored})
    change = search.change(start, "A = 1\n")
    search.ended("h-1", change, start, 1.0, task=task, attested=False)
    decision = search.settled("h-1")
    assert (decision.decision_status, decision.reason) == ("discard", "unattested")
    assert "run-experiment" in decision.detail
    assert search.project.reference() == start
    assert search.by_hand("h-1", "keep").reference_after == change


# ── one bad bundle ──────────────────────────────────────────────────────────────────────────


def test_one_bad_bundle_does_not_stop_the_others(search: Search, start: str) -> None:
    for name in ("h-1", "h-2", "h-3", "h-4", "h-5", "h-7"):
        commit = search.change(start, f"A = '{name}'\n")
        search.ended(name, commit, start, 1.6)
    runs = search.project.layout.runs
    (runs / "Not an id").mkdir()
    (runs / "Not an id" / "metadata.json").write_text("{}")
    (runs / "Not an id" / "result.json").write_text("{}")
    (runs / "h-1" / "metadata.json").write_text('{"recorded_at": "yesterday"}')
    (runs / "h-2" / "result.json").write_text('{"status": "fine"}')
    (runs / "h-3" / "result.json").write_text("[")
    (runs / "h-7" / "run-spec.json").write_text("null")
    search.ended("h-6", start, start, 1.6, platform="a cpu without a baseline")
    settlement = settle(search.project, decided_by="test")
    assert [decision.experiment_id for decision in settlement.decisions] == ["h-4", "h-5"]
    why = {name: str(error) for name, error in settlement.refused.items()}
    assert set(why) == {"h-1", "h-2", "h-3", "h-6", "h-7"}
    assert "metadata.json" in why["h-1"] and "recorded_at" in why["h-1"]
    assert "result.json" in why["h-2"] and "result.json" in why["h-3"]
    assert "--baseline" in why["h-6"] and "run-spec.json" in why["h-7"]


def test_a_damaged_result_of_the_last_decision_does_not_block_the_next(
    search: Search, start: str
) -> None:
    search.decided("h-1", search.change(start, "A = 1\n"), start, 1.6)
    search.project.layout.run("h-1").result.write_text("{}")
    assert search.decided("h-2", search.change(start, "B = 1\n"), start, 1.6).reason == "worse"


def test_a_decision_whose_copy_cannot_be_written_is_a_decision_all_the_same(
    search: Search, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.6)

    def full(*_args: object) -> None:
        raise UnwritableError("no space left on device")

    monkeypatch.setattr(bundles, "write_result", full)
    settlement = settle(search.project, decided_by="test")
    assert [decision.experiment_id for decision in settlement.decisions] == ["h-1"]
    assert not settlement.refused
    assert not settle(search.project, ["h-1"], decided_by="test").refused


def test_weights_of_keeps_stay_and_of_others_the_newest_that_there_is_room_for(
    search: Search, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WEIGHTS_BYTES", 30)
    values = {"h-1": 1.2, "h-2": 1.3, "h-3": 1.3, "h-4": 1.1, "h-5": 1.3}
    for number, (name, value) in enumerate(values.items()):
        base = search.project.reference()
        search.ended(name, search.change(base, f"A = {number}\n"), base, value)
        search.project.layout.run(name).weights.write_bytes(b"ten bytes.")
        search.settled(name)
    kept = [name for name in values if search.project.layout.run(name).weights.exists()]
    assert kept == ["h-1", "h-4", "h-5"]


def test_a_decision_after_a_damaged_line_has_an_id_of_its_own(search: Search, start: str) -> None:
    search.decided("h-1", search.change(start, "A = 1\n"), start, 1.6)
    search.decided("h-2", search.change(start, "B = 1\n"), start, 1.6)
    damaged = search.by_hand("h-1", "crash")
    path = search.project.layout.decisions
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], b"{damaged\n"]))
    again = search.by_hand("h-1", "crash")
    assert again.decision_id != damaged.decision_id
    result = read_json(search.project.layout.run("h-1").result)
    assert (result["decision_status"], result["decision_id"]) == ("crash", again.decision_id)
    path.write_bytes(b"{damaged\n" + b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    last = search.by_hand("h-1", "discard")
    assert search.past().latest["h-1"].decision_id == last.decision_id


def test_overruling_an_edited_result_rests_on_what_was_decided(search: Search, start: str) -> None:
    commit = search.change(start, "A = 1\n")
    before = search.decided("h-1", commit, start, 1.6)
    run = search.project.layout.run("h-1")
    write_json(run.result, {**read_json(run.result), "metric_value": 0.1, "commit": "f" * 40})
    overruled = search.by_hand("h-1", "crash" if before.decision_status != "crash" else "discard")
    assert (overruled.metric_value, overruled.commit) == (1.6, commit)


@pytest.mark.parametrize("with_id", [False, True])
def test_a_copied_bundle_is_refused_by_name_and_the_others_are_decided(
    search: Search, start: str, with_id: bool
) -> None:
    search.decided("h-1", search.change(start, "A = 1\n"), start, 1.6)
    runs = search.project.layout.runs
    shutil.copytree(runs / "h-1", runs / "h-2")
    if with_id:
        path = search.project.layout.run("h-2").metadata
        path.write_text(path.read_text().replace('"h-1"', '"h-2"'))
    search.ended("h-3", search.change(start, "B = 1\n"), start, 1.7)
    settlement = settle(search.project, decided_by="test")
    assert [one.experiment_id for one in settlement.decisions] == ["h-3"]
    assert list(settlement.refused) == ["h-2"]
    why = str(settlement.refused["h-2"])
    assert ("names the decision" if with_id else "is of experiment 'h-1'") in why


# ── limits and disturbed runs ───────────────────────────────────────────────────────────────


def test_a_limit_from_outside_the_task_binds_as_well(search: Search, start: str) -> None:
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.0, memory=900.0)
    limits = {"peak_vram_mb": Constraint(hard=800.0)}
    (decision,) = settle(search.project, decided_by="test", limits=limits).decisions
    assert (decision.decision_status, decision.reason) == ("discard", "constraint")


def test_a_repeat_that_ends_first_is_not_the_baseline(search: Search) -> None:
    commit = search.project.reference()
    search.ended("h-1", commit, None, 1.6, of="baseline-t-1")
    search.ended("baseline-t-1", commit, None, 1.5)
    first, second = settle(search.project, decided_by="test").decisions
    assert (first.decision_status, second.reason) == ("replicate", "baseline")


def test_a_contaminated_run_is_stamped_as_no_evidence_and_comes_back(
    search: Search, start: str
) -> None:
    for number, slow in enumerate([1.0, 1.0, 1.0, 3.0]):
        name = search.ended(f"h-{number}", search.change(start, f"A = {number}\n"), start, 1.6)
        run = search.project.layout.run(name)
        result = Result.model_validate(read_json(run.result))
        times = {"contention": {"kernel_before_ms": slow, "kernel_after_ms": slow}}
        bundles.write_result(run, result.model_copy(update={"evidence": times}))
        decision = search.settled(name)
    assert (decision.decision_status, decision.reason, decision.requeue) == (
        "crash", "contended", True,
    )  # fmt: skip
    stamped = Result.model_validate(read_json(run.result))
    assert (stamped.failure_kind, stamped.metric_value) == ("contended", None)


def test_a_bundle_that_cannot_be_judged_is_refused_and_stands_in_nobodys_way(
    search: Search, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.ended("h-1", search.change(start, "A = 1\n"), start, 1.4)
    search.ended("h-2", search.change(start, "A = 2\n"), start, 1.3)
    real = settling.with_contention

    def poisoned(past: DecisionHistory, case: Case) -> Case:
        if case.metadata.run.experiment_id == "h-1":
            raise AttributeError("'str' object has no attribute 'get'")
        return real(past, case)

    monkeypatch.setattr(settling, "with_contention", poisoned)
    settlement = settle(search.project, decided_by="test")
    assert [one.experiment_id for one in settlement.decisions] == ["h-2"]
    assert list(settlement.refused) == ["h-1"]
    assert "AttributeError" in str(settlement.refused["h-1"])
