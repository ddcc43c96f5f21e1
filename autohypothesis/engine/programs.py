"""The programs that a task names, looked for before any of them is run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autohypothesis.engine import program
from autohypothesis.engine.run_command import resolved
from autohypothesis.engine.task import Task

SUFFIXES = (".py", ".sh", ".js", ".rb", ".pl")
"""A word that ends like this is a script, which has to be there as well."""


class Named(NamedTuple):
    """One program of a task; `problem` says what is missing."""

    role: str
    command: str
    problem: str = ""


def programs_of(task: Task, root: Path) -> list[Named]:
    """Every program that the task names, in the order in which they run."""
    named = (
        ("mutator", task.mutator.command, root),
        ("preflight", task.run.preflight, root / task.run.cwd),
        ("run", task.run.command, root / task.run.cwd),
        ("scorer", task.scorer.command, root / task.run.cwd),
    )
    return [
        Named(role, shlex.join(words), "; ".join(_missing(words, root, cwd)))
        for role, words, cwd in named
        if words is not None
    ]


def _missing(words: Sequence[str], root: Path, cwd: Path) -> Iterator[str]:
    try:
        program.found(resolved(words, root)[0], cwd)
    except FileNotFoundError as error:
        yield str(error)
    for word in words[1:]:
        if word.endswith(SUFFIXES) and not (cwd / word).is_file():
            yield f"there is no script {word!r} in {cwd}"
