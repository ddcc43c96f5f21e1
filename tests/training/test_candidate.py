"""Changed copies of train.py: what preflight tells of them, and what the official score refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import ROOT, last_json, python, script

DEPTH = "DEPTH = profile.depth"
Make = Callable[..., Path]


@pytest.fixture
def preflight(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], dict[str, Any]]:
    """In this process, for speed; the command line is tested with the stock file."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda path: json.loads(json.dumps(prepare.preflight(path)))


def test_the_stock_file_passes(cache: Path) -> None:
    result = script("prepare.py", "--preflight", ROOT / "train.py", AUTORESEARCH_CACHE=cache)
    found = last_json(result)
    assert found["ok"] and found["num_params"] > 0
    published = (
        "ASPECT_RATIO HEAD_DIM WINDOW_PATTERN TOTAL_BATCH_SIZE EMBEDDING_LR UNEMBEDDING_LR "
        "MATRIX_LR SCALAR_LR WEIGHT_DECAY ADAM_BETAS WARMUP_RATIO WARMDOWN_RATIO FINAL_LR_FRAC "
        "DEPTH DEVICE_BATCH_SIZE"
    )
    assert set(found["constants"]) == set(published.split())
    assert found["constants"]["DEPTH"] == 2
    assert found["constants"]["ADAM_BETAS"] == [0.8, 0.95]


def test_a_candidate_gets_this_prepare_and_not_the_one_beside_it(
    preflight: Any, candidate: Make
) -> None:
    path = candidate()
    (path.parent / "prepare.py").write_text("raise SystemExit('the wrong one')\n")
    assert preflight(path)["ok"]


def test_a_helper_beside_the_candidate_can_be_imported(preflight: Any, candidate: Make) -> None:
    path = candidate(DEPTH, "from helper import DEPTH_OF\n\nDEPTH = DEPTH_OF")
    (path.parent / "helper.py").write_text("DEPTH_OF = 3\n")
    assert preflight(path)["constants"]["DEPTH"] == 3


def test_a_batch_that_does_not_divide_names_both_sizes(preflight: Any, candidate: Make) -> None:
    edit = "DEVICE_BATCH_SIZE = profile.device_batch_size", "DEVICE_BATCH_SIZE = 7"
    found = preflight(candidate(*edit))
    rule = "is not a multiple of DEVICE_BATCH_SIZE x MAX_SEQ_LEN = 7 x 32 = 224"
    assert not found["ok"] and found["problem"] == f"TOTAL_BATCH_SIZE = 256 {rule}"
    assert found["constants"]["DEVICE_BATCH_SIZE"] == 7


def test_a_step_of_fewer_rows_than_a_pass_may_have_is_one_pass(
    preflight: Any, candidate: Make
) -> None:
    edit = "TOTAL_BATCH_SIZE = profile.total_batch_size", "TOTAL_BATCH_SIZE = 64"
    found = preflight(candidate(*edit))
    assert found["ok"], found["problem"]


@pytest.mark.parametrize(
    ("constants", "problem"),
    [
        ({"DEPTH": 0}, "DEPTH = 0 is not a whole number"),
        ({"DEPTH": 2.0}, "DEPTH = 2.0 is not a whole number"),
        ({"HEAD_DIM": 15}, "HEAD_DIM = 15 is not even"),
        ({"MATRIX_LR": -1}, "MATRIX_LR = -1 is not a number from 0 on"),
        ({"MATRIX_LR": "big"}, "MATRIX_LR = 'big' is not a number"),
        ({"WARMDOWN_RATIO": 1.5}, "WARMDOWN_RATIO = 1.5 is not a number from 0 to 1"),
        ({"WARMUP_RATIO": 0.6, "WARMDOWN_RATIO": 0.6}, "are more than 1 together"),
        ({"WINDOW_PATTERN": "SX"}, "WINDOW_PATTERN = 'SX' is not a word of S and L"),
        ({"ADAM_BETAS": [0.9, 1.0]}, "ADAM_BETAS = [0.9, 1.0] is not a pair"),
    ],
)
def test_a_constant_out_of_range_is_named_with_its_value(
    prepare: ModuleType, constants: dict[str, Any], problem: str
) -> None:
    assert problem in (prepare.shape_problem(constants, 32) or "")


