"""Wins of a fleet that are run again before they count: shared, run once, and no luck is kept."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from autohypothesis.engine.decide import settle_by_hand
from autohypothesis.engine.project import Project
from autohypothesis.errors import LockError
from autohypothesis.fleet.live.presence import read_role
from autohypothesis.fleet.observer import deciding
from autohypothesis.fleet.observer.deciding import NO_LONGER_NEEDED
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import read_json, write_json
from autohypothesis.schema import Brief, Hypothesis, Metadata, Result
from tests.conftest import run_git as git
from tests.fleet.conftest import Forked
from tests.fleet.observing import Hands, Listed, idea, observe, observer, turns
from tests.fleet.observing import calm as calm

SCRIPT = '''"""The higher RATE, the better; LUCK helps at the first seed only."""
import os

SEED = int(os.environ["SEED"])
RATE = 1.0
LUCK = 0.0
BREAKS = 0

if SEED == BREAKS:
    raise MemoryError("CUDA out of memory")
print(f"val_bpb: {1.5 - RATE / 10 - (LUCK if SEED == 42 else 0.0) + 0.001 * (SEED % 3):.6f}")
print("peak_vram_mb: 1")
'''
TASK = """id: careful
artifacts: [train.py]
run: {command: [python, train.py]}
objective: {metric: val_bpb, direction: minimize, min_delta: 0.02}
policy: {replicates: 2}
"""


@pytest.fixture
def careful(fleet_root: Path) -> Project:
    """A project whose task wants two further pairs of every win."""
    (fleet_root / "train.py").write_text(SCRIPT, encoding="utf-8")
    (fleet_root / "task.yaml").write_text(TASK, encoding="utf-8")
    git(fleet_root, "add", "-A")
    git(fleet_root, "commit", "-qm", "careful")
    return Project.open(fleet_root).with_tag("t")


def awaiting(watched: Observer) -> bool:
    return bool(watched.status.details.get("awaiting"))


def until_a_win_waits(watched: Observer, hand: Hands) -> None:
    """And none of its replicates is begun."""
    deadline = time.monotonic() + 60
    while not awaiting(watched):
        assert time.monotonic() < deadline, watched.status
        watched.turn()
        if not awaiting(watched):
            hand.work(watched)


def replicates(project: Project) -> list[Metadata]:
    """Every run again that was begun."""
    found = []
    for run in sorted(project.layout.runs.iterdir()):
        metadata = Metadata.model_validate(read_json(run / "metadata.json"))
        found += [metadata] if metadata.run.replicates else []
    return found


def queued(watched: Observer) -> list[tuple[str | None, int | None]]:
    open_ = [one for one in watched.queue.open() if one.replicates]
    return [(one.replicates, one.seed) for one in open_]


def test_a_real_win_is_shared_by_idle_devices_and_kept_as_confirmed(careful: Project) -> None:
    hands = [Hands(careful, "w0"), Hands(careful, "w1")]
    watched = observer(careful, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: awaiting(watched), *hands)
    before = careful.reference()
    turns(watched, lambda: careful.reference() != before, *hands)
    (kept,) = [one for one in watched.history.latest.values() if one.reason == "improved"]
    assert kept.confirmation == "confirmed" and "2 further pairs" in kept.detail
    runs = replicates(careful)
    assert Counter(run.run.seed for run in runs) == {43: 2, 44: 2}  # nothing was run twice
    assert {run.run.worker_id for run in runs} == {"w0", "w1"}
    for _ in range(3):
        watched.turn()
    assert watched.status.problems == [] and not awaiting(watched)


def test_a_lucky_seed_moves_no_reference(careful: Project) -> None:
    hand = Hands(careful, "w0")
    watched = observer(careful, Listed([[idea(LUCK=0.9)], [idea(LUCK=0.8)]]))
    before = careful.reference()
    turns(watched, lambda: len(_refuted(watched)) == 2, hand)
    assert careful.reference() == before
    assert len(replicates(careful)) == 6  # the runs of the base served both


def _refuted(watched: Observer) -> list[str]:
    every = watched.history.latest.values()
    return [one.experiment_id for one in every if one.reason == "not_confirmed"]


def _brief(project: Project) -> Brief:
    return Brief.model_validate(read_json(project.layout.brief))


def test_replicates_stay_queued_while_nothing_can_be_decided_after_a_restart(
    careful: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hands(careful, "w0")
    watched = observer(careful, Listed([[idea(RATE=2.0)]]))
    until_a_win_waits(watched, hand)
    before = queued(watched)
    assert len(before) == 4

    def locked(*_args: object, **_options: object) -> None:
        raise LockError("another process decides")

    monkeypatch.setattr(deciding, "settle", locked)
    again = observer(careful)
    again.turn()
    assert any("another process decides" in problem for problem in again.status.problems)
    assert queued(again) == before


def test_replicates_come_before_new_ideas_are_queued_once_and_reported(careful: Project) -> None:
    hand = Hands(careful, "w0")
    Hands(careful, "w1")
    watched = observer(careful, Listed([[idea(RATE=2.0)], [idea(RATE=1.5), idea(RATE=1.6)]]))
    until_a_win_waits(watched, hand)
    said = read_role(careful.layout, "observer")
    assert said is not None and said.problems == []
    (win,) = overview(careful.layout).awaiting
    assert (win.missing, win.wanted, win.found) == (
        4, 4, "val_bpb 1.3 against 1.4, 0.1 better than its base (min_delta 0.02)"
    )  # fmt: skip
    turns(watched, lambda: watched.proposals.proposed == 3)
    for _ in range(5):
        watched.turn()
    again = observer(careful)
    again.turn()  # all that it tells it tells anew, whatever the one before it has published
    assert any("awaits 4 of 4 runs" in note for note in _brief(careful).notes)
    assert sorted(queued(again), key=str) == sorted(
        [(name, seed) for name in ("baseline-t-1", _waits(again)) for seed in (43, 44)], key=str
    )
    order = [one.replicates is not None for one in again.queue.pending()]
    assert order == sorted(order, reverse=True) and not all(order)
    (replicate, *_) = [one for one in again.queue.open() if one.replicates]
    dispatcher = again.dispatcher
    assert dispatcher.suits(replicate, "w0")
    on = {"w0": dispatcher.platforms["w0"]}
    elsewhere = replace(dispatcher, platforms={**on, "w1": "another card"})
    assert not elsewhere.suits(replicate, "w1")
    for platforms in (on, {}):  # it may be on it
        assert replace(dispatcher, platforms=platforms).suits(replicate, "w1")


def _waits(watched: Observer) -> str:
    return str(watched.status.details["awaiting"][0]["experiment_id"])


def test_a_win_that_fails_at_a_further_seed_is_refuted_and_the_rest_is_taken_back(
    careful: Project,
) -> None:
    hand = Hands(careful, "w0")
    watched = observer(careful, Listed([[idea(RATE=2.0, BREAKS=43)]]))
    turns(watched, lambda: _refuted(watched), hand)
    turns(watched, lambda: not queued(watched))
    assert len(replicates(careful)) < 4
    assert any(one.outcome == NO_LONGER_NEEDED for one in watched.queue.done())


def test_nothing_is_run_for_a_win_that_a_person_decided(careful: Project) -> None:
    """And what was taken back is queued again for the next win on the same base."""
    hand = Hands(careful, "w0")
    watched = observer(careful, Listed([[idea(RATE=2.0)]]))
    until_a_win_waits(watched, hand)
    turns(watched, lambda: len(queued(watched)) == 4)
    settle_by_hand(careful, _waits(watched), "discard", reason="", decided_by="me")
    turns(watched, lambda: not queued(watched))
    assert replicates(careful) == []
    before = careful.reference()
    watched.queue.add(idea(RATE=3.0), proposer="ada")
    turns(watched, lambda: careful.reference() != before, hand)
    assert watched.history.decisions[-1].confirmation == "confirmed"


def test_a_replicate_that_is_lost_is_run_again(careful: Project) -> None:
    lost: list[str] = []

    def lose(one: Hypothesis, experiment_id: str, result: Result) -> Result:
        if not one.replicates or lost:
            return result
        lost.append(experiment_id)
        update = {"status": "failed", "failure_kind": "infra", "metric_value": None,
                  "failure_detail": "the machine went down"}  # fmt: skip
        return result.model_copy(update=update)

    hand = Hands(careful, "w0", lose)
    watched = observer(careful, Listed([[idea(RATE=2.0)]]))
    before = careful.reference()
    turns(watched, lambda: careful.reference() != before, hand)
    assert watched.history.latest[lost[0]].requeue
    assert len(replicates(careful)) == 5
    assert watched.history.decisions[-1].confirmation == "confirmed"


def test_a_replicate_that_ran_on_another_platform_is_run_once_more(careful: Project) -> None:
    hands = [Hands(careful, "w0"), Hands(careful, "w1")]
    watched = observer(careful, Listed([[idea(RATE=2.0)]]))
    until_a_win_waits(watched, hands[0])
    turns(watched, lambda: "w1" in watched.queue.dispatched())
    taken = hands[1].claim(watched)
    assert taken is not None and taken.replicates
    experiment_id = hands[1].begin(taken)
    path = careful.layout.run(experiment_id).metadata
    metadata = Metadata.model_validate(read_json(path))
    other = metadata.runtime.model_copy(update={"platform_key": "another card"})
    write_json(path, metadata.model_copy(update={"runtime": other}))
    hands[1].end(watched, taken, experiment_id)
    before = careful.reference()
    turns(watched, lambda: careful.reference() != before, *hands)
    assert len(watched.history.attempts(taken.hypothesis_id)) == 2
    assert {run.run.worker_id for run in replicates(careful)} == {"w0", "w1"}
    assert len(replicates(careful)) == 5


def test_an_observer_that_is_killed_between_the_replicates_loses_and_doubles_none(
    careful: Project, until: Callable[..., None], forked: Callable[..., Forked]
) -> None:
    """It is killed after each run that ended, at whatever it does then."""
    hand = Hands(careful, "w0")
    eyes = observer(careful)  # for its queue; it takes no turn
    eyes.queue.add(idea(RATE=2.0), proposer="ada")
    before, kills = careful.reference(), 0
    while careful.reference() == before:
        assert kills < 30
        killed = forked(observe, careful.layout.root, None)
        until(partial(_has_news, eyes, killed, before))
        assert killed.process.is_alive(), read_role(careful.layout, "observer")
        hand.work(eyes)
        time.sleep(0.05 * (kills % 5))
        killed.end(kill=True)
        kills += 1
    assert kills >= 6  # the baseline, the win, four replicates
    assert os.path.exists(careful.layout.decisions)
    last = read_decisions(careful.layout)[0][-1]
    assert last.confirmation == "confirmed"
    # What a neighbour disturbed meanwhile is run again, and has to be.
    lost = {one.experiment_id for one in read_decisions(careful.layout)[0] if one.requeue}
    counted = [run.run for run in replicates(careful) if run.run.experiment_id not in lost]
    seen = [(run.replicates, run.seed) for run in counted if run.replicates not in lost]
    assert len(seen) == len(set(seen)) == 4


def _has_news(eyes: Observer, forked: Forked, before: str) -> bool:
    """Return whether there is work, the reference has moved, or the observer has ended."""
    work = bool(eyes.queue.dispatched("w0")["w0"])
    return work or eyes.project.reference() != before or not forked.process.is_alive()
