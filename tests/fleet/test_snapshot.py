"""What a search knows outlives its folder."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from autohypothesis.engine.attestation import LOG_TAIL
from autohypothesis.engine.decide import settle
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import run
from autohypothesis.errors import FleetError, GitError
from autohypothesis.fleet.supervisor import snapshot as module
from autohypothesis.fleet.supervisor.snapshot import (
    ledger_ref,
    newest_snapshot_tag,
    restore,
    snapshot,
)
from autohypothesis.fleet.sync import sync
from autohypothesis.records import git_bundle
from autohypothesis.records.files import opened, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis
from tests.fleet.conftest import Forked

Git = Callable[..., str]
TAG = "t"


@pytest.fixture
def project(foreign: Path) -> Project:
    return Project.open(foreign).with_tag(TAG)


def take(project: Project, *, everything: bool = False) -> str | None:
    return snapshot(project.repository, project.layout, TAG, everything=everything)


def give_back(project: Project) -> int:
    return restore(project.repository, project.layout, TAG).files


def tree(project: Project, git: Git) -> list[str]:
    return git(project.layout.root, "ls-tree", "-r", "-z", "--name-only", ledger_ref(TAG)).split(
        "\0"
    )


def bundle(layout: Layout, name: str, *, log: bytes = b"step\n") -> None:
    """As a run leaves it, by hand."""
    run = layout.run(name)
    write_json(run.config, {"rate": 0.1})
    write_json(run.result, {"status": "completed", "recorded_at": "2026-01-01T00:00:00.000Z"})
    run.log.write_bytes(log)
    run.weights.write_bytes(b"\0" * 100)


def hypothesis(layout: Layout, name: str, state: str, worker: str | None = None) -> Path:
    path = layout.hypothesis(name, state, worker)
    write_json(path, Hypothesis(hypothesis_id=name, tag=TAG, title="an idea"))
    return path


def quiet(layout: Layout) -> None:
    """As if everything had been written a while ago."""
    before = time.time() - 60
    for folder, _, names in os.walk(layout.research):
        for name in (*names, "."):
            os.utime(os.path.join(folder, name), (before, before), follow_symlinks=False)


def test_a_cleaned_repository_gives_the_same_ledger_and_decisions(
    project: Project, git: Git
) -> None:
    for change in (Change(), Change(overrides={"RATE": 0.2})):
        settle(project, [run(project, Experiment(change)).experiment_id], decided_by="test")
    sync(project.layout)
    ledger, decisions = project.layout.ledger.read_bytes(), project.layout.decisions.read_bytes()
    table, manifest = project.layout.results_tsv.read_bytes(), project.layout.manifest.read_bytes()
    assert ledger.count(b"\n") == 2 and decisions.count(b"\n") == 2
    assert take(project)
    git(project.layout.root, "clean", "-xdff")
    assert not project.layout.research.exists()

    assert newest_snapshot_tag(project.repository) == TAG
    restored = restore(project.repository, project.layout, TAG)
    sync(project.layout)
    assert restored.decisions == 2
    assert project.layout.ledger.read_bytes() == ledger
    assert project.layout.decisions.read_bytes() == decisions
    assert project.layout.results_tsv.read_bytes() == table
    assert project.layout.manifest.read_bytes() == manifest
    again = Project.open(project.layout.root)
    settle(again, [run(again, Experiment(Change(overrides={"RATE": 0.3}))).experiment_id],
           decided_by="test")  # fmt: skip
    sync(project.layout)
    assert project.layout.ledger.read_bytes().startswith(ledger)


def test_a_clone_has_the_reference_that_the_last_decision_left(
    project: Project, git: Git, tmp_path: Path
) -> None:
    for change in (Change(), Change(overrides={"RATE": 0.3})):
        settle(project, [run(project, Experiment(change)).experiment_id], decided_by="test")
    take(project)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--single-branch", str(project.layout.root), str(clone))
    for refs in ("refs/autohypothesis/*", "refs/experiments/*"):
        git(clone, "fetch", "-q", "origin", f"{refs}:{refs}")
    there = Project.open(clone)
    restore(there.repository, there.layout, TAG)
    assert project.reference() != project.repository.head()
    again = Project.open(clone)
    assert (again.tag, again.reference()) == (TAG, project.reference())
    assert str(clone) in there.layout.manifest.read_text(), "it names this place"


def test_nothing_new_is_no_commit(project: Project, git: Git) -> None:
    bundle(project.layout, "h-1")
    first = take(project)
    assert first and take(project) is None
    quiet(project.layout)
    assert take(project) is None
    assert project.repository.read_ref(ledger_ref(TAG)) == first
    shutil.rmtree(project.repository.common_dir / "autohypothesis")
    assert take(project) is None, "a lost memory costs a reading"
    bundle(project.layout, "h-2")
    second = take(project)
    assert git(project.layout.root, "rev-parse", f"{second}^") == first
    results = [path for path in tree(project, git) if path.endswith("result.json")]
    assert results == [f"research/runs/h-{number}/result.json" for number in (1, 2)]


def test_logs_are_kept_as_their_end_and_weights_not_at_all(project: Project, git: Git) -> None:
    line = b"step 00001 | loss: 2.0\n"
    bundle(project.layout, "h-1", log=line * 10_000)
    take(project)
    assert not any(path.endswith("weights.pt") for path in tree(project, git))
    kept = git(project.layout.root, "show", f"{ledger_ref(TAG)}:research/runs/h-1/run.log")
    assert LOG_TAIL - len(line) <= len(kept) + 1 <= LOG_TAIL
    assert set(kept.splitlines()) == {line.decode().strip()}


def test_a_settled_bundle_is_not_read_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(project.layout, "h-1")
    quiet(project.layout)
    take(project)
    take(project)
    seen: list[str] = []

    def looked(path: str) -> AbstractContextManager[tuple[int, os.stat_result]]:
        seen.append(path)
        return opened(path)

    monkeypatch.setattr(module, "opened", looked)
    project.layout.steering.write_text("go left\n")
    assert take(project)
    assert str(project.layout.steering) in seen
    assert not [path for path in seen if str(project.layout.runs) in path]


def test_a_result_that_is_stamped_later_is_seen(project: Project, git: Git) -> None:
    bundle(project.layout, "h-1")
    quiet(project.layout)
    take(project)
    write_json(project.layout.run("h-1").result, {"status": "completed", "decision_status": "keep"})
    assert take(project)
    kept = git(project.layout.root, "show", f"{ledger_ref(TAG)}:research/runs/h-1/result.json")
    assert "keep" in kept


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda bad: bad.write_text('{"status": "comp'),
    "bytes": lambda bad: bad.write_bytes(b"\xff\xfe\0"),
    "link": lambda bad: bad.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "locked": lambda bad: bad.touch(mode=0),
}


def test_damaged_files_stop_no_snapshot(project: Project, git: Git) -> None:
    for name, damage in DAMAGE.items():
        bundle(project.layout, name)
        bad = project.layout.run(name).result
        bad.unlink()
        damage(bad)
    bundle(project.layout, "whole")
    assert take(project)
    assert "research/runs/whole/result.json" in tree(project, git)


def test_a_cleaned_folder_is_not_forgotten_by_the_next_snapshot(project: Project, git: Git) -> None:
    """Somebody cleans, and starts again before restoring."""
    bundle(project.layout, "h-1")
    project.layout.decisions.write_bytes(b'{"decision_id": "d1"}\n')
    hypothesis(project.layout, "h-9", "pending")
    take(project)
    shutil.rmtree(project.layout.research)
    bundle(project.layout, "h-2")
    project.layout.decisions.write_bytes(b'{"decision_id": "d2"}\n')
    take(project)
    assert {"research/runs/h-1/result.json", "research/runs/h-2/result.json",
            "research/hypotheses/pending/h-9.json"} <= set(tree(project, git))  # fmt: skip
    give_back(project)
    assert (
        project.layout.decisions.read_bytes() == b'{"decision_id": "d1"}\n{"decision_id": "d2"}\n'
    )
    assert project.layout.run("h-1").result.exists()


def test_a_hypothesis_comes_back_in_one_state(project: Project, git: Git) -> None:
    path = hypothesis(project.layout, "h-1", "pending")
    take(project)
    done = project.layout.hypothesis("h-1", "done")
    done.parent.mkdir(parents=True)
    path.rename(done)
    take(project)
    assert [p for p in tree(project, git) if p.endswith("h-1.json")] == [
        "research/hypotheses/done/h-1.json"
    ]
    shutil.rmtree(project.layout.research)
    hypothesis(project.layout, "h-1", "running", "cpu0")
    give_back(project)
    assert not done.exists()


def test_what_is_there_is_not_overwritten(project: Project) -> None:
    bundle(project.layout, "h-1")
    project.layout.steering.write_text("old\n")
    project.layout.decisions.write_bytes(b'{"decision_id": "d1"}\n')
    take(project)
    project.layout.steering.write_text("new\n")
    with project.layout.decisions.open("ab") as file:
        file.write(b'{"decision_id": "d2"}\n')
    project.layout.run("h-1").config.unlink()
    assert give_back(project) == 1
    assert project.layout.steering.read_text() == "new\n"
    assert project.layout.decisions.read_bytes().count(b"\n") == 2


def test_filters_of_the_repository_change_no_byte(project: Project, git: Git) -> None:
    (project.layout.root / ".gitattributes").write_text("* text=auto eol=crlf\n*.md filter=shout\n")
    git(project.layout.root, "config", "filter.shout.clean", "tr a-z A-Z")
    bundle(project.layout, "h-1", log=b"one\r\ntwo\rthree\n")
    project.layout.steering.write_text("go left\n")
    take(project)
    shutil.rmtree(project.layout.research)
    give_back(project)
    assert project.layout.run("h-1").log.read_bytes() == b"one\r\ntwo\rthree\n"
    assert project.layout.steering.read_text() == "go left\n"


def test_a_moved_ref_is_not_overwritten(project: Project, git: Git) -> None:
    bundle(project.layout, "h-1")
    first = take(project)
    other = git(project.layout.root, "rev-parse", "HEAD")
    git(project.layout.root, "update-ref", ledger_ref(TAG), other)
    with pytest.raises(GitError):
        git_bundle.keep(project.repository, ledger_ref(TAG), first, {"a": b"b"}, message="x")
    assert git(project.layout.root, "rev-parse", ledger_ref(TAG)) == other


def test_strange_names_are_kept(project: Project) -> None:
    names = ['q"uote', "ba\\ck", "umlaut ü", "\udcff"]
    for name in names:
        folder = project.layout.runs / name
        folder.mkdir(parents=True)
        for document in ("result.json", "config.json"):
            (folder / document).write_text("{}")
    take(project)
    shutil.rmtree(project.layout.runs)
    give_back(project)
    for name in names:
        assert (project.layout.runs / name / "result.json").read_text() == "{}"


def test_a_snapshot_from_elsewhere_leaves_the_repository_by_no_path(project: Project) -> None:
    bundle(project.layout, "h-1")
    take(project)
    assert not module._may_be_put(project.layout, "research/../../evil")
    assert not (project.layout.root.parent / "evil").exists()


def test_no_snapshot_is_said_so(project: Project) -> None:
    with pytest.raises(FleetError, match="no snapshot"):
        newest_snapshot_tag(project.repository)
    with pytest.raises(FleetError, match="'other'"):
        restore(project.repository, project.layout, "other")


def test_a_snapshot_beside_writers_holds_whole_records(project: Project, git: Git) -> None:
    over = threading.Event()
    project.layout.decisions.write_bytes(b'{"decision_id": "d0"}\n')

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            bundle(project.layout, f"h-{number % 20}")
            with project.layout.decisions.open("ab", buffering=0) as file:
                file.write(b'{"decision_id": "d%d"}\n' % number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            take(project)
            kept = git(project.layout.root, "show", f"{ledger_ref(TAG)}:research/decisions.jsonl")
            assert all(line.endswith("}") for line in kept.splitlines())
    finally:
        over.set()
        writer.join()
    take(project)
    shutil.copytree(project.layout.research, project.layout.root / "copy")
    shutil.rmtree(project.layout.research)
    give_back(project)
    copy = project.layout.root / "copy" / "decisions.jsonl"
    assert project.layout.decisions.read_bytes() == copy.read_bytes()


def take_one(tell: Callable[[str], None], root: Path) -> None:
    tell("on")
    snapshot(Repository(root), Layout(root), TAG)


def test_a_killed_snapshot_is_made_again(
    project: Project, git: Git, forked: Callable[..., Forked]
) -> None:
    for number in range(100):
        bundle(project.layout, f"h-{number}")
    for pause in (0.0, 0.05, 0.1, 0.2):
        taking = forked(take_one, project.layout.root)
        taking.hear()
        time.sleep(pause)  # a moment to be killed at, not one to wait for
        taking.end(kill=True)
    take(project)
    assert len([path for path in tree(project, git) if path.endswith("result.json")]) == 100
    git(project.layout.root, "fsck", "--no-dangling")
