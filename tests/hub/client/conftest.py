"""What the client's tests share: a hub that answers, homes of their own, and a way in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autohypothesis.hub.client.http import Wire
from autohypothesis.hub.client.hub import Hub
from tests.conftest import ROOT
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
    """The stand-in for a server; the real one's tests are beside."""
    with serving(tmp_path / "hub.git") as hub:
        yield hub


@pytest.fixture
def hub(stand_in: StandIn) -> Hub:
    """The way of agent `ada` to it."""
    from pydantic import SecretStr

    return Hub(stand_in.url, SecretStr(Hub(stand_in.url).register("ada").api_key))


@pytest.fixture
def inside(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `cli`, in this process: a command that only asks is not worth one of its own."""
    import orchestrator

    def call(*words: str, cwd: Path = foreign) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["orchestrator.py", *words])
        with pytest.raises(SystemExit) as ended:
            orchestrator.main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(params=["stand-in", "real"])
def served(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[str]:
    """The address of a hub that lets everybody in: the stand-in, and the real one."""
    if request.param == "stand-in":
        with serving(tmp_path / "hub.git") as hub:
            yield hub.url
        return
    with really_serving(tmp_path) as url:
        yield url


@pytest.fixture
def real(tmp_path: Path, home: Path) -> Iterator[str]:
    """The address of the real one."""
    with really_serving(tmp_path) as url:
        yield url


@contextmanager
def really_serving(tmp_path: Path) -> Iterator[str]:
    words = [sys.executable, str(ROOT / "orchestrator.py"), "hub", "serve", "--port", "0",
             "--data", str(tmp_path / "hub data"), "--open-registration"]  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr
        try:
            url = process.stderr.readline().split(" on ")[1].split(";")[0]
            assert Wire(url).ask("/api/health") == {"status": "ok"}
            yield url
        finally:
            process.terminate()
            process.communicate(timeout=30)
