"""What git does to a user, and to itself, when it is called carelessly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import ChangeError, GitError
from autohypothesis.records.git import EXPERIMENTS, SALVAGE, Repository, experiment_ref
from tests.conftest import forked, run_git, wait_until
from tests.engine.conftest import commit_of

Git = Callable[..., str]
Make = Callable[..., Repository]


def test_what_is_no_repository_yet_says_what_to_do(tmp_path: Path, git: Git) -> None:
    with pytest.raises(GitError, match="is not a folder"):
        Repository.find(tmp_path / "absent")
    with pytest.raises(GitError, match="git init"):
        Repository.find(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(GitError, match=r"no commit yet.*git commit"):
        Repository.find(tmp_path).head()


def test_the_environment_of_a_calling_git_is_not_seen(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started from a hook, GIT_DIR and GIT_INDEX_FILE name another repository."""
    head = repository.head()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other-index"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    assert Repository.find(repository.root).head() == head
    commit = repository.commit_tree(repository.tree_of(head), [head], "x\n")
    monkeypatch.delenv("GIT_DIR")
    assert b"author Autohypothesis <" in repository._run("cat-file commit", commit).out


def test_a_snapshot_leaves_index_and_working_tree_as_they_are(
    repository: Repository, git: Git
) -> None:
    root = repository.root
    (root / "train.py").write_text("DEPTH = 9\n")
    (root / "staged.txt").write_text("staged\n")
    git(root, "add", "staged.txt")
    (root / "staged.txt").write_text("staged, then edited\n")
    (root / "helper.py").unlink()
    (root / "notes.txt").write_text("mine\n")
    index = (root / ".git" / "index").read_bytes()
    status = git(root, "status", "--porcelain")

    tree = repository.snapshot_tree(also=["extra/prompt.md", "train.py"])

    assert (root / ".git" / "index").read_bytes() == index
    assert git(root, "status", "--porcelain") == status
    assert set(repository.entries(tree)) == {"train.py", "staged.txt"}
    assert repository.show_file(tree, "staged.txt") == b"staged, then edited\n"


def test_a_snapshot_takes_a_new_artifact_although_it_is_ignored(make: Make) -> None:
    repository = make({".gitignore": "*.py\n"})
    (repository.root / "train.py").write_text("DEPTH = 1\n")
    assert "train.py" in repository.entries(repository.snapshot_tree(also=["train.py"]))
    assert "train.py" not in repository.entries(repository.snapshot_tree())


def test_hooks_do_not_run(repository: Repository, tmp_path: Path) -> None:
    hooks = repository.root / ".git" / "hooks"
    proof = tmp_path / "ran"
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-merge"):
        hook = hooks / name
        hook.write_text(f"#!/bin/sh\ntouch '{proof}'\n")
        hook.chmod(0o755)
    head = repository.head()
    commit = repository.commit_tree(repository.tree_with(head, {"train.py": b"\n"}), [head], "x")
    repository.compare_and_swap("refs/experiments/x", commit, None)
    repository.worktree_add(tmp_path / "w", commit, reason="test", branch="b/1")
    repository.checkout(tmp_path / "w", head)
    repository.fast_forward(commit)
    assert not proof.exists()


def test_a_user_who_signs_and_prefixes_changes_nothing(repository: Repository) -> None:
    with (repository.root / ".git" / "config").open("a") as file:
        file.write(
            "[commit]\ngpgSign = true\n[gpg]\nprogram = /bin/false\n[color]\nui = always\n"
            "[diff]\nnoprefix = true\nexternal = /bin/false\n[apply]\nwhitespace = fix\n"
        )
    head = repository.head()
    tree = repository.tree_with(head, {"train.py": b"DEPTH = 9 \n"})
    repository.commit_tree(tree, [head], "unsigned\n")
    diff = repository.diff(head, tree)
    assert diff.startswith("diff --git a/train.py b/train.py")
    assert repository.patched_tree(head, diff) == tree


def test_fast_forward_refuses_what_would_lose_something(repository: Repository, git: Git) -> None:
    head = repository.head()
    ahead = repository.commit_tree(repository.tree_with(head, {"n.txt": b"1\n"}), [head], "n\n")
    (repository.root / "train.py").write_text("mine\n")
    with pytest.raises(GitError, match="not committed"):
        repository.fast_forward(ahead)
    git(repository.root, "checkout", "-q", "--", "train.py")
    git(repository.root, "commit", "-q", "--allow-empty", "-m", "mine")
    with pytest.raises(GitError, match="is not built on"):
        repository.fast_forward(ahead)
    with pytest.raises(GitError, match="already, and commits on top"):
        repository.fast_forward(head)
    git(repository.root, "reset", "-q", "--hard", head)
    (repository.root / "n.txt").write_text("mine")
    with pytest.raises(GitError, match=r"n\.txt|overwritten"):
        repository.fast_forward(ahead)
    assert (repository.root / "n.txt").read_text() == "mine"
    (repository.root / "n.txt").unlink()
    assert repository.fast_forward(ahead) == "main"
    assert (repository.root / "n.txt").read_text() == "1\n"
    git(repository.root, "checkout", "-q", "--detach")
    with pytest.raises(GitError, match="on no branch"):
        repository.fast_forward(ahead)


