"""Heartbeats: what a worker does now, for whoever looks; nobody's work depends on one.

`research/live/workers/<worker_id>.json` belongs to its worker alone. It is written at each change
of state and about once a second; a full disk costs the news, not the work. Whether a worker lives
is told by pid and start time, never by the age of the file.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.records import jsonl
from autohypothesis.records.files import load, write_json
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.processes import Process
from autohypothesis.schema import Heartbeat, Worker, WorkerState, now

BEAT_S = 1.0
LIMIT = 64 * 1024


def beat(layout: Layout, heartbeat: Heartbeat) -> bool:
    """Write it down; False if the disk does not take it, which stops nobody."""
    try:
        path, value = layout.heartbeat(heartbeat.worker_id), heartbeat.model_dump(mode="json")
        write_json(path, value, durable=False)
    except (AutohypothesisError, OSError):
        return False
    return True


def read_all(layout: Layout) -> list[Heartbeat]:
    """Every heartbeat there is, by worker; what is torn or no heartbeat is left out."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(layout.heartbeat("any").parent)):
            stem, _, suffix = name.rpartition(".")
            if suffix == "json" and ID.fullmatch(stem):
                one = read(layout, stem)
                if one is not None:
                    found.append(one)
    return found


def read(layout: Layout, worker_id: str) -> Heartbeat | None:
    """The heartbeat of one worker; None when there is none that can be read."""
    try:
        one = load(Heartbeat, layout.heartbeat(worker_id), LIMIT)
    except (FileNotFoundError, RecordError):
        return None
    return one if one.worker_id == worker_id else None


def at_work(heartbeat: Heartbeat) -> bool:
    """Whether the very process that wrote it lives and has not left."""
    if heartbeat.state == "stopped" or not heartbeat.pid or heartbeat.process_start is None:
        return False
    host = heartbeat.node_id or Process.own().host
    return Process(heartbeat.pid, heartbeat.process_start, host).lives()


class Pulse:
    """The heartbeat that a worker keeps. Used from its main thread only."""

    def __init__(self, layout: Layout, worker: Worker) -> None:
        self._layout = layout
        self._events = (0, "")  # offset, run
        self._due = 0.0
        self._busy_since: float | None = None
        self._busy = 0.0
        self.beating = self._first(worker)

    def _first(self, worker: Worker) -> Heartbeat:
        own, moment = Process.own(), now()
        return Heartbeat(
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
        """The first beat: this process is the worker from now on."""
        self._write()

    @property
    def state(self) -> WorkerState:
        return self.beating.state

    def enter(self, state: WorkerState, notes: str = "", **changes: Any) -> None:
        """Be in `state`, and say so if anything is new. What it runs stays as it is."""
        update = {"state": state, "notes": notes, **changes}
        if all(getattr(self.beating, name) == value for name, value in update.items()):
            return
        if state != self.state:
            update["since"] = now()
        self.beating = self.beating.model_copy(update=update)
        self._write()

    def runs(self, paths: dict[str, str], notes: str = "", **what: str | None) -> None:
        """It trains an experiment from now on; `what` is its ids, title, commit and diff."""
        self._events = (0, str(what["run_id"]))
        self._busy_since = time.monotonic()
        fresh = {"metrics": {}, "progress": {}, "paths": {**self._kept(), **paths}}
        self.enter("training", notes, **{"since": now(), **fresh, **what})

    def _kept(self) -> dict[str, str]:
        return {name: one for name, one in self.beating.paths.items() if name == "worktree"}

    def rests(self) -> None:
        """What it ran has ended; the device is free. Says nothing yet: the next state does."""
        self._busy = self.busy_seconds
        self._busy_since = None
        blank: dict[str, Any] = dict.fromkeys(("run_id", "hypothesis_id", "title"))
        blank |= {"commit": "", "diff_stat": "", "metrics": {}, "progress": {}}
        self.beating = self.beating.model_copy(update={**blank, "paths": self._kept()})

    @property
    def busy_seconds(self) -> float:
        """How long its device has run something for it."""
        running = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
        return round(self._busy + running, 3)

    def tick(self, next_hypothesis_id: str | None = None) -> None:
        """Called often; writes about once a second, with what the run has said since."""
        following = {"next_hypothesis_id": next_hypothesis_id}
        self.beating = self.beating.model_copy(update=following)
        if time.monotonic() < self._due:
            return
        self._look_at_run()
        self._write()

    def _look_at_run(self) -> None:
        """Progress and losses from events.jsonl, and whether it is scored already."""
        offset, run_id = self._events
        if self._busy_since is None or not run_id:
            return
        run = self._layout.run(run_id)
        with suppress(AutohypothesisError, OSError):
            news = jsonl.read_new(run.events, offset)
            self._events = (news.offset, run_id)
            if news.records:
                self._take(news.records[-1])
        if self.state == "training" and run.score_log.exists():
            self.beating = self.beating.model_copy(update={"state": "scoring", "since": now()})

    def _take(self, event: dict[str, Any]) -> None:
        found = {key: event[key] for key in ("metrics", "progress") if _is_table(event.get(key))}
        if _is_table(event.get("memory")):
            found["metrics"] = {**found.get("metrics", {}), **event["memory"]}
        self.beating = self.beating.model_copy(update=found)

    def _write(self) -> None:
        self._due = time.monotonic() + BEAT_S
        moment: datetime = now()
        update = {"updated_at": moment, "busy_seconds": self.busy_seconds}
        self.beating = self.beating.model_copy(update=update)
        beat(self._layout, self.beating)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)
