"""Bodies of requests: read raw, whatever their type says, and never more than was allowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from autohypothesis.engine.task_file import problems_of
from autohypothesis.hub.server.refusals import RefusedError, bad
from autohypothesis.hub.server.settings import Limits
from autohypothesis.records.files import parse_json
from autohypothesis.records.secrets import has_hub_key

M = TypeVar("M", bound=BaseModel)

_SAID = 500
"""Characters of what is wrong with a body; a key may be as long as the body."""


async def into_file(request: Request, target: IO[bytes], limits: Limits) -> None:
    """The body of a push.

    Raises:
        RefusedError: 413, 408.
    """
    async for piece in _pieces(request, limits.bundle_bytes, limits):
        target.write(piece)


def require_json(request: Request) -> None:
    """For routes without a key: a page in somebody's browser can send any other type unasked.

    Raises:
        RefusedError: 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(
            415, f"the body has to be of type application/json, not {kind[:80] or 'unnamed'!r}",
            hint="send `Content-Type: application/json`",
        )  # fmt: skip


async def json_object(request: Request, limits: Limits) -> dict[str, Any]:
    """A body that is one JSON object.

    Raises:
        RefusedError: 400, 413, 408.
    """
    content = b"".join([piece async for piece in _pieces(request, limits.json_bytes, limits)])
    try:
        value = parse_json(content)
    except ValueError as error:
        raise bad(f"the body {error}") from error
    if not isinstance(value, dict):
        raise bad("the body is not a JSON object")
    if has_hub_key(content):  # everybody could read it here, and act in its owner's name
        raise bad(
            "the body holds a key of a hub, so nothing was stored",
            hint="take it out, and have the operator rotate it: `hub admin rotate NAME`",
        )
    return value


async def shaped(request: Request, limits: Limits, model: type[M]) -> M:
    """A body that is one `model`; a key that it has not is refused with the nearest one it has.

    Raises:
        RefusedError: 400, 413, 408.
    """
    value = await json_object(request, limits)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = problems_of(error, model)[0]
        where = ".".join(str(part) for part in first.location)
        said = f"{where}: {first.message}" if where else first.message
        raise bad(said[:_SAID]) from None


async def _pieces(request: Request, most: int, limits: Limits) -> AsyncIterator[bytes]:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > most:
        raise _too_large(most)
    stream, read = request.stream(), 0
    until = time.monotonic() + limits.upload_seconds
    while True:
        patience = min(limits.silence_seconds, until - time.monotonic())
        try:
            piece = await asyncio.wait_for(anext(stream), max(0.0, patience))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise RefusedError(408, "the body came too slowly") from None
        read += len(piece)
        if read > most:
            raise _too_large(most)
        yield piece


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {most:,} bytes")
