"""A search without trainings: a landscape instead of a model, and a queue that is a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autohypothesis.engine.task import Knob
from autohypothesis.fleet.proposing import Proposer, Situation, Trial
from autohypothesis.proposers import joint
from autohypothesis.schema import Brief, Hypothesis, Proposal, Setting, Steering, now

ROOT = Path(__file__).resolve().parents[2]
REFERENCE: dict[str, Setting] = {
    "DEPTH": 3, "ASPECT_RATIO": 32, "HEAD_DIM": 32, "WINDOW_PATTERN": "L",
    "TOTAL_BATCH_SIZE": 1024, "DEVICE_BATCH_SIZE": 16, "EMBEDDING_LR": 0.6,
    "UNEMBEDDING_LR": 0.004, "MATRIX_LR": 0.04, "SCALAR_LR": 0.5, "WEIGHT_DECAY": 0.2,
    "ADAM_BETAS": [0.8, 0.95], "WARMUP_RATIO": 0.0, "WARMDOWN_RATIO": 0.5, "FINAL_LR_FRAC": 0.0,
}  # fmt: skip
"""What the pretrain task starts from on a laptop."""


def task_knobs() -> dict[str, Knob]:
    text = (ROOT / "tasks" / "pretrain" / "task.yaml").read_text()
    return {name: Knob(**knob) for name, knob in yaml.safe_load(text)["knobs"].items()}


def bowl(settings: Mapping[str, Setting]) -> float:
    """Separable and smooth: two layers, a smaller batch and a higher rate are best."""
    value = 1.9
    value += 0.04 * (float(settings["DEPTH"]) - 2) ** 2
    value += 0.03 * (math.log2(float(settings["TOTAL_BATCH_SIZE"])) - 9) ** 2
    value += 0.05 * math.log2(float(settings["MATRIX_LR"]) / 0.08) ** 2
    value += 0.02 * math.log2(float(settings["EMBEDDING_LR"]) / 0.6) ** 2
    return value + 0.1 * float(settings["WARMUP_RATIO"])


@dataclass
class Project:
    """Runs what is proposed, at once, and keeps what is better."""

    metric: Callable[[Mapping[str, Setting]], float | None] = bowl
    knobs: dict[str, Knob] = field(default_factory=task_knobs)
    reference: dict[str, Setting] = field(default_factory=lambda: dict(REFERENCE))
    min_delta: float = 0.005
    maximize: bool = False
    steering: Steering = field(default_factory=Steering)
    sources: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    open: list[Hypothesis] = field(default_factory=list)
    closed: list[Hypothesis] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best: float | None = None
    code: str = "as it was"

    def situation(self) -> Situation:
        return Situation(
            tag="test", metric="val_bpb", direction="maximize" if self.maximize else "minimize",
            min_delta=self.min_delta, reference=dict(self.reference), sources=dict(self.sources),
            knobs=dict(self.knobs), steering=self.steering, trials=tuple(self.trials),
            open=tuple(self.open), closed=tuple(self.closed), brief=Brief(generated_at=now()),
            refused=dict(self.refused), code_hash=self.code, charter="at most 39 GB\r\n",
        )  # fmt: skip

    def baseline(self) -> Project:
        self.best = self.metric(self.reference)
        trial = Trial("baseline-test-1", "baseline-test", dict(self.reference), self.best, "keep")
        self.trials.append(replace(trial, code_hash=self.code))
        return self

    def settings(self, proposal: Proposal) -> dict[str, Setting]:
        return {**self.reference, **proposal.config_overrides}

    def queue(self, proposal: Proposal) -> Hypothesis:
        number = len(self.trials) + len(self.open) + len(self.closed)
        hypothesis = Hypothesis(
            hypothesis_id=f"h-test-{number:04}", tag="test", **proposal.model_dump()
        )
        self.open.append(hypothesis)
        return hypothesis

    def run(self, proposal: Proposal) -> Trial:
        hypothesis = self.queue(proposal)
        self.open.remove(hypothesis)
        settings = self.settings(proposal)
        value = self.metric(settings)
        status = "crash" if value is None else "discard"
        if value is not None and self.best is not None:
            gain = (value - self.best) * (1 if self.maximize else -1)
            if gain > self.min_delta:
                status, self.best, self.reference = "keep", value, settings
        trial = Trial(
            f"{hypothesis.hypothesis_id}-1", hypothesis.hypothesis_id, settings, value, status,
            code_hash=self.code,
        )  # fmt: skip
        self.trials.append(trial)
        self.closed.append(hypothesis.model_copy(update={"closed": "completed"}))
        return trial

    def edited(
        self, title: str, value: float, *, diff_hash: str = "d", kept: bool = False,
        **overrides: Setting,
    ) -> Trial:  # fmt: skip
        """A run of edited code; once it is kept, the reference is that code."""
        name, settings = f"h-test-{len(self.trials):04}", {**self.reference, **overrides}
        trial = Trial(
            f"{name}-1", name, settings, value, "keep" if kept else "discard", title=title,
            description="to see", diff_hash=diff_hash, code_hash=f"edited {title}",
        )  # fmt: skip
        self.trials.append(trial)
        if kept:
            self.best, self.reference, self.code = value, settings, trial.code_hash
        return trial

    def search(self, proposer: Proposer, rounds: int) -> list[Proposal]:
        """One proposal, one run, and so on."""
        asked: list[Proposal] = []
        for _ in range(rounds):
            answer = proposer.propose(self.situation(), 1)
            if not answer:
                break
            asked += answer
            self.run(answer[0])
        return asked


@pytest.fixture
def project() -> Callable[..., Project]:
    def make(**changes: Any) -> Project:
        return Project(**changes)

    return make


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine the sampler would now and then be replaced by a lot."""
    monkeypatch.setattr(joint, "PATIENCE_S", 60.0)
