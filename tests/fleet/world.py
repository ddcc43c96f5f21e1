"""A whole fleet in one process: real files, git, queue, leases and decisions; simulated processes.

Only what cannot be played a thousand times is a stand-in: the shim with its training (`Shim`),
which leaves what a real one leaves and takes the real lease, and processes as such, which are rows
of a table (`World.processes`), so that one dies when a test says so. Roles run their own code: a
worker's `run` in a thread that goes on for one turn when it is told to, an observer's `turn`.

A fault strikes at the n-th step of one kind that an actor takes. A full disk raises, once. A kill
raises too, and from then on every step of that actor does, so that no `finally` of it tidies up.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import pytest

from autohypothesis import schema, system
from autohypothesis.engine import collect as collecting
from autohypothesis.engine import decide, devices, shim, shim_run, workspace
from autohypothesis.engine.shim import Launch
from autohypothesis.errors import AutohypothesisError, GitError, LaunchError
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.fleet.observer import deciding, observer, publishing
from autohypothesis.fleet.observer.scheduling import SearchLimits
from autohypothesis.fleet.queue import states as queue
from autohypothesis.fleet.worker import preparation, worker
from autohypothesis.records import bundles, git, locks
from autohypothesis.records.files import read_json, write_json
from tests.conftest import run_git
from tests.fleet.conftest import Killed

FIRST_PID = 10_000_000
"""Above any real one."""
WORKERS = ("w0", "w1")
STEP_LIMIT_S = 60.0
OPS = (
    "any", "open", "write", "replace", "link", "unlink", "mkdir", "rename", "git", "claim", "go",
    "append", "move", "stamp",
)  # fmt: skip
"""Kinds of steps. `append` and `stamp` are those of a decision, `move` is that of any ref."""
RARE = ("rename", "claim", "go", "append", "move", "stamp")
"""Those of which a turn takes one or two."""
SCRIPT = '''"""Never run: a simulated training is worth what RATE says."""

RATE = 1.0
WIDTH = 8

# what a simplification removes
SPARE = 0

print(f"val_bpb: {1.5 - RATE / 10:.6f}")
'''
VALUE = "val_bpb: {:.6f}\npeak_vram_mb: 1\n"
TRACEBACK = (
    'Traceback (most recent call last):\n  File "train.py", line 7, in <module>\nValueError: no\n'
)
Outcome = Literal["well", "crashes", "contended", "slow", "device", "no_exit"]


class Fault(NamedTuple):
    """What happens at the `nth` step of a kind."""

    how: Literal["kill", "full"]
    op: str
    nth: int
    after: bool = False
    """Once the step was taken."""


class At(threading.Thread):
    """A thread that is over when it has started."""

    def __init__(self, target: Callable[..., None], args: tuple[object, ...] = (), **_: Any):
        super().__init__()
        self._do = lambda: target(*args)

    def start(self) -> None:
        self._do()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        return None


@dataclass
class Shim:
    """A shim that was forked: it waits for `GO`, as the real one's warm process does."""

    world: World
    pid: int
    launch_path: Path
    experiment_id: str
    slow: bool
    told: bool = False
    launch: Launch | None = None
    lease: Any = None
    asked_to_end: bool = False
    closed: bool = False
    returncode: int | None = None
    seal: str = ""

    @property
    def stdin(self) -> Shim:
        return self

    @property
    def lives(self) -> bool:
        return self.pid in self.world.processes

    @property
    def trains(self) -> bool:
        return self.lease is not None and self.lives

    @property
    def waits(self) -> bool:
        """Whether it was told to go, and has not begun."""
        return self.told and self.launch is None and self.lives

    def write(self, word: bytes) -> None:
        """The word of its starter. A slow one needs a while to begin."""
        assert word.startswith(shim.GO)
        self.seal = word.removeprefix(shim.GO).decode().strip()
        self.world.strike("go")
        self.told = True
        if not self.slow:
            self.boot()
        self.world.strike("go", after=True)

    def close(self) -> None:
        self.closed = True
        if not self.told:
            self.die()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def boot(self) -> None:
        """What a shim does until its training runs."""
        with self.world.as_process(self.pid):
            try:
                self.launch = Launch.from_json(self.launch_path.read_bytes())
            except (OSError, LaunchError):
                return self.die()
            if not shim.claim(self.launch.run, self.launch, self.pid):
                return self.die()
            spec = self.launch.lease
            assert spec is not None
            labels = self.launch.labels
            holder = {"experiment_id": self.experiment_id, "worker_id": labels["worker_id"]}
            self.lease = spec.try_acquire(holder, 0.0)
            if self.lease is None:
                return self.leave({"status": "infra", "error": f"{spec.name} is leased"})
            self.launch.run.log.write_text("step 1\n")
        return None

    def end(self, outcome: Outcome) -> None:
        """The training ends; the record of it is what the real shim's `build_report` makes."""
        assert self.launch is not None
        rate = read_json(self.launch.run.config)["rate"]
        value, more, log = 1.5 - rate / 10, {}, TRACEBACK
        if outcome == "no_exit":
            return self.die()
        if outcome == "crashes":
            more = {"exit_code": 1, "metrics": {}}
        else:
            log = VALUE.format(value)
            more = {"metrics": {"val_bpb": value, "peak_vram_mb": 1.0}, "summaries_seen": 1}
        if outcome == "contended":
            foreign = [{"pid": 77, "grown_mb": 100.0}]
            more["contention"] = {**_contention(1.0), "foreign": foreign}
        elif outcome == "slow":
            more["contention"] = _contention(3.0)
        elif outcome == "device":
            more["device"] = {**_device(self.launch), "lost": True}
        self.launch.run.log.write_text(log)
        return self.leave(more)

    def leave(self, more: dict[str, Any]) -> None:
        """Give everything back, then say what happened, and be gone."""
        assert self.launch is not None
        with self.world.as_process(self.pid):
            self._release()
            report = {**_report(self.launch), "seal": self.seal, **more}
            shim_run.write_exit(self.launch.run, report)
        self.die()

    def die(self) -> None:
        """As by kill -9: the kernel closes what it had."""
        self._release()
        self.world.processes.pop(self.pid, None)

    def _release(self) -> None:
        if self.lease is not None:
            devices.release(self.lease)
        self.lease = None


