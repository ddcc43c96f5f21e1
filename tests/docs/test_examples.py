"""The examples at the end of `--help` run as they stand, in a repository with a small search."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.conftest import NewRepository, called
from tests.docs.test_documents import leaves

TRAIN = """DEPTH = 2
MATRIX_LR = 0.04
print("val_bpb:", 1.0 + DEPTH * MATRIX_LR)
print("peak_vram_mb: 0")
"""
NEED_MORE = {
    "up", "demo", "setup", "monitor", "observer", "worker", "tool-builder", "bootstrap", "hub",
    "task", "init", "init-fleet", "run-loop", "prune", "down", "restore", "tools", "record",
    "dispatch", "withdraw", "abandon", "check-hardware", "doctor",
}  # fmt: skip
"""Commands whose examples need data, a hub, a fleet or a hypothesis, or try the whole machine."""
WITH_SHELL = ("|", ">", "my-", "--key", "--diff --title")
"""Of the others, what names a file or a program of the reader's."""


def test_examples_of_commands_that_need_only_a_search_run_as_they_stand(
    new_repository: NewRepository, own_locks: Path, tmp_path: Path
) -> None:
    from autohypothesis.commands.main import Loaded

    root = new_repository(tmp_path / "a search", {"train.py": TRAIN})

    def run(*words: str) -> None:
        answer = called(*words, cwd=root)
        assert answer.returncode == 0, (words, answer.stderr)

    run("run-experiment", "--baseline", "--decide", "--tag", "nov20")
    run("run-experiment", "--set", "DEPTH=1", "--desc", "shallow")
    ran = []
    for command in leaves(Loaded()):
        for example in command.examples:
            words = shlex.split(example.partition("orchestrator.py ")[2])
            if words[0] in NEED_MORE or any(part in example for part in WITH_SHELL):
                continue
            run(*words)
            ran.append(words[0])
    assert len(ran) > 10
