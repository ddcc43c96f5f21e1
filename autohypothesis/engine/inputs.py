"""The data that a training reads: where it is, and what it says about budget and device.

Each input of a task names a program that prints one JSON object. `python prepare.py --locate` is
one: it knows the data, its profile and the hashes that make two machines comparable. Ours is told
by its options from any other, which is run as it is: a script that ignores an option would make
something else than was asked for.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autohypothesis.engine import program
from autohypothesis.engine.environment import INHERITED, TrainingCommand, resolved, script_command
from autohypothesis.engine.program import TaskSandbox, sandbox_kind
from autohypothesis.engine.task import Budget, Input, Task, canonical_hash
from autohypothesis.engine.task_file import has_option
from autohypothesis.errors import LaunchError, UsageError, faults_in
from autohypothesis.records.files import load_or_none
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Manifest

TIMEOUT_S = 60.0
START_ALLOWANCE_S = 60.0
EVALUATION_ALLOWANCE_S = 120.0
_OURS = ("AUTORESEARCH_", "AUTOHYPOTHESIS_")


class InputReport(BaseModel):
    """The answer of a `locate` program. Only `path` must be there."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    path: str
    profile: str = ""
    profile_hash: str = ""
    data_hash: str = ""
    budget: Budget | None = None
    device: str = ""
    """The kind of device that the profile is for: cpu or cuda."""
    start_allowance_s: float | None = None
    evaluation_allowance_s: float | None = None
    held_out: list[str] = []
    """Files and folders below `path` that the scorer reads and no training may."""


@dataclass(frozen=True)
class Inputs:
    """All inputs of a task, located. If several report a value, the first one wins."""

    reports: Mapping[str, InputReport] = field(default_factory=dict)
    """Variable that gets the path -> report."""

    def _first(self, name: str, default: Any) -> Any:
        reported = (getattr(report, name) for report in self.reports.values())
        return next((value for value in reported if value not in (None, "")), default)

    def _joined_hash(self, name: str) -> str:
        """Return one input's hash as it is, so that people can recognise it, else one of all."""
        hashes = [getattr(report, name) for report in self.reports.values()]
        return canonical_hash(hashes) if len(hashes) > 1 else "".join(hashes)

    @property
    def environment(self) -> dict[str, str]:
        return {name: report.path for name, report in self.reports.items()}

    @property
    def data(self) -> tuple[Path, ...]:
        return tuple(Path(report.path) for report in self.reports.values())

    @property
    def held_out(self) -> tuple[Path, ...]:
        return tuple(
            Path(report.path) / name for report in self.reports.values() for name in report.held_out
        )

    @property
    def profile(self) -> str:
        return str(self._first("profile", ""))

    @property
    def profile_hash(self) -> str:
        return self._joined_hash("profile_hash")

    @property
    def data_hash(self) -> str:
        return self._joined_hash("data_hash")

    @property
    def device(self) -> str:
        return str(self._first("device", ""))

    @property
    def start_allowance_s(self) -> float:
        return float(self._first("start_allowance_s", START_ALLOWANCE_S))

    @property
    def evaluation_allowance_s(self) -> float:
        return float(self._first("evaluation_allowance_s", EVALUATION_ALLOWANCE_S))

    def budget(self, task: Task) -> Budget:
        """Return the task's own, else what an input reports, else 300 s of wall clock."""
        budget: Budget = task.run.budget or self._first("budget", Budget())
        return budget


