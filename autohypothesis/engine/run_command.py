"""Which command trains: the task's own, else what the repository is set up for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autohypothesis.engine.task import Task
from autohypothesis.errors import TaskError

_OURS = ("python", "python3")
_NOTHING = ("true",)
"""What runs where there is nothing to run: the shim holds the device for the scorer alone."""


@dataclass(frozen=True)
class TrainingCommand:
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it needs beside the training's own."""
    python: str | None = None
    """The interpreter whose distributions are watched; None when it cannot be known."""


def training_command(task: Task, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """The command of `task` in the repository at `root`.

    `run.command`, where `python` means the Python of this process; else nothing at all where a
    program scores the artifacts as they are; else `uv run` where there is a
    `uv.lock` and uv in the PATH of `environment`; else the Python in `.venv`; else this one.

    Raises:
        TaskError: there is no command, and no single script to run.
    """
    if task.run.command is not None:
        return _as_said(task.run.command, root, environment)
    if task.scorer.type == "command":
        return TrainingCommand(_NOTHING)
    return script_command(_script(task), root, environment)


def script_command(script: str, root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    """How the repository at `root` runs its own script: `uv run`, its .venv, or this Python."""
    venv = _venv_python(root)
    uv = shutil.which("uv", path=environment.get("PATH", ""))
    if uv is not None and (root / "uv.lock").is_file():
        return TrainingCommand((uv, "run", script), _uv_environment(root), venv)
    python = venv or sys.executable
    return TrainingCommand((python, script), {}, python)


def resolved(words: Sequence[str], root: Path) -> tuple[str, ...]:
    """`words` with `python` as the Python of this process, and `.venv/...` as the root's own:
    a worktree has none."""
    first = words[0]
    if first in _OURS:
        first = sys.executable
    elif first.removeprefix("./").startswith(".venv/"):
        first = str(root / first)
    return (first, *words[1:])


def _as_said(command: Sequence[str], root: Path, environment: Mapping[str, str]) -> TrainingCommand:
    words = resolved(command, root)
    if Path(words[0]).name == "uv":
        return TrainingCommand(words, _uv_environment(root), _venv_python(root))
    is_python = Path(words[0]).name.startswith("python")
    python = shutil.which(words[0], path=environment.get("PATH", "")) if is_python else None
    return TrainingCommand(words, {}, python or _venv_python(root))


def _script(task: Task) -> str:
    """The one artifact that is a Python file, as seen from the folder that the run starts in."""
    scripts = [path for path in task.artifacts if path.endswith(".py") and "*" not in path]
    if len(scripts) != 1:
        raise TaskError(
            f"task {task.id} has no run.command, and {len(scripts)} of its artifacts are scripts",
            hint=f"set run.command in {task.source or 'task.yaml'}",
        )
    return os.path.relpath(scripts[0], task.run.cwd)


def _venv_python(root: Path) -> str | None:
    python = root / ".venv" / "bin" / "python"
    return str(python) if python.exists() else None


def _uv_environment(root: Path) -> dict[str, str]:
    """The root's environment, as it is: a worktree must get none of its own, nor change this."""
    return {"UV_PROJECT_ENVIRONMENT": str(root / ".venv"), "UV_NO_SYNC": "1"}
