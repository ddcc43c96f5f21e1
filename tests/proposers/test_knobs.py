"""Constants that a script shows: which of them may be turned, and how far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autohypothesis.engine.task import Knob
from autohypothesis.proposers.knobs import (
    budget_constants,
    computed_in,
    discovered,
    knobs_of,
    set_twice,
)
from autohypothesis.proposers.search import KnobSearch
from autohypothesis.schema import Steering
from tests.conftest import ROOT, Cli, Git, rows

SCRIPT = """
import os
SEED = 42
RANDOM_STATE = 7
TIME_BUDGET = 300
DATA_PATH = "data.txt"
LEARNING_RATE = 3e-4  # peak
MOMENTUM = 0.9
DROPOUT = 0.0
DECAY = 0.0
N_LAYERS = 6
TOTAL_BATCH_SIZE = 2**19
DEVICE_BATCH_SIZE = 128
USE_BIAS = True
H100_BF16_PEAK_FLOPS = 989.5e12
LOG_INTERVAL = 10
EVAL_BATCH = 64
WIDTH = int(os.environ.get("WIDTH", 64))
TWICE = 1
TWICE = 2
lower = 3
def f():
    INNER = 5
"""


def test_only_constants_that_make_a_model_are_found() -> None:
    knobs = discovered({"train.py": SCRIPT, "README.md": "DEPTH = 3"})
    assert list(knobs) == [
        "LEARNING_RATE", "MOMENTUM", "DROPOUT", "N_LAYERS", "TOTAL_BATCH_SIZE",
        "DEVICE_BATCH_SIZE", "USE_BIAS",
    ]  # fmt: skip
    rate = knobs["LEARNING_RATE"]
    assert rate.log and rate.low == 3e-4 / 4 and rate.high == 3e-4 * 4
    assert knobs["MOMENTUM"].high < 1 and knobs["USE_BIAS"].choices == (False, True)
    assert (knobs["N_LAYERS"].low, knobs["N_LAYERS"].high) == (1, 24)


BUDGETS = (
    "STEPS NUM_STEPS MAX_STEPS TRAIN_STEPS TOTAL_STEPS EPOCHS N_EPOCHS MAX_EPOCHS NUM_TRAIN_EPOCHS"
    " MAX_ITERS MAX_ITER NUM_ITERATIONS ITERATIONS STEPS_PER_EPOCH FINETUNE_EPOCHS TOTAL_TOKENS"
    " TOTAL_TIMESTEPS N_ESTIMATORS NUM_BOOST_ROUND MAX_TIME"
)
NO_BUDGETS = (
    "WARMUP_STEPS WARMUP_ITERS LR_DECAY_ITERS GRAD_ACCUM_STEPS GRADIENT_ACCUMULATION_STEPS NS_STEPS"
    " BATCH_SIZE N_LAYERS EPOCH_SIZE STEP DECAY_EPOCHS NUM_HEADS"
)


def test_what_buys_score_with_compute_is_named_and_no_knob_unless_the_task_says_so(
    project: Callable[..., Any],
) -> None:
    text = "".join(f"{name} = 10\n" for name in f"{BUDGETS} {NO_BUDGETS}".split())
    sources = {"train.py": text}
    assert budget_constants(sources) == BUDGETS.split()
    assert set(discovered(sources)) == set(NO_BUDGETS.split())
    sources, knobs = {"train.py": "EPOCHS = 3\n"}, {"EPOCHS": Knob(type="int", low=1, high=9)}
    for given, found in ({}, {}), (knobs, knobs):
        place = project(knobs=given, sources=sources, reference={"EPOCHS": 3})
        assert knobs_of(place.situation()) == found


def test_a_loop_names_what_it_leaves_alone(cli: Cli, foreign: Path, git: Git) -> None:
    (foreign / "train.py").write_text("EPOCHS = 3\nprint('val_bpb:', 2 - EPOCHS / 10)\n")
    git(foreign, "commit", "-qam", "trains for some epochs")
    said = cli("run-loop", "--max", "2").stderr
    assert "EPOCHS: this buys score with compute" in said and "`knobs`" in said
    assert len(rows(cli)) == 1, "the baseline alone"


def test_no_knob_of_our_own_pair_buys_score_with_compute() -> None:
    ours = yaml.safe_load((ROOT / "tasks/pretrain/task.yaml").read_text())["knobs"]
    text = "".join(f"{name} = 10\n" for name in ours)
    assert budget_constants({"train.py": (ROOT / "train.py").read_text(), "t.py": text}) == []


def test_a_constant_that_follows_another_is_known() -> None:
    text = "A = 2\nB: int = A * 3\nC, D = 1, 2\nE = profile.depth\nf = A\n"
    assert computed_in({"train.py": text, "x.txt": "G = A"}) == {"B", "f"}
    assert computed_in({"train.py": "A = ("}) == set()


def test_a_constant_of_two_files_is_nobodys_knob() -> None:
    sources = {"a.py": "DEPTH = 3\n", "b.py": "DEPTH = 4\nWIDTH = 8\n"}
    assert list(discovered(sources)) == ["WIDTH"]
    assert set_twice(sources) == {"DEPTH": ["a.py", "b.py"]}


@pytest.mark.parametrize(
    "name", ["VOCAB", "VOCAB_SIZE", "N_VOCAB", "NUM_CLASSES", "DATASET_SIZE", "INPUT_DIM"]
)
def test_a_size_of_the_data_is_no_knob(name: str) -> None:
    source = f"{name} = 65\nHIDDEN_DIM = 64\nLABEL_SMOOTHING = 0.1\nMAX_FEATURES = 100\n"
    assert list(discovered({"a.py": source})) == ["HIDDEN_DIM", "LABEL_SMOOTHING", "MAX_FEATURES"]


def test_a_script_that_does_not_parse_has_no_knobs() -> None:
    assert not discovered({"train.py": "DEPTH = (\n"})


def test_a_foreign_script_can_be_searched(project: Callable[..., Any]) -> None:
    """RATE 0.1 with its optimum at 0.3, as somebody's script has it; there is no task file."""
    place = project(
        knobs={}, sources={"train.py": 'RATE = 0.1\nSLEEP = 0.0\nMODE = "train"\n'},
        reference={"RATE": 0.1, "SLEEP": 0.0, "MODE": "train"},
        metric=lambda values: 1 + (float(values["RATE"]) - 0.3) ** 2, min_delta=0.001,
    ).baseline()  # fmt: skip
    asked = place.search(KnobSearch(), 8)
    assert all(set(proposal.config_overrides) == {"RATE"} for proposal in asked)
    assert abs(place.reference["RATE"] - 0.3) < 0.1


def test_steering_has_the_last_word_on_any_knob(project: Callable[..., Any]) -> None:
    place = project(
        knobs={}, sources={"train.py": SCRIPT},
        reference={"LEARNING_RATE": 3e-4, "N_LAYERS": 6, "USE_BIAS": True, "MOMENTUM": 0.9},
        steering=Steering(frozen=["use_bias"], ranges={"n_layers": (5.5, 7.5), "MOMENTUM": (2, 3)}),
    )  # fmt: skip
    knobs = knobs_of(place.situation())
    assert set(knobs) == {"LEARNING_RATE", "N_LAYERS"}
    assert (knobs["N_LAYERS"].low, knobs["N_LAYERS"].high) == (6, 7)


def test_a_knob_that_the_script_lost_is_no_knob(project: Callable[..., Any]) -> None:
    place = project().baseline()
    del place.reference["DEPTH"]
    assert "DEPTH" not in knobs_of(place.situation())
    assert KnobSearch().propose(place.situation(), 3)
