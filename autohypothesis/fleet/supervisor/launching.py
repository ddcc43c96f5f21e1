"""How a process of the fleet is started, and what is known of it once it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.live.stop import SUPERVISOR
from autohypothesis.records.files import opened
from autohypothesis.records.layout import Layout
from autohypothesis.records.processes import Process

LOG_LIMIT = 4 * 1024 * 1024
"""Bytes; the log of a role that grew longer is set aside once, as `.log.1`, when it starts."""


@dataclass(frozen=True, slots=True)
class Role:
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


def start(layout: Layout, role: Role) -> subprocess.Popen[bytes]:
    """A role's process, in a session of its own: a Ctrl-C here does not reach it.

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
    """`command` in a session of its own, with its output in the log of `name`."""
    log = log_of(layout, name)
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


def log_of(layout: Layout, name: str) -> Path:
    """The log of a role that begins, ready to be appended to; a long one is set aside first."""
    log = layout.role_log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
    return log


def log_tail(layout: Layout, name: str, limit: int = 4096) -> list[str]:
    """The last lines that a role printed."""
    with suppress(AutohypothesisError, OSError), opened(layout.role_log(name)) as (fd, status):
        text = os.pread(fd, limit, max(0, status.st_size - limit)).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]
    return []


def how(layout: Layout, name: str, code: int) -> str:
    """How a role ended, with the last line that it printed."""
    lines = log_tail(layout, name)
    return how_it_ended(code) + (f": {lines[-1][:200]}" if lines else "")


def how_it_ended(code: int) -> str:
    """An exit code of `subprocess`, in words."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
