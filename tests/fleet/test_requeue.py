"""What was lost comes back, what was won on an old base is run again, what kills devices ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from autohypothesis.engine import local_executor, runner
from autohypothesis.engine.collect import collect
from autohypothesis.engine.failures import CANCELLED, NO_SHIM, STOPPED_BEFORE
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.policy import MAX_INFRA_RETRIES
from autohypothesis.engine.project import Project
from autohypothesis.fleet.observer.observer import Observer
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis, Result
from tests.fleet.observing import Hands, Listed, idea, members, observer, turns
from tests.fleet.observing import calm as calm


@dataclass
class Lost:
    """Makes the first `times` results of a hypothesis into losses, of one kind or with a device."""

    times: int
    detail: str = "the shim was killed"
    kind: str = "infra"
    device: bool = False
    hypothesis: str = "h-t-0001"
    seen: list[str] = field(default_factory=list)

    def __call__(self, one: Hypothesis, experiment_id: str, result: Result) -> Result:
        if one.hypothesis_id != self.hypothesis or len(self.seen) >= self.times:
            return result
        self.seen.append(experiment_id)
        evidence = {**result.evidence, **({"device": {"lost": True}} if self.device else {})}
        lost = {"status": "failed", "failure_kind": self.kind, "failure_detail": self.detail}
        return result.model_copy(update={**lost, "metric_value": None, "evidence": evidence})


def test_a_hypothesis_lost_to_infrastructure_is_queued_again_and_not_counted(
    fleet_project: Project,
) -> None:
    hand, listed = Hands(fleet_project, "w0", Lost(5)), Listed([[idea(RATE=2.0)]])
    watched = observer(fleet_project, listed, most=2)
    turns(watched, lambda: watched.status.state == "finished", hand)
    assert all(trial.status != "crash" for told in listed.told for trial in told.trials)
    attempts = watched.history.attempts("h-t-0001")
    assert len(attempts) == 6
    reasons = [watched.history.latest[name].reason for name in attempts]
    assert reasons == ["infra"] * 5 + ["improved"]
    assert watched.history.counted() == 2
    found = watched.queue.read("h-t-0001")
    assert found is not None and (found[0].state, found[1].closed) == ("done", "completed")


def test_three_device_failures_abandon_a_hypothesis(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0", Lost(9, device=True))
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: len(watched.history.attempts("h-t-0001")) == 3, hand)
    turns(watched, lambda: watched.queue.read("h-t-0001")[1].closed == "abandoned", hand)  # type: ignore[index]
    found = watched.queue.read("h-t-0001")
    assert found is not None and found[0].state == "done"
    assert "3 of its runs were lost with their device" in found[1].outcome
    successor = observer(fleet_project)
    for _ in range(3):
        successor.turn()  # who comes after sees the same, and brings it back no more
        assert hand.work(successor) is None
    assert len(successor.history.attempts("h-t-0001")) == 3


def test_another_device_is_preferred_for_what_was_lost_with_one(fleet_project: Project) -> None:
    members(fleet_project, "w0", "w1", devices=["d0", "d1"])
    spoil = Lost(1, device=True)
    hands = [
        Hands(fleet_project, "w0", _on("d0", fleet_project, spoil)),
        Hands(fleet_project, "w1"),
    ]
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: not watched.queue.open(), *hands)
    watched.queue.add(idea(RATE=2.0), proposer="ada")
    hands[1].beat("benched")
    turns(watched, lambda: spoil.seen, hands[0])
    hands[1].beat("idle")
    turns(watched, lambda: watched.queue.dispatched())
    assert list(watched.queue.dispatched()) == ["w1"]
    hands[1].beat("stopped")  # and with that one gone, the first will do
    turns(watched, lambda: list(watched.queue.dispatched()) == ["w0"])


def _on(device: str, project: Project, spoil: Lost) -> Callable[[Hypothesis, str, Result], Result]:
    """As `spoil`, on a device of this name."""

    def spoiled(one: Hypothesis, experiment_id: str, result: Result) -> Result:
        path = project.layout.run(experiment_id).metadata
        document = read_json(path)
        document["run"]["gpu_id"] = device
        write_json(path, document)
        return spoil(one, experiment_id, result)

    return spoiled


def test_a_win_on_an_old_reference_is_run_again_on_the_new_one(fleet_project: Project) -> None:
    hands = [Hands(fleet_project, "w0"), Hands(fleet_project, "w1")]
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    turns(watched, lambda: not watched.queue.open(), *hands)
    for proposal in (idea(RATE=2.0), idea(RATE=3.0)):
        watched.queue.add(proposal, proposer="ada")
    turns(watched, lambda: len(watched.queue.dispatched()) == 2)
    claimed = [hand.claim(watched) for hand in hands]
    handles = [hand.begin(one) for hand, one in zip(hands, claimed, strict=True) if one]
    for hand, one, experiment_id in zip(hands, claimed, handles, strict=True):
        assert one is not None
        hand.end(watched, one, experiment_id)
    turns(watched, lambda: len(watched.history.latest) >= 4 and not watched.queue.open(), *hands)
    stale = [one for one in watched.history.latest.values() if one.reason == "stale_base"]
    assert len(stale) == 1
    last = list(watched.history.latest.values())[-1]
    assert last.hypothesis_id == stale[0].hypothesis_id and last.base_commit != stale[0].base_commit


def test_a_hypothesis_that_a_person_abandoned_stays_abandoned(fleet_project: Project) -> None:
    hand = Hands(fleet_project, "w0", Lost(9))
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    turns(watched, lambda: len(watched.history.attempts("h-t-0001")) == 1, hand)
    turns(watched, lambda: watched.queue.dispatched("w0")["w0"])
    watched.queue.abandon("h-t-0001", "not worth it")
    for _ in range(5):
        watched.turn()
        assert hand.work(watched) is None
    found = watched.queue.read("h-t-0001")
    assert found is not None and found[1].outcome == "not worth it"


def test_a_platform_without_a_reference_is_given_one(fleet_project: Project) -> None:
    """Two kinds of devices: what was measured on the one says nothing on the other."""
    hands = [Hands(fleet_project, "w0"), Hands(fleet_project, "other", _elsewhere(fleet_project))]
    watched = observer(fleet_project)
    turns(watched, lambda: watched.history.has_reference(), hands[0])
    for one in watched.queue.open():
        watched.queue.abandon(one.hypothesis_id, "this test wants none")
    mine = watched.queue.add(idea(RATE=2.0), proposer="ada")
    watched.queue.dispatch(mine.hypothesis_id, "other")
    turns(watched, lambda: len(watched.history.latest) == 3, *hands)
    first, again, won = watched.history.latest.values()
    assert won.hypothesis_id == mine.hypothesis_id and won.decision_status == "keep"
    assert (again.platform_key, again.commit) == ("elsewhere", first.commit)
    assert watched.status.problems == []


def _elsewhere(project: Project) -> Callable[[Hypothesis, str, Result], Result]:
    def moved(one: Hypothesis, experiment_id: str, result: Result) -> Result:
        path = project.layout.run(experiment_id).metadata
        document = read_json(path)
        document["runtime"]["platform_key"] = "elsewhere"
        write_json(path, document)
        return result

    return moved


@pytest.mark.parametrize(
    ("detail", "kind"),
    [(CANCELLED, "cancelled"), (NO_SHIM, "infra"), (STOPPED_BEFORE, "infra")],
)
def test_a_down_and_a_killed_shim_come_back_however_often(
    fleet_project: Project, detail: str, kind: str
) -> None:
    hand = Hands(fleet_project, "w0", Lost(MAX_INFRA_RETRIES + 2, detail, kind))
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]), most=2)
    turns(watched, lambda: watched.status.state == "finished", hand)
    assert len(watched.history.attempts("h-t-0001")) == MAX_INFRA_RETRIES + 3
    verdict = watched.history.decision_about("h-t-0001")
    assert verdict is not None and verdict.decision_status == "keep"


def test_a_baseline_that_is_lost_again_and_again_ends_the_search(fleet_project: Project) -> None:
    hand = Hands(
        fleet_project, "w0", Lost(99, "OSError: No space left on device", hypothesis="baseline-t")
    )
    watched = observer(fleet_project)
    turns(watched, lambda: watched.status.state == "failed", hand)
    assert len(watched.history.attempts("baseline-t")) == MAX_INFRA_RETRIES + 1
    assert "No space left" in watched.status.problems[0]


@pytest.mark.parametrize("fault", ["killed", "full"])
def test_a_requeueing_that_is_cut_off_is_taken_up_again(
    fleet_project: Project,
    killed_at: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Its file was rewritten, and not moved: it is done, and not closed."""
    hand = Hands(fleet_project, "w0", Lost(1))
    watched = observer(fleet_project, Listed([[idea(RATE=2.0)]]))
    requeue_turn = watched.requeue.turn
    watched.requeue.turn = list  # type: ignore[method-assign]
    turns(watched, lambda: watched.history.decision_about("h-t-0001"), hand)
    move = "autohypothesis.fleet.queue.states.rename_exclusive"
    if fault == "killed":
        assert killed_at(1, [move], requeue_turn)
    else:
        with monkeypatch.context() as patched:
            patched.setattr(move, full)
            assert "No space left on device" in " ".join(requeue_turn())
            assert requeue_turn() == [], "the same fault is said once"
            assert "h-t-0001 stays where it is" in watched.requeue.problems()[0]
    found = watched.queue.read("h-t-0001")
    assert found is not None and (found[0].state, found[1].closed) == ("done", None)
    successor = observer(fleet_project, most=2)
    turns(successor, lambda: successor.history.counted() == 2, hand)
    assert successor.history.attempts("h-t-0001") == ["h-t-0001-1", "h-t-0001-2"]
    found = successor.queue.read("h-t-0001")
    assert found is not None and (found[0].state, found[1].closed) == ("done", "completed")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def strangers(project: Project, *rates: float) -> tuple[Observer, list[str]]:
    """Ideas that a worker had begun before it was taken out of the fleet; their runs have ended."""
    hand, old = Hands(project, "w0", trains=True), Hands(project, "old", trains=True)
    watched = observer(project)
    turns(watched, lambda: watched.history.has_reference(), hand)
    turns(watched, lambda: not watched.queue.open(), hand, old)
    names = []
    for rate in rates:
        names.append(watched.queue.add(idea(RATE=rate), proposer="ada").hypothesis_id)
        watched.queue.dispatch(names[-1], "old")
        claimed = old.claim(watched)
        assert claimed is not None
        executor = LocalExecutor(project.repository, project.layout)
        runner.follow(project, executor, old.begin(claimed))
    old.beat("stopped")
    members(project, "w0")
    return watched, names


