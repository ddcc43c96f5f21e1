"""Processes that outlived their shim.

When a shim is killed the kernel kills the training, but not what the training had started. Those
processes still carry the run folder in the environment they were born with. The folder, not the
experiment's id: two repositories on one machine give the same ids.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from autohypothesis import system
from autohypothesis.records.layout import RunPaths

RUN_VARIABLE = "AUTOHYPOTHESIS_RUN_DIR"
_SLACK_S = 1.0  # the wall clock may have been set meanwhile
_ROUNDS = 100
_PAUSE_S = 0.02


def find_strays(run_dir: str, not_before: float) -> dict[int, float]:
    """Processes of an experiment, started at `not_before` (seconds since the epoch) or later.

    Pid to start time. Only processes of this user are seen, unless it is root.
    """
    return _find(_mark_of(run_dir), not_before)


def _mark_of(run_dir: str) -> str:
    """What is in the environment of all processes of a run."""
    return f"{RUN_VARIABLE}={RunPaths(Path(run_dir)).out}"


def _find(assignment: str, not_before: float) -> dict[int, float]:
    found: dict[int, float] = {}
    for pid in system.all_pids():
        if pid == os.getpid() or not system.environment_has(pid, assignment):
            continue
        start = system.process_start(pid)
        if start is not None and system.start_to_epoch(start) >= not_before - _SLACK_S:
            found[pid] = start
    return found


def end_strays(run_dir: str, not_before: float) -> list[int]:
    """SIGKILL every stray of an experiment until none is left; the pids that were killed.

    Call it when the shim is dead: while it lives, its processes are no strays.
    """
    return end_marked(_mark_of(run_dir), not_before)


def count_marked(assignment: str) -> int:
    """How many processes were born with `NAME=value` in their environment, and live."""
    return len(_find(assignment, 0.0))


def end_marked(assignment: str, not_before: float = 0.0) -> list[int]:
    """The same for all that were born with `NAME=value` in their environment."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        strays = _find(assignment, not_before)
        if not strays:
            break
        for pid, start in strays.items():
            if system.signal_process(pid, start, signal.SIGKILL):
                killed.add(pid)
        time.sleep(_PAUSE_S)
    return sorted(killed)
