"""Where a repository may be: moved, copied, another user's, bare, linked, in a subfolder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import Answer, Cli, Git, called, rows, started


def ok(answer: Answer) -> Answer:
    assert answer.returncode == 0, answer.stderr
    return answer


def needs(root: Path) -> list[str]:
    found = json.loads(ok(called("status", "--json", cwd=root)).stdout)["needs"]
    return [need["what"] for need in found]


def repository_check(root: Path) -> dict[str, str]:
    checks = json.loads(called("doctor", "--json", cwd=root).stdout)["checks"]
    return next(check for check in checks if check["name"] == "repository")


@pytest.fixture
def fleet(cli: Cli, foreign: Path, git: Git) -> Path:
    """A fleet that has decided its baseline, and a worktree of the user's beside it."""
    ok(cli("init-fleet", "--tag", "t", "--cpu-workers", "1"))
    ok(cli("run-experiment", "--baseline", "--settle"))
    git(foreign, "worktree", "add", "-q", "-b", "mine", str(foreign.parent / "mine"))
    return foreign


def test_a_moved_repository_says_so_and_the_next_command_puts_worktrees_and_manifest_right(
    fleet: Path, git: Git, tmp_path: Path
) -> None:
    moved = tmp_path / "moved here"
    fleet.rename(moved)
    (need,) = needs(moved)
    assert f"moved here from {fleet}" in need and "worktrees cpu0" in need
    assert repository_check(moved)["verdict"] == "warning"
    said = ok(started("up", "--max-runs", "1", cwd=moved)).stderr
    assert f"moved here from {fleet}" in said
    assert len(json.loads(ok(called("runs", "--json", cwd=moved)).stdout)) == 2
    assert git(moved / "worktrees" / "cpu0", "branch", "--show-current") == "autoresearch/t-cpu0"
    assert git(tmp_path / "mine", "branch", "--show-current") == "mine"
    assert str(fleet) not in git(moved, "worktree", "list")
    made = [*(moved / "research" / "fleet").rglob("*.json"), *moved.glob("research/fleet/**/*.md")]
    assert made and not [path for path in made if str(fleet) in path.read_text()]
    assert needs(moved) == [] and repository_check(moved)["verdict"] == "ok"


def test_a_copied_repository_leaves_the_original_as_it_is(
    fleet: Path, git: Git, tmp_path: Path
) -> None:
    copy, listed = tmp_path / "copy", git(fleet, "worktree", "list", "--porcelain")
    shutil.copytree(fleet, copy, symlinks=True)
    links = [(fleet / "worktrees" / "cpu0" / ".git"), tmp_path / "mine" / ".git"]
    before = [path.read_text() for path in links]
    assert f"copied here from {fleet}" in needs(copy)[0]
    ok(called("init-fleet", "--cpu-workers", "1", cwd=copy))
    assert [path.read_text() for path in links] == before
    assert git(fleet, "worktree", "list", "--porcelain") == listed
    place = str(copy / "worktrees" / "cpu0")
    assert git(copy / "worktrees" / "cpu0", "rev-parse", "--show-toplevel") == place
    assert needs(copy) == needs(fleet) == []


def test_a_repository_that_is_at_work_is_left_alone_under_its_other_name(
    fleet: Path, tmp_path: Path
) -> None:
    from autohypothesis.records.layout import Layout
    from autohypothesis.records.locks import hold

    manifest = Layout(fleet).manifest
    manifest.write_text(manifest.read_text().replace(str(fleet), "/elsewhere"))
    before = manifest.read_bytes()
    with hold(Layout(fleet), "observer", doing="observing"):
        called("decide", cwd=fleet)
        assert manifest.read_bytes() == before
    called("decide", cwd=fleet)
    assert json.loads(manifest.read_text())["repository_root"] == str(fleet)


