"""Every path that a sync reads, damaged in every way: it goes on with the rest, and names it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autohypothesis.fleet.sync import sync
from autohypothesis.records.locks import Process

BAD = "bad-1"
SECONDS = 10.0
"""A hang guard: each of these takes a few hundredths of a second."""


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def _torn(path: Path, before: bytes) -> None:
    path.write_bytes(before[: len(before) * 2 // 3])


def _link_outside(path: Path) -> None:
    outside = Path(tempfile.mkdtemp()) / "outside"
    outside.write_text('{"status": "completed", "val_bpb": 0.1}')
    path.symlink_to(outside)


def _with(before: bytes, number: bytes) -> bytes:
    """The document with that in place of its first numbers."""
    document = before.strip() or b"{}"
    return document[:-1] + b', "depth": ' + number + b', "metrics": {"val_bpb": ' + number + b"}}"


FATAL: dict[str, Callable[[Path, bytes], Any]] = {
    "invalid utf-8": lambda path, before: path.write_bytes(b"\xff\xfe" + before),
    "empty": lambda path, before: path.write_bytes(b""),
    "torn": _torn,
    "sparse": lambda path, before: _sparse(path),
    "pipe": lambda path, before: os.mkfifo(path),
    "folder": lambda path, before: path.mkdir(),
    "link to zero": lambda path, before: path.symlink_to("/dev/zero"),
    "link outside": lambda path, before: _link_outside(path),
    "nested": lambda path, before: path.write_bytes(b"[" * 100_000 + b"]" * 100_000),
    "digits": lambda path, before: path.write_bytes(_with(before, b"7" * 5_000)),
}
"""The file cannot be used, and is named."""
HARMLESS: dict[str, Callable[[Path, bytes], Any]] = {
    "nan": lambda path, before: path.write_bytes(_with(before, b"NaN")),
    "1e999": lambda path, before: path.write_bytes(_with(before, b"1e999")),
    "no zone": lambda path, before: path.write_bytes(before.replace(b".456Z", b"")),
}
"""The file can be used, as far as it goes."""
ANY_TEXT = ("empty", "torn", "nested", "digits")
"""Of a page they are no damage."""


def _bundle_file(name: str) -> Callable[[Any], Path]:
    return lambda layout: layout.run(BAD).folder / name


JSON_PATHS: dict[str, Callable[[Any], Path]] = {
    "config": _bundle_file("config.json"),
    "metadata": _bundle_file("metadata.json"),
    "result": _bundle_file("result.json"),
    "exit": _bundle_file("exit.json"),
    "shim": lambda layout: layout.run("still-1").shim,
    "plan": lambda layout: layout.plan(BAD),
    "manifest": lambda layout: layout.manifest,
    "heartbeat": lambda layout: layout.heartbeat("worker-gpu0"),
}


@pytest.fixture
def full(lab: Any) -> Any:
    """A laboratory with every file that sync reads, synced once."""
    lab.whole("good-1", 1.5, "keep")
    lab.whole(BAD, 1.4, "keep")
    lab.plan("still-1")
    lab.put(lab.layout.run("still-1").shim, {"pid": 1, "start": 1.5})
    now = "2026-11-20T01:02:03.456Z"
    root = str(lab.root)
    lab.put(
        lab.layout.manifest,
        {"tag": "nov20", "created_at": now, "repository_root": root, "shared_research_dir": root},
    )
    me = Process.own()
    heartbeat = {
        "worker_id": "worker-gpu0",
        "updated_at": now,
        "pid": me.pid,
        "process_start": me.start,
    }
    lab.put(lab.layout.heartbeat("worker-gpu0"), {**heartbeat, "state": "training"})
    sync(lab.layout)
    return lab


def damage(path: Path, harm: Callable[[Path, bytes], Any]) -> None:
    before = path.read_bytes()
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    harm(path, before)


def synced(lab: Any) -> Any:
    """A sync, held to its time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    report = sync(lab.layout)
    assert time.process_time() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    return report


def assert_good_row(lab: Any) -> None:
    row = lab.rows()["good-1"]
    assert (row["status"], row["val_bpb"]) == ("keep", 1.5)


@pytest.mark.parametrize("harm", FATAL)
@pytest.mark.parametrize("where", JSON_PATHS)
def test_a_damaged_document_is_named_and_the_rest_folds(full: Any, where: str, harm: str) -> None:
    path = JSON_PATHS[where](full.layout)
    damage(path, FATAL[harm])
    report = synced(full)
    assert_good_row(full)
    short = str(path.relative_to(full.root))
    assert [problem.path for problem in report.problems] == [short]
    assert json.loads(full.layout.problems.read_text())["problems"][0]["path"] == short
    assert report.tag == "nov20"
    row = full.rows().get(BAD)
    if where in ("config", "metadata", "result", "exit", "plan"):
        assert row["status"] == "artifact_invalid"
        assert any(note.startswith(path.name) for note in row["notes"])
    else:
        assert row["status"] == "keep"
    again = synced(full)
    assert again.changed == 0
    assert [problem.path for problem in again.problems] == [short]


