"""The observer, turn by turn, on a real repository: it decides, supplies, and survives."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from autohypothesis.engine import decide as settling
from autohypothesis.engine.project import Project
from autohypothesis.fleet.knowledge.knowledge_base import KnowledgeReport
from autohypothesis.fleet.live.presence import read_role, role_lives
from autohypothesis.fleet.observer import publishing
from autohypothesis.fleet.observer.scheduling import BaselineSchedule
from autohypothesis.fleet.proposing import Situation
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import read_json
from autohypothesis.records.history import DecisionHistory, is_lost
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.locks import hold
from autohypothesis.schema import (
    Brief,
    Decision,
    Hypothesis,
    KnowledgeBase,
    LiveSummary,
    Proposal,
    Result,
    Steering,
    now,
)
from tests.fleet.conftest import Forked
from tests.fleet.observing import (
    PAUSE_S,
    Early,
    Hands,
    Listed,
    Thinker,
    idea,
    observe,
    observer,
    turns,
)
from tests.fleet.observing import calm as calm


@dataclass
class Numbered:
    """A proposer that never runs out of rates."""

    name: str = "ideas"

    def propose(self, situation: Situation, count: int) -> list[Proposal]:
        first = len(situation.open) + len(situation.closed)
        return [idea(RATE=1.0 + number / 100) for number in range(first, first + count)]


def test_nothing_is_proposed_before_the_baseline_has_begun(fleet_project: Project) -> None:
    hand, listed = Hands(fleet_project, "w0"), Early([[idea(RATE=2.0)]])
    watched = observer(fleet_project, listed)
    for _ in range(5):
        watched.turn()
    assert not listed.told
    one = hand.claim(watched)
    assert one is not None and one.hypothesis_id == "baseline-t"
    experiment_id = hand.begin(one)
    turns(watched, lambda: listed.told and watched.queue.dispatched("w0")["w0"])
    assert dict(listed.told[0].reference) == {
        "RATE": 1.0, "WIDTH": 8, "SLEEP": 0.0, "MODE": "train", "GATE": "",
    }  # fmt: skip
    hand.end(watched, one, experiment_id)


def test_the_first_question_is_asked_when_the_baseline_is_decided_and_the_brief_tells_of_it(
    fleet_project: Project,
) -> None:
    fleet_project.layout.program.write_bytes("# Ziel\r\n\r\nVRAM unter 39 GB \u00fc\n".encode())
    hand, listed, early = Hands(fleet_project, "w0"), Listed(), Early(name="search")
    watched = observer(fleet_project, listed, early)
    watched.turn()
    one = hand.claim(watched)
    assert one is not None
    experiment_id = hand.begin(one)
    for _ in range(5):
        watched.turn()
    assert not listed.told and not early.told  # nobody overtakes the first of them
    hand.end(watched, one, experiment_id)
    turns(watched, lambda: listed.told)
    told = listed.told[0]
    assert told.reference["RATE"] == 1.0 and told.brief.current_config["RATE"] == 1.0
    assert told.brief.best_result is not None and told.brief.best_result.val_bpb == 1.4
    assert [trial.status for trial in told.trials] == ["keep"]
    assert told.charter.encode() == fleet_project.layout.program.read_bytes()


def test_idle_devices_repeat_the_baseline_and_no_repeat_is_taken_for_it(
    fleet_project: Project,
) -> None:
    hands = [Hands(fleet_project, name) for name in ("w0", "w1", "w2", "w3")]
    watched = observer(fleet_project, Listed())
    watched.turn()
    one = hands[0].claim(watched)
    assert one is not None
    experiment_id = hands[0].begin(one)
    turns(watched, lambda: len(watched.queue.dispatched()) >= 2)
    waiting = watched.queue.dispatched()
    assert sorted(waiting) == ["w1", "w2"]  # at most two, however many are idle
    repeats = [each for found in waiting.values() for each in found]
    assert {each.replicates for each in repeats} == {"baseline-t-1"}
    for hand in hands[1:]:
        hand.work(watched)  # they end before the baseline does
    for _ in range(3):
        watched.turn()
    assert not watched.history.latest  # and wait for it
    assert watched.status.problems == []
    hands[0].end(watched, one, experiment_id)
    turns(watched, lambda: len(watched.history.latest) == 3)
    reasons = {each.hypothesis_id: each.reason for each in watched.history.latest.values()}
    assert reasons.pop("baseline-t") == "baseline"
    assert set(reasons.values()) == {"replicate"}


def test_a_failed_baseline_stops_the_search_with_the_log_and_the_setting_to_lower(
    fleet_project: Project,
) -> None:
    script = fleet_project.layout.root / "train.py"
    text = script.read_text().replace(
        'if MODE == "crash"', 'print("step 1", flush=True)\nDEVICE_BATCH_SIZE = 64\nif True'
    ).replace("ValueError", "MemoryError")  # fmt: skip
    commit = fleet_project.repository.commit_tree(
        fleet_project.repository.tree_with(fleet_project.reference(), {"train.py": text.encode()}),
        [fleet_project.reference()], "too large",
    )  # fmt: skip
    fleet_project.repository.compare_and_swap(
        "refs/autohypothesis/reference/t", commit, fleet_project.reference()
    )
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]] * 9))
    turns(watched, lambda: watched.status.state == "failed", hand)
    assert not watched.turn()
    said = read_role(fleet_project.layout, "observer")
    assert said is not None and said.state == "failed"
    why, lower, again, *log = said.problems
    assert "baseline-t-1 failed: oom" in why
    assert lower == "lower DEVICE_BATCH_SIZE, which is 64"
    assert "init-fleet" in again and "log: step 1" in log
    assert hand.work(watched) is None  # what was prepared meanwhile is not begun any more


# ── who gets what ───────────────────────────────────────────────────────────────────────────


def test_one_hypothesis_waits_for_each_living_worker_and_none_for_a_dead_one(
    fleet_project: Project,
) -> None:
    hands = [Hands(fleet_project, "w0"), Hands(fleet_project, "w1")]
    Hands(fleet_project, "gone").beat("stopped")
    Hands(fleet_project, "benched").beat("benched")
    watched = observer(fleet_project, Listed([[idea(RATE=1 + i / 10) for i in range(1, 9)]]))
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: len(watched.queue.dispatched()) == 2)
    for _ in range(5):
        watched.turn()
    waiting = watched.queue.dispatched()
    assert {name: len(found) for name, found in waiting.items()} == {"w0": 1, "w1": 1}
    hands[1].beat("stopped")
    turns(watched, lambda: list(watched.queue.dispatched()) == ["w0"])


def test_words_that_nobody_implemented_are_not_handed_out_and_the_brief_says_so(
    fleet_project: Project,
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    watched.queue.add(Proposal(title="words", instructions="use a GRU"), proposer="ada")
    turns(watched, lambda: watched.history.has_reference(), hand)
    deadline = time.monotonic() + 120
    while not any("implement" in note for note in _brief(fleet_project).notes):
        assert time.monotonic() < deadline
        watched.turn()
    assert [one.title for one in watched.queue.pending()] == ["words"]
    assert hand.work(watched) is None


def _brief(project: Project) -> Brief:
    try:
        return Brief.model_validate(read_json(project.layout.brief))
    except FileNotFoundError:
        return Brief(generated_at=now())


# ── the end ─────────────────────────────────────────────────────────────────────────────────


def test_a_search_never_begins_more_experiments_than_it_may(fleet_project: Project) -> None:
    hands = [Hands(fleet_project, name) for name in ("w0", "w1", "w2")]
    many = [[idea(RATE=1 + i / 100 + k) for i in range(9)] for k in range(1, 9)]
    watched = observer(fleet_project, Listed(many), most=4)
    turns(watched, lambda: watched.status.state == "finished", *hands)
    assert watched.history.counted() == 4
    assert len(read_ledger(fleet_project.layout)) == 4
    assert not watched.turn()


# ── thinking, failing, waiting ──────────────────────────────────────────────────────────────


def test_a_thinking_proposer_does_not_stop_decisions(fleet_project: Project) -> None:
    hand, thinker = Hands(fleet_project, "w0"), Thinker()
    watched = observer(fleet_project, thinker)
    turns(watched, lambda: watched.pool.thinking, hand)
    assert watched.pool.thinking == ["thinker"]
    watched.queue.add(idea(RATE=2.0), proposer="ada")
    turns(watched, lambda: watched.history.counted() == 2, hand)
    assert watched.pool.thinking == ["thinker"]
    thinker.done.set()


def test_a_settle_that_cannot_be_done_now_is_done_later(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    impatient = partial(hold, timeout=0.05)
    monkeypatch.setattr(settling, "locks", SimpleNamespace(hold=impatient))
    turns(watched, lambda: watched.queue.done_ids(), hand)
    with hold(fleet_project.layout, "settle", doing="somebody decides"):
        for _ in range(3):
            assert watched.turn()
        assert not watched.history.latest
        assert any("somebody decides" in line for line in watched.status.problems)
    turns(watched, lambda: watched.history.has_reference())
    assert watched.status.problems == []


# ── noise ───────────────────────────────────────────────────────────────────────────────────


def _says(path: Path, words: str) -> bool:
    return path.exists() and words in path.read_text()


def test_two_runs_of_one_commit_bring_the_noise_into_the_brief(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for once; its figure is told to everybody when somebody has published it."""
    monkeypatch.setattr(publishing, "REGISTRY_S", 0.1)
    hands = [Hands(fleet_project, "w0"), Hands(fleet_project, "w1")]
    watched = observer(fleet_project)
    watched.turn()
    one = hands[0].claim(watched)
    assert one is not None
    experiment_id = hands[0].begin(one)
    turns(watched, lambda: watched.queue.dispatched())
    assert not tools.registry(fleet_project.layout).tools
    hands[1].work(watched)
    hands[0].end(watched, one, experiment_id)
    turns(watched, lambda: tools.registry(fleet_project.layout).tools)
    (asked,) = tools.registry(fleet_project.layout).tools
    assert (asked.tool_id, asked.status, asked.requested_by) == ("noise", "requested", "observer")
    source = tools.CATALOGUE / "noise.py"
    tools.publish(fleet_project.layout, "noise", source, decided_by="a test")
    turns(watched, lambda: watched.background.noise is not None)
    assert watched.background.noise is not None
    figure = "sd of a pair 0 from 2 runs of 1 commit; rough: only 2 runs of 1 commit;"
    for path in (fleet_project.layout.brief, fleet_project.layout.search_model):
        watched.publishing._due["learnt"] = 0.0
        turns(watched, partial(_says, path, figure))
    assert watched.status.problems == []


