"""A log is bounded on disk, in memory and in time, whatever the training prints."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis import system
from autohypothesis.engine.logs import CappedLog, StreamReader, read_tail


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


def test_a_training_that_prints_a_gigabyte(start: Callable[..., Any]) -> None:
    limit = 1 << 20
    run = start("talk", "1024", log_limit_bytes=limit, deadline_seconds=240)
    peak = 0.0
    while system.is_alive(run.handle.pid, run.handle.start):
        try:
            peak = max(peak, _peak_mb(run.handle.pid))
        except FileNotFoundError:
            break
        assert _log_bytes(run.dir) < 2 * limit
        time.sleep(0.05)
    end = run.wait(240)
    assert end["status"] == "exited" and end["metrics"] == {"val_bpb": 1.125}
    assert end["wall_seconds"] < max(45, 10 * end["cpu_seconds"])
    assert end["log"]["bytes"] > 0.99 * (1 << 30)
    log = run.text("run.log")
    assert len(log) < limit + 100
    assert log.startswith("first line\n") and log.endswith("val_bpb: 1.125\n")
    assert f"[... {end['log']['dropped']} bytes dropped ...]" in log
    assert peak < 60


@pytest.mark.parametrize(
    ("manner", "blocks"),
    [("bytes", 1), ("returns", 1), ("twice", 2), ("unended", 1), ("endless", 1)],
)
def test_odd_output_is_read(start: Callable[..., Any], manner: str, blocks: int) -> None:
    end = start("odd_output", manner).wait()
    assert end["metrics"]["val_bpb"] == 1.5
    assert end["summaries_seen"] == blocks
    if manner == "returns":
        assert [point[:2] for point in end["samples"]] == [
            [0.25, 1.5], [0.5, 2.5], [0.75, 3.5], [1.0, 4.5],
        ]  # fmt: skip


def test_a_number_cut_off_by_a_kill_is_no_number(start: Callable[..., Any]) -> None:
    script = "import os; os.write(1, b'val_bpb: 0.9'); os.kill(os.getpid(), 9)"
    run = start("quick", command=("/usr/bin/env", "python3", "-c", script))
    assert run.wait()["metrics"] == {}


@pytest.mark.parametrize("seed", range(20))
def test_a_capped_log_keeps_head_and_tail_whatever_the_pieces(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.choice([4096, 5000, 10_001])
    log = CappedLog(str(tmp_path / "run.log"), limit)
    data = b""
    for _ in range(chance.randrange(60)):
        piece = bytes(
            chance.choices(range(256), k=chance.randrange(3 * limit // chance.randint(1, 30)))
        )
        data += piece
        log.write(piece)
    log.close()
    log.close()
    kept = (tmp_path / "run.log").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["run.log"]
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
        assert reader.summaries == 2
        assert reader.progress is not None and reader.progress.step == 1000
        assert 100 < len(reader.samples()) <= 201
        assert reader.samples()[-1] == [1.0, 10.0, None, 5.0]


def test_heartbeats_carry_the_live_figures(start: Callable[..., Any]) -> None:
    run = start("steady", "2.0", heartbeat_s=0.1)
    run.wait()
    beats = [event for event in run.events() if event["event_type"] == "heartbeat"]
    assert len(beats) >= 3
    shares = [
        beat["progress"]["progress_pct"] for beat in beats if beat["progress"]["progress_pct"]
    ]
    assert shares == sorted(shares) and shares[-1] > 30
    assert beats[-1]["metrics"]["tok_per_sec"] == 1000.0 and beats[-1]["memory"]["peak_rss_mb"] > 1
