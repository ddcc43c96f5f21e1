"""A hub's no, as an error of ours: its own words made harmless, and what to run next."""

from __future__ import annotations

import json

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from autohypothesis.errors import HubError
from autohypothesis.records.files import parse_json
from autohypothesis.records.tables import harmless


class PassingError(HubError):
    """There was no answer; there may be one in a moment."""

    arrived = True
    """What was sent may have been taken nevertheless; False where nobody was there to take it."""


class NotThereError(HubError):
    """404: the hub has no such thing."""


class TakenError(HubError):
    """409: there is one of that name."""


_KINDS: dict[int, type[HubError]] = {
    404: NotThereError,
    409: TakenError,
    502: PassingError,
    503: PassingError,
    504: PassingError,
}
_WHY = (
    ("timed out after", "its answer took too long, and had not ended"),
    ("timed out", "it took too long"),
    ("Connection refused", "nothing listens there"),
    ("resolve", "the name is not known"),
    ("Name or service", "the name is not known"),
    ("CERTIFICATE", "its certificate is not valid"),
    ("Connection broken", "it hung up in the middle of its answer"),
    ("IncompleteRead", "it hung up in the middle of its answer"),
    ("Connection reset", "it hung up"),
    ("aborted", "it hung up"),
)


def refusal(server: str, path: str, status: int, body: bytes, wait: str) -> HubError:
    """The error for an answer with `status`; `wait` is what it said about trying again."""
    problem = f"{server}{path} answered {status}: {said(body)}"
    found = _KINDS.get(status, HubError)(problem, hint=_next(status, server, wait))
    found.status = status
    return found


def said(body: bytes) -> str:
    """A hub's own words, on one line."""
    try:
        value = parse_json(body)
    except ValueError:
        value = None
    if isinstance(value, dict):
        words = value.get("error") or value.get("detail") or value
        return harmless(words if isinstance(words, str) else json.dumps(words)) or "no reason given"
    if body.lstrip()[:1] == b"<":
        return "a web page, no reason given"
    return harmless(body.decode("utf-8", "replace")) or "no reason given"


def unreached(server: str, path: str, error: Exception) -> PassingError:
    """The error for a request that never came to an answer."""
    found = PassingError(
        f"{server}{path} cannot be reached: {_why(error)}",
        hint=f"see whether it runs: curl -s {server}/api/health",
    )
    reason = getattr(error.args[0], "reason", None) if error.args else None
    never = (NewConnectionError, ConnectTimeoutError)
    found.arrived = not isinstance(reason, never)
    return found


def _why(error: Exception) -> str:
    """What stands in the way, in a few words: the libraries' own are a page."""
    text = str(error)
    found = next((words for sign, words in _WHY if sign.lower() in text.lower()), "")
    return found or harmless(f"{type(error).__name__}: {text}")


def _next(status: int, server: str, wait: str) -> str:
    join = f"python orchestrator.py hub join {server} --name NAME"
    if status == 401:
        return f"the key is not known there; join again: {join} --replace"
    if status == 403:
        return f"with a key from whoever runs it: {join} --key-file FILE"
    if status == 404:
        return "see what there is: python orchestrator.py hub log, or hub channels"
    if status == 429:
        return f"try again in {wait} s" if wait.isdigit() else "try again in an hour"
    if status >= 500:
        return f"look at the hub: curl -s {server}/api/health"
    return f"see what it takes: {server}/docs"
