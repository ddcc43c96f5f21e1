"""Real repositories in temporary folders, with names that people give folders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import foreign_task
from autohypothesis.records.git import Repository

TRAIN = '''"""A script to search."""
import os

from helper import width  # noqa

SEED = int(os.environ.get("SEED", 1))
# sizes – of the model
DEPTH = 4  # layers
MATRIX_LR = 0.04
ADAM_BETAS = (0.8, 0.95)
TOTAL_BATCH_SIZE = 2**10
HEAD_DIM = width()

print("val_bpb: 1.5")
'''


def run_git(folder: Path, *words: str) -> str:
    """git as a user runs it."""
    answer = subprocess.run(
        ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return answer.stdout.rstrip("\n")


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def git() -> Callable[..., str]:
    return run_git


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Repository]:
    """A repository with one commit of `files` (path -> text)."""

    def made(files: dict[str, str] | None = None, name: str = "my repö – 1") -> Repository:
        root = tmp_path / name
        root.mkdir()
        run_git(root, "init", "-q", "-b", "main")
        write(root, files or {"train.py": TRAIN, "helper.py": "def width(): return 8\n"})
        run_git(root, "add", "-A")
        run_git(root, "commit", "-q", "-m", "start")
        return Repository(root)

    return made


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


@pytest.fixture
def repository(make: Callable[..., Repository]) -> Repository:
    return make()


@pytest.fixture
def task() -> Task:
    return foreign_task()