# ── what it writes ──────────────────────────────────────────────────────────────────────────


def test_what_the_observer_writes_is_what_the_schema_promises(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    title = "a\n# forged heading | of a title"
    watched = observer(
        fleet_project, Listed([[idea(title, RATE=2.0)], [idea(MODE="crash")]]), most=3
    )
    turns(watched, lambda: watched.status.state == "finished", hand)
    layout = fleet_project.layout
    knowledge = KnowledgeBase.model_validate(read_json(layout.knowledge_base))
    assert [one["decision_status"] for one in knowledge.experiment_history] == [
        "keep", "keep", "crash",
    ]  # fmt: skip
    assert knowledge.tentative_findings[0].implication == "RATE = 2.0"
    assert knowledge.invalid_regions[0].startswith("MODE = 'crash': code_error")
    page = layout.search_model.read_text()
    assert "| RATE | 1 | 1 | 0 | 2.0 | +0.100000 | 2.0 |" in page
    assert "\n# forged" not in page
    summary = LiveSummary.model_validate(read_json(layout.live_summary))
    assert summary.free_workers == ["w0"]
    assert summary.best_result is not None and summary.best_result["metric_value"] == 1.3
    assert _brief(fleet_project).best_result is not None
    said = read_role(layout, "observer")
    assert said is not None and said.details["kept"] == 1
    assert said.details["best"]["description"] == " ".join(title.split()) or title


def test_a_turn_without_news_reads_no_bundle_and_writes_nothing(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: watched.history.counted() == 2, hand)
    for _ in range(3):
        watched.publishing._due = dict.fromkeys(watched.publishing._due, 0.0)
        watched.decider._last_look = float("-inf")
        watched.turn()
    before = _everything(fleet_project)
    watched.publishing._due = dict.fromkeys(watched.publishing._due, 0.0)
    monkeypatch.setattr("autohypothesis.fleet.observer.deciding.settle", None)
    for _ in range(10):
        watched.turn()
    after = _everything(fleet_project)
    mine = fleet_project.layout.role("observer")
    assert {p for p in after if after[p] != before.get(p)} <= {str(mine)}


def _everything(project: Project) -> dict[str, int]:
    found = (path for path in project.layout.research.rglob("*") if path.is_file())
    return {
        str(path): path.stat().st_mtime_ns
        for path in found
        if path.parent != project.layout.locks and "holder" not in path.name
    }


# ── killed ──────────────────────────────────────────────────────────────────────────────────


def _decided(project: Project) -> int:
    return len(read_decisions(project.layout)[0])


@pytest.mark.timeout(240)
def test_a_killed_observer_loses_no_decision(
    fleet_project: Project, forked: Callable[..., Forked]
) -> None:
    """kill -9 in the middle of turns, again and again; a successor goes on where it stopped.

    Each lives for a moment only, and for one decision at most where the machine is quick.
    """
    hand = Hands(fleet_project, "w0")
    beside = observer(fleet_project)  # its queue only
    dice = random.Random(7)
    kills, most = 0, 7
    process = forked(observe, fleet_project.layout.root, most, Numbered())
    deadline = time.monotonic() + 200
    while process.process.is_alive():
        assert time.monotonic() < deadline
        decided = _decided(fleet_project)
        due = time.monotonic() + dice.uniform(0.4, 1.6)
        while process.process.is_alive() and time.monotonic() < due:
            if not hand.work(beside):
                time.sleep(PAUSE_S)
            if _decided(fleet_project) > decided:
                time.sleep(dice.uniform(0.0, 0.1))
                break
        if kills < 8 and process.process.is_alive():
            process.end(kill=True)
            kills += 1
            process = forked(observe, fleet_project.layout.root, most, Numbered())
    assert process.end() == ["finished"] and kills >= 3
    queue = Queue(fleet_project.layout, "t")
    decisions, wrong = read_decisions(fleet_project.layout)
    assert not wrong
    assert set(Counter(one.experiment_id for one in decisions).values()) == {1}
    # A busy machine disturbs a run now and then; that one came back, and is not counted.
    assert sum(not is_lost(one) for one in decisions) == most
    assert not queue.running() and not queue.dispatched()
    completed = {one.hypothesis_id for one in queue.done() if one.closed == "completed"}
    latest = {one.hypothesis_id: one for one in decisions}
    assert completed == {name for name, one in latest.items() if not one.requeue}
    waiting = {one.hypothesis_id for one in queue.pending()}
    assert waiting >= {name for name, one in latest.items() if one.requeue}
    rows = read_ledger(fleet_project.layout)
    ordinals = [row["ordinal"] for row in rows if row["ordinal"] is not None]
    assert ordinals == [*range(1, len(decisions) + 1)]


def test_a_stopped_observer_decides_what_has_ended_before_it_leaves(
    fleet_project: Project, until: Callable[..., None], forked: Callable[..., Forked]
) -> None:
    hand = Hands(fleet_project, "w0")
    queue = Queue(fleet_project.layout, "t")
    process = forked(observe, fleet_project.layout.root, 50, Numbered())
    until(lambda: queue.dispatched("w0")["w0"])
    assert hand.work(observer(fleet_project)) == "baseline-t-1"
    process.process.terminate()
    assert process.end() == ["stopped"]
    assert [one.experiment_id for one in read_decisions(fleet_project.layout)[0]] == [
        "baseline-t-1"
    ]
    assert read_ledger(fleet_project.layout)[0]["status"] == "keep"
    left = read_role(fleet_project.layout, "observer")
    assert left is not None and left.state == "stopped" and not role_lives(left)


# ── what must not stop it ───────────────────────────────────────────────────────────────────


def test_work_for_a_worker_that_is_gone_keeps_nobody_from_having_ideas(
    fleet_project: Project,
) -> None:
    hands, listed = [Hands(fleet_project, "w0"), Hands(fleet_project, "w1")], Listed()
    watched = observer(fleet_project, listed, most=9)
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: not watched.queue.open(), *hands)
    hands[1].beat("stopped")
    for number in range(2):
        pinned = Proposal(
            title="the reference again", source_id=f"reference-{number}@w1",
            replicates="baseline-t-1", seed=number,
        )  # fmt: skip
        watched.queue.add(pinned, proposer="observer")
    listed.answers = [[idea(RATE=2.0)]]
    turns(watched, lambda: watched.history.counted() == 2, hands[0])
    assert [one.worker_id for one in watched.queue.pending()] == ["w1"] * 2


