"""What a proposer is told is what there is: every run with all its settings, nothing twice."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from autohypothesis.engine.code_hash import artifact_hashes
from autohypothesis.engine.project import Project, reference_ref
from autohypothesis.fleet.observer import search_state
from autohypothesis.fleet.observer.search_state import (
    ExperimentIndex,
    Reference,
    SearchState,
)
from autohypothesis.fleet.single_loop import LoopSession
from autohypothesis.fleet.sync import sync
from autohypothesis.records import jsonl
from autohypothesis.records.chain import DecisionChain
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.history import DecisionHistory, LiveHistory
from autohypothesis.records.layout import Layout
from autohypothesis.schema import (
    Brief,
    Decision,
    Hypothesis,
    Metadata,
    Plan,
    PlannedHypothesis,
    Proposal,
    RunIdentity,
    Runtime,
    Steering,
    now,
)
from tests.fleet.observing import Hands, Listed, idea, members, observer, turns
from tests.fleet.observing import calm as calm


def append(layout: Layout, record: Decision) -> None:
    DecisionChain(Repository(layout.root), layout).append(record)


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


def test_an_edit_of_the_code_is_told_from_the_reference_wherever_the_search_is_described(
    fleet_project: Project,
) -> None:
    def patch(title: str, old: str, new: str) -> Proposal:
        base = fleet_project.reference()
        made = commit_of(fleet_project, {old: new})
        return Proposal(title=title, patch=fleet_project.repository.diff(base, made))

    edit = patch("a fifth", "RATE / 10", "RATE / 100")
    value = patch("by hand", "RATE = 1.0", "RATE = 0.5")
    hand, listed = Hands(fleet_project, "w0"), Listed([[edit], [value], [idea(WIDTH=9)]])
    watched = observer(fleet_project, listed)
    turns(watched, lambda: watched.history.counted() == 4, hand)
    told = state_of(fleet_project).situation(watched.queue)
    trials = {trial.title: trial for trial in told.trials}
    same = {title: trial.code_hash == told.code_hash for title, trial in trials.items()}
    assert same == {"baseline": True, "a fifth": False, "by hand": True, "WIDTH 9": True}
    assert len({trial.diff_hash for trial in trials.values()}) == 4
    assert trials["WIDTH 9"].description == "to see"
    sync(fleet_project.layout)
    watched.last_turn()
    known = read_json(fleet_project.layout.knowledge_base)["experiment_history"]
    changes = {entry["title"]: (entry["change"], entry["same_code"]) for entry in known}
    assert changes["a fifth"] == (
        "an edit of the code (1 file changed, 1 insertion(+), 1 deletion(-))",
        False,
    )
    assert changes["by hand"] == ("RATE = 0.5", True)
    page = fleet_project.layout.search_model.read_text()
    rates = re.findall(r"^\| RATE \| (\d)", page, re.MULTILINE)
    assert rates == ["1"] and "## Edits of the code" in page
    brief = Brief.model_validate(read_json(fleet_project.layout.brief))
    means = {finding.title: finding.implication for finding in brief.findings}
    assert "an edit of the code (1 file" in means["a fifth"] and "edit" not in means["WIDTH 9"]
    queued = {entry.title: entry.change for entry in brief.hypothesis_queue}
    assert queued["a fifth"] == "a patch" and queued["WIDTH 9"] == ""


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
    append(layout, decision("h-t-0001-1", requeue=True))
    history.refresh()
    append(layout, decision("h-t-0001-2"))
    append(layout, decision("h-x-0001-1", tag="x"))
    history.refresh()
    assert list(history.latest) == ["h-t-0001-1", "h-t-0001-2"]
    assert not history.refresh()


def test_a_record_that_was_written_twice_counts_once(layout: Layout) -> None:
    history, first = LiveHistory(layout, "t"), decision("h-t-0001-1")
    for each in (first, decision("h-t-0002-1"), first):
        append(layout, each)
    history.refresh()
    assert list(history.latest) == list(DecisionHistory.of_tag(layout, "t").latest)
    assert len(history.decisions) == 2


def test_what_is_overruled_in_a_session_of_a_loop_takes_no_place_of_its_own(
    layout: Layout,
) -> None:
    history = LiveHistory(layout, "t")
    overruled = decision("h-t-0001-1").model_copy(update={"decision_id": "d-3"})
    for each in (decision("h-t-0001-1"), decision("h-t-0002-1"), overruled):
        append(layout, each)
    history.refresh()
    session = LoopSession(tag="t", first=1, begun=now())
    assert [each.experiment_id for each in session.decisions(history)] == ["h-t-0002-1"]


def test_decisions_that_were_restored_are_read_from_the_start(layout: Layout) -> None:
    history = LiveHistory(layout, "t")
    for number in range(5):
        append(layout, decision(f"h-t-000{number}-1"))
    history.refresh()
    layout.decisions.unlink()
    append(layout, decision("h-t-0009-1"))
    history.refresh()
    assert list(history.latest) == ["h-t-0009-1"]


def test_a_line_that_is_no_decision_costs_itself(layout: Layout) -> None:
    jsonl.append(layout.decisions, {"hello": 1})
    append(layout, decision("h-t-0001-1"))
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


def test_a_successor_knows_the_code_of_a_retry_that_stands_on_a_later_commit(
    fleet_project: Project,
) -> None:
    """h-t-0001-2 was run on the commit of h-t-0002-1, and is read before it.

    Their records are of an older version: nothing in them says what their code was.
    """
    base = fleet_project.reference()
    third = commit_of(fleet_project, {"WIDTH = 8": "WIDTH = 9", "SLEEP = 0.0": "SLEEP = 0.1"})
    _begun(fleet_project, "baseline-t-1", commit=base)
    first = commit_of(fleet_project, {"WIDTH = 8": "WIDTH = 9"})
    second = commit_of(fleet_project, {"WIDTH = 8": "WIDTH = 9", "RATE = 1.0": "RATE = 2.0"})
    _begun(fleet_project, "h-t-0001-2", commit=second, parent=first, RATE=2.0, WIDTH=9)
    _begun(fleet_project, "h-t-0002-1", commit=first, parent=base, WIDTH=9)
    _begun(fleet_project, "h-t-0003-1", commit=third, parent=base, patch="x", SLEEP=0.1, WIDTH=9)
    _begun(fleet_project, "h-t-0004-1", commit="unknown to git", parent=base, patch="x")
    state = state_of(fleet_project)
    codes = {name: state.index.code_of(run) for name, run in state.index.runs.items()}
    assert len(set(codes.values()) - {""}) == 1
    assert codes["h-t-0004-1"] == ""
    assert state.reference.code_hash == codes["baseline-t-1"] != ""
    assert state.earlier_run(idea(WIDTH=9.0)) == "h-t-0002-1"
    assert state.earlier_run(idea(SLEEP=0.1, WIDTH=9)) == "h-t-0003-1"


def test_of_old_records_git_is_asked_about_edits_alone_and_their_code_is_right(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands would hold up the observer for minutes: to read a script takes some 20 ms."""
    asked: list[str] = []

    def counted(repository: Any, task: Any, commit: str, settings: Any) -> Any:
        asked.append(commit)
        return artifact_hashes(repository, task, commit, settings)

    commit, chain = fleet_project.reference(), ["baseline-t-1"]
    _begun(fleet_project, "baseline-t-1", commit=commit)
    for number in range(2, 6):  # each is kept, so that the next is made to it
        words, last = {"RATE = 1.0": f"RATE = {number}.0"}, commit
        commit = commit_of(fleet_project, words)
        chain.append(f"h-t-{number:04d}-1")
        _begun(fleet_project, chain[-1], commit=commit, parent=last, RATE=float(number))
    edited = commit_of(fleet_project, {**words, "RATE / 10": "RATE / 100"})
    _begun(fleet_project, "h-t-0900-1", commit=edited, parent=commit, patch="x", RATE=5.0)
    monkeypatch.setattr(search_state, "artifact_hashes", counted)
    index = state_of(fleet_project).index
    asked.clear()
    codes = [index.code_of(index.runs[name]) for name in (*reversed(chain), "h-t-0900-1")]
    assert asked == [edited] and len(set(codes)) == 2 and codes[-1] not in codes[:-1]
    run = index.runs[chain[-1]]
    made = artifact_hashes(fleet_project.repository, fleet_project.task, commit, run.settings)
    assert codes[0] == made.code


