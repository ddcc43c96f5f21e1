"""A repository with a task of its own: a text that is better the more `x` it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autohypothesis.commands import task as command
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import ProgressListener
from autohypothesis.errors import AutohypothesisError
from tests.conftest import ROOT, Answer, NewRepository, called, run_git

TASK = """
id: letters
artifacts: [text.txt]
protected: [score.py, mutate.py]
mutator: {{type: command, command: [python, tasks/letters/mutate.py], timeout_seconds: {timeout}}}
run: {{device: cpu}}
scorer: {{type: command, command: [python, tasks/letters/score.py], timeout_seconds: 20}}
objective: {{metric: letters, direction: maximize, min_delta: 0.5}}
"""
MUTATE = '''"""Adds letters; the seed says which."""
import json, os, sys
from pathlib import Path

told = json.load(sys.stdin)
seed, text = int(os.environ["SEED"]), Path("tasks/letters/text.txt")
assert told["seed"] == seed and told["artifacts"] == ["tasks/letters/text.txt"]
letter = "xy"[seed % 2]
print(f"one more {letter}, for {seed}")
text.write_text(text.read_text() + letter * (1 + seed % 3) + "\\n")
'''
SCORE = '''"""How many x there are."""
import json
from pathlib import Path

text = Path("tasks/letters/text.txt").read_text()
print(json.dumps({"score": text.count("x"), "metrics": {"lines": text.count("\\n")}}))
'''


class Ran(NamedTuple):
    """What `task run` printed, and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    said: str

    @property
    def only(self) -> dict[str, Any]:
        assert len(self.lines) == 1, self.said
        return self.lines[0]


def ran(answer: Answer) -> Ran:
    return Ran(
        answer.returncode, [json.loads(line) for line in answer.stdout.splitlines()], answer.stderr
    )


class Letters:
    """The repository, and its commands as a user calls them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "tasks" / "letters"
        self.text = self.folder / "text.txt"

    def write(
        self, *, mutate: str = MUTATE, score: str = SCORE, timeout: float = 20, more: str = ""
    ) -> None:
        """Write the task's files and commit them."""
        (self.folder / "task.yaml").write_text(TASK.format(timeout=timeout) + more)
        (self.folder / "mutate.py").write_text(mutate)
        (self.folder / "score.py").write_text(score)
        self.commit("the task")

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """A process of its own, to be killed or interrupted."""
        command = [sys.executable, str(ROOT / "orchestrator.py"), *words]
        return subprocess.Popen(
            command, cwd=self.root, env={**os.environ, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def edit_task(self, old: str, new: str, *, commit: bool = False) -> None:
        """Replace a part of the task file."""
        file = self.folder / "task.yaml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        if commit:
            self.commit("edited")

    def commit(self, subject: str) -> None:
        run_git(self.root, "add", "-A")
        run_git(self.root, "commit", "-qm", subject)

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> Ran:
        """`task run` on the task."""
        return ran(self("task", "run", "tasks/letters", *words, **(env or {})))

    def __call__(self, *words: str, **env: str) -> Answer:
        """Any command, in this process."""
        return called(*words, cwd=self.root, **env)

    def once(self, iterations: int = 1) -> Ran:
        """The same in this process, where starting costs nothing."""
        project = Project.open(self.root, task=self.folder / "task.yaml")
        lines: list[dict[str, Any]] = []
        said: list[str] = []
        loop = command.loop_of(project.with_tag("letters"), 1, 0)
        loop.emit, loop.say, loop.watch = lines.append, said.append, ProgressListener()
        try:
            loop.run(iterations)
        except AutohypothesisError as error:
            return Ran(1, lines, "\n".join([*said, str(error)]))
        return Ran(0, lines, "\n".join(said))

    def state(self) -> dict[str, Any]:
        """Everything of the user's that a loop may not touch unless it keeps something."""
        return {
            "head": run_git(self.root, "rev-parse", "HEAD"),
            "branch": run_git(self.root, "branch", "--show-current"),
            "status": run_git(self.root, "status", "--porcelain"),
            "text": self.text.read_bytes(),
            "staged": run_git(self.root, "diff", "--cached"),
            "files": sorted(
                str(path.relative_to(self.root))
                for path in self.root.rglob("*")
                if not set(path.relative_to(self.root).parts[:1])
                & {".git", "research", "worktrees", "work", "experiments.jsonl", "results.tsv",
                   "progress.png"}
            ),
        }  # fmt: skip

    def kept_lines(self) -> list[dict[str, Any]]:
        content = (self.root / "work" / "results.jsonl").read_text()
        return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def letters(tmp_path: Path, own_locks: Path, new_repository: NewRepository) -> Letters:
    task = {
        "task.yaml": TASK.format(timeout=20),
        "mutate.py": MUTATE,
        "score.py": SCORE,
        "text.txt": "a\n",
    }
    files = {f"tasks/letters/{name}": text for name, text in task.items()}
    return Letters(
        new_repository(tmp_path / "repository", {"README.md": "A repository.\n", **files})
    )
