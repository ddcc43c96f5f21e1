"""People: they write files, so there is nobody to ask."""

from __future__ import annotations

from collections.abc import Sequence

from autohypothesis.fleet.proposing import Situation
from autohypothesis.schema import Proposal


class Inbox:
    """Has no ideas of its own. As the only proposer it makes a fleet wait for people."""

    name = "inbox"

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        return []
