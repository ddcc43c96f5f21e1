"""What a training does to its checkout, and that it is named."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis.engine.environment import installed, site_folders
from autohypothesis.engine.task import ScorerConfig, Task, protected_blobs
from autohypothesis.engine.workspace import (
    Checkout,
    CheckoutBaseline,
    Workspace,
    changes_since,
    take_baseline,
)
from autohypothesis.errors import ChangeError, LaunchError
from autohypothesis.records.git import Repository
from tests.conftest import run_git

Looked = tuple[Repository, Path, CheckoutBaseline, Path]


@pytest.fixture
def looked(make: Callable[..., Repository], tmp_path: Path) -> Looked:
    repository = make(
        {
            "train.py": "DEPTH = 1\n",
            "prepare.py": "print('data')\n",
            "lib/inner/a.py": "A = 1\n",
            "ü b.txt": "text\n",
        }
    )
    (repository.root / "link").symlink_to("prepare.py")
    repository._run("add link")
    repository._run("commit -q -m", "a link")
    site = tmp_path / "site-packages"
    (site / "torch-2.0.dist-info").mkdir(parents=True)
    (site / "torch-2.0.dist-info" / "RECORD").write_text("")
    head = repository.head()
    checkout = Workspace(repository, "one").checkout(head)
    before = take_baseline(Checkout(checkout, head, repository.entries(head)), [site])
    return repository, checkout, before, site


def test_an_honest_training_touches_nothing(looked: Looked) -> None:
    repository, checkout, before, _ = looked
    (checkout / "__pycache__").mkdir()
    (checkout / "weights.pt").write_bytes(b"1")
    (checkout / "lib" / "new.txt").write_text("a new file")
    os.utime(checkout / "train.py")
    (checkout / "prepare.py").write_text("print('data')\n")  # rewritten with its own content
    assert changes_since(repository, checkout, before) == []


def _edit_with_the_old_time(p: Path) -> None:
    path = p / "prepare.py"
    was = path.stat()
    path.write_text("print('DATA')\n")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def _edit_and_commit(p: Path) -> None:
    """A training may call git as well; what counts is the commit that was to run."""
    (p / "prepare.py").write_text("cheat()\n")
    run_git(p, "commit", "-qam", "hidden")


def _replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda p: ((p / name).unlink(), by(p / name))


def _link_to_a_copy(p: Path) -> None:
    shutil.copytree(p / "lib", p / "copy")
    shutil.rmtree(p / "lib")
    (p / "lib").symlink_to("copy")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda p: (p / "prepare.py").write_text("cheat\n"), "prepare.py was changed"),
        (lambda p: (p / "prepare.py").write_text("print('DATA')\n"), "prepare.py was changed"),
        (lambda p: (p / "train.py").write_text("D = 2\n"), "train.py was changed"),
        (lambda p: (p / "ü b.txt").write_text("T"), "ü b.txt was changed"),
        (lambda p: (p / "prepare.py").unlink(), "prepare.py was deleted"),
        (lambda p: shutil.rmtree(p / "lib"), "lib/inner/a.py was deleted"),
        (_edit_with_the_old_time, "prepare.py was changed"),
        (_edit_and_commit, "prepare.py was changed"),
        (_replaced("prepare.py", lambda p: p.symlink_to("train.py")),
         "prepare.py was replaced by a symbolic link"),
        (_replaced("prepare.py", lambda p: p.mkdir()), "prepare.py was replaced by a folder"),
        (_replaced("prepare.py", os.mkfifo), "prepare.py was replaced by a named pipe"),
        (_replaced("link", lambda p: p.symlink_to("/etc/passwd")),
         "the symbolic link link was replaced"),
        (_link_to_a_copy,
         "the folder lib of lib/inner/a.py was replaced by a symbolic link"),
    ],
)  # fmt: skip
def test_a_touched_file_is_named_and_never_opened_as_something_else(
    looked: Looked, act: Callable[[Path], object], said: str
) -> None:
    repository, checkout, before, _ = looked
    act(checkout)
    assert changes_since(repository, checkout, before) == [said]


def test_a_huge_file_in_place_of_a_small_one_is_not_read(looked: Looked) -> None:
    repository, checkout, before, _ = looked
    os.truncate(checkout / "prepare.py", 1 << 40)
    started = time.monotonic()
    assert changes_since(repository, checkout, before) == ["prepare.py was changed"]
    assert time.monotonic() - started < 60  # a terabyte takes minutes


def test_installed_removed_and_reinstalled_packages_are_named(looked: Looked) -> None:
    repository, checkout, before, site = looked
    (site / "evil-1.0.dist-info").mkdir()
    (problem,) = changes_since(repository, checkout, before)
    assert problem.startswith("evil-1.0.dist-info was installed in ")
    (site / "evil-1.0.dist-info").rmdir()
    os.utime(site / "torch-2.0.dist-info" / "RECORD", ns=(1, 1))
    assert "torch-2.0.dist-info" in changes_since(repository, checkout, before)[0]
    shutil.rmtree(site / "torch-2.0.dist-info")
    (site / "hook.pth").write_text("import cheat\n")
    words = changes_since(repository, checkout, before)
    assert [word.split(" in ")[0].split(" from ")[0] for word in words] == [
        "hook.pth was installed",
        "torch-2.0.dist-info was removed",
    ]


def test_without_a_sandbox_packages_and_data_that_were_edited_in_place_are_named(
    looked: Looked,
) -> None:
    repository, checkout, before, site = looked
    (site / "torch" / "nn").mkdir(parents=True)
    module = site / "torch" / "nn" / "loss.py"
    module.write_text("loss = 1")
    data = site.parent / "data"
    data.mkdir()
    (data / "val.npy").write_text("text")
    before.watch([data])
    (site / "torch" / "__pycache__").mkdir()
    (site / "torch" / "__pycache__" / "loss.pyc").write_text("an import writes this")
    assert changes_since(repository, checkout, before) == []
    times = module.stat()
    module.write_text("loss = 0")  # as long as before
    os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))
    (site / "sitecustomize.py").write_text("import cheat")
    (data / "val.npy").write_text("easy")
    assert changes_since(repository, checkout, before) == [
        f"val.npy in {data} was changed or installed again",
        f"sitecustomize.py was installed in {site}",
        f"torch in {site} was changed or installed again",
    ]


def test_a_thousand_touched_files_are_a_short_list(
    make: Callable[..., Repository], tmp_path: Path
) -> None:
    repository = make({f"f{n}": "1\n" for n in range(60)})
    head = repository.head()
    checkout = Workspace(repository, "one").checkout(head)
    before = take_baseline(Checkout(checkout, head, repository.entries(head)), [])
    for n in range(60):
        (checkout / f"f{n}").unlink()
    assert changes_since(repository, checkout, before)[-1] == "and 52 more"


def test_the_folders_of_this_python_are_found() -> None:
    names = {Path(one).name.lower().split("-")[0] for one in installed(map(str, site_folders()))}
    assert "pydantic" in names


def test_a_python_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="does not start"):
        site_folders(str(tmp_path / "python"))


def test_a_commit_without_its_evaluator_is_refused(repository: Repository, task: Task) -> None:
    scored = task.model_copy(update={"scorer": ScorerConfig(type="model", evaluator="helper2.py")})
    entries = repository.entries(repository.head())
    with pytest.raises(ChangeError, match=r"has no helper2\.py.*did you mean 'helper\.py'"):
        protected_blobs(scored, entries)
    assert set(protected_blobs(task, entries)) == {"helper.py"}
