"""A hub as an operator starts it, and agents that speak to it.

Where an option of curl, a push or an answer to nobody is the point, the real curl asks; all other
requests share the connections of one pool, since a process for each takes longer than the answer.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import urllib3

from autohypothesis.hub.server import serving
from autohypothesis.hub.server.app import open_hub
from autohypothesis.hub.server.settings import MB, Hourly, HubLimits, Settings
from tests.conftest import ROOT, called
from tests.conftest import Answer as Called

ADMIN_KEY = "an operator's key for tests only"
AS_JSON = ("-X", "POST", "-H", "Content-Type: application/json")


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What every refusal has to say."""
        assert set(self.json) == {"error"}, self.body
        return str(self.json["error"])


def curl(*words: str, stdin: bytes | None = None) -> Answer:
    """curl, with the status and the headers of the last answer."""
    done = subprocess.run(
        ["curl", "-s", "-D", "/dev/stderr", *words], input=stdin, capture_output=True, timeout=60
    )
    blocks = [one for one in done.stderr.decode("latin-1").split("\r\n\r\n") if one.strip()]
    assert blocks, f"curl {words} ended with {done.returncode} and no answer"
    first, *lines = blocks[-1].strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    return Answer(int(first.split()[1]), done.stdout, {k.lower(): v for k, v in headers.items()})


POOL = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
    """As `curl`, without a process of its own."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = POOL.request(method, url, body=body, headers=given, redirect=False)
    return Answer(answer.status, answer.data, {k.lower(): v for k, v in answer.headers.items()})


@dataclass
class Agent:
    """Somebody with a key."""

    hub: str
    name: str
    key: str

    def __call__(self, path: str, *words: str, stdin: bytes | None = None) -> Answer:
        if not words:
            return ask("GET", self.hub + path, Authorization=f"Bearer {self.key}")
        bearer = f"Authorization: Bearer {self.key}"
        return curl(*words, "-H", bearer, self.hub + path, stdin=stdin)

    def get(self, path: str) -> Any:
        answer = self(path)
        assert answer.status == 200, answer.body
        return answer.json

    def send(self, path: str, value: Any) -> Answer:
        return self.post(path, json.dumps(value).encode())

    def post(self, path: str, body: bytes) -> Answer:
        """With the content type that curl gives to a body."""
        form, bearer = "application/x-www-form-urlencoded", f"Bearer {self.key}"
        return ask("POST", self.hub + path, body, Authorization=bearer, Content_Type=form)

    def delete(self, path: str) -> Answer:
        return ask("DELETE", self.hub + path, Authorization=f"Bearer {self.key}")

    def push(self, bundle: Path) -> Answer:
        """As the protocol has it."""
        return self("/api/git/push", "-X", "POST", "--data-binary", f"@{bundle}")


@dataclass
class Hub:
    """A hub in a thread of this process, with options as `hub serve` has them."""

    data: Path
    options: tuple[str, ...] = ()
    limits: HubLimits | None = None
    url: str = ""
    running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> Hub:
        settings = settings_of(self.data, self.options)
        settings = replace(settings, limits=self.limits or settings.limits)
        sock = self.running.enter_context(serving.listening(settings))
        server, listens = serving.HubServer(open_hub(settings)), threading.Event()
        server.announce = listens.set
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(60)

        self.running.callback(end)
        assert listens.wait(60)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        return self

    def end(self) -> int:
        self.running.close()
        return 0

    def agent(self, name: str, role: str = "push") -> Agent:
        operator = Agent(self.url, "", ADMIN_KEY)
        answer = operator.send("/api/admin/agents", {"id": name, "role": role})
        assert answer.status == 201, answer.body
        return Agent(self.url, name, answer.json["api_key"])

    def git(self, *words: str, **options: Any) -> str:
        return subprocess.run(
            ["git", "-C", str(self.data / "commits.git"), *words],
            check=True, capture_output=True, text=True, **options,
        ).stdout  # fmt: skip


def settings_of(data: Path, options: tuple[str, ...]) -> Settings:
    """The settings that `hub serve --data DATA --port 0 OPTIONS` makes."""
    given: dict[str, Any] = {"port": 0, "names": [], "proxies": []}
    hourly: dict[str, int] = {}
    limits: dict[str, int] = {}
    words = iter(word.removeprefix("--").replace("-", "_") for word in options)
    for word in words:
        if word in ("open_registration", "private_pages"):
            given[word] = True
        elif word in ("name", "proxy"):
            given[{"name": "names", "proxy": "proxies"}[word]].append(next(words))
        elif word == "port":
            given[word] = int(next(words))
        elif word == "bundle_mb":
            limits["bundle_bytes"] = int(next(words)) * MB
        else:
            (limits if word in ("channels", "connections") else hourly)[word] = int(next(words))
    return Settings(data, admin_key=ADMIN_KEY, hourly=Hourly(**hourly),
                    limits=HubLimits(**limits), **given)  # fmt: skip


@dataclass
class HubProcess(Hub):
    """A hub as an operator starts it."""

    cwd: Path = ROOT
    process: subprocess.Popen[str] | None = None
    said: str = ""
    words: tuple[str, ...] = (str(ROOT / "orchestrator.py"), "hub", "serve", "--port", "0")

    def start(self) -> HubProcess:
        words = [*self.words, "--data", str(self.data), *self.options]
        extra = {"PYTHONPATH": str(ROOT), "AUTOHYPOTHESIS_HUB_ADMIN_KEY": ADMIN_KEY}
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=self.cwd, env={**os.environ, **extra},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.listens()

    def listens(self) -> HubProcess:
        """Wait until it says that it does, and where."""
        assert self.process is not None and self.process.stderr is not None
        self.said, found = "", None
        while found is None:
            line = self.process.stderr.readline()
            self.said += line
            assert line, f"the hub ended: {self.said}"
            found = re.search(r"serving .* on (http://\S+);", line)
        self.url = found[1].replace("0.0.0.0", "127.0.0.1")
        assert curl(self.url + "/api/health").status == 200, "it said that it listens"
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.died()

    def died(self) -> int:
        assert self.process is not None and self.process.stderr is not None
        status = self.process.wait(120)
        self.process.stderr.close()
        return status


def admin(hub: Hub, *words: str) -> Called:
    """`hub admin WORDS`, beside the hub that serves."""
    return called("hub", "admin", *words, "--data", str(hub.data), cwd=hub.data.parent)


Start = Callable[..., Hub]
StartProcess = Callable[..., HubProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts hubs that end with the test."""
    with ExitStack() as started:

        def make(
            *options: str, data: Path | None = None, limits: HubLimits | None = None,
            kind: type[Hub] = Hub,
        ) -> Hub:  # fmt: skip
            hub = kind(data or tmp_path / f"hub{secrets.token_hex(3)}", options, limits)
            started.callback(hub.end)
            return hub.start()

        yield make


