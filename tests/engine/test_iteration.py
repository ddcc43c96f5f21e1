"""An iteration that ends early leaves either a record of a run or nothing at all."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autohypothesis.commands.progress import FleetLines
from autohypothesis.engine import devices, runner, shim
from autohypothesis.engine.experiment import Change, Experiment, Outcome
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import reference_ref
from autohypothesis.errors import ChangeError, LaunchError, LeaseError
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.overview.overview import overview
from autohypothesis.records import locks
from autohypothesis.records.files import read_json
from autohypothesis.records.layout import RunPaths
from tests.conftest import forked, run_git


def plans(project: Project) -> list[str]:
    return sorted(path.name for path in project.layout.plans.glob("*"))


def test_with_every_cpu_slot_held_nothing_is_prepared_and_no_plan_is_left(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "prepare", lambda *_, **__: pytest.fail("it was prepared"))
    leases = [devices.lease_of(slot) for slot in devices.cpu_slots()]
    held = [lease.acquire({"experiment_id": "other-1"}) for lease in leases]
    with pytest.raises(LeaseError, match="other-1"):
        runner.run(project, Experiment(Change()))
    for one in held:
        devices.release(one)
    assert plans(project) == []
    assert not project.layout.runs.exists()


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("runner.prepare", KeyboardInterrupt()),
        ("local_executor.take_baseline", LeaseError("taken")),
        ("local_executor.to_json", OSError("full")),
        ("local_executor.to_json", KeyboardInterrupt()),
    ],
)
def test_what_ends_before_the_run_began_leaves_no_plan_and_no_folder_for_ever(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    error: BaseException,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"autohypothesis.engine.{where}", fail)
    with pytest.raises(type(error)):
        runner.run(project, Experiment(Change()))
    assert plans(project) == []
    assert not project.layout.runs.exists() or not list(project.layout.runs.iterdir())
    assert not list((tmp_path / "temporary").glob("ah-*"))


class Seen(runner.ProgressListener):
    """Stops the shim of a run that trains, and keeps what is said about that."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.needs: list[str] = []
        self.pid = 0

    def tick(self, project: Project, experiment_id: str) -> None:
        run = project.layout.run(experiment_id)
        if not self.pid and run.log.exists():
            known = read_json(run.shim)
            self.pid = known["pid"]
            os.kill(self.pid, signal.SIGSTOP)
            run.shim.write_text(json.dumps({**known, "overdue_after": [3.0, 3.0]}))

    def stalled(self, text: str) -> None:
        self.said.append(text)
        self.needs += [need.what for need in overview(self.project.layout).needs]
        lines = FleetLines(self.project.layout, Stop())
        lines.console = Console(file=StringIO(), width=1000)
        lines.look()
        lines.look()
        self.needs += lines.console.file.getvalue().splitlines()

    project: Project


def test_a_run_whose_shim_is_stopped_is_named_and_ended(foreign: Path) -> None:
    (foreign / "train.py").write_text(
        "print('it began', flush=True)\nimport time\ntime.sleep(60)\n"
    )
    run_git(foreign, "commit", "-qam", "it takes a minute")
    watch, project = Seen(), Project.open(foreign).with_tag("t")
    watch.project = project
    ended = runner.run(project, Experiment(Change()), watch=watch)
    words = f"its owner process {watch.pid} is stopped (state T): `kill -CONT {watch.pid}`"
    assert len(watch.said) == 1 and words in watch.said[0]
    assert [words in need for need in watch.needs] == [True, True], "status and the loop name it"
    assert ended.result.failure_kind == "infra"
    assert "was stopped (state T)" in ended.result.failure_detail
    assert ended.result.metric_value is None


@pytest.mark.parametrize(
    ("has_begun", "error"),
    [(False, KeyboardInterrupt()), (True, KeyboardInterrupt()), (False, LaunchError("no more"))],
)
def test_what_ends_submit_cancels_the_training_and_leaves_its_record(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_begun: bool, error: BaseException
) -> None:
    start = shim.start

    def fail(launch: Any, process: Any) -> None:
        if has_begun:
            start(launch, process)
        raise error

    monkeypatch.setattr(shim, "start", fail)
    with pytest.raises(type(error)):
        runner.run(project, Experiment(Change(overrides={"SLEEP": 60.0})))
    (folder,) = project.layout.runs.iterdir()
    result = read_json(folder / "result.json")
    kind = "cancelled" if has_begun else "infra"
    assert (result["status"], result["failure_kind"]) == ("failed", kind)
    assert shim.status(RunPaths(folder)) != "running"
    assert not any(devices.lease_of(slot).holder() for slot in devices.cpu_slots())


