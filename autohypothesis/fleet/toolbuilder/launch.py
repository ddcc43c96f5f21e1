"""Runs a helper script: research/ is read-only to it, its time is limited, and all of it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autohypothesis import sandbox
from autohypothesis.engine import program
from autohypothesis.engine.environment import INHERITED, THREAD_VARIABLES
from autohypothesis.errors import ToolError
from autohypothesis.fleet.toolbuilder import guard


class Script(NamedTuple):
    """A script file and the SHA-256 of the content that may be run."""

    path: Path
    sha256: str


def run_script(
    script: Script,
    arguments: Sequence[str],
    *,
    read_only: Sequence[Path],
    timeout_s: float,
    cwd: Path,
    capture: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> program.ProgramEnd:
    """Run a helper script with this Python, behind the guard and in the sandbox.

    Args:
        read_only: folders that it may not change.
        capture: without it the script prints where this process prints.

    Raises:
        ToolError: it cannot be started, or prints more than `program.OUT_LIMIT`.
    """
    folders = [path.absolute() for path in read_only if path.exists()]
    protected = os.pathsep.join(map(str, folders))
    words = [sys.executable, guard.__file__, script.sha256, protected, str(script.path)]
    return run_command(
        [*words, *arguments],
        timeout_s=timeout_s,
        confined=_confined(script, folders, cwd.absolute()),
        cwd=cwd,
        environment=_environment(),
        capture=capture,
        cancelled=cancelled,
    )


def _confined(script: Script, read_only: Sequence[Path], cwd: Path) -> program.Bound:
    """Grant reading the disk without keys and git, and writing to `cwd`."""
    repositories = [folder / ".git" for one in read_only for folder in (one, one.parent)]
    inside = any(cwd == folder or folder in cwd.parents for folder in read_only)
    granted = sandbox.Confinement(
        read=(Path("/"), script.path, Path(guard.__file__), *read_only, cwd),
        write=() if inside else (cwd,),
        hidden=(*sandbox.existing(repositories), *sandbox.secret_places()),
        protected=tuple(folder for folder in read_only if cwd in folder.parents),
    )
    return granted, sandbox.best_kind()


def run_command(
    words: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    capture: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
    confined: program.Bound | None = None,
) -> program.ProgramEnd:
    """Run a command, which survives neither this call nor this process.

    Raises:
        ToolError: it cannot be started, or prints more than `program.OUT_LIMIT`.
    """
    try:
        ended = program.run(
            words, cwd=cwd, environment=environment, timeout_s=timeout_s,
            stdin=stdin, capture=capture, cancelled=cancelled, confined=confined,
        )  # fmt: skip
    except OSError as error:
        raise ToolError(
            f"{words[0]} does not start: {error}", hint=f"try `{words[0]}` yourself"
        ) from error
    if ended.overflow:
        raise ToolError(f"{words[-1]} prints more than {program.OUT_LIMIT:,} bytes")
    return ended


def _environment() -> dict[str, str]:
    """Return the variables that trainings inherit, without a GPU, which trainings need."""
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    return {
        **inherited,
        "HOME": os.path.expanduser("~"),
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
    }