def test_a_worktree_whose_repository_moved_names_the_cure_of_git(
    foreign: Path, git: Git, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    git(foreign, "worktree", "add", "-q", str(linked))
    foreign.rename(tmp_path / "moved")
    said = called("status", cwd=linked).stderr
    assert f"worktree repair {linked}" in said and "git init" not in said
    git(tmp_path / "moved", "worktree", "repair", str(linked))
    ok(called("status", cwd=linked))


def test_a_repository_of_another_owner_names_the_cure_of_git(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git itself can be told to take it for another's."""
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "git"
    stand_in.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for words in (["status"], ["run-loop", "--max", "1"], ["doctor"]):
        answer = called(*words, cwd=foreign)
        said = answer.stdout + answer.stderr
        assert answer.returncode == 1 and "git init" not in said
        assert said.count("git config --global --add safe.directory") == 1, said
        assert "is not in a git checkout" not in said


@pytest.fixture
def layout_beside(foreign: Path, git: Git, tmp_path: Path) -> Path:
    """`proj/.bare`, and the checkouts `proj/main` and `proj/feature` beside it."""
    folder = tmp_path / "proj"
    git(tmp_path, "clone", "-q", "--bare", str(foreign), str(folder / ".bare"))
    for name in ("main", "feature"):
        words = ["main"] if name == "main" else ["-b", name]
        git(folder / ".bare", "worktree", "add", "-q", str(folder / name), *words)
    return folder


def test_a_bare_repository_is_searched_from_a_checkout_beside_it(
    layout_beside: Path, git: Git
) -> None:
    main, feature = layout_beside / "main", layout_beside / "feature"
    refused = called("run-loop", "--max", "2", cwd=layout_beside / ".bare")
    assert refused.returncode == 1 and f"--repo {main}" in refused.stderr
    ok(called("run-loop", "--max", "2", "--tag", "t", cwd=main))
    assert git(main, "status", "--porcelain") == ""
    assert [row["tag"] for row in rows(lambda *words: called(*words, cwd=feature))] == ["t", "t"]
    ok(called("init-fleet", "--cpu-workers", "1", cwd=main))
    ok(started("up", "--max-runs", "1", cwd=main))
    assert len(rows(lambda *words: called(*words, cwd=main))) == 3
    assert not (feature / "research").exists(), "one repository has its records in one place"
    ok(called("adopt", cwd=feature))
    assert git(feature, "rev-parse", "HEAD") == git(main, "rev-parse", "autoresearch/t")
    assert git(main, "log", "--format=%s", "main") == "start"
    layout_beside.rename(moved := layout_beside.parent / "moved proj")
    said = called("status", cwd=moved / "main").stderr
    command = said.strip().partition(" now: ")[2]
    git(moved, *shlex.split(command)[1:])
    assert f"moved here from {main}" in needs(moved / "main")[0]
    ok(called("init-fleet", "--cpu-workers", "1", cwd=moved / "main"))
    place = moved / "main" / "worktrees" / "cpu0"
    assert git(place, "rev-parse", "--show-toplevel") == str(place)


def test_a_search_from_a_linked_worktree_begins_at_its_commit_and_is_adopted_there(
    foreign: Path, git: Git, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    git(foreign, "worktree", "add", "-q", "-b", "mine", str(linked))
    script = linked / "train.py"
    script.write_text(script.read_text().replace("RATE = 0.1", "RATE = 0.05"))
    git(linked, "commit", "-qam", "mine")
    mine, main = git(linked, "rev-parse", "mine", "main").split("\n")
    ok(called("run-loop", "--max", "2", "--tag", "t", cwd=linked))
    first, second = rows(lambda *words: called(*words, cwd=linked))
    assert first["commit"] == mine and second["status"] == "keep"
    ok(called("adopt", cwd=linked))
    assert git(linked, "rev-parse", "mine", "main") == f"{second['commit']}\n{main}"
    assert (foreign / "research").is_dir() and not (linked / "research").exists()


@pytest.fixture
def nested(foreign: Path, git: Git) -> Path:
    (foreign / "my pkg").mkdir()
    git(foreign, "mv", "train.py", "my pkg/train.py")
    git(foreign, "commit", "-qm", "moved")
    return foreign


def test_a_script_in_a_subfolder_is_searched_when_the_folder_is_named(
    nested: Path, git: Git
) -> None:
    refused = called("run-loop", "--max", "2", cwd=nested)
    assert refused.returncode == 2 and f"--repo '{nested / 'my pkg'}'" in refused.stderr
    ok(called("run-loop", "--max", "2", "--tag", "t", "--repo", "my pkg", cwd=nested))
    assert git(nested, "status", "--porcelain") == ""
    ok(called("init-fleet", "--cpu-workers", "1", cwd=nested))  # the search knows the folder
    ok(started("up", "--max-runs", "1", cwd=nested))
    found = rows(lambda *words: called(*words, cwd=nested / "my pkg"))
    assert len(found) == 3 and {row["status"] for row in found} <= {"keep", "discard"}
    script = nested / "my pkg" / "train.py"
    script.write_text(script.read_text().replace("RATE = 0.1", "RATE = 0.3"))
    ok(called("run-experiment", "--settle", "--desc", "mine", cwd=nested))
    changed = git(nested, "diff", "--name-only", "main", "autoresearch/t")
    assert changed == "my pkg/train.py"


@pytest.mark.parametrize("linked", ["research", "research/runs"])
def test_research_on_another_disk_behind_a_link_is_as_good_as_here(
    cli: Cli, foreign: Path, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "disk").mkdir()
    (foreign / linked).parent.mkdir(exist_ok=True)
    (foreign / linked).symlink_to(tmp_path / "disk")
    answer = cli("run-experiment", "--decide")
    assert answer.returncode == 0, answer.stderr
