"""A hub as one agent sees it: each route as a method, with answers that were checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

from pydantic import SecretStr

from autohypothesis.errors import HubError, UsageError
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

DIFF_LIMIT = 16 << 20
"""Bytes of a diff that are taken."""
FETCHED = "refs/hub/"
"""Commits of other agents, by their full hash."""
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
        self._http = HttpConnection(server, key, patience)
        self.server = self._http.server
        self.left_out = self._http.left_out
        """Problems of records that were left out of lists, the last few."""

    def register(self, agent: str) -> AgentKey:
        return self._http.post("/api/register", {"id": agent}, AgentKey)

    # ── commits ───────────────────────────────────────────────────────────────────────────

    def commits(self, agent: str = "", limit: int = 50, offset: int = 0) -> list[HubCommit]:
        """Return the newest first."""
        return self._http.get_list(
            "/api/git/commits", HubCommit, agent=agent, limit=limit, offset=offset
        )

    def commit(self, commit: str) -> HubCommit:
        return self._http.get(f"/api/git/commits/{checked_hash(commit)}", HubCommit)

    def has(self, commit: str) -> bool:
        """Whether the hub knows a commit by its full hash."""
        try:
            return self.commit(commit).hash == commit
        except HubNotFoundError:
            return False

    def children(self, commit: str) -> list[HubCommit]:
        return self._http.get_list(f"/api/git/commits/{checked_hash(commit)}/children", HubCommit)

    def lineage(self, commit: str) -> list[HubCommit]:
        """Return the commit itself first, to the root."""
        return self._http.get_list(f"/api/git/commits/{checked_hash(commit)}/lineage", HubCommit)

    def leaves(self) -> list[HubCommit]:
        return self._http.get_list("/api/git/leaves", HubCommit)

    def diff(self, base: str, other: str) -> str:
        path = f"/api/git/diff/{checked_hash(base)}/{checked_hash(other)}"
        return self._http.get_bytes(path, DIFF_LIMIT).decode("utf-8", "replace")

    def push(self, bundle: IO[bytes]) -> list[str]:
        """Return the heads of the bundle, as the hub took them."""
        return self._http.post_file("/api/git/push", bundle, PushedHeads).hashes

    def bundle(self, commit: str) -> bytes:
        """Return the bundle of a commit, as it was sent: `records.git_bundle` checks it."""
        return self._http.get_bytes(f"/api/git/fetch/{checked_hash(commit)}", BUNDLE_LIMIT)

    # ── channels and posts ────────────────────────────────────────────────────────────────

    def channels(self) -> list[HubChannel]:
        return self._http.get_list("/api/channels", HubChannel)

    def create_channel(self, name: str, description: str = "") -> HubChannel:
        value = {"name": checked_channel(name), "description": description}
        return self._http.post("/api/channels", value, HubChannel)

    def posts(self, channel: str, limit: int = 50, offset: int = 0) -> list[HubPost]:
        """Return the newest first, replies among them."""
        return self._http.get_list(_posts(channel), HubPost, limit=limit, offset=offset)

    def get_post(self, post: int) -> HubPost:
        return self._http.get(f"/api/posts/{post}", HubPost)

    def post(self, channel: str, content: str, parent: int | None = None) -> HubPost:
        """Post something. A channel of the protocol is made where there is none yet."""
        value: dict[str, Any] = {"content": checked_content(content)}
        if parent is not None:
            value["parent_id"] = parent
        try:
            return self._http.post(_posts(channel), value, HubPost)
        except HubNotFoundError:
            if parent is not None or channel not in PROTOCOL_CHANNELS:
                raise
        self.ensure_channel(channel)
        return self._http.post(_posts(channel), value, HubPost)

    def ensure_channel(self, name: str) -> None:
        """Make a channel of the protocol; another agent may be making it as well."""
        with suppress(HubConflictError):
            self.create_channel(name, PROTOCOL_CHANNELS[name])

    def reply(self, post: int, content: str) -> HubPost:
        """Answer a post, in its own channel."""
        checked_content(content)
        channel_id = self.get_post(post).channel_id
        names = {channel.id: channel.name for channel in self.channels()}
        if channel_id not in names:
            raise self._http.wrong(f"/api/posts/{post}", "with a channel that it does not list")
        return self.post(names[channel_id], content, post)

    # ── tasks and results ─────────────────────────────────────────────────────────────────

    def tasks(self) -> list[HubTask]:
        """Return every task, by name."""
        return self._http.get_list("/api/tasks", HubTask)

    def tell_task(self, task: Mapping[str, Any]) -> HubTask:
        """Return the task as it is stored there, which is as it was told first."""
        return self._http.post("/api/tasks", task, HubTask, repeatable=True)

    def tell_result(self, result: Mapping[str, Any]) -> HubResult:
        """Return the result as it is stored; told again, it is stored once."""
        return self._http.post("/api/results", result, HubResult, repeatable=True)

    def results(self, limit: int = 50, **filters: str | int) -> list[HubResult]:
        """Return the newest first. `filters` are those of `ResultQuery`; empty ones are none."""
        if commit := filters.get("commit"):
            checked_hash(str(commit))
        return self._http.get_list("/api/results", HubResult, limit=limit, **filters)

    def result(self, number: int) -> VerifiedResult:
        return self._http.get(f"/api/results/{number}", VerifiedResult)

    def leaderboard(self, limit: int = 50, **filters: str) -> list[RankedResult]:
        """Return board after board, `limit` of each, the best first.

        `filters` are those of `BoardQuery`.
        """
        return self._http.get_list("/api/leaderboard", RankedResult, limit=limit, **filters)

    # ── claims and bests ──────────────────────────────────────────────────────────────────

    def claim(
        self, *, platform_key: str, task_hash: str, tree: str, lease_seconds: int, title: str = ""
    ) -> HubClaim:
        """Return our claim, new or renewed.

        Raises:
            HubConflictError: another agent holds it, or has tried it.
        """
        value = {
            "platform_key": platform_key, "task_hash": task_hash, "tree": tree,
            "lease_seconds": lease_seconds, "title": title,
        }  # fmt: skip
        return self._http.post("/api/claims", value, HubClaim, repeatable=True)

    def release(self, number: int) -> None:
        """Give our own claim back before it expires."""
        self._http.delete(f"/api/claims/{number}")

    def claims(self, limit: int = 50, **filters: str | int) -> list[HubClaim]:
        """Return claims that hold now, the newest first. `filters`: those of `ClaimQuery`."""
        return self._http.get_list("/api/claims", HubClaim, limit=limit, **filters)

    def best(self, **filters: str) -> list[PlatformBest]:
        """Return the best of each platform and task. `filters`: those of `KeyQuery`."""
        return self._http.get_list("/api/best", PlatformBest, **filters)

    def swap_best(self, result: int, expected: int | None) -> PlatformBest:
        """Make a result the best, if the best is `expected`. Sent once.

        Raises:
            HubConflictError: another one is; ask again which.
        """
        value = {"result": result, "expected": expected}
        return self._http.post("/api/best", value, PlatformBest)


def _posts(channel: str) -> str:
    return f"/api/channels/{checked_channel(channel)}/posts"


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
