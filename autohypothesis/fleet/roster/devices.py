"""Which devices a fleet works on, and what this machine is: GPUs, CPU slots, Python, profile.

What a user named becomes UUIDs and cores, or an error by name. Nothing here pins, leases or changes
anything. An index is the one that NVML prints; it is turned into a UUID here, once, and the UUID is
what the manifest holds. An inherited mask is a limit: a device outside it is refused, never taken
in silence.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

from autohypothesis.engine import devices as engine
from autohypothesis.engine import program
from autohypothesis.engine.gpus import (
    NO_MIG_DEVICE,
    Gpu,
    all_gpus,
    cuda_version,
    mig_devices_of,
    usable_gpus,
)
from autohypothesis.engine.inputs import SCRIPT, TIMEOUT_S
from autohypothesis.engine.project import source_folder
from autohypothesis.engine.task_file import has_option
from autohypothesis.errors import LaunchError, LeaseError, UsageError
from autohypothesis.records.layout import checked_id
from autohypothesis.schema import Worker

MASK = "CUDA_VISIBLE_DEVICES"
_ID = re.compile(
    r"(?:0|[1-9][0-9]{0,3})(?::[0-9]{1,2})?|GPU-[0-9A-Za-z-]{1,80}|MIG-[0-9A-Za-z/-]{1,90}"
)
_HINT = (
    "name indices as `nvidia-smi -L` prints them, or UUIDs: --gpus 0,1; MIG devices by UUID, or as"
    " GPU:DEVICE: --gpus 0:0,0:1"
)


def choose(
    gpus: str | None = None, cpu_workers: int | None = None
) -> tuple[list[Worker], list[str]]:
    """Return workers and notes for `--gpus` and `--cpu-workers`, each as typed; None: not given.

    With neither, all GPUs inside the inherited mask; on a machine without any NVIDIA device one
    slot per physical core. `all` GPUs are those as well, and never slots. A worker has no device
    yet where no driver answers.

    Raises:
        UsageError: an id is malformed, unknown, named twice or outside the mask; `all` are none.
        LeaseError: there is a GPU and its driver does not answer, and none was named.
    """
    slots = _cpu_workers(cpu_workers) if cpu_workers is not None else []
    is_all = (gpus or "").strip().lower() == "all"
    if gpus is not None and not is_all:
        named, notes = _named_gpus(_words(gpus))
        return [*named, *slots], notes
    if slots and not is_all:
        return slots, []
    if cpu_workers is not None and not is_all:
        raise UsageError("--cpu-workers 0 leaves no worker", hint="leave it out, or name GPUs")
    found, why_none = usable_gpus()
    if found:
        in_order = sorted(found, key=lambda gpu: (gpu.index, gpu.mig or 0))
        return [*map(_gpu_worker, in_order), *slots], []
    if is_all:
        raise UsageError(f"--gpus all: {why_none}", hint="train on cores: --cpu-workers N")
    try:
        engine.best_kind()
    except LeaseError as error:
        hint = "mend the driver, or name devices: --gpus 0,1 (prepared only) or --cpu-workers N"
        raise LeaseError(error.problem, hint=hint) from error
    slots = _cpu_workers(len(engine.cpu_slots()))
    return slots, [f"no GPU ({why_none}): {len(slots)} CPU lanes instead, one per physical core"]


def _cpu_workers(count: int) -> list[Worker]:
    slots = engine.cpu_slots()
    if not 0 <= count <= len(slots):
        raise UsageError(
            f"--cpu-workers {count}: this machine has {len(slots)} physical cores to use",
            hint=f"name 1 to {len(slots)}; a lane is one core of its own",
        )
    return [
        Worker(
            worker_id=f"cpu{number}", gpu_id=slot.id.removeprefix("cpu-"), device=slot.id,
            kind="cpu",
        )
        for number, slot in enumerate(slots[:count])
    ]  # fmt: skip


def _gpu_worker(gpu: Gpu) -> Worker:
    name = f"gpu{gpu.index}" if gpu.mig is None else f"gpu{gpu.index}-mig{gpu.mig}"
    return Worker(worker_id=name, gpu_id=gpu.number, device=gpu.uuid, kind="cuda")


def _words(text: str) -> list[str]:
    """Return the ids of a comma-separated list, each well-formed and there once."""
    words = [word.strip() for word in text.split(",")]
    if words == [""]:
        raise UsageError("--gpus names no device", hint="leave it out for all of them; " + _HINT)
    for word in words:
        if not _ID.fullmatch(word):
            raise UsageError(f"--gpus {text!r}: {word!r} is no id of a GPU", hint=_HINT)
        if words.count(word) > 1:
            raise UsageError(f"--gpus {text!r} names {word} twice", hint=_HINT)
    return words


def _named_gpus(words: Sequence[str]) -> tuple[list[Worker], list[str]]:
    everything, why_none = usable_gpus({})
    for gpu in all_gpus({}, measured=False)[0]:
        if gpu.problem == NO_MIG_DEVICE and any(gpu.is_named(word) for word in words):
            raise UsageError(f"--gpus {','.join(words)}: {gpu.complaint}")
    if not everything:
        note = (
            f"{why_none}: the workers of {', '.join(words)} are prepared, and do not train"
            " before a driver answers and `init-fleet` is run again"
        )
        return [_unknown(word) for word in words], [note]
    visible, _ = usable_gpus()
    taken: dict[str, str] = {}
    for word in words:
        gpu = _matching_gpu(word, everything)
        if gpu not in visible:
            mask = os.environ.get(MASK, "")
            indices = ", ".join(other.number for other in visible)
            raise UsageError(
                f"--gpus {word}: {gpu.name} {gpu.uuid} is outside {MASK}={mask}",
                hint=f"name one of {indices or 'none'}, or change {MASK}",
            )
        if gpu.uuid in taken:
            raise UsageError(f"--gpus names GPU {gpu.number} twice: {taken[gpu.uuid]} and {word}")
        taken[gpu.uuid] = word
    return [_gpu_worker(gpu) for gpu in everything if gpu.uuid in taken], []


def _matching_gpu(word: str, everything: Sequence[Gpu]) -> Gpu:
    """Return the GPU that `word` names: an index, or a UUID or the beginning of one.

    Raises:
        UsageError: there is none, there are several, or it is in MIG mode and runs nothing itself.
    """
    if parts := mig_devices_of(word, everything):
        raise UsageError(
            f"--gpus {word}: GPU {parts[0].index} is in MIG mode, where only its MIG devices run"
            " anything",
            hint="name them: --gpus "
            + ",".join(gpu.number for gpu in parts)
            + f" ({', '.join(f'{gpu.number} is {gpu.name} {gpu.uuid}' for gpu in parts)})",
        )
    matching = [gpu for gpu in everything if gpu.is_named(word)]
    if len(matching) == 1:
        return matching[0]
    several = ", ".join(gpu.number for gpu in matching)
    raise UsageError(
        f"--gpus {word}: "
        + (f"{word} may be any of {several}" if several else f"there is no {word}"),
        hint=f"there are {', '.join(f'{gpu.number} ({gpu.uuid})' for gpu in everything)}",
    )


def _unknown(word: str) -> Worker:
    """Return the worker of a GPU that no driver shows, named after what was typed."""
    stem = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
    name = (
        f"gpu{word.replace(':', '-mig')}" if word[0].isdigit() else checked_id(stem[:40].strip("-"))
    )
    return Worker(worker_id=name, gpu_id=word, kind="cuda")


def device_users(uuids: Sequence[str]) -> list[str]:
    """Return a line for each of these devices that computes for others, or does not answer."""
    lines = []
    for gpu in all_gpus()[0] if uuids else ():
        if gpu.problem and (gpu.uuid in uuids or not gpu.uuid):
            lines.append(gpu.complaint)
        elif gpu.processes and gpu.uuid in uuids:
            users = ", ".join(f"pid {pid}" for pid, _ in gpu.processes[:4])
            lines.append(f"GPU {gpu.number} is used by {users} ({gpu.used_mb:.0f} MiB)")
    return lines


PYTHON_FROM = (3, 10)
TORCH_FROM, TORCH_TO = (2, 9), (2, 13)
"""The versions of pyproject.toml; a test compares the two."""


class ProfileChoice(BaseModel):
    """The document that `prepare.py --choose` prints."""

    profile: str
    device: Literal["cpu", "cuda"]
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts. Memory in MiB."""

    gpus: Sequence[Gpu]
    why_no_gpu: str
    """Empty where there is one to use."""
    cuda_version: str | None
    """The newest that the driver can run."""
    cpu_lanes: int
    memory_mb: int | None
    choice: ProfileChoice | None
    why_no_choice: str
    device_problem: str
    """Why the chosen profile has no device here; empty when it has."""

    @property
    def gpu(self) -> Gpu | None:
        """The first that may be used."""
        return next((gpu for gpu in self.gpus if gpu.visible and not gpu.problem), None)

    @property
    def gpu_ready(self) -> bool:
        """Return whether trainings run on a GPU here."""
        return self.choice is not None and self.choice.device == "cuda" and not self.device_problem


