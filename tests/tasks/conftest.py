"""The programs of the shipped tasks, as modules and as processes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Programs:
    """A task's folder: its modules import each other by their bare names, as scripts do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = ROOT / "tasks" / name
        self._modules: dict[str, ModuleType] = {}

    def module(self, name: str) -> ModuleType:
        """A module of the folder; two tasks have one called `mutate`, so none stays behind."""
        if name not in self._modules:
            names = [path.stem for path in self.folder.glob("*.py")]
            before, flag = sys.path[:], sys.dont_write_bytecode
            sys.modules.update(self._modules)
            sys.path.insert(0, str(self.folder))
            try:
                importlib.import_module(name)
            finally:
                sys.path[:], sys.dont_write_bytecode = before, flag
                self._modules |= {one: sys.modules.pop(one) for one in names if one in sys.modules}
        return self._modules[name]

    def run(
        self, program: str, *words: str, cwd: Path, said: object = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`python tasks/NAME/PROGRAM` in `cwd`, as the loop runs it."""
        return subprocess.run(
            [sys.executable, str(Path("tasks") / self.name / program), *words],
            cwd=cwd, input=json.dumps(said), env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.fixture(scope="session")
def skill() -> Programs:
    return Programs("skill-quality")


@pytest.fixture(scope="session")
def bpe() -> Programs:
    return Programs("fast-bpe")


def document(artifact: str, seed: int, trials: list[dict[str, Any]] | None = None) -> Any:
    """Return what a mutator reads on stdin."""
    return {
        "task_id": "t",
        "iteration_id": "t-1",
        "seed": seed,
        "instructions": "",
        "artifacts": [artifact],
        "objective": {"metric": "score", "direction": "maximize", "min_delta": 0.0},
        "reference": {"commit": "0" * 40, "score": 1.0, "metrics": {}},
        "trials": trials or [],
    }
