"""One process that serves one data folder: its lock, its socket, its connections, its log.

uvicorn waits without limit for the headers of a request, so any client could hold all descriptors
with connections that say nothing. Here each connection has a deadline while it waits for a request
or for its peer to read on, and where there are too many, the one that has waited longest makes
room. What any client can make the hub log is bounded as well.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from filelock import FileLock, Timeout
from uvicorn.protocols.http.h11_impl import H11Protocol

from autohypothesis.errors import LockError, UsageError
from autohypothesis.hub.server.app import application, open_hub
from autohypothesis.hub.server.service import HubService, counted_address
from autohypothesis.hub.server.settings import DataFolder, HubLimits, Settings, loopback

_GRACE_S = 10
_QUEUE = 1024
"""Connections that wait in the kernel to be accepted."""
_MAX_CONNECTIONS = 2_000
"""Maximum connections of a hub, however many descriptors it may have."""
_OTHER_DESCRIPTORS = 192
"""Kept for the database, git and uploads."""
_LEAST_CONNECTIONS = 16
log = logging.getLogger("autohypothesis.hub")


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` shows a line to the operator.

    Raises:
        LockError: another process serves this folder.
        UsageError: the address cannot be listened on.
    """
    os.umask(0o077)
    folder = DataFolder(settings.data)
    with _alone(folder), listening(settings) as sock:
        hub_log = keep_log(folder.log)
        server = HubServer(open_hub(settings), hub_log)
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        def announce() -> None:
            say(f"serving {folder.root} on http://{shown}:{port}; Ctrl-C ends it")
            if not loopback(settings.host):
                say(
                    f"warning: {settings.host} is reached by others, and plain HTTP shows them"
                    " every key: put a TLS proxy before it, or bind 127.0.0.1 and use an ssh"
                    " tunnel"
                )

        server.announce = announce
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server.run(sockets=[sock])


class HubServer(uvicorn.Server):
    """Serves one opened hub."""

    def __init__(self, hub: HubService, hub_log: HubLog | None = None) -> None:
        limits = hub.settings.limits
        self._crowd = crowd = Crowd(limits, hub.settings.proxies)
        self._log = hub_log
        self.announce: Callable[[], None] = lambda: None
        """Called once it listens: who waits for what it says may connect at once."""

        class Held(HeldConnection):
            pass

        Held.crowd = crowd
        super().__init__(
            uvicorn.Config(
                application(hub), http=Held, ws="none", loop="asyncio", proxy_headers=False,
                access_log=False, server_header=False, log_config=None, log_level="warning",
                timeout_keep_alive=math.ceil(limits.idle_seconds),
                timeout_graceful_shutdown=_GRACE_S, lifespan="on",
                # Accepted in one go: few enough that descriptors do not run out.
                backlog=max(_LEAST_CONNECTIONS, min(128, _descriptors() // 8)),
            )
        )  # fmt: skip

    async def on_tick(self, counter: int) -> bool:
        self._crowd.sweep()
        if self._log is not None:
            self._log.end_window()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(_QUEUE)  # in the kernel, where a connection costs no descriptor
        self.announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._log is not None:
            self._log.write_counts()  # the signal that ended it is raised again after this


@contextmanager
def _alone(folder: DataFolder) -> Iterator[None]:
    try:
        with FileLock(folder.lock, timeout=0, mode=0o600, thread_local=False):
            yield
    except Timeout:
        raise LockError(
            f"another process serves {folder.root}", hint=f"`fuser -v {folder.lock}` shows it"
        ) from None


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    where = (settings.host, settings.port)
    try:
        family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0][0]
        # Where the protocol is named, asyncio sends at once; else an answer waits 40 ms for an ACK.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except OSError as error:
        raise UsageError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror or error}",
            hint="choose with --host and --port; port 0 takes a free one",
        ) from error
    with sock:
        yield sock


# ── connections ─────────────────────────────────────────────────────────────────────────────


