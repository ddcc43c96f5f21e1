"""A repository made ready for a search: the training pair and its task, data and tokenizer.

Our prepare.py is told by its options from any other: one that we do not know is run as it is,
since a script that ignores an option would make something else than was asked for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autohypothesis import schema
from autohypothesis.engine.environment import TrainingCommand, script_command
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import has_option
from autohypothesis.errors import LaunchError, UsageError
from autohypothesis.installation import as_called
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout

FILES = {
    "prepare.py": "prepare.py",
    "train.py": "train.py",
    "program.md": "program.md",
    "SKILL.md": "SKILL.md",
    "task.yaml": "tasks/pretrain/task.yaml",
}
"""The files of a search, and where they lie in `source_folder`; all else is made on use."""
OWN_IGNORED = (".venv/", "__pycache__/", "/.cache/", "/run.log")
"""Made there by people, by hand."""


def source_folder() -> Path:
    """Return where the training pair lies: in the package as it was built, or in the clone."""
    package = Path(schema.__file__).resolve().parent
    built = package / "_files"
    return built if built.is_dir() else package.parent


def make_repository(root: Path) -> bool:
    """Make a research repository at `root`; False when it was made before.

    Raises:
        UsageError: something else is there, or this installation lacks the training pair.
    """
    if _is_made(root):
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} is there and is no research repository", hint="name another folder"
        )
    source = source_folder()
    missing = [name for name in FILES.values() if not (source / name).is_file()]
    if missing:
        raise UsageError(
            f"this installation has no {', '.join(missing)}",
            hint="install it again, or work from a clone of the project",
        )
    root.mkdir(parents=True, exist_ok=True)
    for name, original in FILES.items():
        shutil.copyfile(source / original, root / name)
        if name.endswith(".md"):  # pages name the command line as it is called here
            page = (root / name).read_text(encoding="utf-8")
            (root / name).write_text(as_called(page), encoding="utf-8")
    ignored = "\n".join((*OWN_IGNORED, "# made on use", *Layout(root).made_on_use))
    (root / ".gitignore").write_text(f"{ignored}\n", encoding="utf-8")
    Repository.create(root, "Start: the training pair and its task")
    return True


def _is_made(root: Path) -> bool:
    """Return whether a repository of this kind is there, the ones of earlier releases included."""
    layout = Layout(root)
    return (
        (root / ".git").exists()
        and all((root / name).is_file() for name in ("prepare.py", "train.py"))
        and (layout.root_task.is_file() or layout.default_task.is_file())
        and Repository(root).read_ref("HEAD") is not None
    )


SCRIPT = "prepare.py"


def prepare_options(
    profile: str | None = None,
    seq_len: int | None = None,
    source: str | None = None,
    cache: Path | None = None,
) -> list[str]:
    """Return the options of our prepare.py; None leaves a choice to it."""
    given = {
        "--profile": profile, "--seq-len": seq_len, "--source": source, "--cache-dir": cache,
    }  # fmt: skip
    return [
        word for name, value in given.items() if value is not None for word in (name, str(value))
    ]


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
        UsageError: it is not ours, and options were asked for.
        LaunchError: it is not there, or it failed.
    """
    script = root / SCRIPT
    ours = has_option(script, "--locate")
    if options and not ours:
        why = "is not ours" if script.is_file() else "is not there"
        raise UsageError(
            f"{script} {why}, and takes no {', '.join(options[::2])}",
            hint="leave the options out; a script of your own is then run as it is",
        )
    if not script.is_file():
        raise LaunchError(f"there is no {script}", hint="name a repository that has one")
    command = (
        TrainingCommand((sys.executable, SCRIPT))
        if ours
        else script_command(SCRIPT, root, os.environ)
    )
    words = [*command.words, *options]
    environment = {**os.environ, **command.environment}
    ended = subprocess.run(
        words, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    if ended.returncode:
        raise LaunchError(
            f"the data could not be prepared: {SCRIPT} ended with {ended.returncode}",
            hint=f"run it alone: cd {shlex.quote(str(root))} && {shlex.join(words)}",
        )