@pytest.mark.parametrize("way", ["patch", "artifacts_from", "config_overrides"])
def test_what_was_run_is_refused_in_whichever_way_it_is_proposed(
    fleet_project: Project, way: str
) -> None:
    base, words = fleet_project.reference(), {"RATE = 1.0": "RATE = 2.0"}
    made = commit_of(fleet_project, words)
    _begun(fleet_project, "baseline-t-1", commit=base)
    _begun(fleet_project, "h-t-0001-1", commit=made, parent=base, hashed=True, RATE=2.0)
    changes = {
        "patch": fleet_project.repository.diff(base, made),
        "artifacts_from": made,
        "config_overrides": {"rate": 2},
    }
    proposal = Proposal(title="again", **{way: changes[way]})
    state = state_of(fleet_project)
    assert "it was run before, as h-t-0001-1" in state.reason_against(proposal, [])
    replicate = proposal.model_copy(update={"replicates": "h-t-0001-1"})
    assert not state.reason_against(replicate, [])
    assert state.earlier_run(proposal, besides="h-t-0001") is None
    other = commit_of(fleet_project, {**words, "WIDTH = 8": "WIDTH = 8  # an edit"})
    edited = Proposal(title="other code", artifacts_from=other)
    assert not state.reason_against(edited, [])
    waiting = Hypothesis(hypothesis_id="h-t-0009", tag="t", **edited.model_dump())
    patch = Proposal(title="as a patch", patch=fleet_project.repository.diff(base, other))
    assert "in the queue already, as h-t-0009" in state.reason_against(patch, [waiting])


