"""Whoever reaches a hub, and has no key, keeps nobody out: silence, drips, floods, forms."""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from autohypothesis.hub.server import serving
from autohypothesis.hub.server.serving import HubLog, keep_log
from autohypothesis.hub.server.settings import HubLimits

from .conftest import Start, StartProcess, curl

HANG_S = 60.0


@dataclass
class Served:
    """A hub with short patience."""

    data: Path
    port: int

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=HANG_S, source_address=(source, 0)
        )

    def says(self, source: str = "127.0.0.1") -> bytes:
        """The status line of a plain question; empty where the connection is closed instead."""
        with self.connect(source) as asking:
            try:
                asking.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return asking.recv(4096).partition(b"\r\n")[0]
            except ConnectionError:
                return b""


Impatient = Callable[..., Served]


@pytest.fixture
def impatient(start: Start) -> Impatient:
    def make(connections: int, *proxies: str) -> Served:
        limits = HubLimits(
            connections=connections, header_seconds=0.5, idle_seconds=0.5, stall_seconds=0.5
        )
        hub = start(*(word for proxy in proxies for word in ("--proxy", proxy)), limits=limits)
        return Served(hub.data, int(hub.url.rpartition(":")[2]))

    return make


def ended(connection: socket.socket) -> bool:
    """Waits for the other side to hang up; a hub that never does fails at `HANG_S`."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    """What is started meanwhile has so many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_silent_connections_beyond_all_descriptors_keep_nobody_out(
    start_process: StartProcess,
) -> None:
    with descriptors(256):
        hub = start_process("--open-registration")
    port = int(hub.url.rpartition(":")[2])
    with ExitStack() as stack:
        for number in range(400):
            source = f"127.0.0.{number % 8 + 1}"
            made = socket.create_connection(
                ("127.0.0.1", port), timeout=HANG_S, source_address=(source, 0)
            )
            stack.enter_context(made)
            if number % 50 == 0:
                assert curl(f"{hub.url}/api/health").status == 200
        for _ in range(3):
            assert curl(f"{hub.url}/api/health").status == 200
        assert len(list(Path(f"/proc/{hub.pid}/fd").iterdir())) < 256
    assert (hub.data / "hub.log").stat().st_size < 20_000


def test_a_connection_that_keeps_still_is_ended(impatient: Impatient) -> None:
    served = impatient(64)
    asked = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:
        still = [stack.enter_context(served.connect()) for _ in range(6)]
        for connection, sent in zip(still, (
            b"", b"GET /api/health HT", asked + b"X: ", asked + b"\r\n", asked + b"\r\nGET /ap",
            b"POST /api/register HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
        ), strict=True):  # fmt: skip
            connection.sendall(sent)
        for connection in still:
            assert ended(connection)


def test_a_connection_that_drips_is_ended(impatient: Impatient) -> None:
    """Each byte comes long before any silence could be noticed."""
    served = impatient(64)
    for begin in (b"GET / HTTP/1.1\r\nX: ", b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with served.connect() as connection:
            connection.sendall(begin)
            with pytest.raises(ConnectionError):
                for _ in range(int(HANG_S / 0.05)):
                    connection.sendall(b"x")
                    time.sleep(0.05)


def test_a_peer_that_does_not_read_its_answers_is_ended(impatient: Impatient) -> None:
    """Also one that goes on to ask meanwhile."""
    served = impatient(64)
    with served.connect() as connection:
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        with pytest.raises(ConnectionError):
            for _ in range(int(HANG_S / 0.01)):
                connection.sendall(ask)
                time.sleep(0.01)
        assert served.says() == b"HTTP/1.1 200 OK"


BUSY = (
    b"POST /api/git/push HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
    b"Content-Length: 1000000\r\n\r\n"
)


def test_an_address_has_its_share_and_others_theirs(start: Start) -> None:
    hub = start("--connections", "2")
    agent = hub.agent("ada")
    served = Served(hub.data, int(hub.url.rpartition(":")[2]))
    begun = BUSY.replace(b"Bearer x", f"Bearer {agent.key}".encode())
    with served.connect() as one, served.connect() as two:
        for connection in (one, two):
            connection.sendall(begun + b"x" * 100)
        while len(list((hub.data / "incoming").iterdir())) < 2:  # both are at a request
            time.sleep(0.02)
        assert served.says() == b""
        assert served.says("127.0.0.2") == b"HTTP/1.1 200 OK"
    while served.says() == b"":
        time.sleep(0.02)


def test_a_proxy_stands_for_many(impatient: Impatient) -> None:
    served = impatient(2, "127.0.0.1")
    with ExitStack() as stack:
        some = [stack.enter_context(served.connect()) for _ in range(8)]
        for connection in some:
            connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert {connection.recv(15) for connection in some} == {b"HTTP/1.1 200 OK"}


# ── what a form can send ────────────────────────────────────────────────────────────────────


def test_what_a_foreign_page_can_send_registers_nobody_and_costs_no_attempt(start: Start) -> None:
    hub = start("--open-registration", "--registrations", "1")
    words = ("-X", "POST", "-d", '{"id":"eve"}', f"{hub.url}/api/register")
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                 "text/plain", "text/plain; application/json", ""):  # fmt: skip
        answer = curl("-H", f"Content-Type:{kind and ' '}{kind}", *words)
        assert answer.status == 415 and "Content-Type: application/json" in answer.error
    answer = curl("-H", "Content-Type: Application/JSON; charset=utf-8", *words)
    assert answer.status == 201


# ── the log ─────────────────────────────────────────────────────────────────────────────────


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def logger_of(book: HubLog) -> logging.Logger:
    found = logging.Logger("hub under test")
    found.addHandler(book)
    return found


def test_messages_that_all_differ_are_bounded_too() -> None:
    kept = Kept()
    log = logger_of(HubLog([kept]))
    for number in range(10_000):
        log.warning(f"message {number}")
    assert len(kept.lines) == serving.KINDS + serving.MESSAGES


def test_the_file_is_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FILE_BYTES", 10_000)
    monkeypatch.setattr(serving, "MESSAGES", 10**6)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging, "raiseExceptions", True)
    keep_log(tmp_path / "hub.log")
    for number in range(2_000):
        logging.getLogger("autohypothesis.hub").warning("message %d, %s", number, "x" * 50_000)
    files = list(tmp_path.iterdir())
    assert len(files) == serving.FILES
    assert max(file.stat().st_size for file in files) <= max(10_000, serving.LINE_LIMIT + 100)


def test_a_hub_keeps_its_log_in_its_folder_for_its_owner_only(start_process: StartProcess) -> None:
    hub = start_process()
    port = int(hub.url.rpartition(":")[2])
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
            connection.sendall(b"\x00 no HTTP\r\n\r\n")
            assert ended(connection)
    hub.end()
    text = (hub.data / "hub.log").read_text()
    assert text.count("Invalid HTTP request received.") == serving.MESSAGES + 1
    assert f"{20 - serving.MESSAGES} more like this" in text
    assert (hub.data / "hub.log").stat().st_mode & 0o077 == 0
