"""Proposers that fail, dawdle, repeat themselves or talk nonsense: nobody waits for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.engine.task import MutatorConfig
from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.observer import proposals
from autohypothesis.fleet.observer.introduction import introduce, strangers
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.fleet.observer.proposals import (
    LONGEST_PAUSE_S,
    MAX_UNUSABLE_ANSWERS,
    ProposerAnswer,
    ProposerPool,
)
from autohypothesis.fleet.proposing import Situation
from autohypothesis.schema import Brief, Proposal, Steering, now
from tests.fleet.observing import Early, Hands, Listed, Thinker, broken, idea, observer, turns
from tests.fleet.observing import calm as calm


def situation() -> Situation:
    return Situation(
        tag="t", metric="val_bpb", direction="minimize", min_delta=0.0, reference={}, sources={},
        knobs={}, steering=Steering(), trials=(), open=(), closed=(),
        brief=Brief(generated_at=now()),
    )  # fmt: skip


@dataclass
class Clock:
    """Time that a test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(proposals, "monotonic", clock)
    monkeypatch.setattr(proposals, "FIRST_PAUSE_S", 1.0)
    return clock


def ask(pool: ProposerPool, count: int = 1, *, device_idle: bool = True) -> None:
    name = pool.next_to_ask(count, device_idle=device_idle)
    assert name is not None
    pool.ask(name, situation(), count)


def answered(pool: ProposerPool, count: int = 1) -> list[ProposerAnswer]:
    found: list[ProposerAnswer] = []
    deadline = time.monotonic() + 120
    while len(found) < count:
        assert time.monotonic() < deadline
        found += pool.answers()
        time.sleep(0.002)
    return found


def test_a_proposer_that_fails_is_asked_later_and_later(clock: Clock) -> None:
    pool = ProposerPool([broken()])
    pauses = []
    for _ in range(12):
        assert pool.next_to_ask(1, device_idle=True)
        ask(pool)
        (answer,) = answered(pool)
        assert answer.problem == "it has no key"
        before = clock.now
        while not pool.next_to_ask(1, device_idle=True):
            pool.reset_after_decision()  # a decision makes no failed one well
            clock.now += 0.5
        pauses.append(clock.now - before)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_PAUSE_S and not pool.is_exhausted
    assert "asked again in" in pool.problems()[0]


def test_one_that_works_again_is_no_problem_any_more(clock: Clock) -> None:
    moody = Listed([[idea(RATE=2.0)]], error=RuntimeError("not now"))
    pool = ProposerPool([moody])
    ask(pool)
    answered(pool)
    assert "RuntimeError: not now" in pool.problems()[0]
    moody.error = None
    clock.now += 1
    ask(pool)
    (answer,) = answered(pool)
    pool.record_answer_outcome("listed", len(answer.proposals), {})
    assert pool.problems() == [] and pool.next_to_ask(1, device_idle=True)


def test_of_whose_ideas_none_is_taken_that_is_told_with_the_reason(clock: Clock) -> None:
    pool = ProposerPool([Listed([[idea(WIDHT=2)]])])
    ask(pool)
    (answer,) = answered(pool)
    pool.record_answer_outcome(answer.proposer, 0, {"wider": "there is no constant 'WIDHT'"})
    (line,) = pool.problems()
    assert line.startswith("proposer listed") and line.endswith(
        "'wider': there is no constant 'WIDHT'"
    )
    pool.record_answer_outcome(answer.proposer, 1, {"wider": "there is no constant 'WIDHT'"})
    assert pool.problems() == []


def test_an_idea_that_is_known_already_is_no_problem_of_its_proposer(
    fleet_project: Project,
) -> None:
    hand = Hands(fleet_project, "w0")
    listed = Listed([[idea(RATE=2.0)]] * 3)
    watched = observer(fleet_project, listed)
    turns(watched, lambda: watched.proposals.refused == 2 and not listed.answers, hand)
    assert watched.pool.problems() == []


def test_what_a_worker_refuses_is_told_to_its_proposer_and_to_people(
    fleet_project: Project,
) -> None:
    hand = Hands(fleet_project, "w0")
    bad = Proposal(title="a patch", patch="--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-x\n+y\n")
    listed = Listed([[bad]] * 5 + [[idea(RATE=2.0)]])
    watched = observer(fleet_project, listed)
    turns(watched, lambda: len(watched.history.latest) == 2, hand)
    refusals = [told.refused.get("a patch", "") for told in listed.told]
    # The second question may be asked before the first idea has reached the worker.
    assert not refusals[0] and all("does not apply" in why for why in refusals[2:6]), refusals
    assert len(refusals) >= 6 and watched.proposals.refused == 5