def inspect_machine(root: Path) -> Machine:
    """Return the facts of this machine; prepare.py of `root`, else ours, chooses the profile."""
    gpus, why_none = all_gpus()
    choice, why_no_choice, device_problem = None, "", ""
    try:
        choice = choose_profile(root)
        engine.devices(choice.device)
    except LaunchError as error:
        why_no_choice = error.problem
    except LeaseError as error:
        device_problem = error.problem
    return Machine(
        gpus=gpus,
        why_no_gpu=why_none or usable_gpus()[1],
        cuda_version=cuda_version(),
        cpu_lanes=len(engine.cpu_slots()),
        memory_mb=psutil.virtual_memory().total >> 20,
        choice=choice,
        why_no_choice=why_no_choice,
        device_problem=device_problem,
    )


def choose_profile(root: Path) -> ProfileChoice:
    """Return the profile that `auto` means on this machine.

    Raises:
        LaunchError: there is no prepare.py that can tell, or it fails; with its own words.
    """
    scripts = (folder / SCRIPT for folder in (root, source_folder()))
    script = next((path for path in scripts if has_option(path, "--choose")), None)
    if script is None:
        raise LaunchError(f"no {SCRIPT} of ours in {root}", hint="work from a clone of the project")
    ended = program.run(
        [sys.executable, str(script), "--choose"],
        cwd=script.parent,
        environment={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout_s=TIMEOUT_S,
    )
    if ended.exit_code == 0:
        with suppress(ValidationError):
            return ProfileChoice.model_validate_json(ended.out)
    problem = ended.last_words().removeprefix(f"{SCRIPT}: ")
    raise LaunchError(problem, hint=f"run {sys.executable} {script} --choose")


def python_problem() -> str:
    """Return what is wrong with this Python; empty when nothing is."""
    if sys.version_info[:2] >= PYTHON_FROM:
        return ""
    return f"Python {platform.python_version()} is older than {_dotted(PYTHON_FROM)}"


def torch_problem() -> str:
    """Return what is wrong with the installed torch; empty when nothing is. Imports nothing."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and TORCH_FROM <= tuple(map(int, numbers.groups())) <= TORCH_TO:
        return ""
    return f"{version} is not from {_dotted(TORCH_FROM)} to {_dotted(TORCH_TO)}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
