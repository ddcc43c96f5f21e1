"""What a search knows outlives its folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from autohypothesis.engine.change import Change
from autohypothesis.engine.iteration import Request, run
from autohypothesis.engine.lab import Lab
from autohypothesis.engine.settle import settle
from autohypothesis.errors import FleetError, GitError
from autohypothesis.fleet.supervisor import restore as restoring
from autohypothesis.fleet.supervisor import snapshot as module
from autohypothesis.fleet.supervisor.restore import newest_tag, restore
from autohypothesis.fleet.supervisor.snapshot import LOG_TAIL, ledger_ref, snapshot
from autohypothesis.fleet.sync import sync
from autohypothesis.records import git_keep
from autohypothesis.records.files import opened, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Hypothesis

Git = Callable[..., str]
TAG = "t"


@pytest.fixture
def lab(foreign: Path) -> Lab:
    return Lab.open(foreign).with_tag(TAG)


def take(lab: Lab, *, everything: bool = False) -> str | None:
    return snapshot(lab.repository, lab.layout, TAG, everything=everything)


def give_back(lab: Lab) -> int:
    return restore(lab.repository, lab.layout, TAG).files


def tree(lab: Lab, git: Git) -> list[str]:
    return git(lab.layout.root, "ls-tree", "-r", "-z", "--name-only", ledger_ref(TAG)).split("\0")


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


def test_a_cleaned_repository_gives_the_same_ledger_and_decisions(lab: Lab, git: Git) -> None:
    for change in (Change.none(), Change.from_overrides({"RATE": 0.2})):
        settle(lab, [run(lab, Request(change)).experiment_id], decided_by="test")
    sync(lab.layout)
    ledger, decisions = lab.layout.ledger.read_bytes(), lab.layout.decisions.read_bytes()
    table, manifest = lab.layout.results_tsv.read_bytes(), lab.layout.manifest.read_bytes()
    assert ledger.count(b"\n") == 2 and decisions.count(b"\n") == 2
    assert take(lab)
    git(lab.layout.root, "clean", "-xdff")
    assert not lab.layout.research.exists()

    assert newest_tag(lab.repository) == TAG
    restored = restore(lab.repository, lab.layout, TAG)
    sync(lab.layout)
    assert restored.decisions == 2
    assert lab.layout.ledger.read_bytes() == ledger
    assert lab.layout.decisions.read_bytes() == decisions
    assert lab.layout.results_tsv.read_bytes() == table
    assert lab.layout.manifest.read_bytes() == manifest
    again = Lab.open(lab.layout.root)
    settle(again, [run(again, Request(Change.from_overrides({"RATE": 0.3}))).experiment_id],
           decided_by="test")  # fmt: skip
    sync(lab.layout)
    assert lab.layout.ledger.read_bytes().startswith(ledger)


def test_a_clone_has_the_reference_that_the_last_decision_left(
    lab: Lab, git: Git, tmp_path: Path
) -> None:
    for change in (Change.none(), Change.from_overrides({"RATE": 0.3})):
        settle(lab, [run(lab, Request(change)).experiment_id], decided_by="test")
    take(lab)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--single-branch", str(lab.layout.root), str(clone))
    for refs in ("refs/autohypothesis/*", "refs/experiments/*"):
        git(clone, "fetch", "-q", "origin", f"{refs}:{refs}")
    there = Lab.open(clone)
    restore(there.repository, there.layout, TAG)
    assert lab.reference() != lab.repository.head()
    assert Lab.open(clone).reference() == lab.reference()


def test_nothing_new_is_no_commit(lab: Lab) -> None:
    bundle(lab.layout, "h-1")
    first = take(lab)
    assert first and take(lab) is None
    quiet(lab.layout)
    assert take(lab) is None
    assert lab.repository.read_ref(ledger_ref(TAG)) == first


def test_a_snapshot_follows_the_one_before(lab: Lab, git: Git) -> None:
    bundle(lab.layout, "h-1")
    first = take(lab)
    bundle(lab.layout, "h-2")
    second = take(lab)
    assert git(lab.layout.root, "rev-parse", f"{second}^") == first
    assert "research/runs/h-1/result.json" in tree(lab, git)
    assert "research/runs/h-2/result.json" in tree(lab, git)


def test_logs_are_kept_as_their_end_and_weights_not_at_all(lab: Lab, git: Git) -> None:
    line = b"step 00001 | loss: 2.0\n"
    bundle(lab.layout, "h-1", log=line * 10_000)
    take(lab)
    assert not any(path.endswith("weights.pt") for path in tree(lab, git))
    kept = git(lab.layout.root, "show", f"{ledger_ref(TAG)}:research/runs/h-1/run.log")
    assert LOG_TAIL - len(line) <= len(kept) + 1 <= LOG_TAIL
    assert set(kept.splitlines()) == {line.decode().strip()}


def test_a_settled_bundle_is_not_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(lab.layout, "h-1")
    quiet(lab.layout)
    take(lab)
    take(lab)
    seen: list[str] = []

    def looked(path: str) -> AbstractContextManager[tuple[int, os.stat_result]]:
        seen.append(path)
        return opened(path)

    monkeypatch.setattr(module, "opened", looked)
    lab.layout.steering.write_text("go left\n")
    assert take(lab)
    assert str(lab.layout.steering) in seen
    assert not [path for path in seen if str(lab.layout.runs) in path]


def test_a_result_that_is_stamped_later_is_seen(lab: Lab, git: Git) -> None:
    bundle(lab.layout, "h-1")
    quiet(lab.layout)
    take(lab)
    write_json(lab.layout.run("h-1").result, {"status": "completed", "decision_status": "keep"})
    assert take(lab)
    kept = git(lab.layout.root, "show", f"{ledger_ref(TAG)}:research/runs/h-1/result.json")
    assert "keep" in kept


@pytest.mark.parametrize("damage", ["torn", "bytes", "link", "pipe", "folder", "locked"])
def test_a_damaged_file_stops_no_snapshot(lab: Lab, git: Git, damage: str) -> None:
    bundle(lab.layout, "h-1")
    bundle(lab.layout, "h-2")
    bad = lab.layout.run("h-1").result
    bad.unlink()
    match damage:
        case "torn":
            bad.write_text('{"status": "comp')
        case "bytes":
            bad.write_bytes(b"\xff\xfe\0")
        case "link":
            bad.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(bad)
        case "folder":
            bad.mkdir()
        case "locked":
            bad.write_text("{}")
            bad.chmod(0)
    assert take(lab)
    assert "research/runs/h-2/result.json" in tree(lab, git)


def test_a_cleaned_folder_is_not_forgotten_by_the_next_snapshot(lab: Lab, git: Git) -> None:
    """Somebody cleans, and starts again before restoring."""
    bundle(lab.layout, "h-1")
    lab.layout.decisions.write_bytes(b'{"decision_id": "d1"}\n')
    hypothesis(lab.layout, "h-9", "pending")
    take(lab)
    shutil.rmtree(lab.layout.research)
    bundle(lab.layout, "h-2")
    lab.layout.decisions.write_bytes(b'{"decision_id": "d2"}\n')
    take(lab)
    assert {"research/runs/h-1/result.json", "research/runs/h-2/result.json",
            "research/hypotheses/pending/h-9.json"} <= set(tree(lab, git))  # fmt: skip
    give_back(lab)
    assert lab.layout.decisions.read_bytes() == b'{"decision_id": "d1"}\n{"decision_id": "d2"}\n'
    assert lab.layout.run("h-1").result.exists()


def test_a_hypothesis_comes_back_in_one_state(lab: Lab, git: Git) -> None:
    path = hypothesis(lab.layout, "h-1", "pending")
    take(lab)
    done = lab.layout.hypothesis("h-1", "done")
    done.parent.mkdir(parents=True)
    path.rename(done)
    take(lab)
    assert [p for p in tree(lab, git) if p.endswith("h-1.json")] == [
        "research/hypotheses/done/h-1.json"
    ]
    shutil.rmtree(lab.layout.research)
    hypothesis(lab.layout, "h-1", "running", "cpu0")
    give_back(lab)
    assert not done.exists()


def test_what_is_there_is_not_overwritten(lab: Lab) -> None:
    bundle(lab.layout, "h-1")
    lab.layout.steering.write_text("old\n")
    lab.layout.decisions.write_bytes(b'{"decision_id": "d1"}\n')
    take(lab)
    lab.layout.steering.write_text("new\n")
    with lab.layout.decisions.open("ab") as file:
        file.write(b'{"decision_id": "d2"}\n')
    lab.layout.run("h-1").config.unlink()
    assert give_back(lab) == 1
    assert lab.layout.steering.read_text() == "new\n"
    assert lab.layout.decisions.read_bytes().count(b"\n") == 2


def test_filters_of_the_repository_change_no_byte(lab: Lab, git: Git) -> None:
    (lab.layout.root / ".gitattributes").write_text("* text=auto eol=crlf\n*.md filter=shout\n")
    git(lab.layout.root, "config", "filter.shout.clean", "tr a-z A-Z")
    bundle(lab.layout, "h-1", log=b"one\r\ntwo\rthree\n")
    lab.layout.steering.write_text("go left\n")
    take(lab)
    shutil.rmtree(lab.layout.research)
    give_back(lab)
    assert lab.layout.run("h-1").log.read_bytes() == b"one\r\ntwo\rthree\n"
    assert lab.layout.steering.read_text() == "go left\n"


def test_the_users_index_and_checkout_stay_as_they_are(lab: Lab, git: Git) -> None:
    (lab.layout.root / "data.txt").write_text("staged\n")
    git(lab.layout.root, "add", "data.txt")
    before = git(lab.layout.root, "status", "--porcelain", "-uno"), lab.repository.head()
    bundle(lab.layout, "h-1")
    take(lab)
    after = git(lab.layout.root, "status", "--porcelain", "-uno"), lab.repository.head()
    assert after == before


def test_a_moved_ref_is_not_overwritten(lab: Lab, git: Git) -> None:
    bundle(lab.layout, "h-1")
    first = take(lab)
    other = git(lab.layout.root, "rev-parse", "HEAD")
    git(lab.layout.root, "update-ref", ledger_ref(TAG), other)
    with pytest.raises(GitError):
        git_keep.keep(lab.repository, ledger_ref(TAG), first, {"a": b"b"}, message="x")
    assert git(lab.layout.root, "rev-parse", ledger_ref(TAG)) == other


def test_a_lost_memory_costs_a_reading_and_no_commit(lab: Lab) -> None:
    bundle(lab.layout, "h-1")
    quiet(lab.layout)
    take(lab)
    shutil.rmtree(lab.repository.common_dir / "autohypothesis")
    assert take(lab) is None


@pytest.mark.parametrize("name", ['q"uote', "ba\\ck", "umlaut ü", "\udcff"])
def test_strange_names_are_kept(lab: Lab, name: str) -> None:
    folder = lab.layout.runs / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    take(lab)
    shutil.rmtree(lab.layout.runs)
    give_back(lab)
    assert (folder / "result.json").read_text() == "{}"


def test_a_snapshot_from_elsewhere_leaves_the_repository_by_no_path(lab: Lab) -> None:
    bundle(lab.layout, "h-1")
    take(lab)
    assert not restoring._may_be_put(lab.layout, "research/../../evil")
    assert not (lab.layout.root.parent / "evil").exists()


def test_a_manifest_from_another_place_names_this_one(lab: Lab, tmp_path: Path, git: Git) -> None:
    take(lab)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(lab.layout.root), str(clone))
    git(clone, "fetch", "-q", "origin", "refs/autohypothesis/*:refs/autohypothesis/*")
    there = Lab.open(clone)
    restore(there.repository, there.layout, TAG)
    assert str(clone) in there.layout.manifest.read_text()
    assert Lab.open(clone).tag == TAG


def test_no_snapshot_is_said_so(lab: Lab) -> None:
    with pytest.raises(FleetError, match="no snapshot"):
        newest_tag(lab.repository)
    with pytest.raises(FleetError, match="'other'"):
        restore(lab.repository, lab.layout, "other")


def test_a_snapshot_beside_writers_holds_whole_records(lab: Lab, git: Git) -> None:
    over = threading.Event()
    lab.layout.decisions.write_bytes(b'{"decision_id": "d0"}\n')

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            bundle(lab.layout, f"h-{number % 20}")
            with lab.layout.decisions.open("ab", buffering=0) as file:
                file.write(b'{"decision_id": "d%d"}\n' % number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            take(lab)
            kept = git(lab.layout.root, "show", f"{ledger_ref(TAG)}:research/decisions.jsonl")
            assert all(line.endswith("}") for line in kept.splitlines())
    finally:
        over.set()
        writer.join()
    take(lab)
    shutil.copytree(lab.layout.research, lab.layout.root / "copy")
    shutil.rmtree(lab.layout.research)
    give_back(lab)
    copy = lab.layout.root / "copy" / "decisions.jsonl"
    assert lab.layout.decisions.read_bytes() == copy.read_bytes()


def test_a_killed_snapshot_is_made_again(lab: Lab, git: Git) -> None:
    for number in range(300):
        bundle(lab.layout, f"h-{number}")
    code = (
        "import sys; from pathlib import Path\n"
        "from autohypothesis.fleet.supervisor.snapshot import snapshot\n"
        "from autohypothesis.records.git import Repository\n"
        "from autohypothesis.records.layout import Layout\n"
        "root = Path(sys.argv[1]); print('on', flush=True)\n"
        "snapshot(Repository(root), Layout(root), 't')"
    )
    for pause in (0.0, 0.05, 0.1, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(lab.layout.root)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)  # a moment to be killed at, not one to wait for
        process.kill()
        process.communicate()
    take(lab)
    assert len([path for path in tree(lab, git) if path.endswith("result.json")]) == 300
    git(lab.layout.root, "fsck", "--no-dangling")
