"""The reference and its branch, which its user stands on, commits to, resets or deletes."""

from __future__ import annotations

import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest

from autohypothesis.engine.decide import repair
from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import (
    catch_up,
    move_reference,
    own_commits,
    read_reference,
    reference_ref,
)
from autohypothesis.fleet.overview.overview import Notice, overview
from autohypothesis.records.git import Repository
from tests.conftest import forked, run_git
from tests.engine.searching import Search

BRANCH = "autoresearch/t"


def branch_of(search: Search) -> str | None:
    return search.project.repository.read_ref(f"refs/heads/{BRANCH}")


@pytest.fixture
def elsewhere(search: Search, start: str, tmp_path: Path) -> Path:
    """A second checkout of the user, on the branch of the search."""
    place = tmp_path / "elsewhere"
    run_git(search.project.repository.root, "worktree", "add", "-q", str(place), BRANCH)
    return place


def test_the_branch_goes_with_the_reference_forward_and_back(search: Search, start: str) -> None:
    assert branch_of(search) == start
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    assert search.project.reference() == branch_of(search) == kept
    search.by_hand("h-1", "discard")
    assert search.project.reference() == branch_of(search) == start


def test_a_branch_that_is_checked_out_stays_and_catches_up_when_it_is_left(
    search: Search, start: str, elsewhere: Path
) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    assert (search.project.reference(), branch_of(search)) == (kept, start)
    assert run_git(elsewhere, "status", "--porcelain") == ""
    repair(search.project)
    assert branch_of(search) == start, "it is checked out as yet"
    run_git(elsewhere, "switch", "-q", "--detach")
    repair(search.project)
    assert branch_of(search) == kept
    run_git(elsewhere, "switch", "-q", BRANCH)
    search.by_hand("h-1", "discard")
    run_git(elsewhere, "switch", "-q", "--detach")
    repair(search.project)
    assert (search.project.reference(), branch_of(search)) == (start, kept), "only forward"
    better = search.change(start, "B = 1\n")
    search.decided("h-2", better, start, 1.3)
    assert (search.project.reference(), branch_of(search)) == (better, kept)


def test_a_branch_in_the_middle_of_a_rebase_stays(
    search: Search, start: str, elsewhere: Path
) -> None:
    (elsewhere / "own.txt").write_text("mine\n")
    run_git(elsewhere, "add", "own.txt")
    run_git(elsewhere, "commit", "-qm", "mine")
    run_git(elsewhere, "-c", "sequence.editor=sed -i s/pick/edit/", "rebase", "-qi", start)
    assert run_git(elsewhere, "branch", "--show-current") == ""
    run_git(search.project.repository.root, "update-ref", f"refs/heads/{BRANCH}", start)
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    assert (search.project.reference(), branch_of(search)) == (kept, start)


@pytest.mark.parametrize("moved_first", [False, True])
def test_commits_of_a_person_on_the_branch_stay_and_are_taken_in_by_the_command_that_is_named(
    search: Search, start: str, elsewhere: Path, moved_first: bool
) -> None:
    root, repository = search.project.repository.root, search.project.repository
    (elsewhere / "own.txt").write_text("mine\n")
    run_git(elsewhere, "add", "own.txt")
    run_git(elsewhere, "commit", "-qm", "mine")
    run_git(elsewhere, "switch", "-q", "--detach")
    own, reference = branch_of(search), start
    if moved_first:
        reference = search.change(start, "A = 1\n")
        search.decided("h-1", reference, start, 1.4)
    repair(search.project)
    assert (search.project.reference(), branch_of(search)) == (reference, own)
    while said := own_commits(repository, "t", reference):
        problem, command = said
        assert "has 1 commit that" in problem and f"git branch -m {BRANCH}" in problem
        run_git(elsewhere, *shlex.split(command)[1:])
        run_git(elsewhere, "switch", "-q", "--detach")
        reference = search.project.reference()
    assert run_git(root, "show", f"{reference}:own.txt") == "mine"
    assert repository.is_ancestor(start, reference)
    repair(search.project)
    assert search.project.reference() == branch_of(search) == reference


def test_a_deleted_branch_is_made_again_at_the_next_settle(search: Search, start: str) -> None:
    run_git(search.project.repository.root, "branch", "-qD", BRANCH)
    assert search.project.reference() == start
    repair(search.project)
    assert branch_of(search) == start


def test_a_reference_that_was_reset_by_hand_stays_there_and_so_does_its_branch(
    search: Search, start: str
) -> None:
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    run_git(search.project.repository.root, "update-ref", reference_ref("t"), start)
    repair(search.project)
    assert (search.project.reference(), branch_of(search)) == (start, kept)
    assert own_commits(search.project.repository, "t", start)