def _descriptors() -> int:
    """Return the number of files and connections that this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_CONNECTIONS + _OTHER_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def _most_connections() -> int:
    return max(_LEAST_CONNECTIONS, min(_MAX_CONNECTIONS, _descriptors() - _OTHER_DESCRIPTORS))


@dataclass(slots=True)
class Crowd:
    """All connections of one hub."""

    limits: HubLimits
    proxies: Collection[str] = ()
    """Addresses that stand for many people; only the limit of the hub holds for them."""
    most: int = field(default_factory=_most_connections)
    _by_address: dict[str, set[HeldConnection]] = field(default_factory=dict)
    _count: int = 0

    def admit(self, new: HeldConnection, peer: str) -> bool:
        """Take in a new connection; False where there is no room, and none can be made."""
        where = counted_address(peer)
        neighbours = self._by_address.get(where, set())
        if peer not in self.proxies and len(neighbours) >= self.limits.connections:
            log.warning("%s has %d connections, and may have no more", where, len(neighbours))
            if not _make_room(neighbours):
                return False
        elif self._count >= self.most:
            log.warning("there are %d connections, and may be no more", self._count)
            if not _make_room(one for some in self._by_address.values() for one in some):
                return False
        new.address = where
        self._by_address.setdefault(where, set()).add(new)
        self._count += 1
        return True

    def leave(self, connection: HeldConnection) -> None:
        """Count a connection no more; one that was never taken in may leave too."""
        neighbours = self._by_address.get(connection.address, set())
        if connection in neighbours:
            neighbours.discard(connection)
            self._count -= 1
            if not neighbours:
                del self._by_address[connection.address]

    def sweep(self) -> None:
        """End every connection whose time is up."""
        now = time.monotonic()
        for connection in [one for some in self._by_address.values() for one in some]:
            if connection.deadline is not None and now > connection.deadline:
                connection.cut()


def _make_room(connections: Iterable[HeldConnection]) -> bool:
    """End the one that has waited longest; False where each is at a request."""
    waiting = [one for one in connections if one.waits_since is not None]
    if waiting:
        min(waiting, key=lambda one: one.waits_since or 0.0).cut()
    return bool(waiting)


class HeldConnection(H11Protocol):
    """One connection, with a deadline where uvicorn has none."""

    crowd: ClassVar[Crowd]
    address = ""
    deadline: float | None = None
    """When it is ended, by the monotonic clock; None while the hub is at its request."""
    waits_since: float | None = None
    """Since when no request is here; None while one is."""
    _began = True
    """Whether a byte of the next request is here; a new connection counts as begun."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = str((self.client or ("unknown", 0))[0])
        self._wait(self.crowd.limits.header_seconds)
        if not self.crowd.admit(self, peer):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.leave(self)
        super().connection_lost(exc)

    def cut(self) -> None:
        """End it now, with what was not sent yet."""
        self.crowd.leave(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._note_request() and not self._began:
            self._began = True
            self.deadline = time.monotonic() + self.crowd.limits.header_seconds

    def on_response_complete(self) -> None:
        self._began = False
        self._wait(self.crowd.limits.idle_seconds)
        super().on_response_complete()
        self._note_request()  # the next request was here already

    def pause_writing(self) -> None:
        super().pause_writing()
        self.deadline = time.monotonic() + self.crowd.limits.stall_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_request()

    def _note_request(self) -> bool:
        """Whether a request is here; then only for a peer to read on is there a deadline."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        self.waits_since = None
        if not self.flow.write_paused:
            self.deadline = None
        return True

    def _wait(self, seconds: float) -> None:
        self.waits_since = time.monotonic()
        self.deadline = self.waits_since + seconds


# ── the log ─────────────────────────────────────────────────────────────────────────────────

MESSAGES = 5
"""Messages of one kind that are written in a window; the others are counted."""
WINDOW_S = 60.0
KINDS = 200
"""Kinds of messages that are told apart in a window; all others count as one kind."""
FILE_BYTES, FILES = 2 << 20, 5
LINE_LIMIT = 8_000
"""Characters of one message, with its traceback."""


class HubLog(logging.Handler):
    """Hands each kind of message to `targets` a few times in a window, and then its number."""

    def __init__(self, targets: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._targets = targets
        self._counts: dict[str, int] = {}
        self._until = time.monotonic() + WINDOW_S

    def emit(self, record: logging.LogRecord) -> None:
        self.end_window()
        raised = record.exc_info[0] if record.exc_info else None
        error = f"{raised.__name__}: " if raised is not None else ""
        kind = f"{record.name}: {error}{str(record.msg)[:200]}"
        if kind not in self._counts and len(self._counts) >= KINDS:
            kind = "other messages"
        self._counts[kind] = count = self._counts.get(kind, 0) + 1
        if count <= MESSAGES:
            self._hand_on(record)

    def end_window(self) -> None:
        """Write the counts, if the window has ended."""
        if time.monotonic() >= self._until:
            self.write_counts()

    def write_counts(self) -> None:
        """Write how many messages of each kind were left out, and begin a new window."""
        self.acquire()
        try:
            counts, self._counts = self._counts, {}
            self._until = time.monotonic() + WINDOW_S
        finally:
            self.release()
        for kind, count in counts.items():
            if count > MESSAGES:
                words = f"{count - MESSAGES} more like this: {kind.strip()}"
                self._hand_on(logging.makeLogRecord({"levelname": "WARNING", "msg": words}))

    def _hand_on(self, record: logging.LogRecord) -> None:
        for target in self._targets:
            target.handle(record)


class _ShortFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record)[:LINE_LIMIT]


def keep_log(path: Path) -> HubLog:
    """Write all that this process logs to stderr and to `path`."""
    logging.raiseExceptions = False  # a full disk is not answered with more to write
    file = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8")
    targets: list[logging.Handler] = [logging.StreamHandler(), file]
    for target in targets:
        target.setFormatter(_ShortFormatter("%(asctime)s %(levelname)s %(message)s"))
    hub_log = HubLog(targets)
    logging.getLogger().addHandler(hub_log)
    return hub_log
