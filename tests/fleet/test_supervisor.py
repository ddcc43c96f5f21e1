"""Processes die, at any moment and in any way; the fleet does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.errors import FleetError, LockError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.fleet.supervisor import process_specs, supervisor
from autohypothesis.fleet.supervisor.process_specs import ProcessSpec, last_line
from autohypothesis.fleet.supervisor.supervisor import ManagedProcess, Supervisor
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process, hold
from autohypothesis.schema import Manifest, now
from autohypothesis.system import is_alive, process_start
from tests.conftest import wait_until as until
from tests.fleet.conftest import Forked

ROLE = '''"""A stand-in for a role: it says that it is there, and leaves when it is asked to."""
import sys, time
from pathlib import Path
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.stop import Stop
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.locks import Process
from autohypothesis.schema import Heartbeat, now

root, name, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
layout = Layout(root)

def say(state):
    if name.startswith("worker-"):
        own = Process.own()
        presence.write_heartbeat(layout, Heartbeat(worker_id=name[7:], state=state,
            updated_at=now(), pid=own.pid, process_start=own.start))
    else:
        status = presence.own_status(name, state=state, last_action="MODE is no good")
        presence.write_role(layout, status)

def note(word):
    with open(root / "notes", "a") as file:
        file.write(f"{name} {word}\\n")

if how == "fails":
    note("began")
    print("error: it is no good", flush=True)
    sys.exit(1)
with Stop() as stop, hold(layout, name, doing=name, timeout=20):
    note("began")
    say("idle" if name.startswith("worker-") else "working")
    if how == "deaf":
        while True:
            time.sleep(1)
    if how in ("finished", "failed"):
        stop.wait(0.3)
        say(how)
        note(how)
        sys.exit(3 if how == "failed" else 0)
    if how == "silent":
        sys.exit(0)
    while not stop.wait(60):
        pass
    if not stop.abandoned:
        say("stopped")
    note("abandoned" if stop.abandoned else "stopped")
'''


def up(tell: Callable[[str], None], root: Path, plan: dict[str, str]) -> None:
    """A supervisor with stand-ins for its roles."""
    crew = [
        ProcessSpec(name, (sys.executable, str(root / "role.py"), str(root), name, how))
        for name, how in plan.items()
    ]
    final = f"open({str(root / 'notes')!r}, 'a').write('final\\n')"
    last = ProcessSpec("sync", (sys.executable, "-c", final))
    supervisor.last_sync = lambda layout, hurried: last  # type: ignore[assignment]
    supervisor.FIRST_PAUSE_S, supervisor.LONGEST_PAUSE_S = 0.1, 0.4
    supervisor.PATIENCE_S = 30.0
    above = Supervisor(Layout(root), crew)
    with Stop() as stop:
        tell(f"{above.run(stop)} {above.message}")


USUAL = {"observer": "works", "worker-cpu0": "works"}
EVERY = {**USUAL, "worker-cpu1": "works", "tool-builder": "works"}


class Fleet:
    """A supervisor as a process of its own, with stand-ins for its roles."""

    def __init__(self, layout: Layout, forked: Callable[..., Forked]) -> None:
        self.layout, self._forked = layout, forked
        (layout.root / "role.py").write_text(ROLE)

    def up(self, plan: dict[str, str] | None = None) -> Forked:
        return self._forked(up, self.layout.root, plan or USUAL)

    def children(self) -> dict[str, dict[str, Any]]:
        status = presence.read_role(self.layout, "supervisor")
        return status.details.get("children", {}) if status else {}

    def pid(self, name: str) -> int | None:
        child = self.children().get(name, {})
        pid, start = child.get("pid"), child.get("process_start")
        return int(pid) if pid and start and is_alive(pid, start) else None

    def notes(self) -> list[str]:
        try:
            return (self.layout.root / "notes").read_text().splitlines()
        except FileNotFoundError:
            return []

    def at_work(self, plan: dict[str, str] | None = None) -> None:
        names = [name for name, how in (plan or USUAL).items() if how == "works"]
        until(lambda: all(self.pid(name) and f"{name} began" in self.notes() for name in names))


@pytest.fixture
def fleet(tmp_path: Path, forked: Callable[..., Forked]) -> Iterator[Fleet]:
    made = Fleet(Layout(tmp_path), forked)
    yield made
    for one in supervisor.live_processes(made.layout):
        os.kill(one.process.pid, signal.SIGKILL)


def test_a_killed_role_is_started_again_and_one_that_was_stopped_by_hand_is_not(
    fleet: Fleet,
) -> None:
    up = fleet.up()
    fleet.at_work()
    before = fleet.pid("worker-cpu0")
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: fleet.pid("worker-cpu0") not in (None, before))
    assert fleet.children()["worker-cpu0"]["restarts"] == 1
    assert fleet.children()["observer"]["restarts"] == 0
    until(lambda: fleet.notes().count("worker-cpu0 began") == 2)
    os.kill(fleet.pid("worker-cpu0") or 0, signal.SIGTERM)
    until(lambda: fleet.children()["worker-cpu0"]["state"] == "ended")
    up.process.terminate()
    assert up.end()[0].startswith("stopped")
    assert fleet.notes().count("worker-cpu0 began") == 2


def test_roles_are_stopped_in_order_and_the_last_sync_comes_last(fleet: Fleet) -> None:
    up = fleet.up(EVERY)
    fleet.at_work(EVERY)
    pids = [fleet.pid(name) for name in EVERY]
    assert all(pids) and not any(os.getpgid(pid or 0) == os.getpgid(up.pid) for pid in pids)
    os.kill(up.pid, signal.SIGINT)
    up.end()
    ends = [line for line in fleet.notes() if not line.endswith("began")]
    assert set(ends[:2]) == {"worker-cpu0 stopped", "worker-cpu1 stopped"}
    assert ends[2:] == ["tool-builder stopped", "observer stopped", "final"]
    status = presence.read_role(fleet.layout, "supervisor")
    assert status is not None and status.state == "stopped"
    assert not supervisor.live_processes(fleet.layout)


def test_a_second_ctrl_c_does_not_wait_for_a_deaf_role(fleet: Fleet) -> None:
    plan = {"worker-cpu0": "deaf", "worker-cpu1": "works"}
    up = fleet.up(plan)
    fleet.at_work(plan)
    until(lambda: "worker-cpu0 began" in fleet.notes())
    os.kill(up.pid, signal.SIGINT)
    until(lambda: "worker-cpu1 stopped" in fleet.notes())
    os.kill(up.pid, signal.SIGINT)
    before = time.monotonic()
    assert up.end()[0].startswith("stopped")
    assert time.monotonic() - before < 20
    assert not supervisor.live_processes(fleet.layout)
    assert "final" not in fleet.notes()


def test_a_role_that_fails_or_leaves_without_a_word_is_tried_ever_more_rarely(
    fleet: Fleet,
) -> None:
    fleet.up({"observer": "works", "worker-cpu0": "fails", "worker-cpu1": "silent"})
    until(lambda: fleet.children().get("worker-cpu0", {}).get("restarts", 0) >= 4)
    status = presence.read_role(fleet.layout, "supervisor")
    assert status is not None
    assert any("worker-cpu0 ended with 1: error: it is no good" in one for one in status.problems)
    assert fleet.pid("observer") and fleet.children()["observer"]["restarts"] == 0
    until(lambda: fleet.notes().count("worker-cpu1 began") >= 2)


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_steady_life(tmp_path: Path) -> None:
    role = ProcessSpec("observer", ("true",))
    supervisor = Supervisor(Layout(tmp_path), [role])
    child = ManagedProcess(role)
    pauses = []
    for _ in range(9):
        supervisor._pause(child, "ended with 1")
        assert child.due is not None
        pauses.append(round(child.due - time.monotonic()))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    child.process = subprocess.Popen(["false"])
    child.process.wait()
    child.began = time.monotonic() - 61
    supervisor._on_exit(child, 1)
    assert child.due is not None and child.due - time.monotonic() < 1.1


def test_a_killed_supervisor_is_followed_by_another_and_no_role_is_there_twice(
    fleet: Fleet,
) -> None:
    first = fleet.up()
    fleet.at_work()
    before = {name: fleet.pid(name) for name in USUAL}
    first.process.kill()
    second = fleet.up()
    until(lambda: all(fleet.pid(name) not in (None, before[name]) for name in USUAL))
    until(lambda: all(fleet.notes().count(f"{name} began") == 2 for name in USUAL))
    assert fleet.notes().count("worker-cpu0 abandoned") == 1
    alive = [pid for pid in before.values() if pid and process_start(pid) is not None]
    assert not alive
    second.process.terminate()
    assert second.end()[0].startswith("stopped")
    assert fleet.notes().count("worker-cpu0 began") == 2


def test_a_second_supervisor_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOCK_S", 0.1)
    layout = Layout(tmp_path)
    with (
        hold(layout, "supervisor", doing="up"), Stop() as stop,
        pytest.raises(LockError, match=f"pid {os.getpid()}"),
    ):  # fmt: skip
        Supervisor(layout, []).run(stop)


@pytest.mark.parametrize(
    ("how", "words"), [("failed", "failed MODE is no good"), ("finished", "finished ")]
)
def test_a_search_that_has_ended_stops_everything_and_says_why(
    fleet: Fleet, how: str, words: str
) -> None:
    up = fleet.up({**USUAL, "observer": how})
    assert up.end()[0].startswith(words)
    assert not supervisor.live_processes(fleet.layout)
    assert fleet.notes()[-1] == "final"


def test_a_closed_terminal_leaves_the_trainings_alone(fleet: Fleet) -> None:
    up = fleet.up()
    fleet.at_work()
    os.kill(up.pid, signal.SIGHUP)
    up.end()
    assert "worker-cpu0 abandoned" in fleet.notes()
    assert "worker-cpu0 stopped" not in fleet.notes()


def test_down_stops_what_a_killed_supervisor_left_behind(fleet: Fleet) -> None:
    """Roles that somebody started alone have no supervisor to miss."""
    command = [sys.executable, str(fleet.layout.root / "role.py"), str(fleet.layout.root)]
    alone = [subprocess.Popen([*command, name, "works"]) for name in EVERY]
    until(lambda: all(f"{name} began" in fleet.notes() for name in EVERY))
    until(lambda: len(supervisor.live_processes(fleet.layout)) == 4)
    said: list[str] = []
    assert not supervisor.end_supervisor(fleet.layout, 30, said.append)
    ended = supervisor.end_all(fleet.layout, 30, said.append)
    assert ended == ["worker-cpu0", "worker-cpu1", "tool-builder", "observer"]
    ends = [line for line in fleet.notes() if line.endswith("stopped")]
    assert ends[2:] == ["tool-builder stopped", "observer stopped"]
    assert [process.wait(timeout=30) for process in alone] == [0, 0, 0, 0]


@pytest.mark.parametrize("children", [{"observer": 3}, [1], {"observer": {"pid": 1}}])
def test_damaged_children_are_nobody_to_be_stopped(tmp_path: Path, children: object) -> None:
    layout = Layout(tmp_path)
    presence.write_role(layout, presence.own_status("supervisor", details={"children": children}))
    assert not supervisor.live_processes(layout)


def test_a_courier_that_was_started_alone_is_stopped_by_its_lock(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with hold(layout, "courier", doing="speaking to the hub"):
        assert [live.name for live in supervisor.live_processes(layout)] == ["courier"]


def test_a_reused_pid_is_nobody_to_be_stopped(tmp_path: Path) -> None:
    own, layout = Process.own(), Layout(tmp_path)
    child = {"state": "running", "pid": own.pid, "process_start": own.start, "restarts": 0,
             "said": ""}  # fmt: skip
    for start, found in ((own.start, ["observer"]), (own.start - 50, [])):
        details = {"children": {"observer": {**child, "process_start": start}}}
        presence.write_role(layout, presence.own_status("supervisor", details=details))
        assert [live.name for live in supervisor.live_processes(layout)] == found


@pytest.fixture
def no_last_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    last = ProcessSpec("sync", ("true",))
    monkeypatch.setattr(supervisor, "last_sync", lambda layout, hurried: last)


@pytest.mark.usefixtures("no_last_sync")
def test_a_program_that_is_not_there_is_tried_again_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    made = Supervisor(Layout(tmp_path), [ProcessSpec("observer", ("/nowhere/python",))])
    with Stop() as stop:
        made.tick = lambda: stop.request() if made.children[0].restarts > 2 else None
        assert made.run(stop) == "stopped"
    assert "No such file" in made.children[0].ending


@pytest.mark.usefixtures("no_last_sync")
def test_a_full_disk_does_not_end_the_supervisor(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    made = Supervisor(layout, [ProcessSpec("tool-builder", ("sleep", "600"))])
    layout.role("supervisor").mkdir(parents=True)  # nothing can be written there
    with Stop() as stop:
        made.tick = lambda: stop.request() if made.children[0].process else None
        assert made.run(stop) == "stopped"


def test_the_end_of_a_log_is_read_although_it_is_no_text(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.role_log("observer").parent.mkdir(parents=True)
    layout.role_log("observer").write_bytes(b"\xff\n" * 10_000 + b"error: the end\n")
    assert last_line(layout, "observer") == "error: the end"


def test_a_supervisor_that_starts_slowly_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(process_specs, "command_line", lambda layout: slow)
    with monkeypatch.context() as hasty:
        hasty.setattr(process_specs, "START_S", 0.3)
        pid, is_at_work = process_specs.detach(Layout(tmp_path), ["up"])
    try:
        assert not is_at_work and Path(f"/proc/{pid}").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    monkeypatch.setattr(
        process_specs, "command_line", lambda layout: (sys.executable, "-c", "raise KeyError")
    )
    with pytest.raises(FleetError, match="KeyError"):
        process_specs.detach(Layout(tmp_path), ["up"])


def test_the_tool_builder_is_told_whom_to_ask(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    manifest = Manifest(
        tag="t", created_at=now(), repository_root=str(tmp_path),
        shared_research_dir=str(layout.research), tool_command="my-model --write",
    )  # fmt: skip

    def words(**more: str) -> tuple[str, ...]:
        roles_of = {
            one.name: one for one in process_specs.fleet_processes(layout, manifest, [], **more)
        }
        return roles_of["tool-builder"].command[len(process_specs.command_line(layout)) :]

    assert words() == ("tool-builder", "--command", "my-model --write")
    assert words(tool_command="other") == ("tool-builder", "--command", "other")
    assert words(tool_command="") == ("tool-builder",)
