"""Who may read the pages: everybody, unless the operator closed them."""

from __future__ import annotations

import base64
import binascii

from fastapi import Depends, Request

from autohypothesis.hub.server.hub import address_of, of, whose
from autohypothesis.hub.server.refusals import RefusedError


def visitor(request: Request) -> None:
    """A dependency: with `--private-pages` a browser asks for a key, any agent's.

    It is sent as HTTP Basic, which browsers know without a script; the user's name is not looked
    at. The API takes no such header, so no page elsewhere can use what the browser remembers.

    Raises:
        RefusedError: 401, 429.
    """
    hub = of(request)
    if not hub.settings.private_pages:
        return
    key = _password(request.headers.get("authorization", ""))
    if not key:
        raise RefusedError(401, "these pages ask for a key", hint="give it as the password")
    whose(hub, key, address_of(request))


def _password(header: str) -> str:
    scheme, _, packed = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        text = base64.b64decode(packed.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return ""
    return text.partition(":")[2].strip()


Visited = Depends(visitor)