def test_a_search_goes_on_where_its_last_run_was_refused_in_between(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, most=2)
    turns(watched, watched.history.has_reference, hand)
    watched.queue.add(idea(RATE=2.0), proposer="person")
    turns(watched, lambda: watched.queue.dispatched())
    claimed = hand.claim(watched)
    assert claimed is not None and watched.criteria.room() == 0
    room = watched.criteria.room

    def room_and_refusal() -> int | None:
        left = room()
        if watched.queue.running():
            watched.queue.finish(claimed.hypothesis_id, "w0", closed="abandoned", outcome="no")
        return left

    monkeypatch.setattr(watched.criteria, "room", room_and_refusal)
    assert watched.turn() and not watched.queue.running(), watched.status


def test_the_next_one_fills_in_for_one_that_fails_has_none_or_dawdles(clock: Clock) -> None:
    thinker = Thinker()
    pool = ProposerPool(
        [broken(), Listed(name="empty"), thinker, Listed([[idea(RATE=2)]] * 9, name="last")]
    )
    asked = []
    for _ in range(2):
        ask(pool, 1, device_idle=False)
        (answer,) = answered(pool)
        pool.record_answer_outcome(answer.proposer, len(answer.proposals), {})
        asked.append(answer.proposer)
    assert asked == ["broken", "empty"]
    ask(pool, 1, device_idle=False)
    assert pool.thinking == ["thinker"]
    assert not pool.next_to_ask(1, device_idle=False)  # no device waits for a worse idea
    assert pool.next_to_ask(1, device_idle=True)
    ask(pool)
    assert answered(pool)[0].proposer == "last"
    thinker.done.set()


def test_what_is_no_proposal_costs_itself_and_not_the_others() -> None:
    @dataclass
    class Babbler:
        name: str = "babbler"

        def propose(self, situation: Situation, count: int) -> Sequence[Any]:
            return [
                {"title": "fine", "config_overrides": {"RATE": 2}},
                {"title": "two kinds", "config_overrides": {"RATE": 2}, "patch": "x"},
                {"titel": "misspelt"},
                17,
                {"title": "one too many"},
            ]

    pool = ProposerPool([Babbler()])
    ask(pool, 4, device_idle=True)
    (answer,) = answered(pool)
    assert [one.title for one in answer.proposals] == ["fine"]
    assert "one kind" in answer.refused["two kinds"]
    assert len(answer.refused) == 3


def test_an_idea_that_lost_a_field_is_taken_and_all_are_told(fleet_project: Project) -> None:
    @dataclass
    class Careless(Listed):
        def propose(self, situation: Situation, count: int) -> Sequence[Any]:
            answer = [{"title": "up", "config_overrides": {"RATE": 2.0}, "prediction": "lower"}]
            return super().propose(situation, count) or (answer if len(self.told) == 1 else [])

    hand, careless = Hands(fleet_project, "w0"), Careless(name="careless")
    watched = observer(fleet_project, careless)
    seen: list[str] = []
    turns(watched, lambda: seen.extend(watched.status.problems) or len(careless.told) > 2, hand)
    assert "proposer careless: 'up' was taken without prediction ('lower' is no obj" in seen[0]
    assert "taken without prediction" in careless.told[1].refused["up"]
    assert not careless.told[2].refused and not watched.status.problems


def test_the_hint_of_a_failure_is_whole_however_long_the_failure(clock: Clock) -> None:
    error = AutohypothesisError("it said " + "x " * 5000 + "quota is gone", hint="h" * 400)
    pool = ProposerPool([broken(error)])
    ask(pool)
    (answer,) = answered(pool)
    assert answer.problem.endswith("quota is gone; " + "h" * 400) and len(answer.problem) < 800


def test_a_stand_in_is_asked_when_others_fail_or_have_nothing_or_think_for_a_minute(
    clock: Clock,
) -> None:
    @dataclass
    class StandIn(Listed):
        fills_in: bool = True

    thinker, stand_in = Thinker(), StandIn(name="search")
    pool = ProposerPool([thinker, stand_in])
    ask(pool)
    assert pool.next_to_ask(1, device_idle=True) is None
    clock.now += 61
    assert pool.next_to_ask(1, device_idle=False) is None
    assert pool.next_to_ask(1, device_idle=True) == "search"
    thinker.done.set()
    answered(pool)
    pool.record_answer_outcome("thinker", 0, {})
    assert pool.next_to_ask(1, device_idle=False) == "search"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_exits_is_not_waited_for_for_ever() -> None:
    pool = ProposerPool([broken(SystemExit(3))])
    ask(pool)
    (answer,) = answered(pool)
    assert answer.problem


