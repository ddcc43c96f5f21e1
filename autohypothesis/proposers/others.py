"""Results of other fleets as ideas, where they are said to be better than what is here.

Such a commit becomes a hypothesis like any other, and the reference only if it wins here; either
way the run tells whether the other fleet's result can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence

from autohypothesis.fleet.hub_sync import incoming
from autohypothesis.fleet.hub_sync.incoming import FeedReader
from autohypothesis.fleet.proposing import Situation
from autohypothesis.records.layout import Layout
from autohypothesis.schema import OthersResult, Proposal


class OtherFleets:
    """Reads what the courier heard last, so that it never waits for a hub."""

    name = incoming.HUB_PROPOSER

    def __init__(self, layout: Layout) -> None:
        self._feed = FeedReader(layout)

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return results that are better by more than the noise, best first, each once."""
        heard = self._feed.heard()
        best = _best(situation)
        if heard is None or best is None:
            return []
        known = [*situation.open, *situation.closed]
        tried = {hypothesis.source_id for hypothesis in known}
        commits = {hypothesis.artifacts_from for hypothesis in known}
        sign = 1.0 if situation.direction == "minimize" else -1.0
        better = [
            result
            for result in heard.board
            if _may_be_tried(result, situation)
            and result.value is not None
            and sign * (best - result.value) >= situation.min_delta
            and incoming.source_id_of(result.id) not in tried
            and result.commit not in commits
        ]
        better.sort(key=lambda result: sign * (result.value or 0.0))
        return [
            incoming.proposal_from_result(result, priority=incoming.BETTER_PRIORITY)
            for result in better[:count]
        ]


def _may_be_tried(result: OthersResult, situation: Situation) -> bool:
    is_ours = result.metric == situation.metric
    return is_ours and result.state != "refuted" and result.status == "keep"


def _best(situation: Situation) -> float | None:
    """Return the best value that was kept here, and not refuted since."""
    values = [
        trial.value
        for trial in situation.trials
        if trial.value is not None and trial.status == "keep"
    ]
    if not values:
        return None
    return min(values) if situation.direction == "minimize" else max(values)
