"""Data and tokenizer of a repository, made by its own prepare.py and by nothing else.

Our prepare.py is told by its options from any other: one that we do not know is run as it is,
since a script that ignores an option would make something else than was asked for.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.run_command import TrainingCommand, script_command
from autohypothesis.engine.task import Task
from autohypothesis.errors import LaunchError, UsageError

SCRIPT = "prepare.py"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What prepare.py is asked for; None leaves the choice to it."""

    profile: str | None = None
    seq_len: int | None = None
    source: str | None = None
    cache: Path | None = None

    @property
    def words(self) -> list[str]:
        given = {
            "--profile": self.profile, "--seq-len": self.seq_len, "--source": self.source,
            "--cache-dir": self.cache,
        }  # fmt: skip
        return [word for name, value in given.items() if value is not None
                for word in (name, str(value))]  # fmt: skip


def takes(script: Path, option: str) -> bool:
    """Whether the script at `script` has `option`: read from its text, since asking would run it.

    Without `--locate` it is no prepare.py of ours.
    """
    try:
        return f'"{option}"'.encode() in script.read_bytes()
    except OSError:
        return False


def find_inputs(
    task: Task, root: Path, pins: Mapping[str, str] | None = None
) -> Inputs | LaunchError:
    """The inputs of `task`, or why one of them cannot be located. `pins`: as `locate_inputs`."""
    try:
        return locate_inputs(task, root, root, os.environ, pins=pins)
    except LaunchError as error:
        return error


def makes_inputs(task: Task) -> bool:
    """Whether prepare.py is what the inputs of `task` come from."""
    return any(SCRIPT in one.locate for one in task.inputs)


def run_prepare(root: Path, wanted: Wanted | None = None) -> None:
    """Run prepare.py in `root`, what it prints going to stderr.

    Raises:
        UsageError: it is somebody else's, and options were asked for.
        LaunchError: it is not there, or it failed.
    """
    words, script = (wanted or Wanted()).words, root / SCRIPT
    ours = takes(script, "--locate")
    if words and not ours:
        why = "is not ours" if script.is_file() else "is not there"
        raise UsageError(
            f"{script} {why}, and takes no {', '.join(words[::2])}",
            hint="leave the options out; a script of your own is then run as it is",
        )
    if not script.is_file():
        raise LaunchError(f"there is no {script}", hint="name a repository that has one")
    command = (
        TrainingCommand((sys.executable, SCRIPT))
        if ours
        else script_command(SCRIPT, root, os.environ)
    )
    said = [*command.words, *words]
    environment = {**os.environ, **command.environment}
    ended = subprocess.run(
        said, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    if ended.returncode:
        raise LaunchError(
            f"the data could not be prepared: {SCRIPT} ended with {ended.returncode}",
            hint=f"run it alone: cd {shlex.quote(str(root))} && {shlex.join(said)}",
        )