@pytest.mark.skipif(len(devices.cpu_slots()) < 2, reason="one core has one CPU slot")
def test_two_at_the_same_instant_do_not_choose_the_same_cpu_slot(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, go = shim.start, threading.Barrier(2)

    def slow(launch: Any, process: Any) -> Any:
        time.sleep(0.3)  # both would have chosen by now
        return start(launch, process)

    def run(rate: float) -> Outcome:
        own = Project.open(project.layout.root)
        go.wait()
        return runner.run(own, Experiment(Change(overrides={"RATE": rate, "SLEEP": 0.8})))

    monkeypatch.setattr(shim, "start", slow)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, (0.2, 0.25)))
    assert [one.result.failure_detail for one in ended] == ["", ""]
    runs = [project.layout.run(one.experiment_id) for one in ended]
    assert len({read_json(run.metadata)["run"]["gpu_id"] for run in runs}) == 2


def test_a_chooser_that_is_stuck_does_not_stop_the_others(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "DEVICE_CHOICE_S", 0.1)
    with devices.choosing("stuck-1"):
        assert runner.run(project, Experiment(Change())).result.status == "completed"


def test_who_follows_a_run_does_not_keep_a_core_busy_beside_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks rarely, and is woken by the end: here it would look once an hour."""
    asked: list[str] = []
    poll = LocalExecutor.poll

    def counted(self: LocalExecutor, handle: Any) -> Any:
        asked.append(poll(self, handle))
        return asked[-1]

    assert runner.POLL_S >= 0.2
    monkeypatch.setattr(runner, "POLL_S", 3600.0)
    monkeypatch.setattr(LocalExecutor, "poll", counted)
    executor = LocalExecutor(project.repository, project.layout)
    with runner.free_worker(project) as worker:
        change = Change(overrides={"SLEEP": 0.5})
        spec = runner.plan(project, Experiment(change), worker)
        handle = executor.submit(spec)
        asked.clear()
        runner.follow(project, executor, handle)
        exit_at = project.layout.run(spec.experiment_id).exit.stat().st_mtime
        assert time.time() - exit_at < 30, "its end was noticed late"
        assert asked[-1] == "finished" and len(asked) <= 2, asked
        executor.collect(handle)


def test_a_repeat_runs_the_commit_that_it_repeats_wherever_the_reference_is(
    project: Project,
) -> None:
    first = runner.run(project, Experiment(Change()))
    later = runner.run(project, Experiment(Change(overrides={"RATE": 0.2})))
    reference = reference_ref(project.active())
    assert project.repository.compare_and_swap(reference, later.result.commit, first.result.commit)
    again = runner.run(project, Experiment(Change(), replicates=first.experiment_id))
    assert again.result.commit == first.result.commit


def test_a_repeat_of_nothing_is_refused_by_name(project: Project) -> None:
    with pytest.raises(ChangeError, match="no experiment 'h-nothing-1' to repeat"):
        runner.run(project, Experiment(Change(), replicates="h-nothing-1"))
    assert plans(project) == []


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("write", ["runner.prepare", "local_executor.bundles.write_metadata"])
def test_what_a_killed_starter_had_not_begun_is_taken_back_by_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(f"autohypothesis.engine.{write}", die)
        killed = forked(runner.run, project, Experiment(Change()))
        killed.join(60)
        assert killed.exitcode == -signal.SIGKILL and plans(project)
        with locks.hold(project.layout, "worktree-solo-0", doing="what a living one prepares"):
            runner.forget_unbegun(project)
        assert plans(project)
    made = runner.run(project, Experiment(Change(overrides={"RATE": 0.2})))
    assert [path.name for path in project.layout.runs.iterdir()] == [made.experiment_id]
    assert plans(project) == [f"{made.experiment_id}.json", f"{made.experiment_id}.md"]
