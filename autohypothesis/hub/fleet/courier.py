"""The courier: the process of a fleet that speaks to its hub, so that no other has to wait.

It delivers the entries of the outbox, writes down what the hub says, and reports in its own status
whether the hub answers. It decides nothing, and a fleet without it runs as one without a hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from autohypothesis.engine.project import Project
from autohypothesis.errors import (
    AutohypothesisError,
    DeliveryError,
    GitError,
    HubError,
    LockError,
    UndeliverableError,
)
from autohypothesis.fleet.hub_sync.outgoing import (
    LINE,
    PENDING,
    PUSH,
    REFUSED,
    REFUTED_LINE,
    RESULT,
    Outbox,
    Round,
    pause_s,
)
from autohypothesis.fleet.hub_sync.outgoing import REFUTED as TAKEN_BACK
from autohypothesis.fleet.live import presence
from autohypothesis.fleet.live.presence import COURIER
from autohypothesis.fleet.live.stop import StopRequest
from autohypothesis.hub import result_line
from autohypothesis.hub.client.credentials import Credentials
from autohypothesis.hub.client.http import HubConflictError, HubNotFoundError, HubUnavailableError
from autohypothesis.hub.client.hub import HubClient, fetch, push
from autohypothesis.hub.fleet.coordination import others_result, tell_task
from autohypothesis.hub.protocol import HubPost, HubResult
from autohypothesis.records import locks
from autohypothesis.records.files import FileStamp, file_stamp, write_json
from autohypothesis.records.git import Repository
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import HubFeed, OthersCommit, OthersPost, OthersResult, OutboxEntry, now

T = TypeVar("T")
LISTEN_S = 5.0
"""Interval between two looks at the others' results."""
AGREE_S = 60.0
"""Interval between two tries to agree with a hub that has another task of our name."""
LOOK_S = 0.5
LOCK_S = 5.0
BOARD, RESULTS, FRONTIER, DISCUSSION = 20, 40, 20, 20
"""Entries of each kind in the feed."""
DISCUSSED = "discussion"
POST = "post"
LINES = (LINE, REFUTED_LINE)
POSTED = (POST, *LINES)
"""Kinds of entries that become a post."""
RESULTS_CHANNEL = "results"
"""The protocol's channel for lines."""
_SWAPS = 3
"""Tries to be the best, while others move it."""
_FINAL = (400, 404, 409, 413, 422)
"""Refusals of the entry itself. Any other is about us, now: a key, a limit, a hub in trouble."""
_PAGE = 200
_NEWEST = 20
"""Posts that are asked for to see the newest: the very newest may be a bad record."""
_MAX_PAGES = 50


class CourierProcess:
    """The courier of one project to one hub."""

    def __init__(self, project: Project, credentials: Credentials) -> None:
        self.project = project
        self.outbox = Outbox(project.layout)
        self._hub = credentials.client()
        self._agent = credentials.agent
        self._delivery = HubDelivery(self._hub, self._agent, project.repository, self.outbox)
        self._feed = FeedWriter(self._hub, credentials.agent, project)
        self._began: datetime = now()
        self._agreed = self._reachable = False
        self._due = {"agree": 0.0, "deliver": 0.0, "listen": 0.0, "report": 0.0}
        self._failures = 0
        self._problems: dict[str, str] = {}
        self._counts = {"told": 0, "refused": 0}
        self._reported: tuple[Any, ...] = ()

    def run(self, stop: StopRequest) -> None:
        """Run until asked to stop; then deliver what waits once more, if the hub answers.

        Raises:
            LockError: another courier is at work; the message names it.
        """
        with locks.hold(self.project.layout, COURIER, doing="speaking to the hub", timeout=LOCK_S):
            self._report("starting")
            while not stop.requested:
                self.turn()
                stop.wait(LOOK_S)
            if self._agreed and self._reachable:
                self.deliver()
            self._report("stopped")

    def once(self) -> Round:
        """Deliver what waits.

        Raises:
            HubError: it does not answer, or searches something else.
            LockError: another process is at it.
        """
        tell_task(self._hub, self.project)
        return self.outbox.deliver(self._delivery)

    def turn(self) -> None:
        """Do what is due, and report."""
        moment = time.monotonic()
        if not self._agreed and moment >= self._due["agree"]:
            self._agree()
        if self._agreed and moment >= self._due["deliver"] and self._waiting():
            self.deliver()
        if self._agreed and moment >= self._due["listen"]:
            self._listen()
        self._report("working" if self._agreed else "waiting")

    def deliver(self) -> Round | None:
        """One round through the outbox; None while another process is at it."""
        try:
            done = self.outbox.deliver(self._delivery)
        except LockError:
            return None
        except AutohypothesisError as error:  # a full disk
            self._failed("deliver", error)
            return None
        self._counts["told"] += done.sent
        self._counts["refused"] += done.refused
        self._failures = self._failures + 1 if done.error and not done.sent else 0
        self._due["deliver"] = time.monotonic() + (pause_s(self._failures) if done.error else 0.0)
        self._problems.pop("deliver", None)
        if done.refused:
            aside = self.project.layout.outbox_state(REFUSED)
            self._problems["refused"] = f"{self._counts['refused']} were refused: see {aside}"
        if done.error:
            self._problems["deliver"] = f"{done.left} wait to be told: {done.error}"
            self._due["listen"] = min(self._due["listen"], self._due["deliver"])
        return done

    def _agree(self) -> None:
        try:
            tell_task(self._hub, self.project)
        except AutohypothesisError as error:
            self._failed("agree", error)
            pause = pause_s(1) if isinstance(error, HubUnavailableError) else AGREE_S
            self._due["agree"] = time.monotonic() + pause
        else:
            self._agreed = self._reachable = True
            self._problems.pop("agree", None)

    def _listen(self) -> None:
        self._hub.left_out.clear()
        try:
            self._feed.write()
        except AutohypothesisError as error:
            self._failed("listen", error)
        else:
            self._reachable = True
            self._problems.pop("listen", None)
        self._problems.pop("left out", None)
        if self._hub.left_out:
            self._problems["left out"] = f"left out: {self._hub.left_out[-1]}"
        self._due["listen"] = time.monotonic() + LISTEN_S

    def _failed(self, what: str, error: AutohypothesisError) -> None:
        self._problems[what] = error.problem
        if isinstance(error, HubError):
            self._reachable = False

    def _waiting(self) -> int:
        folder = self.project.layout.outbox_state(PENDING)
        return sum(1 for _ in folder.glob("[!.]*.json")) if folder.is_dir() else 0

    def _report(self, state: str) -> None:
        """Write the status, best effort, and only what is new."""
        details = {
            "hub": self._hub.server,
            "agent": self._agent,
            "reachable": self._reachable,
            "waiting": self._waiting(),
            **self._counts,
        }
        report = (state, tuple(details.items()), tuple(self._problems.values()))
        if report == self._reported and time.monotonic() < self._due["report"]:
            return
        status = presence.own_status(
            COURIER, state=state, started_at=self._began, details=details,
            last_action=f"{self._counts['told']} told to {self._hub.server} as {self._agent}",
            problems=[line[:500] for line in self._problems.values()],
        )  # fmt: skip
        try:
            presence.write_role(self.project.layout, status)
        except (AutohypothesisError, OSError):
            return
        self._reported = report
        self._due["report"] = time.monotonic() + 2.0


