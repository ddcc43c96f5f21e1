"""After a kill: the worktree of a run that nobody has judged yet is nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from autohypothesis.engine import iteration, recovery
from autohypothesis.engine.change import Change
from autohypothesis.engine.iteration import Request
from autohypothesis.engine.lab import Lab
from autohypothesis.errors import AutohypothesisError
from autohypothesis.records.files import write_json


@pytest.fixture
def lab(foreign: Path) -> Lab:
    return Lab.open(foreign).with_tag("t")


@pytest.mark.parametrize("state", ["absent", "dead", "finished"])
def test_an_uncollected_run_keeps_its_worktree_whatever_became_of_its_shim(
    lab: Lab, state: str
) -> None:
    run = lab.layout.run("h-t-0001-1")
    write_json(run.run_spec, {"worker_id": "solo-0"})
    if state != "absent":
        write_json(run.shim, {"pid": 0})
    if state == "finished":
        write_json(run.exit, {"status": "exited"})
    assert recovery.busy_workers(lab.layout) == {"solo-0"}
    with iteration.free_worker(lab) as worker:
        assert worker == "solo-1"
    write_json(run.result, {"status": "failed"})
    with iteration.free_worker(lab) as worker:
        assert worker == "solo-0"


def test_a_run_that_cannot_be_collected_does_not_lose_its_evidence_to_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AutohypothesisError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(iteration.LocalExecutor, "collect", refuse)
        patch.setattr(recovery, "collect", refuse)
        with pytest.raises(AutohypothesisError, match="not now"):
            iteration.run(lab, Request(Change.none()))
        patch.setattr(iteration.LocalExecutor, "collect", lambda *_: None)
        second = iteration.Request(Change.from_overrides({"RATE": 0.2}))
        with pytest.raises(AutohypothesisError, match="not now"):
            patch.setattr(iteration.LocalExecutor, "collect", refuse)
            iteration.run(lab, second)
    assert recovery.busy_workers(lab.layout) == {"solo-0", "solo-1"}
    collected = recovery.collect_ended(lab.repository, lab.layout)
    assert len(collected) == 2
    for experiment_id in collected:
        assert '"completed"' in lab.layout.run(experiment_id).result.read_text()
