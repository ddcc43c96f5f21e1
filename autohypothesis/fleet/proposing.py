"""The seam to whatever has ideas: a situation in, proposals out.

A proposer is asked in a thread of the observer's, so it may think for as long as a run takes. It
reads nothing but the situation and writes nothing at all; the observer puts what it answers into
the queue, or refuses it with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from autohypothesis.engine.task import Knob
from autohypothesis.schema import Brief, Direction, Hypothesis, Proposal, Setting, Steering


@dataclass(frozen=True, slots=True)
class Trial:
    """One experiment with all its settings, as a sampler needs it."""

    experiment_id: str
    hypothesis_id: str
    settings: Mapping[str, Setting]
    """Every constant by its name in the script (`MATRIX_LR`), with the value that it had."""
    value: float | None
    """The official metric; None while it runs, and of one that failed."""
    status: str
    """keep, discard, crash, replicate, review_pending, running."""
    seed: int | None = None
    replicates: str | None = None
    title: str = ""
    description: str = ""
    """Why it was tried, as its proposer said."""
    diff_hash: str = ""
    """Hash of its change; equal for the same edit of another base."""
    code_hash: str = ""
    """Equal for runs that differ in `settings` alone; empty: unknown."""
    reason: str = ""
    """Of its decision, in a word: `improved`, `within_noise`, `not_confirmed` and so on."""


@dataclass(frozen=True, slots=True)
class Situation:
    """The input of a proposer. All of it is a copy: changes to it have no effect."""

    tag: str
    metric: str
    direction: Direction
    min_delta: float
    reference: Mapping[str, Setting]
    """The settings of the reference, by the constants' names. Empty before its first run began."""
    sources: Mapping[str, str]
    """Path -> text of each artifact of the reference."""
    knobs: Mapping[str, Knob]
    """The task's, narrowed by the steering; empty when the task names none."""
    steering: Steering
    trials: Sequence[Trial]
    """Trials of the active tag, in the order in which they were begun; running ones included."""
    open: Sequence[Hypothesis]
    """Waiting, dispatched and running."""
    closed: Sequence[Hypothesis]
    brief: Brief
    code_hash: str = ""
    """Of the reference. A trial with another one ran other code: it says nothing about what a
    setting does here."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Title -> why it, or a field of it, was not taken, of the proposer's last answer."""
    charter: str = ""
    """program.md as it stands, whole; empty where there is none."""


class Proposer(Protocol):
    """Something that has ideas."""

    @property
    def name(self) -> str:
        """The name that users type: `search`, `command:PROGRAM`, `inbox`, or a package's own."""

    def propose(self, situation: Situation, count: int) -> Sequence[Proposal]:
        """Return at most `count` proposals, best first; none when it has none.

        Raises:
            ProposerError: it failed; others fill in, and `status` says so.
        """


def is_asked_early(proposer: Proposer) -> bool:
    """Return its `asked_early`: whether it needs the settings of the reference and no results.

    It is asked while the baseline still trains. Any other waits until that is decided.
    """
    return bool(getattr(proposer, "asked_early", False))


@runtime_checkable
class Stoppable(Protocol):
    """A proposer that can be called off while it thinks."""

    def stop(self) -> None:
        """Make `propose` return or raise soon; called from another thread."""
