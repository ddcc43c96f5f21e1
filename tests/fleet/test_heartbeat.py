"""Heartbeats and roles: torn or foreign they stop nobody, on another machine they do."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from autohypothesis.errors import FleetError, RecordError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.presence import (
    HeartbeatWriter,
    read_heartbeat,
    read_heartbeats,
    refuse_another_machine,
    worker_lives,
    write_heartbeat,
)
from autohypothesis.records import jsonl
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process
from autohypothesis.schema import Heartbeat, Worker, now
from autohypothesis.system import host_name


def own(worker: str = "w0", **changes: object) -> Heartbeat:
    me = Process.own()
    said = {
        "worker_id": worker, "node_id": me.host, "pid": me.pid, "process_start": me.start,
        "state": "training", "updated_at": now(), **changes,
    }  # fmt: skip
    return Heartbeat.model_validate(said)


def write(layout: Layout, worker: str, content: bytes) -> Path:
    path = layout.heartbeat(worker)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b'{"worker_id": "w1", "sta', b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"worker_id": "w1"}'],
    ids=["empty", "torn", "bytes", "list", "null", "no time"],
)
def test_a_damaged_heartbeat_hides_no_other(layout: Layout, content: bytes) -> None:
    assert read_heartbeats(layout) == []
    assert write_heartbeat(layout, own("w0")) and write_heartbeat(layout, own("w2"))
    write(layout, "w1", content)
    assert [one.worker_id for one in read_heartbeats(layout)] == ["w0", "w2"]


def test_a_pipe_or_a_folder_in_the_place_of_a_heartbeat_hides_no_other(layout: Layout) -> None:
    write_heartbeat(layout, own("w0"))
    os.mkfifo(layout.heartbeat("w1"))
    layout.heartbeat("w2").mkdir()
    assert [one.worker_id for one in read_heartbeats(layout)] == ["w0"]


def test_a_heartbeat_that_names_somebody_else_is_nobodys(layout: Layout) -> None:
    write(layout, "w1", own("w0").model_dump_json().encode())
    assert read_heartbeat(layout, "w1") is None


def test_a_reused_pid_is_not_at_work() -> None:
    assert worker_lives(own())
    assert not worker_lives(own(process_start=Process.own().start - 100))
    assert not worker_lives(own(pid=None))
    assert not worker_lives(own(process_start=None))
    assert not worker_lives(own(state="stopped")), "it has left, though its process lives"


def test_a_time_in_the_future_makes_nobody_alive() -> None:
    dead = own(updated_at="2199-01-01T00:00:00Z", process_start=1.0)
    assert not worker_lives(dead)


def test_a_full_disk_costs_the_news_and_nothing_else(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object, *, durable: bool = True) -> None:
        raise RecordError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(presence, "write_json", full)
    assert not write_heartbeat(layout, own())
    pulse = HeartbeatWriter(layout, Worker(worker_id="w0", gpu_id="0"))
    pulse.enter("idle", "still here")
    pulse.tick()
    assert pulse.state == "idle"


def test_a_change_of_state_is_written_at_once_and_the_rest_once_a_second(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(presence, "write_heartbeat", lambda _, one: written.append(one.state))
    moment = [1_000.0]
    monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    pulse = HeartbeatWriter(layout, Worker(worker_id="w0", gpu_id="0"))
    for _ in range(100):
        pulse.enter("preparing")
        pulse.tick()
    assert written == ["preparing"]
    pulse.enter("idle")
    assert written == ["preparing", "idle"]
    moment[0] += presence.BEAT_S
    pulse.tick()
    pulse.tick()
    assert written == ["preparing", "idle", "idle"]


def test_progress_comes_from_the_runs_events_and_a_torn_line_waits(layout: Layout) -> None:
    pulse = HeartbeatWriter(layout, Worker(worker_id="w0", gpu_id="0"))
    pulse.runs({}, run_id="h-t-0001-1", hypothesis_id="h-t-0001", title="a", commit="c")
    events = layout.run("h-t-0001-1").events
    jsonl.append(events, {"progress": {"progress_pct": 12.5}, "metrics": {"train_loss": 2.0}})
    with open(events, "ab") as file:
        file.write(b'{"progress": {"progress_p')
    pulse._due = 0.0
    pulse.tick()
    seen = read_heartbeat(layout, "w0")
    assert seen is not None and seen.state == "training"
    assert seen.progress == {"progress_pct": 12.5} and seen.metrics == {"train_loss": 2.0}
    layout.run("h-t-0001-1").score_log.touch()
    pulse._due = 0.0
    pulse.tick()
    assert pulse.state == "scoring"


def test_what_a_worker_runs_is_gone_from_its_heartbeat_when_it_rests(layout: Layout) -> None:
    pulse = HeartbeatWriter(layout, Worker(worker_id="w0", gpu_id="0", worktree_path="/somewhere"))
    pulse.runs({"run": "/r"}, run_id="a-1", hypothesis_id="a", title="t", commit="c")
    assert pulse.heartbeat.paths == {"worktree": "/somewhere", "run": "/r"}
    pulse.rests()
    pulse.enter("idle")
    seen = read_heartbeat(layout, "w0")
    assert seen is not None
    assert (seen.run_id, seen.hypothesis_id, seen.title, seen.commit) == (None, None, None, "")
    assert seen.paths == {"worktree": "/somewhere"}
    before = pulse.busy_seconds
    assert pulse.busy_seconds == before, "a resting device is not busy"


def test_a_run_right_after_another_does_not_inherit_its_time(layout: Layout) -> None:
    """From training to training: the state is the same, the run is not."""
    pulse = HeartbeatWriter(layout, Worker(worker_id="w0", gpu_id="0"))
    pulse.runs({}, run_id="a-1", hypothesis_id="a")
    long_ago = now() - timedelta(hours=1)
    pulse.heartbeat = pulse.heartbeat.model_copy(update={"since": long_ago})
    pulse.runs({}, run_id="b-1", hypothesis_id="b")
    seen = read_heartbeat(layout, "w0")
    assert seen is not None and seen.since is not None and seen.since > long_ago


def beat(layout: Layout, node: str, state: str) -> None:
    assert write_heartbeat(layout, own("gpu0", node_id=node, state=state))


@pytest.mark.parametrize("role", ["observer", "supervisor", "tool-builder"])
def test_a_role_on_another_machine_is_named(layout: Layout, role: str) -> None:
    elsewhere = presence.own_status(role, state="working").model_copy(update={"node_id": "rack-7"})
    presence.write_role(layout, elsewhere)
    with pytest.raises(FleetError, match="rack-7") as refused:
        refuse_another_machine(layout)
    assert str(layout.live) in refused.value.hint
    presence.write_role(layout, elsewhere.model_copy(update={"state": "stopped"}))
    refuse_another_machine(layout)


def test_a_worker_on_another_machine_is_named_until_it_has_left(layout: Layout) -> None:
    beat(layout, "rack-7", "training")
    with pytest.raises(FleetError, match="gpu0 of another machine, rack-7"):
        refuse_another_machine(layout)
    beat(layout, "rack-7", "stopped")
    refuse_another_machine(layout)


def test_our_own_machine_and_an_old_file_without_a_name_are_no_strangers(layout: Layout) -> None:
    beat(layout, host_name(), "training")
    refuse_another_machine(layout)
    beat(layout, "", "training")
    refuse_another_machine(layout)