def _report(launch: Launch) -> dict[str, Any]:
    return {
        "experiment_id": launch.experiment_id,
        "status": "exited",
        "exit_code": 0,
        "signal": None,
        "error": None,
        "started_at": shim.utc_now(),
        "ended_at": shim.utc_now(),
        "wall_seconds": 1.0,
        "cpu_seconds": 1.0,
        "peak_rss_mb": 10.0,
        "peak_vram_mb": None,
        "device": _device(launch),
        "clock": {},
        "contention": _contention(1.0),
        "energy_joules": None,
        "utilisation": None,
        "oom_kills": 0,
        "log": {"bytes": 10, "dropped": 0},
        "score": None,
        "metrics": {},
        "summaries_seen": 0,
        "samples": [],
        "strays_killed": 0,
    }


def _device(launch: Launch) -> dict[str, Any]:
    device = launch.device
    return {
        "kind": device.kind, "uuid": device.uuid, "name": device.name, "cores": device.cores,
        "nvml_error": None, "lost": False, "memory_not_back": None, "throttled": {},
    }  # fmt: skip


def _contention(kernel: float) -> dict[str, Any]:
    times = {"kernel_before_ms": kernel, "kernel_after_ms": kernel, "slower_by": 0.0}
    return {**times, "involuntary_switches": 0, "foreign": []}


