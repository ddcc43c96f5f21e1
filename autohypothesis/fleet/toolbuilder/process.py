"""A helper script as a process: research/ is read-only to it, its time is limited, all of it ends.

Also starts the command that builds scripts, under the same limits but without the sandbox: that is
the user's own program.
"""

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
from autohypothesis.fleet.toolbuilder import guard as tool_guard


class Script(NamedTuple):
    """A script file and the hash of what is to be run."""

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
) -> program.Ended:
    """Run a helper script with this Python; `read_only` are the folders that it may not change.

    Without `capture` it prints where this process prints.

    Raises:
        ToolError: it cannot be started, or prints more than `program.OUT_LIMIT`.
    """
    folders = [str(path) for path in read_only if path.exists()]
    guard = (sys.executable, tool_guard.__file__, script.sha256, os.pathsep.join(folders))
    return run_words(
        [*guard, str(script.path), *arguments],
        timeout_s=timeout_s,
        confined=_confined(script, [Path(folder).absolute() for folder in folders], cwd.absolute()),
        cwd=cwd,
        environment=_environment(),
        capture=capture,
        cancelled=cancelled,
    )


def _confined(script: Script, read_only: Sequence[Path], cwd: Path) -> program.Bound:
    """It reads the disk but for keys and git, and writes to the folder that it is called in."""
    gits = [folder / ".git" for one in read_only for folder in (one, one.parent)]
    inside = any(cwd == one or one in cwd.parents for one in read_only)
    granted = sandbox.Confinement(
        read=(Path("/"), script.path, Path(tool_guard.__file__), *read_only, cwd),
        write=() if inside else (cwd,),
        hidden=(*sandbox.existing(gits), *sandbox.secret_places()),
        protected=tuple(one for one in read_only if cwd in one.parents),
    )
    return granted, sandbox.best_kind()


def run_words(
    words: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    capture: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
    confined: program.Bound | None = None,
) -> program.Ended:
    """Run a command. It survives neither this call nor this process.

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
    """The allow-list of trainings, and no GPU: a script must not disturb what trains."""
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
