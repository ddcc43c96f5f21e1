"""Delivers an outbox's entries to a hub: posts and commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from autohypothesis.errors import (
    AutohypothesisError,
    DeliveryError,
    HubError,
    UndeliverableError,
)
from autohypothesis.hub.client import sharing
from autohypothesis.hub.client.hub import Hub
from autohypothesis.hub.client.refusals import NotThereError, PassingError
from autohypothesis.hub.client.wire import Post
from autohypothesis.records.git import Repository
from schema import OutboxEntry

T = TypeVar("T")

POST, PUSH = "post", "push"
FOR_GOOD = (400, 404, 409, 413, 422)
"""Refusals of the thing itself. Any other is one of us, now: a key, a limit, a hub in trouble."""
_PAGE = 200
_MOST_PAGES = 50


class HubCourier:
    """A `fleet.Courier`: entries of kind `post` (channel, content) and `push` (commit)."""

    def __init__(self, hub: Hub, agent: str, repository: Repository) -> None:
        self._hub = hub
        self._agent = agent
        self._repository = repository

    def mark(self, entry: OutboxEntry) -> int | None:
        """For a post the number of the newest one there: what has a higher one may be ours."""
        if entry.kind != POST:
            return None
        newest = _asked(lambda: next(self._posts(self._channel(entry), 1), None))
        return newest.id if newest is not None else 0

    def found(self, entry: OutboxEntry) -> str | None:
        return _asked(lambda: self._found(entry))

    def deliver(self, entry: OutboxEntry) -> str:
        if entry.kind == POST:
            channel, content = self._channel(entry), str(entry.payload.get("content") or "")
            return _asked(lambda: str(self._hub.post(channel, content).id))
        if entry.kind == PUSH:
            commit = str(entry.payload.get("commit") or "")
            return _asked(lambda: sharing.push(self._hub, self._repository, commit).commit)
        raise UndeliverableError(f"nobody knows how to deliver {entry.kind!r}")

    def _found(self, entry: OutboxEntry) -> str | None:
        if entry.kind != POST:
            return None  # a hub takes the same commit twice
        said = str(entry.payload.get("content") or "")
        for post in self._posts(self._channel(entry), _PAGE):
            if post.id <= (entry.mark or 0):
                break
            if post.agent_id == self._agent and post.content == said:
                return str(post.id)
        return None

    def _posts(self, channel: str, at_once: int) -> Iterator[Post]:
        """The newest first; none where there is no such channel yet."""
        for page in range(_MOST_PAGES):
            try:
                found = self._hub.posts(channel, at_once, page * at_once)
            except NotThereError:
                return
            yield from found
            if len(found) < at_once:
                return

    def _channel(self, entry: OutboxEntry) -> str:
        return str(entry.payload.get("channel") or "")


def _asked(call: Callable[[], T]) -> T:
    """What `call` answers, with a hub's errors as an outbox takes them."""
    try:
        return call()
    except HubError as error:
        if error.status in FOR_GOOD:
            raise UndeliverableError(error.problem) from None
        later = DeliveryError(error.problem)
        later.reached = error.status == 500 or (isinstance(error, PassingError) and error.arrived)
        raise later from None
    except AutohypothesisError as error:  # ours: no such commit, no name of a channel, too long
        raise UndeliverableError(error.problem) from None
