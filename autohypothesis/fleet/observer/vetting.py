"""Whether an idea may go into the queue: it binds whoever had it, a person too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autohypothesis.engine.task import Task
from autohypothesis.fleet.live.steering import violation
from autohypothesis.fleet.observer.tried import Library, Reference, Run, Tried, key_of
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.schema import Hypothesis, Proposal, Steering, nearest


@dataclass(frozen=True)
class Vetting:
    """What ideas are held against at one moment."""

    library: Library
    reference: Reference
    chronicle: Chronicle
    steering: Steering

    def reason(self, idea: Proposal, others: Sequence[Hypothesis], *, besides: str = "") -> str:
        """Why it is not to be run; empty when it may.

        Args:
            others: of the queue, those that came before it.
            besides: its own id, where it has one: its own runs are no duplicates.
        """
        if not (idea.config_overrides or key_of(idea)):
            return "" if idea.replicates else _NOTHING
        return (
            self._about_settings(idea)
            or ("" if idea.replicates else self._was_tried(idea, besides))
            or ("" if idea.replicates else self._is_waiting(idea, others, besides))
        )

    def _about_settings(self, idea: Proposal) -> str:
        if not idea.config_overrides:
            return ""  # what a patch sets is seen once it is applied: the worker looks again
        reference = self.reference
        known = {name.lower() for name in (*reference.names, *(reference.settings or {}))}
        for name in idea.config_overrides:
            if known and name.lower() not in known:
                near = nearest(name, list(reference.names))
                return f"the script has no constant {name!r} to set{near}"
        if Tried(self.library, reference).changes_nothing(idea):
            return "the reference has these settings already"
        settings = reference.with_overrides(idea.config_overrides)
        return violation(self.steering, reference.settings or {}, settings)

    def _was_tried(self, idea: Proposal, besides: str) -> str:
        run = Tried(self.library, self.reference).before(idea, besides=besides)
        return (
            "" if run is None else f"it was run before, as {run.experiment_id}: {self._came(run)}"
        )

    def _came(self, run: Run) -> str:
        """What came of a run, in a few words."""
        decision = self.chronicle.latest.get(run.experiment_id)
        if decision is None:
            return "not decided yet"
        said = [decision.decision_status, decision.reason, decision.detail]
        return ", ".join(word for word in said if word)[:300]

    def _is_waiting(self, idea: Proposal, others: Sequence[Hypothesis], besides: str) -> str:
        tried = Tried(self.library, self.reference)
        for other in others:
            if other.hypothesis_id != besides and tried.equal(idea, other):
                return f"the same is in the queue already, as {other.hypothesis_id}"
        return ""


_NOTHING = "it changes nothing, and names no experiment to repeat in `replicates`"


def needs_somebody(hypothesis: Hypothesis, task: Task) -> bool:
    """Whether it is words, and the task has no program that turns them into a change."""
    return bool(hypothesis.instructions) and task.mutator.command is None