@dataclass
class Meddler:
    """A proposer that writes into what it was told."""

    name: str = "meddler"
    told: list[Situation] = field(default_factory=list)

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        self.told.append(situation)
        situation.steering.frozen.append("RATE")
        situation.reference.clear()  # type: ignore[attr-defined]
        situation.trials[0].settings.clear()  # type: ignore[attr-defined]
        return [idea(RATE=2.0)]


def test_a_proposer_cannot_change_what_the_observer_knows(fleet_project: Project) -> None:
    hand, meddler = Hands(fleet_project, "w0"), Meddler()
    watched = observer(fleet_project, meddler)
    turns(watched, lambda: watched.history.counted() == 2, hand)
    assert watched.steering.frozen == []
    assert watched.index.runs["baseline-t-1"].settings["rate"] == 1.0


def after(project: Project, *answers: Proposal) -> tuple[Observer, dict[str, str]]:
    """A search whose proposer has given these answers, and why some of them were refused."""
    hand, listed = Hands(project, "w0"), Listed([[answer] for answer in answers])
    watched = observer(project, listed)
    turns(watched, lambda: len(listed.told) > len(answers), hand)
    turns(watched, lambda: not watched.queue.open(), hand)
    watched.turn()  # decides the last
    return watched, {title: why for told in listed.told for title, why in told.refused.items()}


def test_a_second_proposal_of_the_same_settings_is_refused_with_its_result(
    fleet_project: Project,
) -> None:
    watched, refused = after(
        fleet_project, idea("first", RATE=0.5), idea("again", rate=0.5), idea(RATE=0.6)
    )
    first = list(watched.history.latest)[1]
    assert first in refused["again"]
    assert "discard, worse, val_bpb 1.45 against 1.4" in refused["again"]
    rates = [run.settings["rate"] for run in watched.index.runs.values()]
    assert sorted(rates) == [0.5, 0.6, 1.0]


def test_the_same_settings_as_a_waiting_one_are_refused_whoever_proposes_them(
    fleet_project: Project,
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hand)
    first = watched.queue.add(idea("one", RATE=2.0, WIDTH=8), proposer="ada")
    second = watched.queue.add(idea("two", RATE=2), proposer="inbox")
    turns(watched, lambda: watched.queue.done_ids() and watched.queue.dispatched("w0")["w0"])
    found = watched.queue.read(second.hypothesis_id)
    assert found is not None and first.hypothesis_id in found[1].outcome
    assert [one.title for one in watched.queue.open()] == ["one"]


def test_the_settings_of_the_reference_are_no_idea(fleet_project: Project) -> None:
    watched, refused = after(
        fleet_project, idea("as it is", RATE=1.0), idea("unknown", RAET=2.0), Proposal(title="?")
    )
    assert "already" in refused["as it is"]
    assert "did you mean 'RATE'" in refused["unknown"]
    assert "changes nothing" in refused["?"]
    assert len(watched.index.runs) == 1


def test_the_same_settings_on_another_base_are_another_idea(fleet_project: Project) -> None:
    watched, refused = after(fleet_project, idea(WIDTH=16), idea(RATE=2.0), idea("again", WIDTH=16))
    last = list(watched.index.runs.values())[-1]
    assert (last.settings["width"], last.settings["rate"], refused) == (16, 2.0, {})


def test_a_repeat_on_purpose_is_no_duplicate(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project, Listed([[idea(RATE=0.5)]]))
    turns(watched, lambda: watched.history.counted() == 2, hand)
    again = idea("again", RATE=0.5).model_copy(update={"replicates": "h-t-0001-1", "seed": 43})
    watched.queue.add(again, proposer="ada")
    turns(watched, lambda: watched.history.counted() == 3, hand)
    assert [one.reason for one in watched.history.latest.values()][-1] == "replicate"


