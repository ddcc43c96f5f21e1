"""A hub as one agent sees it: each route as a method, with answers that were checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from autohypothesis.errors import HubError, UsageError, faults_in
from autohypothesis.hub.client.http import (
    HttpConnection,
    HubConflictError,
    HubNotFoundError,
    Patience,
)
from autohypothesis.hub.protocol import (
    BUNDLE_LIMIT,
    CHANNEL,
    HASH,
    POST_LIMIT,
    AgentKey,
    HubChannel,
    HubClaim,
    HubCommit,
    HubPost,
    HubResult,
    HubTask,
    PlatformBest,
    PushedHeads,
    RankedResult,
    VerifiedResult,
)
from autohypothesis.plain import table_text
from autohypothesis.records import git_bundle
from autohypothesis.records.git import Repository
from autohypothesis.records.secrets import refuse_secrets

if TYPE_CHECKING:
    from autohypothesis.hub.client.credentials import Credentials

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

DIFF_LIMIT = 16 << 20
"""Bytes of a diff that are taken."""
FETCHED = "refs/hub/"
"""Commits of other agents, by their full hash."""
_LEFT_OUT = 20
PROTOCOL_CHANNELS = {
    "results": "experiment results",
    "discussion": "ideas, observations and questions",
}
"""Channels that the protocol has every agent make where they are missing."""


class HubClient:
    """One hub, as one agent or without a key.

    Raises, in every method:
        HubError: the hub refuses, or its answer cannot be used: HubNotFoundError for 404,
            HubConflictError for 409, HubUnavailableError where it does not answer now.
    """

    def __init__(
        self, server: str, key: SecretStr | None = None, patience: Patience | None = None
    ) -> None:
        self._connection = HttpConnection(server, key, patience)
        self.left_out: list[str] = []
        """Problems of records that were left out of lists, the last few."""

    @classmethod
    def of(cls, credentials: Credentials, patience: Patience | None = None) -> HubClient:
        return cls(credentials.server, credentials.key, patience)

    @property
    def server(self) -> str:
        return self._connection.server

    def register(self, agent: str) -> AgentKey:
        return self._post("/api/register", {"id": agent}, AgentKey)

    # ── commits ───────────────────────────────────────────────────────────────────────────

    def commits(self, agent: str = "", limit: int = 50, offset: int = 0) -> list[HubCommit]:
        """The newest first."""
        return self._list("/api/git/commits", HubCommit, agent=agent, limit=limit, offset=offset)

    def commit(self, commit: str) -> HubCommit:
        return self._get(f"/api/git/commits/{checked_hash(commit)}", HubCommit)

    def has(self, commit: str) -> bool:
        """Whether the hub knows a commit by its full hash."""
        path = f"/api/git/commits/{commit}"
        found = self._connection.get(path, or_404=True)
        return found is not None and self._shaped(path, found, HubCommit).hash == commit

    def children(self, commit: str) -> list[HubCommit]:
        return self._list(f"/api/git/commits/{checked_hash(commit)}/children", HubCommit)

    def lineage(self, commit: str) -> list[HubCommit]:
        """The commit itself first, to the root."""
        return self._list(f"/api/git/commits/{checked_hash(commit)}/lineage", HubCommit)

    def leaves(self) -> list[HubCommit]:
        return self._list("/api/git/leaves", HubCommit)

    def diff(self, base: str, other: str) -> str:
        path = f"/api/git/diff/{checked_hash(base)}/{checked_hash(other)}"
        return self._connection.get_bytes(path, DIFF_LIMIT).decode("utf-8", "replace")

    def push(self, bundle: IO[bytes]) -> list[str]:
        """The heads of the bundle, as the hub took them."""
        path = "/api/git/push"
        answer = self._connection.post_file(path, bundle)
        return self._shaped(path, answer, PushedHeads).hashes

    def bundle(self, commit: str) -> bytes:
        """The bundle of a commit, as it was sent: `records.git_bundle` checks it."""
        path = f"/api/git/fetch/{checked_hash(commit)}"
        return self._connection.get_bytes(path, BUNDLE_LIMIT)

    # ── channels and posts ────────────────────────────────────────────────────────────────

    def channels(self) -> list[HubChannel]:
        return self._list("/api/channels", HubChannel)

    def create_channel(self, name: str, description: str = "") -> HubChannel:
        value = {"name": checked_channel(name), "description": description}
        return self._post("/api/channels", value, HubChannel)

    def posts(self, channel: str, limit: int = 50, offset: int = 0) -> list[HubPost]:
        """The newest first, replies among them."""
        return self._list(_posts(channel), HubPost, limit=limit, offset=offset)

    def get_post(self, post: int) -> HubPost:
        return self._get(f"/api/posts/{post}", HubPost)

    def replies(self, post: int) -> list[HubPost]:
        """The oldest first."""
        return self._list(f"/api/posts/{post}/replies", HubPost)

    def post(self, channel: str, content: str, parent: int | None = None) -> HubPost:
        """Post something. A channel of the protocol is made where there is none yet."""
        value: dict[str, Any] = {"content": checked_content(content)}
        if parent is not None:
            value["parent_id"] = parent
        try:
            return self._post(_posts(channel), value, HubPost)
        except HubNotFoundError:
            if parent is not None or channel not in PROTOCOL_CHANNELS:
                raise
        self.ensure_channel(channel)
        return self._post(_posts(channel), value, HubPost)

    def ensure_channel(self, name: str) -> None:
        """Make a channel of the protocol; another agent may be making it as well."""
        try:
            self.create_channel(name, PROTOCOL_CHANNELS[name])
        except HubConflictError:
            return

    def reply(self, post: int, content: str) -> HubPost:
        """Answer a post, in its own channel."""
        checked_content(content)
        channel_id = self.get_post(post).channel_id
        names = {channel.id: channel.name for channel in self.channels()}
        if channel_id not in names:
            raise self._connection.wrong(
                f"/api/posts/{post}", "with a channel that it does not list"
            )
        return self.post(names[channel_id], content, post)

    # ── tasks and results ─────────────────────────────────────────────────────────────────

    def tasks(self) -> list[HubTask]:
        """By name."""
        return self._list("/api/tasks", HubTask)

    def tell_task(self, task: Mapping[str, Any]) -> HubTask:
        """The task as it is stored there, which is as it was told first."""
        return self._post("/api/tasks", task, HubTask, repeatable=True)

    def tell_result(self, result: Mapping[str, Any]) -> HubResult:
        """The result as it is stored; told again, it is stored once."""
        return self._post("/api/results", result, HubResult, repeatable=True)

    def results(self, limit: int = 50, **filters: str | int) -> list[HubResult]:
        """The newest first. `filters` are those of `ResultQuery`; empty ones are none."""
        if commit := filters.get("commit"):
            checked_hash(str(commit))
        return self._list("/api/results", HubResult, limit=limit, **filters)

    def result(self, number: int) -> VerifiedResult:
        return self._get(f"/api/results/{number}", VerifiedResult)

    def leaderboard(self, limit: int = 50, **filters: str) -> list[RankedResult]:
        """Board after board, `limit` of each, the best first. `filters`: those of `BoardQuery`."""
        return self._list("/api/leaderboard", RankedResult, limit=limit, **filters)

    # ── claims and bests ──────────────────────────────────────────────────────────────────

    def claim(
        self, *, platform_key: str, task_hash: str, tree: str, lease_seconds: int, title: str = ""
    ) -> HubClaim:
        """Our claim, new or renewed.

        Raises:
            HubConflictError: another agent holds it, or has tried it.
        """
        value = {
            "platform_key": platform_key, "task_hash": task_hash, "tree": tree,
            "lease_seconds": lease_seconds, "title": title,
        }  # fmt: skip
        return self._post("/api/claims", value, HubClaim, repeatable=True)

    def release(self, number: int) -> None:
        """Give our own claim back before it expires."""
        self._connection.delete(f"/api/claims/{number}")

    def claims(self, limit: int = 50, **filters: str | int) -> list[HubClaim]:
        """Claims that hold now, the newest first. `filters`: those of `ClaimQuery`."""
        return self._list("/api/claims", HubClaim, limit=limit, **filters)

    def best(self, **filters: str) -> list[PlatformBest]:
        """The best of each platform and task. `filters`: those of `KeyQuery`."""
        return self._list("/api/best", PlatformBest, **filters)

    def swap_best(self, result: int, expected: int | None) -> PlatformBest:
        """Make a result the best, if the best is `expected`. Sent once.

        Raises:
            HubConflictError: another one is; ask again which.
        """
        value = {"result": result, "expected": expected}
        return self._shaped(
            "/api/best", self._connection.post("/api/best", value, accept=(200,)), PlatformBest
        )

    # ── answers ───────────────────────────────────────────────────────────────────────────

    def _get(self, path: str, shape: type[T]) -> T:
        return self._shaped(path, self._connection.get(path), shape)

    def _post(
        self, path: str, value: Mapping[str, Any], shape: type[T], *, repeatable: bool = False
    ) -> T:
        accept = (200, 201) if repeatable else (201,)
        answer = self._connection.post(path, value, accept=accept, repeatable=repeatable)
        return self._shaped(path, answer, shape)

    def _list(self, path: str, shape: type[R], **params: str | int) -> list[R]:
        """A list without its bad records: each costs itself alone. Empty `params` are left out.

        Raises:
            HubError: it is no list, or none of its records is good.
        """
        given = {name: value for name, value in params.items() if value not in ("", None)}
        records = self._shaped(path, self._connection.get(path, given), list[object])
        good: list[R] = []
        bad: list[HubError] = []
        for place, record in enumerate(records):
            try:
                good.append(shape.model_validate(record))
            except ValidationError as error:
                bad.append(self._misshapen(path, error, str(place)))
        if bad and not good:
            raise bad[0]
        self.left_out = [*self.left_out, *(error.problem for error in bad)][-_LEFT_OUT:]
        return good

    def _shaped(self, path: str, value: object, shape: type[T]) -> T:
        try:
            return TypeAdapter(shape).validate_python(value)
        except ValidationError as error:
            raise self._misshapen(path, error) from None

    def _misshapen(self, path: str, error: ValidationError, *place: str) -> HubError:
        why = table_text(".".join([*place, faults_in(error, 1)]))
        return self._connection.wrong(path, f"with the wrong shape: {why}")


def _posts(channel: str) -> str:
    return f"/api/channels/{quote(checked_channel(channel))}/posts"


def checked_hash(commit: str) -> str:
    if not HASH.fullmatch(commit):
        raise UsageError(
            f"{table_text(commit)!r} is no hash of a commit: 4 to 64 of 0-9 and a-f",
            hint="see what there is: python orchestrator.py hub log",
        )
    return commit


def checked_channel(name: str) -> str:
    name = name.removeprefix("#")
    if not CHANNEL.fullmatch(name):
        raise UsageError(
            f"{table_text(name)!r} is no name of a channel: up to 31 of a-z, 0-9, '_' and '-'",
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


# ── commits of a repository ─────────────────────────────────────────────────────────────────


class PushedCommit(NamedTuple):
    commit: str
    commits: int
    """New to the hub; 0: it had it already."""
    on: str | None
    """The hub's commit that the first of them is built on; None: all history was sent."""
    bytes: int
    hashes: list[str]