def state_of(watched: Observer, name: str) -> str:
    found = watched.queue.read(name)
    assert found is not None
    return found[0].state


def test_a_damaged_run_of_a_removed_worker_is_run_anew_and_stops_no_other(
    fleet_project: Project,
) -> None:
    watched, (torn, whole) = strangers(fleet_project, 2.0, 3.0)
    fleet_project.layout.run(f"{torn}-1").local.write_bytes(b'{"checkout": "/to')
    hand = Hands(fleet_project, "w0", trains=True)
    turns(watched, lambda: not watched.queue.open(), hand)
    watched.turn()
    assert {one.closed for one in watched.queue.done()} == {"completed"}
    assert watched.history.attempts(torn) == [f"{torn}-1", f"{torn}-2"]
    assert watched.history.attempts(whole) == [f"{whole}-1"]
    assert fleet_project.layout.run(f"{torn}-1").local.read_bytes() == b'{"checkout": "/to'


def test_a_run_that_cannot_be_collected_now_stops_no_other_and_is_tried_again(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, (first, second) = strangers(fleet_project, 2.0, 3.0)
    real = collect

    def refusing(repository: Repository, layout: Layout, experiment_id: str) -> Result:
        if experiment_id == f"{first}-1":
            raise OSError(28, "No space left on device")
        return real(repository, layout, experiment_id)

    with monkeypatch.context() as patched:
        patched.setattr(local_executor, "collect", refusing)
        for _ in range(3):
            watched.turn()
        assert (state_of(watched, first), state_of(watched, second)) == ("running", "done")
        assert first in watched.requeue.problems()[0]
    watched.turn()
    assert watched.requeue.problems() == []
    assert state_of(watched, first) == "done"
    assert watched.history.attempts(first) == [f"{first}-1"]
