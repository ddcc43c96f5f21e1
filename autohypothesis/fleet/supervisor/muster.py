"""Which processes a fleet consists of, and whether it can be started at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from subprocess import Popen
from typing import NamedTuple

from autohypothesis.errors import FleetError
from autohypothesis.fleet.live import presence, roles
from autohypothesis.fleet.live.hindrance import hindrance
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.roster.roster import read_manifest
from autohypothesis.fleet.sharing.contact import COURIER
from autohypothesis.fleet.supervisor.launching import Role, log_tail, spawn
from autohypothesis.fleet.supervisor.supervisor import NAME
from autohypothesis.installation import program_script
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Manifest, rfc3339
from autohypothesis.system import process_start

SYNC_S = 60
"""Between two pictures and snapshots."""
WATCH_NICE = 10
START_S = 60.0
_LOOK_S = 0.05


def program(layout: Layout) -> tuple[str, ...]:
    """How a command of ours is called by another process, from anywhere."""
    return (sys.executable, str(program_script()), "--repo", str(layout.root))


def the_fleet(layout: Layout) -> Manifest:
    """The manifest of a fleet with workers.

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


def without_device(manifest: Manifest) -> dict[str, str]:
    """Worker -> why it cannot train here. A device that somebody holds now may come free.

    Raises:
        FleetError: nobody can.
    """
    missing = {}
    for worker in manifest.workers:
        found = hindrance(worker)
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


def observer_words(
    layout: Layout,
    manifest: Manifest,
    *,
    more_runs: int | None = None,
    until: datetime | None = None,
    proposers: Sequence[str] = (),
    mix: float | None = None,
) -> list[str]:
    """The observer's options. It counts all experiments of the tag; people count those to come."""
    words = []
    if more_runs is not None:
        chronicle = Chronicle(layout, manifest.tag)
        chronicle.refresh()
        words += ["--max-experiments", str(chronicle.counted() + more_runs)]
    if until is not None:
        words += ["--until", rfc3339(until)]
    for word in proposers:
        words += ["--proposer", word]
    if mix is not None:
        words += ["--mix", str(mix)]
    return words


def crew(
    layout: Layout,
    manifest: Manifest,
    observer: Sequence[str],
    left_out: Collection[str] = (),
    *,
    tool_command: str | None = None,
) -> list[Role]:
    """The processes of a fleet, the observer first: it has work ready when workers ask.

    Args:
        tool_command: in place of the manifest's.
    """
    ours = program(layout)
    workers = [one.worker_id for one in manifest.workers if one.worker_id not in left_out]
    command = manifest.tool_command if tool_command is None else tool_command
    builder = ("tool-builder", *(("--command", command) if command else ()))
    return [
        Role("observer", (*ours, "observer", *observer), 2),
        *(
            Role(presence.worker_lock(name), (*ours, "worker", name), 0, worker=name)
            for name in workers
        ),
        Role("tool-builder", (*ours, *builder), 1),
        *([Role(COURIER, (*ours, "hub", "deliver", "--watch"), 3)] if manifest.hub else []),
        keeper(layout),
    ]


def keeper(layout: Layout) -> Role:
    """Who draws, and keeps bundles and ledger in git, beside whoever trains."""
    watch = ("sync", "--watch", str(SYNC_S), "--snapshot")
    return Role("sync", (*program(layout), *watch), 3, reports=False, nice=WATCH_NICE)


def last_words(layout: Layout, *, hurried: bool = False) -> tuple[str, ...]:
    """What folds and keeps everything once all have left; `hurried` leaves out old pictures."""
    return (*program(layout), "sync", *(() if hurried else ("--all",)), "--snapshot")


def refuse_a_second(layout: Layout) -> None:
    """For a command that would only find out once its terminal is gone.

    Raises:
        FleetError: a supervisor is at work.
    """
    if holder := presence.held(layout, NAME):
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
    """A supervisor of its own, on no terminal, once it is at work or has taken `START_S` already.

    Raises:
        FleetError: it ended before that; the message holds its last words.
    """
    process = spawn(layout, NAME, (*program(layout), *words), {})
    start = process_start(process.pid)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        status = roles.read_role(layout, NAME)
        mine = status is not None and (status.pid, status.process_start) == (process.pid, start)
        if status is not None and mine and status.state == "working":
            return _outlives(process, True)
        time.sleep(_LOOK_S)
    if process.poll() is None:
        return _outlives(process, False)
    said = " ".join(log_tail(layout, NAME)[-1:]) or "it said nothing"
    raise FleetError(f"the supervisor did not start: {said}", hint=f"see {layout.role_log(NAME)}")


def _outlives(process: Popen[bytes], is_at_work: bool) -> Detached:
    process.returncode = 0  # no warning about a child left behind
    return Detached(process.pid, is_at_work)
