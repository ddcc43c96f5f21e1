"""The local executor and the scorers pass the suites that other packages run on theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autohypothesis.engine import runner
from autohypothesis.engine.experiment import Change, Executor, Experiment, RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.scoring import Scorer, scorer_for
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.schema import ExitRecord, now
from autohypothesis.testing import ExecutorSuite, ScorerSuite


class TestLocalExecutor(ExecutorSuite):
    @pytest.fixture
    def executor(self, project: Project) -> Executor:
        return LocalExecutor(project.repository, project.layout)

    @pytest.fixture
    def spec(self, project: Project) -> RunSpec:
        with runner.free_worker(project) as worker:
            return runner.plan(project, Experiment(Change()), worker)

    @pytest.fixture
    def endless(self, project: Project) -> RunSpec:
        with runner.free_worker(project) as worker:
            change = Change(overrides={"SLEEP": 600.0})
            return runner.plan(project, Experiment(change), worker)


Ended = tuple[RunPaths, ExitRecord, Path | None]


class TestLogScorer(ScorerSuite):
    @pytest.fixture
    def scorer(self, project: Project) -> Scorer:
        return scorer_for(project.task)

    @pytest.fixture
    def good(self, project: Project) -> Ended:
        return self.ended(project.layout, metrics={"val_bpb": 1.25}, summaries_seen=1)

    @pytest.fixture
    def empty(self, project: Project) -> Ended:
        return self.ended(project.layout)

    def ended(self, layout: Layout, **record: object) -> Ended:
        run = layout.run("baseline-t-1")
        run.folder.mkdir(parents=True)
        document = {"experiment_id": "baseline-t-1", "status": "exited", **record}
        times = {"started_at": now(), "ended_at": now()}
        return run, ExitRecord.model_validate({**document, **times}), None
