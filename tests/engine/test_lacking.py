"""What people are told of files that a run will not have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine import untracked_files
from autohypothesis.engine.task import Task
from autohypothesis.engine.untracked_files import find_missing_files, warn_once
from autohypothesis.records.git import Repository

Git = Callable[..., str]


def put(root: Path, **sizes: int) -> None:
    for name, size in sizes.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_the_largest_five_are_named_with_their_sizes(repository: Repository, task: Task) -> None:
    (repository.root / ".gitignore").write_text("data/\n*.bin\n")
    put(repository.root, data__a=3000, data__deep__b=1000, w_bin=5 << 20, n1=1, n2=2, n3=3, n4=4)
    found = find_missing_files(repository, task)
    assert found.lines() == [
        "w.bin (5.0 MB)", "data/ (3.9 KB)", ".gitignore (12 bytes)", "n4 (4 bytes)", "n3 (3 bytes)",
        "and 2 more",
    ]  # fmt: skip
    assert "data/ (3.9 KB)" in found.problem()
    assert "'/data/'" in found.remedy() and ">> .worktreeinclude" in found.remedy()


def test_what_we_and_what_tools_make_is_not_named(repository: Repository, task: Task) -> None:
    made = ("research/runs/a", "worktrees/.runs/w/x", "work/results.jsonl", "experiments.jsonl",
            "results.tsv", "progress.png", "__pycache__/a.pyc", "b.pyc",
            ".venv/bin/python", "env3/pyvenv.cfg", "node_modules/a", "run.log")  # fmt: skip
    for name in made:
        (repository.root / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.root / name).write_text("x")
    assert find_missing_files(repository, task).lines() == []
    assert (
        find_missing_files(repository, task).problem()
        == ""
        == find_missing_files(repository, task).remedy()
    )
    put(repository.root, work__mine=1)
    assert find_missing_files(repository, task).lines() == ["work/ (2 bytes)"]


def test_an_artifact_that_is_not_committed_yet_is_not_named(
    repository: Repository, task: Task, git: Git
) -> None:
    git(repository.root, "rm", "-q", "--cached", "train.py")
    git(repository.root, "commit", "-q", "-m", "without it")
    assert find_missing_files(repository, task).lines() == []


def test_the_line_that_is_proposed_includes_exactly_that_file(
    repository: Repository, task: Task
) -> None:
    odd = ["it's.txt", "a b*.txt", "[x].txt", "#x", "!y", os.fsdecode(b"caf\xe9")]
    for name in odd:
        (repository.root / name).write_text("x\n")
    assert len(find_missing_files(repository, task).largest) == 5
    for _ in range(2):
        command = find_missing_files(repository, task).remedy()
        assert os.system(f"cd '{repository.root}' && {command}") == 0
    assert find_missing_files(repository, task).lines() == []


def test_a_filter_that_is_not_applied_is_named(
    repository: Repository, task: Task, git: Git
) -> None:
    (repository.root / ".gitattributes").write_text("*.key filter=crypt\n*.md filter=unknown\n")
    git(repository.root, "add", "-A")
    git(repository.root, "commit", "-q", "-m", "attributes")
    assert find_missing_files(repository, task).filters == ()
    git(repository.root, "config", "filter.crypt.smudge", "cat")
    assert find_missing_files(repository, task).lines() == ["filter crypt is not applied"]
    assert "git filter crypt" in find_missing_files(repository, task).problem()


def test_it_is_told_once_for_a_search_and_again_when_it_changes(
    repository: Repository, task: Task
) -> None:
    put(repository.root, data__a=10)

    def told(tag: str = "t") -> str:
        with warn_once(repository, task, tag) as words:
            return words

    with pytest.raises(ZeroDivisionError), warn_once(repository, task, "t") as words:
        assert "data/" in words
        raise ZeroDivisionError
    assert "data/ (10 bytes)" in told(), "what ended with an error may not have been seen"
    assert told() == ""
    put(repository.root, data__a=11)
    assert told() == "", "a size alone is no news"
    put(repository.root, more=1)
    assert "more" in told()
    assert "data/" in told("another")
    (repository.root / ".worktreeinclude").write_text("data/\nmore\n")
    assert told("another") == ""


def test_a_large_tree_is_measured_for_a_moment_only(
    repository: Repository, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository.root, **{f"data__{n}": 1 for n in range(50)})
    monkeypatch.setattr(untracked_files, "LOOK_S", -1.0)
    (found,) = find_missing_files(repository, task).largest
    assert found.is_more and "over" in str(found)
