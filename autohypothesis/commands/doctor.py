"""`doctor` and `check-hardware`: what this machine can do, what is missing, and its remedy."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from autohypothesis.commands.app import Json, Repo
from autohypothesis.commands.common import out, print_json, remark, repository_path
from autohypothesis.errors import FleetError

if TYPE_CHECKING:
    from autohypothesis.engine.gpus import Gpu
    from autohypothesis.engine.project import Project
    from autohypothesis.fleet.roster.devices import Machine


Verdict = Literal["ok", "warning", "missing"]
STYLE = {"ok": "green", "warning": "yellow", "missing": "red"}
LOW_DISK_GB = 5.0
PYTHON_HINT = "make the environment with a newer one: PYTHON=python3.11 make venv"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: `hint` is the command that mends what is not ok."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f"; {self.hint}" if self.hint else "")


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
    app.command("check-hardware")(check_hardware)


def doctor(context: typer.Context, repo: Repo = None, as_json: Json = False) -> None:
    """Check this machine and this repository; exit 1 when something needed is missing.

    Example: `orchestrator.py doctor --json`
    """
    from rich.markup import escape

    path = repository_path(context, repo)
    checks = [check for ask in CHECKS for check in ask(path)]
    missing = any(check.verdict == "missing" for check in checks)
    if as_json:
        print_json({"ready": not missing, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            mark = f"[{STYLE[check.verdict]}]{check.verdict:>7}[/]"
            hint = f"; [bold]{escape(check.hint)}[/]" if check.hint else ""
            out().print(f"{mark}  {check.name}: {escape(check.detail)}{hint}", soft_wrap=True)
    raise typer.Exit(1 if missing else 0)


def require(checks: Sequence[Check]) -> None:
    """Print warnings.

    Raises:
        FleetError: something is missing; it names all of it, and the first command that helps.
    """
    for check in (check for check in checks if check.verdict == "warning"):
        remark(f"note: {check}")
    if missing := [check for check in checks if check.verdict == "missing"]:
        raise FleetError(
            "this machine is not ready: "
            + "; ".join(f"{check.name}: {check.detail}" for check in missing),
            hint=next((one.hint for one in missing if one.hint), "python orchestrator.py doctor"),
        )


def machine_checks(machine: Machine) -> Iterator[Check]:
    """Check the machine, whatever the repository."""
    yield from _system()
    yield from _tools()
    yield from _libraries()
    yield from _devices(machine)
    yield from _profile(machine)
    yield from _locks()


def _machine(path: Path) -> Iterator[Check]:
    from autohypothesis.fleet.roster.devices import inspect_machine

    machine = inspect_machine(path)
    yield from machine_checks(machine)
    yield _sandbox(machine)


def _system() -> Iterator[Check]:
    from autohypothesis.errors import UnsupportedSystemError
    from autohypothesis.fleet.roster.devices import python_problem
    from autohypothesis.system import require_supported

    try:
        require_supported()
        yield Check("system", "ok", f"{platform.system()} {platform.release()}")
    except UnsupportedSystemError as error:
        yield Check("system", "missing", error.problem, error.hint)
    if problem := python_problem():
        yield Check("python", "missing", f"{problem}, at {sys.executable}", PYTHON_HINT)
    else:
        yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _tools() -> Iterator[Check]:
    git = shutil.which("git")
    yield (
        Check("git", "ok", git)
        if git
        else Check("git", "missing", "not in PATH", "install git 2.34 or newer")
    )
    yield Check("uv", "ok", shutil.which("uv") or "not installed; not needed, make does the same")


def _sandbox(machine: Machine) -> Check:
    """Check for the best sandbox in which torch works; a weaker one is a warning with its fix."""
    from autohypothesis import confine
    from autohypothesis.engine.isolation import trials

    bubblewrap, landlock = trials(gpus=bool(machine.gpus))
    if not bubblewrap.problem:
        inside = "with Landlock inside" if confine.landlock_abi() else "no Landlock in this kernel"
        worked = f"{bubblewrap.worked} works in it"
        return Check("sandbox", "ok", f"bubblewrap, {inside}; {worked}")
    if not landlock.problem:
        detail = f"Landlock alone, {landlock.worked} works in it; {bubblewrap.problem}"
        return Check("sandbox", "warning", detail, bubblewrap.fix)
    detail = f"none, so runs are not attested; {bubblewrap.problem}; {landlock.problem}"
    return Check("sandbox", "warning", detail, bubblewrap.fix)


def _libraries() -> Iterator[Check]:
    from autohypothesis.fleet.roster.devices import torch_problem

    problem = torch_problem()
    yield (
        Check("torch", "missing", problem, "run `make venv`")
        if problem
        else Check("torch", "ok", metadata.version("torch"))
    )
    for name in ("pydantic", "pyarrow", "optuna", "tiktoken", "rustbpe"):
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", "not installed", "run `make venv`")


def _devices(machine: Machine) -> Iterator[Check]:
    from autohypothesis.engine.devices import cpu_slots

    for gpu in machine.gpus:
        yield _gpu(gpu)
    if machine.why_no_gpu:
        yield Check("gpu", "ok", f"none to use: {machine.why_no_gpu}")
    cores = [lane.cores[0] for lane in cpu_slots() if lane.cores]
    yield Check("cpu lanes", "ok", f"{len(cores)}, on cores {', '.join(map(str, cores))}")


def _profile(machine: Machine) -> Iterator[Check]:
    """Check which profile `auto` is here, and whether its device works."""
    choice = machine.choice
    if choice is None:
        yield Check("profile", "missing", f"auto is not known: {machine.why_no_choice}")
    elif machine.device_problem:
        yield Check(
            "profile", "missing",
            f"auto is {choice.profile} ({choice.reason}), and {machine.device_problem}",
            "see `nvidia-smi`, or take the CPU on purpose: python prepare.py --profile cpu",
        )  # fmt: skip
    elif machine.gpu is not None and choice.device == "cpu":
        yield Check(
            "profile", "warning",
            f"auto is {choice.profile}: {choice.reason}; {machine.gpu.name} is left unused",
            "install a torch for it: TORCH_INDEX=URL make venv",
        )  # fmt: skip
    else:
        yield Check("profile", "ok", f"auto is {choice.profile}: {choice.reason}")


def _gpu(gpu: Gpu) -> Check:
    """Describe a GPU, and foreign processes on it."""
    if gpu.problem:
        return Check(f"gpu {gpu.index}", "warning", gpu.problem, "see `nvidia-smi`")
    said = f"{gpu.name}, {gpu.memory_mb / 1024:.0f} GB, {gpu.uuid}"
    notes = [
        *([] if gpu.visible else ["outside CUDA_VISIBLE_DEVICES"]),
        *([f"used by pid {', '.join(str(pid) for pid, _ in gpu.processes)}"]
          if gpu.processes else []),
        *([f"slowed down: {', '.join(gpu.throttle)}"] if gpu.throttle else []),
    ]  # fmt: skip
    verdict: Verdict = "warning" if gpu.processes or gpu.throttle else "ok"
    return Check(f"gpu {gpu.index}", verdict, "; ".join([said, *notes]))


def _locks() -> Iterator[Check]:
    from autohypothesis.engine.devices import lock_folder
    from autohypothesis.errors import LeaseError

    try:
        folder = lock_folder()
    except LeaseError as error:
        yield Check("lock folder", "missing", error.problem, error.hint)
        return
    if folder.fallback is None:
        yield Check("lock folder", "ok", folder.path)
    else:
        yield Check(
            "lock folder", "warning",
            f"{folder.path}, where other users' leases are not seen ({folder.fallback})",
            "ask an administrator for `install -d -m 1777 /run/lock/autohypothesis`",
        )  # fmt: skip


def _disk(path: Path) -> Iterator[Check]:
    free = shutil.disk_usage(path if path.exists() else Path.cwd()).free / 1e9
    verdict: Verdict = "ok" if free >= LOW_DISK_GB else "warning"
    yield Check("disk", verdict, f"{free:.1f} GB free")


def _repository(path: Path) -> Iterator[Check]:
    import os

    from autohypothesis.engine.devices import devices
    from autohypothesis.engine.inputs import locate_inputs
    from autohypothesis.engine.project import Project
    from autohypothesis.errors import AutohypothesisError, LaunchError, LeaseError

    try:
        project = Project.open(path)
    except AutohypothesisError as error:
        yield Check("repository", "missing", error.problem, error.hint)
        return
    root = project.layout.root
    yield Check("repository", "ok", str(root))
    yield Check("task", "ok", f"{project.task.id}: {', '.join(project.task.artifacts)}")
    yield from _checkout(project)
    try:
        inputs = locate_inputs(project.task, root, root, os.environ)
        for name, report in inputs.reports.items():
            yield Check("data", "ok", f"profile {report.profile or '–'}, {name}={report.path}")
        if inputs.device:
            found = devices("cuda" if inputs.device == "cuda" else "cpu")
            yield Check("device for it", "ok", f"{len(found)} x {found[0].name}")
    except (LaunchError, LeaseError) as error:
        yield Check("data", "missing", error.problem, error.hint)


def _checkout(project: Project) -> Iterator[Check]:
    """Check which files of the user's folder runs lack."""
    from autohypothesis.engine.untracked_files import look
    from autohypothesis.errors import GitError
    from autohypothesis.plain import plain_line
    from autohypothesis.records.git_export import refuse_missing

    try:
        refuse_missing(project.repository, project.repository.head())
        missing = look(project.repository, project.task)
    except GitError as error:
        yield Check("checkout", "missing", error.problem, error.hint)
        return
    if words := missing.problem():
        hint = missing.remedy()
        told = f"if a run needs one, add its line: {hint}" if hint else ""
        safe = (plain_line(text) for text in (words, told))
        yield Check("checkout", "warning", *safe)
    else:
        yield Check("checkout", "ok", "a run has all files of this folder")