def test_excluding_twice_adds_a_line_once(repository: Repository) -> None:
    path = repository.root / ".git" / "info" / "exclude"
    path.write_text("# mine, without a line break")
    repository.exclude(["/worktrees/", "/results.tsv"])
    repository.exclude(["/worktrees/", "/progress.png"])
    mine, *added = path.read_text().splitlines()
    assert mine == "# mine, without a line break"
    assert added == ["/worktrees/", "/results.tsv", "/progress.png"]


def test_a_tree_is_edited_without_a_checkout(make: Make) -> None:
    repository = make({"run.sh": "#!/bin/sh\n", "ordner ü/a b.txt": "1\n", "keep": "x\n"})
    os.chmod(repository.root / "run.sh", 0o755)
    repository._run("add run.sh")
    repository._run("commit -q -m", "executable")
    head = repository.head()
    binary = bytes(range(256)) * 9
    edits = {"run.sh": b"#!/bin/bash\n", "ordner ü/a b.txt": b"\xff\r\n", ":new name": b"",
             "blob.bin": binary}  # fmt: skip
    tree = repository.tree_with(head, edits)
    assert repository.entries(tree)["run.sh"].mode == "100755"
    assert repository.show_file(tree, "ordner ü/a b.txt") == b"\xff\r\n"
    changes = {one.path: one for one in repository.changes(head, tree)}
    assert set(changes) == set(edits)
    assert (changes["run.sh"].added, changes["run.sh"].removed) == (1, 1)
    assert changes[":new name"].status == "A"
    assert changes["blob.bin"].added is None, "a binary file has no lines"
    assert repository.patched_tree(head, repository.diff(head, tree)) == tree
    assert not repository.edited_files()


def test_a_patch_applies_wholly_or_not_at_all(repository: Repository) -> None:
    head = repository.head()
    other = repository.tree_with(head, {"train.py": b"DEPTH = 4\nX = 1\n"})
    changed = repository.tree_with(other, {"train.py": b"DEPTH = 5\nX = 1\n"})
    patch = repository.diff(other, changed)
    with pytest.raises(ChangeError, match=r"does not apply.*train\.py"):
        repository.patched_tree(head, patch)
    for outside in ("../evil.txt", "/tmp/evil.txt", ".git/config"):
        text = f"--- /dev/null\n+++ b/{outside}\n@@ -0,0 +1 @@\n+x\n"
        with pytest.raises((ChangeError, GitError)):
            repository.patched_tree(head, text)
    for garbage in ("", "no patch", "diff --git a/x b/x\n", patch[: len(patch) // 2]):
        with pytest.raises(ChangeError, match="does not apply"):
            repository.patched_tree(head, garbage)


def test_a_ref_moves_only_from_where_it_was_thought_to_be(repository: Repository) -> None:
    head = repository.head()
    one, two = (repository.commit_tree(repository.tree_of(head), [head], m) for m in ("1", "2"))
    ref = "refs/heads/autoresearch/nov20"
    assert repository.compare_and_swap(ref, one, None)
    assert not repository.compare_and_swap(ref, two, None)
    assert not repository.compare_and_swap(ref, two, head)
    assert repository.read_ref(ref) == one
    assert repository.compare_and_swap(ref, two, one)
    repository.delete_ref(ref, two)
    assert repository.read_ref(ref) is None
    with pytest.raises(GitError, match="could not be moved"):
        repository.compare_and_swap("refs/heads/bad..name", one, None)


def test_of_many_swaps_at_once_one_wins(repository: Repository) -> None:
    head = repository.head()
    commits = [repository.commit_tree(repository.tree_of(head), [head], str(n)) for n in range(8)]
    repository.compare_and_swap("refs/heads/reference", head, None)

    def swap(commit: str) -> bool:
        return repository.compare_and_swap("refs/heads/reference", commit, head)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(swap, commits))
    assert won.count(True) == 1
    assert repository.read_ref("refs/heads/reference") == commits[won.index(True)]


def test_experiments_stay_reachable_when_refs_are_packed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = repository.head()
    for number in range(3):
        commit = repository.commit_tree(repository.tree_of(head), [head], f"{number}\n")
        repository.compare_and_swap(experiment_ref(f"h-1-{number}"), commit, None)
    before = repository.experiments()
    monkeypatch.setattr("autohypothesis.records.git.LOOSE_REFS", 1)
    repository.pack_when_due()
    assert not (repository.root / ".git" / EXPERIMENTS / "h-1-0").exists()
    assert repository.experiments() == before
    assert len(before) == 3


def test_a_call_that_hangs_ends(repository: Repository, tmp_path: Path, git: Git) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    git(repository.root, "config", "filter.slow.clean", str(slow))
    (repository.root / ".git" / "info" / "attributes").write_text("*.py filter=slow\n")
    started = time.monotonic()
    with pytest.raises(GitError, match="did not complete"):
        repository._run("hash-object train.py", timeout=0.3)
    assert time.monotonic() - started < 20


def test_no_git_is_an_error_of_ours(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="git is not in PATH"):
        repository.head()


def test_sixteen_worktrees_at_once(repository: Repository, tmp_path: Path) -> None:
    head = repository.head()

    def add(number: int) -> None:
        repository.worktree_add(
            tmp_path / f"w {number}", head, reason=f"worker={number}", branch=f"a/gpu{number}"
        )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(add, range(16)))
    assert len(repository.worktrees()) == 17
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: repository.worktree_remove(tmp_path / f"w {n}"), range(16)))
    assert len(repository.worktrees()) == 1


