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
from autohypothesis.engine import processes, shim
from autohypothesis.engine.devices import Held
from autohypothesis.engine.meters import RecordWatch
from autohypothesis.engine.process_monitor import Interrupts, ProcessMonitor, spawn
from autohypothesis.engine.processes import ProcessLimit, TreeMeter
from autohypothesis.engine.shim import Launch, utc_now
from autohypothesis.errors import AutohypothesisError, LaunchError, LockError
from autohypothesis.records.layout import RunPaths

if TYPE_CHECKING:
    from autohypothesis.engine.logs import CappedLog, StreamReader
    from autohypothesis.engine.meters import ClockWatch, DeviceRecord, NvmlMeter
    from autohypothesis.engine.process_monitor import ChildEnd

NVML_START_S = 20.0
_DEVICE_EVERY_S = 1.0
_SAMPLE_EVERY_S = 0.5
_LEFTOVERS_S = 5.0
_SCORE_LOG_BYTES = 1 << 20
_SUMMARY_WINDOW = 1 << 20
_RESERVE_BYTES = 64 << 10


def main(argv: list[str]) -> int:
    """Run the process: 0 once exit.json is written, 1 if there is nothing to write it for."""
    system.set_process_name(f"ah:{argv[2]}" if len(argv) > 2 else "ah-shim")
    limit = ProcessLimit()
    limit.enter()
    seal = _await_go(argv[1]) if argv[3:] == [shim.WAIT] else ""
    if seal is None:
        limit.leave()
        return 0
    try:
        with open(argv[1], "rb") as file:
            launch = Launch.from_json(file.read())
        run = ShimRun(launch, limit, seal)
        shim.claim_folder(launch.run_dir, launch.experiment_id, os.getpid(), launch.overdue_after)
        run.run()
    except Exception:
        # The boundary of the process: shim.log is the one place left to say it.
        _print_traceback()
        limit.leave()
        return 1
    log = launch.run.shim_log
    if os.path.exists(log) and os.path.getsize(log) == 0:
        os.unlink(log)
    return 0


def _await_go(launch_path: str) -> str | None:
    """Wait for the starter's word, and return the seal that comes with it; None without a word.

    From then on print to shim.log.
    """
    word, _, seal = os.read(0, 256).partition(b" ")
    if word + b" " != shim.GO or not seal.endswith(b"\n"):
        return None
    path = RunPaths(Path(launch_path).parent).shim_log
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, fd in enumerate((nothing, log, log)):
        os.dup2(fd, number)
    os.close(nothing)
    os.close(log)
    return seal.strip().decode("ascii", "replace")


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


