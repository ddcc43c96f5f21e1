"""The shim, seen from outside: start one, ask after it, wait for it, cancel it.

`python -m autohypothesis.engine.shim LAUNCH_JSON EXPERIMENT_ID [wait]` is the process itself. It
holds the lease, starts the training and its scoring, and owns both from exec to exit; it survives
whoever started it. What is known about it lies in the run folder: shim.json from before the
training starts (who it is), exit.json at the end (what happened). Whether it lives is told by pid
and start time, never by age.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autohypothesis import system
from autohypothesis.engine.launch import Launch
from autohypothesis.errors import LaunchError
from autohypothesis.records.layout import RunPaths

Status = Literal["running", "finished", "dead", "absent"]

# The shim's own environment can be read by the training, so it holds no more than it needs.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_POLL_S = 0.05
_DISMISSED_S = 10.0
WAIT = "wait"
"""The last word of the command line of a shim that begins when it reads `GO`."""
GO = b"go "
"""Before the seal of the run and a line end."""


class ShimHandle(NamedTuple):
    """A shim process: pid and start time together are its identity."""

    pid: int
    start: float
    run_dir: str
    experiment_id: str


def warm(run: RunPaths, experiment_id: str) -> Any:
    """A shim process that has not begun: it imports what it needs, and waits for `start`.

    For who has other things to do before the launch is known. It touches no file, and goes when
    its standard input ends, so with its starter at the latest.
    """
    import subprocess

    system.require_supported()
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = dict.fromkeys((root, *filter(os.path.isabs, (*named, *sys.path))))
    env["PYTHONPATH"] = os.pathsep.join(folders)
    # -S: what `site` does at start-up costs a tenth of the shim's own, and we name the folders.
    command = [sys.executable, "-S", "-m", __name__, str(run.launch), experiment_id, WAIT]
    with _cancel_held_back():
        return subprocess.Popen(
            command,
            cwd="/",  # python -m would otherwise import from the run folder
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def dismiss(process: Any) -> None:
    """End a warm shim that is not needed; one that was started is left alone."""
    import subprocess

    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
        try:
            process.wait(_DISMISSED_S)
        except subprocess.TimeoutExpired:  # somebody stopped it
            process.kill()
            process.wait()


def start(launch: Launch, process: Any = None) -> ShimHandle:
    """Start a shim in a session of its own, and return without waiting for the training.

    A run folder is used once. `process` is a warm shim of the same run. Raises LaunchError if the
    folder was used before or the shim does not start, RecordError or OSError if the folder cannot
    be written.
    """
    from autohypothesis.engine.shim_files import claim_folder
    from autohypothesis.records.files import write_atomic

    if launch.run.shim.exists():
        raise LaunchError(f"run folder {launch.run_dir} was used before", hint="take a new id")
    seal = os.urandom(16).hex()
    launch = launch._replace(seal=sealed(seal))
    write_atomic(launch.run.launch, launch.to_json(), durable=False)  # for this shim alone
    process = process or warm(launch.run, launch.experiment_id)
    began = system.process_start(process.pid)
    try:
        process.stdin.write(GO + seal.encode() + b"\n")
        process.stdin.close()
    except OSError as error:
        raise LaunchError(
            f"the shim of {launch.experiment_id} does not start",
            hint=f"see why: {sys.executable} -m {__name__}",
        ) from error
    _detach(process)
    claim_folder(launch.run_dir, launch.experiment_id, process.pid, launch.overdue_after)
    return ShimHandle(process.pid, began or 0.0, launch.run_dir, launch.experiment_id)


def sealed(word: str) -> str:
    """The SHA-256 of a seal, by which the record of a shim is told from one that a run wrote."""
    import hashlib

    return hashlib.sha256(word.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _cancel_held_back() -> Iterator[None]:
    """A child started in here has SIGTERM blocked until it is ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _detach(process: Any) -> None:
    """Without a warning about a child that outlives its Popen object; `wait` reaps it."""
    process.returncode = 0


def attach(run_dir: str) -> ShimHandle | None:
    """The shim of a run folder, as it described itself; None if it never came so far."""
    known = identity(run_dir)
    if not known:
        return None
    return ShimHandle(known["pid"], known["start"], run_dir, known["experiment_id"])


def status(run_dir: str) -> Status:
    """What became of the shim of a run folder.

    "finished": exit.json is there. "dead": the shim has gone without writing it. "absent": no shim
    has begun here. Raises LaunchError if it runs on another machine, where nobody can look.
    """
    if RunPaths(Path(run_dir)).exit.exists():
        return "finished"
    known = identity(run_dir)
    if known is None:
        return "absent"
    if known and known["host"] != system.host_id():
        file = shlex.quote(str(RunPaths(Path(run_dir)).shim))
        raise LaunchError(
            f"{run_dir} belongs to a shim on another machine ({known['hostname']})",
            hint="one fleet is one machine; is that one gone for good (a container made anew), then"
            f" record the run as lost: `rm {file}`, and `python orchestrator.py sync`",
        )
    same_boot = known.get("boot") == system.boot_id()
    if known and same_boot and system.is_alive(known["pid"], known["start"]):
        return "running"
    # It may have finished between the two looks.
    return "finished" if RunPaths(Path(run_dir)).exit.exists() else "dead"


def forbid(run_dir: str) -> bool:
    """Make sure that no shim will ever begin in a run folder; False if one has begun.

    For whoever finds "absent" and wants to judge: a shim that was forked but has not said so yet
    then finds the folder taken, and starts nothing.
    """
    from autohypothesis.engine.shim_files import claim_folder

    try:
        claim_folder(run_dir, "", 0)
    except LaunchError:
        return False
    return True


def wait(handle: ShimHandle, timeout: float | None = None) -> Status:
    """Wait until the shim has gone, `timeout` seconds at most; its status then."""
    until = None if timeout is None else time.monotonic() + timeout
    while system.is_alive(handle.pid, handle.start):
        if until is not None and time.monotonic() >= until:
            break
        left = _POLL_S if until is None else min(_POLL_S, max(until - time.monotonic(), 0.001))
        system.wait_for_end(handle.pid, left)
    _reap(handle.pid)
    return status(handle.run_dir)


def cancel(handle: ShimHandle) -> bool:
    """Ask the shim to end its training; False if it has gone already. Does not wait.

    One that was stopped is resumed, else it would not hear it.
    """
    asked = system.signal_process(handle.pid, handle.start, signal.SIGTERM)
    system.signal_process(handle.pid, handle.start, signal.SIGCONT)
    return asked


def _reap(pid: int) -> None:
    """Take the exit status if the shim is a child of this process, which leaves no zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def identity(run_dir: str) -> dict[str, Any] | None:
    """shim.json; None if there is none, empty if it cannot be read."""
    try:
        with open(RunPaths(Path(run_dir)).shim, "rb") as file:
            known = json.loads(file.read(65536))
        return {
            "pid": int(known["pid"]),
            "start": float(known["start"] or 0.0),
            "host": str(known["host"]),
            "hostname": str(known["hostname"]),
            "boot": str(known["boot"]),
            "experiment_id": str(known["experiment_id"]),
            "began": float(known.get("began") or 0.0),
            "overdue_after": [float(seconds) for seconds in known.get("overdue_after") or ()][:2],
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


if __name__ == "__main__":
    from autohypothesis.engine.shim_run import main

    sys.exit(main(sys.argv))