def test_workers_are_told_when_the_search_is_over(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: watched.history.has_reference(), hand)
    turns(watched, lambda: watched.queue.dispatched().get("w0"))
    assert _details(fleet_project)["closing"] is False
    one = hand.claim(watched)
    waiting = watched.queue.add(idea(RATE=3.0), proposer="ada").hypothesis_id
    watched.queue.dispatch(waiting, "w0")
    late = observer(fleet_project, until=now() - timedelta(seconds=1))
    assert one is not None and late.turn()
    assert _details(fleet_project)["closing"] is True
    assert [one.hypothesis_id for one in late.queue.pending()] == [waiting]
    late.queue.release(one.hypothesis_id, "w0")  # as a worker does that has only prepared it
    assert not late.turn() and late.status.state == "finished"


def _details(project: Project) -> dict[str, object]:
    said = read_role(project.layout, "observer")
    assert said is not None
    return said.details


def test_a_result_of_another_shape_stops_no_observer(fleet_project: Project) -> None:

    def strange(one: Hypothesis, experiment_id: str, result: Result) -> Result:
        return result.model_copy(update={"evidence": {"contention": "x", "device": "y"}})

    hand = Hands(fleet_project, "w0", strange)
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: watched.history.counted() == 2, hand)


def test_an_outlook_that_cannot_be_had_begins_nothing_and_says_so(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hands(fleet_project, "w0")
    watched = observer(fleet_project)

    def damaged(*words: object) -> list[str]:
        raise KeyError("x")

    with monkeypatch.context() as broken:
        broken.setattr(BaselineSchedule, "failure", damaged)
        assert watched.turn()
        assert watched.status.state == "waiting" and not watched.queue.dispatched()
        assert any("KeyError" in line for line in watched.status.problems)
    turns(watched, lambda: watched.queue.dispatched())
    assert watched.status.problems == []


def test_only_a_keep_that_is_taken_back_is_a_contradiction(fleet_project: Project) -> None:
    about = {"decision_id": "", "recorded_at": now(), "tag": "t", "experiment_id": "h-t-0001-1"}
    history = DecisionHistory(
        Decision.model_validate({**about, "decision_status": status})
        for status in ("discard", "keep", "discard", "crash")
    )
    KnowledgeReport(fleet_project, history, {}, {}, {}, Steering(), "").write()
    knowledge = KnowledgeBase.model_validate(read_json(fleet_project.layout.knowledge_base))
    assert knowledge.contradictions == ["h-t-0001-1 was kept, then discard: "]
