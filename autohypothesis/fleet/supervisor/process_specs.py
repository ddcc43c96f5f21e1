"""The processes that a fleet consists of, how each is started, and whether it can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.fleet.hub_sync.incoming import COURIER
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.presence import read_manifest
from autohypothesis.fleet.live.quarantine import device_problem
from autohypothesis.fleet.live.stop import SUPERVISOR
from autohypothesis.installation import program_script
from autohypothesis.records.files import opened
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process, held
from autohypothesis.schema import Manifest, rfc3339
from autohypothesis.system import process_start

LOG_LIMIT = 4 * 1024 * 1024
LOG_TAIL = 4096
"""Bytes of it that are read for the last lines."""
"""Bytes; the log of a role that grew longer is set aside once, as `.log.1`, when it starts."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of the fleet."""

    name: str
    """Of its log and, for all but workers, of its status file."""
    command: tuple[str, ...]
    stage: int
    """In which order roles are stopped: lower ones first, those of one stage together."""
    worker: str | None = None
    reports: bool = True
    """Whether it says in a file of its own how it left."""
    nice: int = 0


def start_process(layout: Layout, role: ProcessSpec) -> subprocess.Popen[bytes]:
    """Start a role's process in a session of its own: a Ctrl-C here does not reach it.

    Raises:
        OSError: there is no such program, or no memory for it.
    """
    own = Process.own()
    process = spawn(layout, role.name, role.command, {SUPERVISOR: f"{own.pid}:{own.start}"})
    if role.nice:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, role.nice)
    return process