class FetchedCommit(NamedTuple):
    commit: HubCommit
    ref: str
    bytes: int
    """0: it was here already."""


def push(hub: HubClient, repository: Repository, commit: str) -> PushedCommit:
    """Send `commit` with as much of its history as the hub lacks.

    Raises:
        HubError: the hub refuses, or the bundle is larger than any hub takes.
        SecretError: a message, a file or a name in it holds a secret; nothing was sent.
    """
    line = git_bundle.first_parents(repository, commit)
    at = first_known(hub, line)
    known = line[at] if at < len(line) else None
    if at == 0:
        return PushedCommit(commit, 0, known, 0, [commit])
    with tempfile.TemporaryFile() as bundle:
        git_bundle.create(repository, commit, known, bundle)
        size = bundle.tell()
        if size > BUNDLE_LIMIT:
            raise HubError(
                f"{commit[:12]} with what the hub lacks has {size:,} bytes, and a hub takes"
                f" {BUNDLE_LIMIT:,}",
                hint="begin with a commit without history: git checkout --orphan NAME",
            )
        held = git_bundle.contents(repository, commit, known)
        refuse_secrets(f"the push of {commit[:12]}", held)
        hashes = hub.push(bundle)
    new = git_bundle.count_new(repository, commit, known)
    return PushedCommit(commit, new, known, size, hashes)


def fetch(hub: HubClient, repository: Repository, wanted: str) -> FetchedCommit:
    """Store a commit of the hub's under `refs/hub/`, by its hash or the beginning of one.

    Raises:
        HubError: the hub has no such commit, or another one.
        GitError: the bundle that it sent is refused.
    """
    found = hub.commit(wanted)
    if not found.hash.startswith(wanted):
        raise HubError(
            f"{hub.server} answered with commit {found.hash[:12]}, asked for {wanted}",
            hint="give the full hash: python orchestrator.py hub log --json",
        )
    ref = FETCHED + found.hash
    if repository.read_ref(ref) == found.hash:
        return FetchedCommit(found, ref, 0)
    bundle = hub.bundle(found.hash)
    git_bundle.take_in(repository, bundle, found.hash, ref)
    return FetchedCommit(found, ref, len(bundle))


def first_known(hub: HubClient, commits: Sequence[str]) -> int:
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
