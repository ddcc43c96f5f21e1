"""A fresh research repository: the training pair and its task, committed."""

from __future__ import annotations

import shutil
from pathlib import Path

import schema
from autohypothesis.errors import UsageError
from autohypothesis.records.git import Repository

FILES = ("prepare.py", "train.py", "tasks/pretrain/task.yaml")
"""What a search needs; everything else is made on use."""


def make_repository(root: Path) -> bool:
    """Make one at `root`; False when it was made before.

    Raises:
        UsageError: something else is there, or this installation lacks the training pair.
    """
    if (root / ".git").exists() and all((root / name).is_file() for name in FILES):
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} is there and is no research repository", hint="name another folder"
        )
    source = Path(schema.__file__).resolve().parent
    missing = [name for name in FILES if not (source / name).is_file()]
    if missing:
        raise UsageError(
            f"this installation has no {', '.join(missing)}",
            hint="work from a clone of the project",
        )
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, root / name)
    Repository.create(root, "Start: the training pair and its task")
    return True
