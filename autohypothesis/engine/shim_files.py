"""What the shim leaves in the run folder: who it is, what happens, and how it ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autohypothesis import system
from autohypothesis.engine.launch import Launch
from autohypothesis.errors import AutohypothesisError, LaunchError, LockError
from autohypothesis.records.layout import RunPaths

_RESERVE_BYTES = 64 << 10


def utc_now() -> str:
    """ISO time with zone, to the millisecond."""
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}+00:00"


def claim_folder(
    run_dir: str, experiment_id: str, pid: int, overdue_after: Sequence[float] = ()
) -> None:
    """Write shim.json for the shim with this pid: whole or not at all, and only if there is none.

    The shim and whoever starts it both do this, so that a kill of either leaves no moment in which
    a training runs that nobody knows of. Raises LaunchError if the folder is somebody else's, and
    OSError. Nothing is flushed to the disk: after a power cut there is no shim to find.

    Args:
        overdue_after: as of `Launch.overdue_after`.
    """
    known = {
        "pid": pid,
        "start": system.process_start(pid) if pid else None,
        "host": system.host_id(),
        "hostname": system.host_name(),
        "boot": system.boot_id(),
        "experiment_id": experiment_id,
        "began": time.monotonic(),
        "overdue_after": list(overdue_after),
    }
    path = RunPaths(Path(run_dir)).shim
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(json.dumps(known).encode())
    try:
        os.link(beside, path)
    except FileExistsError as error:
        if not _is_claimed_by(str(path), pid):
            raise LaunchError(
                f"run folder {run_dir} was used before", hint="take a new experiment id"
            ) from error
    finally:
        os.unlink(beside)


def _is_claimed_by(path: str, pid: int) -> bool:
    try:
        with open(path, "rb") as file:
            known = json.load(file)
        return bool(known["pid"] == pid and known["start"] in (None, system.process_start(pid)))
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Reserve:
    """A few blocks of the disk, kept so that exit.json can be written when it is full.

    They belong to a file that has no name any more: if the shim is killed they are free at once.
    """

    def __init__(self, launch: Launch) -> None:
        """Raises OSError if the disk is full already; then nothing is kept."""
        path = launch.run.reserve
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        # Random bytes, because some file systems store zeros without blocks.
        try:
            if os.write(self.fd, os.urandom(_RESERVE_BYTES)) < _RESERVE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), launch.run_dir)
        except OSError:
            self.free()
            raise

    def free(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def append_event(launch: Launch, event_type: str, **more: Any) -> None:
    """One line in events.jsonl; none if somebody keeps the file locked.

    Raises RecordError or OSError as the disk gives it.
    """

    from autohypothesis.records.jsonl import append

    event = {
        "event_type": event_type,
        "recorded_at": utc_now(),
        "experiment_id": launch.experiment_id,
        "worker_id": launch.worker_id,
        "gpu_id": launch.gpu_id,
        "commit": launch.commit,
        "hypothesis_id": launch.hypothesis_id,
        "title": launch.title,
        **more,
    }
    with contextlib.suppress(LockError):
        append(launch.run.events, event)


def write_exit(launch: Launch, report: Mapping[str, Any]) -> None:
    """exit.json, atomically; without its curve if only that much fits.

    Raises RecordError if not even that fits: the collector then finds a dead shim.
    """

    from autohypothesis.records.files import write_json

    path = launch.run.exit
    try:
        write_json(path, report)
    except AutohypothesisError:
        write_json(path, {**report, "samples": []})
