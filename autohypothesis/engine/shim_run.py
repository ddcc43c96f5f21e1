"""The shim process: lease, training, scoring, exit.json, in this order, in one thread.

What is imported here is imported before the training starts, so it is little; the rest is imported
while the training does its own imports.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autohypothesis import system
from autohypothesis.engine import shim
from autohypothesis.engine.devices import release
from autohypothesis.engine.gpus import Gpu, GpuSampler
from autohypothesis.engine.meters import (
    ClockWatch,
    GpuRecord,
    RecordWatch,
    TreeMeter,
    oom_kills,
    time_kernel,
)
from autohypothesis.engine.processes import (
    ChildEnd,
    ChildProcess,
    Interrupts,
    ProcessLimit,
    ProcessMonitor,
    spawn,
)
from autohypothesis.engine.shim import SCORING_TIMED_OUT, Launch, ScoreCommand, utc_now
from autohypothesis.errors import AutohypothesisError, LaunchError, LockError
from autohypothesis.records.layout import RunPaths

if TYPE_CHECKING:
    from autohypothesis.engine.logs import CappedLog, StreamReader

NVML_START_S = 20.0
_DEVICE_EVERY_S = 1.0
_SAMPLE_EVERY_S = 0.5
_LEFTOVERS_S = 5.0
_SCORE_LOG_BYTES = 1 << 20
_SUMMARY_WINDOW = 1 << 20
_RESERVE_BYTES = 64 << 10


def main(argv: list[str]) -> int:
    """Run the process: 0 once exit.json is written, 1 if there is nothing to write it for."""
    _, launch_path, experiment_id = argv
    run = RunPaths(Path(launch_path).parent)
    system.set_process_name(f"ah:{experiment_id}")
    limit = ProcessLimit()
    limit.enter()
    seal = _await_go(run)
    if seal is None:
        limit.leave()
        return 0
    try:
        launch = Launch.from_json(run.launch.read_bytes())
        shim_run = ShimRun(launch, limit, seal)
        if not shim.claim(run, launch, os.getpid()):
            raise shim.used_before(run)
        shim_run.run()
    except Exception:
        # The boundary of the process: shim.log is the last place for an error.
        _print_traceback()
        limit.leave()
        return 1
    if os.path.exists(run.shim_log) and os.path.getsize(run.shim_log) == 0:
        os.unlink(run.shim_log)
    return 0


def _await_go(run: RunPaths) -> str | None:
    """Wait for the starter's word, and return the seal that comes with it; None without a word.

    From then on print to shim.log.
    """
    word = os.read(0, 256)
    if not word.startswith(shim.GO) or not word.endswith(b"\n"):
        return None
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(run.shim_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, fd in enumerate((nothing, log, log)):
        os.dup2(fd, number)
    os.close(nothing)
    os.close(log)
    return word.removeprefix(shim.GO).strip().decode("ascii", "replace")


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


class ShimRun:
    """One experiment. `run` always leaves exit.json, unless the disk takes nothing at all."""

    def __init__(self, launch: Launch, limit: ProcessLimit, seal: str) -> None:
        self.launch = launch
        self.limit = limit
        self.seal = seal
        self.interrupts = Interrupts()
        self.started_at = utc_now()
        self.oom_kills = oom_kills()
        self.suspended = system.suspended_seconds()
        self.reserve = -1
        self.lease: int | None = None
        """The descriptor that holds the lease of the device."""
        self.watch: RecordWatch | None = None
        self.sampler: GpuSampler | None = None
        self.gpu: GpuRecord | None = None
        self.meter: TreeMeter | None = None
        self.log: CappedLog | None = None
        self.reader: StreamReader | None = None
        self.clock: ClockWatch | None = None
        self.kernel_ms: list[float] = []
        """Milliseconds of the fixed kernel, before and after the training."""
        self.ended: ChildEnd | None = None
        self.cpu_seconds = 0.0
        self.score: dict[str, Any] | None = None
        self.machine: dict[str, Any] = {}
        """What the machine says of a training that failed."""
        self.error: str | None = None
        self._next_heartbeat = self._next_sample = self._next_device = 0.0

    def run(self) -> None:
        try:
            self._train()
            if self.exited_well and not self.interrupts.cancelled:
                self._score()
            elif self.ended is not None and self.ended.status in ("exited", "signalled"):
                self._ask_machine()
        except (AutohypothesisError, OSError) as error:
            self.error = error.problem if isinstance(error, AutohypothesisError) else str(error)
        except Exception as error:
            # The boundary of the process: a fault of ours must not cost the record of the run.
            _print_traceback()
            self.error = f"the shim failed: {error!r}"
        self._finish()

    @property
    def exited_well(self) -> bool:
        ended = self.ended
        return ended is not None and ended.status == "exited" and ended.exit_code == 0

    @property
    def peak_rss_mb(self) -> float | None:
        return round(self.meter.peak_bytes / (1 << 20), 1) if self.meter else None

    # ── the training ──────────────────────────────────────────────────────────────────────

    def _train(self) -> None:
        launch = self.launch
        self.reserve = reserve_blocks(launch.run)
        system.become_subreaper()
        if launch.lease is not None:
            holder = {
                "experiment_id": launch.experiment_id,
                "repository": launch.repository,
                "worker_id": launch.labels.get("worker_id"),
            }
            self.lease = launch.lease.acquire(holder)
        self._look_at_gpu()
        self._time_core()
        if self.interrupts.cancelled:
            return
        self.started_at = utc_now()
        self.watch = RecordWatch(launch)
        self.limit.hold(launch.max_processes, lambda: len(self._owned()))
        self._run_training()
        self._time_core()

    def _look_at_gpu(self) -> None:
        """Look at the GPU before the training. Raises LaunchError if it does not answer."""
        device = self.launch.device
        if device.kind != "cuda":
            return
        kept = [fd for fd in (self.reserve, self.lease) if fd is not None]
        self.sampler = GpuSampler(device.uuid or "", close=kept)
        self.gpu = GpuRecord(self.sampler.wait(NVML_START_S))
        if self.gpu.error:
            raise LaunchError(f"{device.name} does not answer: {self.gpu.error}")

    def _time_core(self) -> None:
        if self.launch.contention_kernel:
            self.kernel_ms.append(time_kernel(self.launch.device.cores, self.launch.clock))

    def _run_training(self) -> None:
        launch = self.launch
        child = self._spawn(launch)
        # Imported now: the training has started, and has its own imports to do.
        from autohypothesis.engine.logs import CappedLog, StreamReader

        self.meter = self._new_meter()
        now = self.meter.cpu_seconds if launch.clock == "cpu" else time.monotonic
        path = str(launch.run.clock_in_out)
        self.clock = ClockWatch(path, launch.clock, launch.budget_seconds, now)
        self.log = CappedLog(str(launch.run.log), launch.log_limit_bytes)
        self.reader = StreamReader(launch.metric)
        monitor = ProcessMonitor(
            child,
            self.log,
            self.reader,
            self.meter,
            self.interrupts,
            self.limit,
            deadline_s=launch.deadline_seconds,
            grace_s=launch.stop_grace_s,
            tick=self._tick,
            wakeups={self.clock.watch.fd: self.clock.poll},
        )
        self.ended = monitor.watch()
        self.cpu_seconds = self.meter.cpu_seconds()

    def _spawn(self, what: Launch | ScoreCommand) -> ChildProcess:
        inherit = [] if self.lease is None else [self.lease]
        cores = self.launch.device.cores
        return spawn(what.command, what.cwd, what.env, cores=cores, inherit=inherit)

    def _new_meter(self) -> TreeMeter:
        return TreeMeter(apart=() if self.sampler is None else (self.sampler.pid,))

    def _tick(self) -> None:
        now = time.monotonic()
        if self.ended is None and self.clock is not None and self.meter is not None:
            self.clock.poll()
            if now >= self._next_sample:
                self._next_sample = now + _SAMPLE_EVERY_S
                self.meter.sample()
        self._sample_gpu(now)
        if now >= self._next_heartbeat:
            first = self._next_heartbeat == 0.0
            self._next_heartbeat = now + self.launch.heartbeat_s
            self._append_event("run_started" if first else "heartbeat")

    def _sample_gpu(self, now: float) -> None:
        if self.sampler is None or self.gpu is None or self.meter is None:
            return
        sample = self.sampler.take()
        if sample is not None:
            self.gpu.take(sample, {*self.meter.ever, *self.meter.pids()})
        if now >= self._next_device:
            self._next_device = now + _DEVICE_EVERY_S
            self.sampler.request()

    def _append_event(self, event_type: str) -> None:
        """Append a line to events.jsonl; none if another process keeps the file locked.

        Raises RecordError or OSError as the disk gives it.
        """
        from autohypothesis.records.jsonl import append

        progress = self.reader.progress if self.reader is not None else None
        share = progress.share if progress else None
        memory = {"peak_rss_mb": self.peak_rss_mb}
        if self.gpu is not None:
            memory["peak_vram_mb"] = self.gpu.peak_mb
        event = {
            "event_type": event_type,
            "recorded_at": utc_now(),
            "experiment_id": self.launch.experiment_id,
            **self.launch.labels,
            "metrics": {
                "train_loss": progress.loss if progress else None,
                "tok_per_sec": progress.tok_per_sec if progress else None,
            },
            "progress": {"progress_pct": None if share is None else round(100 * share, 2)},
            "memory": memory,
        }
        watched = self.watch.appending() if self.watch else contextlib.nullcontext()
        with watched, contextlib.suppress(LockError):
            append(self.launch.run.events, event)

    def _ask_machine(self) -> None:
        """Look at the machine before anything of the run is cleaned up."""
        from autohypothesis.engine.machine import machine_evidence

        self.machine = machine_evidence(self.launch)

    # ── the scoring ───────────────────────────────────────────────────────────────────────

    def _score(self) -> None:
        """Run the score command. What fails here is in `score`, not in the status of the run."""
        spec = self.launch.score
        if spec is None:
            return
        from autohypothesis.engine.logs import CappedLog, StreamReader, read_tail

        path = str(self.launch.run.score_log)
        monitor = ProcessMonitor(
            self._spawn(spec),
            CappedLog(path, _SCORE_LOG_BYTES),
            StreamReader(self.launch.metric),
            self._new_meter(),
            self.interrupts,
            self.limit,
            deadline_s=spec.timeout_s,
            grace_s=self.launch.stop_grace_s,
            tick=self._tick,
        )
        result = score_result(monitor.watch(), read_tail(path), spec.timeout_s)
        self.score = {**result, "scored": spec.scored}

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def _finish(self) -> None:
        """Give everything back, then say what happened; exit.json comes last."""
        self._end_leftovers()
        self.limit.end()
        self._close_gpu()
        if self.clock is not None:
            self.clock.watch.close()
        log_is_ours = self.log is None or self.log.is_ours
        tampered = self.watch.findings(log_is_ours=log_is_ours) if self.watch else []
        if self.lease is not None:
            release(self.lease)
        report = self._report(tampered)
        if log_is_ours:
            self._log_score()
        if self.reserve >= 0:
            os.close(self.reserve)
        done = report["status"] == "exited" and report["exit_code"] == 0
        try:
            self._append_event("run_completed" if done else "run_failed")
        except (AutohypothesisError, OSError):
            report["error"] = report["error"] or "the last event could not be written"
        write_exit(self.launch.run, report)

    def _log_score(self) -> None:
        """Add the official value to the log, in the form in which trainings print theirs."""
        spec, score = self.launch.score, self.score or {}
        value = (score.get("result") or {}).get(spec.metric) if spec and spec.metric else None
        if spec is None or score.get("exit_code") != 0 or not isinstance(value, float):
            return
        with contextlib.suppress(OSError), open(self.launch.run.log, "a", encoding="utf-8") as log:
            log.write(f"---\n{spec.metric + ':':<17} {value:.6f}\n")

    def _end_leftovers(self) -> None:
        """End the tree after a fault of ours; else it has ended already."""
        until = time.monotonic() + _LEFTOVERS_S
        while (left := self._owned()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)

    def _owned(self) -> list[int]:
        return self._new_meter().pids()

    def _close_gpu(self) -> None:
        """See the device's memory back, some seconds at most, and stop asking NVML."""
        if self.sampler is None or self.gpu is None:
            return
        until = time.monotonic() + self.launch.memory_back_s
        while not self.gpu.error:
            sample = self.sampler.wait(max(until - time.monotonic(), 1.0))
            if self.gpu.is_back(sample) or time.monotonic() >= until:
                break
            time.sleep(0.1)
        self.sampler.close()

    def _report(self, tampered: list[str]) -> dict[str, Any]:
        """Return everything exit.json holds; figures that were not measured are null."""
        from autohypothesis.engine.logs import parse_summary, read_tail

        launch, ended, log, reader = self.launch, self.ended, self.log, self.reader
        gpu = self.gpu or GpuRecord(Gpu())
        status, error = self._status()
        tail = read_tail(str(launch.run.log), _SUMMARY_WINDOW)
        if ended is not None and ended.status == "exited":
            tail += "\n"  # nothing cut its last line off
        before, after = (*self.kernel_ms, None, None)[:2]
        clock: dict[str, Any] = {}
        if self.clock is not None and ended is not None:
            clock = self.clock.verdict(required=launch.clock_required, cut=not self.exited_well)
        return {
            "experiment_id": launch.experiment_id,
            "status": status,
            "exit_code": ended.exit_code if ended else None,
            "signal": ended.signal if ended else None,
            "error": error,
            "started_at": self.started_at,
            "ended_at": utc_now(),
            "wall_seconds": round(ended.wall_seconds, 3) if ended else 0.0,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_rss_mb": self.peak_rss_mb,
            "peak_vram_mb": gpu.peak_mb,
            "device": {
                **launch.device._asdict(),
                "nvml_error": gpu.error,
                "lost": gpu.lost,
                "memory_not_back": gpu.not_back,
                "throttled": gpu.throttled(),
            },
            "clock": clock,
            "contention": {
                "kernel_before_ms": before,
                "kernel_after_ms": after,
                "slower_by": after / before - 1.0 if before and after else None,
                "involuntary_switches": ended.switches if ended else None,
                "foreign": gpu.foreign(),
                "asleep_seconds": round(ended.asleep, 3) if ended else 0.0,
                "suspended_seconds": round(system.suspended_seconds() - self.suspended, 3),
            },
            "energy_joules": gpu.energy_joules(),
            "utilisation": gpu.utilisation(),
            "oom_kills": oom_kills() - self.oom_kills,
            "machine": self.machine,
            "log": {"bytes": log.total if log else 0, "dropped": log.dropped if log else 0},
            "score": self.score,
            "metrics": parse_summary(tail, launch.metric).metrics if ended else {},
            "summaries_seen": reader.found.count if reader else 0,
            "metric_values": reader.found.values if reader else [],
            "samples": reader.samples() if reader else [],
            "strays_killed": ended.leftovers_killed if ended else 0,
            "tampered": tampered,
            "seal": self.seal,
        }

    def _status(self) -> tuple[str, str | None]:
        ended = self.ended
        if self.error is not None:
            return "infra", self.error
        if self.interrupts.cancelled and (ended is None or ended.status in ("exited", "signalled")):
            return "cancelled", None  # before the training, with it, or while it was scored
        if ended is None:
            return "infra", "nothing was run"
        return ended.status, ended.error


