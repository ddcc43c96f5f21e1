"""`doctor` and `check-hardware`: what this machine can do, what is missing, and its remedy."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from autohypothesis.commands.app import HERE, Json, Repo, app
from autohypothesis.commands.common import out, print_json, remark
from autohypothesis.errors import (
    AutohypothesisError,
    FleetError,
    GitError,
    LaunchError,
    LeaseError,
    RecordError,
    UnsupportedSystemError,
)

if TYPE_CHECKING:
    from autohypothesis.engine.gpus import Gpu
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.devices import Machine

Verdict = Literal["ok", "warning", "missing"]
STYLE = {"ok": "green", "warning": "yellow", "missing": "red"}
LOW_DISK_GB = 5.0
LIBRARIES = ("pydantic", "pyarrow", "optuna", "tiktoken", "rustbpe")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: `hint` is the command that mends what is not ok."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f"; {self.hint}" if self.hint else "")


@app.command("doctor")
def doctor(repo: Repo = HERE, as_json: Json = False) -> None:
    """Check this machine and this repository; exit 1 when something needed is missing.

    Data that `up` makes by itself is a warning only.
    Example: `orchestrator.py doctor --json`
    """
    from rich.markup import escape

    checks = every_check(repo)
    missing = any(check.verdict == "missing" for check in checks)
    if as_json:
        print_json({"ready": not missing, "checks": [asdict(check) for check in checks]})
    for check in () if as_json else checks:
        mark = f"[{STYLE[check.verdict]}]{check.verdict:>7}[/]"
        hint = f"; [bold]{escape(check.hint)}[/]" if check.hint else ""
        out().print(f"{mark}  {check.name}: {escape(check.detail)}{hint}", soft_wrap=True)
    if not as_json and not missing:
        remark("next: python orchestrator.py up --hours 8, or run-loop for one device")
    raise typer.Exit(1 if missing else 0)


@app.command("check-hardware")
def check_hardware(repo: Repo = HERE) -> None:
    """Print the machine as JSON, for scripts; `doctor` checks the same and more, for people.

    On stderr stands which profile fits and why; exits 1 if none runs. `ready` is 1 when trainings
    of that profile can run here, on a CPU too; `gpu_ready` when they run on a GPU.
    Example: `orchestrator.py check-hardware 2>/dev/null`
    """
    from autohypothesis.fleet.roster.devices import inspect_machine

    machine = inspect_machine(repo)
    checks = machine_checks(machine)
    missing = [check for check in checks if check.verdict == "missing"]
    print_json(_document(machine, missing))
    if (choice := machine.choice) is not None:
        remark(f"profile {choice.profile}: {choice.reason}", style="bold")
    gpu = machine.gpu
    seen = f"{gpu.name}, {gpu.memory_mb:,.0f} MiB" if gpu else f"no GPU: {machine.why_no_gpu}"
    remark(f"{seen}; {machine.cpu_lanes} CPU lanes, {machine.memory_mb or 0:,} MiB of memory")
    for check in checks:
        if check.verdict != "ok":
            remark(f"{check.verdict}: {check}", style=STYLE[check.verdict])
    remark("not ready" if missing else "next: python orchestrator.py setup")
    raise typer.Exit(1 if missing else 0)


def _document(machine: Machine, missing: list[Check]) -> dict[str, Any]:
    """Return the published keys first, then ours. Yes and no are 1 and 0."""
    from autohypothesis.fleet.roster.devices import python_problem, torch_problem

    gpu, choice = machine.gpu, machine.choice
    return {
        "gpu_name": gpu.name if gpu else None,
        "vram_mb": round(gpu.memory_mb) if gpu else None,
        "cuda_version": machine.cuda_version,
        "python_ok": int(not python_problem()),
        "uv_ok": int(shutil.which("uv") is not None),
        "ready": int(not missing),
        "gpu_ready": int(machine.gpu_ready),
        "torch_ok": int(not torch_problem()),
        "profile": choice.profile if choice else None,
        "profile_device": choice.device if choice else None,
        "profile_reason": choice.reason if choice else machine.why_no_choice,
        "gpus": [
            {"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid,
             "vram_mb": round(gpu.memory_mb), "visible": int(gpu.visible),
             "problem": gpu.problem or None,
             **({} if gpu.mig is None else {"mig": gpu.mig, "parent_uuid": gpu.parent})}
            for gpu in machine.gpus
        ],
        "cpu_lanes": machine.cpu_lanes,
        "memory_mb": machine.memory_mb,
        "problems": [f"{check.name}: {check.detail}" for check in missing],
    }  # fmt: skip


def require(checks: Sequence[Check]) -> None:
    """Print warnings.

    Raises:
        FleetError: something is missing; it names all of it, and the first command that helps.
    """
    for check in checks:
        if check.verdict == "warning":
            remark(f"note: {check}")
    if missing := [check for check in checks if check.verdict == "missing"]:
        raise FleetError(
            "this machine is not ready: "
            + "; ".join(f"{check.name}: {check.detail}" for check in missing),
            hint=next((c.hint for c in missing if c.hint), "python orchestrator.py doctor"),
        )


def every_check(path: Path) -> list[Check]:
    from autohypothesis.fleet.roster.devices import inspect_machine

    machine = inspect_machine(path)
    return [*machine_checks(machine), _sandbox(machine), _disk(path), *_repository(path)]


# ── the machine, whatever the repository ────────────────────────────────────────────────────


def machine_checks(machine: Machine) -> list[Check]:
    """Check system, programs, libraries, devices, and the profile that fits."""
    return [
        *_programs(), *_libraries(), *map(_gpu, machine.gpus), *_devices(machine),
        _profile(machine), _lock_folder(),
    ]  # fmt: skip


def _needed(name: str, problem: str, hint: str, detail: str) -> Check:
    """Return `detail`, or the problem of what is needed."""
    return Check(name, "missing", problem, hint) if problem else Check(name, "ok", detail)


def _programs() -> Iterator[Check]:
    from autohypothesis.fleet.roster.devices import python_problem
    from autohypothesis.system import require_supported

    try:
        require_supported()
        yield Check("system", "ok", f"{platform.system()} {platform.release()}")
    except UnsupportedSystemError as error:
        yield Check("system", "missing", error.problem, error.hint)
    problem = python_problem()
    yield _needed(
        "python", problem and f"{problem}, at {sys.executable}",
        "make the environment with a newer one: PYTHON=python3.11 make venv",
        f"{platform.python_version()} at {sys.executable}",
    )  # fmt: skip
    git = shutil.which("git")
    yield _needed("git", "" if git else "not in PATH", "install git 2.34 or newer", git or "")
    yield Check("uv", "ok", shutil.which("uv") or "not installed; not needed, make does the same")


def _libraries() -> Iterator[Check]:
    from autohypothesis.fleet.roster.devices import torch_problem

    problems = dict.fromkeys(LIBRARIES, "")
    for name, problem in {"torch": torch_problem(), **problems}.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version, problem = "", problem or "not installed"
        yield _needed(name, problem, "run `make venv`", version)


def _gpu(gpu: Gpu) -> Check:
    """Describe a GPU, and foreign processes on it."""
    name = f"gpu {gpu.number}"
    if gpu.problem:
        return Check(name, "warning", gpu.problem, "see `nvidia-smi`")
    details = [f"{gpu.name}, {gpu.memory_mb / 1024:.0f} GB, {gpu.uuid}"]
    if not gpu.visible:
        details.append("outside CUDA_VISIBLE_DEVICES")
    if gpu.processes:
        details.append(f"used by pid {', '.join(str(pid) for pid, _ in gpu.processes)}")
    if gpu.throttle:
        details.append(f"slowed down: {', '.join(gpu.throttle)}")
    detail = "; ".join(details)
    if gpu.processes:
        return Check(name, "warning", detail, "end them, or leave it out: up --gpus LIST")
    if gpu.throttle:
        return Check(name, "warning", detail, "look at power and cooling: nvidia-smi -q")
    return Check(name, "ok", detail)


def _devices(machine: Machine) -> Iterator[Check]:
    from autohypothesis.engine.devices import cpu_slots

    if machine.why_no_gpu:
        yield Check("gpu", "ok", f"none to use: {machine.why_no_gpu}")
    cores = [slot.cores[0] for slot in cpu_slots() if slot.cores]
    yield Check("cpu lanes", "ok", f"{len(cores)}, on cores {', '.join(map(str, cores))}")


def _profile(machine: Machine) -> Check:
    """Check which profile `auto` is here, and whether its device works."""
    choice = machine.choice
    if choice is None:
        return Check(
            "profile", "missing", f"auto is not known: {machine.why_no_choice}",
            "choose one: python prepare.py --profile cpu",
        )  # fmt: skip
    if machine.device_problem:
        return Check(
            "profile", "missing",
            f"auto is {choice.profile} ({choice.reason}), and {machine.device_problem}",
            "see `nvidia-smi`, or take the CPU on purpose: python prepare.py --profile cpu",
        )  # fmt: skip
    detail = f"auto is {choice.profile}: {choice.reason}"
    if machine.gpu is not None and choice.device == "cpu":
        detail = f"{detail}; {machine.gpu.name} is left unused"
        hint = "install a torch for it: TORCH_INDEX=URL make venv"
        return Check("profile", "warning", detail, hint)
    return Check("profile", "ok", detail)


def _lock_folder() -> Check:
    from autohypothesis.engine.devices import lock_folder

    try:
        folder = lock_folder()
    except LeaseError as error:
        return Check("lock folder", "missing", error.problem, error.hint)
    if folder.fallback is None:
        return Check("lock folder", "ok", folder.path)
    return Check(
        "lock folder", "warning",
        f"{folder.path}, where other users' leases are not seen ({folder.fallback})",
        "ask an administrator for `install -d -m 1777 /run/lock/autohypothesis`",
    )  # fmt: skip


def _sandbox(machine: Machine) -> Check:
    """Check for the best sandbox in which torch works; a weaker one is a warning with its fix."""
    from autohypothesis import confine
    from autohypothesis.engine.program import trials

    bubblewrap, landlock = trials(gpus=bool(machine.gpus))
    if not bubblewrap.problem:
        inside = "with Landlock inside" if confine.landlock_abi() else "no Landlock in this kernel"
        return Check("sandbox", "ok", f"bubblewrap, {inside}; {bubblewrap.worked} works in it")
    if not landlock.problem:
        detail = f"Landlock alone, {landlock.worked} works in it; {bubblewrap.problem}"
    else:
        detail = f"none, so runs are not attested; {bubblewrap.problem}; {landlock.problem}"
    return Check("sandbox", "warning", detail, bubblewrap.fix)


# ── the repository ──────────────────────────────────────────────────────────────────────────


def _disk(path: Path) -> Check:
    free = shutil.disk_usage(path if path.exists() else Path.cwd()).free / 1e9
    if free >= LOW_DISK_GB:
        return Check("disk", "ok", f"{free:.1f} GB free")
    hint = "see what searches that are over left: python orchestrator.py prune --dry-run"
    return Check("disk", "warning", f"{free:.1f} GB free", hint)


def _repository(path: Path) -> Iterator[Check]:
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.live.place import find_move

    try:
        project = Project.open(path)
    except AutohypothesisError as error:
        yield Check("repository", "missing", error.problem, error.hint)
        return
    if move := find_move(project.repository, project.layout):
        yield Check("repository", "warning", str(move), "python orchestrator.py up puts that right")
    else:
        yield Check("repository", "ok", str(project.layout.root))
    yield Check("task", "ok", f"{project.task.id}: {project.task.artifact_words}")
    yield _checkout(project)
    yield from _charter(project)
    yield from _data(project)
    yield from _records(project)


def _checkout(project: Project) -> Check:
    """Check which files of the user's folder runs lack."""
    from autohypothesis.engine.untracked_files import find_missing_files
    from autohypothesis.plain import plain_line
    from autohypothesis.records.git_export import refuse_missing

    try:
        head = project.repository.head()
        project.refuse_without_artifacts(head)
        refuse_missing(project.repository, head)
        lacking = find_missing_files(project.repository, project.task)
    except GitError as error:
        return Check("checkout", "missing", error.problem, error.hint)
    if words := lacking.problem():
        line = lacking.remedy()
        hint = f"if a run needs one, add its line: {line}" if line else "commit what a run needs"
        return Check("checkout", "warning", plain_line(words), plain_line(hint))
    return Check("checkout", "ok", "a run has all files of this folder")


