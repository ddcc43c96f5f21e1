"""The programs that a task names, looked for before any of them is run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Sequence
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


def programs_of(task: Task, root: Path, tracked: Collection[str]) -> list[Named]:
    """Every program that the task names, in the order in which they run.

    They run in a checkout of a commit, so a script has to be one of the `tracked` files.
    """
    named = (
        ("mutator", task.mutator.command, root),
        ("preflight", task.run.preflight, root / task.run.cwd),
        ("run", task.run.command, root / task.run.cwd),
        ("scorer", task.scorer.command, root / task.run.cwd),
    )
    return [
        Named(role, shlex.join(words), "; ".join(_missing(words, root, cwd, tracked)))
        for role, words, cwd in named
        if words is not None
    ]


def _missing(
    words: Sequence[str], root: Path, cwd: Path, tracked: Collection[str]
) -> Iterator[str]:
    try:
        program.found(resolved(words, root)[0], cwd)
    except FileNotFoundError as error:
        yield str(error)
    for word in words[1:]:
        if not word.endswith(SUFFIXES) or Path(word).is_absolute():
            continue
        if not (cwd / word).is_file():
            yield f"there is no script {word!r} in {cwd}"
        elif os.path.relpath(cwd / word, root) not in tracked:
            yield f"{word} is not committed, and is missing where it is run: git add {word}"
