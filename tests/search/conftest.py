"""The real training pair, on the `test` profile, in a repository of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project, make_repository
from autohypothesis.engine.runner import run
from autohypothesis.schema import Result

ROOT = Path(__file__).resolve().parents[2]

Try = Callable[..., tuple[str, Result]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the `test` profile prepared."""
    folder = tmp_path_factory.mktemp("cache")
    subprocess.run(
        [sys.executable, str(ROOT / "prepare.py"), "--profile", "test"],
        env={**os.environ, "AUTORESEARCH_CACHE": str(folder)}, check=True, timeout=120,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


@pytest.fixture
def project(
    tmp_path: Path, cache: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A fresh research repository with a search begun in it."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
    make_repository(tmp_path / "research repository")
    return Project.open(tmp_path / "research repository").with_tag("t")


@pytest.fixture
def attempt(project: Project) -> Try:
    """Runs one change of train.py: overrides, or `old` text that becomes `new`."""

    def tried(
        *, old: str = "", new: str = "", seed: int | None = None, **overrides: object
    ) -> tuple[str, Result]:
        change = Change()
        if overrides:
            change = Change(overrides=overrides)  # type: ignore[arg-type]
        elif old:
            source = project.repository.show_file(project.reference(), "train.py").decode()
            assert source.count(old) == 1, f"{source.count(old)} x {old!r} in train.py"
            edited = {"train.py": source.replace(old, new).encode()}
            change = Change(tree=project.repository.tree_with(project.reference(), edited))
        finished = run(project, Experiment(change, seed=seed))
        return finished.experiment_id, finished.result

    return tried