def score_result(ended: ChildEnd, log_tail: str, timeout_s: float) -> dict[str, Any]:
    """Return the `score` of exit.json: exit code, seconds, and the result or why there is none."""
    from autohypothesis.engine.logs import json_objects

    found = json_objects(log_tail)
    result, error = found[-1] if found else None, None
    if ended.status == "deadline":
        error = f"{SCORING_TIMED_OUT} {timeout_s:g} s"
    elif ended.status != "exited":
        error = ended.error or f"scoring was ended ({ended.status}, signal {ended.signal})"
    elif ended.exit_code:
        lines = [line for line in log_tail.splitlines() if line.strip()]
        last = lines[-1][:200] if lines else "no output"
        error = f"scoring exited {ended.exit_code}: {last}"
    elif result is None:
        error = "scoring printed no JSON object"
    return {
        "status": ended.status,
        "exit_code": ended.exit_code,
        "signal": ended.signal,
        "seconds": round(ended.wall_seconds, 3),
        "result": result,
        "error": error,
    }


def reserve_blocks(run: RunPaths) -> int:
    """Keep a few blocks of the disk, so that exit.json can be written when it is full; return the
    descriptor that holds them.

    They belong to a file that has no name any more: if the shim is killed they are free at once.
    Raises OSError if the disk is full already; then nothing is kept.
    """
    fd = os.open(run.reserve, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.unlink(run.reserve)
    # Random bytes, because some file systems store zeros without blocks.
    try:
        if os.write(fd, os.urandom(_RESERVE_BYTES)) < _RESERVE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.folder))
    except OSError:
        os.close(fd)
        raise
    return fd


def write_exit(run: RunPaths, report: Mapping[str, Any]) -> None:
    """Write exit.json atomically; without its curve if only that much fits.

    Raises RecordError if not even that fits: the collector then finds a dead shim.
    """
    from autohypothesis.records.files import write_json

    try:
        write_json(run.exit, report)
    except AutohypothesisError:
        write_json(run.exit, {**report, "samples": []})


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv))
