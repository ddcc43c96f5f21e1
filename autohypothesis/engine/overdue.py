"""A shim that does not end because it was stopped (SIGSTOP) or hangs; asked by those who wait.

The shim keeps the deadline of its run. This is the deadline of its waiters: a stopped shim is named
while it is stopped, and ended when it is far past all that it may take, so that nobody waits for
ever. Times are monotonic, which stand still while a machine is suspended: that makes no run late.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from autohypothesis import system
from autohypothesis.engine import shim
from autohypothesis.engine.lease import experiments_of
from autohypothesis.engine.shim_files import utc_now
from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import write_json
from autohypothesis.records.layout import ID, Layout, RunPaths

STOPPED = ("T", "t")
"""States of a process that was stopped, by a signal or by a debugger."""
KILLED_S = 5.0
"""How long a killed shim may take to be gone."""


def stopped(run: RunPaths) -> str:
    """What a person should know of a run whose shim is stopped; empty for any other run."""
    known = _living(run)
    state = system.process_state(known["pid"]) if known else ""
    if not known or state not in STOPPED:
        return ""
    pid, left = known["pid"], _left(run, known)
    then = "" if left is None else f"; else it is ended in {max(left, 0.0):.0f} s"
    return (
        f"its owner process {pid} is stopped (state {state}): `kill -CONT {pid}` resumes it{then}"
    )


def standing_still(layout: Layout) -> list[str]:
    """The runs of a repository whose shim is stopped, a line each, as far as a lock names them."""
    names = [name for name in experiments_of(str(layout.root)) if ID.fullmatch(name)]
    return [f"{name} stands still: {text}" for name in names if (text := stopped(layout.run(name)))]


def end(run: RunPaths) -> bool:
    """Kill the shim of a run that is past all its limits, and record that; whether it was.

    The kernel ends the training with it, and the collector what the training has started.
    """
    known = _living(run)
    left = _left(run, known) if known else None
    if not known or left is None or left > 0:
        return False
    pid, start = known["pid"], known["start"]
    state = system.process_state(pid)
    system.signal_process(pid, start, signal.SIGKILL)
    until = time.monotonic() + KILLED_S
    while system.is_alive(pid, start):
        if time.monotonic() >= until:
            return False  # the kernel does not let it go, out of a write to a lost disk say
        system.wait_for_end(pid, 0.1)
    if not run.exit.exists():
        _record(run, known, f"was stopped (state {state})" if state in STOPPED else "hung")
    return True


def _record(run: RunPaths, known: Mapping[str, Any], why: str) -> None:
    """exit.json in the place of the dead shim; on a full disk the run is one without a record."""
    error = (
        f"its owner process {known['pid']} {why} and did not end the run"
        f" {_limit(run, known):.0f} s after its begin, so it was killed"
    )
    document = {"experiment_id": known["experiment_id"], "status": "infra", "ended_at": utc_now()}
    with suppress(AutohypothesisError):
        write_json(run.exit, {**document, "error": error})


def _living(run: RunPaths) -> dict[str, Any] | None:
    """shim.json of a shim that lives on this machine."""
    known = shim.identity(str(run.folder))
    if not known or known["host"] != system.host_id() or known["boot"] != system.boot_id():
        return None
    return known if system.is_alive(known["pid"], known["start"]) else None


def _left(run: RunPaths, known: Mapping[str, Any]) -> float | None:
    """Seconds until it is ended by those who wait; None where its limits are not known."""
    limit = _limit(run, known)
    return None if limit is None else limit - (time.monotonic() - known["began"])


def _limit(run: RunPaths, known: Mapping[str, Any]) -> float | None:
    limits = known["overdue_after"]
    return limits[run.score_log.exists()] if limits else None
