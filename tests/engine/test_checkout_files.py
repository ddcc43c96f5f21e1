"""What a checkout has beside plain files: submodules, git-lfs, included files, a repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine import untracked_files
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import (
    Checkout,
    Export,
    changes_since,
    find_importable_additions,
    take_baseline,
)
from autohypothesis.errors import GitError, LaunchError
from autohypothesis.records import git_export
from autohypothesis.records.git import Repository
from tests.conftest import NewRepository, run_git
from tests.engine.conftest import committed

Make = Callable[..., Repository]
Git = Callable[..., str]


def with_run(task: Task, **values: object) -> Task:
    return task.model_copy(update={"run": task.run.model_copy(update=values)})


def checked_out(repository: Repository, task: Task) -> Checkout:
    return Export(repository, "w").checkout(repository.head(), task)


# ── submodules ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def nested_template(
    tmp_path_factory: pytest.TempPathFactory, new_repository: NewRepository
) -> Path:
    """A repository with a submodule `lib/part`, which has one of its own, `deep`."""
    folder = tmp_path_factory.mktemp("nested")
    deep = new_repository(folder / "deep", {"d.txt": "deep\n"})
    part = new_repository(folder / "part", {"p.py": "P = 1\n"})
    top = new_repository(folder / "top", {"train.py": "A = 1\n"})
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    run_git(part, *add, str(deep), "deep")
    run_git(part, "commit", "-q", "-m", "deep")
    run_git(top, *add, str(part), "lib/part")
    update = ("submodule", "--quiet", "update", "--init", "--recursive")
    run_git(top, "-c", "protocol.file.allow=always", *update)
    run_git(top, "commit", "-q", "-m", "part")
    for original in (deep, part):  # nothing is fetched
        shutil.rmtree(original)
    return top


@pytest.fixture
def nested(nested_template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(nested_template, tmp_path / "top")))


def test_a_submodule_stands_at_the_commit_that_each_candidate_names(
    nested: Repository, task: Task, git: Git
) -> None:
    before = nested.head()
    made = checked_out(nested, task)
    assert {"lib/part/p.py", "lib/part/deep/d.txt"} <= made.files.keys()
    assert not list(made.path.rglob(".git"))
    inside = nested.root / "lib" / "part"
    (inside / "p.py").write_text("P = 2\n")
    (inside / "new.py").write_text("N = 1\n")
    git(inside, "add", "-A")
    git(inside, "commit", "-q", "-m", "two")
    git(nested.root, "commit", "-q", "-a", "-m", "two")
    export = Export(nested, "w")
    place = export.checkout(nested.head(), task).path / "lib" / "part"
    assert (place / "p.py").read_text() == "P = 2\n" and (place / "new.py").exists()
    export.checkout(before, task)
    assert (place / "p.py").read_text() == "P = 1\n" and not (place / "new.py").exists()
    assert (place / "deep" / "d.txt").exists()


def test_a_changed_file_of_a_submodule_is_seen_and_put_right(
    nested: Repository, task: Task
) -> None:
    made = checked_out(nested, task)
    before = take_baseline(made, [])
    file = made.path / "lib" / "part" / "deep" / "d.txt"
    was = file.stat()
    file.write_text("DEEP\n")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert changes_since(nested, made.path, before) == ["lib/part/deep/d.txt was changed"]
    checked_out(nested, task)
    assert file.read_text() == "deep\n"


def test_a_filter_that_a_submodules_repository_configures_never_runs(
    nested: Repository, task: Task, git: Git, tmp_path: Path
) -> None:
    modules = nested.root / ".git" / "modules" / "lib" / "part"
    git(modules, "config", "--file", "config", "filter.evil.smudge", f"touch {tmp_path}/ran; cat")
    (modules / "info" / "attributes").write_text("* filter=evil\n")
    made = checked_out(nested, task)
    assert (made.path / "lib" / "part" / "p.py").read_text() == "P = 1\n"
    assert not (tmp_path / "ran").exists()


def test_a_link_to_a_commit_that_no_gitmodules_names_is_an_empty_folder(
    repository: Repository, task: Task, git: Git
) -> None:
    listed = f"160000,{'1' * 40},odd"
    git(repository.root, "update-index", "--add", "--cacheinfo", listed)
    git(repository.root, "commit", "-q", "-m", "odd")
    made = checked_out(repository, task)
    assert list((made.path / "odd").iterdir()) == []


# ── git-lfs ─────────────────────────────────────────────────────────────────────────────────

needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


@pytest.fixture
def large(make: Make, git: Git) -> Repository:
    repository = make(
        {".gitattributes": "*.bin filter=lfs diff=lfs -text\n", "train.py": "A = 1\n"}
    )
    git(repository.root, "lfs", "install", "--local", "--skip-repo")
    (repository.root / "w.bin").write_bytes(b"weights" * 1000)
    committed(repository)
    assert repository.show_file(repository.head(), "w.bin").startswith(b"version https://git-lfs")
    return repository


@needs_lfs
def test_a_file_of_git_lfs_has_its_contents_and_is_not_written_again(
    large: Repository, task: Task
) -> None:
    made = checked_out(large, task)
    file = made.path / "w.bin"
    assert file.read_bytes() == b"weights" * 1000
    inode = file.stat().st_ino
    head = large.head()
    tree = large.tree_with(head, {"train.py": b"A = 2\n"})
    Export(large, "w").checkout(large.commit_tree(tree, [head], "x\n"), task)
    assert file.read_bytes() == b"weights" * 1000 and file.stat().st_ino == inode


@needs_lfs
def test_a_file_of_git_lfs_that_a_run_changed_is_named(large: Repository, task: Task) -> None:
    made = checked_out(large, task)
    before = take_baseline(made, [])
    (made.path / "w.bin").write_bytes(b"weights" * 1000)
    assert changes_since(large, made.path, before) == []
    (made.path / "w.bin").write_bytes(b"WEIGHTS" * 1000)
    assert changes_since(large, made.path, before) == ["w.bin was changed"]


@needs_lfs
def test_a_file_of_git_lfs_that_is_not_here_is_refused_until_it_is(
    large: Repository, task: Task, git: Git
) -> None:
    objects, aside = large.root / ".git" / "lfs" / "objects", large.root / ".git" / "lfs" / "aside"
    objects.rename(aside)
    git(large.root, "config", "lfs.url", "http://127.0.0.1:9/nowhere")
    with pytest.raises(GitError, match=r"w\.bin: the contents are kept by git-lfs") as refused:
        checked_out(large, task)
    assert "git lfs pull" in str(refused.value)
    with pytest.raises(GitError, match=r"w\.bin: the contents"):
        git_export.refuse_missing(large, large.head())
    shutil.rmtree(objects, ignore_errors=True)
    aside.rename(objects)
    git_export.refuse_missing(large, large.head())
    assert (checked_out(large, task).path / "w.bin").read_bytes() == b"weights" * 1000


def test_without_git_lfs_a_pointer_is_refused(
    make: Make, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 7\n"
    repository = make({".gitattributes": "*.bin filter=lfs -text\n", "w.bin": pointer})
    (tmp_path / "bin").mkdir()
    for name in ("git", "env", "sh"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for ask in (lambda: checked_out(repository, task),
                lambda: git_export.refuse_missing(repository, repository.head())):  # fmt: skip
        with pytest.raises(GitError, match=r"w\.bin.*install git-lfs"):
            ask()


# ── included files ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_data(make: Make) -> Repository:
    """A repository that ignores `data/` and `*.env`, and has both."""
    repository = make(
        {"train.py": "A = 1\n", ".gitignore": "data/\n*.env\n", "lib/a.py": "A = 1\n"}
    )
    (repository.root / "data" / "deep").mkdir(parents=True)
    (repository.root / "data" / "x.txt").write_text("0.5\n")
    (repository.root / "data" / "deep" / "y.txt").write_text("1\n")
    (repository.root / "lib" / "local.env").write_text("KEY=1\n")
    (repository.root / "notes.txt").write_text("untracked\n")
    return repository


def include(repository: Repository, *lines: str) -> None:
    (repository.root / ".worktreeinclude").write_text("\n".join(["# for runs", *lines, ""]))


def names_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


TRACKED = {"train.py", ".gitignore", "lib/a.py"}


@pytest.mark.parametrize("where", ["file", "task"])
def test_small_files_that_patterns_match_are_copied(
    with_data: Repository, task: Task, where: str
) -> None:
    lines = ("data/", "*.env", "/notes.*")
    if where == "file":
        include(with_data, *lines)
    else:
        task = with_run(task, include=lines)
    made = checked_out(with_data, task)
    copied = {"data/x.txt", "data/deep/y.txt", "lib/local.env", "notes.txt"}
    assert names_of(made.path) == TRACKED | copied
    assert made.copies.keys() == copied
    assert made.included.keys() == {"data/", "lib/local.env", "notes.txt"}
    assert not any(path.is_symlink() for path in made.path.rglob("*"))


def test_a_copy_is_made_again_when_the_original_changed(with_data: Repository, task: Task) -> None:
    include(with_data, "data/")
    first = checked_out(with_data, task)
    (with_data.root / "data" / "x.txt").write_text("0.7\n")
    second = checked_out(with_data, task)
    assert (second.path / "data" / "x.txt").read_text() == "0.7\n"
    assert second.included != first.included
    (with_data.root / "data" / "x.txt").unlink()
    assert not (checked_out(with_data, task).path / "data" / "x.txt").exists()
    (with_data.root / ".worktreeinclude").unlink()
    assert names_of(checked_out(with_data, task).path) == TRACKED


def test_what_a_run_does_to_a_copy_is_named_undone_and_never_reaches_the_original(
    with_data: Repository, task: Task
) -> None:
    include(with_data, "data/")
    made = checked_out(with_data, task)
    before = take_baseline(made, [])
    (made.path / "data" / "new.txt").write_text("a cache of its own\n")
    (made.path / "data" / "x.txt").write_text("0.5\n")
    assert changes_since(with_data, made.path, before) == []
    copy = made.path / "data" / "x.txt"
    was = copy.stat()
    copy.write_text("9.9\n")
    os.utime(copy, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert changes_since(with_data, made.path, before) == ["data/x.txt was changed"]
    assert (with_data.root / "data" / "x.txt").read_text() == "0.5\n"
    assert (checked_out(with_data, task).path / "data" / "x.txt").read_text() == "0.5\n"
    assert not (made.path / "data" / "new.txt").exists()


def test_a_copy_below_a_link_of_the_commit_is_refused_and_nothing_is_written_there(
    with_data: Repository, task: Task, git: Git, tmp_path: Path
) -> None:
    """The user has a folder where the commit that is tried has a link."""
    data, outside, before = with_data.root / "data", tmp_path / "outside", with_data.head()
    outside.mkdir()
    shutil.move(data, tmp_path / "data")
    data.mkdir()
    (data / "deep").symlink_to(outside)
    git(with_data.root, "add", "--force", "data/deep")
    commit = committed(with_data)
    git(with_data.root, "checkout", "-q", before)
    shutil.move(tmp_path / "data", data)
    include(with_data, "data/")
    with pytest.raises(LaunchError, match="the commit has a link on the way there"):
        Export(with_data, "w").checkout(commit, task)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "folder", "many"])
def test_what_is_large_is_linked(
    with_data: Repository, task: Task, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(untracked_files, "COPIED_BYTES", 100)
    monkeypatch.setattr(untracked_files, "COPIED_FILES", 5)
    data = with_data.root / "data"
    if what == "many":
        for number in range(9):
            (data / f"{number}.txt").write_text("")
    else:
        (data / "big.bin").write_bytes(b"x" * 200)
    include(with_data, "/data/big.bin" if what == "file" else "data/")
    for _ in range(2):
        made = checked_out(with_data, task)
        place = made.path / "data" / "big.bin" if what == "file" else made.path / "data"
        assert place.is_symlink()
        assert list(made.links.values()) == [data / "big.bin" if what == "file" else data]
        ((said,),) = [list(made.included.values())]
        assert said == ("linked, 200 bytes" if what == "file" else "linked folder")
    place.unlink()
    place.symlink_to("/etc")  # what a run may do to its own checkout
    checked_out(with_data, task)
    assert [place.resolve()] == list(made.links.values())
    (data / "big.bin").unlink(missing_ok=True)
    for number in range(9):
        (data / f"{number}.txt").unlink(missing_ok=True)
    include(with_data, "data/")
    place = checked_out(with_data, task).path / "data"
    assert not place.is_symlink() and (place / "x.txt").read_text() == "0.5\n"
    assert (data / "x.txt").exists()


def test_links_among_the_users_files_lead_where_they_led(
    with_data: Repository, task: Task, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "z.txt").write_text("far\n")
    data = with_data.root / "data"
    (data / "near").symlink_to("x.txt")
    (data / "far").symlink_to("../../disk/z.txt")
    (with_data.root / "corpus").symlink_to("../disk")
    include(with_data, "data/", "corpus")
    made = checked_out(with_data, task)
    assert (made.path / "corpus" / "z.txt").read_text() == "far\n"
    assert (made.path / "data" / "far").read_text() == "far\n"
    assert os.readlink(made.path / "data" / "near") == "x.txt"


def test_a_folder_that_the_commit_fills_too_keeps_the_commits_files(
    with_data: Repository, task: Task, git: Git
) -> None:
    git(with_data.root, "add", "--force", "data/x.txt")
    git(with_data.root, "commit", "-q", "-m", "one of them")
    (with_data.root / "data" / "x.txt").write_text("edited\n")
    include(with_data, "data/")
    made = checked_out(with_data, task)
    assert (made.path / "data" / "x.txt").read_text() == "0.5\n"
    assert (made.path / "data" / "deep" / "y.txt").exists()


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["*"], {"data/x.txt", "data/deep/y.txt", "data/cache/z.npy", "lib/local.env", "notes.txt",
                 "lib/cache/z.npy", "lib/cache/other", ".worktreeinclude"}),
        (["/data/*", "!/data/deep"], {"data/x.txt", "data/cache/z.npy"}),
        (["/lib/cache/z.npy"], {"lib/cache/z.npy"}),  # in a new folder beside tracked files
    ],
)  # fmt: skip
def test_patterns_include_what_git_would_match_and_nothing_of_ours(
    with_data: Repository, task: Task, lines: list[str], names: set[str]
) -> None:
    include(with_data, *lines)
    for name in ("research/x.json", "data/cache/z.npy", "lib/cache/z.npy", "lib/cache/other"):
        (with_data.root / name).parent.mkdir(exist_ok=True)
        (with_data.root / name).write_text("{}")
    os.mkfifo(with_data.root / "data" / "pipe")
    for _ in range(2):  # the second time, our folder of worktrees is there
        assert names_of(checked_out(with_data, task).path) == TRACKED | names


def test_a_link_to_a_users_file_is_no_planted_module_and_no_run_may_turn_it(
    with_data: Repository, task: Task
) -> None:
    (with_data.root.parent / "kit.py").write_text("K = 1\n")
    (with_data.root / "kit.py").symlink_to("../kit.py")
    include(with_data, "kit.py")
    made = checked_out(with_data, task)
    before = take_baseline(made, [])
    scored = {"scorer": {"type": "command", "command": ["python", "train.py"]}}
    judged = Task.model_validate({"id": "t", "artifacts": ["a.txt"], **scored})
    assert find_importable_additions(judged, made.path, before) == []
    assert changes_since(with_data, made.path, before) == []
    (made.path / "kit.py").unlink()
    (made.path / "kit.py").symlink_to("/etc/hostname")
    assert changes_since(with_data, made.path, before) == ["the symbolic link kit.py was replaced"]


def test_a_file_that_cannot_be_read_is_named(
    with_data: Repository, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    include(with_data, "data/")
    secret, opened = with_data.root / "data" / "x.txt", open

    def refused(file: object, *words: object) -> object:
        if str(file) == str(secret):
            raise PermissionError(13, "Permission denied")
        return opened(file, *words)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(LaunchError, match=r"x\.txt cannot be brought .* Permission denied"):
        checked_out(with_data, task)


# ── a repository of its own ─────────────────────────────────────────────────────────────────


def test_a_script_that_asks_git_gets_a_repository_of_one_commit(
    make: Make, task: Task, git: Git
) -> None:
    repository = make({"train.py": "A = 1\n", "lib/a.py": "B = 1\n"})
    git(repository.root, "config", "alias.leak", "!touch leaked")
    task = with_run(task, git=True)
    made = checked_out(repository, task)
    secret = repository.root.parent / "away"
    shutil.move(repository.root / ".git", secret)  # it needs nothing of the repository
    assert git(made.path, "status", "--porcelain") == ""
    assert git(made.path, "describe", "--dirty") == "v0.0.0"
    first = git(made.path, "rev-parse", "HEAD")
    assert git(made.path, "log", "--format=%s|%at|%P") == "The checkout of a run|0|"
    assert git(made.path, "ls-files").splitlines() == ["lib/a.py", "train.py"]
    assert git(made.path, "show", "HEAD:train.py") == "A = 1"
    assert git(made.path, "fsck", "--strict") == ""
    assert "leak" not in (made.path / ".git" / "config").read_text()
    (made.path / "train.py").write_text("A = 2\n")
    git(made.path, "commit", "-q", "-a", "-m", "by the run")
    shutil.move(secret, repository.root / ".git")
    again = checked_out(repository, task)
    assert git(again.path, "rev-parse", "HEAD") == first, "made anew, and the same for the same"
    tree = repository.tree_with(repository.head(), {"train.py": b"A = 2\n"})
    other = repository.commit_tree(tree, [repository.head()], "x\n")
    Export(repository, "w").checkout(other, task)
    assert git(made.path, "rev-parse", "HEAD") != first, "another tree is another version"
    again = checked_out(repository, task)
    assert (again.path / "train.py").read_text() == "A = 1\n"
    assert not os.path.lexists(checked_out(repository, with_run(task, git=False)).path / ".git")


def test_a_repository_of_one_commit_has_its_submodules_files_too(
    nested: Repository, task: Task
) -> None:
    made = checked_out(nested, with_run(task, git=True))
    answer = subprocess.run(
        ["git", "status", "--porcelain"], cwd=made.path, capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (0, "")
    assert (made.path / "lib" / "part" / "p.py").exists()