def test_a_value_that_no_run_can_have_is_refused_before_it_waits(fleet_project: Project) -> None:
    """What only its worker refuses would be proposed, and refused, without end."""
    _begun(fleet_project, "baseline-t-1", commit=fleet_project.reference(), hashed=True, WIDTH=8)
    state = state_of(fleet_project)
    assert "and 'wide' is text" in state.reason_against(idea(WIDTH="wide"), [])
    assert "WIDTH cannot be inf" in state.reason_against(idea(WIDTH=float("inf")), [])
    assert not state.reason_against(idea(WIDTH=9.5), [])


def test_a_value_that_only_the_run_knew_is_known_as_long_as_its_text_is_the_same(
    fleet_project: Project,
) -> None:
    words, base = {"WIDTH = 8": "WIDTH = int('8')"}, fleet_project.reference()
    commit = commit_of(fleet_project, words)
    assert fleet_project.repository.compare_and_swap(reference_ref("t"), commit, base)
    _begun(fleet_project, "baseline-t-1", commit=commit, hashed=True)
    wider = commit_of(fleet_project, {"int('8')": "9"})
    _begun(fleet_project, "h-t-0001-1", commit=wider, parent=commit, hashed=True, WIDTH=9)
    state = state_of(fleet_project)
    assert "as h-t-0001-1" in state.reason_against(idea(WIDTH=9.0), [])

    def against(new: str) -> str:
        made = commit_of(fleet_project, {"int('8')": new})
        return state.reason_against(Proposal(title=new, artifacts_from=made), [])

    assert "as h-t-0001-1" in against("(9)"), "another spelling of the same value"
    assert "as baseline-t-1" in against("8")
    assert against("int('9')") == "", "nobody has run that expression"
    assert against("int(") == "", "the worker refuses what does not parse"


