"""Asked to leave: at any instant, by any way, and never missed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from autohypothesis.fleet.live.stop import SUPERVISOR, Stop
from autohypothesis.records.locks import Process
from autohypothesis.system import process_start


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    with Stop() as made:
        yield made


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def named(process: subprocess.Popen[bytes]) -> str:
    start = process_start(process.pid)
    assert start is not None
    return f"{process.pid}:{start}"


def test_a_signal_does_not_wait_for_the_sleep_to_end(stop: Stop) -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = time.monotonic()
    assert stop.wait(300)
    assert time.monotonic() - before < 60
    assert stop.requested and not stop.abandoned and not stop.hard
    assert stop.reason == "SIGTERM"


@pytest.mark.parametrize(
    ("signals", "abandoned", "hard"),
    [
        ([signal.SIGINT], False, False),
        ([signal.SIGINT, signal.SIGINT], False, True),
        ([signal.SIGHUP], True, False),
    ],
    ids=["one Ctrl-C", "two", "a lost terminal leaves the training alone"],
)
def test_a_signal_before_the_sleep_is_not_missed(
    stop: Stop, signals: list[signal.Signals], abandoned: bool, hard: bool
) -> None:
    assert not stop.wait(0.01) and not stop.requested
    for number in signals:
        os.kill(os.getpid(), number)
    assert stop.wait(300)
    assert (stop.abandoned, stop.hard) == (abandoned, hard)


def test_another_thread_wakes_it(stop: Stop) -> None:
    threading.Timer(0.05, stop.request).start()
    assert stop.wait(300)


def test_a_killed_supervisor_is_noticed_in_the_middle_of_a_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = sleeper()
    monkeypatch.setenv(SUPERVISOR, named(supervisor))
    with Stop() as stop:
        assert not stop.requested
        threading.Timer(0.05, supervisor.kill).start()
        assert stop.wait(300)
        assert stop.abandoned and stop.reason == "the supervisor has ended"
    supervisor.wait()


def test_without_pidfd_a_killed_supervisor_is_noticed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    supervisor = sleeper()
    monkeypatch.setenv(SUPERVISOR, named(supervisor))
    with Stop() as stop:
        assert not stop.wait(0.01)
        supervisor.kill()
        supervisor.wait()
        assert stop.wait(300) and stop.abandoned


def test_a_pid_that_was_given_to_somebody_else_is_not_the_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Process.own()
    monkeypatch.setenv(SUPERVISOR, f"{own.pid}:{own.start - 100}")
    with Stop() as stop:
        assert stop.abandoned


@pytest.mark.parametrize("value", ["", "12", "a:b", ":", "1:"])
def test_a_strange_name_of_a_supervisor_is_none(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(SUPERVISOR, value)
    with Stop() as stop:
        assert not stop.requested


def test_under_nohup_a_lost_terminal_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, former)


def test_the_former_handlers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    Stop().close()
    assert signal.getsignal(signal.SIGTERM) == before
