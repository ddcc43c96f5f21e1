"""How a task's programs, mutator, run and scorer, are kept from everything else on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from autohypothesis import sandbox
from autohypothesis.engine import program
from autohypothesis.engine.task import Task
from autohypothesis.records.git import Repository

SandboxKind = Literal["bwrap", "hashes", "none"]


def sandbox_kind(task: Task) -> SandboxKind:
    """bwrap: the disk is read-only. hashes: what was changed is found out. none: not asked for.

    Whatever it is, the checkout of a run is compared with its commit when the run has ended.
    """
    if not task.is_isolated:
        return "none"
    return "bwrap" if sandbox.can_isolate() else "hashes"


def holds_foreign_code(task: Task) -> bool:
    """Whether a run of `task` is kept from the user's files, so that a stranger's code may run."""
    return sandbox_kind(task) == "bwrap"


def isolated(
    words: Sequence[str],
    task: Task,
    repository: Repository,
    checkout: Path,
    *,
    writable: Iterable[Path] = (),
    readable: Iterable[Path] = (),
    devices: bool = False,
) -> tuple[str, ...]:
    """`words` in the sandbox of `task`: it may write to `checkout`, except to its link to git.

    Raises:
        FileNotFoundError: there is no such program.
    """
    return tuple(
        sandbox.isolated_command(
            [program.found(words[0], checkout), *words[1:]],
            writable=[checkout, *writable],
            readable=[repository.root, repository.common_dir, *readable],
            fixed=[checkout / ".git"],
            network=task.network,
            devices=devices,
        )
    )
