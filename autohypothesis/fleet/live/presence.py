"""Which processes of a fleet live, and what each reports in `research/live/`.

Each role writes `live/<role>.json`, each worker `live/workers/<worker_id>.json` at each change of
state and about once a second. A process lives by pid, start time and host, never by the age of its
file; a damaged file counts as none, and a full disk costs the report, not the work.
"""

from __future__ import annotations

import os
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from autohypothesis import system
from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.plain import some_of
from autohypothesis.records import jsonl
from autohypothesis.records.bundles import uncollected
from autohypothesis.records.files import load, load_or_none, write_json
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.locks import Process, held
from autohypothesis.schema import Heartbeat, Manifest, RoleStatus, Worker, WorkerState, now

ROLE_LIMIT = 256 * 1024
HEARTBEAT_LIMIT = 64 * 1024
BEAT_S = 1.0
_TABLES = ("metrics", "progress", "memory")
"""Fields of an event that a heartbeat repeats."""
LOOP = "loop"
"""Name of the lock and the status of a single loop."""
LOOP_WORKER = "solo"
COURIER = "courier"
"""The role that speaks to the hub; a fleet without a hub has none."""
ROLES = (LOOP, "supervisor", "observer", "tool-builder", COURIER)
ENDED_STATES = ("stopped", "finished", "failed")
_WATCH_HINT = "watch it: python orchestrator.py monitor, or end it: python orchestrator.py down"


def own_status(role: str, **fields: Any) -> RoleStatus:
    """Return the status of this process in `role`; fields that are not given are empty."""
    me, moment = Process.own(), now()
    values = {"started_at": moment, "updated_at": moment, **fields}
    return RoleStatus(role=role, node_id=me.host, pid=me.pid, process_start=me.start, **values)


def write_role(layout: Layout, status: RoleStatus, *, durable: bool = False) -> None:
    """Write `status`, dated now.

    Args:
        durable: it is not written again within seconds, so no power cut may lose it.

    Raises:
        RecordError: the disk is full.
    """
    dated = status.model_copy(update={"updated_at": now()})
    write_json(layout.role(status.role), dated, durable=durable)


def read_role(layout: Layout, name: str) -> RoleStatus | None:
    """Return the last status of the role; None without one, or where its file is damaged."""
    return load_or_none(RoleStatus, layout.role(name), ROLE_LIMIT)


def role_lives(status: RoleStatus | Heartbeat) -> bool:
    """Return whether the process that wrote `status` still lives."""
    pid, start = status.pid, status.process_start
    if not pid or pid < 0 or start is None:
        return False
    return Process(pid, start, status.node_id or system.host_name()).lives()


def write_heartbeat(layout: Layout, heartbeat: Heartbeat) -> bool:
    """Write the heartbeat; return False where the disk does not take it."""
    try:
        write_json(layout.heartbeat(heartbeat.worker_id), heartbeat, durable=False)
    except (AutohypothesisError, OSError):
        return False
    return True


def read_heartbeats(layout: Layout) -> list[Heartbeat]:
    """Return all heartbeats that can be read, ordered by worker."""
    folder = layout.heartbeat("any").parent
    names = sorted(path.stem for path in folder.glob("*.json") if ID.fullmatch(path.stem))
    beats = (read_heartbeat(layout, name) for name in names)
    return [beat for beat in beats if beat is not None]


def read_heartbeat(layout: Layout, worker_id: str) -> Heartbeat | None:
    """Return the heartbeat of one worker; None where there is none that can be read."""
    beat = load_or_none(Heartbeat, layout.heartbeat(worker_id), HEARTBEAT_LIMIT)
    return beat if beat is not None and beat.worker_id == worker_id else None


def worker_lives(heartbeat: Heartbeat) -> bool:
    """Return whether the process that wrote the heartbeat lives and has not left."""
    return heartbeat.state != "stopped" and role_lives(heartbeat)


