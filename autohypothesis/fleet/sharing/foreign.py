"""Other people's commits as hypotheses: how they are named, so that each is tried once."""

from __future__ import annotations

import re

from autohypothesis.schema import OthersResult, Proposal

PROPOSER = "hub"
_SOURCE = re.compile(r"hub-result-([0-9]{1,18})")
URGENT = 50.0
"""Of what is said to be better than what we have: before new ideas, after the fleet's own needs."""
IDLE = -50.0
"""Of what is only to be verified: when nothing else waits."""


def source_of(result: int) -> str:
    return f"hub-result-{result}"


def result_of(idea: Proposal) -> int | None:
    """The number of the result that an idea is about; None for any other idea."""
    found = _SOURCE.fullmatch(idea.source_id)
    return int(found[1]) if found else None


def proposal(result: OthersResult, *, priority: float) -> Proposal:
    """A run of what somebody has told of, to be tried here before anything is believed."""
    value = "" if result.value is None else f", {result.metric} {result.value:g}"
    return Proposal(
        title=f"{result.agent_id}'s {result.commit[:7]}: {result.description}"[:200],
        rationale=(
            f"agent {result.agent_id} tells of it on {result.platform}{value}"
            f" ({result.state}); what it is worth here, a run here says"
        ),
        artifacts_from=result.commit,
        priority=priority,
        source_id=source_of(result.id),
    )