class Asked:
    """Stands for `Stop`: the worker takes a turn, and then waits to be told to take another."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self.asked = self.abandoned = self.hard = False

    @property
    def requested(self) -> bool:
        self._hands.turn_is_over()
        return self.asked

    def wait(self, seconds: float) -> bool:
        self._hands.world.sleep(seconds)
        return self.asked


class Hands:
    """A worker's process: `Worker.run` in a thread, of which only one runs at any time."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.pid = world.fork()
        self.stop = Asked(self)
        self.error: BaseException | None = None
        self.struck = False
        self.is_over = False
        self._go, self._back = threading.Event(), threading.Event()
        self._doomed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._wait()
        try:
            project = self.world.open_project()
            entry = next(one for one in self.world.entries if one.worker_id == self.name)
            worker.FleetWorker(project, entry).run(self.stop)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._back.set()

    def _wait(self) -> None:
        self._go.wait()
        self._go.clear()

    def turn_is_over(self) -> None:
        self._back.set()
        self._wait()
        if self._doomed:
            self.world.dead = True
            raise Killed

    def step(self, fault: Fault | None = None) -> None:
        """One turn, in which the fault may strike; the first one makes the worker as well."""
        assert not self.is_over
        with self.world.acting(self.pid, fault):
            self._go.set()
            assert self._back.wait(STEP_LIMIT_S), f"{self.name} hangs"
            self._back.clear()
            self.struck |= self.world.struck
            if self.world.dead:
                self._finish_dying()
        if self.is_over:
            self.world.processes.pop(self.pid, None)
            self._thread.join(STEP_LIMIT_S)
        if self.error is not None and not (
            self.struck and isinstance(self.error, (AutohypothesisError, OSError))
        ):
            raise self.error

    def _finish_dying(self) -> None:
        """A kill that was raised where it was held for a moment, by a `finally` say."""
        if not self.is_over:
            self._doomed = True
            self._go.set()
            assert self._back.wait(STEP_LIMIT_S), f"{self.name} does not die"
            self._back.clear()

    def kill(self) -> None:
        """Between two turns."""
        self._doomed = True
        if not self.is_over:
            self.step()
        assert self.is_over

    def leave(self, fault: Fault | None, *, abandoned: bool) -> None:
        self.stop.asked, self.stop.abandoned = True, abandoned
        self.step(fault)


