"""Connections of a hub: how many there may be, and how long one may keep still.

uvicorn waits without limit for the headers of a request. So whoever reached the hub could hold all
its descriptors with connections that say nothing. Here each connection has a deadline while it
waits for a request or for its peer to read on, and where there are too many, the one that has
waited longest makes room: silence never keeps out a request.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from autohypothesis.hub.server import attempts
from autohypothesis.hub.server.settings import Limits

_MOST = 2_000
"""Connections of a hub, however many descriptors it may have."""
_OTHER_DESCRIPTORS = 192
"""Kept for the database, git and uploads."""
_LEAST = 16
log = logging.getLogger("autohypothesis.hub")


def descriptors() -> int:
    """How many files and connections this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST + _OTHER_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def backlog() -> int:
    """Connections that are accepted in one go: few enough that descriptors do not run out."""
    return max(_LEAST, min(128, descriptors() // 8))


@dataclass(slots=True)
class Crowd:
    """All connections of one hub."""

    limits: Limits
    proxies: Collection[str] = ()
    """Addresses that stand for many people; only the limit of the hub holds for them."""
    most: int = field(
        default_factory=lambda: max(_LEAST, min(_MOST, descriptors() - _OTHER_DESCRIPTORS))
    )
    _by_address: dict[str, set[HeldConnection]] = field(default_factory=dict)
    _count: int = 0

    def admit(self, new: HeldConnection, peer: str) -> bool:
        """Take in a new connection; False where there is no room, and none can be made."""
        where = attempts.address(peer)
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

    def leave(self, one: HeldConnection) -> None:
        """Count a connection no more; one that was never taken in may leave too."""
        some = self._by_address.get(one.address, set())
        if one in some:
            some.discard(one)
            self._count -= 1
            if not some:
                del self._by_address[one.address]

    def sweep(self) -> None:
        """End every connection whose time is up."""
        now = time.monotonic()
        for some in list(self._by_address.values()):
            for one in list(some):
                if one.deadline is not None and now > one.deadline:
                    one.cut()


def _make_room(some: Iterable[HeldConnection]) -> bool:
    """End the one that has waited longest; False where each is at a request."""
    waiting = [one for one in some if one.waits_since is not None]
    if not waiting:
        return False
    min(waiting, key=lambda one: one.waits_since or 0.0).cut()
    return True


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
        if self._is_at_work():
            self.deadline = self.waits_since = None
        elif not self._began:
            self._began = True
            self.deadline = time.monotonic() + self.crowd.limits.header_seconds

    def on_response_complete(self) -> None:
        self._began = False
        self._wait(self.crowd.limits.idle_seconds)
        super().on_response_complete()
        if self._is_at_work():  # the next request was here already
            self.deadline = self.waits_since = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.deadline = time.monotonic() + self.crowd.limits.stall_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_at_work():
            self.deadline = None

    def _is_at_work(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _wait(self, seconds: float) -> None:
        self.waits_since = time.monotonic()
        self.deadline = self.waits_since + seconds