class ShimRun:
    """One experiment. `run` always leaves exit.json, unless the disk takes nothing at all."""

    def __init__(self, launch: Launch, limit: ProcessLimit, seal: str = "") -> None:
        self.launch = launch
        self.seal = seal
        self.watch: RecordWatch | None = None
        self.tampered: list[str] = []
        self.started_at = utc_now()
        self.lease: Held | None = None
        self.reserve: Reserve | None = None
        self.interrupts = Interrupts()
        self.nvml: NvmlMeter | None = None
        self.device: DeviceRecord | None = None
        self.meter: TreeMeter | None = None
        self.log: CappedLog | None = None
        self.reader: StreamReader | None = None
        self.clock: ClockWatch | None = None
        self.ended: ChildEnd | None = None
        self.kernel_ms: list[float] = []
        """Milliseconds of the fixed kernel, before and after the training."""
        self.score: dict[str, Any] | None = None
        self.cpu_seconds = 0.0
        self.error: str | None = None
        self.oom_kills = processes.oom_kills()
        self.suspended = system.suspended_seconds()
        self.limit = limit
        self._next_heartbeat = self._next_sample = self._next_device = 0.0

    def run(self) -> None:
        try:
            self._train()
            if self.exited_well and not self.interrupts.cancelled:
                self._score()
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

    # ── the training ──────────────────────────────────────────────────────────────────────

    def _train(self) -> None:
        launch = self.launch
        self.reserve = Reserve(launch)
        system.become_subreaper()
        if launch.lease is not None:
            holder = {
                "experiment_id": launch.experiment_id,
                "repository": launch.repository,
                "worker_id": launch.worker_id,
            }
            self.lease = launch.lease.acquire(holder)
        self._look_at_device()
        self._time_core()
        if self.interrupts.cancelled:
            return
        self.started_at = utc_now()
        self.watch = RecordWatch(launch)
        self.limit.hold(launch.max_processes, lambda: len(self._owned()))
        self._run_training()
        self._time_core()

    def _look_at_device(self) -> None:
        """Look at the GPU before the training. Raises LaunchError if it does not answer."""
        device = self.launch.device
        if device.kind != "cuda":
            return
        from autohypothesis.engine.meters import DeviceRecord, NvmlMeter

        kept = [holder.fd for holder in (self.lease, self.reserve) if holder is not None]
        self.nvml = NvmlMeter(device.uuid or "", close=kept)
        self.device = DeviceRecord(self.nvml.wait(NVML_START_S))
        if self.device.error:
            raise LaunchError(f"{device.name} does not answer: {self.device.error}")

    def _time_core(self) -> None:
        if self.launch.contention_kernel:
            from autohypothesis.engine.meters import time_kernel

            self.kernel_ms.append(time_kernel(self.launch.device.cores, self.launch.clock))

    def _run_training(self) -> None:
        launch = self.launch
        child = self._spawn(launch.command, launch.cwd, launch.env)
        # Imported now: the training has started, and has its own imports to do.
        from autohypothesis.engine.logs import CappedLog, StreamReader
        from autohypothesis.engine.meters import ClockWatch

        self.meter = self._new_meter()
        cpu = self.meter.cpu_seconds
        clock = cpu if launch.clock == "cpu" else time.monotonic
        path = str(launch.run.clock_in_out)
        self.clock = ClockWatch(path, launch.clock, launch.budget_seconds, clock)
        self.log = CappedLog(str(launch.run.log), launch.log_limit_bytes)
        self.reader = StreamReader(launch.metric)
        self.ended = ProcessMonitor(
            child,
            self.log,
            self.reader,
            self.meter,
            self.interrupts,
            deadline_s=launch.deadline_seconds,
            grace_s=launch.stop_grace_s,
            limit=self.limit,
            wakeups={self.clock.watch.fd: self._clock_written},
            tick=self._tick,
        ).watch()
        self.cpu_seconds = self.meter.cpu_seconds()

    def _spawn(self, command: tuple[str, ...], cwd: str, env: Mapping[str, str]) -> Any:
        inherit = [self.lease.fd] if self.lease else []
        return spawn(command, cwd, env, cores=self.launch.device.cores, inherit=inherit)

    def _new_meter(self) -> TreeMeter:
        return TreeMeter(apart=() if self.nvml is None else (self.nvml.pid,))

    def _clock_written(self) -> None:
        if self.clock is not None:
            self.clock.watch.drain()
            self.clock.poll()

    def _tick(self) -> None:
        """Ten times a second while the training runs."""
        now = time.monotonic()
        if self.clock is not None:
            self.clock.poll()
        if self.meter is not None and now >= self._next_sample:
            self._next_sample = now + _SAMPLE_EVERY_S
            self.meter.sample()
        self._tick_between()

    def _tick_between(self) -> None:
        """While anything runs, the training or its scoring."""
        now = time.monotonic()
        self._sample_device(now)
        if now >= self._next_heartbeat:
            first = self._next_heartbeat == 0.0
            self._next_heartbeat = now + self.launch.heartbeat_s
            self._event("run_started" if first else "heartbeat")

    def _sample_device(self, now: float) -> None:
        if self.nvml is None or self.device is None or self.meter is None:
            return
        sample = self.nvml.take()
        if sample is not None:
            self.device.take(sample, {*self.meter.ever, *self.meter.pids()})
        if now >= self._next_device:
            self._next_device = now + _DEVICE_EVERY_S
            self.nvml.request()

    def _event(self, event_type: str) -> None:
        progress = self.reader.progress if self.reader is not None else None
        share = progress.share if progress else None
        memory = {"peak_rss_mb": self.peak_rss_mb}
        if self.device is not None:
            memory["peak_vram_mb"] = self.device.peak_mb
        if self.watch is not None:
            self.watch.event_expected()
        append_event(
            self.launch,
            event_type,
            metrics={
                "train_loss": progress.loss if progress else None,
                "tok_per_sec": progress.tok_per_sec if progress else None,
            },
            progress={"progress_pct": None if share is None else round(100 * share, 2)},
            memory=memory,
        )
        if self.watch is not None:
            self.watch.event_written()

    @property
    def peak_rss_mb(self) -> float | None:
        return round(self.meter.peak_bytes / (1 << 20), 1) if self.meter else None

    # ── the scoring ───────────────────────────────────────────────────────────────────────

    def _score(self) -> None:
        """Run the score command. What fails here is in `score`, not in the status of the run."""
        spec = self.launch.score
        if spec is None:
            return
        from autohypothesis.engine.logs import CappedLog, StreamReader, read_tail

        child = self._spawn(spec.command, spec.cwd, spec.env)
        path = str(self.launch.run.score_log)
        ended = ProcessMonitor(
            child,
            CappedLog(path, _SCORE_LOG_BYTES),
            StreamReader(self.launch.metric),
            self._new_meter(),
            self.interrupts,
            deadline_s=spec.timeout_s,
            grace_s=self.launch.stop_grace_s,
            limit=self.limit,
            wakeups={},
            tick=self._tick_between,
        ).watch()
        self.score = score_result(ended, read_tail(path), spec.timeout_s)

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def _finish(self) -> None:
        """Give everything back, then say what happened; exit.json comes last."""
        self._end_leftovers()
        self.limit.end()
        self._close_device()
        if self.clock is not None:
            self.clock.watch.close()
        if self.watch is not None:
            self.tampered = self.watch.findings(log_is_ours=self.log is None or self.log.is_ours)
        if self.lease is not None:
            self.lease.release()
        report = build_report(self)
        if self.reserve is not None:
            self.reserve.free()
        done = report["status"] == "exited" and report["exit_code"] == 0
        try:
            self._event("run_completed" if done else "run_failed")
        except (AutohypothesisError, OSError):
            report["error"] = report["error"] or "the last event could not be written"
        write_exit(self.launch, report)

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
        """The training or scoring, with all that it has started."""
        return self._new_meter().pids()

    def _close_device(self) -> None:
        """See the device's memory back, some seconds at most, and stop asking NVML."""
        if self.nvml is None or self.device is None:
            return
        until = time.monotonic() + self.launch.memory_back_s
        while not self.device.error:
            sample = self.nvml.wait(max(until - time.monotonic(), 1.0))
            if self.device.is_back(sample) or time.monotonic() >= until:
                break
            time.sleep(0.1)
        self.nvml.close()


