"""What the client's tests share: homes of their own, and a server before a real hub, which notes
each request and whose `behave` may answer it badly instead."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from autohypothesis.hub.client.hub import HubClient
from tests.hub.conftest import POOL, Agent, Hub


class StandIn:
    """A hub that is open to register, and what it was asked."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.keys: dict[str, str] = {}
        """Of the agents that registered here, by their names."""
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bundles: list[bytes] = []
        self.behave: Callable[[Handler], bool] = lambda _: False
        self.url = ""
        self.reader: Agent = hub.agent("reader", "read")

    @property
    def channels(self) -> list[str]:
        return [channel["name"] for channel in self.reader.get("/api/channels")]

    @property
    def posts(self) -> list[str]:
        """The contents of all posts, the oldest first."""
        lists = [self.reader.get(f"/api/channels/{name}/posts") for name in self.channels]
        posts = sorted((post for posts in lists for post in posts), key=lambda post: post["id"])
        return [post["content"] for post in posts]

    def forget_posts(self) -> None:
        """As after a backup of the time before them."""
        path = self.hub.data / "hub.sqlite3"
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            database.execute("DELETE FROM posts")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn
    left_open = False
    """Whether the connection stays open after an answer of `behave`, whatever the client says."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.headers.append(dict(self.headers))
        if self.path == "/api/git/push":
            self.hub.bundles.append(body)
        if self.hub.behave(self):
            self.close_connection = not self.left_open
            return
        passed = {name: self.headers[name] for name in ("Authorization", "Content-Type")
                  if name in self.headers}  # fmt: skip
        answer = POOL.request(
            self.command, self.hub.hub.url + self.path, body=body or None, headers=passed
        )
        if self.path == "/api/register" and answer.status == 201:
            made = json.loads(answer.data)
            self.hub.keys[made["id"]] = made["api_key"]
        self.say(answer.status, answer.data, answer.headers.get("Content-Type", ""))

    def say(self, status: int, body: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        more = {name.replace("_", "-"): value for name, value in more.items()}
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[StandIn]:
    served = Hub(folder, ("--open-registration",)).start()
    hub = StandIn(served)
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        served.end()


@pytest.fixture
def home(tmp_path: Path, own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME with nothing in it, and no hub in the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    hubs = ("AGENTHUB_CONFIG", "AUTOHYPOTHESIS_CONFIG", "XDG_CONFIG_HOME", "HUB_KEY")
    for name in (*hubs, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, home: Path) -> Iterator[StandIn]:
    with serving(tmp_path / "hub data") as hub:
        yield hub


@pytest.fixture
def hub(stand_in: StandIn) -> HubClient:
    """The way of agent `ada` to it."""
    return HubClient(stand_in.url, SecretStr(HubClient(stand_in.url).register("ada").api_key))


@pytest.fixture
def real(stand_in: StandIn) -> str:
    """The address of the hub itself."""
    return stand_in.hub.url