def spawn(
    layout: Layout, name: str, command: Sequence[str], extra: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, with its output in the log of `name`."""
    log = open_log(layout, name)
    environment = {key: word for key, word in os.environ.items() if key != SUPERVISOR}
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            cwd=layout.root,
            env={**environment, "PYTHONUNBUFFERED": "1", **extra},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def open_log(layout: Layout, name: str) -> Path:
    """Return the log of a role that begins, to append to; a long one is set aside first."""
    log = layout.role_log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
    return log


def log_tail(layout: Layout, name: str) -> list[str]:
    """Return the last lines that a role printed."""
    with suppress(AutohypothesisError, OSError), opened(layout.role_log(name)) as (fd, status):
        text = os.pread(fd, LOG_TAIL, max(0, status.st_size - LOG_TAIL)).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]
    return []


def exit_reason(layout: Layout, name: str, code: int) -> str:
    """Return how a role ended, with the last line that it printed."""
    lines = log_tail(layout, name)
    return exit_words(code) + (f": {lines[-1][:200]}" if lines else "")


def exit_words(code: int) -> str:
    """Return an exit code of `subprocess` in words."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


SUPERVISOR_ROLE = "supervisor"
SYNC_S = 60
"""Between two pictures and snapshots."""
WATCH_NICE = 10
START_S = 60.0
_LOOK_S = 0.05


def command_line(layout: Layout) -> tuple[str, ...]:
    """Return how a command of ours is called by another process, from anywhere."""
    return (sys.executable, str(program_script()), "--repo", str(layout.root))


def require_fleet(layout: Layout) -> Manifest:
    """Return the manifest of a fleet with workers.

    Raises:
        FleetError: there is none yet, or another machine works on it, or a loop does.
        RecordError: the manifest is damaged.
    """
    presence.refuse_another_machine(layout)
    presence.refuse_beside_loop(layout)
    manifest = read_manifest(layout)
    if manifest is None or not manifest.workers:
        raise FleetError(
            f"there is no fleet in {layout.root}",
            hint="make one: python orchestrator.py init-fleet",
        )
    return manifest


def workers_without_device(manifest: Manifest) -> dict[str, str]:
    """Return worker -> why it cannot train here. A device that is held now may come free.

    Raises:
        FleetError: no worker can.
    """
    missing = {}
    for worker in manifest.workers:
        found = device_problem(worker)
        if found is not None and found.kind == "gone":
            missing[worker.worker_id] = found.reason
    if len(missing) == len(manifest.workers):
        said = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise FleetError(
            f"no worker has its device: {said}",
            hint="see `python orchestrator.py doctor`, or make a fleet of what is there:"
            " python orchestrator.py init-fleet",
        )
    return missing


def observer_options(
    layout: Layout,
    manifest: Manifest,
    *,
    more_runs: int | None = None,
    until: datetime | None = None,
    proposers: Sequence[str] = (),
    mix: float | None = None,
) -> list[str]:
    """Return the observer's options: it counts all experiments of the tag, not those to come."""
    words = []
    if more_runs is not None:
        history = LiveHistory(layout, manifest.tag)
        history.refresh()
        words += ["--max-experiments", str(history.counted() + more_runs)]
    if until is not None:
        words += ["--until", rfc3339(until)]
    for word in proposers:
        words += ["--proposer", word]
    if mix is not None:
        words += ["--mix", str(mix)]
    return words


def fleet_processes(
    layout: Layout,
    manifest: Manifest,
    observer: Sequence[str],
    left_out: Collection[str] = (),
    *,
    tool_command: str | None = None,
) -> list[ProcessSpec]:
    """Return the processes of a fleet, the observer first: it has work ready for the workers.

    Args:
        tool_command: in place of the manifest's.
    """
    ours = command_line(layout)
    workers = [one.worker_id for one in manifest.workers if one.worker_id not in left_out]
    command = manifest.tool_command if tool_command is None else tool_command
    builder = ("tool-builder", *(("--command", command) if command else ()))
    return [
        ProcessSpec("observer", (*ours, "observer", *observer), 2),
        *(
            ProcessSpec(presence.worker_lock(name), (*ours, "worker", name), 0, worker=name)
            for name in workers
        ),
        ProcessSpec("tool-builder", (*ours, *builder), 1),
        *([ProcessSpec(COURIER, (*ours, "hub", "deliver", "--watch"), 3)] if manifest.hub else []),
        sync_process(layout),
    ]


def sync_process(layout: Layout) -> ProcessSpec:
    """Return the niced process that draws, and keeps bundles and ledger in git."""
    watch = ("sync", "--watch", str(SYNC_S), "--snapshot")
    return ProcessSpec("sync", (*command_line(layout), *watch), 3, reports=False, nice=WATCH_NICE)


def final_sync(layout: Layout, *, hurried: bool = False) -> tuple[str, ...]:
    """Return the last sync, once all have left; `hurried` leaves out old pictures."""
    return (*command_line(layout), "sync", *(() if hurried else ("--all",)), "--snapshot")


def refuse_second_supervisor(layout: Layout) -> None:
    """Refuse a second supervisor, for a command that would notice without its terminal.

    Raises:
        FleetError: a supervisor is at work.
    """
    if holder := held(layout, SUPERVISOR_ROLE):
        raise FleetError(
            f"a fleet is at work in {layout.root}: {holder}",
            hint="watch it: python orchestrator.py monitor, or end it: python orchestrator.py down",
        )


class Detached(NamedTuple):
    """A supervisor on no terminal."""

    pid: int
    is_at_work: bool
    """Else it lives, and is still starting."""


def detach(layout: Layout, words: Sequence[str]) -> Detached:
    """Start a supervisor on no terminal; return once it is at work or `START_S` are over.

    Raises:
        FleetError: it ended before that; the message holds its last words.
    """
    process = spawn(layout, SUPERVISOR_ROLE, (*command_line(layout), *words), {})
    start = process_start(process.pid)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        status = presence.read_role(layout, SUPERVISOR_ROLE)
        mine = status is not None and (status.pid, status.process_start) == (process.pid, start)
        if status is not None and mine and status.state == "working":
            return _outlives(process, True)
        time.sleep(_LOOK_S)
    if process.poll() is None:
        return _outlives(process, False)
    said = " ".join(log_tail(layout, SUPERVISOR_ROLE)[-1:]) or "it said nothing"
    raise FleetError(
        f"the supervisor did not start: {said}", hint=f"see {layout.role_log(SUPERVISOR_ROLE)}"
    )


def _outlives(process: Popen[bytes], is_at_work: bool) -> Detached:
    process.returncode = 0  # no warning about a child left behind
    return Detached(process.pid, is_at_work)
