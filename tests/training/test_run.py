"""Whole runs of train.py, as the shim and as people start it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import script

STEP = re.compile(
    r"step (\d{5}) \(([\d.]+)%\) \| loss: ([\d.]+) \| bpb: ([\d.]+) \| lrm: ([\d.]+) \| "
    r"dt: (\d+)ms \| tok/sec: ([\d,]+) \| mfu: ([\d.]+)% \| epoch: (\d+) \| remaining: (\d+)s"
)
SUMMARY = (
    "val_bpb training_seconds total_seconds peak_vram_mb mfu_percent total_tokens_M num_steps "
    "num_params_M depth train_bpb seed device"
)
Make = Callable[..., Path]


def summary(log: str) -> dict[str, str]:
    tail = log.split("\n---\n")[1]
    return dict(re.split(r":\s+", line, maxsplit=1) for line in tail.splitlines())  # type: ignore[misc]


@pytest.fixture(scope="module")
def by_hand(cache: Path) -> str:
    result = script("train.py", AUTORESEARCH_CACHE=cache)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_a_run_by_hand_prints_lines_that_a_parser_reads(by_hand: str) -> None:
    steps = [STEP.fullmatch(line) for line in by_hand.splitlines() if line.startswith("step")]
    assert len(steps) > 3 and all(steps)
    seconds = float(re.search(r"^total_seconds:\s+([\d.]+)$", by_hand, re.MULTILINE)[1])  # type: ignore[index]
    assert len(steps) <= 10 * seconds + 2  # about ten a second of wall clock
    numbers = [int(step[1]) for step in steps if step]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    last = steps[-1]
    assert last and (last[2], last[10]) == ("100.0", "0")


def test_the_summary_has_its_published_keys_in_order(by_hand: str) -> None:
    found = summary(by_hand)
    assert list(found) == SUMMARY.split()
    assert by_hand.split("\n---\n")[1].startswith("val_bpb:          ")
    assert 1.0 <= float(found["training_seconds"]) < 1.3
    assert float(found["total_seconds"]) > float(found["training_seconds"])
    assert 1 < float(found["train_bpb"]) < 5 and 1 < float(found["val_bpb"]) < 5
    assert (found["seed"], found["device"], found["depth"]) == ("42", "cpu", "2")
    tokens = int(found["num_steps"]) * 256 / 1e6
    assert float(found["total_tokens_M"]) == pytest.approx(tokens, abs=1e-3)


def test_a_run_for_the_shim_leaves_clock_and_weights(finished_run: Path) -> None:
    import torch

    assert summary((finished_run / "run.log").read_text())["seed"] == "7"
    assert {path.name for path in finished_run.iterdir()} == {
        "clock.jsonl",
        "weights.pt",
        "run.log",
    }
    start, stop = map(json.loads, (finished_run / "clock.jsonl").read_text().splitlines())
    assert (start["event"], stop["event"]) == ("start", "stop")
    assert start["clock"] == "cpu" and start["budget_seconds"] == 1.0
    assert stop["elapsed"] == pytest.approx(stop["cpu"] - start["cpu"], abs=0.01)
    weights = torch.load(finished_run / "weights.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_the_seed_moves_the_initialisation_and_an_overridden_depth_is_trained(
    cache: Path, candidate: Make
) -> None:
    loop = "    while clock.elapsed < clock.budget_seconds:", "    while progress.steps < 5:"
    depth = "DEPTH = profile.depth", "DEPTH = 3"
    short = candidate(*loop, *depth, "WEIGHT_DECAY = 0.2", "WEIGHT_DECAY = 0.0")  # falls with time
    losses = []
    for seed in ("1", "1", "2"):
        result = script(str(short), AUTORESEARCH_CACHE=cache, SEED=seed)
        assert result.returncode == 0, result.stdout + result.stderr
        found = summary(result.stdout)
        assert found["depth"] == "3"
        losses.append(found["val_bpb"])
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_of_nan_ends_the_run_at_once(cache: Path, candidate: Make) -> None:
    broken = candidate("MATRIX_LR = 0.04", "MATRIX_LR = float('nan')")
    result = script(str(broken), AUTORESEARCH_CACHE=cache)
    assert result.returncode == 1
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"FAIL: loss is nan at step \d+", last) and "---" not in result.stdout


def test_a_gpu_profile_never_trains_on_the_cpu(own_cache: Path) -> None:
    manifest = next(own_cache.rglob("manifest.json"))
    text = manifest.read_text()
    manifest.write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    result = script("train.py", AUTORESEARCH_CACHE=own_cache, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1 and "needs CUDA" in result.stderr
    assert "step 0" not in result.stdout


def test_without_data_the_last_line_says_what_to_run(tmp_path: Path) -> None:
    result = script("train.py", AUTORESEARCH_CACHE=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("run: python prepare.py")
