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
from contextlib import contextmanager
from pathlib import Path

import pytest

from autohypothesis.engine import collect, devices, gpus, processes, recovery, runner, shim
from autohypothesis.engine.change import Change
from autohypothesis.engine.executor import Executor, Resources, RunSpec
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project, reference_ref
from autohypothesis.errors import GitError, LockError, RecordError
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.fleet.live.presence import read_heartbeat, worker_lives
from autohypothesis.fleet.queue.claims import examine_claim, newest_experiment
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.supervisor.snapshot import restore, snapshot
from autohypothesis.fleet.worker import preparation, worker
from autohypothesis.fleet.worker.preparation import WorkerQueue
from autohypothesis.fleet.worker.worker import FleetWorker
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import Heartbeat, Proposal, Result, now
from autohypothesis.schema import Worker as Entry

NAME = "w0"
LANE = devices.cpu_slots()[0].id
ENTRY = Entry(worker_id=NAME, gpu_id="0", device=LANE, kind="cpu")
Until = Callable[..., None]
SCRIPT_OF_ANOTHER = b"RATE = 0.5\nSLEEP = 0.0\nWIDTH = 8\nprint('val_bpb: 1.0')\n"

PROCESS = f"""
import sys
from pathlib import Path
from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.worker.worker import FleetWorker
from autohypothesis.schema import Worker as Entry
entry = Entry(worker_id={NAME!r}, gpu_id="0", device={LANE!r}, kind="cpu")
with Stop() as stop:
    FleetWorker(Project.open(Path(sys.argv[1])), entry).run(stop)
"""


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

    def end(self, *, abandoned: bool = False) -> None:
        self.stop.leave(abandoned=abandoned)
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@contextmanager
def working(project: Project, entry: Entry = ENTRY, executor: object = None) -> Iterator[Running]:
    running = Running(FleetWorker(project, entry, executor=executor))  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.end()


def works_off(project: Project, jobs: Queue, until: Until, *names: str) -> None:
    """A worker works until these hypotheses are done."""
    with working(project):
        until(lambda: is_done(jobs, *names))


@pytest.fixture
def jobs(fleet_project: Project) -> Queue:
    return Queue(fleet_project.layout, "t")


def propose(jobs: Queue, count: int = 1, *, worker: str = NAME, **change: object) -> list[str]:
    """New hypotheses, dispatched to the worker; each sets RATE to a value of its own."""
    names = []
    overrides = dict(change.pop("overrides", {}))  # type: ignore[call-overload]
    for _ in range(count):
        kind = change or {"config_overrides": {"RATE": random.uniform(1, 2), **overrides}}
        proposal = Proposal.model_validate({"title": "another rate", **kind})
        names.append(jobs.add(proposal, proposer="test").hypothesis_id)
        jobs.dispatch(names[-1], worker)
    return names


def long() -> dict[str, float]:
    return {"SLEEP": 120.0}


def runs_of(project: Project, name: str) -> list[str]:
    folder = project.layout.runs
    every = os.listdir(folder) if folder.is_dir() else []
    return sorted(one for one in every if one.rpartition("-")[0] == name)


def result_of(project: Project, experiment_id: str) -> Result:
    return Result.model_validate(json.loads(project.layout.run(experiment_id).result.read_text()))


def seen(project: Project) -> Heartbeat:
    """Its heartbeat; an empty one before the first."""
    return read_heartbeat(project.layout, NAME) or Heartbeat(worker_id=NAME, updated_at=now())


def is_done(jobs: Queue, *names: str) -> bool:
    return set(names) <= set(jobs.done_ids())


def is_running(project: Project, experiment_id: str) -> bool:
    return shim.status(project.layout.run(experiment_id)) == "running"


def trains(project: Project, experiment_id: str) -> bool:
    """Whether its training has begun; until then its shim may still be timing the lane."""
    return is_running(project, experiment_id) and project.layout.run(experiment_id).events.exists()


def nothing_is_left(project: Project) -> None:
    """No lease, no stray, no claim, no plan without a run."""
    lease = devices.lease_of(devices.cpu_slots()[0])
    assert lease.holder() is None
    for folder in project.layout.runs.iterdir():
        assert processes.find_marked(processes.run_mark(RunPaths(folder))) == {}
    plans = {path.stem for path in project.layout.plans.glob("*.json")}
    assert plans == set(os.listdir(project.layout.runs))


# ── the usual ───────────────────────────────────────────────────────────────────────────────


