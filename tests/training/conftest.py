"""One small preparation for all tests here, and ways to run the two scripts as people do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("AUTOHYPOTHESIS_", "AUTORESEARCH_", "HF_", "SEED", "OMP_NUM_THREADS")


Result = subprocess.CompletedProcess[str]


def python(*arguments: str | Path, cwd: Path, **variables: str | Path) -> Result:
    """`python ARGUMENTS`; inherits nothing of ours but `variables`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=clean | {k: str(v) for k, v in variables.items()},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def script(name: str, *arguments: str | Path, **variables: str | Path) -> Result:
    """Runs prepare.py, or a train.py by its path."""
    path = ROOT / name
    return python(path, *arguments, cwd=path.parent, **variables)


def last_json(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the `test` profile prepared; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("cache")
    result = script("prepare.py", "--profile", "test", AUTORESEARCH_CACHE=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def finished_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train.py as the shim starts it, with its log; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("run")
    variables = {"AUTOHYPOTHESIS_RUN_DIR": folder, "AUTOHYPOTHESIS_SAVE_WEIGHTS": "1"}
    result = script("train.py", AUTORESEARCH_CACHE=cache, SEED="7", **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "run.log").write_text(result.stdout)
    return folder


@pytest.fixture
def own_cache(cache: Path, tmp_path: Path) -> Path:
    """A copy of the prepared cache that a test may damage."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.fixture
def prepare(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """prepare.py as a module, reading the prepared cache."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
    for variable in ("AUTOHYPOTHESIS_DATA", "AUTOHYPOTHESIS_RUN_DIR", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    import prepare as module

    monkeypatch.setattr(module.Clock, "running", False)
    known, path = dict(sys.modules), list(sys.path)
    yield module
    for name in ("prepare", "train", "helper"):  # a test may have imported a candidate
        sys.modules.pop(name, None)
        if name in known:
            sys.modules[name] = known[name]
    sys.path[:] = path


@pytest.fixture
def train(prepare: ModuleType) -> ModuleType:
    """train.py as a module."""
    import train as module

    sys.modules["train"] = module
    return module


@pytest.fixture
def candidate(tmp_path: Path) -> Callable[..., Path]:
    """candidate(old, new, ...): a copy of the pair in a folder of its own, train.py edited."""

    def make(*edits: str) -> Path:
        folder = tmp_path / "candidate"
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "prepare.py", folder)
        text = (ROOT / "train.py").read_text()
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            assert old in text, old
            text = text.replace(old, new)
        (folder / "train.py").write_text(text)
        return folder / "train.py"

    return make
