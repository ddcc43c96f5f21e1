"""Delivers an outbox's entries to a hub: commits, results, their lines, posts.

A commit and a result may be sent twice, since a hub knows them by their names; a post is looked for
before it is said again.
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
from autohypothesis.hub import line
from autohypothesis.hub.client import sharing
from autohypothesis.hub.client.refusals import NotThereError, PassingError, TakenError
from autohypothesis.hub.client.typed import TypedHub
from autohypothesis.hub.client.wire import Post
from autohypothesis.hub.results import result_line, told
from autohypothesis.records.git import Repository
from autohypothesis.schema import OutboxEntry

T = TypeVar("T")

POST = "post"
LINES = (LINE, REFUTED_LINE)
SAID = (POST, *LINES)
"""What becomes a post."""
RESULTS = "results"
"""The protocol's channel for lines."""
SWAPS = 3
"""Tries to be the best, while others move it."""
FOR_GOOD = (400, 404, 409, 413, 422)
"""Refusals of the thing itself. Any other is one of us, now: a key, a limit, a hub in trouble."""
_PAGE = 200
_NEWEST = 20
"""Posts that are asked for to see the newest: the very newest may be a bad record."""
_MOST_PAGES = 50


class HubCourier:
    """A `fleet.Courier`.

    Args:
        receipt: by kind and name the receipt of an entry that was delivered before.
    """

    def __init__(
        self,
        hub: TypedHub,
        agent: str,
        repository: Repository,
        receipt: Callable[[str, str], str] = lambda kind, name: "",
    ) -> None:
        self._hub = hub
        self._agent = agent
        self._repository = repository
        self._receipt = receipt

    def mark(self, entry: OutboxEntry) -> int | None:
        """For a post the number of the newest one there: what has a higher one may be ours."""
        if entry.kind not in SAID:
            return None
        newest = _asked(lambda: next(self._posts(self._channel(entry), _NEWEST), None))
        return newest.id if newest is not None else 0

    def found(self, entry: OutboxEntry) -> str | None:
        return _asked(lambda: self._found(entry))

    def deliver(self, entry: OutboxEntry) -> str:
        if entry.kind in SAID:
            return _asked(lambda: str(self._hub.post(self._channel(entry), _content(entry)).id))
        if entry.kind == PUSH:
            commit = str(entry.payload.get("commit") or "")
            return _asked(lambda: sharing.push(self._hub, self._repository, commit).commit)
        if entry.kind == RESULT:
            return _asked(lambda: self._tell(told(entry.payload)))
        if entry.kind == REFUTED:
            return _asked(lambda: self._take_back(entry))
        raise UndeliverableError(f"nobody knows how to deliver {entry.kind!r}")

    def _tell(self, result: dict[str, Any]) -> str:
        stands = self._hub.tell_result(result)
        if result["status"] == "keep" and result["verifies"] is None and result["platform_key"]:
            with suppress(HubError):  # the next keep tries again
                self._become_best(stands.id, result)
        return str(stands.id)

    def _become_best(self, number: int, result: Mapping[str, Any]) -> None:
        """The hub refuses what is not better than the best; a race for it is tried again."""
        for _ in range(SWAPS):
            there = self._hub.best(
                platform_key=result["platform_key"], task_hash=result["task_hash"]
            )
            try:
                self._hub.swap_best(number, there[0].result.id if there else None)
            except TakenError:
                continue
            return

    def _take_back(self, entry: OutboxEntry) -> str:
        """An own result that did not hold, by the number that it was given."""
        number = self._receipt(RESULT, entry.name)
        if not number:
            raise UndeliverableError(f"result {entry.name} was never told")
        result = told(entry.payload)
        name = f"{result['name']}/refuted"
        again = {"name": name, "verifies": int(number), "confirmation": "refuted"}
        return str(self._hub.tell_result({**result, **again}).id)

    def _found(self, entry: OutboxEntry) -> str | None:
        if entry.kind not in SAID:
            return None  # a hub takes the same commit and the same result twice
        said = _content(entry)
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
            if not found:  # fewer than asked for may be a page with bad records
                return
            yield from found

    def _channel(self, entry: OutboxEntry) -> str:
        return RESULTS if entry.kind in LINES else str(entry.payload.get("channel") or "")


def _content(entry: OutboxEntry) -> str:
    if entry.kind in LINES:
        return line.write(result_line(entry.payload))
    return str(entry.payload.get("content") or "")


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