def test_everything_that_is_dispatched_runs_once_and_ends_once(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    names = propose(jobs, 2)
    works_off(fleet_project, jobs, until, *names)
    for hypothesis in jobs.done():
        assert hypothesis.closed == "completed", hypothesis.outcome
        assert runs_of(fleet_project, hypothesis.hypothesis_id) == [f"{hypothesis.hypothesis_id}-1"]
        result = result_of(fleet_project, f"{hypothesis.hypothesis_id}-1")
        assert result.status == "completed", result
    assert seen(fleet_project).state == "stopped" and not worker_lives(seen(fleet_project))
    assert (seen(fleet_project).busy_seconds or 0) > 0
    nothing_is_left(fleet_project)


def test_the_next_candidate_is_ready_while_the_device_still_trains(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    """The gap between two experiments is short by construction, not by luck."""
    first, second = propose(jobs, 2, overrides=long())
    ref = experiment_ref(f"{second}-1")
    with working(fleet_project):
        until(lambda: fleet_project.repository.read_ref(ref))
        assert is_running(fleet_project, f"{first}-1"), "the first trains still"
        assert fleet_project.layout.plan(f"{second}-1").exists()
        assert not fleet_project.layout.run(f"{second}-1").folder.exists()
        until(lambda: seen(fleet_project).next_hypothesis_id == second)
        assert (
            seen(fleet_project).hypothesis_id == first and seen(fleet_project).state == "training"
        )


def test_what_was_prepared_on_an_older_reference_is_prepared_anew_while_there_is_time(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's keep moved it; a stale candidate would have to be run once more."""
    monkeypatch.setattr(worker, "FRESH_S", 0.1)
    first, second = propose(jobs, 2, overrides=long())
    project, plan = fleet_project, fleet_project.layout.plan
    with working(project) as running:
        until(lambda: project.repository.read_ref(experiment_ref(f"{second}-1")))
        assert plan(f"{second}-1").exists()
        kept = project.repository.tree_with(project.reference(), {"train.py": SCRIPT_OF_ANOTHER})
        commit = project.repository.commit_tree(kept, [project.reference()], "kept")
        project.repository.compare_and_swap(reference_ref("t"), commit, project.reference())
        running.worker._last_duration = 1_000.0  # as long as the runs before took
        until(lambda: plan(f"{second}-2").exists())
        assert json.loads(plan(f"{second}-2").read_text())["based_on_commit"] == commit
        assert not plan(f"{second}-1").exists()
        assert is_running(project, f"{first}-1")


def test_a_refused_change_ends_without_a_run_and_says_why(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    unknown, nothing, good = (
        *propose(jobs, overrides={"NO_SUCH_CONSTANT": 1}),
        *propose(jobs, patch="--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-no\n+yes\n"),
        *propose(jobs),
    )
    works_off(fleet_project, jobs, until, unknown, nothing, good)
    closed = {one.hypothesis_id: one for one in jobs.done()}
    assert closed[unknown].closed == closed[nothing].closed == "abandoned"
    assert "NO_SUCH_CONSTANT" in closed[unknown].outcome
    assert closed[good].closed == "completed"
    assert runs_of(fleet_project, unknown) == runs_of(fleet_project, nothing) == []
    nothing_is_left(fleet_project)


def test_a_patch_cannot_touch_what_a_person_froze(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    fleet_project.layout.steering.parent.mkdir(parents=True, exist_ok=True)
    fleet_project.layout.steering.write_text("```steering\nfrozen: [WIDTH]\n```\n")
    base = fleet_project.reference()
    source = fleet_project.repository.show_file(base, "train.py").decode()
    tree = fleet_project.repository.tree_with(
        base, {"train.py": source.replace("WIDTH = 8", "WIDTH = 9").encode()}
    )
    (name,) = propose(jobs, patch=fleet_project.repository.diff(base, tree))
    works_off(fleet_project, jobs, until, name)
    found = jobs.read(name)
    assert found is not None and found[1].closed == "abandoned" and "WIDTH" in found[1].outcome
    assert not fleet_project.layout.plan(f"{name}-1").exists()


def test_stop_in_the_steering_lets_the_run_end_and_starts_nothing_new(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    (name,) = propose(jobs)
    fleet_project.layout.steering.write_text("```steering\nstop: true\n```\n")
    with working(fleet_project):
        until(lambda: "steering" in seen(fleet_project).notes)
        assert jobs.dispatched(NAME)[NAME][0].hypothesis_id == name
        fleet_project.layout.steering.unlink()
        until(lambda: is_done(jobs, name))


def test_a_second_process_of_one_worker_is_refused_by_name(
    fleet_project: Project, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LOCK_S", 0.1)
    with working(fleet_project):
        until(lambda: worker_lives(seen(fleet_project)))
        with pytest.raises(LockError, match=f"worker-{NAME}.*pid {os.getpid()}"):
            FleetWorker(fleet_project, ENTRY).run(Asked())


def test_a_disk_that_takes_no_heartbeat_stops_no_worker(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object, *, durable: bool = True) -> None:
        raise RecordError(f"cannot write {path}: No space left on device")

    names = propose(jobs, 2)
    monkeypatch.setattr(presence, "write_json", full)
    works_off(fleet_project, jobs, until, *names)


def test_a_result_that_cannot_be_written_now_is_written_later(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worktree keeps its evidence until then: the next experiment waits."""
    real, refused = LocalExecutor.collect, []

    def full(self: LocalExecutor, experiment_id: str) -> Result:
        if len(refused) < 2:
            refused.append(experiment_id)
            raise RecordError("cannot write result.json: No space left on device")
        return real(self, experiment_id)

    monkeypatch.setattr(LocalExecutor, "collect", full)
    monkeypatch.setattr(worker, "LOOK_S", 0.05)
    first, second = propose(jobs, 2)
    works_off(fleet_project, jobs, until, first, second)
    assert refused == [f"{first}-1"] * 2
    assert all(
        result_of(fleet_project, f"{name}-1").status == "completed" for name in (first, second)
    )


def test_a_full_disk_at_a_release_loses_no_hypothesis(
    fleet_project: Project, jobs: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "RETRY_S", 0.0)
    (name,) = propose(jobs)
    held = WorkerQueue(fleet_project, NAME)
    assert held.take() is not None
    with monkeypatch.context() as patched:
        patched.setattr("autohypothesis.fleet.queue.states.rename_exclusive", full)
        held.give_back(name)
        assert "No space left on device" in held.problem and held.holds(name)
    held.flush()
    assert not held.problem and not held.holds(name)
    assert [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [name]


def test_a_step_that_somebody_else_has_taken_does_not_hold_up_the_next(
    fleet_project: Project, jobs: Queue
) -> None:
    first, second = propose(jobs, 2)
    held = WorkerQueue(fleet_project, NAME)
    for _ in range(2):
        held.take()
    jobs.requeue(first)
    held.give_back(first)
    held.give_back(second)
    assert [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [second]


def test_a_stopped_shim_is_named_by_the_worker_until_it_goes_on_or_is_ended(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    (name,) = propose(jobs, overrides=long())
    with working(fleet_project):
        until(lambda: trains(fleet_project, f"{name}-1"))
        run = fleet_project.layout.run(f"{name}-1")
        known = read_json(run.shim)
        os.kill(known["pid"], signal.SIGSTOP)
        until(lambda: f"`kill -CONT {known['pid']}` resumes it" in seen(fleet_project).notes)
        assert seen(fleet_project).state == "training"
        os.kill(known["pid"], signal.SIGCONT)
        until(lambda: seen(fleet_project).notes == "")
        os.kill(known["pid"], signal.SIGSTOP)
        write_json(run.shim, {**known, "overdue_after": [1.0, 1.0]})
        until(lambda: is_done(jobs, name))
    result = result_of(fleet_project, f"{name}-1")
    assert result.failure_kind == "infra" and "was stopped (state T)" in result.failure_detail


# ── leaving ─────────────────────────────────────────────────────────────────────────────────


def test_down_cancels_collects_and_gives_back_what_was_prepared(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    first, second = propose(jobs, 2, overrides=long())
    with working(fleet_project):
        until(
            lambda: (
                seen(fleet_project).next_hypothesis_id == second
                and trains(fleet_project, f"{first}-1")
            )
        )
        until(lambda: fleet_project.layout.plan(f"{second}-1").exists())
    assert is_done(jobs, first)
    result = result_of(fleet_project, f"{first}-1")
    assert (result.failure_kind, result.failure_detail) == ("infra", "cancelled")
    assert [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [second]
    assert jobs.running(NAME)[NAME] == []
    assert seen(fleet_project).state == "stopped"
    nothing_is_left(fleet_project)


def test_an_abandoned_worker_leaves_its_training_to_its_successor(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    gate = fleet_project.layout.root / "go"
    first, second = propose(jobs, 2, overrides={"GATE": str(gate)})
    running = Running(FleetWorker(fleet_project, ENTRY))
    until(lambda: trains(fleet_project, f"{first}-1"))
    until(lambda: seen(fleet_project).next_hypothesis_id == second)
    running.end(abandoned=True)
    assert is_running(fleet_project, f"{first}-1")
    assert [one.hypothesis_id for one in jobs.running(NAME)[NAME]] == [first]
    assert [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [second]
    assert not fleet_project.layout.plan(f"{second}-1").exists(), "a plan that nobody begins"
    with working(fleet_project):
        until(lambda: seen(fleet_project).notes == "taken over")
        assert seen(fleet_project).run_id == f"{first}-1"
        gate.touch()
        until(lambda: is_done(jobs, first, second))
    assert runs_of(fleet_project, first) == [f"{first}-1"], "it was not run again"
    assert result_of(fleet_project, f"{first}-1").status == "completed"
    nothing_is_left(fleet_project)


# ── what a predecessor left ─────────────────────────────────────────────────────────────────


def claimed(project: Project, jobs: Queue, **change: object) -> tuple[str, RunSpec]:
    """A hypothesis that a worker has claimed and planned, before it died."""
    (name,) = propose(jobs, **change)
    hypothesis = jobs.claim(NAME)
    assert hypothesis is not None and hypothesis.hypothesis_id == name
    request = Experiment(Change.of(hypothesis), hypothesis_id=name)
    return name, runner.plan(project, request, NAME, resources=Resources(device=LANE))


def ended_run(project: Project, jobs: Queue, until: Until) -> tuple[str, LocalExecutor]:
    """A claim whose run has ended, and is not collected."""
    name, spec = claimed(project, jobs)
    executor = LocalExecutor(project.repository, project.layout)
    executor.submit(spec)
    until(lambda: executor.poll(spec.experiment_id) != "running")
    return name, executor


@pytest.mark.parametrize(("left", "attempt"), [("claim", 1), ("plan", 2), ("folder", 2)])
def test_a_claim_without_a_run_is_run_by_the_successor_under_an_id_of_its_own(
    fleet_project: Project, jobs: Queue, until: Until, left: str, attempt: int
) -> None:
    if left == "claim":
        (name,) = propose(jobs)
        jobs.claim(NAME)
    else:
        name, spec = claimed(fleet_project, jobs)
        run = fleet_project.layout.run(spec.experiment_id)
        if left == "folder":
            run.folder.mkdir(parents=True)
            run.local.write_text("{}")
    works_off(fleet_project, jobs, until, name)
    assert runs_of(fleet_project, name) == [f"{name}-{attempt}"]
    nothing_is_left(fleet_project)


def test_a_bundle_whose_shim_never_began_is_infrastructure_and_not_run_twice(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the bundle, before the shim: one that comes late finds the folder taken."""
    name, spec = claimed(fleet_project, jobs)
    with monkeypatch.context() as patched:
        patched.setattr(shim, "start", lambda *words: None)
        LocalExecutor(fleet_project.repository, fleet_project.layout).submit(spec)
    works_off(fleet_project, jobs, until, name)
    assert result_of(fleet_project, f"{name}-1").failure_kind == "infra"
    assert runs_of(fleet_project, name) == [f"{name}-1"]


@pytest.mark.parametrize("how", ["ended", "collected", "copied", "restored"])
def test_a_run_that_has_ended_is_collected_once_and_not_run_again(
    fleet_project: Project, jobs: Queue, until: Until, how: str
) -> None:
    """A copied claim, or what a snapshot brings back, has none of the times that it had."""
    project = fleet_project
    name, executor = ended_run(project, jobs, until)
    result = project.layout.run(f"{name}-1").result
    before = b""
    if how != "ended":
        executor.collect(f"{name}-1")
        before = result.read_bytes()
    if how == "copied":
        claim = project.layout.hypothesis(name, "running", NAME)
        claim.write_bytes(claim.read_bytes())
    elif how == "restored":
        assert snapshot(project.repository, project.layout, "t", everything=True)
        shutil.rmtree(project.layout.research)
        restore(project.repository, project.layout, "t")
        assert jobs.running(NAME)[NAME][0].hypothesis_id == name
    works_off(Project.open(project.layout.root), jobs, until, name)
    assert before in (b"", result.read_bytes())
    assert result_of(project, f"{name}-1").status == "completed"
    assert runs_of(project, name) == [f"{name}-1"]
    assert jobs.done()[0].closed == "completed"


def test_the_successor_of_a_worker_that_was_killed_while_it_cleaned_up_does_that(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, executor = ended_run(fleet_project, jobs, until)
    with monkeypatch.context() as killed:
        killed.setattr(collect, "_clean_up", lambda run, local: None)
        executor.collect(f"{name}-1")
    assert list(recovery.uncollected(fleet_project.layout)) == [f"{name}-1"]
    works_off(fleet_project, jobs, until, name)
    assert list(recovery.uncollected(fleet_project.layout)) == []
    assert runs_of(fleet_project, name) == [f"{name}-1"]


def test_a_run_of_another_machine_is_left_alone_and_its_hypothesis_run_anew(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    """A container was made anew in the middle of a training: nobody can look after it any more."""
    name, executor = ended_run(fleet_project, jobs, until)
    run = fleet_project.layout.run(f"{name}-1")
    run.exit.unlink()
    identity = {**json.loads(run.shim.read_text()), "host": "gone", "hostname": "rack-7"}
    run.shim.write_text(json.dumps(identity))
    hypothesis = jobs.running(NAME)[NAME][0]
    job, state = examine_claim(fleet_project.layout, executor, hypothesis)
    assert state == "lost"
    assert "rack-7" in job.problem and f"rm '{run.shim}'" in job.problem
    with working(fleet_project):
        until(lambda: is_done(jobs, name))
        until(lambda: seen(fleet_project).state == "idle" and "rack-7" in seen(fleet_project).notes)
    assert runs_of(fleet_project, name) == [f"{name}-1", f"{name}-2"]
    assert result_of(fleet_project, f"{name}-2").status == "completed"
    assert not run.result.exists()
    with working(fleet_project):  # the claim is gone, and the run still lies there
        until(lambda: worker_lives(seen(fleet_project)) and seen(fleet_project).state == "idle")
    local = json.loads(run.local.read_text())
    run.local.write_text(json.dumps({**local, "starter": {"pid": 0, "start": 0.0}}))
    run.shim.unlink()  # as the hint says
    assert recovery.collect_ended(fleet_project.repository, fleet_project.layout) == [f"{name}-1"]
    assert result_of(fleet_project, f"{name}-1").failure_kind == "infra"


def test_what_a_person_has_to_know_about_a_claim_is_said_as_long_as_the_worker_lives(
    fleet_project: Project, jobs: Queue
) -> None:
    first, _ = propose(jobs, 2)
    held = WorkerQueue(fleet_project, NAME)
    assert held.take() is not None
    held.give_back(first, problem="it runs on rack-7")
    assert held.take() is not None
    held.finish(first, "completed", "")
    assert held.problem == "it runs on rack-7"


def test_a_claim_is_not_ended_with_the_run_of_an_earlier_claim(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    """It was requeued, claimed again, and the worker was killed before the new plan."""
    (name,) = propose(jobs)
    works_off(fleet_project, jobs, until, name)
    jobs.requeue(name)
    jobs.dispatch(name, NAME)
    jobs.claim(NAME)
    works_off(fleet_project, jobs, until, name)
    assert runs_of(fleet_project, name) == [f"{name}-1", f"{name}-2"]


def test_a_finish_that_was_cut_off_is_finished(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    (name,) = propose(jobs)
    hypothesis = jobs.claim(NAME)
    assert hypothesis is not None
    closed = hypothesis.model_copy(update={"closed": "abandoned", "outcome": "no good"})
    fleet_project.layout.hypothesis(name, "running", NAME).write_text(closed.model_dump_json())
    works_off(fleet_project, jobs, until, name)
    found = jobs.read(name)
    assert found is not None and (found[1].closed, found[1].outcome) == ("abandoned", "no good")
    assert runs_of(fleet_project, name) == []


def test_a_damaged_run_of_a_claim_is_left_where_it_is_and_run_anew(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    name, _ = ended_run(fleet_project, jobs, until)
    fleet_project.layout.run(f"{name}-1").local.write_bytes(b'{"checkout": "/to')
    works_off(fleet_project, jobs, until, name)
    assert runs_of(fleet_project, name) == [f"{name}-1", f"{name}-2"]
    assert result_of(fleet_project, f"{name}-2").status == "completed"


def test_only_the_newest_plan_of_a_claim_counts(fleet_project: Project, jobs: Queue) -> None:
    name, spec = claimed(fleet_project, jobs)
    assert newest_experiment(fleet_project.layout, name) == spec.experiment_id
    jobs.release(name, NAME)
    again = runner.plan(
        fleet_project,
        Experiment(Change(overrides={"RATE": 3.0}), hypothesis_id=name),
        NAME,
    )
    assert (
        newest_experiment(fleet_project.layout, name) == again.experiment_id != spec.experiment_id
    )


def test_a_hypothesis_that_was_taken_away_is_not_collected_under_the_old_claim(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    (name,) = propose(jobs, overrides=long())
    with working(fleet_project):
        until(lambda: trains(fleet_project, f"{name}-1"))
        jobs.requeue(name)
        until(lambda: not is_running(fleet_project, f"{name}-1"))
        until(lambda: seen(fleet_project).run_id is None)
    assert not fleet_project.layout.run(f"{name}-1").result.exists()
    assert [one.hypothesis_id for one in jobs.pending()] == [name]


def test_a_run_whose_claim_is_gone_is_ended_before_its_worktree_is_used(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    """Its worker was killed, and somebody requeued the hypothesis before the next worker came."""
    name, spec = claimed(fleet_project, jobs, overrides=long())
    LocalExecutor(fleet_project.repository, fleet_project.layout).submit(spec)
    until(lambda: trains(fleet_project, spec.experiment_id))
    jobs.requeue(name)
    (other,) = propose(jobs)
    works_off(fleet_project, jobs, until, other)
    assert not is_running(fleet_project, spec.experiment_id)
    assert not fleet_project.layout.run(spec.experiment_id).result.exists()


# ── the device ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def stranger() -> Iterator[None]:
    """Somebody of another repository holds the lane."""
    lease = devices.lease_of(devices.cpu_slots()[0])
    held = lease.acquire({"repository": "/somebody/else"})
    try:
        yield
    finally:
        held.release()


def test_a_device_that_a_stranger_holds_is_waited_for_by_name(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    names = propose(jobs, 3)
    with stranger(), working(fleet_project):
        until(lambda: "/somebody/else" in seen(fleet_project).notes)
        assert seen(fleet_project).state == "idle"
        assert len(jobs.dispatched(NAME)[NAME]) == 3, "nothing is burnt"
        assert not fleet_project.layout.plans.exists()
    works_off(fleet_project, jobs, until, *names)


def test_what_waits_behind_a_stranger_goes_to_other_workers_after_a_while(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HELD_S", 0.5)
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    names = propose(jobs, 2)
    with working(fleet_project):
        with stranger():
            until(lambda: len(jobs.pending()) == 2)
            until(lambda: seen(fleet_project).state == "benched")
        until(lambda: seen(fleet_project).state == "idle")
        for name in names:
            jobs.dispatch(name, NAME)
        until(lambda: is_done(jobs, *names))


def test_a_lease_that_is_lost_at_the_last_moment_costs_no_hypothesis(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is taken between the preparation and the start."""
    (name,) = propose(jobs)
    monkeypatch.setattr(worker, "device_problem", lambda _: None)
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    with working(fleet_project):
        with stranger():
            until(lambda: "/somebody/else" in seen(fleet_project).notes)
            assert not is_done(jobs, name)
        until(lambda: is_done(jobs, name))
    assert runs_of(fleet_project, name) == [f"{name}-1"]


def test_a_worker_made_for_a_gpu_never_trains_without_it(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "usable_gpus", lambda: ([], "no NVIDIA driver answers"))
    entry = ENTRY.model_copy(update={"device": "GPU-0000", "kind": "cuda"})
    (name,) = propose(jobs)
    with working(fleet_project, entry):
        until(lambda: [one.hypothesis_id for one in jobs.pending()] == [name])
        until(lambda: seen(fleet_project).state == "benched")
        assert "no NVIDIA driver answers" in seen(fleet_project).notes
    assert list(quarantine.quarantined(fleet_project.layout)) == ["GPU-0000"]
    assert not fleet_project.layout.plans.exists() and not fleet_project.layout.runs.exists()


def test_a_gpu_that_no_driver_ever_named_is_not_replaced_by_any_other(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    entry = ENTRY.model_copy(update={"device": "", "kind": "cuda", "gpu_id": "3"})
    (name,) = propose(jobs)
    with working(fleet_project, entry):
        until(lambda: seen(fleet_project).state == "benched")
        until(lambda: [one.hypothesis_id for one in jobs.pending()] == [name])


class Lossy(Executor):
    """An executor whose device fails every time, and says so."""

    def __init__(self, project: Project) -> None:
        self.project, self.submitted = project, []  # type: ignore[var-annotated]

    def submit(self, spec: RunSpec) -> str:
        self.submitted.append(spec.experiment_id)
        return spec.experiment_id

    def poll(self, experiment_id: str) -> str:
        return "finished"

    def cancel(self, experiment_id: str) -> None: ...

    def collect(self, experiment_id: str) -> Result:
        return Result(
            status="failed", recorded_at=now(), failure_kind="infra",
            failure_detail="NVML: GPU is lost", evidence={"device": {"lost": True}},
        )  # fmt: skip


def test_two_failures_of_a_device_in_a_row_bench_it_and_free_what_waits(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    names = propose(jobs, 4)
    executor = Lossy(fleet_project)
    with working(fleet_project, executor=executor):
        until(lambda: seen(fleet_project).state == "benched")
        until(lambda: len(jobs.pending()) == 2)
        assert "lost" in seen(fleet_project).notes
    assert len(executor.submitted) == 2
    assert len(jobs.done_ids()) == 2 and set(jobs.done_ids()) < set(names)
    assert "lost" in quarantine.quarantined(fleet_project.layout)[LANE]


def test_a_benched_device_is_used_again_when_its_time_is_over(
    fleet_project: Project, jobs: Queue, until: Until
) -> None:
    quarantine.quarantine(fleet_project.layout, LANE, "it was lost")
    (name,) = propose(jobs)
    with working(fleet_project):
        until(lambda: seen(fleet_project).state == "benched" and jobs.pending())
        quarantine.clear_quarantine(fleet_project.layout)
        until(lambda: seen(fleet_project).state == "idle")
        jobs.dispatch(name, NAME)
        until(lambda: is_done(jobs, name))


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────


def kill_again_and_again(
    project: Project,
    jobs: Queue,
    python: Callable[..., object],
    until: Until,
    times: int,
    seed: int,
) -> None:
    """Kill the worker `times` times while it works off a queue; then let one come to the end."""
    chance = random.Random(seed)
    names = propose(jobs, max(4, times // 2), overrides={"SLEEP": 0.2})
    for _ in range(times):
        if is_done(jobs, *names):
            names += propose(jobs, 2, overrides={"SLEEP": 0.2})
        process = python(PROCESS, project.layout.root)
        until(
            lambda process=process: (
                (h := read_heartbeat(project.layout, NAME)) and h.pid == process.pid
            )
        )  # type: ignore
        time.sleep(chance.uniform(0.0, 0.8))  # a random moment, not a wait
        process.kill()  # type: ignore[attr-defined]
        process.wait()  # type: ignore[attr-defined]
    process = python(PROCESS, project.layout.root)
    # Before it beats it has no handler: a signal would kill it when nothing was left to do.
    until(lambda: (h := read_heartbeat(project.layout, NAME)) is not None and h.pid == process.pid)  # type: ignore
    until(lambda: is_done(jobs, *names), seconds=200)
    process.send_signal(signal.SIGTERM)  # type: ignore[attr-defined]
    assert process.wait(60) == 0  # type: ignore[attr-defined]
    every_one_ended_once(project, jobs, names)


def every_one_ended_once(project: Project, jobs: Queue, names: list[str]) -> None:
    assert jobs.counts() == {"pending": 0, "dispatched": 0, "running": 0, "done": len(names)}
    found = Counter(path.stem for path in project.layout.hypotheses("done").parent.rglob("*.json"))
    assert found == Counter(names)
    for hypothesis in jobs.done():
        assert hypothesis.closed == "completed", hypothesis
        runs = runs_of(project, hypothesis.hypothesis_id)
        results = [result_of(project, name) for name in runs]
        # An experiment whose shim was forbidden by a successor is infra, and is not run again here:
        # the observer requeues it. At most one run per claim, and each has its result.
        assert len(runs) == 1, runs
        assert results[0].status == "completed" or results[0].failure_kind == "infra", results
    assert list(recovery.uncollected(project.layout)) == []
    nothing_is_left(project)


def test_a_worker_killed_at_any_moment_loses_and_doubles_nothing(
    fleet_project: Project, jobs: Queue, python: Callable[..., object], until: Until
) -> None:
    kill_again_and_again(fleet_project, jobs, python, until, times=6, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_forty_kills_of_a_worker(
    fleet_project: Project, jobs: Queue, python: Callable[..., object], until: Until, seed: int
) -> None:
    kill_again_and_again(fleet_project, jobs, python, until, times=40, seed=100 + seed)


def test_a_worker_whose_supervisor_was_killed_leaves_its_training_alone(
    fleet_project: Project, jobs: Queue, python: Callable[..., object], until: Until
) -> None:
    """SIGHUP says the same: leave at once, the shim goes on."""
    (name,) = propose(jobs, overrides=long())
    process = python(PROCESS, fleet_project.layout.root)
    until(lambda: trains(fleet_project, f"{name}-1"))
    process.send_signal(signal.SIGHUP)  # type: ignore[attr-defined]
    assert process.wait(60) == 0  # type: ignore[attr-defined]
    assert is_running(fleet_project, f"{name}-1")
    assert [one.hypothesis_id for one in jobs.running(NAME)[NAME]] == [name]
    with working(fleet_project):
        until(lambda: seen(fleet_project).run_id == f"{name}-1")
    assert not is_running(fleet_project, f"{name}-1") and is_done(jobs, name)


# ── what is said between preparing and beginning ────────────────────────────────────────────


class Gate(Executor):
    """An executor whose runs last until `opened`, and end well."""

    def __init__(self) -> None:
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
        return Result(status="completed", recorded_at=now(), metric_value=1.0)


@contextmanager
def one_trains_one_is_ready(
    project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Gate, str, str]]:
    """The worker does not look around any more: what counts is the look before it begins."""
    first, second = propose(jobs, 2)
    gate = Gate()
    with working(project, executor=gate) as running:
        until(lambda: gate.submitted == [f"{first}-1"])
        until(lambda: (ahead := running.worker.next) is not None and ahead.is_over)
        running.worker._look_at = float("inf")
        yield gate, first, second


def says(project: Project, *, pid: int | None = None, **details: object) -> None:
    """What the observer publishes; this process plays it, or one that has ended."""
    status = presence.own_status("observer", state="working", details=details)
    presence.write_role(
        project.layout, status if pid is None else status.model_copy(update={"pid": pid})
    )


def test_what_was_prepared_is_not_begun_once_the_search_is_over(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_trains_one_is_ready(fleet_project, jobs, until, monkeypatch) as (gate, first, second):
        says(fleet_project, closing=True)
        gate.opened.set()
        until(lambda: is_done(jobs, first))
        until(lambda: [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [second])
        until(lambda: seen(fleet_project).notes == "the search is over")
        assert gate.submitted == [f"{first}-1"]
        assert not fleet_project.layout.plan(f"{second}-1").exists()
        says(fleet_project, closing=False)  # a keep was overruled, say: there is more to do
        until(lambda: is_done(jobs, second))


def test_the_word_of_an_observer_that_has_ended_ends_no_search(
    fleet_project: Project, jobs: Queue, until: Until, python: Callable[..., object]
) -> None:
    dead = python("pass")
    dead.wait()  # type: ignore[attr-defined]
    says(fleet_project, pid=dead.pid, closing=True)  # type: ignore[attr-defined]
    (name,) = propose(jobs)
    works_off(fleet_project, jobs, until, name)


def test_stop_in_the_steering_reaches_what_is_prepared_already(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_trains_one_is_ready(fleet_project, jobs, until, monkeypatch) as (gate, first, second):
        fleet_project.layout.steering.write_text("```steering\nstop: true\n```\n")
        gate.opened.set()
        until(lambda: is_done(jobs, first))
        until(lambda: [one.hypothesis_id for one in jobs.dispatched(NAME)[NAME]] == [second])
        assert gate.submitted == [f"{first}-1"]


def test_what_a_person_freezes_is_not_begun_although_it_was_prepared_before(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_trains_one_is_ready(fleet_project, jobs, until, monkeypatch) as (gate, first, second):
        fleet_project.layout.steering.write_text("```steering\nfrozen: [RATE]\n```\n")
        gate.opened.set()
        until(lambda: is_done(jobs, first, second))
        assert gate.submitted == [f"{first}-1"]
    found = jobs.read(second)
    assert found is not None and found[1].closed == "abandoned"
    assert "RATE is frozen" in found[1].outcome
    assert not fleet_project.layout.plan(f"{second}-1").exists()


def test_a_hypothesis_that_can_never_be_prepared_is_abandoned_with_the_reason(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = propose(jobs, 2)
    real, tried = runner.plan, []

    def refusing(project: Project, request: Experiment, *words: object, **more: object) -> RunSpec:
        if request.hypothesis_id == bad:
            tried.append(bad)
            raise GitError("git commit-tree: a NUL byte in commit log message not allowed")
        return real(project, request, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "plan", refusing)
    with working(fleet_project):
        until(lambda: is_done(jobs, bad, good))
    found = jobs.read(bad)
    assert found is not None and found[1].closed == "abandoned" and "NUL" in found[1].outcome
    assert len(tried) == worker.TRIES
    nothing_is_left(fleet_project)


def test_a_full_disk_abandons_nothing(
    fleet_project: Project, jobs: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = propose(jobs)
    real, left = runner.plan, [None] * 4

    def full(*words: object, **more: object) -> RunSpec:
        if left:
            left.pop()
            raise RecordError("cannot write a plan: No space left on device")
        return real(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "plan", full)
    monkeypatch.setattr(worker, "LONGEST_PAUSE_S", 0.05)
    with working(fleet_project):
        while not is_done(jobs, name):
            until(lambda: jobs.pending() or is_done(jobs, name))
            for passed_on in jobs.pending():
                jobs.dispatch(passed_on.hypothesis_id, NAME)
    found = jobs.read(name)
    assert found is not None and found[1].closed == "completed"
