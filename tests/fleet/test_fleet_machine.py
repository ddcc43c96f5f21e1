"""Random schedules of a whole fleet, with kills and full disks in the middle of any step.

The roles and their files are the real ones; see `world` for what is played. Whatever happens, each
hypothesis is in one state, is run by one at a time, and ends exactly once.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autohypothesis.engine.devices import Lease, release
from autohypothesis.engine.workspace import Export
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.git import Repository
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Decision, Proposal
from tests.fleet.world import (
    OPS,
    RARE,
    WORKERS,
    Fault,
    Outcome,
    Shim,
    World,
    make_template,
    quietly,
)

MOST_IDEAS = 6
ROUNDS = 150
"""Turns of everybody until a fleet without faults has nothing left to do."""
BASELINE = "baseline-t"
GONE_PATCH = """--- a/train.py
+++ b/train.py
@@ -1,3 +1,3 @@
-not there
+other
"""
SIMPLER_PATCH = """--- a/train.py
+++ b/train.py
@@ -5,6 +5,3 @@
 
-# what a simplification removes
-SPARE = 0
-
 print(f"val_bpb: {1.5 - RATE / 10:.6f}")
"""
TEMPLATE: list[Path] = []

hows = st.sampled_from(("kill", "kill", "full"))
faults = (
    st.none()
    | st.builds(Fault, hows, st.sampled_from(OPS), st.integers(1, 12), st.booleans())
    | st.builds(Fault, hows, st.just("any"), st.integers(1, 120), st.booleans())
    | st.builds(Fault, st.just("kill"), st.sampled_from(RARE), st.just(1), st.booleans())
)
names = st.sampled_from(WORKERS)
picks = st.integers(0, 100)
outcomes: st.SearchStrategy[Outcome] = st.sampled_from(
    ("well", "well", "well", "crashes", "contended", "slow", "device", "no_exit")
)


class FleetRules(RuleBasedStateMachine):
    """An observer, two workers, their trainings, people, and what goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(TEMPLATE[0])
        self.layout = self.world.layout
        self.known: set[str] = set()
        """Hypotheses that were seen in the queue."""
        self.begun: dict[str, str] = {}
        """Experiment -> its hypothesis, for each that left a run_spec.json."""
        self.decided: set[str] = set()
        """Hypotheses with a decision that lasts, as of the last look."""
        self.results: dict[str, tuple[Any, ...]] = {}
        self.strangers: dict[str, int] = {}
        self.is_over = False

    @initialize()
    def start(self) -> None:
        self.world.observe()
        for name in WORKERS:
            self.world.work(name)

    def teardown(self) -> None:
        try:
            if not self.is_over:
                self.everybody_comes_to_an_end()
        finally:
            self.world.close()

    # ── people ────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.known) < MOST_IDEAS + 1)
    @rule(
        rate=st.sampled_from((0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0)),
        kind=st.sampled_from(("rate", "rate", "rate", "rate", "gone", "simpler", "unknown")),
    )
    def propose(self, rate: float, kind: str) -> None:
        change: dict[str, Any] = {"config_overrides": {"RATE": rate}}
        if kind == "unknown":
            change = {"config_overrides": {"NOT_THERE": rate}}
        elif kind != "rate":
            change = {"patch": GONE_PATCH if kind == "gone" else SIMPLER_PATCH}
        proposal = Proposal.model_validate({"title": f"{kind} {rate}", **change})
        Queue(self.layout, "t").add(proposal, proposer="p")

    @rule(seconds=st.sampled_from((2.0, 11.0, 65.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.sleep(seconds)

    # ── roles ─────────────────────────────────────────────────────────────────────────────

    @rule(fault=faults)
    def observer_takes_a_turn(self, fault: Fault | None) -> None:
        self.world.sleep(0.5)
        self.world.observe(fault)

    @rule(name=names, fault=faults)
    def worker_takes_a_turn(self, name: str, fault: Fault | None) -> None:
        self.world.sleep(0.5)
        self.world.work(name, fault)

    @rule(
        name=names,
        fault=faults,
        moment=st.sampled_from(("observe", "begin", "collect", "decide")),
        outcome=outcomes,
    )
    def everything_goes_on(
        self, name: str, fault: Fault | None, moment: str, outcome: Outcome
    ) -> None:
        """A round of everybody's; most of a search."""
        for number, worker in enumerate(WORKERS):
            faulty = fault if worker == name else None
            self.world.sleep(1.1)
            self.world.observe(faulty if moment == "observe" else None)
            self.every_state_is_sound()
            self.world.work(worker, faulty if moment == "begin" else None)
            self.every_state_is_sound()
            self.a_training_ends(number, outcome if worker == name else "well")
            self.world.work(worker, faulty if moment == "collect" else None)
            self.every_state_is_sound()
            self.world.observe(faulty if moment == "decide" else None)
            self.every_state_is_sound()

    @rule(
        name=names,
        moment=st.sampled_from(("training", "collect", "decide")),
        op=st.sampled_from(("rename", "append", "move", "stamp")),
        nth=st.integers(1, 2),
        after=st.booleans(),
    )
    def somebody_dies_at_a_bad_moment(
        self, name: str, moment: str, op: str, nth: int, after: bool
    ) -> None:
        """Chance alone seldom meets these: in a training, before `finish`, within a decision."""
        if len(self.known) < 3 * MOST_IDEAS:
            self.propose(2.0 + len(self.known) / 10, "rate")  # better than all before
        for _ in range(2):
            self.world.sleep(1.1)
            self.world.observe()
            self.world.work(name)
        if moment == "training":
            self.worker_is_killed(name)
        for one in [one for one in self.world.shims if one.trains and moment != "training"]:
            self.a_training_ends(self.world.shims.index(one), "well")
        fault = Fault("kill", "rename" if moment == "collect" else op, nth, after)
        self.world.work(name, fault if moment == "collect" else None)
        self.every_state_is_sound()
        self.world.observe(fault if moment == "decide" else None)
        self.every_state_is_sound()
        self.world.work(name)

    @rule(name=names)
    def worker_is_killed(self, name: str) -> None:
        if self.world.alive(name):
            self.world.hands[name].kill()

    @rule(name=names, fault=faults, abandoned=st.booleans())
    def worker_is_told_to_leave(self, name: str, fault: Fault | None, abandoned: bool) -> None:
        if self.world.alive(name):
            self.world.hands[name].leave(fault, abandoned=abandoned)

    @rule()
    def observer_is_killed(self) -> None:
        self.world.kill_observer()

    # ── trainings and devices ─────────────────────────────────────────────────────────────

    def pick(self, number: int, found: list[Shim]) -> Shim | None:
        return found[number % len(found)] if found else None

    @rule(number=picks, outcome=outcomes)
    def a_training_ends(self, number: int, outcome: Outcome) -> None:
        one = self.pick(number, [one for one in self.world.shims if one.trains])
        if one is not None:
            baseline = one.experiment_id.startswith(BASELINE)
            if baseline and outcome in ("crashes", "device", "contended"):
                outcome = "well"  # a search whose baseline fails has failed
            one.end(outcome)

    @rule(number=picks)
    def a_shim_is_killed(self, number: int) -> None:
        one = self.pick(number, [one for one in self.world.shims if one.lives])
        if one is not None:
            one.die()

    @rule()
    def the_next_shim_is_slow(self) -> None:
        self.world.slow = True

    @rule(number=picks)
    def a_slow_shim_begins(self, number: int) -> None:
        one = self.pick(number, [one for one in self.world.shims if one.waits])
        if one is not None:
            one.boot()

    @rule(name=names)
    def a_stranger_comes_or_goes(self, name: str) -> None:
        if name in self.strangers:
            release(self.strangers.pop(name))
        else:
            held = self.lease(name).try_acquire({"repository": "/another"}, 0.0)
            if held is not None:
                self.strangers[name] = held

    def lease(self, name: str) -> Lease:
        path = f"{os.environ['AUTOHYPOTHESIS_LOCKS']}/cpu-{WORKERS.index(name)}.lock"
        Path(path).parent.mkdir(exist_ok=True)
        return Lease(path, name)

    # ── what must be true ─────────────────────────────────────────────────────────────────

    @invariant()
    def every_state_is_sound(self) -> None:
        self.every_hypothesis_is_in_one_state()
        self.leases_and_worktrees_have_one_user()
        decisions = self.decisions()
        self.what_was_decided_stays_decided(decisions)
        self.every_result_is_written_once()
        self.the_reference_follows_the_decisions(decisions)

    def decisions(self) -> list[Decision]:
        decisions, problems = read_decisions(self.layout)
        assert not problems
        return decisions

    def every_hypothesis_is_in_one_state(self) -> None:
        root = self.layout.hypotheses("pending").parent
        found = [path.stem for path in root.rglob("*.json") if not path.name.startswith(".")]
        assert len(found) == len(set(found)), f"twice: {sorted(found)}"
        assert self.known <= set(found), f"lost: {self.known - set(found)}"
        self.known = set(found)

    def leases_and_worktrees_have_one_user(self) -> None:
        training = [one for one in self.world.shims if one.trains]
        for key in ("lease", "cwd"):
            used = [str(getattr(one.launch, key)) for one in training]
            assert len(used) == len(set(used)), f"two trainings share {used}"
        for one in training:
            launch = one.launch
            assert launch is not None
            assert launch.lease is not None
            assert launch.lease.holder() is not None
            export = Export(Repository(self.layout.root), Path(launch.cwd).name)
            assert export.path == Path(launch.cwd)
            assert export.holds() == launch.labels["commit"], (
                f"{one.experiment_id} lost its checkout"
            )

    def what_was_decided_stays_decided(self, decisions: list[Decision]) -> None:
        ids = [one.experiment_id for one in decisions]
        assert len(ids) == len(set(ids)), f"decided twice: {ids}"
        for run in self.layout.runs.iterdir() if self.layout.runs.exists() else ():
            if run.name not in self.begun and (spec := quietly(run / "run-spec.json")):
                name = spec["hypothesis_id"]
                assert name not in self.decided, f"{name} runs again, as {run.name}"
                self.begun[run.name] = name
        lasting = [self.begun[one.experiment_id] for one in decisions if not one.requeue]
        assert len(lasting) == len(set(lasting)), f"two lasting decisions: {lasting}"
        self.decided = set(lasting)

    def every_result_is_written_once(self) -> None:
        for name in self.begun:
            assert self.layout.run(name).run_spec.exists(), f"{name} was begun, and is gone"
            result = quietly(self.layout.run(name).result)
            if result is None:
                assert name not in self.results, f"the result of {name} is gone"
                continue
            said = tuple(result[key] for key in ("recorded_at", "commit", "title"))
            assert self.results.setdefault(name, said) == said, f"{name} was collected twice"

    def the_reference_follows_the_decisions(self, decisions: list[Decision]) -> None:
        for before, after in pairwise(decisions):
            assert before.reference_after == after.reference_before
        if decisions:
            last = decisions[-1]
            assert self.reference() in (last.reference_before, last.reference_after)

    def reference(self) -> str:
        return (self.world.root / ".git/refs/autohypothesis/reference/t").read_text().strip()

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def everybody_comes_to_an_end(self) -> None:
        """Without any more faults every hypothesis ends, exactly once, and nothing is left."""
        for held in self.strangers.values():
            release(held)
        self.strangers = {}
        quiet = 0
        for number in range(ROUNDS):
            self.a_round(number)
            self.every_state_is_sound()
            quiet = quiet + 1 if self.nothing_is_left() else 0
            if quiet == 2:
                break
        else:
            raise AssertionError(f"it never ends: {self.left()}")
        for name in WORKERS:
            if self.world.alive(name):
                self.world.hands[name].leave(None, abandoned=False)
        self.everything_ended_once()

    def a_round(self, number: int) -> None:
        world = self.world
        world.sleep(700.0 if number % 8 == 7 else 1.5)
        for one in list(world.shims):
            if one.waits:
                one.boot()
            if one.trains:
                one.end("well")
        for name in WORKERS:
            world.work(name)
        world.observe()

    def left(self) -> dict[str, Any]:
        queue = Queue(self.layout, "t")
        state = self.world.observer.status.problems if self.world.observer else []
        undecided = set(self.begun) - {one.experiment_id for one in self.decisions()}
        open_ = [(place, one.hypothesis_id) for place, one in queue.placed()]
        return {"open": open_, "undecided": sorted(undecided), "problems": state}

    def nothing_is_left(self) -> bool:
        left = self.left()
        return not left["open"] and not left["undecided"]

    def everything_ended_once(self) -> None:
        decisions = self.decisions()
        lasting = {self.begun[one.experiment_id]: one for one in decisions if not one.requeue}
        for one in Queue(self.layout, "t").done():
            name = one.hypothesis_id
            assert (name in lasting) == (one.closed == "completed"), (one, lasting.get(name))
            assert one.outcome or one.closed == "completed"
        assert not decisions or self.reference() == decisions[-1].reference_after
        for name in WORKERS:
            assert self.lease(name).holder() is None, f"the lane of {name} is leased"
        sync(self.layout, light=True)
        rows = {row["id"]: row for row in read_ledger(self.layout)}
        assert rows.keys() >= self.begun.keys()
        assert {name: rows[name]["decision_status"] for name in self.begun} == {
            one.experiment_id: one.decision_status for one in decisions
        }
        plans = {path.stem for path in self.layout.plans.iterdir() if path.name[0] != "."}
        runs = {path.name for path in self.layout.runs.iterdir()}
        assert plans | runs == set(self.begun), f"never begun: {(plans | runs) ^ set(self.begun)}"


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    patches = pytest.MonkeyPatch()
    patches.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    patches.setenv("GIT_CONFIG_NOSYSTEM", "1")
    TEMPLATE[:] = [make_template(tmp_path_factory.mktemp("fleet"))]


def drive(examples: int, steps: int) -> None:
    """Random schedules; a failing one is printed step by step, with what plays it again."""
    run_state_machine_as_test(
        FleetRules,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes an hour
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_schedule_ends_every_hypothesis_exactly_once() -> None:
    drive(examples=12, steps=30)


@pytest.mark.parametrize("fault", [Fault("kill", "replace", 0, True), Fault("full", "open", 0)])
def test_a_plan_that_was_cut_off_is_taken_back_with_its_page(fault: Fault) -> None:
    """Whichever of the files that a worker writes until its run begins is the last one."""
    kept = set()
    for nth in range(1, 9):
        machine = FleetRules()
        try:
            machine.start()
            machine.world.observe()
            for name in WORKERS:
                machine.world.work(name, fault._replace(nth=nth))
            kept.add("".join(sorted(path.suffix for path in machine.layout.plans.glob("[!.]*"))))
        finally:
            machine.teardown()
    assert kept == {"", ".json.md"} | ({".json"} if fault.how == "kill" else set())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_schedules_end_every_hypothesis_exactly_once() -> None:
    drive(examples=40, steps=40)
