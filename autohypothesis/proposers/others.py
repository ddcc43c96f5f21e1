"""Other fleets: what they told of, where it is said to be better than what is here.

Nobody's word is taken for it. Their commit becomes a hypothesis like any other, is tried here, and
is the reference only if it wins; either way the run tells whether their result can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence

from autohypothesis.fleet.proposing import Situation
from autohypothesis.fleet.sharing import foreign
from autohypothesis.fleet.sharing.contact import Feed
from autohypothesis.records.layout import Layout
from autohypothesis.schema import OthersResult, Proposal


class Others:
    """Reads what the courier heard last. It asks nobody and waits for nobody."""

    name = foreign.PROPOSER

    def __init__(self, layout: Layout) -> None:
        self._feed = Feed(layout)

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """The best first, each result and each commit once; what is within the noise is left."""
        heard = self._feed.heard()
        best = _best(situation)
        if heard is None or best is None:
            return []
        known = [*situation.open, *situation.closed]
        tried = {one.source_id for one in known}
        commits = {one.artifacts_from for one in known}
        sign = 1.0 if situation.direction == "minimize" else -1.0
        better = [
            one
            for one in heard.board
            if _may_be_tried(one, situation)
            and one.value is not None
            and sign * (best - one.value) >= situation.min_delta
            and foreign.source_of(one.id) not in tried
            and one.commit not in commits
        ]
        better.sort(key=lambda one: sign * (one.value or 0.0))
        return [foreign.proposal(one, priority=foreign.URGENT) for one in better[:count]]


def _may_be_tried(one: OthersResult, situation: Situation) -> bool:
    return one.metric == situation.metric and one.state != "refuted" and one.status == "keep"


def _best(situation: Situation) -> float | None:
    """The best that was kept here, and not refuted since."""
    values = [
        trial.value
        for trial in situation.trials
        if trial.value is not None and trial.status == "keep"
    ]
    if not values:
        return None
    return min(values) if situation.direction == "minimize" else max(values)
