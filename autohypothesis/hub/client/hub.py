"""A hub as its routes: what can be asked of it, as values that were checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from autohypothesis.errors import HubError, UsageError
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.client.http import Patience, Wire
from autohypothesis.hub.client.refusals import NotThereError, TakenError
from autohypothesis.hub.client.wire import (
    BUNDLE_LIMIT,
    CHANNEL,
    HASH,
    POST_LIMIT,
    Channel,
    Commit,
    Post,
    Pushed,
    Registered,
)
from autohypothesis.records.tables import harmless

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
H = TypeVar("H", bound="Hub")

DIFF_LIMIT = 16 * 1024 * 1024
"""Bytes of a diff that are taken."""
_LEFT_OUT = 20
PROTOCOL_CHANNELS = {
    "results": "experiment results",
    "discussion": "ideas, observations and questions",
}
"""What the protocol has every agent make where it is missing."""


class Hub:
    """One hub, as one agent sees it."""

    def __init__(
        self, server: str, key: SecretStr | None = None, patience: Patience | None = None
    ) -> None:
        self._wire = Wire(server, key, patience)
        self.left_out: list[str] = []
        """What was wrong with records of lists that were left out, the last few."""

    @classmethod
    def of(cls: type[H], credentials: Credentials, patience: Patience | None = None) -> H:
        return cls(credentials.server, credentials.key, patience)

    @property
    def server(self) -> str:
        return self._wire.server

    def register(self, agent: str) -> Registered:
        return self._told("/api/register", {"id": agent}, Registered)

    # ── commits ───────────────────────────────────────────────────────────────────────────

    def commits(self, agent: str = "", limit: int = 50, offset: int = 0) -> list[Commit]:
        """The newest first."""
        who = {"agent": agent} if agent else {}
        where: dict[str, str | int] = {**who, "limit": limit, "offset": offset}
        return self._listed("/api/git/commits", Commit, where)

    def commit(self, commit: str) -> Commit:
        return self._asked(f"/api/git/commits/{checked_hash(commit)}", Commit)

    def has(self, commit: str) -> bool:
        """Whether the hub knows a commit by its full hash."""
        path = f"/api/git/commits/{commit}"
        found = self._wire.ask(path, or_404=True)
        return found is not None and self._shaped(path, found, Commit).hash == commit

    def children(self, commit: str) -> list[Commit]:
        return self._listed(f"/api/git/commits/{checked_hash(commit)}/children", Commit)

    def lineage(self, commit: str) -> list[Commit]:
        """Itself first, to the root."""
        return self._listed(f"/api/git/commits/{checked_hash(commit)}/lineage", Commit)

    def leaves(self) -> list[Commit]:
        return self._listed("/api/git/leaves", Commit)

    def diff(self, base: str, other: str) -> str:
        path = f"/api/git/diff/{checked_hash(base)}/{checked_hash(other)}"
        return self._wire.bytes_of(path, DIFF_LIMIT).decode("utf-8", "replace")

    def push(self, bundle: IO[bytes]) -> list[str]:
        """The heads that it took."""
        path = "/api/git/push"
        return self._shaped(path, self._wire.send(path, bundle), Pushed).hashes

    def bundle(self, commit: str) -> bytes:
        """A bundle of a commit, as it was sent: see `records.git_bundle` before it is used."""
        return self._wire.bytes_of(f"/api/git/fetch/{checked_hash(commit)}", BUNDLE_LIMIT)

    # ── channels and posts ────────────────────────────────────────────────────────────────

    def channels(self) -> list[Channel]:
        return self._listed("/api/channels", Channel)

    def create_channel(self, name: str, description: str = "") -> Channel:
        value = {"name": checked_channel(name), "description": description}
        return self._told("/api/channels", value, Channel)

    def posts(self, channel: str, limit: int = 50, offset: int = 0) -> list[Post]:
        """The newest first, replies among them."""
        path = f"/api/channels/{quote(checked_channel(channel))}/posts"
        return self._listed(path, Post, {"limit": limit, "offset": offset})

    def get_post(self, post: int) -> Post:
        return self._asked(f"/api/posts/{post}", Post)

    def replies(self, post: int) -> list[Post]:
        """The oldest first."""
        return self._listed(f"/api/posts/{post}/replies", Post)

    def post(self, channel: str, content: str, parent: int | None = None) -> Post:
        """Say something. A channel of the protocol is made where there is none yet."""
        path = f"/api/channels/{quote(checked_channel(channel))}/posts"
        value: dict[str, Any] = {"content": checked_content(content)}
        if parent is not None:
            value["parent_id"] = parent
        try:
            return self._told(path, value, Post)
        except NotThereError:
            if parent is not None or channel not in PROTOCOL_CHANNELS:
                raise
        self.ensure_channel(channel)
        return self._told(path, value, Post)

    def ensure_channel(self, name: str) -> None:
        """A channel of the protocol; somebody else may be making it as well."""
        try:
            self.create_channel(name, PROTOCOL_CHANNELS[name])
        except TakenError:
            return

    def reply(self, post: int, content: str) -> Post:
        """Answer a post, in its own channel."""
        checked_content(content)
        channel_id = self.get_post(post).channel_id
        names = {channel.id: channel.name for channel in self.channels()}
        if channel_id not in names:
            raise self._wire.wrong(f"/api/posts/{post}", "with a channel that it does not list")
        return self.post(names[channel_id], content, post)

    # ── parts ─────────────────────────────────────────────────────────────────────────────

    def _asked(self, path: str, shape: type[T], params: Mapping[str, str | int] | None = None) -> T:
        return self._shaped(path, self._wire.ask(path, params), shape)

    def _listed(
        self, path: str, shape: type[R], params: Mapping[str, str | int] | None = None
    ) -> list[R]:
        """A list without its bad records: each costs itself alone.

        Raises:
            HubError: it is no list, or none of its records is good.
        """
        good: list[R] = []
        bad: list[HubError] = []
        for place, record in enumerate(self._asked(path, list[object], params)):
            try:
                good.append(shape.model_validate(record))
            except ValidationError as error:
                bad.append(self._misshapen(path, error, str(place)))
        if bad and not good:
            raise bad[0]
        self.left_out = [*self.left_out, *(error.problem for error in bad)][-_LEFT_OUT:]
        return good

    def _told(self, path: str, value: Mapping[str, Any], shape: type[T]) -> T:
        return self._shaped(path, self._wire.tell(path, value), shape)

    def _shaped(self, path: str, value: object, shape: type[T]) -> T:
        try:
            return TypeAdapter(shape).validate_python(value)
        except ValidationError as error:
            raise self._misshapen(path, error) from None

    def _misshapen(self, path: str, error: ValidationError, *place: str) -> HubError:
        first = error.errors(include_url=False, include_input=False)[0]
        where = harmless(".".join([*place, *map(str, first["loc"])]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        return self._wire.wrong(path, f"with the wrong shape: {why}")


def checked_hash(commit: str) -> str:
    if not HASH.fullmatch(commit):
        raise UsageError(
            f"{harmless(commit)!r} is no hash of a commit: 4 to 64 of 0-9 and a-f",
            hint="see what there is: python orchestrator.py hub log",
        )
    return commit


def checked_channel(name: str) -> str:
    name = name.removeprefix("#")
    if not CHANNEL.fullmatch(name):
        raise UsageError(
            f"{harmless(name)!r} is no name of a channel: up to 31 of a-z, 0-9, '_' and '-'",
            hint="see what there is: python orchestrator.py hub channels",
        )
    return name


def checked_content(content: str) -> str:
    size = len(content.encode("utf-8", "replace"))
    if not content.strip() or size > POST_LIMIT:
        problem = (
            f"a post has {size:,} bytes, more than {POST_LIMIT:,}" if size else "a post is empty"
        )
        raise UsageError(problem, hint="`-` in place of the text reads it from stdin")
    return content


def first_known(hub: Hub, commits: Sequence[str]) -> int:
    """Index of the first of `commits`, newest first, that the hub has; their number if none.

    A hub that has a commit has those before it, so the question is asked in growing steps, and
    then by halves.
    """
    low, high, step = -1, 0, 1  # not there up to low
    while high < len(commits) and not hub.has(commits[high]):
        low, high, step = high, high + step, step * 2
    high = min(high, len(commits))
    while high - low > 1:
        middle = (low + high) // 2
        if hub.has(commits[middle]):
            high = middle
        else:
            low = middle
    return high
