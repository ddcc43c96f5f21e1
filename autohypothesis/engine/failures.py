"""Classifies failures from evidence: pure, but for the advice about limits of this process."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from autohypothesis.engine.logs import printed_nonsense
from autohypothesis.system import disk_full_advice

if TYPE_CHECKING:
    from autohypothesis.schema import FailureKind, Result

CANCELLED = "stopped before its end"
NO_SHIM = "the shim ended without writing exit.json"
NO_SHIM_UNCONFINED = f"{NO_SHIM}; without a sandbox the run may have ended it"
STOPPED_BEFORE = "cancelled"
"""The detail of an `infra` failure by which an earlier version recorded a `down`."""
_ZERO_SHARE = 0.01  # of the budget: a training shorter than this did not train
_DETAIL = 300
_OOM = re.compile(
    r"^.*(?:CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
    r"|can't allocate memory|Cannot allocate memory|std::bad_alloc|^MemoryError\b).*$",
    re.MULTILINE,
)
_ROOM = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_NO_ROOM = re.compile(rf"^.*({'|'.join(map(re.escape, _ROOM))}).*$", re.MULTILINE)
_DEVICE = re.compile(
    r"^.*(?:uncorrectable (?:NVLink|ECC) error|GPU is lost|fallen off the bus"
    r"|devices? (?:is|are|\(s\) is/are) busy or unavailable|no CUDA-capable device is detected"
    r"|CUDA unknown error|CUDA driver (?:initialization failed|error)|unspecified launch failure"
    r"|Failed to initialize NVML).*$",
    re.MULTILINE | re.IGNORECASE,
)
_FAIL = re.compile(r"^FAIL\b.*$", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s+File "([^"\n]+)", line (\d+)', re.MULTILINE)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit)\b.*$")
_LIBRARIES = ("/site-packages/", "/lib/python", "<frozen ")
_LIMITS: dict[int, str] = {
    signal.SIGXFSZ: f"a file grew too large; {disk_full_advice(errno.EFBIG)}",
    signal.SIGXCPU: "its CPU time is used up; see `ulimit -t`",
}
_LIMIT_KEYS: dict[int, str] = {signal.SIGXFSZ: "file_limit", signal.SIGXCPU: "cpu_limit"}
"""Signal of a limit -> where the `machine` of exit.json has that limit."""
_BY_A_SHELL = 128
"""Added by a shell, or bubblewrap, to the number of the signal that ended its command."""
CRASHES = {
    getattr(signal, f"SIG{name}") for name in ["SEGV", "ABRT", "BUS", "ILL", "FPE", "TRAP", "SYS"]
}
"""Signals by which a program ends itself: its own doing, or that of the code it runs."""


class Failure(NamedTuple):
    """A failure in one word and in one line."""

    kind: FailureKind
    detail: str


def classify(
    exit: Mapping[str, Any] | None,
    log_tail: str,
    metric: float | None,
    *,
    metric_name: str = "val_bpb",
    confined: bool = True,
) -> Failure | None:
    """Return the failure of an experiment; None if it completed with a usable metric.

    `exit` is exit.json, None if the shim died without writing it. `metric` is the scorer's value.
    `confined`: a sandbox kept the run from its shim.
    """
    if exit is None:
        return Failure("infra", NO_SHIM if confined else NO_SHIM_UNCONFINED)
    # Before the training's own errors: a neighbour's memory is a reason to run out of it.
    foreign = _foreign(exit)
    failure = (
        _infrastructure(exit)
        or (Failure("contended", foreign) if foreign else None)
        or _ended_badly(exit, log_tail)
        or _invalid(exit)
        or _without_metric(exit, log_tail, metric, metric_name)
    )
    return failure and Failure(failure.kind, failure.detail[:_DETAIL])


def device_evidence(exit: Mapping[str, Any]) -> str | None:
    """Return what an exit.json says against its device, whatever became of the experiment."""
    device = part_of(exit, "device")
    if lost := _lost(device):
        return lost
    if device.get("memory_not_back"):
        back = part_of(device, "memory_not_back")
        return f"device memory did not come back: {_mb(back, 'before_mb')} before," + (
            f" {_mb(back, 'after_mb')} after"
        )
    return _foreign(exit)


def _lost(device: Mapping[str, Any]) -> str:
    if device.get("nvml_error"):
        return f"NVML: {device['nvml_error']}"
    return "the device was lost" if device.get("lost") else ""


def is_device_evidence(result: Result) -> bool:
    """Return whether a result speaks against its device; a killed shim and a `down` do not."""
    if device_evidence(result.evidence) is not None:
        return True
    return result.failure_kind == "infra" and _DEVICE.search(result.failure_detail) is not None


def is_interruption(detail: str) -> bool:
    """Return whether an `infra` failure, by its detail, is a kill of the shim or, in older
    records, a `down`.

    Such a run comes back without end, as a cancelled one does. All others may be the script's own
    doing (a full disk, a shim that no sandbox kept it from), and come back a few times.
    """
    return detail in (NO_SHIM, STOPPED_BEFORE)


def room_in(text: str) -> str:
    """Return the last line about a full disk, a quota or a file limit, with what to do; or ""."""
    lines = list(_NO_ROOM.finditer(text))
    if not lines:
        return ""
    return f"{lines[-1][0].strip()[:160]}; {disk_full_advice(_ROOM[lines[-1][1]])}"


def signal_of(code: int | None, number: int | None = None) -> int | None:
    """Return the signal that ended a process; None if it exited. A shell says 128 + signal.

    Args:
        code: its exit status; negative as `subprocess` says it.
        number: the signal, where the kernel has told it.
    """
    if number is not None or code is None:
        return number
    ended_by = -code if code < 0 else code - _BY_A_SHELL
    return ended_by if ended_by in set(map(int, signal.Signals)) else None


def infra_reason(code: int | None, number: int | None, printed: str) -> str:
    """Return why a task's own program could not judge, through no fault of the change; or "".

    Args:
        code, number: how it ended, as of `signal_of`. What was ended by us is not to be asked here.
        printed: its last words.
    """
    if code == os.EX_TEMPFAIL:
        last = printed.strip().splitlines()[-1:]
        return ": ".join(
            [f"it exited {code} (EX_TEMPFAIL: try again later)", *map(str.strip, last)]
        )
    ended_by = signal_of(code, number)
    if ended_by is not None:
        limit = [_LIMITS[ended_by]] if ended_by in _LIMITS else []
        return ": ".join([f"it was killed with {_signal_name(ended_by)}", *limit])
    return room_in(printed)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _foreign(exit: Mapping[str, Any]) -> str | None:
    foreign = part_of(exit, "contention").get("foreign")
    if not foreign:
        return None
    every = foreign if isinstance(foreign, list) else []
    names = ", ".join(
        f"pid {process.get('pid')} grew by {_mb(process, 'grown_mb')}"
        for process in every
        if isinstance(process, Mapping)
    )
    return f"foreign compute on the device: {names or 'of processes without a name'}"


def part_of(document: object, name: str) -> Mapping[str, Any]:
    """Return a mapping inside of a document that a run, or an older tool, left, or an empty one."""
    part = document.get(name) if isinstance(document, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _mb(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    known = isinstance(value, (int, float)) and -1e18 < value < 1e18
    return f"{value:.0f} MB" if known else "an unknown number of MB"


def _infrastructure(exit: Mapping[str, Any]) -> Failure | None:
    if exit.get("status") == "infra":
        error = str(exit.get("error") or "the shim failed")
        return Failure("infra", room_in(error) or error)
    if exit.get("status") == "cancelled":
        return Failure("cancelled", CANCELLED)
    lost = _lost(part_of(exit, "device"))
    return Failure("infra", lost) if lost else None


def _ended_badly(exit: Mapping[str, Any], log_tail: str) -> Failure | None:
    if exit.get("status") == "deadline":
        return Failure("timeout", f"not done after {exit.get('wall_seconds', 0):.0f} s")
    if exit.get("status") == "processes":
        return Failure("code_error", str(exit.get("error")))
    code = exit.get("exit_code")
    number = signal_of(code, exit.get("signal"))
    if number is None and code == 0:
        return None
    return (
        _matched(_OOM, log_tail, "oom")
        or (_signalled(exit, number) if number is not None else None)
        or _by_the_machine(exit, log_tail)
        or _matched(_FAIL, log_tail, "nan")
        or Failure("code_error", _crash_line(log_tail, f"exit code {code}"))
    )


def _by_the_machine(exit: Mapping[str, Any], log_tail: str) -> Failure | None:
    """Return a failure of disk or device that the log tells of, where the machine's own evidence
    agrees: a training can print any words."""
    machine = part_of(exit, "machine")
    no_room = room_in(log_tail)
    over_limit = os.strerror(errno.EFBIG) in no_room and machine.get("file_limit") is not None
    if no_room and (machine.get("no_room") or over_limit):
        return Failure("infra", no_room)
    return _matched(_DEVICE, log_tail, "infra") if machine.get("cuda_error") else None


def _matched(pattern: re.Pattern[str], log_tail: str, kind: FailureKind) -> Failure | None:
    lines = pattern.findall(log_tail)
    return Failure(kind, lines[-1].strip()) if lines else None


def _signalled(exit: Mapping[str, Any], number: int) -> Failure:
    if number == signal.SIGKILL and exit.get("oom_kills"):
        return Failure("oom", "killed by the kernel, which ran out of memory")
    name = _signal_name(number)
    if number in CRASHES:
        return Failure("code_error", f"the training crashed with {name}")
    if number in _LIMITS and part_of(exit, "machine").get(_LIMIT_KEYS[number]) is not None:
        return Failure("infra", f"the training was ended with {name}: {_LIMITS[number]}")
    why = "the machine knows no reason (no cancel, no limit, memory for all), so it is its own"
    return Failure("code_error", f"the training was ended with {name}: {why}")


def _crash_line(log_tail: str, otherwise: str) -> str:
    """Return `file:line: Exception: words` of the last traceback, else the last line of the log."""
    begin = max(log_tail.rfind(_TRACEBACK), 0)
    lines = log_tail[begin:].splitlines()
    if begin or lines[:1] == [_TRACEBACK]:
        raised = next((x for x in lines[1:] if x.strip() and not x[0].isspace()), None)
    else:
        raised = next((x for x in reversed(lines) if _EXCEPTION.match(x)), None)
    if raised is None:
        last = next((x.strip() for x in reversed(lines) if x.strip()), "no output")
        return f"{otherwise}: {last}"
    frames = _FRAME.findall(log_tail[begin:])
    own = [f for f in frames if not any(part in f[0] for part in _LIBRARIES)] or frames
    return f"{own[-1][0]}:{own[-1][1]}: {raised.strip()}" if own else raised.strip()


def _invalid(exit: Mapping[str, Any]) -> Failure | None:
    clock = exit.get("clock") or {}
    asleep = part_of(exit, "contention").get("asleep_seconds")
    if clock.get("verdict") == "invalid" and asleep:
        why = f"the process that owns the run was stopped for {asleep:.0f} s: no clock agrees"
        return Failure("infra", why)
    if clock.get("verdict") == "invalid":
        return Failure("invalid", str(clock.get("reason") or "the clock does not add up"))
    kernel, budget = clock.get("kernel_s"), clock.get("budget_seconds")
    seconds = (exit.get("metrics") or {}).get("training_seconds")
    if kernel is not None and budget and kernel < _ZERO_SHARE * budget:
        return Failure("invalid", f"trained for {kernel:.3f} s of a budget of {budget:g} s")
    if isinstance(seconds, (int, float)) and seconds <= 0:
        return Failure("invalid", f"training_seconds is {seconds:g}: nothing was trained")
    score = (exit.get("score") or {}).get("result") or {}
    return Failure("invalid", str(score["invalid"])) if score.get("invalid") else None


def _without_metric(
    exit: Mapping[str, Any], log_tail: str, metric: float | None, name: str
) -> Failure | None:
    if metric is not None:
        usable = math.isfinite(metric)
        return None if usable else Failure("nan", f"{name} is {metric}")
    if (nonsense := printed_nonsense(log_tail + "\n", name)) is not None:
        return Failure("nan", f"the training printed {name}: {nonsense[:40]}")
    if failed := _matched(_FAIL, log_tail, "nan"):
        return failed
    error = (exit.get("score") or {}).get("error")
    if error:
        kind: FailureKind = "oom" if _OOM.search(error) else "no_metric"
        return Failure(kind, str(error))
    return Failure("no_metric", f"the log has no line `{name}: <number>`")
