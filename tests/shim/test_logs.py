"""Numbers printed by code under test become numbers only if they are some."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.logs import (
    Progress,
    parse_number,
    parse_progress,
    parse_summary,
    printed_nonsense,
)

ORIGINAL = (
    "step 00953 (100.0%) | loss: 2.990000 | lrm: 0.00 | dt: 300ms | tok/sec: 1,700,000"
    " | mfu: 39.8% | epoch: 1 | remaining: 0s"
)


def test_the_published_progress_line() -> None:
    assert parse_progress(ORIGINAL) == Progress(
        step=953,
        share=1.0,
        loss=2.99,
        tok_per_sec=1_700_000.0,
    )


def test_our_progress_line() -> None:
    line = "step 00010 (3.5%) | loss: 5.1 | bpb: 1.8312 | tok/sec: 27,000 | remaining: 14s"
    found = parse_progress(line)
    assert found is not None
    assert found.share == pytest.approx(0.035)
    assert found.bpb == 1.8312


@pytest.mark.parametrize(
    "line",
    [
        "",
        "loss: 3",
        "stepping 3 | x",
        "step | loss: 3",
        "step 3",
        "x step 3 | loss: 3",
        "step -1 | a",
    ],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert parse_progress(line) is None


def test_a_loss_that_is_no_number_is_absent() -> None:
    for text in ("nan", "inf", "1e999", "9" * 50, "", "abc"):
        found = parse_progress(f"step 1 (1.0%) | loss: {text} | tok/sec: 5")
        assert found is not None and found.loss is None and found.tok_per_sec == 5.0


@given(st.text())
def test_no_line_breaks_the_progress_parser(line: str) -> None:
    for text in (line, f"step 1 ({line}%) | loss: {line} | {line}"):
        found = parse_progress(text)
        if found is not None:
            assert found.share is None or 0 <= found.share <= 1
            assert found.loss is None or math.isfinite(found.loss)


@given(
    step=st.integers(0, 10**9),
    share=st.floats(0, 1),
    loss=st.floats(-1e6, 1e6),
    speed=st.integers(0, 10**9),
)
def test_what_is_printed_is_read(step: int, share: float, loss: float, speed: int) -> None:
    line = f"step {step:05d} ({100 * share:.1f}%) | loss: {loss:.6f} | tok/sec: {speed:,}"
    found = parse_progress(line)
    assert found is not None and found.step == step and found.tok_per_sec == speed
    assert found.share == pytest.approx(share, abs=6e-4)
    assert found.loss == pytest.approx(loss, abs=1e-6)


@given(st.text() | st.floats().map(str) | st.integers().map(str))
def test_a_number_is_finite_or_none(text: str) -> None:
    number = parse_number(text)
    assert number is None or (math.isfinite(number) and abs(number) < 1e18)


SUMMARY = "---\nval_bpb:          0.997900\npeak_vram_mb:     45060.2\ndepth:            8\n"


def test_the_published_summary() -> None:
    found = parse_summary("step 1 | loss: 3\n" + SUMMARY)
    assert found.metrics == {"val_bpb": 0.9979, "peak_vram_mb": 45060.2, "depth": 8.0}
    assert found.blocks == 1 and found.metrics["depth"] == 8.0


@pytest.mark.parametrize(
    ("text", "value", "blocks"),
    [
        (SUMMARY + "---\nval_bpb: 1.5\n", 1.5, 2),  # the last one wins
        (SUMMARY + "---\nval_bpb: 1.", 0.9979, 1),  # but only a whole one
        (SUMMARY + "---\ndepth: 9\n", 0.9979, 1),  # with the metric in it
        (SUMMARY + "val_bpb: 1.5\n", 1.5, 2),
        ("val_bpb: 0.99\n", 0.99, 1),
        ("loss 3\r\nval_bpb: 0.99\r\ndepth: 8\r\n", 0.99, 1),
        ("step 1\rval_bpb: 0.99\r", 0.99, 1),
        ("the val_bpb: 0.99\n", None, 0),
        ("  val_bpb: 0.99\n", None, 0),
        ("my_val_bpb: 0.99\n", None, 0),
        ("val_bpb 0.99\n", None, 0),
        ("val_bpb: nan\n", None, 1),
        ("val_bpb: -inf\n", None, 1),
        ("val_bpb: 1e999\n", None, 1),
        ("val_bpb: " + "9" * 5000 + "\n", None, 1),
        ("val_bpb: " + "9" * 30 + "\n", None, 1),
        (SUMMARY + "---\nval_bpb: " + "9" * 5000 + "\n", None, 2),
        (SUMMARY + "---\nval_bpb: nan\n", None, 2),  # an earlier number is no excuse
        ("", None, 0),
    ],
)
def test_which_number_counts(text: str, value: float | None, blocks: int) -> None:
    found = parse_summary(text)
    assert (found.metrics.get("val_bpb"), found.blocks) == (value, blocks)


def test_words_stay_words_and_nonsense_is_left_out() -> None:
    found = parse_summary("val_bpb: 1.0\nattention: flex\nmfu_percent: nan\nsize: 12 parsecs\n")
    assert found.metrics == {"val_bpb": 1.0, "attention": "flex"}


def test_another_metric() -> None:
    assert parse_summary("accuracy: 0.5\n", "accuracy").metrics == {"accuracy": 0.5}
    assert parse_summary("accuracy: 0.5\n").blocks == 0


def test_a_printed_nonsense_is_shown() -> None:
    assert printed_nonsense("val_bpb: nan\n") == "nan"
    assert printed_nonsense("val_bpb: nan\n---\nval_bpb: 1.0\n") is None
    assert printed_nonsense("loss: nan\n") is None


@given(st.text())
def test_no_text_breaks_the_summary_parser(text: str) -> None:
    for log in (text, f"---\nval_bpb: {text}\n", f"{text}\nval_bpb: 1.0\n"):
        for value in parse_summary(log).metrics.values():
            assert isinstance(value, str) or math.isfinite(value)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.floats(-1e9, 1e9)))
def test_every_finite_metric_is_read_back(metrics: dict[str, float]) -> None:
    wanted = {**metrics, "val_bpb": 1.25}
    text = "---\n" + "".join(f"{name}: {value:.6f}\n" for name, value in wanted.items())
    found = parse_summary(text)
    assert found.blocks == 1
    assert found.metrics == pytest.approx(wanted, abs=1e-5)
