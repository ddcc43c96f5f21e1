"""The seam to whoever keeps two fleets from trying the same change.

A worker asks once a candidate is made, while its device still trains the one before. What is
refused is not run; where nobody can be asked it is run all the same, and recorded as unclaimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from autohypothesis.engine.project import Project
from autohypothesis.records.normal_form import tree_of


@dataclass(frozen=True, slots=True)
class Idea:
    """What is claimed: a change is the artifacts that it leads to, on a platform, for a task."""

    platform_key: str
    task_hash: str
    tree: str
    """`n1:<hash>`, see `records.normal_form`."""
    title: str
    lease_seconds: float
    """How long the right is wanted for."""


@dataclass(frozen=True, slots=True)
class Answer:
    said: Literal["granted", "refused", "unknown"]
    """unknown: nobody could be asked."""
    reason: str = ""


class Claims(Protocol):
    """Whoever gives the right to try an idea."""

    def claim(self, idea: Idea) -> Answer:
        """Never raises, and takes a few seconds at most, whatever becomes of the other side."""


class NoClaims:
    """A fleet of its own."""

    def claim(self, idea: Idea) -> Answer:
        return Answer("unknown", "there is no hub")


def tree_of_commit(project: Project, commit: str) -> str:
    """The artifacts of a commit by their normal form."""
    repository = project.repository
    paths = project.task.artifacts_in(repository.entries(commit))
    return tree_of({path: repository.show_file(commit, path) for path in paths})