def _charter(project: Project) -> Iterator[Check]:
    """Check that the steering can be read, and that the limits of the prose are held."""
    from autohypothesis.fleet.live.steering import SteeringFiles
    from autohypothesis.fleet.live.unbound_limits import unbound_limits

    layout = project.layout
    files = SteeringFiles(layout)
    files.combined()
    for problem in files.problems():
        yield Check("steering", "warning", problem, "mend the block: docs/program-md.md")
    for unbound in unbound_limits(layout):
        yield Check("charter", "warning", unbound.limit, unbound.cure)


def _records(project: Project) -> Iterator[Check]:
    """Name a damaged manifest, and what the last sync could not use, a line for each kind."""
    from autohypothesis.fleet.live.presence import read_manifest
    from autohypothesis.plain import plain_line
    from autohypothesis.records.files import read_object
    from autohypothesis.records.problems import LIMIT, entries_in, problem_lines

    layout = project.layout
    try:
        read_manifest(layout)
    except RecordError as error:
        aside = shlex.join(["mv", str(layout.manifest), f"{layout.manifest}.damaged"])
        again = f"python orchestrator.py init-fleet --tag {project.active()}"
        yield Check("manifest", "missing", plain_line(error.problem), f"{aside} && {again}")
    manifest = str(layout.manifest.relative_to(layout.root))
    found = entries_in(read_object(layout.problems, LIMIT))
    for line in problem_lines(each for each in found if each.path != manifest):
        yield Check("records", "warning", plain_line(line), "python orchestrator.py sync")


def _data(project: Project) -> Iterator[Check]:
    from autohypothesis.engine.devices import devices
    from autohypothesis.engine.inputs import SCRIPT, locate_inputs, makes_inputs

    root = project.layout.root
    try:
        inputs = locate_inputs(project.task, root, root, os.environ)
        for name, report in inputs.reports.items():
            yield Check("data", "ok", f"profile {report.profile or '–'}, {name}={report.path}")
        if inputs.device:
            working = devices("cuda" if inputs.device == "cuda" else "cpu")
            yield Check("device for it", "ok", f"{len(working)} x {working[0].name}")
    except LaunchError as error:
        if makes_inputs(project.task) and (root / SCRIPT).is_file():
            problem = error.problem.partition("; run: ")[0]  # its own advice is a part of ours
            hint = "python orchestrator.py setup; `up` does it as well"
            yield Check("data", "warning", problem, hint)
        else:
            yield Check("data", "missing", error.problem, error.hint)
    except LeaseError as error:
        yield Check("data", "missing", error.problem, error.hint)
