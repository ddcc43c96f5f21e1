"""Real repositories in temporary folders, with names that people give folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import foreign_task
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from tests.conftest import NewRepository, run_git
from tests.engine.searching import Search

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


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def make(tmp_path: Path, new_repository: NewRepository) -> Callable[..., Repository]:
    """A repository with one commit of `files` (path -> text)."""

    def made(files: dict[str, str] | None = None, name: str = "my repö – 1") -> Repository:
        files = files or {"train.py": TRAIN, "helper.py": "def width(): return 8\n"}
        return Repository(new_repository(tmp_path / name, files))

    return made


@pytest.fixture
def repository(make: Callable[..., Repository]) -> Repository:
    return make()


@pytest.fixture
def task() -> Task:
    return foreign_task()


@pytest.fixture
def project(foreign: Path) -> Project:
    """A search in a script of somebody's."""
    return Project.open(foreign).with_tag("t")


def commit_of(repository: Repository, **files: bytes) -> str:
    """Commit HEAD with other `files` (`train_py=...`), without a checkout."""
    head = repository.head()
    named = {name.replace("_", "."): content for name, content in files.items()}
    return repository.commit_tree(repository.tree_with(head, named), [head], "x\n")


def committed(repository: Repository) -> str:
    """Commit all that lies in the checkout."""
    run_git(repository.root, "add", "-A")
    run_git(repository.root, "commit", "-q", "-m", "more")
    return repository.head()


@pytest.fixture
def search(
    repository: Repository, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> Search:
    """A search of `task` whose experiments a test writes."""
    monkeypatch.setenv("AUTOHYPOTHESIS_LOCKS", str(tmp_path / "locks"))
    project = Project(repository, Layout(repository.root), task, None)
    return Search(project.with_tag("t"), task)


@pytest.fixture
def start(search: Search) -> str:
    """The first reference of a search, with a baseline of 1.5."""
    commit = search.project.reference()
    search.decided("baseline-t-1", commit, None, 1.5)
    return commit