CHECKS: tuple[Callable[[Path], Iterator[Check]], ...] = (
    _machine, _disk, _repository,
)  # fmt: skip


def check_hardware(context: typer.Context, repo: Repo = None) -> None:
    """Print the machine as JSON, and on stderr which profile fits it and why; exit 1 if none runs.

    `ready` is 1 when trainings of that profile can run here, on a CPU too; `gpu_ready` when they
    run on a GPU. `doctor` says more. Example: `orchestrator.py check-hardware 2>/dev/null`
    """
    from autohypothesis.fleet.roster.devices import inspect_machine

    machine = inspect_machine(repository_path(context, repo))
    checks = list(machine_checks(machine))
    missing = [check for check in checks if check.verdict == "missing"]
    print_json(_document(machine, missing))
    _summary(machine, [check for check in checks if check.verdict != "ok"], ready=not missing)
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
            {"index": one.index, "name": one.name, "uuid": one.uuid,
             "vram_mb": round(one.memory_mb), "visible": int(one.visible),
             "problem": one.problem or None}
            for one in machine.gpus
        ],
        "cpu_lanes": machine.cpu_lanes,
        "memory_mb": machine.memory_mb,
        "problems": [f"{check.name}: {check.detail}" for check in missing],
    }  # fmt: skip


def _summary(machine: Machine, noted: list[Check], *, ready: bool) -> None:
    def say(text: str, style: str = "") -> None:
        remark(text, style=style)

    if (choice := machine.choice) is not None:
        say(f"profile {choice.profile}: {choice.reason}", "bold")
    gpu = machine.gpu
    seen = f"{gpu.name}, {gpu.memory_mb:,.0f} MiB" if gpu else f"no GPU: {machine.why_no_gpu}"
    say(f"{seen}; {machine.cpu_lanes} CPU lanes, {machine.memory_mb or 0:,} MiB of memory")
    for check in noted:
        say(f"{check.verdict}: {check}", "red" if check.verdict == "missing" else "yellow")
    say("next: python orchestrator.py setup" if ready else "not ready")