class HeartbeatWriter:
    """Keeps the heartbeat of one worker. Used from its main thread only."""

    def __init__(self, layout: Layout, worker: Worker) -> None:
        self._layout = layout
        self._events = (0, "")  # offset, run
        self._due = 0.0
        self._busy_since: float | None = None
        self._busy = 0.0
        own, moment = Process.own(), now()
        self.heartbeat = Heartbeat(
            worker_id=worker.worker_id,
            node_id=own.host,
            gpu_id=worker.device or worker.gpu_id,
            updated_at=moment,
            pid=own.pid,
            process_start=own.start,
            started_at=moment,
            since=moment,
            busy_seconds=0.0,
            paths={"worktree": worker.worktree_path} if worker.worktree_path else {},
        )

    def begin(self) -> None:
        """Write the first heartbeat: this process is the worker from now on."""
        self._write()

    @property
    def state(self) -> WorkerState:
        return self.heartbeat.state

    def enter(self, state: WorkerState, notes: str = "", **changes: Any) -> None:
        """Be in `state`, and write it if anything is new. What runs stays as it is."""
        update = {"state": state, "notes": notes, **changes}
        if all(getattr(self.heartbeat, name) == value for name, value in update.items()):
            return
        if state != self.state:
            update["since"] = now()
        self._update(**update)
        self._write()

    def runs(self, paths: dict[str, str], notes: str = "", **what: str | None) -> None:
        """Begin to report an experiment; `what` is its ids, title, commit and diff."""
        self._events = (0, str(what["run_id"]))
        self._busy_since = time.monotonic()
        fresh = {"metrics": {}, "progress": {}, "paths": {**self._own_paths(), **paths}}
        self.enter("training", notes, **{"since": now(), **fresh, **what})

    def rests(self) -> None:
        """Note that the run has ended and the device is free; the next state is what is written."""
        self._busy = self.busy_seconds
        self._busy_since = None
        self._update(
            run_id=None, hypothesis_id=None, title=None, commit="", diff_stat="",
            metrics={}, progress={}, paths=self._own_paths(),
        )  # fmt: skip

    def _own_paths(self) -> dict[str, str]:
        return {name: path for name, path in self.heartbeat.paths.items() if name == "worktree"}

    @property
    def busy_seconds(self) -> float:
        """Return how long the device has run something for this worker."""
        running = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
        return round(self._busy + running, 3)

    def tick(self, next_hypothesis_id: str | None = None) -> None:
        """Write about once a second, with what the run has logged since. Called often."""
        self._update(next_hypothesis_id=next_hypothesis_id)
        if time.monotonic() >= self._due:
            self._look_at_run()
            self._write()

    def _look_at_run(self) -> None:
        """Take progress and losses from events.jsonl, and see whether it is scored already."""
        offset, run_id = self._events
        if self._busy_since is None or not run_id:
            return
        run = self._layout.run(run_id)
        with suppress(AutohypothesisError, OSError):
            news = jsonl.read_new(run.events, offset)
            self._events = (news.offset, run_id)
            event = news.records[-1] if news.records else {}
            tables = {key: event[key] for key in _TABLES if isinstance(event.get(key), dict)}
            if memory := tables.pop("memory", None):
                tables["metrics"] = {**tables.get("metrics", {}), **memory}
            self._update(**tables)
        if self.state == "training" and run.score_log.exists():
            self._update(state="scoring", since=now())

    def _update(self, **fields: Any) -> None:
        self.heartbeat = self.heartbeat.model_copy(update=fields)

    def _write(self) -> None:
        self._due = time.monotonic() + BEAT_S
        self._update(updated_at=now(), busy_seconds=self.busy_seconds)
        write_heartbeat(self._layout, self.heartbeat)


def read_manifest(layout: Layout) -> Manifest | None:
    """Return the manifest; None before the first search.

    Raises:
        RecordError: it is damaged.
    """
    try:
        return load(Manifest, layout.manifest)
    except FileNotFoundError:
        return None


def worker_lock(worker: str) -> str:
    return f"worker-{worker}"