# ── exit.json ───────────────────────────────────────────────────────────────────────────────


def build_report(run: ShimRun) -> dict[str, Any]:
    """Return everything exit.json holds; figures that were not measured are null."""
    from autohypothesis.engine.logs import parse_summary, read_tail

    launch, ended, device, log, reader = run.launch, run.ended, run.device, run.log, run.reader
    status, error = _status(run)
    tail = read_tail(str(launch.run.log), _SUMMARY_WINDOW)
    if ended is not None and ended.status == "exited":
        tail += "\n"  # nothing cut its last line off
    return {
        "experiment_id": launch.experiment_id,
        "status": status,
        "exit_code": ended.exit_code if ended else None,
        "signal": ended.signal if ended else None,
        "error": error,
        "started_at": run.started_at,
        "ended_at": utc_now(),
        "wall_seconds": round(ended.wall_seconds, 3) if ended else 0.0,
        "cpu_seconds": round(run.cpu_seconds, 3),
        "peak_rss_mb": run.peak_rss_mb,
        "peak_vram_mb": device.peak_mb if device else None,
        "device": {
            "kind": launch.device.kind,
            "uuid": launch.device.uuid,
            "name": launch.device.name,
            "cores": launch.device.cores,
            "nvml_error": device.error if device else None,
            "lost": device.lost if device else False,
            "memory_not_back": device.not_back if device else None,
            "throttled": device.throttled() if device else {},
        },
        "clock": _clock(run),
        "contention": _contention(run),
        "energy_joules": device.energy_joules() if device else None,
        "utilisation": device.utilisation() if device else None,
        "oom_kills": processes.oom_kills() - run.oom_kills,
        "log": {"bytes": log.total if log else 0, "dropped": log.dropped if log else 0},
        "score": run.score,
        "metrics": parse_summary(tail, launch.metric).metrics if ended else {},
        "summaries_seen": reader.summaries if reader else 0,
        "samples": reader.samples() if reader else [],
        "strays_killed": ended.strays_killed if ended else 0,
        "tampered": run.tampered,
        "seal": run.seal,
    }


def _status(run: ShimRun) -> tuple[str, str | None]:
    ended = run.ended
    if run.error is not None:
        return "infra", run.error
    if run.interrupts.cancelled and (ended is None or ended.status == "exited"):
        return "cancelled", None  # before the training, or while it was scored
    if ended is None:
        return "infra", "nothing was run"
    return ended.status, ended.error


def _clock(run: ShimRun) -> dict[str, Any]:
    if run.clock is None or run.ended is None:
        return {}
    return run.clock.verdict(required=run.launch.clock_required, cut=not run.exited_well)


def _contention(run: ShimRun) -> dict[str, Any]:
    before, after = (*run.kernel_ms, None, None)[:2]
    return {
        "kernel_before_ms": before,
        "kernel_after_ms": after,
        "slower_by": after / before - 1.0 if before and after else None,
        "involuntary_switches": run.ended.switches if run.ended else None,
        "foreign": run.device.foreign() if run.device else [],
        "asleep_seconds": round(run.ended.asleep, 3) if run.ended else 0.0,
        "suspended_seconds": round(system.suspended_seconds() - run.suspended, 3),
    }


def score_result(ended: ChildEnd, log_tail: str, timeout_s: float) -> dict[str, Any]:
    """Return the `score` of exit.json: exit code, seconds, and the result or why there is none."""
    from autohypothesis.engine.logs import json_objects

    found = json_objects(log_tail)
    result, error = found[-1] if found else None, None
    if ended.status == "deadline":
        error = f"scoring took longer than {timeout_s:g} s"
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
    """Append a line to events.jsonl; none if another process keeps the file locked.

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
    """Write exit.json atomically; without its curve if only that much fits.

    Raises RecordError if not even that fits: the collector then finds a dead shim.
    """
    from autohypothesis.records.files import write_json

    try:
        write_json(launch.run.exit, report)
    except AutohypothesisError:
        write_json(launch.run.exit, {**report, "samples": []})


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv))
