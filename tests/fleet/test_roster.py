"""init-fleet: every way in which it can go wrong has an outcome, and none costs a user a byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autohypothesis import system
from autohypothesis.commands import doctor
from autohypothesis.engine import devices
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project, todays_tag
from autohypothesis.engine.runner import ProgressListener, plan, run
from autohypothesis.engine.workspace import Export, Workspace
from autohypothesis.errors import (
    FleetError,
    GitError,
    RecordError,
    UsageError,
)
from autohypothesis.fleet.live.presence import read_manifest
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.roster.roster import Fleet, FleetOptions, init_fleet, run_baseline
from autohypothesis.fleet.roster.worktrees import marker, prune
from autohypothesis.fleet.sync import sync
from autohypothesis.records import locks
from autohypothesis.records.files import load, write_json
from autohypothesis.records.git import SALVAGE
from autohypothesis.schema import Metadata, Proposal, Worker
from tests.conftest import Cli, run_git
from tests.fleet.conftest import Forked

ROOT = Path(__file__).resolve().parents[2]
Git = Callable[..., str]


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "physical_cores", lambda: list(range(64)))


def init(root: Path, count: int = 2, **wanted: object) -> Fleet:
    return init_fleet(Project.open(root), FleetOptions(cpu_workers=count, **wanted))  # type: ignore[arg-type]


def init_alone(tell: Callable[[object], None], root: Path, count: int) -> None:
    """As a process of its own."""
    system.physical_cores = lambda: list(range(8))
    init(root, count)
    tell("made")


def files_of(root: Path) -> dict[str, bytes]:
    """What a user sees, apart from what is made on use."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in (".git", "research")
    }


def assert_whole(root: Path, git: Git, count: int = 2) -> None:
    """A fleet as it should be, by git's own word."""
    manifest = read_manifest(Project.open(root).layout)
    assert manifest is not None
    assert [one.worker_id for one in manifest.workers] == [f"cpu{n}" for n in range(count)]
    for one in manifest.workers:
        place = Path(one.worktree_path)
        assert git(place, "rev-parse", "--abbrev-ref", "HEAD") == one.branch
        assert git(place, "status", "--porcelain") == ""
        assert (place / "train.py").read_bytes() == (root / "train.py").read_bytes()
        assert Path(one.prompt_path).read_text().count(one.worker_id)
    git(root, "fsck", "--connectivity-only")


# ── the plain case ──────────────────────────────────────────────────────────────────────────


def test_init_alone_makes_everything(fleet_root: Path, git: Git) -> None:
    before = files_of(fleet_root)
    (fleet_root / "worktrees" / "cpu0").mkdir(parents=True)  # an empty folder is in nobody's way
    fleet = init(fleet_root)
    manifest = fleet.manifest
    assert manifest.tag == todays_tag()
    first = manifest.workers[0]
    assert (first.gpu_id, first.device, first.kind) == ("0", "cpu-0", "cpu")
    assert first.branch == f"autoresearch/{manifest.tag}-cpu0"
    assert fleet.done == {"cpu0": "made again (it was empty)", "cpu1": "made"}
    assert_whole(fleet_root, git)
    assert {name: data for name, data in files_of(fleet_root).items()
            if not name.startswith("worktrees/")} == before  # fmt: skip
    assert git(fleet_root, "status", "--porcelain", "--untracked-files=all") == ""
    assert manifest.proposers == ["search"]


def test_again_it_changes_nothing_from_inside_a_worktree_too(fleet_root: Path) -> None:
    first = init(fleet_root, proposers=["inbox"], mix=0.5)
    text = Project.open(fleet_root).layout.manifest.read_bytes()
    inside = Path(first.manifest.workers[0].worktree_path)
    for root in (fleet_root, inside):
        again = init(root)
        assert again.done == {"cpu0": "", "cpu1": ""} and again.manifest == first.manifest
        assert Project.open(fleet_root).layout.manifest.read_bytes() == text
    assert again.manifest.proposers == ["inbox"] and again.manifest.mix == 0.5
    sync(Project.open(inside).layout)
    assert (fleet_root / "experiments.jsonl").exists()
    assert not (inside / "research").exists() and not (inside / "worktrees").exists()


