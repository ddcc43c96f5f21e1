"""This machine, as a search sees it: its devices, its Python, and the profile that fits it.

Which profile that is, prepare.py alone knows, and is asked. Nothing is leased or changed.
"""

from __future__ import annotations

import json
import os
import platform
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
from autohypothesis.engine.inputs import TIMEOUT_S
from autohypothesis.engine.setup import SCRIPT, source_folder, takes
from autohypothesis.errors import LaunchError, LeaseError
from autohypothesis.fleet.roster.devices import Found, discover

PYTHON_FROM = (3, 10)
TORCH_FROM, TORCH_TO = (2, 9), (2, 13)
"""As pyproject.toml has them; a test holds the two against each other."""


class Choice(BaseModel):
    """What `prepare.py --choose` prints."""

    profile: str
    device: Literal["cpu", "cuda"]
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts. Memory in MiB."""

    gpus: Sequence[Found]
    why_no_gpu: str
    """Empty where there is one to use."""
    cuda_version: str | None
    """The newest that the driver can run."""
    cpu_lanes: int
    memory_mb: int | None
    choice: Choice | None
    why_no_choice: str
    device_problem: str
    """Why the chosen profile has no device here; empty when it has."""

    @property
    def gpu(self) -> Found | None:
        """The first that may be used."""
        return next((gpu for gpu in self.gpus if gpu.visible and not gpu.problem), None)

    @property
    def gpu_ready(self) -> bool:
        """Whether trainings run on a GPU here."""
        return self.choice is not None and self.choice.device == "cuda" and not self.device_problem


def look(root: Path, environ: Mapping[str, str] | None = None) -> Machine:
    """The machine as it stands, for the repository at `root`: its prepare.py is asked, or ours."""
    environ = os.environ if environ is None else environ
    _, why_no_gpu = engine.gpus(environ)
    choice, why_no_choice = _choice(root, environ)
    problem = ""
    if choice is not None:
        try:
            engine.devices(choice.device)
        except LeaseError as error:
            problem = error.problem
    return Machine(
        gpus=discover(environ),
        why_no_gpu=why_no_gpu,
        cuda_version=engine.cuda_version(),
        cpu_lanes=len(engine.cpu_slots()),
        memory_mb=system.memory_mb(),
        choice=choice,
        why_no_choice=why_no_choice,
        device_problem=problem,
    )


def _choice(root: Path, environ: Mapping[str, str]) -> tuple[Choice | None, str]:
    try:
        return choose_profile(root, environ), ""
    except LaunchError as error:
        return None, error.problem


def choose_profile(root: Path, environ: Mapping[str, str]) -> Choice:
    """What `auto` is on this machine.

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
            return Choice.model_validate(json.loads(ended.out))
    except (ValueError, ValidationError):
        pass
    said = ended.last_words().removeprefix(f"{SCRIPT}: ")
    raise LaunchError(said, hint=f"run {sys.executable} {script} --choose")


# ── Python and what it can import ───────────────────────────────────────────────────────────


def python_problem() -> str:
    """What is wrong with this Python; empty when nothing is."""
    if sys.version_info[:2] >= PYTHON_FROM:
        return ""
    return f"Python {platform.python_version()} is older than {_dotted(PYTHON_FROM)}"


def torch_problem() -> str:
    """What is wrong with the torch of this Python; empty when nothing is. Imports nothing."""
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