def test_instructions_that_come_to_an_edit_that_was_run_are_closed_without_a_run(
    fleet_project: Project,
) -> None:
    program = (
        "import json, sys, pathlib\n"
        "old, new = json.load(sys.stdin)['instructions'].splitlines()[0].split(' -> ')\n"
        "path = pathlib.Path('train.py')\npath.write_text(path.read_text().replace(old, new))\n"
    )
    mutator = MutatorConfig(type="implementer", command=(sys.executable, "-c", program))
    task = fleet_project.task.model_copy(update={"mutator": mutator})
    project = replace(fleet_project, task=task)
    hand = Hands(project, "w0")
    watched = observer(project)
    edited = "SLEEP = 0.0 -> SLEEP = 0.0  # as quick as can be"
    first, same, other = (
        watched.queue.add(Proposal(title=text[:9], instructions=text), proposer="person")
        for text in (edited, f"{edited}\nplease", edited.replace("quick", "fast"))
    )
    turns(watched, lambda: not watched.queue.open(), hand)
    ended = {done.hypothesis_id: (done.closed, done.outcome) for done in watched.queue.done()}
    assert ended[first.hypothesis_id][0] == ended[other.hypothesis_id][0] == "completed"
    closed, outcome = ended[same.hypothesis_id]
    assert closed == "abandoned"
    assert f"it was run before, as {first.hypothesis_id}-1" in outcome
    assert len(list(project.layout.runs.iterdir())) == 3


def test_a_computed_constant_does_not_hide_a_duplicate(fleet_project: Project) -> None:
    """MODEL = WIDTH * 2 follows WIDTH; the settings of a run have its value of then."""
    repository, old = fleet_project.repository, fleet_project.reference()
    text = repository.show_file(old, "train.py").replace(
        b"WIDTH = 8", b"WIDTH = 8\nMODEL = WIDTH * 2"
    )
    commit = repository.commit_tree(repository.tree_with(old, {"train.py": text}), [old], "edited")
    repository.compare_and_swap("refs/autohypothesis/reference/t", commit, old)
    _, refused = after(fleet_project, idea("one", WIDTH=16), idea("two", WIDTH=16))
    assert "it was run before" in refused["two"]


def test_who_had_nothing_thrice_on_the_same_evidence_is_exhausted(clock: Clock) -> None:
    pool = ProposerPool([Listed()])
    for asked in range(3):
        assert not pool.is_exhausted, f"after {asked} answers"
        ask(pool)
        assert not pool.is_exhausted, "while it thinks"
        (answer,) = answered(pool)
        pool.record_answer_outcome(answer.proposer, 0, {})
        assert not pool.next_to_ask(1, device_idle=True)
        clock.now += 100.0
    assert pool.is_exhausted and pool.problems() == []
    pool.reset_after_decision()
    assert not pool.is_exhausted and pool.next_to_ask(1, device_idle=True)


def test_one_whose_ideas_never_come_to_a_result_is_asked_later_and_later(clock: Clock) -> None:
    pool = ProposerPool([Listed()])
    for _ in range(MAX_UNUSABLE_ANSWERS):
        pool.record_answer_outcome("listed", 1, {})
        assert pool.next_to_ask(1, device_idle=True)
        pool.refuse("listed", "a patch", "it does not apply")
    for _ in range(3):
        assert not pool.is_exhausted
        pool.record_answer_outcome("listed", 1, {})
        assert not pool.next_to_ask(1, device_idle=True)
    assert pool.is_exhausted
    pool.reset_after_decision()
    assert not pool.is_exhausted and pool.next_to_ask(1, device_idle=True)


def test_a_proposer_that_is_new_is_asked_once_with_the_whole_question(
    fleet_project: Project,
) -> None:
    hand = Hands(fleet_project, "w0")
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hand)
    good = Listed([[idea("up", RATE=2.0), idea("as it is", RATE=1.0)]], name="good")
    none, bad = Listed(name="none"), broken()
    queue = watched.queue
    assert strangers([good, Early(), bad], queue) == [good, bad]

    came = introduce(fleet_project, queue, good, 2)

    assert (came.taken, came.problem) == (1, "") and came.seconds >= 0
    assert came.lines[0].endswith("from good: up")
    assert "refused an idea of good, 'as it is': the reference has these" in came.lines[1]
    (told,) = good.told
    assert told.brief.best_result is not None and told.reference["RATE"] == 1.0
    assert strangers([good], queue) == []
    assert introduce(fleet_project, queue, none, 2).taken == 0
    failed = introduce(fleet_project, queue, bad, 2)
    assert failed.problem == "it has no key" and failed.lines == [
        "proposer broken failed: it has no key"
    ]