@pytest.mark.parametrize(
    ("edits", "problem"),
    [
        ((DEPTH, "DEPTH = profile.depht"), "AttributeError: 'Profile' object has no attribute"),
        ((DEPTH, "DEPTH = ("), "SyntaxError"),
        ((DEPTH, "DEPTH = 2\nraise SystemExit(0)"), "SystemExit: 0 (train.py line "),
        ((DEPTH, "DEPTH = 1e400"), "DEPTH = inf is not finite"),
        (("def build_model(", "def make_model("), "has no attribute 'build_model'"),
        (("        return self.SOFTCAP * torch.tanh(logits)", "        return logits.mean()"),
         "forward gave [], not [B, T, V]"),
        (("return self.SOFTCAP * torch", "return float('nan') * torch"), "first step is nan"),
    ],
    ids=["import", "syntax", "exit", "infinite", "no-build", "shape", "nan"],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(
    preflight: Any, candidate: Make, edits: tuple[str, str], problem: str
) -> None:
    found = preflight(candidate(*edits))
    assert not found["ok"] and problem in found["problem"] and "\n" not in found["problem"]


def test_importing_has_no_side_effects(candidate: Make, cache: Path) -> None:
    path = candidate()
    before = sorted(path.parent.iterdir())
    code = "import sys, threading, train; print(threading.active_count(), 'rich' in sys.modules)"
    variables = {"AUTORESEARCH_CACHE": cache, "AUTOHYPOTHESIS_RUN_DIR": path.parent}
    result = python("-B", "-c", code, cwd=path.parent, **variables)
    assert result.stdout.strip() == "1 False", result.stderr
    assert sorted(path.parent.iterdir()) == before


@pytest.fixture
def own_run(finished_run: Path, preflight: Any, tmp_path: Path) -> Path:
    """A finished run of the stock file with its weights and the constants that it had."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    constants = preflight(ROOT / "train.py")["constants"]
    config = {name.lower(): value for name, value in constants.items()}
    document = config | {"hyperparameters": config}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_the_official_score_is_the_one_that_train_py_would_print(
    cache: Path, own_run: Path, prepare: ModuleType, train: ModuleType
) -> None:
    import torch

    arguments = ("--score", own_run, "--train", ROOT / "train.py")
    result = script("prepare.py", *arguments, AUTORESEARCH_CACHE=cache)
    assert result.returncode == 0, result.stderr
    found = last_json(result)
    model = train.build_model(json.loads((own_run / "config.json").read_text()))
    model.load_state_dict(torch.load(own_run / "weights.pt", weights_only=True))
    assert found["val_bpb"] == pytest.approx(prepare.evaluate_bpb(model), abs=1e-5)
    assert found["peeking"] < 1e-3
    assert "val_bpb:          nan" in (own_run / "run.log").read_text()  # who trains sees no score
    assert {"tokens", "bytes", "documents", "seconds", "data_hash"} <= found.keys()


PEEKING = (
    "        x = start = norm(self.embedding(tokens).to(dtype))",
    "        x = start = norm(self.embedding(tokens.roll(-1, 1)).to(dtype))",
)


@pytest.mark.parametrize(
    ("edits", "spoil", "kind", "message"),
    [
        (PEEKING, None, "peeking", "the model looks ahead"),
        ((), "nan", "not_finite", "not finite"),
        ((), "torn", "weights", "PytorchStreamReader"),
        ((), "missing", "weights", "FileNotFoundError"),
        ((), "code", "weights", "UnpicklingError"),
        ((DEPTH, "DEPTH = 3"), "depth", "weights", "state_dict"),
        (("    depth, head_dim = config", "    0 / 0\n    depth, head_dim = config"),
         None, "build_model", "ZeroDivisionError"),
        (("return self.decode(tokens, {})", "return self.decode(tokens, {})[:, 1:]"),
         None, "shape", "not [B, T, V]"),
        (("return self.decode(tokens, {})", "raise SystemExit(0)"),
         None, "shape", "SystemExit: 0 (train.py line"),
    ],
    ids=["peeking", "nan", "torn", "missing", "code", "mismatch", "build", "shape", "exit"],
)  # fmt: skip
def test_a_run_that_cannot_be_scored_says_why(
    prepare: ModuleType,
    capsys: pytest.CaptureFixture[str],
    own_run: Path,
    candidate: Make,
    edits: tuple[str, ...],
    spoil: str | None,
    kind: str,
    message: str,
) -> None:
    import torch

    weights = own_run / "weights.pt"
    if spoil == "nan":
        state = torch.load(weights, weights_only=True)
        state["head.weight"][0, 0] = float("nan")
        torch.save(state, weights)
    elif spoil == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif spoil == "missing":
        weights.unlink()
    elif spoil == "code":
        torch.save({"head.weight": Hostile()}, weights)
    elif spoil == "depth":
        config = json.loads((own_run / "config.json").read_text())["hyperparameters"]
        (own_run / "config.json").write_text(json.dumps(config | {"depth": 3}))
    assert prepare.main(["--score", str(own_run), "--train", str(candidate(*edits))]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kind"] == kind and message in found["error"] and "\n" not in found["error"]


@pytest.mark.parametrize("flat", [True, False], ids=["older", "both"])
def test_the_model_is_built_of_the_hyper_parameters_and_nothing_else(
    prepare: ModuleType,
    capsys: pytest.CaptureFixture[str],
    own_run: Path,
    candidate: Make,
    flat: bool,
) -> None:
    settings = json.loads((own_run / "config.json").read_text())["hyperparameters"]
    if flat:
        (own_run / "config.json").write_text(json.dumps(settings))
    only = f"    assert sorted(config) == {sorted(settings)}\n    depth, head_dim = config"
    path = candidate("    depth, head_dim = config", only)
    assert prepare.main(["--score", str(own_run), "--train", str(path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["val_bpb"] > 0


class Hostile:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by the weights",))
