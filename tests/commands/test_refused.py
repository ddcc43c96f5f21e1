"""A command that is refused leaves the repository as it was: no folder, no ref, no line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from tests.conftest import Cli, Git

TASK = """id: t
artifacts: [a.txt]
protected: [m.py, s.py]
run: {device: cpu}
mutator: {type: command, command: [python, t/m.py]}
scorer: {type: command, command: [python, t/s.py]}
objective: {metric: acc, direction: maximize}
"""


def state(root: Path, git: Git) -> dict[str, object]:
    """All that a user could see: files, refs, worktrees, what git ignores."""
    files = {}
    for folder, _, names in os.walk(root):
        if ".git" not in Path(folder).relative_to(root).parts:
            files[folder] = sorted(names)
    return {
        "files": files,
        "refs": git(root, "for-each-ref"),
        "worktrees": git(root, "worktree", "list", "--porcelain"),
        "exclude": (root / ".git" / "info" / "exclude").read_bytes(),
        "status": git(root, "status", "--porcelain", "--ignored"),
    }


def dirty(root: Path) -> None:
    (root / "data.txt").write_text("more\n")
    (root / "train.py").write_text("RATE = 0.2\n")


def foreign_ledger(root: Path) -> None:
    (root / "experiments.jsonl").write_text('{"mine": 1}\n')


def foreign_lines(root: Path) -> None:
    (root / "work").mkdir()
    (root / "work" / "results.jsonl").write_text("mine\n")


def foreign_worktrees(root: Path) -> None:
    (root / "worktrees").write_text("mine\n")


def foreign_worker(root: Path) -> None:
    (root / "worktrees" / "cpu0").mkdir(parents=True)
    (root / "worktrees" / "cpu0" / "mine").write_text("mine\n")


def bad_patch(root: Path) -> None:
    (root / "bad.diff").write_text("nonsense\n")


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "words", "named"),
    [
        (dirty, ("run-experiment",), "data.txt"),
        (nothing, ("run-experiment", "--set", "RAET=3"), "RATE"),
        (nothing, ("run-experiment", "--set", "SEED=1"), "SEED"),
        (nothing, ("run-experiment", "--set", "RATE=0.1"), "nothing"),
        (nothing, ("run-experiment", "--set", "RATE"), "NAME=VALUE"),
        (nothing, ("run-experiment", "--set", "RATE=abc"), "RATE"),
        (nothing, ("run-experiment", "--set", "RATE=0.2", "--baseline"), "--baseline"),
        (nothing, ("run-experiment", "--patch", "no-such.diff"), "no-such.diff"),
        (bad_patch, ("run-experiment", "--patch", "bad.diff"), "patch"),
        (nothing, ("run-experiment", "--baseline", "--tag", "No Tag"), "--tag no-tag"),
        (nothing, ("run-loop", "--max", "1", "--tag", "Mar5"), "--tag mar5"),
        (nothing, ("run-loop", "--max", "1", "--tag", ""), "a tag is"),
        (nothing, ("run-loop", "--max", "1", "--tag", "imported"), "another tool"),
        (nothing, ("init-fleet", "--cpu-workers", "1", "--tag", "imported"), "another tool"),
        (nothing, ("run-experiment", "--replicate", "h-t-0001-1"), "no tag is active"),
        (foreign_ledger, ("run-experiment", "--baseline"), "experiments.jsonl"),
        (foreign_ledger, ("run-loop", "--max", "1"), "experiments.jsonl"),
        (foreign_ledger, ("init-fleet", "--cpu-workers", "1"), "experiments.jsonl"),
        (foreign_ledger, ("task", "run", "t"), "experiments.jsonl"),
        (foreign_worktrees, ("run-experiment", "--baseline"), "worktrees"),
        (foreign_worker, ("init-fleet", "--cpu-workers", "1"), "cpu0"),
        (nothing, ("init-fleet", "--cpu-workers", "1", "--from", "nosuch"), "nosuch"),
        (nothing, ("init-fleet", "--cpu-workers", "1", "--proposer", "nonsense"), "nonsense"),
        (foreign_lines, ("task", "run", "t"), "results.jsonl"),
        (nothing, ("task", "run", "t", "--parallel", "99"), "99"),
        (nothing, ("record", "nolog"), "nolog"),
        (nothing, ("decide", "nosuch-1"), "no search"),
        (nothing, ("up", "--cpu-workers", "1", "--proposer", "nonsense"), "nonsense"),
        (nothing, ("propose", "--set", "RATE=1", "--title", "x"), "no tag is active"),
    ],
)
def test_what_is_refused_is_named_and_nothing_is_left_of_it(
    foreign: Path,
    cli: Cli,
    git: Git,
    before: Callable[[Path], None],
    words: tuple[str, ...],
    named: str,
) -> None:
    (foreign / "t").mkdir()
    (foreign / "t" / "task.yaml").write_text(TASK)
    for name in ("a.txt", "m.py", "s.py"):
        (foreign / "t" / name).write_text("\n")
    git(foreign, "add", "-A")
    git(foreign, "commit", "-qm", "a task")
    before(foreign)
    there = state(foreign, git)
    answer = cli(*words)
    assert answer.returncode in ([1] if words[0] == "run-experiment" else [1, 2])
    line = answer.stderr.splitlines()[-1]
    assert line.startswith("error: ") and named in line and "Traceback" not in answer.stderr
    assert state(foreign, git) == there


def test_in_a_search_the_active_tag_and_its_runs_stay(foreign: Path, cli: Cli, git: Git) -> None:
    assert cli("run-experiment", "--baseline", "--tag", "t", "--settle").returncode == 0
    manifest = Layout(foreign).manifest.read_bytes()
    refs = git(foreign, "for-each-ref")
    dirty(foreign)
    assert cli("run-experiment", "--tag", "other").returncode == 1
    assert Layout(foreign).manifest.read_bytes() == manifest
    assert git(foreign, "for-each-ref") == refs


def test_what_another_process_does_there_meanwhile_is_left_alone(
    foreign: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autohypothesis.engine import runner

    layout, real = Layout(foreign), runner.plan

    def plan(*args: object, **options: object) -> object:
        layout.inbox.mkdir(parents=True)
        (layout.inbox / "idea.json").write_text("{}")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "plan", plan)
    assert cli("run-experiment", "--set", "RATE=0.1").returncode == 1
    assert (layout.inbox / "idea.json").exists() and layout.manifest.exists()


def test_while_another_holds_a_lock_there_nothing_is_taken_back(foreign: Path, cli: Cli) -> None:
    layout = Layout(foreign)
    layout.locks.mkdir(parents=True)
    for path in (layout.locks, layout.research):
        path.rmdir()
    from autohypothesis.engine.project import is_untouched

    with hold(layout, "settle", doing="a test"):
        assert not is_untouched(layout)
    assert is_untouched(layout)
    (layout.research / "README.md").write_text("a page\n")
    assert is_untouched(layout)
