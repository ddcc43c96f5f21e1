"""What several rooms' tests need: a repository that shares no file with ours, and its lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = '''"""Somebody's script: no file of ours beside it, two printed lines."""
import os
import sys
import time

RATE = 0.1
SLEEP = 0.0
MODE = "train"

if MODE == "crash":
    raise ValueError("RATE is no good")
time.sleep(SLEEP)
if MODE == "twice":
    print("val_bpb: 0.5\\nother: 1\\n---")
print(f"step 00001 (50.0%) | loss: {2 - RATE:.6f} | lrm: 1.00 | dt: 3ms | tok/sec: 1,000 | "
      f"mfu: 0.0% | epoch: 1 | remaining: 1s", end="\\r")
print()
if MODE == "vandal":
    open("data.txt", "a").write("more")
if MODE == "nan":
    print("val_bpb: nan")
elif MODE != "silent":
    print(f"val_bpb: {1 + (RATE - 0.3) ** 2:.6f}")
    print("peak_vram_mb: 12.5")
'''


def run_git(folder: Path, *words: str) -> str:
    """git as a user runs it."""
    answer = subprocess.run(
        ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words],
        cwd=folder, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return answer.stdout.rstrip("\n")


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases of this test alone, and no git configuration of this machine."""
    folder = tmp_path / "locks"
    monkeypatch.setenv("AUTOHYPOTHESIS_LOCKS", str(folder))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


@pytest.fixture
def foreign(tmp_path: Path, own_locks: Path) -> Path:
    """A repository of somebody else's, in a folder with a blank and an umlaut."""
    root = tmp_path / "jemandes skript ü"
    root.mkdir()
    run_git(root, "init", "-q", "-b", "main")
    (root / "train.py").write_text(SCRIPT, encoding="utf-8")
    (root / "data.txt").write_text("data\n", encoding="utf-8")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "start")
    return root


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(foreign: Path) -> Cli:
    """`orchestrator.py WORDS`, as a user of `foreign` calls it."""

    def call(*words: str, cwd: Path = foreign, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "orchestrator.py"), *words],
            cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return call


@pytest.fixture
def git() -> Callable[..., str]:
    return run_git
