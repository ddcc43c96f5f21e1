"""Test classes for pytest that every proposer, executor and scorer must pass.

A package that brings one inherits the class of its seam and gives it what it tests:

    from autohypothesis.testing import ProposerSuite

    class TestMine(ProposerSuite):
        @pytest.fixture
        def proposer(self):
            return Mine()
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine.experiment import Executor, RunSpec
from autohypothesis.engine.scoring import Scorer
from autohypothesis.engine.task import Knob
from autohypothesis.errors import LaunchError
from autohypothesis.fleet.proposing import Proposer, Situation, Trial
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import Brief, ExitRecord, Proposal, Setting, Steering, now

REFERENCE: Mapping[str, Setting] = {"DEPTH": 3, "MATRIX_LR": 0.04, "WARMUP_RATIO": 0.0}
SOURCE = "DEPTH = 3\nMATRIX_LR = 0.04\nWARMUP_RATIO = 0.0\n"
LONGEST_S = 120.0
"""Seconds for a run of a suite to end: a hang guard."""


def situation(**changes: Any) -> Situation:
    """Return a search whose baseline has run, with three constants; `changes` are its fields."""
    trial = Trial("baseline-test-1", "baseline-test", dict(REFERENCE), 1.9, "keep")
    baseline = replace(trial, title="baseline", code_hash="as it was")
    made = Situation(
        tag="test", metric="val_bpb", direction="minimize", min_delta=0.005,
        reference=dict(REFERENCE), sources={"train.py": SOURCE},
        knobs={
            "DEPTH": Knob(type="int", low=1, high=8),
            "MATRIX_LR": Knob(type="float", low=0.001, high=1.0, log=True),
        },
        steering=Steering(), trials=(baseline,), open=(), closed=(),
        brief=Brief(generated_at=now()), code_hash="as it was",
    )  # fmt: skip
    return replace(made, **changes)


class ProposerSuite:
    """The tests of `fleet.Proposer`."""

    HAS_IDEAS = True
    """Whether it must have an idea for `situation()`; the inbox, say, has none."""

    @pytest.fixture
    def proposer(self) -> Proposer:
        raise NotImplementedError("give the suite a fixture `proposer`")

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_it_answers_with_no_more_than_was_asked_for(
        self, proposer: Proposer, count: int
    ) -> None:
        answer = proposer.propose(situation(), count)
        assert len(answer) <= count
        assert all(isinstance(proposal, Proposal) for proposal in answer)
        assert bool(answer) == (self.HAS_IDEAS and count > 0)

    def test_a_proposal_is_a_change_and_survives_its_file(self, proposer: Proposer) -> None:
        for proposal in proposer.propose(situation(), 3):
            assert Proposal.model_validate_json(proposal.model_dump_json()) == proposal
            assert proposal.title == " ".join(proposal.title.split())
            assert proposal.config_overrides or proposal.patch or proposal.instructions

    def test_the_best_comes_first(self, proposer: Proposer) -> None:
        answer = proposer.propose(situation(), 3)
        priorities = [proposal.priority or 0.0 for proposal in answer]
        assert priorities == sorted(priorities, reverse=True)

    def test_the_situation_is_left_alone(self, proposer: Proposer) -> None:
        given = situation()
        before = deepcopy(given)
        proposer.propose(given, 3)
        assert given == before

    def test_the_same_question_gets_the_same_answer(self, proposer: Proposer) -> None:
        assert list(proposer.propose(situation(), 2)) == list(proposer.propose(situation(), 2))

    @pytest.mark.parametrize(
        "changes",
        [
            {"trials": (), "reference": {}},
            {"trials": (), "knobs": {}, "sources": {}},
            {"steering": Steering(frozen=["DEPTH"], ranges={"MATRIX_LR": (1, 0)})},
            {"min_delta": 0.0},
            {"direction": "maximize"},
        ],
        ids=str,
    )
    def test_an_odd_situation_is_no_error(
        self, proposer: Proposer, changes: dict[str, Any]
    ) -> None:
        proposer.propose(situation(**changes), 2)


class ExecutorSuite:
    """The tests of `engine.Executor`; each experiment is submitted under an id of its own."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError("give the suite a fixture `executor`")

    @pytest.fixture
    def spec(self) -> RunSpec:
        raise NotImplementedError("give the suite a fixture `spec`: a run of seconds that scores")

    @pytest.fixture
    def endless(self) -> RunSpec:
        raise NotImplementedError("give the suite a fixture `endless`: a run of minutes")

    def test_a_run_ends_and_is_collected_however_often(
        self, executor: Executor, spec: RunSpec
    ) -> None:
        experiment_id = executor.submit(spec)
        assert experiment_id == spec.experiment_id
        wait_for_end(executor, experiment_id)
        result = executor.collect(experiment_id)
        assert (result.status, result.commit) == ("completed", spec.commit)
        assert result.metric_value is not None and math.isfinite(result.metric_value)
        assert executor.collect(experiment_id) == result

    def test_a_running_one_is_not_collected_and_a_cancelled_one_has_failed(
        self, executor: Executor, endless: RunSpec
    ) -> None:
        experiment_id = executor.submit(endless)
        assert executor.poll(experiment_id) == "running"
        with pytest.raises(LaunchError):
            executor.collect(experiment_id)
        executor.cancel(experiment_id)
        wait_for_end(executor, experiment_id)
        result = executor.collect(experiment_id)
        assert (result.status, result.failure_kind) == ("failed", "cancelled")
        assert result.metric_value is None

    def test_an_unknown_experiment_is_absent(self, executor: Executor) -> None:
        assert executor.poll("never-submitted-1") == "absent"
        executor.cancel("never-submitted-1")


def wait_for_end(executor: Executor, experiment_id: str) -> None:
    """Return once an experiment no longer runs; fail after `LONGEST_S`."""
    until = time.monotonic() + LONGEST_S
    while executor.poll(experiment_id) == "running":
        assert time.monotonic() < until, f"{experiment_id} still runs"
        time.sleep(0.05)


class ScorerSuite:
    """The tests of `engine.Scorer`: what is on disk when a run has ended, and its number."""

    @pytest.fixture
    def scorer(self) -> Scorer:
        raise NotImplementedError("give the suite a fixture `scorer`")

    @pytest.fixture
    def good(self) -> tuple[RunPaths, ExitRecord, Path | None]:
        raise NotImplementedError("give the suite a fixture `good`: a run with a value")

    @pytest.fixture
    def empty(self) -> tuple[RunPaths, ExitRecord, Path | None]:
        raise NotImplementedError("give the suite a fixture `empty`: a run that left no value")

    def test_a_good_run_has_a_finite_value_whenever_it_is_asked(
        self, scorer: Scorer, good: tuple[RunPaths, ExitRecord, Path | None]
    ) -> None:
        score = scorer.score(*good)
        assert score.value is not None and math.isfinite(score.value), score.problem
        assert (score.problem, score.kind) == ("", None)
        assert scorer.score(*good) == score

    def test_a_run_that_left_nothing_has_no_value_and_a_reason(
        self, scorer: Scorer, empty: tuple[RunPaths, ExitRecord, Path | None]
    ) -> None:
        score = scorer.score(*empty)
        assert score.value is None and score.kind is not None
        assert score.problem and "\n" not in score.problem