class FeedWriter:
    """Writes what one hub says into `hub.json`, for the brief and for runs of others' commits."""

    def __init__(self, hub: HubClient, agent: str, project: Project) -> None:
        self._hub = hub
        self._agent = agent
        self._project = project
        self._bad: set[str] = set()
        """Commits of results that the hub does not have, or that are refused here."""
        self._ledger: FileStamp | None = None
        self._keys: set[str] = set()

    def write(self) -> HubFeed:
        """Ask, fetch the commits that may be tried here, and write the feed.

        Raises:
            HubError: the hub does not answer.
            RecordError: the disk is full.
        """
        hub = self._hub
        board: list[OthersResult] = []
        for key in sorted(self._platforms()):
            board += self._listed(partial(hub.leaderboard, BOARD, platform_key=key))
        feed = HubFeed(
            generated_at=now(),
            server=hub.server,
            agent=self._agent,
            board=self._fetched(board),
            results=self._listed(partial(hub.results, RESULTS)),
            frontier=[
                OthersCommit(hash=leaf.hash, agent_id=leaf.agent_id, message=leaf.message[:300])
                for leaf in hub.leaves()[:FRONTIER]
            ],
            discussion=[
                OthersPost(id=post.id, agent_id=post.agent_id, content=post.content[:2_000])
                for post in _if_there(partial(hub.posts, DISCUSSED, DISCUSSION))
            ],
        )
        write_json(self._project.layout.hub_feed, feed, durable=False)
        return feed

    def _listed(self, ask: Callable[[], Sequence[HubResult]]) -> list[OthersResult]:
        """Return the results of others."""
        return [others_result(row) for row in _if_there(ask) if row.agent_id != self._agent]

    def _platforms(self) -> set[str]:
        """Platform keys of the ledger; it is read again when it was written."""
        signature = file_stamp(self._project.layout.ledger)
        if signature != self._ledger:
            rows = read_ledger(self._project.layout)
            self._keys = {str(row["platform_key"]) for row in rows if row.get("platform_key")}
            self._ledger = signature
        return self._keys

    def _fetched(self, board: Iterable[OthersResult]) -> list[OthersResult]:
        """Results whose commit is here, by its full hash; those that cannot be had are left out."""
        found = []
        for result in board:
            if result.commit in self._bad:
                continue
            try:
                fetched = fetch(self._hub, self._project.repository, result.commit)
            except HubUnavailableError:
                raise
            except (HubError, GitError):  # never pushed, or no good
                self._bad.add(result.commit)
                continue
            found.append(result.model_copy(update={"commit": fetched.commit.hash}))
        return found


# ── deliveries ──────────────────────────────────────────────────────────────────────────────


class HubDelivery:
    """Delivers entries of an outbox to one hub: commits, results, their lines, posts.

    A commit and a result may be sent twice, since a hub knows them by their names; a post is looked
    for before it is sent again.
    """

    def __init__(self, hub: HubClient, agent: str, repository: Repository, outbox: Outbox) -> None:
        self._hub = hub
        self._agent = agent
        self._repository = repository
        self._outbox = outbox

    def mark(self, entry: OutboxEntry) -> int | None:
        """Return, for a post, the number of the newest one there: a higher one may be ours."""
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
        if entry.kind == TAKEN_BACK:
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
        number = self._outbox.receipt(RESULT, entry.name)
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
        for page in range(_MAX_PAGES):
            try:
                posts = self._hub.posts(channel, at_once, page * at_once)
            except HubNotFoundError:
                return
            if not posts:  # fewer than asked for may be a page with bad records
                return
            yield from posts


def _channel(entry: OutboxEntry) -> str:
    return RESULTS_CHANNEL if entry.kind in LINES else str(entry.payload.get("channel") or "")


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


def _if_there(ask: Callable[[], Sequence[T]]) -> Sequence[T]:
    """Return the answer to `ask`; nothing where the hub has no such route or channel."""
    try:
        return ask()
    except HubNotFoundError:
        return []
