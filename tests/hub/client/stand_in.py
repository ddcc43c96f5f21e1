"""A stand-in for the hub: speaks the contract's wire shapes from memory, over a real repository.

It believes whoever it talks to. `behave` takes a request away from it, to answer it badly.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

AGENT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


class RefusedError(Exception):
    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words


class StandIn:
    """What the hub knows, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: dict[str, str] = {}
        self.commits: list[dict[str, Any]] = []
        self.channels: list[dict[str, Any]] = []
        self.posts: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bundles: list[bytes] = []
        self.closed = False
        self.behave: Callable[[Handler], bool] = lambda _: False
        self.url = ""
        self.lock = threading.RLock()
        self.git("init", "-q", "--bare", ".")

    def git(self, *words: str, binary: bool = False) -> Any:
        run = subprocess.run(["git", *words], cwd=self.folder, capture_output=True)
        if run.returncode:
            raise RefusedError(400, run.stderr.decode())
        return run.stdout if binary else run.stdout.decode()

    # ── what is answered ──────────────────────────────────────────────────────────────────

    def register(self, body: bytes) -> Any:
        if self.closed:
            raise RefusedError(403, "registration is closed: ask the lab for a key")
        name = json.loads(body)["id"]
        if not AGENT.fullmatch(name):
            raise RefusedError(400, "bad id")
        if name in self.keys.values():
            raise RefusedError(409, f"agent {name} is taken")
        key = f"key-of-{name}-{len(self.keys)}"
        self.keys[key] = name
        return {"id": name, "api_key": key}

    def push(self, agent: str, body: bytes) -> Any:
        self.bundles.append(body)
        with tempfile.NamedTemporaryFile(suffix=".bundle") as file:
            file.write(body)
            file.flush()
            lines = self.git("bundle", "unbundle", file.name).splitlines()
        hashes = [line.split()[0] for line in lines]
        known = {commit["hash"] for commit in self.commits}
        for head in hashes:
            for commit in self.git("rev-list", "--topo-order", "--reverse", head).split():
                if commit not in known:
                    self._index(commit, agent)
            self.git("update-ref", f"refs/pushed/{head}", head)
        return {"hashes": hashes}

    def _index(self, commit: str, agent: str) -> None:
        said = self.git("log", "-1", "--format=%P%x00%s", commit).rstrip("\n").split("\0")
        self.commits.append(
            {"hash": commit, "parent_hash": said[0].split(" ")[0], "agent_id": agent,
             "message": said[1], "created_at": now()}
        )  # fmt: skip

    def resolved(self, start: str) -> dict[str, Any]:
        if not re.fullmatch(r"[0-9a-f]{4,64}", start):
            raise RefusedError(400, "bad hash")
        found = [commit for commit in self.commits if commit["hash"].startswith(start)]
        if len(found) != 1:
            raise RefusedError(
                404 if not found else 400, "no such commit" if not found else "ambiguous"
            )
        return found[0]

    def bundle(self, start: str) -> bytes:
        commit = self.resolved(start)["hash"]
        self.git("update-ref", f"refs/fetched/{commit}", commit)
        found: bytes = self.git("bundle", "create", "-", f"refs/fetched/{commit}", binary=True)
        return found

    def children(self, start: str) -> Any:
        return [c for c in self.commits[::-1] if c["parent_hash"].startswith(start)]

    def lineage(self, start: str) -> Any:
        found = [self.resolved(start)]
        while found[-1]["parent_hash"]:
            found.append(self.resolved(found[-1]["parent_hash"]))
        return found

    def leaves(self) -> Any:
        parents = {commit["parent_hash"] for commit in self.commits}
        return [commit for commit in self.commits[::-1] if commit["hash"] not in parents]

    def channel(self, name: str) -> dict[str, Any]:
        found = [channel for channel in self.channels if channel["name"] == name]
        if not found:
            raise RefusedError(404, f"no channel {name}")
        return found[0]

    def create(self, body: bytes) -> Any:
        said = json.loads(body)
        if any(channel["name"] == said["name"] for channel in self.channels):
            raise RefusedError(409, "it exists")
        new = {"id": len(self.channels) + 1, **said, "created_at": now()}
        self.channels.append(new)
        return new

    def post(self, agent: str, channel: str, body: bytes) -> Any:
        place, said = self.channel(channel), json.loads(body)
        new = {"id": len(self.posts) + 1, "channel_id": place["id"], "agent_id": agent,
               "parent_id": said.get("parent_id"), "content": said["content"],
               "created_at": now()}  # fmt: skip
        self.posts.append(new)
        return new


def now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn
    left_open = False
    """Whether the connection stays open after an answer of `behave`, whatever the client says."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_DELETE(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.headers.append(dict(self.headers))
        if self.hub.behave(self):
            self.close_connection = not self.left_open
            return
        with self.hub.lock:
            try:
                status, value = self._routed(body)
            except RefusedError as error:
                status, value = error.status, {"error": error.words}
        if isinstance(value, bytes):
            self.say(status, value, "application/octet-stream")
        else:
            self.say(status, json.dumps(value).encode())

    def say(self, status: int, body: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        more = {name.replace("_", "-"): value for name, value in more.items()}
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _routed(self, body: bytes) -> tuple[int, Any]:
        where = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(where.query).items()}
        parts = where.path.removeprefix("/api/").split("/")
        if parts == ["register"]:
            return 201, self.hub.register(body)
        agent = self.hub.keys.get((self.headers["Authorization"] or "").removeprefix("Bearer "))
        if agent is None:
            raise RefusedError(401, "who are you?")
        if self.command == "POST":
            return 201, self._told(agent, parts, body)
        return 200, self._asked(parts, asked)

    def _told(self, agent: str, parts: list[str], body: bytes) -> Any:
        if parts == ["git", "push"]:
            return self.hub.push(agent, body)
        if parts == ["channels"]:
            return self.hub.create(body)
        if parts[0] == "channels" and parts[2:] == ["posts"]:
            return self.hub.post(agent, parts[1], body)
        raise RefusedError(404, "no such route")

    def _asked(self, parts: list[str], asked: dict[str, str]) -> Any:
        hub, start = self.hub, int(asked.get("offset", 0))
        some = slice(start, start + int(asked.get("limit", 50)))
        if parts == ["git", "commits"]:
            mine = [c for c in hub.commits if asked.get("agent") in (None, c["agent_id"])]
            return mine[::-1][some]
        if parts[:2] == ["git", "commits"]:
            below = {"": hub.resolved, "children": hub.children, "lineage": hub.lineage}
            return below["".join(parts[3:])](parts[2])
        if parts == ["git", "leaves"]:
            return hub.leaves()
        if parts[:2] == ["git", "fetch"]:
            return hub.bundle(parts[2])
        if parts[:2] == ["git", "diff"]:
            pair = [hub.resolved(start)["hash"] for start in parts[2:]]
            return hub.git("diff", *pair, binary=True)
        if parts == ["channels"]:
            return sorted(hub.channels, key=lambda channel: str(channel["name"]))
        if parts[0] == "channels":
            place = hub.channel(parts[1])["id"]
            return [post for post in hub.posts[::-1] if post["channel_id"] == place][some]
        if parts[0] == "posts" and parts[2:] == ["replies"]:
            return [post for post in hub.posts if post["parent_id"] == int(parts[1])]
        if parts[0] == "posts" and parts[1].isdigit() and int(parts[1]) <= len(hub.posts):
            return hub.posts[int(parts[1]) - 1]
        raise RefusedError(404, "no such route")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[StandIn]:
    folder.mkdir()
    hub = StandIn(folder)
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
