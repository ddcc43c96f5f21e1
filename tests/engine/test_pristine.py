"""An evaluator that is two files is scored with both as they were committed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import Export
from autohypothesis.records.git import Repository

FILES = {
    "prepare.py": "from constants import VALUE\nfrom kit.more import MORE\nprint(VALUE, MORE)\n",
    "constants.py": "VALUE = 1\n",
    "kit/more.py": "MORE = 2\n",
    "train.py": "print('val_bpb: 1')\n",
}


def task_of(*protected: str) -> Task:
    return Task.model_validate(
        {"id": "m", "artifacts": ["train.py"], "protected": protected or None,
         "scorer": {"type": "model", "evaluator": "prepare.py"}}
    )  # fmt: skip


BOTH = task_of("prepare.py", "constants.py", "kit/**")


def evaluator_of(repository: Repository, commit: str, task: Task) -> Path:
    evaluator = Export(repository, "w").evaluator(commit, task)
    assert evaluator is not None
    return evaluator


def said(evaluator: Path, cwd: Path) -> str:
    answer = subprocess.run(
        [sys.executable, str(evaluator)], cwd=cwd, capture_output=True, text=True, timeout=30,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return answer.stdout.strip() or answer.stderr


@pytest.fixture
def both(make: Callable[..., Repository]) -> Repository:
    return make(FILES)


def test_what_the_evaluator_imports_is_not_the_checkouts_copy(both: Repository) -> None:
    (both.root / "constants.py").write_text("VALUE = 99\n")
    evaluator = evaluator_of(both, both.head(), BOTH)
    assert said(evaluator, both.root) == "1 2"
    assert both.root / ".git" in evaluator.parents
    for name in ("constants.py", "kit/more.py"):
        assert (evaluator.parent / name).stat().st_mode & 0o222 == 0
    assert not (evaluator.parent / "train.py").exists()


def test_another_version_of_an_imported_file_is_taken_with_its_commit(both: Repository) -> None:
    head = both.head()
    tree = both.tree_with(head, {"constants.py": b"VALUE = 5\n"})
    other = both.commit_tree(tree, [head], "x\n")
    for commit, printed in ((head, "1 2"), (other, "5 2"), (head, "1 2")):
        assert said(evaluator_of(both, commit, BOTH), both.root) == printed


def _linked(place: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    target.write_text("VALUE = 7\n")
    place.unlink(missing_ok=True)
    place.symlink_to(target if place.suffix else target.parent)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "edit": lambda beside, _: (
        (beside / "constants.py").chmod(0o644),
        (beside / "constants.py").write_text("VALUE = 7\n"),
    ),
    "add": lambda beside, _: (beside / "constants.so").write_text("x"),
    "add a folder": lambda beside, away: _linked(beside / "constants", away / "__init__.py"),
    "delete": lambda beside, _: (beside / "constants.py").unlink(),
    "link": lambda beside, away: _linked(beside / "constants.py", away / "c.py"),
    "compiled": lambda beside, _: (beside / "__pycache__").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_planted_beside_the_evaluator_is_gone_before_it_is_used(
    both: Repository, tmp_path: Path, damage: str
) -> None:
    evaluator = evaluator_of(both, both.head(), BOTH)
    DAMAGE[damage](evaluator.parent, tmp_path / "away")
    assert evaluator_of(both, both.head(), BOTH) == evaluator
    assert said(evaluator, both.root) == "1 2"
    assert {path.name for path in evaluator.parent.iterdir()} == {
        "constants.py", "kit", "prepare.py",
    }  # fmt: skip


def test_without_a_list_the_evaluator_stands_alone(both: Repository) -> None:
    evaluator = evaluator_of(both, both.head(), task_of())
    assert [path.name for path in evaluator.parent.iterdir()] == ["prepare.py"]