def worker_locks(layout: Layout) -> list[str]:
    """Return the names of the workers' locks; a file whose name is no id is left out."""
    names = (path.stem for path in layout.locks.glob("worker-*.lock"))
    return sorted(filter(ID.fullmatch, names))


def refuse_beside_loop(layout: Layout) -> None:
    """Refuse to work beside a single loop, which observes and works by itself.

    Raises:
        FleetError: one is at work; the message names it and how far it is.
    """
    if holder := held(layout, LOOP):
        status = read_role(layout, LOOP)
        progress_text = f", {status.last_action}" if status and role_lives(status) else ""
        raise FleetError(
            f"a loop is at work in {layout.root}: {holder}{progress_text}", hint=_WATCH_HINT
        )


def refuse_beside_fleet(layout: Layout) -> None:
    """Refuse to begin a loop beside a fleet. A tool-builder is in no loop's way.

    Raises:
        FleetError: a supervisor, an observer or a worker is at work; each is named.
    """
    if busy := _holders(layout, "supervisor", "observer", *worker_locks(layout)):
        raise FleetError(f"a fleet is at work in {layout.root}: {some_of(busy)}", hint=_WATCH_HINT)


def refuse_another_machine(layout: Layout) -> None:
    """Refuse a second machine on one `research/`: only there can it be told which processes live.

    Raises:
        FleetError: `another_machine`.
    """
    if error := another_machine(layout):
        raise error


def another_machine(layout: Layout) -> FleetError | None:
    """Return the error that names a process of another machine, or of another tool, which works
    here or never reported that it left; None where there is none."""
    strangers: dict[Path, RoleStatus | Heartbeat] = {
        layout.heartbeat(beat.worker_id): beat for beat in read_heartbeats(layout)
    }
    strangers |= {
        layout.role(name): status for name in ROLES if (status := read_role(layout, name))
    }
    for path, report in [*strangers.items()]:
        at_home = report.node_id in ("", system.host_name())
        if at_home or report.state in ENDED_STATES:
            del strangers[path]
    if not strangers:
        return None
    report = next(iter(strangers.values()))
    node = report.node_id
    name = report.role if isinstance(report, RoleStatus) else report.worker_id
    hint = f"stop it there with `down`; if {node} is gone: rm -r {layout.live}"
    if all(each.process_start is None for each in strangers.values()):
        remove = shlex.join(["rm", *map(str, strangers)])
        hint = f"another tool wrote that; wait until it has ended, then: {remove}"
    return FleetError(
        f"{name} of another machine, {node}, is at work in {layout.research} (last heard"
        f" of at {report.updated_at:%Y-%m-%d %H:%M} UTC)",
        hint=hint,
    )


def list_active(layout: Layout) -> list[str]:
    """Return the roles, workers and experiments of a fleet that live, each in a few words."""
    from autohypothesis.engine.project import is_running

    roles = (name for name in ROLES if name != LOOP)
    running = (name for name in uncollected(layout) if is_running(layout, name))
    return [
        *_holders(layout, *roles, *worker_locks(layout)),
        *(f"experiment {name}" for name in running),
    ]


def _holders(layout: Layout, *names: str) -> list[str]:
    return [f"{name} ({holder})" for name in names if (holder := held(layout, name))]


def users_of(layout: Layout, worker: str, worktree: Path) -> str:
    """Return what needs the worktree of `worker` now: a role, a run or a shell; empty for none."""
    for name in (worker_lock(worker), f"worktree-{worker}"):
        if holder := held(layout, name):
            return holder
    import psutil

    from autohypothesis.engine.collect import busy_workers

    if worker in busy_workers(layout):
        return "an experiment that is not collected yet"
    folders = [os.path.realpath(folder) for folder in (worktree, layout.export(worktree.name))]
    for pid in psutil.pids() if system.LINUX else ():
        with suppress(OSError):  # of another user, or gone
            here = os.readlink(f"/proc/{pid}/cwd") + os.sep
            if any(here.startswith(folder + os.sep) for folder in folders):
                return f"pid {pid}, whose current directory it is"
    return ""
