"""Which devices a fleet works on, and what this machine is: GPUs, CPU slots, Python, profile.

What a user named becomes UUIDs and cores, or an error by name. Nothing here pins, leases or changes
anything. An index is the one that NVML prints; it is turned into a UUID here, once, and the UUID is
what the manifest holds. An inherited mask is a limit: a device outside it is refused, never taken
in silence.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from autohypothesis import system
from autohypothesis.engine import devices as engine
from autohypothesis.engine import program
from autohypothesis.engine.gpus import Gpu, all_gpus, cuda_version, usable_gpus
from autohypothesis.engine.inputs import TIMEOUT_S
from autohypothesis.engine.setup import SCRIPT, source_folder, takes
from autohypothesis.errors import LaunchError, LeaseError, UsageError
from autohypothesis.records.layout import checked_id

MASK = "CUDA_VISIBLE_DEVICES"
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}")
_UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,80}")
_HINT = "name indices as `nvidia-smi -L` prints them, or UUIDs: --gpus 0,1"


@dataclass(frozen=True, slots=True)
class WorkerDevice:
    """One worker's device."""

    worker_id: str
    gpu_id: str
    """As people name it: the index of NVML, or the core of a CPU slot."""
    device: str
    """What is leased: a UUID, or `cpu-<core>`; empty while no driver can tell."""
    kind: Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class DeviceSelection:
    """The devices of a fleet, and what its user should know about them."""

    chosen: Sequence[WorkerDevice]
    notes: Sequence[str] = ()


