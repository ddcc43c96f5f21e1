"""A log is bounded on disk, in memory and in time; only whole, finite numbers of it count."""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis import system
from autohypothesis.engine.logs import (
    CappedLog,
    Progress,
    StreamReader,
    parse_progress,
    parse_summary,
    read_tail,
)
from autohypothesis.engine.metric_lines import _alike, find_metrics, is_likely_objective
from tests.shim.conftest import Start


def _peak_mb(pid: int) -> float:
    """The most memory a process had, so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _log_bytes(folder: Path) -> int:
    """What a log has on disk at this moment, with the parts that come and go."""
    total = 0
    for path in folder.glob("run.log*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_training_that_prints_without_end_has_a_log_with_an_end(start: Start) -> None:
    limit = 1 << 20
    run = start("talk", "64", log_limit_bytes=limit)
    peak = 0.0
    while system.is_alive(run.handle.pid, run.handle.start):
        try:
            peak = max(peak, _peak_mb(run.handle.pid))
        except FileNotFoundError:
            break
        assert _log_bytes(run.dir) < 2 * limit
        time.sleep(0.05)
    end = run.wait()
    assert end["status"] == "exited" and end["metrics"] == {"val_bpb": 1.125}
    assert end["wall_seconds"] < max(45, 10 * end["cpu_seconds"])
    assert end["log"]["bytes"] > 0.99 * (64 << 20)
    log = run.text("run.log")
    assert len(log) < limit + 100
    assert log.startswith("first line\n") and log.endswith("val_bpb: 1.125\n")
    assert f"[... {end['log']['dropped']} bytes dropped ...]" in log
    assert peak < 60


@pytest.mark.parametrize(
    ("manner", "blocks"),
    [("bytes", 1), ("returns", 1), ("twice", 2), ("unended", 1), ("endless", 1)],
)
def test_odd_output_is_read(start: Start, manner: str, blocks: int) -> None:
    end = start("odd_output", manner).wait()
    assert end["metrics"]["val_bpb"] == 1.5
    assert end["summaries_seen"] == blocks
    if manner == "returns":
        assert [point[:2] for point in end["samples"]] == [
            [0.25, 1.5], [0.5, 2.5], [0.75, 3.5], [1.0, 4.5],
        ]  # fmt: skip


def test_a_number_cut_off_by_a_kill_is_no_number(start: Start) -> None:
    script = "import os; os.write(1, b'val_bpb: 0.9'); os.kill(os.getpid(), 9)"
    run = start("quick", command=("/usr/bin/env", "python3", "-c", script))
    assert run.wait()["metrics"] == {}


@given(st.sampled_from([64, 65, 129]), st.lists(st.binary(max_size=200), max_size=20))
def test_a_capped_log_keeps_head_and_tail_whatever_the_pieces(
    limit: int, pieces: list[bytes]
) -> None:
    data = b"".join(pieces)
    with TemporaryDirectory() as name:
        log = CappedLog(f"{name}/run.log", limit)
        for piece in pieces:
            log.write(piece)
        log.close()
        log.close()
        kept = Path(name, "run.log").read_bytes()
        assert os.listdir(name) == ["run.log"]
    if len(data) <= limit:
        assert kept == data and log.dropped == 0
    else:
        head, tail = limit // 2, limit - limit // 2
        marker = b"\n[... %d bytes dropped ...]\n" % (len(data) - limit)
        assert kept == data[:head] + marker + data[-tail:]


def test_the_tail_of_a_log_whose_shim_was_killed_can_be_read(tmp_path: Path) -> None:
    path = str(tmp_path / "run.log")
    log = CappedLog(path, 4096)
    for number in range(2000):
        log.write(b"line %d\n" % number)
    lines = read_tail(path, 1000).splitlines()
    assert lines == [f"line {number}" for number in range(2000 - len(lines), 2000)]
    assert len(lines) > 50


def test_a_tail_never_begins_inside_a_line(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_bytes(b"my_val_bpb: 0.1\nval_bpb: 2.5\n")
    assert read_tail(str(tmp_path / "run.log"), 26) == "val_bpb: 2.5\n"
    assert read_tail(str(tmp_path / "absent")) == ""


def test_the_stream_reader_does_not_care_how_the_stream_is_cut() -> None:
    text = b"".join(
        b"step %05d (%.1f%%) | loss: %.2f | tok/sec: 5\n" % (n, n / 10, n / 100)
        for n in range(1001)
    )
    text += b"---\nval_bpb: 1.0\r\nnot_val_bpb: 3\nval_bpb: 2.0"
    for seed in range(10):
        chance, rest, reader = random.Random(seed), text, StreamReader("val_bpb")
        while rest:
            size = chance.randint(1, 2000)
            reader.feed(rest[:size])
            rest = rest[size:]
        reader.finish()
        assert (reader.found.count, reader.found.values) == (2, [1.0, 2.0])
        assert reader.progress is not None and reader.progress.step == 1000
        assert 100 < len(reader.samples()) <= 201
        assert reader.samples()[-1] == [1.0, 10.0, None, 5.0]


def test_heartbeats_carry_the_live_figures(start: Start) -> None:
    run = start("steady", "1.0", heartbeat_s=0.1)
    run.wait()
    beats = [event for event in run.events() if event["event_type"] == "heartbeat"]
    assert len(beats) >= 3
    shares = [
        beat["progress"]["progress_pct"] for beat in beats if beat["progress"]["progress_pct"]
    ]
    assert shares == sorted(shares) and shares[-1] > 30
    assert beats[-1]["metrics"]["tok_per_sec"] == 1000.0 and beats[-1]["memory"]["peak_rss_mb"] > 1


# ── numbers printed by code under test ──────────────────────────────────────────────────────

ORIGINAL = (
    "step 00953 (100.0%) | loss: 2.990000 | lrm: 0.00 | dt: 300ms | tok/sec: 1,700,000"
    " | mfu: 39.8% | epoch: 1 | remaining: 0s"
)


def test_the_published_progress_line_and_ours() -> None:
    assert parse_progress(ORIGINAL) == Progress(953, 1.0, 2.99, tok_per_sec=1_700_000.0)
    line = "step 00010 (3.5%) | loss: 5.1 | bpb: 1.8312 | tok/sec: 27,000 | remaining: 14s"
    assert parse_progress(line) == Progress(10, pytest.approx(0.035), 5.1, 1.8312, 27_000.0)


@pytest.mark.parametrize(
    "line",
    ["", "loss: 3", "stepping 3 | x", "step | loss: 3", "step 3", "x step 3 | y", "step -1 | a"],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert parse_progress(line) is None


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


SUMMARY = "---\nval_bpb:          0.997900\npeak_vram_mb:     45060.2\ndepth:            8\n"


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
        ("the val_bpb: 0.99\n", 0.99, 1),
        (SUMMARY + "the val_bpb: 0.5\n", 0.9979, 1),  # a line of its own outranks a mention
        ("eval/val_bpb: 0.99\n", 0.99, 1),
        ("train/val_bpb: 0.5\nfinal val_bpb: 0.99\n", 0.99, 1),
        (SUMMARY + SUMMARY, 0.9979, 2),  # as two ranks print it
        ("my_val_bpb: 0.99\n", None, 0),
        ("val_bpb: nan\n", None, 1),
        ("val_bpb: " + "9" * 30 + "\n", None, 1),
        (SUMMARY + "---\nval_bpb: " + "9" * 5000 + "\n", None, 2),
        (SUMMARY + "---\nval_bpb: nan\n", None, 2),  # an earlier number is no excuse
    ],
)
def test_which_number_counts(text: str, value: float | None, blocks: int) -> None:
    found = parse_summary(text)
    assert (found.metrics.get("val_bpb"), found.blocks) == (value, blocks)


# What stands for the name and the value in lines as loggers, bars and tables print them.
WAYS = (
    "{n}: {v}", "{n}={v}", "{n} = {v}", "{n}:{v}", "{n} -> {v}", "{n}\t{v}", "{n} {v}.",
    "{n} is {v}", "('{n}', {v})", "{n} ≈ {v}",
    '{{"{n}": {v}}}', '{{"{n}": "{v}"}}', "{{'{n}': {v}, 'epoch': 1.0}}",
    '  "{n}": {v},', "INFO:root:{n}: {v}", "2026-01-02 12:00:00,123 - root - INFO - {n}: {v}",
    "[rank0]: {n}: {v}", "Final {n}: {v}", "wandb:        {n} {v}", "Epoch 3: loss=2.5 {n}={v}",
    "step 9 | {n}: {v} | x: 3", "100%|###| 9/9 [00:01<00:00, 9.8it/s, loss=2.5, {n}={v}]",
    "{n}.......: {v}", "{n} (bits): {v}", "| {n} | {v} |",
    "│        {n}        │      {v}      │", "**{n}**: {v}", "{n}: {v} (at the end)",
    "{n}: tensor({v}, device='cuda:0')", "{{'{n}': tensor({v})}}", "{n}: np.float64({v})",
    "\x1b[32m{n}: {v}\x1b[0m", "\x1b[1m{n}\x1b[0m: \x1b[36m{v}\x1b[0m", "{n}: {v} bits a byte",
    "{n}:\u00a0{v}", "{n} ........ {v}", "{n}: [{v}]", "{n}: tensor([{v}])", "{n} := {v}",
    "{n}: {v}+/-0.02", "{n}: {v}bits",
)  # fmt: skip
FORMATS = ("{:.6f}", "{:g}", "{:e}", "{!r}", "{:+.4f}")


@given(
    st.sampled_from(WAYS),
    st.sampled_from(FORMATS),
    st.floats(1e-3, 1e3),
    st.sampled_from(["val_bpb", "VAL_BPB", "Val BPB", "val/bpb", "valBpb"]),
    st.sampled_from(["\n", "\r", "\r\n"]),
)
def test_a_metric_is_read_in_every_way_that_people_print_it(
    way: str, form: str, value: float, name: str, end: str
) -> None:
    written = form.format(value)
    text = f"loading 3 files{end}{way.format(n=name, v=written)}{end}done{end}"
    found, reader = parse_summary(text), StreamReader("val_bpb")
    reader.feed(text.encode())
    assert found.values == reader.found.values == [float(written)]
    assert found.metrics["val_bpb"] == float(written)
    listed = {_alike(metric.name): metric.values for metric in find_metrics(text)}
    assert listed["val_bpb"] == (float(written),), "the list of metrics names it as well"


@pytest.mark.parametrize(
    "line",
    [
        "my_val_bpb: 0.99", "val_bpb_ema=0.99", "best val_bpb: 0.99", "--val_bpb=0.99",
        "saved epoch=1-val_bpb=0.99.ckpt", "to runs/val_bpb=0.99/model.pt", "val_bpb 1/10",
        "val_bpb: 1.3 -> 1.2", "val_bpb: 0.9.1", "val_bpb: 9k",
        "val_bpb: [0.9, 0.8]", "val_bpb: 1'234.5", "val_bpb: 1\u202f234",
        "val_bpb: 1 234.5", "val_bpb = 12 345,67", "INFO:root:val_bpb: 1 000 000",
        "val_bpb: 1.5×10^-3", "val_bpb=1.5 x 10**-3", "val_bpb: 1.5·10⁻³",
        "computing val_bpb of 10 files",
        "| epoch | val_bpb |",
    ],
)  # fmt: skip
def test_what_only_looks_like_the_metric_is_no_number(line: str) -> None:
    assert parse_summary(f"{line}\n").values in ([], [None])
    assert "val_bpb" not in [metric.name for metric in find_metrics(line)]


@pytest.mark.parametrize("way", ["{}: 0.5", "INFO:root:{}=0.5", '{{"{}": 0.5}}'])
@pytest.mark.parametrize(
    "name",
    ["accuracy (top-1)", "R^2", "a|b", "F1+", "p(x)", "1st", "loss ↓", "Точность", "精度"],
)  # fmt: skip
def test_a_metric_that_is_no_word_is_read_under_its_own_name(way: str, name: str) -> None:
    reader, other = StreamReader(name), "accuracy (top-5): 9\nR2: 9\nF1: 9\nevalxloss: 9\n"
    reader.feed(f"{other}{way.format(name)}\n".encode())
    assert reader.found.values == [0.5]
    assert parse_summary(f"{other}{way.format(name)}\n", name).metrics[name] == 0.5


def test_a_minus_sign_of_a_typesetter_is_one() -> None:
    assert parse_summary("reward: \u22120.5\n", "reward").values == [-0.5]


def test_what_is_printed_beside_the_metric_is_read_with_it() -> None:
    text = 'lr=0.1 x=2\nINFO:root:val_bpb: 1.5\nINFO:root:peak_vram_mb: 30.0\n\n{"other": 1}\n'
    assert parse_summary(text).metrics == {"val_bpb": 1.5, "peak_vram_mb": 30.0}
    text = '{"val_bpb": 1.5, "num_steps": 20}\n{"other": 1}\n'
    assert parse_summary(text).metrics == {"val_bpb": 1.5, "num_steps": 20}


def test_the_list_of_metrics_begins_with_the_likeliest_objective() -> None:
    text = (
        "number of parameters: 10.65M\nstep 0: train loss 4.2, val loss 4.3\n"
        "step 250: train loss 2.0, val loss 2.1\n{'eval_accuracy': 0.9, 'epoch': 1.0}\n"
    )
    first, second, third, *rest = find_metrics(text)
    assert first == ("val_loss", (4.3, 2.1), "minimize")
    assert second == ("eval_accuracy", (0.9,), "maximize")
    assert third.name == "train_loss" and not any(map(is_likely_objective, rest))
    for metric in (first, second, third):
        assert parse_summary(text, metric.name).values == list(metric.values)


@pytest.mark.parametrize("piece", ["val_bpb ", "a.b", "val_bpb.", "a ", "'", "1", "val_bpb(", " "])
def test_no_line_keeps_the_parser_busy(piece: str) -> None:
    began = time.process_time()
    parse_summary(f"val_bpb{piece * 4096}\n" * 20)
    assert time.process_time() - began < 5


def test_words_stay_words_and_nonsense_is_left_out() -> None:
    found = parse_summary("val_bpb: 1.0\nattention: flex\nmfu_percent: nan\nsize: 12 parsecs\n")
    assert found.metrics == {"val_bpb": 1.0, "attention": "flex"}


def test_another_metric() -> None:
    assert parse_summary("accuracy: 0.5\n", "accuracy").metrics == {"accuracy": 0.5}
    assert parse_summary("accuracy: 0.5\n").blocks == 0


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
