"""Which devices a fleet works on: what a user named becomes UUIDs and cores, or an error by name.

Nothing here pins or leases. An index is the one that NVML prints; it is turned into a UUID here,
once, and the UUID is what the manifest holds. An inherited mask is a limit: a device outside it
is refused, never taken in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autohypothesis.engine import devices as engine
from autohypothesis.engine import meters
from autohypothesis.engine.devices import MIB, Gpu
from autohypothesis.errors import LeaseError, UsageError
from autohypothesis.records.layout import checked_id

MASK = "CUDA_VISIBLE_DEVICES"
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}")
_UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,80}")
_HINT = "name indices as `nvidia-smi -L` prints them, or UUIDs: --gpus 0,1"


@dataclass(frozen=True, slots=True)
class Chosen:
    """One worker's device."""

    worker_id: str
    gpu_id: str
    """As people name it: the index of NVML, or the core of a CPU lane."""
    device: str
    """What is leased: a UUID, or `cpu-<core>`; empty while no driver can tell."""
    kind: Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The devices of a fleet, and what its user should know about them."""

    chosen: Sequence[Chosen]
    notes: Sequence[str] = ()


def choose(
    gpus: str | None = None,
    cpu_workers: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Choice:
    """The devices for `--gpus` and `--cpu-workers`, each as typed; None: not given.

    With neither, all GPUs inside the inherited mask; on a machine without any NVIDIA device one
    lane per physical core.

    Raises:
        UsageError: an id is malformed, unknown, named twice or outside the mask.
        LeaseError: there is a GPU and its driver does not answer, and none was named.
    """
    environ = os.environ if environ is None else environ
    lanes = choose_lanes(cpu_workers) if cpu_workers is not None else []
    if gpus is not None:
        named = _named_gpus(_words(gpus), environ)
        return Choice([*named.chosen, *lanes], named.notes)
    if cpu_workers is not None:
        if not lanes:
            raise UsageError("--cpu-workers 0 leaves no worker", hint="leave it out, or name GPUs")
        return Choice(lanes)
    return _everything(environ)


def choose_lanes(count: int) -> list[Chosen]:
    """The first `count` CPU lanes.

    Raises:
        UsageError: there are fewer.
    """
    lanes = engine.cpu_slots()
    if not 0 <= count <= len(lanes):
        raise UsageError(
            f"--cpu-workers {count}: this machine has {len(lanes)} physical cores to use",
            hint=f"name 1 to {len(lanes)}; a lane is one core of its own",
        )
    found = []
    for number, lane in enumerate(lanes[:count]):
        core = (lane.cores or (0,))[0]
        found.append(Chosen(f"cpu{number}", str(core), engine.name_of(lane), "cpu"))
    return found


def _everything(environ: Mapping[str, str]) -> Choice:
    found, why_none = engine.gpus(environ)
    if found:
        return Choice([_chosen(gpu) for gpu in sorted(found, key=lambda gpu: gpu.index)])
    try:
        engine.best_kind()
    except LeaseError as error:
        hint = "mend the driver, or name devices: --gpus 0,1 (prepared only) or --cpu-workers N"
        raise LeaseError(error.problem, hint=hint) from error
    lanes = choose_lanes(len(engine.cpu_slots()))
    said = f"no GPU ({why_none}): {len(lanes)} CPU lanes instead, one per physical core"
    return Choice(lanes, [said])


def _chosen(gpu: Gpu) -> Chosen:
    return Chosen(f"gpu{gpu.index}", str(gpu.index), gpu.uuid, "cuda")


# ── what was typed ──────────────────────────────────────────────────────────────────────────


def _words(text: str) -> list[str]:
    """The ids of a comma-separated list, each well-formed and there once."""
    words = [word.strip() for word in text.split(",")]
    if words == [""]:
        raise UsageError("--gpus names no device", hint="leave it out for all of them; " + _HINT)
    for word in words:
        if not _INDEX.fullmatch(word) and not _UUID.fullmatch(word):
            raise UsageError(f"--gpus {text!r}: {word!r} is no id of a GPU", hint=_HINT)
        if words.count(word) > 1:
            raise UsageError(f"--gpus {text!r} names {word} twice", hint=_HINT)
    return words


def _named_gpus(words: Sequence[str], environ: Mapping[str, str]) -> Choice:
    everything, why_none = engine.gpus({})
    if not everything:
        return Choice(
            [_unknown(word) for word in words],
            [
                f"{why_none}: the workers of {', '.join(words)} are prepared, and do not train"
                " before a driver answers and `init-fleet` is run again"
            ],
        )
    visible, _ = engine.gpus(environ)
    taken: dict[str, str] = {}
    for word in words:
        gpu = _the_one(word, everything)
        if gpu not in visible:
            raise UsageError(
                f"--gpus {word}: {gpu.name} {gpu.uuid} is outside {MASK}={environ.get(MASK, '')}",
                hint=f"name one of {_indices(visible) or 'none'}, or change {MASK}",
            )
        if gpu.uuid in taken:
            raise UsageError(f"--gpus names GPU {gpu.index} twice: {taken[gpu.uuid]} and {word}")
        taken[gpu.uuid] = word
    chosen = [_chosen(gpu) for gpu in everything if gpu.uuid in taken]
    return Choice(chosen)


def _the_one(word: str, everything: Sequence[Gpu]) -> Gpu:
    """The GPU that `word` names: an index, or a UUID or the beginning of one."""
    if word.isdigit():
        matching = [gpu for gpu in everything if gpu.index == int(word)]
    else:
        matching = [gpu for gpu in everything if gpu.uuid.lower().startswith(word.lower())]
    if len(matching) == 1:
        return matching[0]
    problem = f"{word} may be any of {_indices(matching)}" if matching else f"there is no {word}"
    raise UsageError(
        f"--gpus {word}: {problem}",
        hint=f"there are {', '.join(f'{gpu.index} ({gpu.uuid})' for gpu in everything)}",
    )


def _indices(found: Sequence[Gpu]) -> str:
    return ", ".join(str(gpu.index) for gpu in found)


def _unknown(word: str) -> Chosen:
    """A GPU that nobody can look at: its worker is named after what was typed."""
    if word.isdigit():
        return Chosen(f"gpu{word}", word, "", "cuda")
    stem = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
    return Chosen(checked_id(stem[:40].strip("-")), word, "", "cuda")


# ── what is there ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Found:
    """One GPU as it stands now. Memory in MiB."""

    index: int
    uuid: str
    name: str
    memory_mb: float
    used_mb: float | None = None
    processes: Sequence[tuple[int, float | None]] = ()
    """Pid and memory of each compute process; in a container pids may be of another namespace."""
    throttle: Sequence[str] = ()
    """Why it is slower than it could be, just now."""
    visible: bool = True
    """Whether the inherited mask lets this process use it."""
    problem: str = ""
    """What NVML said instead of an answer."""


def discover(environ: Mapping[str, str] | None = None) -> list[Found]:
    """Every GPU of this machine with what is on it; none where no driver answers.

    A device that does not answer is listed with its problem, and hides no other.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_found(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    visible = {gpu.uuid for gpu in engine.gpus(environ)[0]}
    return [replace(one, visible=one.uuid in visible) for one in found]


def strangers(uuids: Sequence[str]) -> list[str]:
    """Who computes on these devices now, one line for each that is not free or does not answer."""
    said = []
    for one in discover() if uuids else ():
        if one.uuid not in uuids and not (one.problem and not one.uuid):
            continue
        if one.problem:
            said.append(f"GPU {one.index} does not answer: {one.problem}")
        elif one.processes:
            who = ", ".join(f"pid {pid}" for pid, _ in one.processes[:4])
            said.append(f"GPU {one.index} is used by {who} ({one.used_mb or 0:.0f} MiB)")
    return said


def _found(nvml: Any, index: int) -> Found:
    """What NVML says about one device; a failure is part of the answer."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError as error:
        return Found(index, "", "", 0.0, problem=str(error))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Found(
            index,
            uuid,
            name,
            memory.total / MIB,
            used_mb=memory.used / MIB,
            processes=_processes(nvml, handle),
            throttle=_throttle(nvml, handle),
        )
    except nvml.NVMLError as error:
        return Found(index, uuid, name, 0.0, problem=str(error))


def _processes(nvml: Any, handle: Any) -> list[tuple[int, float | None]]:
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return []
    return [
        (int(one.pid), None if one.usedGpuMemory is None else one.usedGpuMemory / MIB)
        for one in running
    ]


def _throttle(nvml: Any, handle: Any) -> list[str]:
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except nvml.NVMLError:
        return []
    return [name for bit, name in meters._THROTTLE.items() if bits & bit]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
