"""`check-hardware`: the machine and the profile that fits it, as published scripts print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from autohypothesis.commands.app import Repo
from autohypothesis.commands.common import print_json, remark, repository_path

if TYPE_CHECKING:
    from autohypothesis.commands.doctor import Check
    from autohypothesis.fleet.roster.devices import Machine


def register(app: typer.Typer) -> None:
    app.command("check-hardware")(check_hardware)


def check_hardware(context: typer.Context, repo: Repo = None) -> None:
    """Print the machine as JSON, and on stderr which profile fits it and why; exit 1 if none runs.

    `ready` is 1 when trainings of that profile can run here, on a CPU too; `gpu_ready` when they
    run on a GPU. `doctor` says more. Example: `orchestrator.py check-hardware 2>/dev/null`
    """
    from autohypothesis.commands.doctor import machine_checks
    from autohypothesis.fleet.roster.devices import inspect_machine

    machine = inspect_machine(repository_path(context, repo))
    checks = list(machine_checks(machine))
    missing = [check for check in checks if check.verdict == "missing"]
    print_json(_document(machine, missing))
    _summary(machine, [check for check in checks if check.verdict != "ok"], ready=not missing)
    raise typer.Exit(1 if missing else 0)


def _document(machine: Machine, missing: list[Check]) -> dict[str, Any]:
    """The published keys first, then ours. Yes and no are 1 and 0."""
    from autohypothesis.fleet.roster.devices import python_problem, torch_problem, uv_path

    gpu, choice = machine.gpu, machine.choice
    return {
        "gpu_name": gpu.name if gpu else None,
        "vram_mb": round(gpu.memory_mb) if gpu else None,
        "cuda_version": machine.cuda_version,
        "python_ok": int(not python_problem()),
        "uv_ok": int(uv_path() is not None),
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