def test_worktrees_from_many_processes_at_once(repository: Repository, tmp_path: Path) -> None:
    head = repository.head()
    running = [
        forked(repository.worktree_add, tmp_path / f"p{n}", head, reason="x", branch=f"p/{n}")
        for n in range(6)
    ]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 6
    assert len(repository.worktrees()) == 7


def test_a_killed_add_is_cleared_by_the_next(make: Make, tmp_path: Path, git: Git) -> None:
    """A smudge filter that sleeps holds `git worktree add` in the middle of its checkout."""
    repository = make({"train.py": "A = 1\n", "b.txt": "b\n"})
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\ntouch "$(dirname "$0")/reached"\nsleep 30\n')
    slow.chmod(0o755)
    git(repository.root, "config", "filter.slow.smudge", str(slow))
    (repository.root / ".git" / "info" / "attributes").write_text("*.py filter=slow\n")
    path = tmp_path / "w"
    add = ["git", "worktree", "add", "--detach", str(path), "HEAD"]
    adding = subprocess.Popen(
        add, cwd=repository.root, start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_until((tmp_path / "reached").exists)
    os.killpg(adding.pid, signal.SIGKILL)
    adding.wait()
    left = repository.worktree_at(path)
    assert left is not None
    assert left.lock_reason == "initializing"
    (repository.root / ".git" / "info" / "attributes").unlink()
    repository.worktree_add(path, repository.head(), reason="again")
    assert (path / "train.py").read_text() == "A = 1\n"
    assert len(repository.worktrees()) == 2


def test_the_main_checkout_is_never_removed(repository: Repository) -> None:
    with pytest.raises(GitError, match="stays"):
        repository.worktree_remove(repository.root)
    assert (repository.root / "train.py").exists()


def test_a_branch_of_a_worker_tracks_nothing(make: Make, tmp_path: Path, git: Git) -> None:
    repository = make()
    git(repository.root, "config", "branch.autoSetupMerge", "always")
    repository.worktree_add(tmp_path / "w", "main", reason="test", branch="a/gpu0")
    assert "a/gpu0" not in (repository.root / ".git" / "config").read_text()


# ── a worktree that is used again is as good as a new one ───────────────────────────────────


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
    repository.worktree_remove(workspace.path)
    assert not path.exists()
    assert commit is not None
    assert repository.read_ref(SALVAGE + "s-1") == commit
    assert repository.show_file(commit, "notes.txt") == b"why\n"
    assert repository.show_file(commit, "train.py") == b"half an idea\n"


def test_a_repository_without_a_commit_says_how_to_make_one_and_with_which_files(
    tmp_path: Path,
) -> None:
    run_git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("data.bin\n")
    for name in ("train.py", "data.bin"):
        (tmp_path / name).write_text("")
    for asked in (Repository(tmp_path).head, lambda: Repository(tmp_path).resolve("HEAD")):
        with pytest.raises(GitError) as caught:
            asked()
        assert "has no commit yet" in caught.value.problem
        assert caught.value.hint.endswith("commit -m start` there, with .gitignore, train.py")
