"""What the hub's tests share: a hub that answers, homes of their own, and a way in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autohypothesis.hub.client.hub import Hub
from tests.hub.stand_in import StandIn, serving


@pytest.fixture
def home(tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME with nothing in it, and no hub in the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("AGENTHUB_CONFIG", "HUB_KEY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, home: Path) -> Iterator[StandIn]:
    """The stand-in for a server; the real one's tests are beside."""
    with serving(tmp_path / "hub.git") as hub:
        yield hub


@pytest.fixture
def hub(stand_in: StandIn) -> Hub:
    """The way of agent `ada` to it."""
    from pydantic import SecretStr

    return Hub(stand_in.url, SecretStr(Hub(stand_in.url).register("ada").api_key))
