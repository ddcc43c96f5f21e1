"""A clock that lies, is never stopped, or was started after the work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.engine import failures
from autohypothesis.engine.meters import ClockWatch
from autohypothesis.engine.shim import Clock
from tests.shim.conftest import Start

BUDGET = 0.3


def _run(start: Start, manner: str, clock: Clock, budget: float = BUDGET) -> Any:
    return start(
        "clocked", manner, str(budget), clock,
        clock=clock, budget_seconds=BUDGET, clock_required=True,
    ).wait()  # fmt: skip


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_an_honest_clock_is_believed(start: Start, clock: Clock) -> None:
    end = _run(start, "honest", clock)
    assert end["clock"]["verdict"] == "ok", end["clock"]
    late = 0.05 if clock == "cpu" else 0.5  # others may have the core when the time is over
    assert BUDGET <= end["clock"]["claimed_s"] < BUDGET + late
    near = max(0.1, end["clock"]["allowed_s"])
    assert end["clock"]["kernel_s"] == pytest.approx(end["clock"]["claimed_s"], abs=near)
    assert failures.classify(end, "", 1.5) is None


@pytest.mark.parametrize(
    ("manner", "clock", "words"),
    [
        ("slow", "cpu", "the kernel counted"),
        ("slow", "wall", "the kernel counted"),
        ("child", "cpu", "the kernel counted"),
        ("early", "cpu", "drawn before the clock started"),
        ("unstopped", "cpu", "never stopped"),
        ("silent", "cpu", "never started"),
        ("another budget", "cpu", "the clock ran on a budget of 0.5 s, not 0.3 s"),
    ],
)
def test_a_clock_that_lies_is_invalid(start: Start, manner: str, clock: Clock, words: str) -> None:
    end = _run(start, manner, clock, budget=0.5 if manner == "another budget" else BUDGET)
    assert end["clock"]["verdict"] == "invalid"
    assert words in end["clock"]["reason"]
    failure = failures.classify(end, "", 1.5)
    assert failure is not None and failure.kind == "invalid" and words in failure.detail


def test_a_training_that_was_ended_is_not_also_called_a_liar(start: Start) -> None:
    end = start(
        "clocked", "honest", "60", "cpu",
        clock="cpu", budget_seconds=60, clock_required=True, deadline_seconds=1.0,
    ).wait()  # fmt: skip
    assert (end["status"], end["clock"]["verdict"]) == ("deadline", "cut")


class Bench:
    """A ClockWatch whose kernel time and file are set by hand."""

    def __init__(self, tmp_path: Path, budget: float | None = 10.0) -> None:
        self.kernel = 100.0
        self.path = tmp_path / "clock.jsonl"
        self.watch = ClockWatch(str(self.path), "cpu", budget, lambda: self.kernel)

    def write(self, **line: object) -> None:
        line.setdefault("monotonic", time.monotonic())
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.watch.poll()

    def verdict(self, cut: bool = False) -> tuple[str, str | None]:
        found = self.watch.verdict(required=True, cut=cut)
        return found["verdict"], found["reason"]


@pytest.mark.parametrize(
    ("claimed", "verdict"),
    [(10.0, "ok"), (9.75, "ok"), (10.25, "ok"), (9.6, "invalid"), (10.4, "invalid")],
)
def test_three_per_cent_is_the_limit(tmp_path: Path, claimed: float, verdict: str) -> None:
    bench = Bench(tmp_path)
    bench.write(event="start", cpu=1.0, budget_seconds=10.0)
    bench.kernel += 10.0
    bench.write(event="stop", cpu=11.0, elapsed=claimed)
    assert bench.verdict()[0] == verdict


def test_a_false_time_stamp_does_not_widen_the_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(event="start", monotonic=0.0)
    bench.kernel += 12.0
    bench.write(event="stop", monotonic=-1e9, elapsed=10.0)
    assert bench.verdict()[0] == "invalid"


def test_a_budget_overrun_is_invalid_however_honest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(event="start")
    bench.kernel += 14.0
    bench.write(event="stop", elapsed=14.0)
    assert bench.verdict() == ("invalid", "the training took 14.00 s of a budget of 10 s")


def test_a_stop_that_a_busy_machine_saw_late_is_no_overrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.write(event="start")
    stopped = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: stopped + 2.0)
    bench.kernel += 12.0
    bench.write(event="stop", elapsed=10.0, monotonic=stopped)
    assert bench.verdict() == ("ok", "")


@pytest.mark.parametrize(
    "junk",
    ["", "[]", "null", "{", '{"event": 7}', "[" * 100_000, '{"event": "stop", "elapsed": 1e999}',
     '{"event": "stop", "elapsed": ' + "9" * 5000 + "}", '{"event": "stop", "elapsed": NaN}'],
)  # fmt: skip
def test_junk_in_the_clock_file_is_no_clock(tmp_path: Path, junk: str) -> None:
    bench = Bench(tmp_path)
    bench.path.write_text(junk + "\n")
    bench.watch.poll()
    assert bench.verdict()[0] == "invalid"
    assert bench.verdict(cut=True)[0] in ("absent", "invalid")


def test_a_torn_line_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.path.open("a") as file:
        file.write('{"event": "sta')
        file.flush()
        bench.watch.poll()
        assert bench.verdict()[1] == "the clock never started"
        file.write('rt"}\n{"event": "stop", "elapsed": 0.0}\n')
    bench.watch.poll()
    assert bench.verdict()[0] == "ok"


def test_a_huge_clock_file_is_not_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.path.open("ab") as file:
        file.truncate(1 << 32)
    began = time.process_time()
    bench.watch.poll()
    assert time.process_time() - began < 2
