"""The number in the ledger is the official one, whatever a training prints, does or leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project, make_repository
from autohypothesis.engine.runner import run
from autohypothesis.fleet.sync import sync
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Result
from tests.conftest import called, run_git

Try = Callable[..., tuple[str, Result]]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Project, str, Result]:
    """A run of the training pair, which prints a second summary with a number of its own."""
    folder = tmp_path_factory.mktemp("usual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(cache))
        patch.setenv("AUTOHYPOTHESIS_LOCKS", str(folder / "locks"))
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        root = folder / "research repository"
        make_repository(root)
        source = (root / "train.py").read_text()
        summary = '    print("---")\n'
        assert source.count(summary) == 1
        lie = '    print("---\\nval_bpb: 0.1\\n---")\n'
        (root / "train.py").write_text(source.replace(summary, lie))
        run_git(root, "commit", "-qam", "prints a number that is too good")
        project = Project.open(root).with_tag("t")
        finished = run(project, Experiment(Change()))
    return project, finished.experiment_id, finished.result


def test_kept_weights_scored_again_have_the_same_number_and_others_are_named(
    usual: tuple[Project, str, Result], cache: Path, own_locks: Path
) -> None:
    project, identity, result = usual
    words = {"cwd": project.layout.root, "AUTORESEARCH_CACHE": str(cache)}
    answer = called("verify", identity, "--rescore", **words)
    assert answer.returncode == 0, answer
    assert f"scored again: {result.metric_value!r}; recorded: {result.metric_value!r}" in (
        answer.stderr
    )
    run = project.layout.run(identity)
    weights = run.weights.read_bytes()
    state = torch.load(run.weights, weights_only=True)
    largest = max(state, key=lambda name: state[name].numel())
    torch.save({**state, largest: state[largest] * 1.01}, run.weights)
    answer = called("verify", identity, "--rescore", **words)
    run.weights.write_bytes(weights)
    assert answer.returncode == 1, answer
    assert f"{identity}: weights.pt has SHA-256" in answer.stdout
    assert f"says {result.metric_value!r}, and its weights score" in answer.stdout


def test_a_run_is_scored_officially_and_everything_about_it_is_recorded(
    usual: tuple[Project, str, Result],
) -> None:
    project, identity, result = usual
    assert result.status == "completed", result.failure_detail
    assert result.attested
    assert result.evidence["clock"]["verdict"] == "ok"
    assert result.evidence["scorer"]["scored"] == "outside"
    assert result.evidence["scorer"]["evaluator"]["order"]
    folder = project.layout.run(identity)
    printed = [line for line in folder.log.read_text().splitlines() if line.startswith("val_bpb:")]
    assert printed[-1] == f"val_bpb:          {result.metric_value:.6f}"
    config = json.loads(folder.config.read_text())
    assert config["depth"] >= 1  # an expression over the profile, evaluated by the preflight
    assert config["adam_betas"] == [0.8, 0.95]
    named = config.pop("hyperparameters")
    assert named == config == json.loads(folder.metadata.read_text())["hyperparameters"]
    assert folder.weights.stat().st_size > 1000
    settle(project, [identity], decided_by="test")
    sync(project.layout)
    (row,) = read_ledger(project.layout)
    assert (row["status"], row["profile"], row["attested"]) == ("keep", "test", True)
    assert row["platform_key"]
    # Where one step takes more than a tenth of the budget, no sample is near enough to a quarter.
    assert "100" in row["bpb_at_checkpoints"]
    assert set(row["bpb_at_checkpoints"]) <= {"25", "50", "75", "100"}
    assert row["num_steps"] > 10
    assert row["gpu_name"] == "CPU"


def test_a_printed_number_that_is_too_good_changes_nothing(
    usual: tuple[Project, str, Result],
) -> None:
    _, _, result = usual
    assert result.metric_value is not None and result.metric_value > 1
    assert result.metrics.printed_val_bpb is None  # the training never saw the text
    assert result.evidence["scorer"]["summaries_seen"] == 2


def test_a_training_that_rewrites_the_evaluation_is_invalid_and_says_so(attempt: Try) -> None:
    _, result = attempt(
        old="    clock = Clock()\n",
        new="    clock = Clock()\n    open('prepare.py', 'a').write('EVAL = 0\\n')\n",
    )
    assert (result.failure_kind, result.metric_value) == ("invalid", None)
    assert "prepare.py" in result.failure_detail


@pytest.mark.slow  # tests/shim/test_clock.py has it without a model
def test_a_training_that_draws_text_before_the_clock_is_invalid(attempt: Try) -> None:
    _, result = attempt(old="    clock.start()\n", new="    next(batches)\n    clock.start()\n")
    assert result.failure_kind == "invalid", result.failure_detail
    assert "before" in result.failure_detail


@pytest.mark.slow  # tests/training/test_candidate.py has it in this process
def test_weights_that_carry_code_are_not_loaded(attempt: Try) -> None:
    _, result = attempt(
        old='    print("---")\n',
        new="    torch.save(os.system, os.path.join(os.environ['AUTOHYPOTHESIS_RUN_DIR'],"
        " 'weights.pt'))\n    print(\"---\")\n",
    )
    assert (result.failure_kind, result.metric_value) == ("code_error", None)
    assert "weights" in result.failure_detail


def seed_and_first_loss(project: Project, identity: str, result: Result) -> tuple[int, float]:
    """Of the model as it was initialised: later losses depend on the clock."""
    assert result.status == "completed", result.failure_detail
    folder = project.layout.run(identity)
    recorded = json.loads(folder.metadata.read_text())["run"]["seed"]
    assert result.metrics.model_dump()["seed"] == recorded, "the training had another seed"
    loss = json.loads(folder.exit.read_text())["samples"][0][1]
    assert loss is not None
    return recorded, loss


@pytest.mark.slow
def test_a_seed_is_repeatable_and_another_one_is_another_training(
    project: Project, attempt: Try, usual: tuple[Project, str, Result]
) -> None:
    first = seed_and_first_loss(*usual)
    assert seed_and_first_loss(project, *attempt(seed=42)) == first
    other = seed_and_first_loss(project, *attempt(seed=7))
    assert (first[0], other[0]) == (42, 7)
    assert first[1] != other[1]
