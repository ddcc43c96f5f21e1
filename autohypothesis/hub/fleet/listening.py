"""What a hub says, for the brief and for whoever tries others' commits: one file, made anew."""

from __future__ import annotations

from collections.abc import Iterable

from autohypothesis.engine.project import Project
from autohypothesis.errors import GitError, HubError
from autohypothesis.hub.client import sharing
from autohypothesis.hub.client.refusals import NotThereError, PassingError
from autohypothesis.hub.client.typed import TypedHub
from autohypothesis.hub.client.wire import Result
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.files import write_json
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import HubFeed, OthersCommit, OthersPost, OthersResult, now

BOARD, RESULTS, FRONTIER, DISCUSSION = 20, 40, 20, 20
"""How many of each are kept."""
DISCUSSED = "discussion"


class Listener:
    """Hears one hub for one project."""

    def __init__(self, hub: TypedHub, agent: str, project: Project) -> None:
        self._hub = hub
        self._agent = agent
        self._project = project
        self._bad: set[str] = set()
        """Commits that were told of and cannot be had."""
        self._ledger: Signature | None = None
        self._keys: set[str] = set()

    def listen(self) -> HubFeed:
        """Ask, fetch the commits that may be tried here, and write down what was heard.

        Raises:
            HubError: it does not answer.
            RecordError: the disk is full.
        """
        feed = HubFeed(
            generated_at=now(),
            server=self._hub.server,
            agent=self._agent,
            board=self._here(self._board()),
            results=[others(one) for one in self._results() if one.agent_id != self._agent],
            frontier=[
                OthersCommit(hash=one.hash, agent_id=one.agent_id, message=one.message[:300])
                for one in self._hub.leaves()[:FRONTIER]
            ],
            discussion=self._discussion(),
        )
        write_json(self._project.layout.hub_feed, feed, durable=False)
        return feed

    def _board(self) -> list[OthersResult]:
        """Kept results of others on our platforms, the hub's best first."""
        found: list[OthersResult] = []
        for key in sorted(self._platforms()):
            try:
                rows = self._hub.leaderboard(platform_key=key, limit=BOARD)
            except NotThereError:
                return []
            found += [others(row) for row in rows if row.agent_id != self._agent]
        return found

    def _platforms(self) -> set[str]:
        """On which something was run here; read again when the ledger was written."""
        signature = signature_of(str(self._project.layout.ledger))
        if signature != self._ledger:
            rows = read_ledger(self._project.layout)
            self._keys = {str(row["platform_key"]) for row in rows if row.get("platform_key")}
            self._ledger = signature
        return self._keys

    def _here(self, board: Iterable[OthersResult]) -> list[OthersResult]:
        """Those whose commit is here, by its full hash; what cannot be had is left out."""
        found = []
        for one in board:
            if one.commit in self._bad:
                continue
            try:
                fetched = sharing.fetch(self._hub, self._project.repository, one.commit)
            except PassingError:
                raise
            except (HubError, GitError):  # never pushed, or no good
                self._bad.add(one.commit)
                continue
            found.append(one.model_copy(update={"commit": fetched.commit.hash}))
        return found

    def _results(self) -> list[Result]:
        try:
            return self._hub.results(limit=RESULTS)
        except NotThereError:
            return []

    def _discussion(self) -> list[OthersPost]:
        try:
            posts = self._hub.posts(DISCUSSED, DISCUSSION)
        except NotThereError:
            return []
        return [
            OthersPost(id=one.id, agent_id=one.agent_id, content=one.content[:2_000])
            for one in posts
        ]


def others(one: Result) -> OthersResult:
    return OthersResult.model_validate(one, from_attributes=True)