def test_a_win_that_comes_back_is_no_duplicate_of_its_own_replicates(
    fleet_project: Project,
) -> None:
    """It was voided for contention after they had run."""
    _run_of_rate_2(fleet_project, "h-t-0001-1")
    _run_of_rate_2(fleet_project, "h-t-0002-1", replicates="h-t-0001-1")
    state = state_of(fleet_project)
    assert state.earlier_run(idea(RATE=2.0), besides="h-t-0001") is None
    assert state.earlier_run(idea(RATE=2.0)) == "h-t-0001-1"


def test_a_run_that_was_lost_or_cannot_be_compared_is_no_earlier_run_of_its_idea(
    fleet_project: Project,
) -> None:
    layout, base = fleet_project.layout, fleet_project.reference()
    _run_of_rate_2(fleet_project, "h-t-0001-1")
    lost = decision("h-t-0001-1", decision_status="crash", reason="infra", requeue=True)
    append(layout, lost)
    assert state_of(fleet_project).reason_against(idea(RATE=2.0), []) == ""
    own_fault = lost.model_copy(update={"reason": "code_error", "requeue": False})
    append(layout, own_fault.model_copy(update={"decision_id": "d-2"}))
    assert "crash, code_error" in state_of(fleet_project).reason_against(idea(RATE=2.0), [])
    _begun(fleet_project, "baseline-t-1", commit=base, platform="another device")
    elsewhere = decision("baseline-t-1", commit=base, decision_status="keep", metric_value=1.0)
    append(layout, elsewhere)
    assert state_of(fleet_project).reason_against(idea(RATE=2.0), []) == ""


def _run_of_rate_2(project: Project, name: str, replicates: str | None = None) -> None:
    commit = commit_of(project, {"RATE = 1.0": "RATE = 2.0"})
    _begun(
        project, name, commit=commit, parent=project.reference(), hashed=True,
        replicates=replicates, RATE=2.0,
    )  # fmt: skip


def commit_of(project: Project, words: dict[str, str]) -> str:
    """Commit the reference's script with other words in it."""
    repository, base = project.repository, project.reference()
    text = repository.show_file(base, "train.py").decode()
    for old, new in words.items():
        text = text.replace(old, new)
    return repository.commit_tree(
        repository.tree_with(base, {"train.py": text.encode()}), [base], "x"
    )


def _begun(
    project: Project, name: str, *, commit: str, parent: str | None = None, patch: str = "",
    hashed: bool = False, replicates: str | None = None, platform: str = "p", **overrides: Any,
) -> None:  # fmt: skip
    """An experiment as far as its folder tells which change it is, on which commit."""
    run, hypothesis = project.layout.run(name), name.rpartition("-")[0]
    run.folder.mkdir(parents=True)
    settings = {"rate": 1.0, "width": 8, "sleep": 0.0, "mode": "train", "gate": ""}
    settings |= {key.lower(): value for key, value in overrides.items()}
    planned = PlannedHypothesis(
        hypothesis_id=hypothesis, patch=patch or None, config_overrides={} if patch else overrides
    )
    plan = Plan(
        experiment_id=name, created_at=now(), based_on_commit=parent or commit, tag="t",
        hypothesis=planned, replicates=replicates,
    )  # fmt: skip
    write_json(project.layout.plan(name), plan)
    runtime = Runtime(commit=commit, parent_commit=parent, diff_hash="d", platform_key=platform)
    if hashed:
        found = artifact_hashes(project.repository, project.task, commit, settings)
        runtime.tree_hash, runtime.code_hash = found.tree, found.code
    identity = RunIdentity(hypothesis_id=hypothesis, replicates=replicates)
    write_json(run.metadata, Metadata(recorded_at=now(), run=identity, runtime=runtime))
    write_json(run.config, settings)


def state_of(project: Project) -> SearchState:
    history = LiveHistory(project.layout, "t")
    history.refresh()
    index = ExperimentIndex(project, history)
    index.refresh()
    return SearchState(index, Reference.of(index, project.reference()), Steering())