def test_a_name_without_room_for_the_branch_holds_up_no_search(search: Search, start: str) -> None:
    root = search.project.repository.root
    run_git(root, "branch", "-qD", BRANCH)
    run_git(root, "branch", "autoresearch", "main")
    kept = search.change(start, "A = 1\n")
    search.decided("h-1", kept, start, 1.4)
    assert search.project.reference() == kept and branch_of(search) is None


@pytest.mark.parametrize("first", ["settle", "begin"])
@pytest.mark.parametrize("branch", ["behind", "ahead", "gone"])
def test_a_deleted_reference_is_where_the_decisions_left_it_wherever_its_branch_is(
    search: Search, start: str, elsewhere: Path, branch: str, first: str
) -> None:
    project, left = search.project, search.change(start, "A = 1\n")
    if branch == "ahead":  # it was on a keep that was taken back while it was checked out
        run_git(elsewhere, "switch", "-q", "--detach")
    search.decided("h-1", left, start, 1.4)
    if branch == "ahead":
        run_git(elsewhere, "switch", "-q", BRANCH)
        search.by_hand("h-1", "discard")
        left = start
    if branch == "gone":
        run_git(elsewhere, "switch", "-q", "--detach")
        run_git(project.repository.root, "branch", "-qD", BRANCH)
    assert project.reference() == left and (branch == "gone" or branch_of(search) != left)
    run_git(project.repository.root, "update-ref", "-d", reference_ref("t"))
    assert project.reference() == left
    repair(project) if first == "settle" else Project.open(project.repository.root).with_tag("t")
    assert project.repository.read_ref(reference_ref("t")) == left


def test_status_names_a_reference_that_is_missing_and_the_command_that_makes_it(
    search: Search, start: str
) -> None:
    kept, root = search.change(start, "A = 1\n"), search.project.repository.root
    search.decided("h-1", kept, start, 1.4)

    def named() -> list[Notice]:
        needs = overview(search.project.layout, tag="t").needs
        return [need for need in needs if reference_ref("t") in need.what]

    assert not named()
    run_git(root, "update-ref", "-d", reference_ref("t"))
    (need,) = named()
    run_git(root, *shlex.split(need.run)[1:])
    assert search.project.repository.read_ref(reference_ref("t")) == kept


# ── a search of an earlier version, whose reference was the branch ──────────────────────────


@pytest.fixture
def earlier(search: Search, start: str) -> Search:
    search.decided("h-1", search.change(start, "A = 1\n"), start, 1.4)
    run_git(search.project.repository.root, "update-ref", "-d", reference_ref("t"))
    return search


def test_commands_that_only_look_read_the_branch_of_an_earlier_version(earlier: Search) -> None:
    repository = earlier.project.repository
    assert earlier.project.reference() == branch_of(earlier)
    assert repository.read_ref(reference_ref("t")) is None


@pytest.mark.parametrize("first", ["settle", "begin"])
def test_the_first_command_that_writes_makes_the_ref_of_an_earlier_version(
    earlier: Search, first: str
) -> None:
    kept, root = branch_of(earlier), earlier.project.repository.root
    run_git(root, "switch", "-q", BRANCH)
    repair(earlier.project) if first == "settle" else Project.open(root).with_tag("t")
    assert earlier.project.repository.read_ref(reference_ref("t")) == kept
    assert earlier.past().dangling_move(str(kept)) is None
    run_git(root, "commit", "-q", "--allow-empty", "-m", "mine")
    assert earlier.project.reference() == kept, "the branch is the user's from now on"


def test_a_move_that_an_earlier_version_did_not_finish_is_finished(
    search: Search, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    kept = search.change(start, "A = 1\n")
    search.ended("h-1", kept, start, 1.4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Repository, "move_refs", killed)
        search.settled("h-1")
    run_git(search.project.repository.root, "update-ref", "-d", reference_ref("t"))
    repair(search.project)
    assert search.project.reference() == branch_of(search) == kept


def test_a_branch_that_nothing_was_searched_on_is_no_reference(search: Search) -> None:
    project = search.project
    run_git(project.repository.root, "branch", "autoresearch/mine")
    assert read_reference(project.repository, project.layout, "mine") is None


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────


def to_and_fro(root: Path, one: str, other: str) -> None:
    repository = Repository(root)
    while True:
        for new, old in ((other, one), (one, other)):
            assert move_reference(repository, "t", new, old)


def test_killed_at_any_moment_the_reference_and_its_branch_agree_after_the_next_settle(
    search: Search, start: str
) -> None:
    repository, chance = search.project.repository, random.Random(5)
    other = search.change(start, "A = 1\n")
    for _ in range(6):
        here = search.project.reference()
        there = start if here == other else other
        process = forked(to_and_fro, repository.root, here, there)
        time.sleep(chance.uniform(0.05, 0.3))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        time.sleep(0.1)  # a git that was started goes on to its end
        catch_up(repository, "t", search.project.reference())
        assert search.project.reference() == branch_of(search) in (start, other)
