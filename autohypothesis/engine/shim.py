"""The shim, seen from outside: what it is told, and how to start, find, await and cancel one.

The shim is the process that holds the lease of one training and its scoring, and owns both from
exec to exit; it survives its starter. `Launch` is what it reads. What is known about it lies in the
run folder: shim.json from before the training starts (who it is), exit.json at the end (what
happened). Whether it lives is told by pid and start time, never by age.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autohypothesis import system
from autohypothesis.engine.devices import Device, Lease, experiments_of
from autohypothesis.errors import LaunchError
from autohypothesis.records.layout import ID, Layout, RunPaths

Clock = Literal["wall", "cpu"]
Status = Literal["running", "finished", "dead", "absent"]

FOREIGN_DEADLINE_S = 600.0
SCORING_TIMED_OUT = "scoring took longer than"
"""Beginning of the error that the shim writes for a scoring that it ended."""
PROCESS = "autohypothesis.engine.shim_run"
GO = b"go "
"""Starts a shim that waits on its standard input; the seal of the run and a line end follow."""
_SLACK_S = 30.0
_DEVICE_S = 20.0  # until NVML answers
_DEADLINE_FACTOR: Mapping[str, float] = {"wall": 2.0, "cpu": 4.0}
# The shim's own environment can be read by the training, so it holds no more than it needs.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_POLL_S = 0.05
_DISMISSED_S = 10.0


def deadline(
    start_allowance: float, budget: float | None, clock: Clock, evaluation_allowance: float
) -> float:
    """Return the seconds of wall clock after which a training is ended.

    A CPU budget may take four times its length on a busy machine. Without a budget, which means a
    foreign script without a task file, it is 600 s whatever the allowances.
    """
    if budget is None:
        return FOREIGN_DEADLINE_S
    return start_allowance + _DEADLINE_FACTOR[clock] * budget + evaluation_allowance


class ScoreCommand(NamedTuple):
    """Runs after a training that exited 0, under the same lease; the last JSON line it prints is
    the score.

    Attributes:
        scored: whether the candidate's code is `inside` of its process or `outside`.
        metric: key of the score that is added to the log, as trainings print it; empty: none is.
    """

    command: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    timeout_s: float
    scored: str = "inside"
    metric: str = ""


class Launch(NamedTuple):
    """One experiment, as the shim runs it. Times in seconds, paths absolute.

    Attributes:
        env: the whole environment of the training.
        clock_required: no line in clock.jsonl is evidence of `invalid`.
        metric: the name whose lines are counted and read from the log.
        labels: fields of every event, beside the experiment's id.
        watched: records outside of the run folder that nothing may change meanwhile.
        seal: the SHA-256 of the word that this shim alone is told, and writes into exit.json.
    """

    experiment_id: str
    run_dir: str
    cwd: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    deadline_seconds: float
    budget_seconds: float | None = None
    clock: Clock = "wall"
    clock_required: bool = False
    stop_grace_s: float = 5.0
    lease: Lease | None = None
    device: Device = Device()
    score: ScoreCommand | None = None
    contention_kernel: bool = False
    metric: str = "val_bpb"
    log_limit_bytes: int = 16 << 20
    heartbeat_s: float = 5.0
    memory_back_s: float = 15.0
    max_processes: int = 512
    labels: Mapping[str, str | None] = {}
    repository: str | None = None
    watched: tuple[str, ...] = ()
    seal: str = ""

    @property
    def run(self) -> RunPaths:
        return RunPaths(Path(self.run_dir))

    @property
    def overdue_after(self) -> tuple[float, float]:
        """Seconds after its begin when those who wait end the shim: first while it trains, then
        while it scores. It keeps its own limits by then, unless it is stopped or hangs."""
        device = self.memory_back_s + _DEVICE_S if self.device.kind == "cuda" else 0.0
        training = self.deadline_seconds + self.stop_grace_s + device + _SLACK_S
        scoring = self.score.timeout_s + self.stop_grace_s if self.score else 0.0
        return training, training + scoring

    def to_json(self) -> bytes:
        """Return the content of launch.json."""
        parts = {name: part._asdict() for name in _PARTS if (part := getattr(self, name))}
        return json.dumps({**self._asdict(), **parts}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Launch:
        """Read launch.json. Raises LaunchError for anything but a whole one."""
        try:
            values = json.loads(data, object_hook=_with_tuples)
            parts = {name: part(**values[name]) for name, part in _PARTS.items() if values[name]}
            return cls(**{**values, **parts})
        except (ValueError, TypeError, KeyError) as error:
            raise LaunchError(f"launch.json is not whole: {error}") from error


_PARTS: Mapping[str, Any] = {"lease": Lease, "device": Device, "score": ScoreCommand}


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


class ShimRecord(NamedTuple):
    """shim.json: pid and start time, on one boot of one host, are the identity of a shim."""

    pid: int
    start: float
    host: str
    hostname: str
    boot: str
    experiment_id: str
    began: float = 0.0
    overdue_after: tuple[float, ...] = ()

    @property
    def lives(self) -> bool:
        here = self.host == system.host_id() and self.boot == system.boot_id()
        return here and system.is_alive(self.pid, self.start)


def utc_now() -> str:
    """Return the time in ISO form with its zone, to the millisecond."""
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}+00:00"


def prestart(run: RunPaths, experiment_id: str) -> Any:
    """Return a shim process that has not begun: it imports its modules, and waits for `start`.

    For a caller that has other things to do before the launch is known. It touches no file, and
    goes when its standard input ends, so with its starter at the latest.
    """
    import subprocess

    system.require_supported()
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = dict.fromkeys((root, *filter(os.path.isabs, (*named, *sys.path))))
    env["PYTHONPATH"] = os.pathsep.join(folders)
    # SIGTERM stays blocked in the child until it is ready for a cancel.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            # -S: what `site` does at start-up costs a tenth of the shim's own, and we name the
            # folders.
            [sys.executable, "-S", "-m", PROCESS, str(run.launch), experiment_id],
            cwd="/",  # python -m would otherwise import from the run folder
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def dismiss(process: Any) -> None:
    """End a shim of `prestart` that is not needed; one that was started is left alone."""
    import subprocess

    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
        try:
            process.wait(_DISMISSED_S)
        except subprocess.TimeoutExpired:  # it was stopped
            process.kill()
            process.wait()


def start(launch: Launch, process: Any = None) -> None:
    """Start a shim in a session of its own, and return without waiting for the training.

    A run folder is used once. `process` is of `prestart` for the same run. Raises LaunchError if
    the folder was used before or the shim does not start, RecordError or OSError if the folder
    cannot be written.
    """
    from autohypothesis.records.files import write_atomic

    run = launch.run
    if run.shim.exists():
        raise used_before(run)
    seal = os.urandom(16).hex()
    launch = launch._replace(seal=sealed(seal))
    write_atomic(run.launch, launch.to_json(), durable=False)  # for this shim alone
    process = process or prestart(run, launch.experiment_id)
    try:
        process.stdin.write(GO + seal.encode() + b"\n")
        process.stdin.close()
    except OSError as error:
        raise LaunchError(
            f"the shim of {launch.experiment_id} does not start",
            hint=f"see why: {sys.executable} -m {PROCESS}",
        ) from error
    process.returncode = 0  # no warning about a child that outlives its Popen; `wait` reaps it
    if not claim(run, launch, process.pid):
        raise used_before(run)


def used_before(run: RunPaths) -> LaunchError:
    return LaunchError(f"run folder {run.folder} was used before", hint="take a new experiment id")


def sealed(word: str) -> str:
    """Return the SHA-256 of a seal, which tells the record of a shim from one that a run wrote."""
    import hashlib

    return hashlib.sha256(word.encode("utf-8", "surrogateescape")).hexdigest()


def claim(run: RunPaths, launch: Launch | None = None, pid: int = 0) -> bool:
    """Write shim.json for the shim with this pid; return whether the folder is that shim's.

    The shim and its starter both do this, so that a kill of either leaves no moment in which an
    unknown training runs. Without a launch it makes sure that no shim will ever begin here: one
    that was forked but has not claimed the folder yet then starts nothing. The file is whole or not
    there, and not flushed to the disk: after a power cut there is no shim to find.

    Raises:
        OSError: the folder cannot be written.
    """
    start = system.process_start(pid) or 0.0 if pid else 0.0
    record = ShimRecord(
        pid,
        start,
        system.host_id(),
        system.host_name(),
        system.boot_id(),
        launch.experiment_id if launch else "",
        time.monotonic(),
        launch.overdue_after if launch else (),
    )
    beside = Path(f"{run.shim}.{os.getpid()}")
    beside.write_bytes(json.dumps(record._asdict()).encode())
    try:
        os.link(beside, run.shim)
    except FileExistsError:
        there = read_record(run)
        return (there.pid, there.start) in ((pid, 0.0), (pid, start)) if there else False
    finally:
        beside.unlink()
    return True


def read_record(run: RunPaths) -> ShimRecord | Literal[False] | None:
    """Return shim.json; None if there is none, False if it cannot be read."""
    try:
        with open(run.shim, "rb") as file:
            known = json.loads(file.read(65536))
        return ShimRecord(
            int(known["pid"]),
            float(known["start"] or 0.0),
            str(known["host"]),
            str(known["hostname"]),
            str(known["boot"]),
            str(known["experiment_id"]),
            float(known.get("began") or 0.0),
            tuple(float(seconds) for seconds in known.get("overdue_after") or ())[:2],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def status(run: RunPaths) -> Status:
    """Return what became of the shim of a run folder.

    "finished": exit.json is there. "dead": the shim has gone without writing it. "absent": no shim
    has begun here. Raises LaunchError if it runs on another machine, whose processes are unknown.
    """
    if run.exit.exists():
        return "finished"
    known = read_record(run)
    if known is None:
        return "absent"
    if known and known.host != system.host_id():
        import shlex

        raise LaunchError(
            f"{run.folder} belongs to a shim on another machine ({known.hostname})",
            hint="one fleet is one machine; is that one gone for good (a container made anew), then"
            f" record the run as lost: `rm {shlex.quote(str(run.shim))}`, and"
            " `python orchestrator.py sync`",
        )
    if known and known.lives:
        return "running"
    # It may have finished between the two looks.
    return "finished" if run.exit.exists() else "dead"


def wait(run: RunPaths, timeout: float) -> Status:
    """Wait until the shim has gone, `timeout` seconds at most; return its status then."""
    known = read_record(run)
    until = time.monotonic() + timeout
    while known and system.is_alive(known.pid, known.start):
        if (left := until - time.monotonic()) <= 0:
            break
        system.wait_for_end(known.pid, min(_POLL_S, max(left, 0.001)))
    if known and known.pid:
        with contextlib.suppress(ChildProcessError):  # it may be a child of another process
            os.waitpid(known.pid, os.WNOHANG)
    return status(run)


def cancel(run: RunPaths) -> bool:
    """Ask the shim to end its training, without waiting; False if it has gone already.

    One that was stopped is resumed, else it would not hear it.
    """
    known = read_record(run)
    if not known:
        return False
    asked = system.signal_process(known.pid, known.start, signal.SIGTERM)
    system.signal_process(known.pid, known.start, signal.SIGCONT)
    return asked


def living_shim(run: RunPaths) -> tuple[ShimRecord, float] | None:
    """Return the shim if it lives on this machine, and after how many seconds it is ended."""
    known = read_record(run)
    if not known or not known.lives:
        return None
    limits = known.overdue_after
    return known, limits[run.score_log.exists()] if limits else math.inf


def stopped_shim(run: RunPaths) -> str:
    """Return what a person should know of a run whose shim is stopped; empty for any other run."""
    found = living_shim(run)
    if found is None or not system.is_stopped(found[0].pid):
        return ""
    owner, limit = found
    left = max(limit - (time.monotonic() - owner.began), 0.0)
    then = f"; else it is ended in {left:.0f} s" if limit < math.inf else ""
    return (
        f"its owner process {owner.pid} is stopped (state T):"
        f" `kill -CONT {owner.pid}` resumes it{then}"
    )


def stalled_runs(layout: Layout) -> list[str]:
    """Return a line for each run of a repository whose shim is stopped and holds a lock."""
    names = [name for name in experiments_of(str(layout.root)) if ID.fullmatch(name)]
    return [
        f"{name} stands still: {text}" for name in names if (text := stopped_shim(layout.run(name)))
    ]
