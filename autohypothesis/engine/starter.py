"""A fresh research repository: the training pair, its task and its pages, committed."""

from __future__ import annotations

import shutil
from pathlib import Path

from autohypothesis import schema
from autohypothesis.errors import UsageError
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout

FILES = {
    "prepare.py": "prepare.py",
    "train.py": "train.py",
    "program.md": "program.md",
    "SKILL.md": "SKILL.md",
    "task.yaml": "tasks/pretrain/task.yaml",
}
"""What a search needs, and where it lies in this project; everything else is made on use."""
OWN_IGNORED = (".venv/", "__pycache__/", "/.cache/", "/run.log")
"""What people make there by hand."""


def source_folder() -> Path:
    """Where the training pair lies: the clone that this code runs from."""
    return Path(schema.__file__).resolve().parents[1]


def make_repository(root: Path) -> bool:
    """Make one at `root`; False when it was made before.

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
            hint="work from a clone of the project",
        )
    root.mkdir(parents=True, exist_ok=True)
    for name, original in FILES.items():
        shutil.copyfile(source / original, root / name)
    ignored = "\n".join((*OWN_IGNORED, "# made on use", *Layout(root).made_on_use))
    (root / ".gitignore").write_text(f"{ignored}\n", encoding="utf-8")
    Repository.create(root, "Start: the training pair and its task")
    return True


def _is_made(root: Path) -> bool:
    """Whether a repository of this kind is there, the ones of earlier releases included."""
    layout = Layout(root)
    return (
        (root / ".git").exists()
        and all((root / name).is_file() for name in ("prepare.py", "train.py"))
        and (layout.root_task.is_file() or layout.default_task.is_file())
        and Repository(root).read_ref("HEAD") is not None
    )
