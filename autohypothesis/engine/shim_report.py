"""From what the shim has seen to exit.json. No I/O but the tail of the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autohypothesis import system
from autohypothesis.engine import usage
from autohypothesis.engine.logs import parse_summary
from autohypothesis.engine.pump import read_tail
from autohypothesis.engine.shim_files import utc_now

if TYPE_CHECKING:
    from autohypothesis.engine.shim_run import ShimRun
    from autohypothesis.engine.shim_tend import Ended

_SUMMARY_WINDOW = 1 << 20


def build_report(run: ShimRun) -> dict[str, Any]:
    """Everything exit.json holds; figures that there are none of are null."""
    launch, ended = run.launch, run.ended
    status, error = _status(run)
    tail = read_tail(str(launch.run.log), _SUMMARY_WINDOW)
    if ended is not None and ended.status == "exited":
        tail += "\n"  # nothing cut its last line off
    device = run.device
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
        "peak_rss_mb": round(run.meter.peak_bytes / (1 << 20), 1) if run.meter else None,
        "peak_vram_mb": device.peak_mb if device else None,
        "device": _device(run),
        "clock": _clock(run),
        "contention": _contention(run),
        "energy_joules": device.energy_joules() if device else None,
        "utilisation": device.utilisation() if device else None,
        "oom_kills": usage.oom_kills() - run.oom_kills,
        "log": {
            "bytes": run.log.total if run.log else 0,
            "dropped": run.log.dropped if run.log else 0,
        },
        "score": run.score,
        "metrics": parse_summary(tail, launch.metric).metrics if ended else {},
        "summaries_seen": run.reader.summaries if run.reader else 0,
        "samples": run.reader.samples() if run.reader else [],
        "strays_killed": ended.strays_killed if ended else 0,
        "tampered": run.tampered,
        "seal": run.seal,
    }


def score_result(ended: Ended, log_tail: str, timeout_s: float) -> dict[str, Any]:
    """The `score` of exit.json: exit code, seconds, and the result or why there is none."""
    result, error = last_json_object(log_tail), None
    if ended.status == "deadline":
        error = f"scoring took longer than {timeout_s:g} s"
    elif ended.status != "exited":
        error = ended.error or f"scoring was ended ({ended.status}, signal {ended.signal})"
    elif ended.exit_code:
        error = f"scoring exited {ended.exit_code}: {_last_line(log_tail)}"
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


def last_json_object(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    return next(json_objects(text, reversed), None)


def json_objects(
    text: str, order: Callable[[list[str]], Iterable[str]] = iter
) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects."""
    for line in order(text.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _status(run: ShimRun) -> tuple[str, str | None]:
    ended = run.ended
    if run.error is not None:
        return "infra", run.error
    if run.interrupts.cancelled and (ended is None or ended.status == "exited"):
        return "cancelled", None  # before the training, or while it was scored
    if ended is None:
        return "infra", "nothing was run"
    return ended.status, ended.error


def _device(run: ShimRun) -> dict[str, Any]:
    device, record = run.launch.device, run.device
    return {
        "kind": device.kind,
        "uuid": device.uuid,
        "name": device.name,
        "cores": device.cores,
        "nvml_error": record.error if record else None,
        "lost": record.lost if record else False,
        "memory_not_back": record.not_back if record else None,
        "throttled": record.throttled() if record else {},
    }


def _clock(run: ShimRun) -> dict[str, Any]:
    if run.clock is None or run.ended is None:
        return {}
    cut = run.ended.status != "exited" or run.ended.exit_code != 0
    return run.clock.verdict(required=run.launch.clock_required, cut=cut).to_json()


def _contention(run: ShimRun) -> dict[str, Any]:
    before, after = run.kernel_before, run.kernel_after
    return {
        "kernel_before_ms": before,
        "kernel_after_ms": after,
        "slower_by": after / before - 1.0 if before and after else None,
        "involuntary_switches": run.ended.switches if run.ended else None,
        "foreign": run.device.foreign() if run.device else [],
        "asleep_seconds": round(run.ended.asleep, 3) if run.ended else 0.0,
        "suspended_seconds": round(system.suspended_seconds() - run.suspended, 3),
    }


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
