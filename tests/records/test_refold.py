"""The fold that reads only what changed comes to the same as one that reads everything."""

from __future__ import annotations

import json
import os
import random
import shutil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from autohypothesis.fleet.sync import sync
from autohypothesis.records.ledger import load_index, refold

NAMES = [f"h-nov20-{n:04d}-1" for n in range(6)]
STEPS = [
    "bundle", "plan", "decide", "undecide", "edit in place", "break", "remove", "touch",
    "lose the index", "break the index", "edit the ledger", "lose the ledger", "sync", "link",
    "finish elsewhere", "edit the page",
]  # fmt: skip


def age(lab: Any) -> None:
    """Let all files but the decisions be older than this minute."""
    for path in lab.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path != lab.layout.decisions:
            os.utime(path, (1_700_000_000, 1_700_000_000))


def step(lab: Any, what: str, chance: random.Random) -> None:
    layout, name = lab.layout, chance.choice(NAMES)
    run = layout.run(name)
    if what == "bundle":
        lab.bundle(name, chance.choice([1.5, 1.4, 1.3, 0.0, None]))
    elif what == "plan":
        lab.plan(name)
    elif what == "decide":
        status = chance.choice(["keep", "discard", "crash", "replicate"])
        lab.decide(name, status, chance.choice([1.5, 1.45, 1.2, None]))
    elif what == "undecide" and layout.decisions.exists():
        lines = layout.decisions.read_text().splitlines(keepends=True)
        layout.decisions.write_text("".join(lines[:-1]))
    elif what == "edit in place" and run.result.is_file() and not run.result.is_symlink():
        text = run.result.read_text()
        run.result.write_text(text.replace("1.5", "1.6").replace("idea", "plan"))
    elif what == "break" and run.folder.exists():
        chance.choice([run.config, run.metadata, run.result, run.exit]).write_bytes(b'{"a"')
    elif what == "remove":
        shutil.rmtree(run.folder, ignore_errors=True)
    elif what == "touch" and run.metadata.exists():
        os.utime(run.metadata)
    elif what == "lose the index":
        layout.fold_index.unlink(missing_ok=True)
    elif what == "break the index" and layout.fold_index.exists():
        content = layout.fold_index.read_bytes()
        layout.fold_index.write_bytes(content.replace(b"1", b"2", 3))
    elif what == "edit the ledger" and layout.ledger.exists():
        layout.ledger.write_text(layout.ledger.read_text().replace("keep", "sink"))
    elif what == "lose the ledger":
        layout.ledger.unlink(missing_ok=True)
    elif what == "sync":
        if chance.random() < 0.7:  # else a file of this very moment is read again
            age(lab)
        sync(layout)
    elif what == "finish elsewhere":
        lab.bundle(
            f"old-{chance.randrange(9)}", chance.choice([1.5, 1.4, 1.3, 0.0]), tag="",
            decision_status=chance.choice(["keep", "discard", "crash", "replicate"]),
            recorded_at=f"2026-11-20T0{chance.randrange(9)}:00:00.000Z",
        )  # fmt: skip
    elif what == "edit the page" and layout.plan_page(name).exists():
        layout.plan_page(name).write_text("# another idea\n")
    elif what == "link" and run.exit.exists():
        run.exit.unlink()
        run.exit.symlink_to("/dev/zero")


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=25), seed=st.integers(0, 2**32))
def test_any_sequence_of_changes(steps: list[str], seed: int, new_lab: Any) -> None:
    lab, chance = new_lab(), random.Random(seed)
    for what in [*steps, "sync"]:
        step(lab, what, chance)
    ledger = lab.layout.ledger.read_bytes()
    assert ledger == refold(lab.layout, cold=True).content
    aggregate = json.loads(lab.layout.aggregate_experiments.read_text())
    assert aggregate == {"experiments": [json.loads(line) for line in ledger.splitlines()]}
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}
    report = sync(lab.layout)
    assert report.changed == 0
    after = {path: path.read_bytes() for path in before}
    assert {p.name for p in before if before[p] != after[p]} <= {
        ".fold-index",  # a file of this very moment is looked at twice
        "sync.holder.json",
    }


def test_only_what_changed_is_read(lab: Any, monkeypatch: Any) -> None:
    from autohypothesis.records import bundles

    for name in NAMES:
        lab.whole(name, 1.5, "discard")
    age(lab)
    sync(lab.layout)
    reads: list[str] = []
    real = bundles.read

    def counted(where: Any) -> Any:
        reads.append(where.experiment_id)
        return real(where)

    monkeypatch.setattr(bundles, "read", counted)
    assert sync(lab.layout).changed == 0
    assert reads == []
    lab.bundle("new-1", 1.1)
    lab.decide("new-1", "keep", 1.1)
    assert sync(lab.layout).changed == 1
    assert reads == ["new-1"]


def test_a_new_row_is_added_to_the_end_of_the_ledger_and_a_changed_one_replaces_it(
    lab: Any,
) -> None:
    def inode() -> int:
        return int(lab.layout.ledger.stat().st_ino)

    lab.whole("a-1", 1.5, "keep")
    sync(lab.layout)
    first = inode()
    lab.whole("b-1", 1.4, "keep")
    sync(lab.layout)
    assert inode() == first and list(lab.rows()) == ["a-1", "b-1"]
    assert json.loads(lab.layout.aggregate_experiments.read_text())["experiments"] == [
        *lab.rows().values()
    ]
    lab.decide("a-1", "discard", 1.5)
    sync(lab.layout)
    assert inode() != first and lab.rows()["a-1"]["status"] == "discard"


def test_a_row_that_a_power_cut_tore_is_made_again(lab: Any) -> None:
    lab.whole("a-1", 1.5, "keep")
    lab.whole("b-1", 1.4, "discard")
    sync(lab.layout)
    whole = lab.layout.ledger.read_bytes()
    lab.layout.ledger.write_bytes(whole[:-20])
    assert sync(lab.layout).problems == []
    assert lab.layout.ledger.read_bytes() == whole


def test_an_index_of_other_code_is_not_used(lab: Any, monkeypatch: Any) -> None:
    from autohypothesis.records import ledger

    lab.whole("a-1", 1.5, "keep")
    sync(lab.layout)
    assert load_index(lab.layout) is not None
    monkeypatch.setattr(ledger, "_code", lambda: 1)
    assert load_index(lab.layout) is None
