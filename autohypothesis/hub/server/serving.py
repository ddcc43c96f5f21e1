"""One process that serves one data folder, from its start to its end."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from autohypothesis.errors import LockError, UsageError
from autohypothesis.hub.server.frame import loopback
from autohypothesis.hub.server.settings import Home, Settings

_GRACE_S = 10
_QUEUE = 1024
"""Connections that wait to be accepted."""


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` gets what a person should read.

    Raises:
        LockError: another process serves this folder.
        UsageError: the address cannot be listened on.
    """
    import uvicorn

    from autohypothesis.hub.server.app import application
    from autohypothesis.hub.server.connections import Crowd, HeldConnection, backlog
    from autohypothesis.hub.server.hub import Hub
    from autohypothesis.hub.server.logbook import keep_log

    os.umask(0o077)
    home = Home.make(settings.data)
    with _alone(home), _listening(settings) as sock:
        logbook = keep_log(home.log)
        hub = Hub.open(settings)
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        class Held(HeldConnection):
            crowd = Crowd(settings.limits, settings.proxies)

        config = uvicorn.Config(
            application(hub), http=Held, ws="none", loop="asyncio", proxy_headers=False,
            access_log=False, server_header=False, log_config=None, log_level="warning",
            timeout_keep_alive=math.ceil(settings.limits.idle_seconds), backlog=backlog(),
            timeout_graceful_shutdown=_GRACE_S, lifespan="on",
        )  # fmt: skip

        class Server(uvicorn.Server):
            async def on_tick(self, counter: int) -> bool:
                Held.crowd.sweep()
                logbook.turn()
                return await super().on_tick(counter)

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                sock.listen(_QUEUE)  # in the kernel, where a connection costs no descriptor
                _announce(settings, f"{home.root} on http://{shown}:{port}", say)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                await super().shutdown(sockets)
                logbook.say_counts()  # the signal that ended it is raised again after this

        signal.signal(signal.SIGINT, signal.default_int_handler)
        Server(config).run(sockets=[sock])


def _announce(settings: Settings, where: str, say: Callable[[str], None]) -> None:
    """Said once it listens, so that whoever waits for it may connect at once."""
    say(f"serving {where}; Ctrl-C ends it")
    if not loopback(settings.host):
        say(
            f"warning: {settings.host} is reached by others, and plain HTTP shows them every"
            " key: put a TLS proxy before it, or bind 127.0.0.1 and use an ssh tunnel"
        )


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    lock = FileLock(home.lock, timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockError(
            f"another process serves {home.root}", hint=f"`fuser -v {home.lock}` shows it"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
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