def locate_inputs(
    task: Task,
    checkout: Path,
    root: Path,
    environment: Mapping[str, str],
    *,
    pins: Mapping[str, str] | None = None,
) -> Inputs:
    """Run every `locate` program of `task` in `checkout`.

    Args:
        pins: variable -> folder, known already; None: what the active search began with.

    Raises:
        LaunchError: one fails, or prints something else; it holds the program's own words.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if name in INHERITED or name == "HOME" or name.startswith(_OURS)
    }
    passed |= {**(pinned_inputs(root) if pins is None else pins), "PYTHONDONTWRITEBYTECODE": "1"}
    # Beside each program, in the checkout, lies the candidate, which it may import.
    sandbox = TaskSandbox(Repository(root), task, sandbox_kind(task))
    return Inputs(
        {wanted.env: _located(sandbox, wanted, checkout, passed) for wanted in task.inputs}
    )


def pinned_inputs(root: Path) -> dict[str, str]:
    """Return variable -> folder of the data that the active search began with.

    Data that is prepared since, for another profile say, belongs to the next search.
    """
    manifest = load_or_none(Manifest, Layout(root).manifest)
    return manifest.inputs if manifest else {}


def _located(
    sandbox: TaskSandbox, wanted: Input, checkout: Path, environment: Mapping[str, str]
) -> InputReport:
    command = " ".join(wanted.locate)

    def refused(problem: str) -> LaunchError:
        return LaunchError(problem, hint=f"run `{command}` in {checkout}")

    try:
        ended = program.run(
            resolved(wanted.locate, sandbox.repository.root),
            cwd=checkout / sandbox.task.run.cwd,
            environment=environment,
            timeout_s=TIMEOUT_S,
            confined=sandbox.locate(),
        )
    except OSError as error:
        raise refused(f"`{command}` does not start: {error}") from error
    if ended.exit_code is None:
        raise refused(f"`{command}` {ended.limit(TIMEOUT_S)}")
    if ended.exit_code:
        reason = (ended.err.strip().splitlines() or [f"exit code {ended.exit_code}"])[-1][:300]
        raise refused(f"the data cannot be located: {reason}")
    try:
        report = InputReport.model_validate(_last_object(ended.out.strip()))
    except (ValueError, IndexError, RecursionError) as error:
        first = faults_in(error) if isinstance(error, ValidationError) else error
        raise refused(f"`{command}` printed no report of an input: {first}") from error
    if not Path(report.path).exists():
        raise refused(f"`{command}` names {report.path}, which is not there")
    return report


def _last_object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text.splitlines()[-1])


SCRIPT = "prepare.py"


NO_DOWNLOAD = "--no-download"
"""Option of our prepare.py: only from text that is on this machine."""


def prepare_options(
    profile: str | None = None,
    seq_len: int | None = None,
    source: str | None = None,
    cache: Path | None = None,
) -> list[str]:
    """Return the options of our prepare.py; None leaves a choice to it."""
    options = ("--profile", "--seq-len", "--source", "--cache-dir")
    given = zip(options, (profile, seq_len, source, cache), strict=True)
    return [word for name, value in given if value is not None for word in (name, str(value))]


def find_inputs(
    task: Task, root: Path, pins: Mapping[str, str] | None = None
) -> Inputs | LaunchError:
    """Return the inputs of `task`, or why one cannot be located. `pins`: as `locate_inputs`."""
    try:
        return locate_inputs(task, root, root, os.environ, pins=pins)
    except LaunchError as error:
        return error


def makes_inputs(task: Task) -> bool:
    return any(SCRIPT in source.locate for source in task.inputs)


def run_prepare(root: Path, options: Sequence[str] = ()) -> None:
    """Run prepare.py in `root`, what it prints going to stderr.

    Raises:
        UsageError: it takes none of these options: it is not ours, or older.
        LaunchError: it is not there, or it failed.
    """
    script = root / SCRIPT
    ours = has_option(script, "--locate")
    named = [word for word in options if word.startswith("--")]
    if unknown := [word for word in named if not (ours and has_option(script, word))]:
        why = "is of an earlier version" if ours else "is not ours"
        raise UsageError(
            f"{script} {why if script.is_file() else 'is not there'}, and takes no"
            f" {', '.join(word for word in unknown if word != NO_DOWNLOAD) or '--skip-data'}",
            hint="leave the options out; a script of your own is then run as it is",
        )
    if not script.is_file():
        raise LaunchError(f"there is no {script}", hint="name a repository that has one")
    command = script_command(SCRIPT, root, os.environ)
    if ours:
        command = TrainingCommand((sys.executable, SCRIPT))
    words = [*command.words, *options]
    environment = {**os.environ, **command.environment, "AUTOHYPOTHESIS_SETUP": "1"}
    ended = subprocess.run(
        words, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    if ended.returncode:
        raise LaunchError(
            f"the data could not be prepared: {SCRIPT} ended with {ended.returncode}",
            hint=f"run it alone: cd {shlex.quote(str(root))} && {shlex.join(words)}",
        )