@pytest.fixture
def start_process(start: Start) -> StartProcess:
    def make(*options: str, data: Path | None = None) -> HubProcess:
        hub = start(*options, data=data, kind=HubProcess)
        assert isinstance(hub, HubProcess)
        return hub

    return make


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The hub of one conformance suite: another one where that is named, else one of ours."""
    other = os.environ.get("AUTOHYPOTHESIS_TEST_HUB")
    if other:
        yield other.rstrip("/")
        return
    limits = ("--registrations", "--pushes", "--posts", "--results", "--claims")
    options = ("--open-registration", *(word for one in limits for word in (one, "100000")))
    hub = Hub(tmp_path_factory.mktemp("conformance") / "data", options).start()
    yield hub.url
    hub.end()


def registered(url: str, body: str) -> Answer:
    return ask("POST", f"{url}/api/register", body.encode(), Content_Type="application/json")


def register(url: str) -> Agent:
    name = f"agent-{secrets.token_hex(6)}"
    answer = registered(url, f'{{"id":"{name}"}}')
    assert answer.status == 201, answer.body
    assert set(answer.json) == {"id", "api_key"} and answer.json["id"] == name
    return Agent(url, name, answer.json["api_key"])


@dataclass
class Clone:
    """A repository of an agent."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> Clone:
        root.mkdir(parents=True)
        made = cls(root)
        made.git("init", "-q", "-b", "main")
        return made

    def git(self, *words: str, stdin: bytes = b"") -> str:
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *identity, *words], cwd=self.root, input=stdin, env=environment,
            capture_output=True, check=True,
        )  # fmt: skip
        return done.stdout.decode().strip()

    def commit(self, message: str, **files: str) -> str:
        for name, content in (files or {"train": message}).items():
            (self.root / f"{name}.py").write_text(content + "\n")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def object(self, kind: str, content: bytes) -> str:
        """Any object, however wrong."""
        words = ("hash-object", "-t", kind, "-w", "--stdin", "--literally")
        return self.git(*words, stdin=content)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """A tree of (mode, name, hash), as they are."""
        raw = b"".join(
            mode.encode() + b" " + name.encode() + b"\0" + bytes.fromhex(inner)
            for mode, name, inner in entries
        )
        return self.object("tree", raw)

    def commit_of(self, tree: str, *parents: str, message: str = "m") -> str:
        lines = [f"tree {tree}", *(f"parent {one}" for one in parents)]
        who = "A <a@example.org> 1700000000 +0000"
        lines += [f"author {who}", f"committer {who}", "", message, ""]
        return self.object("commit", "\n".join(lines).encode())

    def bundle(self, *words: str) -> Path:
        path = self.root.parent / f"{self.root.name}.bundle"
        self.git("bundle", "create", "-q", str(path), *(words or ("HEAD",)))
        return path

    def bundle_of(self, head: str, *names: str, without: tuple[str, ...] = ()) -> Path:
        """A bundle made by hand: the objects of `head` and `names`, and a header of our own."""
        listed = self.git("rev-list", "--objects", head, *names, *(f"^{one}" for one in without))
        wanted = [line.split()[0] for line in listed.splitlines()]
        return self.bundle_with(head, wanted)

    def bundle_with(self, head: str, objects: list[str]) -> Path:
        pack = subprocess.run(
            ["git", "pack-objects", "--stdout", "-q"], cwd=self.root, check=True,
            input="".join(f"{one}\n" for one in objects).encode(), capture_output=True,
        ).stdout  # fmt: skip
        path = self.root.parent / f"{self.root.name}.made.bundle"
        path.write_bytes(f"# v2 git bundle\n{head} HEAD\n\n".encode() + pack)
        return path


MakeClone = Callable[..., Clone]


@pytest.fixture
def clone(tmp_path: Path) -> MakeClone:
    return lambda name="clone": Clone.make(tmp_path / name)
