"""The checkout of a run holds exactly its commit, and runs no program of the repository."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.task import Task
from autohypothesis.engine.task_file import foreign_task
from autohypothesis.engine.workspace import GIT_BARRIER, Export
from autohypothesis.errors import GitError
from autohypothesis.records import git_export
from autohypothesis.records.git import Repository
from tests.conftest import forked
from tests.engine.conftest import commit_of, committed

Make = Callable[..., Repository]
Git = Callable[..., str]


def tree_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_git_that_is_called_in_a_checkout_does_not_find_the_users_repository(
    repository: Repository, task: Task
) -> None:
    made = Export(repository, "w").checkout(repository.head(), task)
    for words in (["rev-parse", "HEAD"], ["describe", "--always"], ["reset", "--hard"]):
        answer = subprocess.run(["git", *words], cwd=made.path, capture_output=True, text=True)
        assert answer.returncode == 128 and "run.git" in answer.stderr, answer


@pytest.mark.parametrize("where", ["config", "attributes", "tree"])
@pytest.mark.parametrize("kind", ["smudge", "process"])
def test_a_planted_filter_never_runs(
    make: Make, task: Task, git: Git, tmp_path: Path, where: str, kind: str
) -> None:
    repository = make({"train.py": "A = 1\n", "data.txt": "1\n"})
    ran = tmp_path / "ran"
    git(repository.root, "config", f"filter.evil.{kind}", f"touch '{ran}'; cat")
    git(repository.root, "config", "filter.evil.clean", f"touch '{ran}'; cat")
    git(repository.root, "config", "filter.evil.required", "true")
    export = Export(repository, "w")
    made = export.checkout(repository.head(), task)
    line = "* filter=evil\n"
    if where == "config":
        (tmp_path / "lines").write_text(line)
        git(repository.root, "config", "core.attributesFile", str(tmp_path / "lines"))
    elif where == "attributes":
        (repository.root / ".git" / "info" / "attributes").write_text(line)
    else:
        (made.path / ".gitattributes").write_text(line)  # what a run left
    head = commit_of(repository, train_py=b"A = 2\n")
    (made.path / "data.txt").write_text("2\n")
    assert git_export.changed(repository, repository.head(), made.path, ["data.txt"])
    export.checkout(head, task)
    assert tree_of(made.path) == {"train.py": b"A = 2\n", "data.txt": b"1\n"}
    assert not ran.exists()


def test_a_hook_of_the_repository_never_runs(repository: Repository, task: Task) -> None:
    ran = repository.root.parent / "ran"
    hook = repository.root / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    hook.chmod(0o755)
    Export(repository, "w").checkout(repository.head(), task)
    assert not ran.exists()


def _junk(path: Path) -> None:
    (path / "junk").mkdir()
    (path / "junk" / "file").write_text("x")
    (path / ".gitignore").write_text("ignored\n")
    (path / "ignored").write_text("x")
    (path / "empty" / "deep").mkdir(parents=True)


def _locked(path: Path) -> None:
    (path / "lib" / "inner").chmod(0)
    (path / "lib").chmod(0o500)
    (path / "train.py").chmod(0)
    (path / "closed" / "deep").mkdir(parents=True)
    (path / "closed" / "deep" / "file").write_text("x")
    (path / "closed").chmod(0)


def _kinds(path: Path) -> None:
    (path / "train.py").unlink()
    os.mkfifo(path / "train.py")
    (path / "prepare.py").unlink()
    (path / "prepare.py").mkdir()
    (path / "prepare.py" / "x").write_text("x")
    shutil.rmtree(path / "lib")
    (path / "lib").write_text("x")


def _same_looks(path: Path) -> None:
    was = (path / "train.py").stat()
    (path / "train.py").write_text("A = 9\n")
    os.utime(path / "train.py", ns=(was.st_atime_ns, was.st_mtime_ns))


def _linked(path: Path) -> None:
    """Replace by a link to a copy."""
    elsewhere = Path(str(path).partition("/worktrees/")[0]).parent / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "junk": _junk,
    "rights": _locked,
    "kinds": _kinds,
    "same size and time": _same_looks,
    "a folder is a link": lambda path: _linked(path / "lib"),
    "the checkout is a link": _linked,
    "mode": lambda path: (path / "train.py").chmod(0o777),
    "deleted": lambda path: shutil.rmtree(path),
    "nested repository": lambda path: subprocess.run(
        ["git", "init", "-q", str(path / "nested")], check=True
    ),
    "a repository in it": lambda path: subprocess.run(["git", "init", "-q", path], check=True),
}


@pytest.fixture
def parted(make: Make) -> Repository:
    return make(
        {"train.py": "A = 1\n", "prepare.py": "B = 1\n", "lib/inner/a.py": "C = 1\n", "ü ": "D\n"}
    )


@pytest.mark.parametrize("other", [False, True], ids=["the same commit", "another commit"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_a_run_did_to_its_checkout_is_gone_at_the_next(
    parted: Repository, task: Task, damage: str, other: bool
) -> None:
    export, head = Export(parted, "w"), parted.head()
    path = export.checkout(head, task).path
    good = tree_of(path)
    DAMAGE[damage](path)
    if other:
        head, good["train.py"] = commit_of(parted, train_py=b"A = 2\n"), b"A = 2\n"
    export.checkout(head, task)
    assert tree_of(path) == good
    assert sorted(one.name for one in path.iterdir()) == ["lib", "prepare.py", "train.py", "ü "]
    assert not path.is_symlink() and not (path / "lib").is_symlink()
    assert (path / "train.py").stat().st_mode & 0o111 == 0
    if damage.endswith("is a link"):
        assert list((parted.root.parent / "elsewhere").rglob("a.py")), "links are not followed"


def test_files_that_are_in_both_commits_are_not_written_again(
    parted: Repository, task: Task
) -> None:
    export = Export(parted, "w")
    path = export.checkout(parted.head(), task).path
    before = (path / "prepare.py").stat()
    export.checkout(commit_of(parted, train_py=b"A = 2\n"), task)
    after = (path / "prepare.py").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (path / "train.py").read_text() == "A = 2\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("exports/w/index", None),
        ("exports/w/index", "DIRC damaged"),
        ("exports/w/index.lock", ""),
        ("exports/w", None),
        ("export/HEAD", None),
        ("export/config", '[filter "lfs"]\n process = exit 1\n'),
        ("../../worktrees/.runs/.git", None),
    ],
)
def test_what_is_known_of_an_export_may_be_damaged(
    parted: Repository, task: Task, file: str, content: str | None
) -> None:
    export = Export(parted, "w")
    path = export.checkout(parted.head(), task).path
    damaged = parted.common_dir / "autohypothesis" / file
    if content is not None:
        damaged.write_text(content)
    elif damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        damaged.unlink()
    (path / "prepare.py").write_text("B = 2\n")
    export.checkout(commit_of(parted, train_py=b"A = 2\n"), task)
    assert (path / "prepare.py").read_text() == "B = 1\n"
    assert (path / "train.py").read_text() == "A = 2\n"
    assert (path.parent / ".git").read_text() == GIT_BARRIER


def check_out_again_and_again(repository: Repository, told: int, *commits: str) -> None:
    os.setsid()
    while True:
        for commit in commits:
            Export(repository, "w").checkout(commit, foreign_task())
            os.write(told, b".")


def test_a_checkout_that_is_killed_at_any_moment_is_made_whole(make: Make, task: Task) -> None:
    files = {f"d{n % 7}/f{n}.txt": f"{n}\n" * 9 for n in range(150)}
    repository = make(files)
    head = repository.head()
    changed = dict.fromkeys(list(files)[::2], b"2\n") | {"new/x.txt": b"new\n"}
    other = repository.commit_tree(repository.tree_with(head, changed), [head], "x\n")
    for moment in range(6):
        heard, told = os.pipe()
        making = forked(check_out_again_and_again, repository, told, other, head)
        os.read(heard, 1)
        time.sleep(0.007 * moment)
        assert making.pid is not None
        os.killpg(making.pid, signal.SIGKILL)
        making.join()
        os.close(heard)
        os.close(told)
        made = Export(repository, "w").checkout(head, task)
        assert tree_of(made.path) == {path: text.encode() for path, text in files.items()}


@pytest.mark.parametrize("in_the_way", ["file", "folder", "link"])
def test_somebody_elses_files_in_the_place_of_the_exports_are_not_touched(
    repository: Repository, task: Task, tmp_path: Path, in_the_way: str
) -> None:
    place = repository.root / "worktrees" / ".runs"
    place.parent.mkdir()
    if in_the_way == "file":
        place.write_text("mine")
    else:
        mine = place if in_the_way == "folder" else tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("mine")
        if in_the_way == "link":
            place.symlink_to(mine)
    with pytest.raises(GitError, match="in the way"):
        Export(repository, "w").checkout(repository.head(), task)
    assert place.is_file() or (place / "thesis.txt").read_text() == "mine"


# ── as git does it ──────────────────────────────────────────────────────────────────────────


def test_line_ends_modes_and_links_are_as_in_a_checkout(make: Make, task: Task, git: Git) -> None:
    repository = make(
        {
            ".gitattributes": "*.bat text eol=crlf\n*.id ident\n*.bin -text\n*.no export-ignore\n",
            "a.bat": "one\ntwo\n", "a.txt": "one\n", "a.id": "$Id$\n", "a.bin": "x\r\n", "a.no": "",
        }
    )  # fmt: skip
    root = repository.root
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("a.txt")
    (root / "away").symlink_to("/nowhere/at/all")
    git(root, "config", "core.autocrlf", "true")
    head = committed(repository)
    plain = root.parent / "plain"
    git(root, "worktree", "add", "-q", "--detach", str(plain), head)
    path = Export(repository, "w").checkout(head, task).path
    for name in sorted({one.name for one in plain.iterdir()} - {".git"}):
        theirs, ours = plain / name, path / name
        assert ours.lstat().st_mode == theirs.lstat().st_mode, name
        if theirs.is_symlink():
            assert os.readlink(ours) == os.readlink(theirs)
        else:
            assert ours.read_bytes() == theirs.read_bytes(), name
    assert (path / "a.bat").read_bytes() == b"one\r\ntwo\r\n"
    assert b"$Id: " in (path / "a.id").read_bytes()


def test_what_is_scored_is_a_copy_of_the_commit_without_what_an_earlier_run_left(
    make: Make, task: Task
) -> None:
    repository = make({"train.py": "A = 1\n", "lib/part.py": "B = 2\n"})
    export = Export(repository, "w")
    made = export.checkout(repository.head(), task)
    copy = export.candidate(made)
    assert tree_of(copy) == tree_of(made.path) and copy != made.path
    assert (copy / "train.py").stat().st_ino != (made.path / "train.py").stat().st_ino
    (made.path / "helper.py").write_text("left = True")
    (copy / "helper.py").write_text("left = True")
    assert "helper.py" not in tree_of(export.candidate(made))


def test_a_change_of_the_line_ends_setting_reaches_the_next_checkout(
    repository: Repository, task: Task, git: Git
) -> None:
    export = Export(repository, "w")
    path = export.checkout(repository.head(), task).path
    git(repository.root, "config", "core.autocrlf", "true")
    export.checkout(commit_of(repository, train_py=b"A = 2\n"), task)
    assert (path / "train.py").read_bytes() == b"A = 2\r\n"


def test_a_repository_with_long_object_names_odd_names_and_a_sparse_checkout_is_exported_whole(
    tmp_path: Path, task: Task, git: Git
) -> None:
    root, odd = tmp_path / "long", os.fsdecode(b"caf\xe9.txt")
    root.mkdir()
    git(root, "init", "-q", "-b", "main", "--object-format=sha256")
    for name in ("train.py", odd, "lib.py"):
        (root / name).write_text("A = 1\n")
    repository = Repository(root)
    head = committed(repository)
    git(root, "sparse-checkout", "set", "--no-cone", "/train.py")
    made = Export(repository, "w").checkout(head, task)
    assert len(head) == 64 and not (root / "lib.py").exists()
    assert tree_of(made.path) == dict.fromkeys(["train.py", odd, "lib.py"], b"A = 1\n")
    assert odd in made.files
