"""What holds for every request: whom it is for, where it came from, how it is refused."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autohypothesis.hub.server.settings import Settings

_WILDCARDS = ("", "0.0.0.0", "::")
_DRAIN_BYTES = 64 << 20
_DRAIN_S = 2.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def loopback(host: str) -> bool:
    found = address(host)
    return host == "localhost" or (found is not None and found.is_loopback)


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def is_ours(header: str, settings: Settings) -> bool:
    """Whether a Host header names this hub.

    A page in somebody's browser can make its own name point here; it cannot name an address.
    """
    name, listening = host_of(header), settings.host.lower()
    if name in {listening, *(one.lower() for one in settings.names)} - set(_WILDCARDS):
        return True
    if loopback(name):
        return True
    if loopback(listening):
        return False
    return address(name) is not None or name == socket.gethostname().lower()


def client_address(scope: Scope, proxies: Collection[str]) -> str:
    """Whose address counts: the last one in X-Forwarded-For that no proxy of ours has."""
    peer = str((scope.get("client") or ("unknown", 0))[0])
    if peer not in proxies:
        return peer
    passed = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    for one in reversed([part.strip() for part in passed]):
        if address(one) is None:
            break
        if one not in proxies:
            return one
    return peer


@dataclass(slots=True)
class _Body:
    """How much of a request's body has been read."""

    receive: Receive
    begun: bool = False
    done: bool = False

    async def __call__(self) -> Message:
        self.begun = True
        message = await self.receive()
        self.done = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read on for a while, so that the sender comes to see our answer."""
        left = _DRAIN_BYTES
        while not self.done and left > 0:
            left -= len((await self()).get("body", b""))


@dataclass(slots=True)
class Frame:
    """The outermost layer of the application."""

    app: ASGIApp
    settings: Settings
    _proxies: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._proxies = frozenset(self.settings.proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["address"] = client_address(scope, self._proxies)
        body = _Body(receive)
        waits = "100-continue" in headers.get("expect", "").lower()
        empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                if message["status"] >= 400 and not empty and (body.begun or not waits):
                    await _in_time(body)
            await send(message)

        if is_ours(headers.get("host", ""), self.settings):
            await self.app(scope, body, answer)
        else:
            await _refuse(answer, 421, "this hub is not reached under that name; `--name` adds one")


async def _in_time(body: _Body) -> None:
    try:
        await asyncio.wait_for(body.drain(), _DRAIN_S)
    except asyncio.TimeoutError:
        return


async def _refuse(send: Send, status: int, problem: str) -> None:
    content = json.dumps({"error": problem}).encode()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": content})
