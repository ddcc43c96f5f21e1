"""A worker: killed, starved, benched, robbed and refused, it ends every hypothesis exactly once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from autohypothesis.engine import devices, processes, runner
from autohypothesis.engine.collect import collect_ended
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Executor, Experiment, Resources, RunSpec
from autohypothesis.engine.failures import CANCELLED
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import reference_ref
from autohypothesis.errors import (
    AutohypothesisError,
    GitError,
    LaunchError,
    LockError,
    RecordError,
)
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.fleet.live.presence import read_heartbeat, worker_lives
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.supervisor.snapshot import restore, snapshot
from autohypothesis.fleet.worker import preparation, worker
from autohypothesis.fleet.worker.preparation import WorkerQueue
from autohypothesis.fleet.worker.worker import FleetWorker
from autohypothesis.records.bundles import uncollected
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import Heartbeat, Hypothesis, Proposal, Result, now
from autohypothesis.schema import Worker as Entry
from tests.conftest import wait_until as until
from tests.fleet.conftest import Forked

NAME = "w0"
CPU_SLOT = devices.cpu_slots()[0].id
ENTRY = Entry(worker_id=NAME, gpu_id="0", device=CPU_SLOT, kind="cpu")

SCRIPT_OF_ANOTHER = b"RATE = 0.5\nSLEEP = 0.0\nWIDTH = 8\nprint('val_bpb: 1.0')\n"


def work(tell: Callable[[object], None], root: Path) -> None:
    with Stop() as stop:
        FleetWorker(Project.open(root), ENTRY).run(stop)


class Asked:
    """Stands for `Stop` in a thread, where no handler can be installed."""

    def __init__(self) -> None:
        self.requested = self.abandoned = self.hard = False
        self._event = threading.Event()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    def leave(self, *, abandoned: bool = False) -> None:
        self.requested, self.abandoned = True, abandoned
        self._event.set()


class Running:
    """A worker in a thread."""

    def __init__(self, made: FleetWorker) -> None:
        self.worker, self.stop = made, Asked()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run(self.stop)
        except BaseException as error:
            self.error = error

    def has_prepared(self, hypothesis_id: str) -> bool:
        """Whether it is ready to begin, as soon as the device is free."""
        ahead = self.worker.next
        return (
            ahead is not None and ahead.is_over and ahead.hypothesis.hypothesis_id == hypothesis_id
        )

    def end(self, *, abandoned: bool = False) -> None:
        self.stop.leave(abandoned=abandoned)
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


class Floor:
    """A search with one worker, and its queue."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.layout = project.layout
        self.jobs = Queue(project.layout, "t")
        self.executor = LocalExecutor(project.repository, project.layout)

    @contextmanager
    def working(self, entry: Entry = ENTRY, executor: Executor | None = None) -> Iterator[Running]:
        project = Project.open(self.project.layout.root)
        running = Running(FleetWorker(project, entry, executor=executor))
        try:
            yield running
        finally:
            running.end()

    def works_off(self, *names: str) -> None:
        """A worker works until these hypotheses are done."""
        with self.working():
            until(lambda: self.is_done(*names))

    def propose(self, count: int = 1, **change: object) -> list[str]:
        """New hypotheses, dispatched to the worker; each sets RATE to a value of its own."""
        names = []
        overrides = dict(change.pop("overrides", {}))  # type: ignore[call-overload]
        for _ in range(count):
            kind = change or {"config_overrides": {"RATE": random.uniform(1, 2), **overrides}}
            proposal = Proposal.model_validate({"title": "another rate", **kind})
            names.append(self.jobs.add(proposal, proposer="test").hypothesis_id)
            self.jobs.dispatch(names[-1], NAME)
        return names

    def claimed(self, **change: object) -> tuple[str, RunSpec]:
        """A hypothesis that a worker has claimed and planned, before it died."""
        (name,) = self.propose(**change)
        hypothesis = self.jobs.claim(NAME)
        assert hypothesis is not None and hypothesis.hypothesis_id == name
        resources = Resources(device=CPU_SLOT)
        return name, runner.plan(self.project, Experiment.of(hypothesis), NAME, resources=resources)

    def ended_run(self) -> str:
        """A claim whose run has ended, and is not collected."""
        name, spec = self.claimed()
        self.executor.submit(spec)
        until(lambda: self.executor.poll(spec.experiment_id) != "running")
        return name

    def is_done(self, *names: str) -> bool:
        return set(names) <= set(self.jobs.done_ids())

    def waiting(self) -> list[str]:
        """Dispatched to the worker, and not claimed."""
        return [one.hypothesis_id for one in self.jobs.dispatched(NAME)[NAME]]

    def claims(self) -> list[str]:
        return [one.hypothesis_id for one in self.jobs.running(NAME)[NAME]]

    def pending(self) -> list[str]:
        return [one.hypothesis_id for one in self.jobs.pending()]

    def closed(self, name: str) -> Hypothesis:
        found = self.jobs.read(name)
        assert found is not None
        return found[1]

    def runs_of(self, name: str) -> list[str]:
        folder = self.layout.runs
        every = os.listdir(folder) if folder.is_dir() else []
        return sorted(one for one in every if one.rpartition("-")[0] == name)

    def result_of(self, experiment_id: str) -> Result:
        return Result.model_validate(json.loads(self.layout.run(experiment_id).result.read_text()))

    def is_of(self, worker: Forked) -> bool:
        """Whether the heartbeat is that of this process."""
        return self.seen().pid == worker.pid

    def seen(self) -> Heartbeat:
        """Its heartbeat; an empty one before the first."""
        return read_heartbeat(self.layout, NAME) or Heartbeat(worker_id=NAME, updated_at=now())

    def is_running(self, experiment_id: str) -> bool:
        return self.executor.poll(experiment_id) == "running"

    def trains(self, experiment_id: str) -> bool:
        """Whether its training has begun; until then its shim may still be timing the slot."""
        return self.is_running(experiment_id) and self.layout.run(experiment_id).events.exists()

    def nothing_is_left(self) -> None:
        """No lease, no stray, no claim, no plan without a run."""
        lease = devices.lease_of(devices.cpu_slots()[0])
        assert lease.holder() is None
        for folder in self.layout.runs.iterdir():
            assert processes.find_marked(processes.run_mark(RunPaths(folder))) == {}
        plans = {path.stem for path in self.layout.plans.glob("*.json")}
        assert plans == set(os.listdir(self.layout.runs))


