"""Locks that name their holder, and ids that are given once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.errors import LockError, UsageError
from autohypothesis.records import ids, locks
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.locks import Process
from autohypothesis.system import is_alive, process_start
from tests.conftest import forked

HOLD = """
import sys, pathlib
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
with hold(Layout(pathlib.Path(sys.argv[1])), "sync", doing="a long sync"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_lock_names_its_holder_and_ends_with_it(lab: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lab.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(LockError, match=rf"pid {other.pid} .*a long sync") as caught,
            locks.hold(lab.layout, "sync", doing="mine", timeout=0.1),
        ):
            pass
        assert "has ended" not in str(caught.value)
        other.kill()
        other.wait()
        with locks.hold(lab.layout, "sync", doing="mine", timeout=1):
            held = locks.holder(lab.layout, "sync")
            assert held is not None
            assert held.doing == "mine"


def test_a_pid_alone_is_no_process() -> None:
    own = Process.own()
    assert own.lives()
    assert not own._replace(start=own.start - 5).lives()
    assert own._replace(start=0.0, host="elsewhere").lives()
    assert process_start(2**22 + 1) is None
    assert not is_alive(2**22 + 1, 1.0)


@given(st.text(max_size=200))
def test_any_text_becomes_an_id_and_an_id_stays(text: str) -> None:
    made = ids.slug(text)
    assert ID.fullmatch(made)
    assert ids.slug(made) == made


@given(st.sets(st.text(alphabet="aAbB_-. é", min_size=1, max_size=12), min_size=2, max_size=8))
def test_two_foreign_ids_never_meet(texts: set[str]) -> None:
    assert len({ids.slug(text) for text in texts}) == len(texts)


def test_hypothesis_ids_count_up_past_what_lies_there(lab: Any) -> None:
    lab.put(lab.layout.hypotheses("dispatched", "worker-gpu0") / "h-nov20-0007.json", {})
    assert ids.allocate_hypothesis(lab.layout, "nov20") == "h-nov20-0008"
    assert ids.allocate_hypothesis(lab.layout, "nov20") == "h-nov20-0009"
    assert ids.allocate_hypothesis(lab.layout, "nov2") == "h-nov2-0001"
    lab.layout.lock("ids").with_suffix(".json").write_bytes(b"\xff")
    assert ids.allocate_hypothesis(lab.layout, "nov20") == "h-nov20-0008"


def test_an_experiment_gets_the_next_number_and_its_plan(lab: Any) -> None:
    give = ids.allocate_experiment
    plan = {"plan": lambda made: {"experiment_id": made}}
    assert give(lab.layout, "h-nov20-0001", **plan) == "h-nov20-0001-1"
    assert json.loads(lab.layout.plan("h-nov20-0001-1").read_text()) == {
        "experiment_id": "h-nov20-0001-1"
    }
    assert give(lab.layout, "h-nov20-0001", ["h-nov20-0001-4"], **plan) == "h-nov20-0001-5"
    lab.layout.run("h-nov20-0001-9").folder.mkdir(parents=True)
    assert give(lab.layout, "h-nov20-0001", page=lambda made: f"# {made}", **plan).endswith("-10")
    assert lab.layout.plan_page("h-nov20-0001-10").read_text() == "# h-nov20-0001-10"


def test_a_plan_that_cannot_be_made_takes_no_id(lab: Any) -> None:
    def broken(_: str) -> dict[str, Any]:
        raise UsageError("no")

    with pytest.raises(UsageError):
        ids.allocate_experiment(lab.layout, "h-a-0001", plan=broken)
    made = ids.allocate_experiment(lab.layout, "h-a-0001", plan=lambda i: {"experiment_id": i})
    assert made == "h-a-0001-1"


@given(st.from_regex(ID, fullmatch=True), st.integers(1, 99_999))
def test_long_ids_stay_short_and_apart(hypothesis_id: str, number: int) -> None:
    stem = ids.experiment_stem(hypothesis_id)
    assert ID.fullmatch(f"{stem}-{number}")
    assert stem == hypothesis_id or re.search(r"-[0-9a-f]{6}$", stem)


def allocate(layout: Layout, target: Path) -> None:
    plan = {"plan": lambda made: {"experiment_id": made}}
    given = [
        (ids.allocate_hypothesis(layout, "nov20"), ids.allocate_experiment(layout, "x", **plan))
        for _ in range(12)
    ]
    target.write_text(json.dumps(given))


def test_processes_at_once_never_get_the_same_id(lab: Any) -> None:
    targets = [lab.root / f"given-{n}" for n in range(6)]
    jobs = [forked(allocate, lab.layout, target) for target in targets]
    for job in jobs:
        job.join()
    given = [name for target in targets for pair in json.loads(target.read_text()) for name in pair]
    assert len(given) == len(set(given)) == 6 * 24
    assert f"x-{6 * 12}" in given
