"""A launch file says everything, and nothing else is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from autohypothesis.engine.devices import Device, Lease
from autohypothesis.engine.shim import Launch, ScoreCommand, deadline
from autohypothesis.errors import LaunchError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((30.0, 300.0, "wall", 60.0), 690.0),
        ((10.0, 15.0, "cpu", 20.0), 90.0),
        ((30.0, None, "wall", 60.0), 600.0),
    ],
)
def test_deadlines(arguments: Any, expected: float) -> None:
    assert deadline(*arguments) == expected


def test_a_launch_survives_its_file(make_launch: Callable[..., Launch]) -> None:
    plain = make_launch("quick")
    full = make_launch(
        "quick",
        lease=Lease("/locks/cpu-0.lock", "CPU slot 0"),
        device=Device("cuda", "GPU-1", "H100", (1, 2)),
        score=ScoreCommand(("a", "b"), "/", {"X": "1"}, 3.0),
        labels={"gpu_id": "1"},
    )
    for launch in (plain, full):
        assert Launch.from_json(launch.to_json()) == launch


@pytest.mark.parametrize(
    "change",
    [{"budget": 3}, {"device": {"index": 3}}, {"lease": {"name": "x"}}, {"score": [1]}],
    ids=["unknown field", "unknown part of a device", "lease without a path", "no object"],
)
def test_a_wrong_launch_file_is_refused(
    make_launch: Callable[..., Launch], change: dict[str, Any]
) -> None:
    raw = json.loads(make_launch("quick").to_json())
    with pytest.raises(LaunchError, match="is not whole"):
        Launch.from_json(json.dumps({**raw, **change}).encode())


def test_a_torn_launch_file_is_refused() -> None:
    with pytest.raises(LaunchError, match="is not whole"):
        Launch.from_json(b'{"experiment_id": ')