def long() -> dict[str, float]:
    return {"SLEEP": 120.0}


@pytest.fixture
def floor(fleet_project: Project, monkeypatch: pytest.MonkeyPatch) -> Floor:
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    monkeypatch.setattr(worker, "LONGEST_PAUSE_S", 0.05)
    return Floor(fleet_project)


# ── the usual ───────────────────────────────────────────────────────────────────────────────


def test_the_next_candidate_is_ready_while_the_device_still_trains(floor: Floor) -> None:
    """The gap between two experiments is short by construction, not by luck."""
    first, second = floor.propose(2, overrides=long())
    ref = experiment_ref(f"{second}-1")
    with floor.working():
        until(lambda: floor.project.repository.read_ref(ref))
        assert floor.is_running(f"{first}-1"), "the first trains still"
        assert floor.layout.plan(f"{second}-1").exists()
        assert not floor.layout.run(f"{second}-1").folder.exists()
        until(lambda: floor.seen().next_hypothesis_id == second)
        assert floor.seen().hypothesis_id == first and floor.seen().state == "training"


def test_what_was_prepared_on_an_older_reference_is_prepared_anew_while_there_is_time(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's keep moved it; a stale candidate would have to be run once more."""
    monkeypatch.setattr(worker, "FRESH_S", 0.1)
    first, second = floor.propose(2, overrides=long())
    project, plan = floor.project, floor.layout.plan
    with floor.working() as running:
        until(lambda: project.repository.read_ref(experiment_ref(f"{second}-1")))
        assert plan(f"{second}-1").exists()
        kept = project.repository.tree_with(project.reference(), {"train.py": SCRIPT_OF_ANOTHER})
        commit = project.repository.commit_tree(kept, [project.reference()], "kept")
        project.repository.compare_and_swap(reference_ref("t"), commit, project.reference())
        running.worker._last_duration = 1_000.0  # as long as the runs before took
        until(lambda: plan(f"{second}-2").exists())
        assert json.loads(plan(f"{second}-2").read_text())["based_on_commit"] == commit
        assert not plan(f"{second}-1").exists()
        assert floor.is_running(f"{first}-1")


def test_a_patch_that_does_not_parse_is_a_crash_in_the_record(floor: Floor) -> None:
    base = floor.project.reference()
    source = floor.project.repository.show_file(base, "train.py")
    tree = floor.project.repository.tree_with(base, {"train.py": source + b"def (\n"})
    (name,) = floor.propose(patch=floor.project.repository.diff(base, tree))
    floor.works_off(name)
    assert floor.closed(name).closed == "completed"
    (decision,) = settle(floor.project, [f"{name}-1"], decided_by="t").decisions_or_raise()
    assert (decision.decision_status, decision.reason) == ("crash", "code_error")
    assert decision.base_commit == base and not floor.layout.run(f"{name}-1").shim.exists()


def test_a_patch_cannot_touch_what_a_person_froze(floor: Floor) -> None:
    floor.layout.steering.parent.mkdir(parents=True, exist_ok=True)
    floor.layout.steering.write_text("```steering\nfrozen: [WIDTH]\n```\n")
    base = floor.project.reference()
    source = floor.project.repository.show_file(base, "train.py").decode()
    tree = floor.project.repository.tree_with(
        base, {"train.py": source.replace("WIDTH = 8", "WIDTH = 9").encode()}
    )
    (name,) = floor.propose(patch=floor.project.repository.diff(base, tree))
    floor.works_off(name)
    found = floor.closed(name)
    assert found.closed == "abandoned" and "WIDTH" in found.outcome
    assert not floor.layout.plan(f"{name}-1").exists()


def test_a_second_process_of_one_worker_is_refused_by_name(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LOCK_S", 0.1)
    with floor.working():
        until(lambda: worker_lives(floor.seen()))
        with pytest.raises(LockError, match=f"worker-{NAME}.*pid {os.getpid()}"):
            FleetWorker(floor.project, ENTRY).run(Asked())


def test_a_result_that_cannot_be_written_now_is_written_later(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worktree keeps its evidence until then: the next experiment waits."""
    real, refused = LocalExecutor.collect, []

    def full(self: LocalExecutor, experiment_id: str) -> Result:
        if len(refused) < 2:
            refused.append(experiment_id)
            raise RecordError("cannot write result.json: No space left on device")
        return real(self, experiment_id)

    monkeypatch.setattr(LocalExecutor, "collect", full)
    first, second = floor.propose(2)
    floor.works_off(first, second)
    assert refused == [f"{first}-1"] * 2
    assert all(floor.result_of(f"{name}-1").status == "completed" for name in (first, second))


def test_a_full_disk_at_a_release_loses_no_hypothesis(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "RETRY_S", 0.0)
    (name,) = floor.propose()
    held = WorkerQueue(floor.project, NAME)
    assert held.take() is not None
    with monkeypatch.context() as patched:
        patched.setattr("autohypothesis.fleet.queue.states.rename_exclusive", full)
        held.give_back(name)
        assert "No space left on device" in held.problem and held.holds(name)
    held.flush()
    assert not held.problem and not held.holds(name)
    assert floor.waiting() == [name]


def test_a_step_that_somebody_else_has_taken_does_not_hold_up_the_next(floor: Floor) -> None:
    first, second = floor.propose(2)
    held = WorkerQueue(floor.project, NAME)
    for _ in range(2):
        held.take()
    floor.jobs.requeue(first)
    held.give_back(first)
    held.give_back(second)
    assert floor.waiting() == [second]


def test_a_stopped_shim_is_named_by_the_worker_until_it_goes_on_or_is_ended(floor: Floor) -> None:
    (name,) = floor.propose(overrides=long())
    with floor.working():
        until(lambda: floor.trains(f"{name}-1"))
        run = floor.layout.run(f"{name}-1")
        known = read_json(run.shim)
        os.kill(known["pid"], signal.SIGSTOP)
        until(lambda: f"`kill -CONT {known['pid']}` resumes it" in floor.seen().notes)
        assert floor.seen().state == "training"
        os.kill(known["pid"], signal.SIGCONT)
        until(lambda: floor.seen().notes == "")
        os.kill(known["pid"], signal.SIGSTOP)
        write_json(run.shim, {**known, "overdue_after": [1.0, 1.0]})
        until(lambda: floor.is_done(name))
    result = floor.result_of(f"{name}-1")
    assert result.failure_kind == "infra" and "was stopped (state T)" in result.failure_detail


# ── leaving ─────────────────────────────────────────────────────────────────────────────────


def test_down_cancels_collects_and_gives_back_what_was_prepared(floor: Floor) -> None:
    first, second = floor.propose(2, overrides=long())
    with floor.working():
        until(lambda: floor.seen().next_hypothesis_id == second and floor.trains(f"{first}-1"))
        until(lambda: floor.layout.plan(f"{second}-1").exists())
    assert floor.is_done(first)
    result = floor.result_of(f"{first}-1")
    assert (result.failure_kind, result.failure_detail) == ("cancelled", CANCELLED)
    assert floor.waiting() == [second]
    assert floor.jobs.running(NAME)[NAME] == []
    assert floor.seen().state == "stopped" and not worker_lives(floor.seen())
    assert (floor.seen().busy_seconds or 0) > 0
    floor.nothing_is_left()


def test_who_leaves_does_not_wait_for_a_change_that_is_still_being_prepared(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing, over = threading.Event(), threading.Event()

    def plan(*words: object, **options: object) -> object:
        preparing.set()
        over.wait(300)
        raise OSError("it took too long")

    monkeypatch.setattr(runner, "plan", plan)
    monkeypatch.setattr(worker, "PREPARATION_S", 0.2)
    floor.propose()
    running = Running(FleetWorker(floor.project, ENTRY))
    try:
        assert preparing.wait(60)
        running.end()
    finally:
        over.set()


def test_an_abandoned_worker_leaves_its_training_to_its_successor(floor: Floor) -> None:
    gate = floor.layout.root / "go"
    first, second = floor.propose(2, overrides={"GATE": str(gate)})
    running = Running(FleetWorker(floor.project, ENTRY))
    until(lambda: floor.trains(f"{first}-1"))
    until(lambda: running.has_prepared(second))
    running.end(abandoned=True)
    assert floor.is_running(f"{first}-1")
    assert floor.claims() == [first]
    assert floor.waiting() == [second]
    assert not floor.layout.plan(f"{second}-1").exists(), "a plan that nobody begins"
    with floor.working():
        until(lambda: floor.seen().notes == "taken over")
        assert floor.seen().run_id == f"{first}-1"
        gate.touch()
        until(lambda: floor.is_done(first, second))
    assert floor.runs_of(first) == [f"{first}-1"], "it was not run again"
    assert floor.result_of(f"{first}-1").status == "completed"
    floor.nothing_is_left()


# ── what a predecessor left ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["ended", "copied", "restored"])
def test_a_run_that_has_ended_is_collected_once_and_not_run_again(floor: Floor, how: str) -> None:
    """A copied claim, or what a snapshot brings back, has none of the times that it had."""
    project = floor.project
    name = floor.ended_run()
    result = project.layout.run(f"{name}-1").result
    before = b""
    if how != "ended":
        floor.executor.collect(f"{name}-1")
        before = result.read_bytes()
    if how == "copied":
        claim = project.layout.hypothesis(name, "running", NAME)
        claim.write_bytes(claim.read_bytes())
    elif how == "restored":
        assert snapshot(project.repository, project.layout, "t", everything=True)
        shutil.rmtree(project.layout.research)
        restore(project.repository, project.layout, "t")
        assert floor.jobs.running(NAME)[NAME][0].hypothesis_id == name
    floor.works_off(name)
    assert before in (b"", result.read_bytes())
    assert floor.result_of(f"{name}-1").status == "completed"
    assert floor.runs_of(name) == [f"{name}-1"]
    assert floor.jobs.done()[0].closed == "completed"


def test_a_run_of_another_machine_is_left_alone_and_its_hypothesis_run_anew(floor: Floor) -> None:
    """A container was made anew in the middle of a training: nobody can look after it any more."""
    name = floor.ended_run()
    run = floor.layout.run(f"{name}-1")
    run.exit.unlink()
    identity = {**json.loads(run.shim.read_text()), "host": "gone", "hostname": "rack-7"}
    run.shim.write_text(json.dumps(identity))
    with floor.working():
        until(lambda: floor.is_done(name))
        until(lambda: floor.seen().state == "idle" and "rack-7" in floor.seen().notes)
        assert f"rm '{run.shim}'" in floor.seen().notes
    assert floor.runs_of(name) == [f"{name}-1", f"{name}-2"]
    assert floor.result_of(f"{name}-2").status == "completed"
    assert not run.result.exists()
    with floor.working():  # the claim is gone, and the run still lies there
        until(lambda: worker_lives(floor.seen()) and floor.seen().state == "idle")
    local = json.loads(run.local.read_text())
    run.local.write_text(json.dumps({**local, "starter": {"pid": 0, "start": 0.0}}))
    run.shim.unlink()  # as the hint says
    assert collect_ended(floor.project.repository, floor.layout) == [f"{name}-1"]
    assert floor.result_of(f"{name}-1").failure_kind == "infra"


def test_a_claim_is_not_ended_with_the_run_of_an_earlier_claim(floor: Floor) -> None:
    """It was requeued, claimed again, and the worker was killed before the new plan."""
    (name,) = floor.propose()
    floor.works_off(name)
    floor.jobs.requeue(name)
    floor.jobs.dispatch(name, NAME)
    floor.jobs.claim(NAME)
    floor.works_off(name)
    assert floor.runs_of(name) == [f"{name}-1", f"{name}-2"]


@pytest.mark.parametrize("notes", ['{"checkout": "/to', '{"checkout": "elsewhere"}', '"x"'])
def test_a_damaged_run_of_a_claim_is_left_where_it_is_and_run_anew(
    floor: Floor, notes: str
) -> None:
    name = floor.ended_run()
    floor.layout.run(f"{name}-1").local.write_text(notes)
    floor.works_off(name)
    assert floor.runs_of(name) == [f"{name}-1", f"{name}-2"]
    assert floor.result_of(f"{name}-2").status == "completed"


def test_a_hypothesis_that_was_taken_away_is_not_collected_under_the_old_claim(
    floor: Floor,
) -> None:
    (name,) = floor.propose(overrides=long())
    with floor.working():
        until(lambda: floor.trains(f"{name}-1"))
        floor.jobs.requeue(name)
        until(lambda: not floor.is_running(f"{name}-1"))
        until(lambda: floor.seen().run_id is None)
    assert not floor.layout.run(f"{name}-1").result.exists()
    assert floor.pending() == [name]


def test_a_run_whose_claim_is_gone_is_ended_before_its_worktree_is_used(floor: Floor) -> None:
    """Its worker was killed, and somebody requeued the hypothesis before the next worker came."""
    name, spec = floor.claimed(overrides=long())
    floor.executor.submit(spec)
    until(lambda: floor.trains(spec.experiment_id))
    floor.jobs.requeue(name)
    (other,) = floor.propose()
    floor.works_off(other)
    assert not floor.is_running(spec.experiment_id)
    assert not floor.layout.run(spec.experiment_id).result.exists()


# ── the device ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def stranger() -> Iterator[None]:
    """Somebody of another repository holds the slot."""
    lease = devices.lease_of(devices.cpu_slots()[0])
    held = lease.acquire({"repository": "/somebody/else"})
    try:
        yield
    finally:
        devices.release(held)


def test_what_waits_behind_a_stranger_goes_to_other_workers_after_a_while(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HELD_S", 0.5)
    names = floor.propose(2)
    with ExitStack() as held:
        held.enter_context(stranger())
        with floor.working():
            until(lambda: "/somebody/else" in floor.seen().notes)
            until(lambda: len(floor.jobs.pending()) == 2)
            until(lambda: floor.seen().state == "benched")
            assert not floor.layout.plans.exists(), "nothing is burnt"
            held.close()
            until(lambda: floor.seen().state == "idle")
            for name in names:
                floor.jobs.dispatch(name, NAME)
            until(lambda: floor.is_done(*names))


def test_a_lease_that_is_lost_at_the_last_moment_costs_no_hypothesis(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is taken between the preparation and the start."""
    (name,) = floor.propose()
    monkeypatch.setattr(worker, "device_problem", lambda _: None)
    with ExitStack() as held:
        held.enter_context(stranger())
        with floor.working():
            until(lambda: "/somebody/else" in floor.seen().notes)
            assert not floor.is_done(name)
            held.close()
            until(lambda: floor.is_done(name))
    assert floor.runs_of(name) == [f"{name}-1"]


def test_a_worker_made_for_a_gpu_never_trains_without_it(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "usable_gpus", lambda: ([], "no NVIDIA driver answers"))
    entry = ENTRY.model_copy(update={"device": "GPU-0000", "kind": "cuda"})
    (name,) = floor.propose()
    with floor.working(entry):
        until(lambda: floor.pending() == [name])
        until(lambda: floor.seen().state == "benched")
        assert "no NVIDIA driver answers" in floor.seen().notes
    assert list(quarantine.quarantined(floor.layout)) == ["GPU-0000"]
    assert not floor.layout.plans.exists() and not floor.layout.runs.exists()


def test_a_gpu_that_no_driver_ever_named_is_not_replaced_by_any_other(floor: Floor) -> None:
    entry = ENTRY.model_copy(update={"device": "", "kind": "cuda", "gpu_id": "3"})
    (name,) = floor.propose()
    with floor.working(entry):
        until(lambda: floor.seen().state == "benched")
        until(lambda: floor.pending() == [name])


class Played(Executor):
    """An executor whose runs last until `opened`, and end with `result`."""

    def __init__(self, **result: object) -> None:
        self.result = Result.model_validate({"recorded_at": now(), **result})
        self.opened = threading.Event()
        self.submitted: list[str] = []

    def submit(self, spec: RunSpec) -> str:
        self.submitted.append(spec.experiment_id)
        return spec.experiment_id

    def poll(self, experiment_id: str) -> str:
        return "finished" if self.opened.is_set() else "running"

    def cancel(self, experiment_id: str) -> None:
        self.opened.set()

    def collect(self, experiment_id: str) -> Result:
        return self.result


def test_two_failures_of_a_device_in_a_row_bench_it_and_free_what_waits(floor: Floor) -> None:
    names = floor.propose(4)
    executor = Played(
        status="failed", failure_kind="infra", failure_detail="NVML: GPU is lost",
        evidence={"device": {"lost": True}},
    )  # fmt: skip
    executor.opened.set()
    with floor.working(executor=executor):
        until(lambda: floor.seen().state == "benched")
        until(lambda: len(floor.jobs.pending()) == 2)
        assert "lost" in floor.seen().notes
    assert len(executor.submitted) == 2
    assert len(floor.jobs.done_ids()) == 2 and set(floor.jobs.done_ids()) < set(names)
    assert "lost" in quarantine.quarantined(floor.layout)[CPU_SLOT]


def test_a_benched_device_is_used_again_when_its_time_is_over(floor: Floor) -> None:
    quarantine.quarantine(floor.layout, CPU_SLOT, "it was lost")
    (name,) = floor.propose()
    with floor.working():
        until(lambda: floor.seen().state == "benched" and floor.jobs.pending())
        quarantine.clear_quarantine(floor.layout)
        until(lambda: floor.seen().state == "idle")
        floor.jobs.dispatch(name, NAME)
        until(lambda: floor.is_done(name))


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────


def kill_again_and_again(
    floor: Floor, forked: Callable[..., Forked], times: int, seed: int
) -> None:
    """Kill the worker `times` times while it works off a queue; then let one come to the end."""
    chance = random.Random(seed)
    names = floor.propose(max(4, times // 2), overrides={"SLEEP": 0.2})
    for _ in range(times):
        if floor.is_done(*names):
            names += floor.propose(2, overrides={"SLEEP": 0.2})
        worker = forked(work, floor.layout.root)
        until(partial(floor.is_of, worker))
        time.sleep(chance.uniform(0.0, 0.8))  # a random moment, not a wait
        worker.end(kill=True)
    worker = forked(work, floor.layout.root)
    # Before it beats it has no handler: a signal would kill it when nothing was left to do.
    until(lambda: floor.is_of(worker))
    until(lambda: floor.is_done(*names), seconds=200)
    worker.process.terminate()
    worker.end()
    assert worker.process.exitcode == 0
    every_one_ended_once(floor, names)


def every_one_ended_once(floor: Floor, names: list[str]) -> None:
    assert floor.jobs.counts() == {"pending": 0, "dispatched": 0, "running": 0, "done": len(names)}
    found = Counter(path.stem for path in floor.layout.hypotheses("done").parent.rglob("*.json"))
    assert found == Counter(names)
    for hypothesis in floor.jobs.done():
        assert hypothesis.closed == "completed", hypothesis
        runs = floor.runs_of(hypothesis.hypothesis_id)
        results = [floor.result_of(name) for name in runs]
        # An experiment whose shim was forbidden by a successor is infra, and is not run again here:
        # the observer requeues it. At most one run per claim, and each has its result.
        assert len(runs) == 1, runs
        assert results[0].status == "completed" or results[0].failure_kind == "infra", results
    assert list(uncollected(floor.layout)) == []
    floor.nothing_is_left()


def test_a_worker_killed_at_any_moment_loses_and_doubles_nothing(
    floor: Floor, forked: Callable[..., Forked]
) -> None:
    kill_again_and_again(floor, forked, times=6, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_forty_kills_of_a_worker(floor: Floor, forked: Callable[..., Forked], seed: int) -> None:
    kill_again_and_again(floor, forked, times=40, seed=100 + seed)


# ── what is said between preparing and beginning ────────────────────────────────────────────


@contextmanager
def one_trains_one_is_ready(floor: Floor) -> Iterator[tuple[Played, str, str]]:
    """The worker does not look around any more: what counts is the look before it begins."""
    first, second = floor.propose(2)
    gate = Played(status="completed", metric_value=1.0)
    with floor.working(executor=gate) as running:
        until(lambda: gate.submitted == [f"{first}-1"])
        until(lambda: running.has_prepared(second))
        running.worker._look_at = float("inf")
        yield gate, first, second


def says(floor: Floor, *, began: float | None = None, **details: object) -> None:
    """What the observer publishes; this process plays it, or one that has ended."""
    status = presence.own_status("observer", state="working", details=details)
    status = status.model_copy(update={"process_start": began or status.process_start})
    presence.write_role(floor.layout, status)


@pytest.mark.parametrize("by", ["observer", "steering"])
def test_what_was_prepared_is_not_begun_once_the_search_is_over(floor: Floor, by: str) -> None:
    with one_trains_one_is_ready(floor) as (gate, first, second):
        if by == "observer":
            says(floor, closing=True)
        else:
            floor.layout.steering.write_text("```steering\nstop: true\n```\n")
        gate.opened.set()
        until(lambda: floor.is_done(first))
        until(lambda: floor.waiting() == [second])
        until(lambda: floor.seen().notes in ("the search is over", "the steering says stop"))
        assert gate.submitted == [f"{first}-1"]
        assert not floor.layout.plan(f"{second}-1").exists()
        if by == "observer":
            says(floor, closing=False)  # a keep was overruled, say: there is more to do
        else:
            floor.layout.steering.unlink()
        until(lambda: floor.is_done(second))


def test_the_word_of_an_observer_that_has_ended_ends_no_search(floor: Floor) -> None:
    says(floor, began=1.0, closing=True)
    (name,) = floor.propose()
    floor.works_off(name)


def test_what_a_person_freezes_is_not_begun_although_it_was_prepared_before(
    floor: Floor,
) -> None:
    with one_trains_one_is_ready(floor) as (gate, first, second):
        floor.layout.steering.write_text("```steering\nfrozen: [RATE]\n```\n")
        gate.opened.set()
        until(lambda: floor.is_done(first, second))
        assert gate.submitted == [f"{first}-1"]
    found = floor.closed(second)
    assert found.closed == "abandoned"
    assert "RATE is frozen" in found.outcome
    assert not floor.layout.plan(f"{second}-1").exists()


def test_a_hypothesis_that_can_never_be_prepared_is_abandoned_with_the_reason(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = floor.propose(2)
    real, tried = runner.plan, []

    def refusing(project: Project, request: Experiment, *words: object, **more: object) -> RunSpec:
        if request.hypothesis_id == bad:
            tried.append(bad)
            raise GitError("git commit-tree: a NUL byte in commit log message not allowed")
        return real(project, request, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "plan", refusing)
    with floor.working():
        until(lambda: floor.is_done(bad, good))
    found = floor.closed(bad)
    assert found.closed == "abandoned" and "NUL" in found.outcome
    assert len(tried) == worker.TRIES
    floor.nothing_is_left()


@pytest.mark.parametrize(
    "error",
    [
        RecordError("cannot write a plan: No space left on device"),
        LaunchError("the data cannot be located"),
    ],
)
def test_a_full_disk_or_data_that_is_gone_abandons_nothing(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, error: AutohypothesisError
) -> None:
    (name,) = floor.propose()
    real, left = runner.plan, [None] * 4

    def full(*words: object, **more: object) -> RunSpec:
        if left:
            left.pop()
            raise error
        return real(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "plan", full)
    with floor.working():
        while not floor.is_done(name):
            until(lambda: floor.jobs.pending() or floor.is_done(name))
            for passed_on in floor.jobs.pending():
                floor.jobs.dispatch(passed_on.hypothesis_id, NAME)
    found = floor.closed(name)
    assert found.closed == "completed"