@pytest.mark.parametrize("harm", HARMLESS)
def test_a_document_with_odd_values_is_read_as_far_as_it_goes(full: Any, harm: str) -> None:
    for where in JSON_PATHS.values():
        before = where(full.layout).read_bytes()
        damage(where(full.layout), HARMLESS[harm])
        assert synced(full).problems == []
        assert_good_row(full)
        row, text = full.rows()[BAD], full.layout.ledger.read_text()
        assert row["depth"] in (None, 4) and row["timestamp"].endswith("Z")
        assert "NaN" not in text and "Infinity" not in text
        where(full.layout).write_bytes(before)


@pytest.mark.parametrize("harm", [name for name in FATAL if name != "empty"])
def test_a_damaged_record_of_decisions_loses_no_stamp(full: Any, harm: str) -> None:
    tsv = full.layout.results_tsv.read_text()
    damage(full.layout.decisions, FATAL[harm])
    report = synced(full)
    assert full.rows()["good-1"]["val_bpb"] == 1.5
    assert full.rows()["good-1"]["status"] == "keep"
    assert {problem.path for problem in report.problems} == {"research/decisions.jsonl"}
    if harm in ("sparse", "pipe", "folder", "link to zero", "link outside"):
        assert full.layout.results_tsv.read_text() == tsv


def test_one_bad_line_of_decisions_costs_that_line(full: Any) -> None:
    with full.layout.decisions.open("ab") as file:
        for line in (b"\xff", b"{", b"[" * 100_000, b'{"n": ' + b"1" * 5_000 + b"}", b"7", b"\0"):
            file.write(line + b"\n")
    full.whole("later-1", 1.3, "keep")
    report = synced(full)
    assert len(report.problems) == 6
    assert full.rows()["later-1"]["ordinal"] == 3


@pytest.mark.parametrize("harm", [name for name in FATAL if name not in ANY_TEXT])
def test_a_damaged_page_is_named(full: Any, harm: str) -> None:
    damage(full.layout.plan_page(BAD), FATAL[harm])
    report = synced(full)
    assert_good_row(full)
    assert [problem.path for problem in report.problems] == [f"research/plans/{BAD}.md"]


OURS: dict[str, Callable[[Any], Path]] = {
    "index": lambda layout: layout.fold_index,
    "ledger": lambda layout: layout.ledger,
    "results": lambda layout: layout.results_tsv,
    "leaderboard": lambda layout: layout.leaderboard,
    "problems": lambda layout: layout.problems,
    "aggregate": lambda layout: layout.aggregate_experiments,
}


@pytest.mark.parametrize("where", OURS)
def test_what_sync_writes_is_made_again(full: Any, where: str) -> None:
    path = OURS[where](full.layout)
    before, names = path.read_bytes(), {"good-1", BAD, "still-1"}
    for number, harm in enumerate(FATAL.values(), 1):
        damage(path, harm)
        full.whole(f"later-{number}", 1.3, "discard")
        synced(full)
        names.add(f"later-{number}")
        assert path.is_file() and not path.is_symlink()
        assert full.rows().keys() == names
        assert_good_row(full)
        if where == "results":
            assert path.read_bytes().startswith(before)
        elif path.suffix == ".json":
            json.loads(path.read_text())


@pytest.mark.parametrize("where", OURS)
def test_what_sync_writes_is_made_again_with_nothing_new(full: Any, where: str) -> None:
    path = OURS[where](full.layout)
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    synced(full)
    if where not in ("index", "leaderboard"):
        assert path.read_bytes() == before
    assert_good_row(full)


@pytest.mark.parametrize("name", ["runs", "plans", "aggregate", "live"])
def test_a_file_in_place_of_a_folder(full: Any, name: str) -> None:
    folder = full.layout.research / name
    shutil.rmtree(folder)
    folder.write_text("no folder")
    report = synced(full)
    assert any(problem.path.startswith(f"research/{name}") for problem in report.problems) or (
        name == "live"
    )
    if name != "runs":
        assert_good_row(full)


def test_strangers_among_the_runs_are_named(full: Any) -> None:
    (full.layout.runs / "note.txt").write_text("hello")
    (full.layout.runs / "elsewhere").symlink_to("/")
    (full.layout.runs / "empty-1").mkdir()
    (full.layout.runs / ("x" * 200)).mkdir()
    report = synced(full)
    assert {p.path for p in report.problems} == {
        "research/runs/note.txt",
        "research/runs/elsewhere",
    }
    assert full.rows()["empty-1"]["status"] == "planned"
    assert_good_row(full)
