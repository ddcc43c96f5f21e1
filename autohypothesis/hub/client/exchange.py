"""One request and its answer, ended in time whatever is slow: name, connection, headers or body.

The limits of `requests` hold between two bytes, so a hub that drips would hold its caller for as
long as it likes. Here the request runs in a thread of its own; when its time is up the caller goes
on, and the connection is cut, which ends the thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.poolmanager import PoolManager

T = TypeVar("T")

_here = threading.local()
"""`exchange`: the one that this thread works for."""


class Exchange(Generic[T]):
    """One call of `work`, which gets a session for one request."""

    def __init__(self, work: Callable[[requests.Session], T]) -> None:
        self._work = work
        self._answer: Future[T] = Future()
        self._connections: list[socket.socket] = []
        self.arrived = True
        """Whether the request may have been taken; False while there is no connection yet."""
        self._over = False
        self._turn = threading.Lock()

    def within(self, seconds: float) -> T:
        """What `work` returns or raises.

        Raises:
            TimeoutError: it has not ended in `seconds`.
        """
        threading.Thread(target=self._run, name="hub request", daemon=True).start()
        try:
            wait([self._answer], seconds)
            if self._answer.done():
                return self._answer.result()
        finally:
            self._cut()
        raise TimeoutError(f"timed out after {seconds:g} s")

    def _run(self) -> None:
        _here.exchange = self
        try:
            with requests.Session() as session:
                for scheme in ("http://", "https://"):
                    session.mount(scheme, _Adapter())
                self._answer.set_result(self._work(session))
        except BaseException as error:
            self._answer.set_exception(error)

    def connected(self, connect: Callable[[], socket.socket]) -> socket.socket:
        """A new connection, which is cut when the time is up; none is made after that."""
        self.arrived = False
        made = connect()
        with self._turn:
            if self._over:
                made.close()
                raise TimeoutError("given up")
            self._connections.append(made.dup())  # TLS takes `made` itself away
            self.arrived = True
        return made

    def _cut(self) -> None:
        with self._turn:
            self._over = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._connections.clear()


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(super()._new_conn)


class _Secure(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(super()._new_conn)


def _connected(connect: Callable[[], socket.socket]) -> socket.socket:
    exchange: Exchange[Any] = _here.exchange
    return exchange.connected(connect)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Adapter(HTTPAdapter):
    """Makes the connections that an exchange can cut; also to a proxy, but for one of SOCKS."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        _watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        manager: PoolManager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            _watch(manager)
        return manager


def _watch(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
