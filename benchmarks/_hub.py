"""What benchmarks/hub.py measures: a hub in a process of its own, agents of it, and histories.

Everything is on loopback and in one temporary folder, and the hub ends with the `with` block.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
"""A hang guard for one request."""
PLENTY = "1000000"
"""An hourly limit that a benchmark does not meet."""
AT_ONCE = 2_000
"""Commits of a bundle that fills a hub; a push may bring 5,000."""
HEADS = 100
"""Leaves of a bundle; a push may bring 200 heads."""
LINES = [f"SETTING_{number} = {number * 7919 % 1000}\n" for number in range(60)]
"""A small script, in which each commit changes one line."""
_OPERATOR = "the operator of a benchmark"
_WHO = "Ada <ada@example.org> 1700000000 +0000"


class Agent:
    """Somebody with a key and one connection, which is kept open."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port, timeout=PATIENCE_S
        )
        self._headers = {"Authorization": f"Bearer {key}"}

    def get(self, path: str) -> bytes:
        return self._asked("GET", path, None, 200)

    def tell(self, path: str, value: object) -> bytes:
        return self._asked("POST", path, json.dumps(value).encode(), 201)

    def push(self, bundle: bytes) -> None:
        self._asked("POST", "/api/git/push", bundle, 201)

    def stream(self, path: str) -> http.client.HTTPResponse:
        """An answer whose body is still to be read, to its end."""
        self._connection.request("GET", path, headers=self._headers)
        return self._connection.getresponse()

    def _asked(self, method: str, path: str, body: bytes | None, expected: int) -> bytes:
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != expected:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {content[:300]!r}")
        return content


@dataclass
class Served:
    """A hub that runs."""

    url: str
    process: psutil.Process
    start_mb: float
    """When it had answered once."""
    peak_mb: float = 0.0

    def agent(self, name: str) -> Agent:
        """A new agent, with its own key."""
        said = Agent(self.url, _OPERATOR).tell("/api/admin/agents", {"id": name})
        return Agent(self.url, json.loads(said)["api_key"])

    def resident_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1e6

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks at its memory all the while."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.05):
                self.peak_mb = max(self.peak_mb, self.resident_mb())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextmanager
def served(data: Path) -> Iterator[Served]:
    """`hub serve`, as an operator starts it, with limits that nobody meets."""
    words = ["hub", "serve", "--data", str(data), "--port", "0"]
    for limit in ("pushes", "posts", "results"):
        words += [f"--{limit}", PLENTY]
    environment = {**os.environ, "AUTOHYPOTHESIS_HUB_ADMIN_KEY": _OPERATOR}
    process = subprocess.Popen(
        [sys.executable, "-m", "autohypothesis", *words],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        found = re.search(r" on (http://\S+);", process.stderr.readline())
        if found is None:
            raise RuntimeError(f"the hub did not start: {process.stderr.read()}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        Agent(found[1], "").get("/api/health")
        hub = Served(found[1], psutil.Process(process.pid), 0.0)
        hub.start_mb = hub.resident_mb()
        yield hub
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


# ── histories ───────────────────────────────────────────────────────────────────────────────


def git(root: Path, *words: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(
        ["git", "-C", str(root), *words], input=stdin, check=True, capture_output=True
    ).stdout


def script(number: int) -> bytes:
    lines = list(LINES)
    lines[number % len(lines)] = f"SETTING_{number % len(lines)} = {number}\n"
    return "".join(lines).encode()


def _commit(branch: str, message: str, files: dict[str, bytes], origin: str = "") -> bytes:
    """One commit for `git fast-import`."""
    head = f"commit refs/heads/{branch}\ncommitter {_WHO}\ndata {len(message)}\n{message}\n"
    parts = [head.encode(), f"from {origin}\n".encode() if origin else b""]
    for name, content in files.items():
        parts.append(f"M 100644 inline {name}\ndata {len(content)}\n".encode() + content + b"\n")
    return b"".join(parts)


def filling(root: Path, commits: int, leaves: int) -> Iterator[bytes]:
    """Bundles of a line of `commits` commits, then of `leaves` more, each on another of them."""
    root.mkdir(parents=True)
    git(root, "init", "-q", "--bare")
    line = (
        _commit("line", f"change {number}", {"train.py": script(number)})
        for number in range(commits)
    )
    git(root, "fast-import", "--quiet", stdin=b"".join(line))
    names = git(root, "rev-list", "--reverse", "line").decode().split()
    for start in range(0, commits, AT_ONCE):
        git(root, "branch", "-f", "part", names[min(start + AT_ONCE, commits) - 1])
        yield _bundle(root, ["part"], names[start - 1 : start])
    places = names[:: max(1, len(names) // max(1, leaves))][:leaves]
    yield from _leaves(root, places)


def _leaves(root: Path, places: Sequence[str]) -> Iterator[bytes]:
    tries = (
        _commit(f"leaf-{number}", f"try {number}", {"train.py": script(-number)}, place)
        for number, place in enumerate(places)
    )
    git(root, "fast-import", "--quiet", stdin=b"".join(tries))
    branches = iter([f"leaf-{number}" for number in range(len(places))])
    while some := list(islice(branches, HEADS)):
        yield _bundle(root, some, ["line"])


def _bundle(root: Path, branches: Sequence[str], without: Iterable[str]) -> bytes:
    return git(root, "bundle", "create", "-q", "-", *branches, "--not", *without)


def pushes(root: Path, count: int) -> list[bytes]:
    """Bundles as the protocol has them: all of `HEAD`, which is one change to this project's pair.

    Each holds the baseline again, which the hub has from the first on.
    """
    root.mkdir(parents=True)
    git(root, "init", "-q", "--bare")
    names = ("train.py", "prepare.py", "pyproject.toml")
    files = {name: (ROOT / name).read_bytes() for name in names}
    git(root, "fast-import", "--quiet", stdin=_commit("baseline", "baseline", files))
    baseline = git(root, "rev-parse", "baseline").decode().strip()
    tries = (
        _commit(f"try-{number}", f"try {number}", {
            "train.py": files["train.py"] + f"# try {number}\n".encode()
        }, baseline)
        for number in range(count)
    )  # fmt: skip
    git(root, "fast-import", "--quiet", stdin=b"".join(tries))
    return [_bundle(root, [f"try-{number}"], []) for number in range(count)]
