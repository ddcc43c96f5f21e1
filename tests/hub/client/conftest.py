"""What the client's tests share: a hub that answers, homes of their own, and a way in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autohypothesis.hub.client.hub import HubClient
from tests.conftest import Answer, called
from tests.hub.client.stand_in import StandIn, serving


@pytest.fixture
def home(tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME with nothing in it, and no hub in the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in (
        "AGENTHUB_CONFIG",
        "AUTOHYPOTHESIS_CONFIG",
        "XDG_CONFIG_HOME",
        "HUB_KEY",
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, home: Path) -> Iterator[StandIn]:
    with serving(tmp_path / "hub data") as hub:
        yield hub


@pytest.fixture
def hub(stand_in: StandIn) -> HubClient:
    """The way of agent `ada` to it."""
    from pydantic import SecretStr

    return HubClient(stand_in.url, SecretStr(HubClient(stand_in.url).register("ada").api_key))


@pytest.fixture
def inside(foreign: Path) -> Callable[..., Answer]:
    """As `cli`, in this process: a command that only asks is not worth one of its own."""
    return lambda *words, cwd=foreign: called(*words, cwd=cwd)


@pytest.fixture
def real(stand_in: StandIn) -> str:
    """The address of the hub itself."""
    return stand_in.hub.url
