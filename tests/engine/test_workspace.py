"""A worktree that is used again must be as good as a new one, whatever the last training did."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import GitError
from autohypothesis.records.git import SALVAGE, Repository
from tests.engine.conftest import commit_of


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".git"}


def test_a_reused_worktree_holds_exactly_the_commit(repository: Repository) -> None:
    workspace = Workspace(repository, "worker-gpu0", fleet="nov20")
    path = workspace.checkout(repository.head())
    assert path == repository.root / "worktrees" / "worker-gpu0"
    (path / "train.py").write_text("changed\n")
    (path / "helper.py").unlink()
    (path / "helper.py").mkdir()
    (path / "junk").mkdir()
    (path / "junk" / ".gitignore").write_text("*\n")
    (path / ".gitignore").write_text("ignored\n")
    (path / "ignored").write_text("x")
    subprocess.run(["git", "init", "-q", str(path / "nested")], check=True)
    other = commit_of(repository, train_py=b"DEPTH = 2\n", new_txt=b"1\n")
    assert workspace.checkout(other) == path
    assert names_in(path) == {"train.py", "helper.py", "new.txt"}
    assert (path / "train.py").read_text() == "DEPTH = 2\n"
    workspace.checkout(repository.head())
    assert names_in(path) == {"train.py", "helper.py"}


def test_it_is_locked_by_name_and_ignored_by_the_user(repository: Repository) -> None:
    Workspace(repository, "w", fleet="nov20").checkout(repository.head())
    found = repository.worktree_at(repository.root / "worktrees" / "w")
    assert found is not None
    assert found.lock_reason is not None
    assert found.lock_reason.startswith(f"fleet=nov20 worker=w pid={os.getpid()} start=")
    assert repository._run("status --porcelain --untracked-files=all").out == b""


def test_a_worker_stands_on_its_branch(repository: Repository) -> None:
    workspace = Workspace(repository, "w", branch="autoresearch/nov20-gpu0")
    for depth in (b"2", b"3"):
        commit = commit_of(repository, train_py=b"DEPTH = " + depth + b"\n")
        workspace.checkout(commit)
        assert repository.read_ref("refs/heads/autoresearch/nov20-gpu0") == commit
    assert repository.read_ref("HEAD", workspace.path) == commit


@pytest.mark.parametrize("damage", ["index.lock", "HEAD", "gitdir", "folder"])
def test_a_damaged_worktree_is_made_again(repository: Repository, damage: str) -> None:
    """A git that was killed leaves its lock, a full disk an empty file, a person nothing."""
    workspace = Workspace(repository, "w")
    path = workspace.checkout(repository.head())
    inside = repository.root / ".git" / "worktrees" / "w"
    if damage == "index.lock":
        (inside / "index.lock").write_bytes(b"")
    elif damage == "HEAD":
        (inside / "HEAD").write_bytes(b"")
    elif damage == "gitdir":
        (path / ".git").write_text("gitdir: /nowhere\n")
    else:
        subprocess.run(["rm", "-rf", str(path)], check=True)
    other = commit_of(repository, train_py=b"DEPTH = 2\n")
    workspace.checkout(other)
    assert (path / "train.py").read_text() == "DEPTH = 2\n"
    assert len(repository.worktrees()) == 2


def test_a_folder_without_rights_does_not_stop_the_next(repository: Repository) -> None:
    workspace = Workspace(repository, "w")
    path = workspace.checkout(repository.head())
    (path / "locked" / "deep").mkdir(parents=True)
    (path / "locked" / "deep" / "file").write_text("x")
    os.chmod(path / "locked" / "deep", 0o000)
    os.chmod(path / "locked", 0o500)
    workspace.checkout(repository.head())
    assert names_in(path) == {"train.py", "helper.py"}


def test_somebody_elses_folder_is_not_taken(repository: Repository) -> None:
    place = repository.root / "worktrees" / "w"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("mine")
    with pytest.raises(GitError, match="already exists"):
        Workspace(repository, "w", branch="a/gpu0").checkout(repository.head())
    assert (place / "mine.txt").exists()
    assert repository.read_ref("refs/heads/a/gpu0") is None


def test_work_is_salvaged_before_a_worktree_goes(repository: Repository) -> None:
    workspace = Workspace(repository, "w")
    assert workspace.salvage("s-1") is None
    path = workspace.checkout(repository.head())
    assert workspace.salvage("s-1") is None, "a clean one has nothing to keep"
    (path / "train.py").write_text("half an idea\n")
    (path / "notes.txt").write_text("why\n")
    commit = workspace.salvage("s-1")
    workspace.remove()
    assert not path.exists()
    assert commit is not None
    assert repository.read_ref(SALVAGE + "s-1") == commit
    assert repository.show_file(commit, "notes.txt") == b"why\n"
    assert repository.show_file(commit, "train.py") == b"half an idea\n"
