"""A row of the table of results: what is shown of it, and what of it follows from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, or_

from autohypothesis.hub.server.database import results
from autohypothesis.hub.server.verdicts import STATES, UNTRIED, ranked, score
from autohypothesis.schema import Direction

_HIDDEN = ("verdict", "ranked", "score")
SHOWN = tuple(column for column in results.c if column.name not in _HIDDEN)
_SHORTEST = 4
"""Characters of a commit's hash."""


def shown(row: Row[Any]) -> dict[str, Any]:
    """A row of `SHOWN` as others see it."""
    found = dict(row._mapping)
    found["state"] = STATES[found.pop("standing")]
    return found


def derived(content: Mapping[str, Any], direction: Direction) -> dict[str, Any]:
    """The columns of a new result that follow from its content."""
    value = content["value"]
    return {
        "standing": UNTRIED.rank,
        "reproduced": UNTRIED.reproduced,
        "refuted": UNTRIED.refuted,
        "ranked": ranked(content["status"], value, content["verifies"]),
        "score": score(value, direction),
    }


def same_commit(one: str, other: str) -> bool:
    """Whether both can be the same commit: a hash may be cut short."""
    return one.startswith(other) or other.startswith(one)


def of_commit(commit: str) -> ColumnElement[bool]:
    """Rows with the `same_commit`."""
    shorter = [commit[:end] for end in range(_SHORTEST, len(commit))]
    column = results.c.commit
    return or_((column >= commit) & (column < commit + "g"), column.in_(shorter))
