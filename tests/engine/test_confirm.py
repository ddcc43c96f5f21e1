"""Confirming with real runs: beside somebody else's, and on another platform than the win."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from autohypothesis.engine import evidence, local_executor, runner
from autohypothesis.engine.decide import NeedsRuns, settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project, run_ids
from autohypothesis.engine.task import Policy
from autohypothesis.errors import SettleError


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is voided because other tests are busy beside it."""
    monkeypatch.setattr(evidence, "ENOUGH", 1_000_000)
    monkeypatch.setattr(runner, "CONFIRM_POLL_S", 0.1)


@pytest.fixture
def project(foreign: Path, git: Callable[..., str]) -> Project:
    """One further pair confirms a win; a run takes a moment. The baseline is decided."""
    script = foreign / "train.py"
    script.write_text(script.read_text().replace("SLEEP = 0.0", "SLEEP = 0.3"))
    git(foreign, "commit", "-qam", "slower")
    opened = Project.open(foreign).with_tag("t")
    task = opened.task.model_copy(update={"policy": Policy(replicates=1)})
    project = replace(opened, task=task)
    settle(project, [runner.run(project, Experiment(Change())).experiment_id], decided_by="test")
    return project


@pytest.fixture
def win(project: Project) -> str:
    change = Change(overrides={"RATE": 0.2})
    return runner.run(project, Experiment(change)).experiment_id


def needed(project: Project, win: str) -> NeedsRuns:
    (found,) = settle(project, [win], decided_by="test").needs_runs
    return found


def test_what_somebody_else_runs_now_is_waited_for_and_not_run_twice(
    project: Project, win: str
) -> None:
    of_change, of_base = needed(project, win).runs
    assert (of_change.replicates, of_base.replicates) == (win, "baseline-t-1")
    executor = LocalExecutor(project.repository, project.layout)
    experiment_id = executor.submit(runner.plan(project, of_change, "solo-9"))
    follower = Thread(target=_collect, args=(project, executor, experiment_id))
    follower.start()
    (*_, decision) = runner.confirm(project, win, decided_by="test")
    follower.join()
    assert decision.confirmation == "confirmed"
    assert len(run_ids(project.layout)) == 4


def _collect(project: Project, executor: LocalExecutor, experiment_id: str) -> None:
    runner.follow(project, executor, experiment_id)
    executor.collect(experiment_id)


def test_a_replicate_that_says_nothing_about_the_win_is_not_made_for_ever(
    project: Project, win: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executor, "platform_key", lambda **_: "another card")
    with pytest.raises(SettleError, match="ran on another platform") as refused:
        runner.confirm(project, win, decided_by="test")
    assert f"decide {win} keep" in refused.value.hint


def test_a_change_of_the_task_since_does_not_change_what_confirms_it(
    project: Project, win: str
) -> None:
    script = project.layout.root / "task.yaml"
    script.write_text(
        "id: other\nartifacts: [train.py]\nrun: {command: [python, train.py]}\n"
        "objective: {metric: val_bpb, min_delta: 0.5}\n"
    )
    today = Project.open(project.layout.root)
    assert today.task.objective.min_delta == 0.5
    assert runner.confirm(today, win, decided_by="test")[-1].confirmation == "confirmed"
