"""`monitor`: frame after frame, whatever happens to the files meanwhile."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.records.history import LiveHistory
from autohypothesis.records.jsonl import append
from autohypothesis.schema import Decision, Proposal, now
from autohypothesis.terminal.live import Monitor, best_so_far

ORCHESTRATOR = Path(__file__).resolve().parents[2] / "orchestrator.py"


def test_off_a_terminal_each_look_is_a_plain_frame(fleet: Any, cli: Any) -> None:
    fleet.beat("cpu0", diff_stat="1 file changed, 2 insertions(+), 1 deletion(-)")
    fleet.role("observer")
    fleet.board(metric_value=1.4)
    fleet.queue.add(Proposal(title="what comes next", config_overrides={"RATE": 1}), proposer="x")

    answer = cli("monitor", "--iterations", "2", "--interval", "0.1", COLUMNS="100")

    assert answer.returncode == 0, answer.stderr
    assert "\x1b" not in answer.stdout
    frames = answer.stdout.split("\n\nnov20  reference ")
    assert len(frames) == 2
    for word in ("training", "5 min", "idle 25 %", "an idea for cpu0", "62 %", "loss 3.250",
                 "27.1k tok/s", "+2 −1", "h-nov20-0007-1", "what the observer did", "2 min ago",
                 "val_bpb 1.4000", "1 pending", "what comes next"):  # fmt: skip
        assert word in frames[0], word
    assert "the baseline" not in frames[0], "its platform has none"


def test_a_file_that_is_torn_between_two_frames_does_not_stop_the_monitor(
    fleet: Any, page: Any
) -> None:
    fleet.beat("cpu0")
    fleet.beat("cpu1")
    fleet.ran("baseline-nov20", "keep", 1.5)
    monitor = Monitor(fleet.layout)
    assert "damaged" not in page(monitor.frame())

    fleet.layout.heartbeat("cpu0").write_bytes(b'{"worker_id": "cp\xff')
    fleet.layout.leaderboard.parent.mkdir(parents=True, exist_ok=True)
    fleet.layout.leaderboard.write_bytes(b'{"best_run": {"metric_v')
    with fleet.layout.decisions.open("ab") as file:
        file.write(b'{"decision_id": "d-0')

    text = page(monitor.frame())
    assert "an idea for cpu1" in text
    assert "damaged: research/live/workers/cpu0.json" in text
    assert "damaged: research/aggregate/leaderboard.json" in text

    fleet.layout.manifest.unlink()
    assert "cpu1" in page(monitor.frame())


def test_the_monitor_leaves_no_trace(fleet: Any, page: Any) -> None:
    fleet.beat("cpu0")
    fleet.ran("baseline-nov20", "keep", 1.5)
    before = fleet.files()

    page(Monitor(fleet.layout).frame(24))

    assert fleet.files() == before


def test_nothing_runs_says_what_to_run(fleet: Any, page: Any) -> None:
    assert "nothing runs; python orchestrator.py up" in page(Monitor(fleet.layout).frame(24))


@pytest.mark.parametrize("workers", [2, 7, 40])
@pytest.mark.parametrize("height", [24, 50])
def test_a_large_fleet_fits_the_screen_and_shows_its_dead(
    fleet: Any, page: Any, workers: int, height: int
) -> None:
    names = [f"gpu{number}" for number in range(workers)]
    fleet.manifest(*names)
    for name in names:
        fleet.beat(name, title="a long title " * 20)
    fleet.beat(names[-1], process_start=1.0)
    fleet.board(metric_value=1.4, description="long " * 40)
    fleet.role("observer", problems=["a problem " * 30, "another"])
    for number in range(9):
        fleet.queue.add(
            Proposal(title=f"idea {number}", config_overrides={"A": number}), proposer="x"
        )

    text = page(Monitor(fleet.layout).frame(height))

    lines = text.splitlines()
    assert len(lines) <= height
    assert all(len(line) <= 80 for line in lines)
    assert any("✗" in line and names[-1] in line for line in lines)
    assert "needs you" in text
    if (workers, height) == (40, 24):
        assert "and 35 more: python orchestrator.py status" in text


def test_only_named_colours_are_used(fleet: Any, page: Any) -> None:
    """They follow the terminal's theme, dark or light."""
    fleet.beat("cpu0")
    fleet.beat("cpu1", process_start=1.0)
    fleet.role("observer", problems=["x"])
    fleet.board(metric_value=1.4)

    text = page(Monitor(fleet.layout).frame(), colours=True)

    codes = re.findall(r"\x1b\[([0-9;]*)m", text)
    assert codes
    assert not [code for code in codes if re.search(r"[34]8;[25]", code)]


def decision(number: int, name: str, status: str, value: object, **changes: Any) -> dict[str, Any]:
    said = {
        "decision_id": f"d-{number}", "recorded_at": now(), "tag": "nov20", "experiment_id": name,
        "decision_status": status, "metric_value": value, "platform_key": "p", **changes,
    }  # fmt: skip
    return Decision.model_validate(said).model_dump(mode="json")


def test_the_curve_of_the_best_follows_the_decisions(fleet: Any) -> None:
    history, path = LiveHistory(fleet.layout, "nov20"), fleet.layout.decisions
    assert best_so_far(history, "val_bpb") == []

    append(path, decision(1, "a", "keep", 1.5, platform_key="another"))
    append(path, decision(2, "b", "keep", 1.5))
    append(path, decision(3, "c", "discard", 1.1))
    append(path, decision(4, "d", "keep", 0.0))
    append(path, decision(5, "e", "keep", "nan"))
    append(path, decision(6, "f", "keep", 1.4))
    append(path, decision(7, "g", "keep", 1.3, tag="other"))
    with path.open("ab") as file:
        file.write(b"no record\n")
    append(path, decision(8, "h", "keep", 1.45))
    history.refresh()
    assert best_so_far(history, "val_bpb") == [1.5, 1.4, 1.4]

    append(path, decision(9, "f", "discard", 1.4))  # overruled
    history.refresh()
    assert best_so_far(history, "val_bpb") == [1.5, 1.45]

    path.unlink()
    append(path, decision(1, "a", "keep", 0.5, direction="maximize"))
    append(path, decision(2, "b", "keep", 0.7, direction="maximize"))
    history.refresh()
    assert best_so_far(history, "accuracy") == [0.5, 0.7]


def test_ctrl_c_leaves_the_terminal_as_it_was(fleet: Any) -> None:
    fleet.beat("cpu0")
    own, terminal = pty.openpty()
    words = [sys.executable, str(ORCHESTRATOR), "--repo", str(fleet.layout.root), "monitor"]
    process = subprocess.Popen(
        [*words, "--interval", "30"], stdin=terminal, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color"}, start_new_session=True,
        preexec_fn=_controlling_terminal,
    )  # fmt: skip
    os.close(terminal)
    try:
        shown = _read_until(own, b"an idea for cpu0")
        os.write(own, b"\x03")
        shown += _read_until(own, b"\x1b[?25h")  # the cursor is back
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(own)
    assert b"Traceback" not in shown
    assert b"error" not in shown


def _controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    shown, deadline = b"", time.monotonic() + 60
    while wanted not in shown and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                shown += os.read(descriptor, 65536)
            except OSError:
                break
    assert wanted in shown, shown[-2000:]
    return shown


@pytest.mark.parametrize("word", ["0", "-1", "nan", "1e300"])
def test_an_interval_that_cannot_be_waited_is_refused(cli: Any, word: str) -> None:
    answer = cli("monitor", "--interval", word, "--iterations", "2")

    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr
    assert answer.stderr.startswith("error: ")
