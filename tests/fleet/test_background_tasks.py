"""What the observer has done in the background: not again and again, and not what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autohypothesis.engine.project import Project
from autohypothesis.fleet.observer import publishing
from autohypothesis.fleet.observer.publishing import TRIES, NoiseEstimator
from autohypothesis.fleet.toolbuilder import tools


class Asked:
    """The tasks of a search whose runs are made up; every answer of the tool is counted."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = project
        self.history = SimpleNamespace(version=0, latest={})
        self.tasks = NoiseEstimator(project, self.history)  # type: ignore[arg-type]
        self.calls = 0
        self.counted: int | None = None
        monkeypatch.setattr(tools, "figure", self._figure)
        for name in ("FIGURE_S", "REGISTRY_S"):
            monkeypatch.setattr(publishing, name, 0.0)

    def _figure(self, *words: object) -> dict[str, Any]:
        self.calls += 1
        return {"sd": 0.1, "runs": self.counted}

    def decided(self, commit: str) -> None:
        self.history.version += 1
        self.history.latest[self.history.version] = SimpleNamespace(
            commit=commit, platform_key="p", metric_value=1.0
        )

    def turns(self, count: int = 6) -> None:
        for _ in range(count):
            self.tasks.turn()
            if self.tasks._thread is not None:
                self.tasks._thread.join()


@pytest.fixture
def asked(fleet_project: Project, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(fleet_project, monkeypatch)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing checks nothing here: what a script does is not looked at."""
    checked = {"sha256": "0", "summary": "a figure", "usage": "tools run noise"}
    monkeypatch.setattr(tools, "check", lambda *words, **more: checked)


def publish(project: Project) -> None:
    tools.publish(project.layout, "noise", b"", decided_by="a test")


def test_the_noise_is_figured_again_only_when_something_was_repeated(asked: Asked) -> None:
    publish(asked.project)
    asked.decided("a")
    asked.turns()
    assert asked.calls == 0
    asked.counted = 2
    asked.decided("a")
    asked.turns()
    assert asked.calls == 1
    for commit in "bcdef":
        asked.decided(commit)
        asked.turns()
    assert asked.calls == 1
    asked.counted = 3
    asked.decided("a")
    asked.turns()
    assert asked.calls == 2


def test_a_ledger_that_lags_is_waited_for_and_one_that_differs_not_for_ever(asked: Asked) -> None:
    publish(asked.project)
    asked.counted = 0
    asked.decided("a")
    asked.decided("a")
    asked.turns(1)
    asked.counted = 2
    asked.turns()
    assert asked.calls == 2
    asked.decided("a")
    asked.turns(20)
    assert asked.calls == 2 + TRIES


def test_a_tool_that_a_person_discarded_is_not_asked_for_again(asked: Asked) -> None:
    publish(asked.project)
    tools.decide(asked.project.layout, "noise", "discarded", decided_by="ada")
    asked.decided("a")
    asked.decided("a")
    for one in (asked.tasks, NoiseEstimator(asked.project, asked.tasks.history)):
        asked.tasks = one
        asked.turns()
    (tool,) = tools.registry(asked.project.layout).tools
    assert (tool.status, asked.calls) == ("discarded", 0)
