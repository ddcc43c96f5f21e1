"""The processes that a fleet consists of, how each is started, and whether it can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from autohypothesis.errors import AutohypothesisError, FleetError
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.presence import COURIER, read_manifest
from autohypothesis.fleet.live.quarantine import device_problem
from autohypothesis.fleet.live.stop import SUPERVISOR
from autohypothesis.installation import program_script
from autohypothesis.plain import shortened
from autohypothesis.records.files import opened
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import Process, held
from autohypothesis.schema import Manifest, rfc3339
from autohypothesis.system import process_start

LOG_LIMIT = 4 * 1024 * 1024
"""Bytes; the log of a role that grew longer is set aside once, as `.log.1`, when it starts."""
LAST_WORDS = 600
"""Characters of the last line that are told; its middle is left out, its hint is not."""
LOG_TAIL = 4096
"""Bytes of it that are read for the last line."""
SUPERVISOR_ROLE = "supervisor"
WORKER = presence.worker_lock("")
SYNC_S = 60
"""Interval of pictures and snapshots."""
WATCH_NICE = 10
START_S = 60.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of the fleet; its log is named after it.

    A niced one only makes what can be made again: it reports nothing, and is not waited for.
    """

    name: str
    command: tuple[str, ...]
    nice: int = 0

    @property
    def worker(self) -> str:
        """The id of a worker; empty for other roles."""
        return self.name.removeprefix(WORKER) if self.name.startswith(WORKER) else ""


def stop_stage(name: str) -> int:
    """Return when a role is stopped: lower stages first, those of one stage together."""
    if name.startswith(WORKER) or name == presence.LOOP:
        return 0
    return {"tool-builder": 1, "observer": 2}.get(name, 3)


def start_process(
    layout: Layout, spec: ProcessSpec, *, outlives: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own: a Ctrl-C here does not reach it.

    Args:
        outlives: it goes on when this process ends.

    Raises:
        OSError: there is no such program, or no memory for it.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop(SUPERVISOR, None)
    if not outlives:
        own = Process.own()
        environment[SUPERVISOR] = f"{own.pid}:{own.start}"
    with open_log(layout, spec.name).open("ab") as output:
        process = subprocess.Popen(
            spec.command, cwd=layout.root, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    if spec.nice:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, spec.nice)
    return process


def open_log(layout: Layout, name: str) -> Path:
    """Return the log of a role that begins, to append to; a long one is set aside first."""
    log = layout.role_log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
    return log


def last_line(layout: Layout, name: str) -> str:
    """Return the last line that a role printed; empty where there is none."""
    with suppress(AutohypothesisError, OSError), opened(layout.role_log(name)) as (fd, status):
        text = os.pread(fd, LOG_TAIL, max(0, status.st_size - LOG_TAIL)).decode("utf-8", "replace")
        return text.strip().rpartition("\n")[2].strip()
    return ""


def exit_reason(layout: Layout, name: str, code: int) -> str:
    """Return how a role ended, in words, with the last line that it printed."""
    words = f"ended with {code}" if code >= 0 else f"was ended by signal {-code}"
    with suppress(ValueError):
        words = words if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    line = last_line(layout, name)
    return f"{words}: {shortened(line, LAST_WORDS)}" if line else words


def command_line(layout: Layout) -> tuple[str, ...]:
    """Return how a command of ours is called by another process, from anywhere."""
    return (sys.executable, str(program_script()), "--repo", str(layout.root))


def find_fleet(layout: Layout) -> Manifest | None:
    """Return the manifest of a fleet with workers; None where there is none yet.

    Raises:
        FleetError: another machine works on it, or a loop does.
        RecordError: the manifest is damaged.
    """
    presence.refuse_another_machine(layout)
    presence.refuse_beside_loop(layout)
    manifest = read_manifest(layout)
    return manifest if manifest is not None and manifest.workers else None


def require_fleet(layout: Layout) -> Manifest:
    """Return the manifest of a fleet with workers.

    Raises:
        FleetError: there is none yet, or another machine works on it, or a loop does.
        RecordError: the manifest is damaged.
    """
    if (manifest := find_fleet(layout)) is None:
        raise FleetError(
            f"there is no fleet in {layout.root}",
            hint="make one: python orchestrator.py init-fleet, or up, which starts it too",
        )
    return manifest


def workers_without_device(manifest: Manifest) -> dict[str, str]:
    """Return worker -> why it cannot train here. A device that is held now may come free.

    Raises:
        FleetError: no worker can.
    """
    problems = {worker.worker_id: device_problem(worker) for worker in manifest.workers}
    missing = {
        name: problem.reason
        for name, problem in problems.items()
        if problem is not None and problem.kind == "gone"
    }
    if len(missing) == len(manifest.workers):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise FleetError(
            f"no worker has its device: {reasons}",
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
        observer: its options.
        left_out: workers that are not started.
        tool_command: in place of the manifest's.
    """
    ours = command_line(layout)
    workers = [one.worker_id for one in manifest.workers if one.worker_id not in left_out]
    command = manifest.tool_command if tool_command is None else tool_command
    builder = ("tool-builder", *(("--command", command) if command else ()))
    return [
        ProcessSpec("observer", (*ours, "observer", *observer)),
        *(ProcessSpec(presence.worker_lock(name), (*ours, "worker", name)) for name in workers),
        ProcessSpec("tool-builder", (*ours, *builder)),
        *([ProcessSpec(COURIER, (*ours, "hub", "deliver", "--watch"))] if manifest.hub else []),
        sync_process(layout),
    ]


def sync_process(layout: Layout) -> ProcessSpec:
    """Return the niced process that draws, and keeps bundles and ledger in git."""
    watch = ("sync", "--watch", str(SYNC_S), "--snapshot")
    return ProcessSpec("sync", (*command_line(layout), *watch), WATCH_NICE)


def last_sync(layout: Layout, *, hurried: bool) -> ProcessSpec:
    """Return the sync once all have left; a `hurried` one leaves out old pictures."""
    every = () if hurried else ("--all",)
    return ProcessSpec("sync", (*command_line(layout), "sync", *every, "--snapshot"))


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


def detach(layout: Layout, words: Sequence[str]) -> tuple[int, bool]:
    """Start a supervisor on no terminal, and wait until it is at work, `START_S` at most.

    Returns its pid, and whether it is at work; else it is still starting.

    Raises:
        FleetError: it ended before that; the message holds its last words.
    """
    spec = ProcessSpec(SUPERVISOR_ROLE, (*command_line(layout), *words))
    process = start_process(layout, spec, outlives=True)
    own, is_at_work = (process.pid, process_start(process.pid)), False
    until = time.monotonic() + START_S
    while process.poll() is None and not is_at_work and time.monotonic() < until:
        time.sleep(_LOOK_S)
        status = presence.read_role(layout, SUPERVISOR_ROLE)
        mine = status is not None and (status.pid, status.process_start) == own
        is_at_work = status is not None and mine and status.state == "working"
    if process.poll() is not None and not is_at_work:
        raise FleetError(
            "the supervisor did not start: "
            + (last_line(layout, SUPERVISOR_ROLE) or "it said nothing"),
            hint=f"see {layout.role_log(SUPERVISOR_ROLE)}",
        )
    process.returncode = 0  # no warning about a child left behind
    return process.pid, is_at_work
