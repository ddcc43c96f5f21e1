"""The address of a hub."""

from __future__ import annotations

from urllib.parse import urlsplit

from autohypothesis.errors import UsageError
from autohypothesis.records.tables import harmless

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def checked_server(server: str) -> str:
    """The address of a hub, without the last slash.

    Raises:
        UsageError: it is no http address, or holds a password, which would be shown in errors.
    """
    server = server.strip()
    try:
        parts = urlsplit(server)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if fits and ("@" in parts.netloc or parts.query or parts.fragment):
        raise UsageError(
            "the address of a hub holds no name, password, query or fragment",
            hint="give one as https://hub.example.org",
        )
    if not fits or not server.isprintable() or " " in server:
        raise UsageError(
            f"{harmless(server)!r} is no address of a hub", hint="give one as http://127.0.0.1:8000"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_loopback(server: str) -> bool:
    return (urlsplit(server).hostname or "") in LOOPBACK


def is_readable_on_the_way(server: str) -> bool:
    """Whether the key crosses a network as it is: plain HTTP to another machine."""
    return urlsplit(server).scheme == "http" and not is_loopback(server)
