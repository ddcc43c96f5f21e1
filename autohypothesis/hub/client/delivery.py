"""Delivers an outbox's entries to a hub: commits, results, their lines, posts.

A commit and a result may be sent twice, since a hub knows them by their names; a post is looked for
before it is sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from autohypothesis.errors import (
    AutohypothesisError,
    DeliveryError,
    HubError,
    UndeliverableError,
)
from autohypothesis.fleet.hub_sync.outgoing import LINE, PUSH, REFUTED, REFUTED_LINE, RESULT
from autohypothesis.hub import result_line
from autohypothesis.hub.client.http import HubConflictError, HubNotFoundError, HubUnavailableError
from autohypothesis.hub.client.hub import HubClient, push
from autohypothesis.hub.protocol import HubPost
from autohypothesis.records.git import Repository
from autohypothesis.schema import OutboxEntry

T = TypeVar("T")

POST = "post"
LINES = (LINE, REFUTED_LINE)
POSTED = (POST, *LINES)
"""Kinds of entries that become a post."""
RESULTS = "results"
"""The protocol's channel for lines."""
_SWAPS = 3
"""Tries to be the best, while others move it."""
_FINAL = (400, 404, 409, 413, 422)
"""Refusals of the entry itself. Any other is about us, now: a key, a limit, a hub in trouble."""
_PAGE = 200
_NEWEST = 20
"""Posts that are asked for to see the newest: the very newest may be a bad record."""
_MOST_PAGES = 50


class HubDelivery:
    """A courier of an outbox to one hub.

    Args:
        receipt: by kind and name the receipt of an entry that was delivered before.
    """

    def __init__(
        self,
        hub: HubClient,
        agent: str,
        repository: Repository,
        receipt: Callable[[str, str], str] = lambda kind, name: "",
    ) -> None:
        self._hub = hub
        self._agent = agent
        self._repository = repository
        self._receipt = receipt

    def mark(self, entry: OutboxEntry) -> int | None:
        """For a post the number of the newest one there: a higher one may be ours."""
        if entry.kind not in POSTED:
            return None
        newest = _asked(lambda: next(self._posts(_channel(entry), _NEWEST), None))
        return newest.id if newest is not None else 0

    def found(self, entry: OutboxEntry) -> str | None:
        if entry.kind not in POSTED:
            return None  # a hub takes the same commit and the same result twice
        return _asked(lambda: self._find_post(entry))

    def deliver(self, entry: OutboxEntry) -> str:
        if entry.kind in POSTED:
            return _asked(lambda: str(self._hub.post(_channel(entry), _content(entry)).id))
        if entry.kind == PUSH:
            commit = str(entry.payload.get("commit") or "")
            return _asked(lambda: push(self._hub, self._repository, commit).commit)
        if entry.kind == RESULT:
            return _asked(lambda: self._tell(result_line.typed_result(entry.payload)))
        if entry.kind == REFUTED:
            return _asked(lambda: self._take_back(entry))
        raise UndeliverableError(f"there is no way to deliver {entry.kind!r}")

    def _tell(self, result: dict[str, Any]) -> str:
        stored = self._hub.tell_result(result)
        if result["status"] == "keep" and result["verifies"] is None and result["platform_key"]:
            with suppress(HubError):  # the next keep tries again
                self._become_best(stored.id, result)
        return str(stored.id)

    def _become_best(self, number: int, result: Mapping[str, Any]) -> None:
        """The hub refuses a result that is not better than the best; a race is tried again."""
        for _ in range(_SWAPS):
            key = {name: result[name] for name in ("platform_key", "task_hash")}
            present = self._hub.best(**key)
            with suppress(HubConflictError):
                self._hub.swap_best(number, present[0].result.id if present else None)
                return

    def _take_back(self, entry: OutboxEntry) -> str:
        """Refute a result of our own, by the number that it was given."""
        number = self._receipt(RESULT, entry.name)
        if not number:
            raise UndeliverableError(f"result {entry.name} was never told")
        result = result_line.typed_result(entry.payload)
        name = f"{result['name']}/refuted"
        again = {"name": name, "verifies": int(number), "confirmation": "refuted"}
        return str(self._hub.tell_result({**result, **again}).id)

    def _find_post(self, entry: OutboxEntry) -> str | None:
        content = _content(entry)
        for post in self._posts(_channel(entry), _PAGE):
            if post.id <= (entry.mark or 0):
                break
            if post.agent_id == self._agent and post.content == content:
                return str(post.id)
        return None

    def _posts(self, channel: str, at_once: int) -> Iterator[HubPost]:
        """The newest first; none where there is no such channel yet."""
        for page in range(_MOST_PAGES):
            try:
                posts = self._hub.posts(channel, at_once, page * at_once)
            except HubNotFoundError:
                return
            if not posts:  # fewer than asked for may be a page with bad records
                return
            yield from posts


def _channel(entry: OutboxEntry) -> str:
    return RESULTS if entry.kind in LINES else str(entry.payload.get("channel") or "")


def _content(entry: OutboxEntry) -> str:
    if entry.kind in LINES:
        return result_line.write(result_line.result_line(entry.payload))
    return str(entry.payload.get("content") or "")


def _asked(call: Callable[[], T]) -> T:
    """The answer of `call`, with a hub's errors as an outbox takes them."""
    try:
        return call()
    except HubError as error:
        if error.status in _FINAL:
            raise UndeliverableError(error.problem) from None
        later = DeliveryError(error.problem)
        arrived = isinstance(error, HubUnavailableError) and error.arrived
        later.reached = arrived or error.status == 500
        raise later from None
    except AutohypothesisError as error:  # ours: no such commit, no name of a channel, too long
        raise UndeliverableError(error.problem) from None