def test_a_worker_that_stages_and_resets_everything_deletes_no_shared_state(
    fleet_root: Path, git: Git
) -> None:
    fleet = init(fleet_root)
    queue = Queue(Project.open(fleet_root).layout, fleet.manifest.tag)
    queue.add(Proposal(title="an idea"), proposer="test")
    for place in (Path(fleet.manifest.workers[0].worktree_path), fleet_root):
        git(place, "add", "-A")
        git(place, "reset", "-q", "--hard")
    assert_whole(fleet_root, git)
    assert queue.counts()["pending"] == 1


# ── what is refused ─────────────────────────────────────────────────────────────────────────


def refused(root: Path, match: str, error: type[Exception] = FleetError, **wanted: object) -> None:
    """It is refused by name; nothing is made or changed, and no tag has begun."""
    before = files_of(root)
    with pytest.raises(error, match=match):
        init(root, **wanted)  # type: ignore[arg-type]
    assert files_of(root) == before
    assert read_manifest(Project.open(root).layout) is None


def test_without_an_identity_of_the_user_it_works(
    fleet_root: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(fleet_root, "config", "--unset", "user.name")
    git(fleet_root, "config", "--unset", "user.email")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    init(fleet_root)
    assert_whole(fleet_root, git)


def test_a_dirty_tree_is_left_out_and_said(fleet_root: Path, git: Git) -> None:
    (fleet_root / "train.py").write_text("# half an idea\n")
    fleet = init(fleet_root)
    assert any("not committed" in note for note in fleet.notes)
    assert (fleet_root / "train.py").read_text() == "# half an idea\n"
    place = Path(fleet.manifest.workers[0].worktree_path)
    assert (place / "train.py").read_text() != "# half an idea\n"


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "file": lambda place: place.write_text("mine\n"),
    "folder": lambda place: shutil.copytree(Path(__file__).parent, place),
    "link": lambda place: place.symlink_to("/tmp"),
    "repository": lambda place: run_git(place.parent, "init", "-q", place.name),
    "worktree": lambda place: run_git(
        place.parents[1], "worktree", "add", "-q", "-b", "mine", str(place)
    ),
    "no room": lambda place: (place.parent.rmdir(), place.parent.write_text("mine\n")),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_of_a_worktree_stays(fleet_root: Path, kind: str) -> None:
    (fleet_root / ".git" / "info" / "exclude").write_text("/worktrees\n")
    place = fleet_root / "worktrees" / "cpu1"
    place.parent.mkdir()
    IN_THE_WAY[kind](place)
    refused(fleet_root, "in the way")


@pytest.mark.parametrize("name", ["autoresearch/t-cpu1", "autoresearch"])
def test_a_branch_that_no_fleet_made_is_not_moved(fleet_root: Path, git: Git, name: str) -> None:
    git(fleet_root, "switch", "-q", "-c", name)
    git(fleet_root, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = git(fleet_root, "rev-parse", "HEAD")
    git(fleet_root, "switch", "-q", "main")
    refused(fleet_root, name, tag="t")
    assert git(fleet_root, "rev-parse", name) == mine


def test_a_branch_that_is_checked_out_is_not_taken(
    fleet_root: Path, git: Git, tmp_path: Path
) -> None:
    name = "autoresearch/t-cpu1"
    git(fleet_root, "worktree", "add", "-q", "-b", name, str(tmp_path / "elsewhere"))
    refused(fleet_root, "checked out in .*elsewhere", tag="t")
    git(fleet_root, "worktree", "remove", str(tmp_path / "elsewhere"))
    git(fleet_root, "branch", "-q", "-D", name)
    init(fleet_root, tag="t")
    git(fleet_root / "worktrees" / "cpu1", "switch", "-q", "--detach")
    git(fleet_root, "switch", "-q", name)
    with pytest.raises(FleetError, match="checked out"):
        init(fleet_root)


def test_commits_on_a_branch_of_the_tags_name_are_left_there_and_said(
    fleet_root: Path, git: Git
) -> None:
    git(fleet_root, "switch", "-q", "-c", "autoresearch/t")
    git(fleet_root, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = git(fleet_root, "rev-parse", "HEAD")
    git(fleet_root, "switch", "-q", "main")
    fleet = init(fleet_root, tag="t")
    assert Project.open(fleet_root).reference() == git(fleet_root, "rev-parse", "main")
    assert git(fleet_root, "rev-parse", "autoresearch/t") == mine
    assert any("branch autoresearch/t has 1 commit" in note for note in fleet.notes)


@pytest.mark.parametrize(
    ("wanted", "match", "error"),
    [
        ({"tag": "../x"}, "id '../x'", UsageError), ({"tag": "T"}, "id 'T'", UsageError),
        ({"start": "best"}, "nothing is kept", UsageError),
        ({"start": "0123abc"}, "'0123abc'", GitError),
        ({"count": 65}, "64 physical cores", UsageError),
    ],
)  # fmt: skip
def test_wrong_words_are_named(
    fleet_root: Path, wanted: dict[str, object], match: str, error: type[Exception]
) -> None:
    refused(fleet_root, match, error, **wanted)


def test_a_damaged_manifest_is_not_overwritten(fleet_root: Path) -> None:
    init(fleet_root)
    path = Project.open(fleet_root).layout.manifest
    for damage in (b"", b"{", b'{"tag": "t"}', b"\xff"):
        path.write_bytes(damage)
        with pytest.raises(RecordError, match=r"manifest\.json"):
            init(fleet_root, tag="t") if damage == b'{"tag": "t"}' else init(fleet_root)
        assert path.read_bytes() == damage


# ── other devices, another tag ──────────────────────────────────────────────────────────────


def test_more_workers_join_and_fewer_stay(fleet_root: Path, git: Git) -> None:
    project = Project.open(fleet_root)
    init(fleet_root, 2)
    init(fleet_root, 3)
    assert_whole(fleet_root, git, 3)
    queue = Queue(project.layout, todays_tag())
    ids = [queue.add(Proposal(title=str(n)), proposer="test").hypothesis_id for n in range(2)]
    for one in ids:
        queue.dispatch(one, "cpu2")
    queue.claim("cpu2")
    fleet = init(fleet_root, 1)
    assert [one.worker_id for one in fleet.manifest.workers] == ["cpu0"]
    assert sorted(one.hypothesis_id for one in queue.pending()) == ids, "nothing is stuck with it"
    assert (fleet_root / "worktrees" / "cpu2" / "train.py").exists(), "prune takes it, not init"


@pytest.mark.parametrize("torn", [False, True])
def test_a_worker_that_leaves_before_a_second_try_does_not_end_it_with_the_first(
    fleet_root: Path, torn: bool
) -> None:
    """Of a hypothesis that was queued again the newest plan counts, begun or not."""
    init(fleet_root, 2, tag="t")
    project = Project.open(fleet_root)
    queue = Queue(project.layout, "t")
    proposal = Proposal(title="x", config_overrides={"RATE": 1.1})
    name = queue.add(proposal, proposer="test").hypothesis_id
    request = Experiment(Change(overrides={"RATE": 1.1}), hypothesis_id=name)
    queue.dispatch(name, "cpu1")
    queue.claim("cpu1")
    run(project, request)
    queue.finish(name, "cpu1")
    queue.requeue(name)
    queue.dispatch(name, "cpu1")
    queue.claim("cpu1")
    plan(project, request, "cpu1")
    if torn:
        second = project.layout.run(f"{name}-2")
        write_json(second.run_spec, {"worker_id": "cpu1"})
        second.local.write_bytes(b'{"checkout": "/to')
    init(fleet_root, 1)
    assert [one.hypothesis_id for one in queue.pending()] == [name]
    assert project.layout.plan(f"{name}-1").exists()
    assert project.layout.plan(f"{name}-2").exists() == torn


def test_while_somebody_is_at_work_other_workers_are_refused_by_name(
    fleet_root: Path, git: Git
) -> None:
    init(fleet_root, 2)
    project = Project.open(fleet_root)
    with locks.hold(project.layout, "observer", doing="observing"):
        with pytest.raises(FleetError, match=rf"observer \(pid {os.getpid()}"):
            init(fleet_root, 3)
        with pytest.raises(FleetError, match="observer"):
            init(fleet_root, 2, tag="another")
        shutil.rmtree(fleet_root / "worktrees" / "cpu1")
        assert init(fleet_root, 2).done["cpu1"] == "made", "mending is always allowed"
    with (
        locks.hold(project.layout, "worker-cpu0", doing="working"),
        pytest.raises(FleetError, match="worker-cpu0"),
    ):
        init(fleet_root, 1)
    init(fleet_root, 2, tag="another")
    assert Project.open(fleet_root).tag == "another"


def test_a_worktree_that_is_used_is_left_alone(fleet_root: Path) -> None:
    fleet = init(fleet_root, 1)
    project = Project.open(fleet_root)
    place = Path(fleet.manifest.workers[0].worktree_path)
    (place / "train.py").unlink()
    with locks.hold(project.layout, "worker-cpu0", doing="working"):
        again = init(fleet_root, 1)
    assert again.done == {"cpu0": ""} and any("left alone" in note for note in again.notes)
    assert not (place / "train.py").exists()
    assert "train.py" in init(fleet_root, 1).done["cpu0"]


def test_another_tag_keeps_what_lay_in_the_worktree(fleet_root: Path, git: Git) -> None:
    fleet = init(fleet_root, 1, tag="one")
    place = Path(fleet.manifest.workers[0].worktree_path)
    (place / "train.py").write_text("# an idea\n")
    (place / "notes.txt").write_text("why\n")
    again = init(fleet_root, 1, tag="two")
    kept = again.done["cpu0"]
    assert SALVAGE in kept and "autoresearch/one-cpu0" in kept
    (name,) = git(fleet_root, "for-each-ref", "--format=%(refname)", SALVAGE).splitlines()
    assert git(fleet_root, "show", f"{name}:notes.txt") == "why"
    assert_whole(fleet_root, git, 1)


def test_from_best_begins_where_the_last_search_ended(fleet_root: Path) -> None:
    init(fleet_root, 1, tag="one")
    project = Project.open(fleet_root)
    for change in (Change(), Change(overrides={"RATE": 2.0})):
        settle(project, [run(project, Experiment(change)).experiment_id], decided_by="test")
    sync(project.layout)
    best = project.reference()
    assert best != project.repository.head()
    init(fleet_root, 1, tag="two", start="best")
    assert Project.open(fleet_root).reference() == best
    with pytest.raises(UsageError, match="has begun"):
        init(fleet_root, 1, tag="two", start="HEAD")


def test_a_deleted_reference_comes_back_where_the_decisions_left_it(
    fleet_root: Path, git: Git
) -> None:
    init(fleet_root, 1, tag="t")
    project = Project.open(fleet_root)
    for change in (Change(), Change(overrides={"RATE": 2.0})):
        settle(project, [run(project, Experiment(change)).experiment_id], decided_by="test")
    best = project.reference()
    git(fleet_root, "branch", "-q", "-D", "autoresearch/t")
    git(fleet_root, "update-ref", "-d", "refs/autohypothesis/reference/t")
    assert any(best[:12] in note for note in init(fleet_root, 1).notes)
    assert Project.open(fleet_root).reference() == best


def test_going_back_to_a_tag_brings_back_what_its_fleet_was_told(fleet_root: Path) -> None:
    def told(tag: str, **wanted: object) -> Fleet:
        return init(fleet_root, 1, tag=tag, worktrees=False, **wanted)

    first = told("a", proposers=["inbox"], mix=0.5, tool_command="model --write")
    assert first.manifest.tool_command == "model --write"
    other = told("b").manifest
    assert (other.proposers, other.mix, other.tool_command) == (["search"], None, "")
    told("c", mix=0.1)
    back = told("a")
    again = back.manifest
    assert (again.proposers, again.mix, again.tool_command) == (["inbox"], 0.5, "model --write")
    assert any("a goes on with its proposers (inbox)" in note for note in back.notes)
    assert told("c", mix=0.2).manifest.mix == 0.2
    assert told("a", tool_command="").manifest.tool_command == ""


def test_without_worktrees_only_records_are_made(fleet_root: Path) -> None:
    fleet = init(fleet_root, 2, worktrees=False)
    assert fleet.done == {} and not (fleet_root / "worktrees").exists()
    assert fleet.manifest.workers[1].worktree_path.endswith("worktrees/cpu1")


def test_a_page_that_a_person_wrote_is_put_aside(fleet_root: Path) -> None:
    layout = Project.open(fleet_root).layout
    layout.observer_prompt.parent.mkdir(parents=True)
    layout.observer_prompt.write_text("my own words\n")
    fleet = init(fleet_root, 1)
    (aside,) = layout.fleet.glob("observer-agent.md.set-aside-*")
    assert aside.read_text() == "my own words\n" and aside.name in "".join(fleet.notes)


# ── what was damaged ────────────────────────────────────────────────────────────────────────


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()


def _empty(place: Path) -> None:
    for one in place.iterdir():
        _remove(one)


def _admin(place: Path) -> Path:
    return place.parents[1] / ".git" / "worktrees" / place.name


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": _remove,
    "emptied": _empty,
    "no .git": lambda place: (place / ".git").unlink(),
    ".git torn": lambda place: (place / ".git").write_text(""),
    ".git garbage": lambda place: (place / ".git").write_bytes(b"\xff\x00"),
    ".git elsewhere": lambda place: (place / ".git").write_text("gitdir: /nowhere\n"),
    "a file is missing": lambda place: (place / "train.py").unlink(),
    "index.lock": lambda place: (_admin(place) / "index.lock").write_bytes(b""),
    "index torn": lambda place: (_admin(place) / "index").write_bytes(b"DIRC"),
    "index gone": lambda place: (_admin(place) / "index").unlink(),
    "HEAD empty": lambda place: (_admin(place) / "HEAD").write_bytes(b""),
    "HEAD gone": lambda place: (_admin(place) / "HEAD").unlink(),
    "HEAD elsewhere": lambda place: (_admin(place) / "HEAD").write_text("ref: refs/heads/none\n"),
    "gitdir gone": lambda place: (_admin(place) / "gitdir").unlink(),
    "gitdir garbage": lambda place: (_admin(place) / "gitdir").write_bytes(b"\xff"),
    "commondir gone": lambda place: (_admin(place) / "commondir").unlink(),
    "known to nobody": lambda place: _remove(_admin(place)),
    "never finished": lambda place: (_admin(place) / "locked").write_text("initializing"),
    "detached": lambda place: (_admin(place) / "HEAD").write_text("0" * 40 + "\n"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_worktree_is_made_again(fleet_root: Path, git: Git, kind: str) -> None:
    fleet = init(fleet_root, 1)
    place = Path(fleet.manifest.workers[0].worktree_path)
    (place / "idea.txt").write_text("an idea\n")
    DAMAGE[kind](place)
    gone = not (place / "idea.txt").exists()
    again = init(fleet_root, 1)
    if kind.startswith("gitdir"):  # git is told where it is; nothing else was wrong
        assert again.done == {"cpu0": ""} and (place / "idea.txt").exists()
        (place / "idea.txt").unlink()
        assert_whole(fleet_root, git, 1)
        return
    assert again.done["cpu0"].startswith("made")
    assert_whole(fleet_root, git, 1)
    kept = [path.read_text() for path in fleet_root.glob("worktrees/cpu0.set-aside-*/idea.txt")]
    salvaged = git(fleet_root, "for-each-ref", "--format=%(refname)", SALVAGE).splitlines()
    kept += [git(fleet_root, "show", f"{name}:idea.txt") + "\n" for name in salvaged]
    assert kept == ([] if gone else ["an idea\n"])
    assert init(fleet_root, 1).done == {"cpu0": ""}


def test_what_is_broken_and_holds_no_work_leaves_nothing_aside(fleet_root: Path) -> None:
    place = Path(init(fleet_root, 1).manifest.workers[0].worktree_path)
    DAMAGE["index torn"](place)
    init(fleet_root, 1)
    assert [path.name for path in place.parent.iterdir()] == ["cpu0"]


def test_work_in_a_whole_worktree_is_left_there(fleet_root: Path) -> None:
    fleet = init(fleet_root, 1)
    place = Path(fleet.manifest.workers[0].worktree_path)
    (place / "train.py").write_text("# mine\n")
    assert init(fleet_root, 1).done == {"cpu0": ""}
    assert (place / "train.py").read_text() == "# mine\n"


def test_killed_at_any_moment_and_run_again_it_is_whole(
    fleet_root: Path, git: Git, forked: Callable[..., Forked]
) -> None:
    chance, took = random.Random(7), 1.0
    for number in range(8):
        started = time.monotonic()
        making = forked(init_alone, fleet_root, 4)
        making.process.join(chance.uniform(0.05, took))
        if making.end(kill=True) == ["made"]:
            took = max(0.2, time.monotonic() - started)
        if number % 4 == 3:
            init(fleet_root, 4)
            assert_whole(fleet_root, git, 4)
            for ref in git(fleet_root, "for-each-ref", "--format=%(refname)").splitlines():
                if "autoresearch/" in ref or "autohypothesis/" in ref:
                    for path in (fleet_root / "worktrees").glob("*"):
                        git(fleet_root, "worktree", "unlock", str(path)) if _locked(path) else None
                        git(fleet_root, "worktree", "remove", "-f", "-f", str(path))
                    git(fleet_root, "update-ref", "-d", ref)
            shutil.rmtree(fleet_root / "research")


def _locked(place: Path) -> bool:
    return (_admin(place) / "locked").exists()


def test_two_inits_at_once_are_one_fleet(
    fleet_root: Path, git: Git, forked: Callable[..., Forked]
) -> None:
    several = [forked(init_alone, fleet_root, 3) for _ in range(3)]
    assert [each.end() for each in several] == [["made"]] * 3
    assert_whole(fleet_root, git, 3)
    assert len(Project.open(fleet_root).repository.worktrees()) == 4


# ── prune ───────────────────────────────────────────────────────────────────────────────────


def test_prune_keeps_what_it_removes_and_says_so_before(fleet_root: Path, git: Git) -> None:
    init(fleet_root, 3, tag="one")
    (fleet_root / "worktrees" / "cpu2" / "idea.txt").write_text("an idea\n")
    init(fleet_root, 1, tag="two")
    project = Project.open(fleet_root)
    refs = git(fleet_root, "for-each-ref")
    said = prune(project, dry_run=True)
    assert git(fleet_root, "for-each-ref") == refs
    assert {step.done for step in said} == {"would be removed"}
    done = prune(project)
    assert {step.what for step in done} == {step.what for step in said}
    assert {step.done for step in done} == {"removed"}
    assert_whole(fleet_root, git, 1)
    assert [path.name for path in (fleet_root / "worktrees").iterdir()] == ["cpu0"]
    left = git(fleet_root, "for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines()
    assert left == ["autoresearch/one", "autoresearch/two", "autoresearch/two-cpu0", "main"]
    assert git(fleet_root, "show", f"{SALVAGE}one-cpu2-1:idea.txt") == "an idea"
    assert prune(project) == []
    assert project.repository.read_ref(marker("one", "cpu1")) is None


def test_prune_keeps_commits_that_only_a_branch_has(fleet_root: Path, git: Git) -> None:
    init(fleet_root, 2)
    place = fleet_root / "worktrees" / "cpu1"
    (place / "train.py").write_text("# by hand\n")
    git(place, "commit", "-q", "-a", "-m", "by hand")
    mine = git(place, "rev-parse", "HEAD")
    init(fleet_root, 1)
    prune(Project.open(fleet_root))
    assert git(fleet_root, "rev-parse", f"{SALVAGE}{todays_tag()}-cpu1-1") == mine


def test_prune_takes_the_side_worktree_of_a_worker_that_left(fleet_root: Path) -> None:
    init(fleet_root, 2)
    project = Project.open(fleet_root)
    for name in ("cpu0", "cpu1"):
        side = Workspace(project.repository, f"{name}-next", fleet=todays_tag())
        side.checkout(project.reference())
    init(fleet_root, 1)
    prune(project)
    left = sorted(path.name for path in (fleet_root / "worktrees").iterdir())
    assert left == ["cpu0", "cpu0-next"]


def test_prune_takes_the_files_of_the_runs_of_a_worker_that_left(fleet_root: Path) -> None:
    init(fleet_root, 2)
    project = Project.open(fleet_root)
    exports = {
        name: Export(project.repository, name)
        for name in ("cpu0", "cpu0-next", "cpu1", "cpu1-next")
    }
    for export in exports.values():
        export.checkout(project.reference(), project.task)
    init(fleet_root, 1)
    said = [step.what for step in prune(project, dry_run=True)]
    assert f"files of runs {exports['cpu1-next'].path}" in said
    shell = subprocess.Popen(["sleep", "60"], cwd=exports["cpu1"].path)
    try:
        steps = prune(project)
    finally:
        shell.kill()
        shell.wait()
    assert any(str(shell.pid) in step.detail for step in steps)
    prune(project)
    assert {name for name, one in exports.items() if one.path.exists()} == {"cpu0", "cpu0-next"}
    assert exports["cpu1"].holds() is None and exports["cpu0"].holds() == project.reference()


def test_prune_leaves_what_is_used_and_what_is_active(fleet_root: Path, git: Git) -> None:
    init(fleet_root, 2)
    init(fleet_root, 1)
    project = Project.open(fleet_root)
    place = fleet_root / "worktrees" / "cpu1"
    with locks.hold(project.layout, "worker-cpu1", doing="working"):
        (step,) = prune(project)
    assert step.done == "left" and f"pid {os.getpid()}" in step.detail and place.is_dir()
    shell = subprocess.Popen(["sleep", "60"], cwd=place)
    try:
        (step,) = prune(project)
        assert step.done == "left" and str(shell.pid) in step.detail and place.is_dir()
    finally:
        shell.kill()
        shell.wait()
    with pytest.raises(UsageError, match="'nope'"):
        prune(project, tag="nope")
    assert [step.done for step in prune(project, tag=todays_tag())] == ["removed", "removed"]
    assert_whole(fleet_root, git, 1)


# ── the command ─────────────────────────────────────────────────────────────────────────────


def test_an_option_without_its_value_is_named(cli: Cli) -> None:
    for words, option in (
        (["--tag", "--gpus", "0,1"], "--tag"),
        (["--gpus", "--tag", "t"], "--gpus"),
        (["--gpus"], "--gpus"),
        (["--cpu-workers", "--json"], "--cpu-workers"),
    ):
        answer = cli("init-fleet", *words)
        assert answer.returncode == 2, answer
        assert f"{option} lacks its value" in answer.stderr


def test_the_command_says_what_it_made(cli: Cli, foreign: Path) -> None:
    answer = cli("init-fleet", "--cpu-workers", "1", "--tag", "t", "--json")
    document = json.loads(answer.stdout)
    assert document["workers"][0]["worker_id"] == "cpu0" and document["worktrees"] == {
        "cpu0": "made"
    }
    said = cli("init-fleet", "--cpu-workers", "1")
    assert "cpu0" in said.stdout and "as it was" in said.stdout
    unclosed = cli("init-fleet", "--cpu-workers", "1", "--tool-command", "model 'x")
    assert unclosed.returncode == 2 and "model 'x" in unclosed.stderr
    refused = cli("init-fleet", "--gpus", "0;id")
    assert refused.returncode == 2 and "'0;id'" in refused.stderr
    inside = cli("init-fleet", "--cpu-workers", "1", cwd=foreign / "worktrees" / "cpu0")
    assert inside.returncode == 0 and "note" not in inside.stderr
    none = cli("prune", "--dry-run")
    assert none.returncode == 0 and "nothing to remove" in none.stdout


def test_bootstrap_makes_everything_from_nothing(
    cli: Cli, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = doctor.Check("sandbox", "ok", "not tried here, which takes seconds")
    monkeypatch.setattr(doctor, "_sandbox", lambda machine: seen)
    table = tmp_path / "results.tsv"
    table.write_text("commit\tval_bpb\tpeak_vram_mb\tstatus\tdescription\n"
                     "aaaaaaa\t1.10\t1024\tkeep\tbaseline\n"
                     "bbbbbbb\t1.00\t2048\tkeep\tdeeper\n")  # fmt: skip
    words = ["bootstrap", "--cpu-workers", "1", "--tag", "t", "--warm-start", str(table)]
    first = cli(*words)
    assert first.returncode == 0, first.stderr
    project = Project.open(foreign)
    manifest = read_manifest(project.layout)
    assert manifest is not None and len(manifest.workers) == 1
    assert "baseline-t-1" in (foreign / "experiments.jsonl").read_text()
    assert "deeper" in project.layout.knowledge_base.read_text()
    assert project.reference() == project.repository.head(), "a warm start moves no reference"
    again = cli(*words)
    assert again.returncode == 0 and "0 new findings" in again.stderr
    assert "baseline-t-2" not in (foreign / "experiments.jsonl").read_text()


PREPARE = """import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
place = os.environ.get("DATA") or os.path.join(here, "data")
if "--locate" in sys.argv:
    if not os.path.isdir(place):
        sys.exit("no data in " + place)
    print(json.dumps({"path": place, "device": "cpu"}))
else:
    os.mkdir(place)
"""
TASK = """id: small
artifacts: [train.py]
protected: [prepare.py]
inputs:
  - env: DATA
    locate: [python, prepare.py, --locate]
run: {command: [python, train.py]}
scorer: {type: log}
objective: {metric: val_bpb, direction: minimize}
"""


def test_the_baseline_of_a_cpu_worker_runs_on_its_slot_where_there_are_gpus(
    fleet_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "best_kind", lambda: "cuda")
    slot = devices.cpu_slots()[0].id
    worker = Worker(worker_id="cpu0", gpu_id=slot, device=slot, kind="cpu")
    ran = run_baseline(fleet_project, worker, ProgressListener())
    assert ran is not None and ran[1][0].decision_status == "keep"
    metadata = load(Metadata, fleet_project.layout.run(ran[0].experiment_id).metadata)
    assert metadata.run.gpu_id == worker.device


def test_bootstrap_prepares_data_that_is_not_there_and_up_what_is_gone(
    cli: Cli, foreign: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "every_check", lambda path: [])
    (foreign / "prepare.py").write_text(PREPARE)
    (foreign / "task.yaml").write_text(TASK)
    (foreign / ".gitignore").write_text("data/\n")
    git(foreign, "add", "-A")
    git(foreign, "commit", "-q", "-m", "a task")
    monkeypatch.setattr(doctor, "every_check", lambda path: [*doctor._data(Project.open(path))])
    noted = cli("doctor")
    assert noted.returncode == 0 and "warning  data: " in noted.stdout
    assert "`up` does it as well" in noted.stdout and "next: " in noted.stderr
    (foreign / "prepare.py").rename(foreign / "elsewhere.py")
    assert cli("doctor").returncode == 1, "there is nothing to make it with"
    (foreign / "elsewhere.py").rename(foreign / "prepare.py")
    monkeypatch.setattr(doctor, "every_check", lambda path: [])
    alone = cli("init-fleet", "--cpu-workers", "1")
    assert alone.returncode == 1 and "no data in" in alone.stderr
    answer = cli("bootstrap", "--cpu-workers", "1", "--json")
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["inputs"] == {"DATA": str(foreign / "data")}
    data, had_data = foreign / "data", list[bool]()
    data.rmdir()
    monkeypatch.setattr(
        "autohypothesis.commands.fleet.bring_up", lambda *_: had_data.append(data.is_dir())
    )
    again = cli("up", "--max-runs", "1")
    assert again.returncode == 0 and had_data == [True], again.stderr