@dataclass
class World:
    """One machine with one search on it."""

    template: Path
    folder: Path = field(init=False)
    root: Path = field(init=False)
    now: float = 1_000.0
    processes: dict[int, float] = field(default_factory=dict)
    shims: list[Shim] = field(default_factory=list)
    slow: bool = False
    """Whether the next shim takes a while to begin."""
    hands: dict[str, Hands] = field(default_factory=dict)
    dead: bool = False
    """Whether who acts now was killed."""
    struck: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    _pid: int | None = None
    _fault: Fault | None = None
    _left: int = 0
    _watching: bool = False
    _next_pid: int = FIRST_PID

    def __post_init__(self) -> None:
        memory = Path("/dev/shm")
        where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=where))
        self.root = self.folder / "search ü"
        shutil.copytree(self.template, self.root, symlinks=True)
        self.patches = pytest.MonkeyPatch()
        self.patches.setenv("AUTOHYPOTHESIS_LOCKS", str(self.folder / "locks"))
        self._patch_processes()
        self._patch_clocks()
        self._patch_steps()
        self.project = self.open_project().with_tag("t")
        self.layout = self.project.layout
        self.entries = [
            schema.Worker(worker_id=name, gpu_id=f"{i}", device=f"cpu-{i}", kind="cpu")
            for i, name in enumerate(WORKERS)
        ]
        manifest = schema.Manifest.model_validate(read_json(self.layout.manifest))
        manifest.workers = self.entries
        write_json(self.layout.manifest, manifest)
        self.observer: observer.Observer | None = None
        self.observer_pid = 0

    def open_project(self) -> Any:
        from autohypothesis.engine.project import Project

        return Project.open(self.root)

    def close(self) -> None:
        for one in self.hands.values():
            if not one.is_over:
                one.kill()
        for each in self.shims:
            each.die()
        self.patches.undo()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ── processes ─────────────────────────────────────────────────────────────────────────

    def fork(self) -> int:
        self._next_pid += 1
        self.processes[self._next_pid] = float(self._next_pid)
        return self._next_pid

    @contextmanager
    def as_process(self, pid: int) -> Iterator[None]:
        """What happens in here is done by another process: no fault of the actor's is its."""
        before, watching = self._pid, self._watching
        self._pid, self._watching = pid, False
        try:
            yield
        finally:
            self._pid, self._watching = before, watching

    def _patch_processes(self) -> None:
        real = SimpleNamespace(
            getpid=os.getpid, start=system.process_start, alive=system.is_alive,
            signal=system.signal_process,
        )  # fmt: skip

        def getpid() -> int:
            """Libraries keep the real one: a lock would think that it had been forked."""
            asks = str(sys._getframe(1).f_globals["__name__"])
            ours = asks.startswith("autohypothesis")
            return self._pid if ours and self._pid else int(real.getpid())

        def start(pid: int) -> float | None:
            return self.processes.get(pid) if pid > FIRST_PID else real.start(pid)

        def alive(pid: int, began: float) -> bool:
            if pid > FIRST_PID:
                return self.processes.get(pid) == began
            return bool(real.alive(pid, began))

        def signalled(pid: int, began: float, number: int) -> bool:
            if pid <= FIRST_PID:
                return bool(real.signal(pid, began, number))
            for one in self.shims:
                if one.pid == pid and one.lives:
                    one.asked_to_end = True
                    return True
            return False

        for module in (system, locks, workspace):
            self.patches.setattr(module, "process_start", start)
        for module in (system, locks, bundles):
            self.patches.setattr(module, "is_alive", alive)
        self.patches.setattr(system, "signal_process", signalled)
        self.patches.setattr(system, "physical_cores", lambda: list(range(len(WORKERS))))
        self.patches.setattr(os, "getpid", getpid)
        self.patches.setattr(shim, "prestart", self._prestart)
        self.patches.setattr(shim, "wait", self._wait_for_shim)
        self.patches.setattr(devices, "LEASE_TAKEN_S", 0.0)
        self.patches.setattr(collecting.processes, "end_marked", lambda *_: [])

    def _prestart(self, run: Any, experiment_id: str) -> Shim:
        self.shims.append(Shim(self, self.fork(), run.launch, experiment_id, self.slow))
        self.slow = False
        return self.shims[-1]

    def _wait_for_shim(self, run: Any, timeout: float | None = None) -> shim.Status:
        self.sleep(timeout or 0.1)
        return shim.status(run)

    def end_cancelled(self) -> None:
        for one in self.shims:
            if one.asked_to_end and one.waits:
                one.boot()
            if one.asked_to_end and one.trains:
                one.leave({"status": "cancelled", "exit_code": None, "signal": 15})

    # ── time ──────────────────────────────────────────────────────────────────────────────

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.end_cancelled()

    def _patch_clocks(self) -> None:
        clock = SimpleNamespace(
            monotonic=lambda: self.now, sleep=self.sleep, time=time.time, time_ns=time.time_ns
        )
        for module in (
            deciding, observer, preparation, presence, publishing, queue, worker
        ):  # fmt: skip
            self.patches.setattr(module, "time", clock)
        self.patches.setattr(quarantine, "now", lambda: schema.now() + timedelta(seconds=self.now))
        self.patches.setattr(preparation, "threading", SimpleNamespace(Thread=At))
        self.patches.setattr(publishing, "Thread", At)
        self.patches.setattr(locks, "DEFAULT_TIMEOUT_S", 5.0)

    # ── faults ────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def acting(self, pid: int, fault: Fault | None) -> Iterator[None]:
        """Whoever acts in here is the process `pid`, and meets the fault."""
        self._pid, self._fault, self._watching = pid, fault, True
        self._left = fault.nth if fault else 0
        self.dead = self.struck = False
        self.counts = {}
        try:
            yield
        finally:
            if self.dead:
                self.processes.pop(pid, None)
            self._pid, self._fault, self._watching, self.dead = None, None, False, False

    def strike(self, op: str, *, after: bool = False) -> None:
        """Called before and after each step."""
        if not self._watching:
            return
        if self.dead:
            raise Killed
        fault = self._fault
        self.counts[op] = self.counts.get(op, 0) + (not after)
        if fault is None or fault.op not in ("any", op):
            return
        if after != (fault.after and fault.how == "kill"):  # a full disk refuses beforehand
            return
        self._left -= 1
        if self._left:
            return
        self._fault, self.struck = None, True
        if fault.how == "kill":
            self.dead = True
            raise Killed
        if op == "git":
            raise GitError("git: No space left on device")
        if op in ("open", "write", "replace", "link", "mkdir", "rename", "go"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _stepping(self, op: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            self.strike(op)
            if op in ("git", "claim"):
                with self.as_process(self._pid or 0):
                    answer = real(*words, **more)
            else:
                answer = real(*words, **more)
            self.strike(op, after=True)
            return answer

        return call

    def _patch_steps(self) -> None:
        for owner, name, op in (
            (os, "replace", "replace"), (os, "link", "link"), (os, "unlink", "unlink"),
            (os, "mkdir", "mkdir"), (system, "_rename_noreplace", "rename"), (git, "call", "git"),
            (shim, "claim", "claim"), (decide, "move_reference", "move"),
            (decide, "_stamp", "stamp"), (decide.DecisionChain, "append", "append"),
        ):  # fmt: skip
            self.patches.setattr(owner, name, self._stepping(op, getattr(owner, name)))
        real_open, real_write, rmdir = os.open, os.write, os.rmdir

        def opened(path: Any, flags: int, *words: Any, **more: Any) -> int:
            makes = flags & os.O_CREAT and not str(path).endswith(".lock")
            if makes:
                self.strike("open")
            return real_open(path, flags, *words, **more)

        def write(descriptor: int, data: Any) -> int:
            if not self._watching or not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return real_write(descriptor, data)
            try:
                self.strike("write")
            except (Killed, OSError):
                if self.struck:  # half of it was written
                    real_write(descriptor, bytes(data)[: len(data) // 2])
                raise
            return real_write(descriptor, data)

        def removed(*words: Any, **more: Any) -> None:
            self.strike("unlink")
            rmdir(*words, **more)

        self.patches.setattr(os, "open", opened)
        self.patches.setattr(os, "write", write)
        self.patches.setattr(os, "rmdir", removed)
        self.patches.setattr(os, "fsync", lambda descriptor: None)  # no power cut is played here

    # ── who acts ──────────────────────────────────────────────────────────────────────────

    def work(self, name: str, fault: Fault | None = None) -> None:
        """One turn of a worker; one that is gone has a successor first."""
        if name not in self.hands or self.hands[name].is_over:
            self.hands[name] = Hands(self, name)
        self.hands[name].step(fault)

    def alive(self, name: str) -> bool:
        return name in self.hands and not self.hands[name].is_over

    def observe(self, fault: Fault | None = None) -> bool:
        """One turn of the observer; whether there is more to do."""
        if self.observer is None:
            self.observer_pid = self.fork()
        goes_on = True
        with self.acting(self.observer_pid, fault):
            try:
                if self.observer is None:
                    self.observer = observer.Observer(
                        self.open_project(), (), limits=SearchLimits(), say=lambda line: None
                    )
                goes_on = self.observer.turn()
            except Killed:
                self.observer = None
            except (AutohypothesisError, OSError):
                if not self.struck:
                    raise
                self.observer = None
            if self.dead:
                self.observer = None
        return goes_on

    def kill_observer(self) -> None:
        self.processes.pop(self.observer_pid, None)
        self.observer = None


def make_template(folder: Path) -> Path:
    """A repository of somebody's, to be copied for each world."""
    root = folder / "template"
    root.mkdir()
    run_git(root, "init", "-q", "-b", "main", "--template=")
    run_git(root, "config", "user.name", "Ada")
    run_git(root, "config", "user.email", "ada@example.org")
    (root / "train.py").write_text(SCRIPT, encoding="utf-8")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "start")
    return root


def quietly(path: Path) -> Any:
    """The JSON at `path`; None when there is none."""
    with suppress(FileNotFoundError):
        return read_json(path)
    return None