def choose(
    gpus: str | None = None,
    cpu_workers: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> DeviceSelection:
    """Return the devices for `--gpus` and `--cpu-workers`, each as typed; None: not given.

    With neither, all GPUs inside the inherited mask; on a machine without any NVIDIA device one
    slot per physical core.

    Raises:
        UsageError: an id is malformed, unknown, named twice or outside the mask.
        LeaseError: there is a GPU and its driver does not answer, and none was named.
    """
    environ = os.environ if environ is None else environ
    slots = choose_cpu_slots(cpu_workers) if cpu_workers is not None else []
    if gpus is not None:
        named = _named_gpus(_words(gpus), environ)
        return DeviceSelection([*named.chosen, *slots], named.notes)
    if cpu_workers is not None:
        if not slots:
            raise UsageError("--cpu-workers 0 leaves no worker", hint="leave it out, or name GPUs")
        return DeviceSelection(slots)
    return _everything(environ)


def choose_cpu_slots(count: int) -> list[WorkerDevice]:
    """Return the first `count` CPU slots.

    Raises:
        UsageError: there are fewer.
    """
    slots = engine.cpu_slots()
    if not 0 <= count <= len(slots):
        raise UsageError(
            f"--cpu-workers {count}: this machine has {len(slots)} physical cores to use",
            hint=f"name 1 to {len(slots)}; a lane is one core of its own",
        )
    return [
        WorkerDevice(f"cpu{number}", slot.id.removeprefix("cpu-"), slot.id, "cpu")
        for number, slot in enumerate(slots[:count])
    ]


def _everything(environ: Mapping[str, str]) -> DeviceSelection:
    found, why_none = usable_gpus(environ)
    if found:
        return DeviceSelection([_chosen(gpu) for gpu in sorted(found, key=lambda gpu: gpu.index)])
    try:
        engine.best_kind()
    except LeaseError as error:
        hint = "mend the driver, or name devices: --gpus 0,1 (prepared only) or --cpu-workers N"
        raise LeaseError(error.problem, hint=hint) from error
    slots = choose_cpu_slots(len(engine.cpu_slots()))
    said = f"no GPU ({why_none}): {len(slots)} CPU lanes instead, one per physical core"
    return DeviceSelection(slots, [said])


def _chosen(gpu: Gpu) -> WorkerDevice:
    return WorkerDevice(f"gpu{gpu.index}", str(gpu.index), gpu.uuid, "cuda")


# ── `--gpus` ─────────────────────────────────────────────────────────────────────────────────


def _words(text: str) -> list[str]:
    """Return the ids of a comma-separated list, each well-formed and there once."""
    words = [word.strip() for word in text.split(",")]
    if words == [""]:
        raise UsageError("--gpus names no device", hint="leave it out for all of them; " + _HINT)
    for word in words:
        if not _INDEX.fullmatch(word) and not _UUID.fullmatch(word):
            raise UsageError(f"--gpus {text!r}: {word!r} is no id of a GPU", hint=_HINT)
        if words.count(word) > 1:
            raise UsageError(f"--gpus {text!r} names {word} twice", hint=_HINT)
    return words


def _named_gpus(words: Sequence[str], environ: Mapping[str, str]) -> DeviceSelection:
    everything, why_none = usable_gpus({})
    if not everything:
        return DeviceSelection(
            [_unknown(word) for word in words],
            [
                f"{why_none}: the workers of {', '.join(words)} are prepared, and do not train"
                " before a driver answers and `init-fleet` is run again"
            ],
        )
    visible, _ = usable_gpus(environ)
    taken: dict[str, str] = {}
    for word in words:
        gpu = _matching_gpu(word, everything)
        if gpu not in visible:
            raise UsageError(
                f"--gpus {word}: {gpu.name} {gpu.uuid} is outside {MASK}={environ.get(MASK, '')}",
                hint=f"name one of {_indices(visible) or 'none'}, or change {MASK}",
            )
        if gpu.uuid in taken:
            raise UsageError(f"--gpus names GPU {gpu.index} twice: {taken[gpu.uuid]} and {word}")
        taken[gpu.uuid] = word
    chosen = [_chosen(gpu) for gpu in everything if gpu.uuid in taken]
    return DeviceSelection(chosen)


def _matching_gpu(word: str, everything: Sequence[Gpu]) -> Gpu:
    """Return the GPU that `word` names: an index, or a UUID or the beginning of one."""
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


def _unknown(word: str) -> WorkerDevice:
    """Return a GPU that no driver shows: its worker is named after what was typed."""
    if word.isdigit():
        return WorkerDevice(f"gpu{word}", word, "", "cuda")
    stem = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
    return WorkerDevice(checked_id(stem[:40].strip("-")), word, "", "cuda")


def device_users(uuids: Sequence[str]) -> list[str]:
    """Return a line for each of these devices that computes for others, or does not answer."""
    said = []
    for one in all_gpus()[0] if uuids else ():
        if one.uuid not in uuids and not (one.problem and not one.uuid):
            continue
        if one.problem:
            said.append(f"GPU {one.index} does not answer: {one.problem}")
        elif one.processes:
            who = ", ".join(f"pid {pid}" for pid, _ in one.processes[:4])
            said.append(f"GPU {one.index} is used by {who} ({one.used_mb:.0f} MiB)")
    return said


PYTHON_FROM = (3, 10)
TORCH_FROM, TORCH_TO = (2, 9), (2, 13)
"""As pyproject.toml has them; a test holds the two against each other."""


class ProfileChoice(BaseModel):
    """What `prepare.py --choose` prints."""

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
        """Whether trainings run on a GPU here."""
        return self.choice is not None and self.choice.device == "cuda" and not self.device_problem


def inspect_machine(root: Path) -> Machine:
    """Return the facts of this machine; prepare.py of `root`, else ours, chooses the profile."""
    gpus, why_none = all_gpus()
    why_no_gpu = why_none or usable_gpus()[1]
    choice, why_no_choice = _profile_choice(root, os.environ)
    problem = ""
    if choice is not None:
        try:
            engine.devices(choice.device)
        except LeaseError as error:
            problem = error.problem
    return Machine(
        gpus=gpus,
        why_no_gpu=why_no_gpu,
        cuda_version=cuda_version(),
        cpu_lanes=len(engine.cpu_slots()),
        memory_mb=system.memory_mb(),
        choice=choice,
        why_no_choice=why_no_choice,
        device_problem=problem,
    )


def _profile_choice(root: Path, environ: Mapping[str, str]) -> tuple[ProfileChoice | None, str]:
    try:
        return choose_profile(root, environ), ""
    except LaunchError as error:
        return None, error.problem


def choose_profile(root: Path, environ: Mapping[str, str]) -> ProfileChoice:
    """Return the profile that `auto` means on this machine.

    Raises:
        LaunchError: there is no prepare.py that can tell, or it fails; with its own words.
    """
    scripts = [folder / SCRIPT for folder in (root, source_folder())]
    script = next((one for one in scripts if takes(one, "--choose")), None)
    if script is None:
        raise LaunchError(f"no {SCRIPT} of ours in {root}", hint="work from a clone of the project")
    ended = program.run(
        [sys.executable, str(script), "--choose"],
        cwd=script.parent,
        environment={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout_s=TIMEOUT_S,
    )
    try:
        if ended.exit_code == 0:
            return ProfileChoice.model_validate(json.loads(ended.out))
    except (ValueError, ValidationError):
        pass
    said = ended.last_words().removeprefix(f"{SCRIPT}: ")
    raise LaunchError(said, hint=f"run {sys.executable} {script} --choose")


# ── Python and what it can import ────────────────────────────────────────────────────────────


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
    numbers = version.split("+")[0].split(".")[:2]
    if all(number.isdecimal() for number in numbers) and (
        TORCH_FROM <= tuple(map(int, numbers)) <= TORCH_TO
    ):
        return ""
    return f"{version} is not from {_dotted(TORCH_FROM)} to {_dotted(TORCH_TO)}"


def uv_path() -> str | None:
    return shutil.which("uv")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
