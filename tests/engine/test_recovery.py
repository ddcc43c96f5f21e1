"""After a kill: the worktree of a run that nobody has judged yet is nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.engine import collect as collecting
from autohypothesis.engine import processes, runner
from autohypothesis.engine.experiment import Change, Experiment, RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.engine.workspace import Before
from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import RunPaths


@pytest.fixture
def project(foreign: Path) -> Project:
    return Project.open(foreign).with_tag("t")


def begun(project: Project) -> RunPaths:
    """What is there before a shim starts."""
    spec = RunSpec(
        experiment_id="h-t-0001-1", task=project.task, commit=project.reference(), seed=1, tag="t",
        worker_id="solo-0",
    )  # fmt: skip
    run = project.layout.run(spec.experiment_id)
    before = Before(commit=spec.commit, files={}, distributions={}, site_folders=[])
    write_json(run.local, {"checkout": "/a", "before": before.model_dump(mode="json")})
    write_json(run.run_spec, spec)
    return run


@pytest.mark.parametrize("damage", ["torn", "gone", "stranger"])
def test_a_run_that_can_never_be_collected_keeps_no_worktree(project: Project, damage: str) -> None:
    run = begun(project)
    if damage == "torn":
        run.local.write_bytes(run.local.read_bytes()[:40])
    elif damage == "gone":
        run.local.unlink()
    else:
        write_json(run.local, {"checkout": "/a", "before": "yesterday"})
    assert collecting.busy_workers(project.layout) == set()
    own = {"pid": os.getpid(), "start": system.process_start(os.getpid()), "hostname": "here",
           "host": system.host_id(), "boot": system.boot_id(), "experiment_id": "x"}  # fmt: skip
    write_json(run.shim, own)
    assert collecting.busy_workers(project.layout) == {"solo-0"}, "its shim lives"
    write_json(run.shim, {**own, "host": "another"})
    assert collecting.busy_workers(project.layout) == {"solo-0"}, "nobody here can tell"


@pytest.mark.parametrize("state", ["absent", "dead", "finished"])
def test_an_uncollected_run_keeps_its_worktree_whatever_became_of_its_shim(
    project: Project, state: str
) -> None:
    run = begun(project)
    if state != "absent":
        write_json(run.shim, {"pid": 0})
    if state == "finished":
        write_json(run.exit, {"status": "exited"})
    assert collecting.busy_workers(project.layout) == {"solo-0"}
    with runner.free_worker(project) as worker:
        assert worker == "solo-1"
    write_json(run.result, {"status": "failed"})
    with runner.free_worker(project) as worker:
        assert worker == "solo-0"


def test_a_run_that_cannot_be_collected_does_not_lose_its_evidence_to_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AutohypothesisError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(runner.LocalExecutor, "collect", refuse)
        patch.setattr(collecting, "collect", refuse)
        with pytest.raises(AutohypothesisError, match="not now"):
            runner.run(project, Experiment(Change()))
        patch.setattr(runner.LocalExecutor, "collect", lambda *_: None)
        second = Experiment(Change(overrides={"RATE": 0.2}))
        with pytest.raises(AutohypothesisError, match="not now"):
            patch.setattr(runner.LocalExecutor, "collect", refuse)
            runner.run(project, second)
    assert collecting.busy_workers(project.layout) == {"solo-0", "solo-1"}
    collected = collecting.collect_ended(project.repository, project.layout)
    assert len(collected) == 2
    for experiment_id in collected:
        assert '"completed"' in project.layout.run(experiment_id).result.read_text()


def test_no_cgroup_is_left_of_a_run_that_was_collected(project: Project) -> None:
    """The shim ends in its cgroup; the process that collects the run removes it."""
    finished = runner.run(project, Experiment(Change()))
    shim = read_json(project.layout.run(finished.experiment_id).shim)
    home = processes._own_group()
    assert not (home and list(Path(home).glob(f"autohypothesis-{shim['pid']}-*")))
