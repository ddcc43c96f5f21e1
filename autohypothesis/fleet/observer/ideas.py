"""Ideas on their way into the queue: asked for, held against all others, taken or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autohypothesis.engine.project import Project
from autohypothesis.fleet.observer.refill import Answer, Refill
from autohypothesis.fleet.observer.situation import situation
from autohypothesis.fleet.observer.tried import Library, Reference
from autohypothesis.fleet.observer.vetting import Vetting, needs_somebody
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.ids import baseline_id
from autohypothesis.schema import Brief, Hypothesis, Proposal, Steering, now

RECENT = 200
"""Closed hypotheses that a proposer is told of."""


@dataclass
class Ideas:
    """The way in of one search. The reference and the steering are set anew every turn."""

    project: Project
    queue: Queue
    chronicle: Chronicle
    library: Library
    refill: Refill
    reference: Reference | None = None
    steering: Steering = field(default_factory=Steering)
    proposed: int = 0
    refused: int = 0
    _vetted: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Hypothesis -> the reference and the steering under which it was found to be fine."""

    def may_begin(self, one: Hypothesis) -> bool:
        """Whether it was looked at, and can be run as it is."""
        if one.hypothesis_id == baseline_id(self.queue.tag):
            return True
        return one.hypothesis_id in self._vetted and not needs_somebody(one, self.project.task)

    def ask(self, count: int, *, hungry: bool, brief: Brief | None) -> None:
        """Has the proposers think, if any can; before the reference's settings are known, none."""
        reference = self.reference
        if reference is None or reference.settings is None:
            return
        if not self.refill.wants(count, hungry=hungry):
            return
        told = situation(
            self.project,
            self.chronicle,
            self.library,
            reference,
            steering=self.steering,
            waiting=self.queue.open(),
            closed=self.queue.done()[-RECENT:],
            brief=brief or Brief(generated_at=now()),
        )
        self.refill.ask(told, count, hungry=hungry)

    def collect(self) -> list[str]:
        """Takes what was answered meanwhile; a line for each idea."""
        return [line for answer in self.refill.answers() for line in self._take(answer)]

    def _take(self, answer: Answer) -> list[str]:
        name = answer.proposer
        if answer.problem:
            return [f"proposer {name} failed: {answer.problem}"]
        said, refused = [], dict(answer.refused)
        for proposal in answer.proposals:
            reason = self._reason_against(proposal, self.queue.open())
            if reason:
                refused[proposal.title] = reason
            else:
                added = self.queue.add(proposal, proposer=name)
                said.append(f"{added.hypothesis_id} from {name}: {added.title}")
        self.proposed += len(said)
        self.refused += len(refused)
        self.refill.took(name, len(said), refused)
        return said + [
            f"refused an idea of {name}, {title!r}: {reason}" for title, reason in refused.items()
        ]

    def vet(self) -> list[str]:
        """Looks at everything pending, whoever put it there; what is no good is abandoned.

        Returns a line for each that was refused.
        """
        if self.reference is None or self.reference.settings is None:
            self._vet_repeats()
            return []
        under = (self.reference.commit, self.steering.model_dump_json())
        said = []
        for one in self.queue.pending():
            name = one.hypothesis_id
            if self._vetted.get(name) == under or name == baseline_id(self.queue.tag):
                continue
            reason = self._reason_against(one, self._before(one), besides=name)
            if not reason:
                self._vetted[name] = under
                continue
            self._vetted.pop(name, None)
            self.queue.abandon(name, reason)
            self.refill.refuse(one.proposer, one.title, reason)
            self.refused += 1
            said.append(f"{name} ({one.title}) was refused: {reason}")
        return said

    def _before(self, one: Hypothesis) -> list[Hypothesis]:
        """What was in the queue when it came: of two that are the same, the first stays."""
        mark = (one.created_at, one.hypothesis_id)
        return [
            other for other in self.queue.open() if (other.created_at, other.hypothesis_id) < mark
        ]

    def _vet_repeats(self) -> None:
        """Before the reference's settings are known, only its own repeats may begin."""
        for one in self.queue.pending():
            if one.proposer == "observer" and one.replicates:
                self._vetted[one.hypothesis_id] = ("", "")

    def _reason_against(
        self, idea: Proposal, others: Sequence[Hypothesis], *, besides: str = ""
    ) -> str:
        if self.reference is None:
            return "there is no reference to hold it against"
        vetting = Vetting(self.library, self.reference, self.chronicle, self.steering)
        return vetting.reason(idea, others, besides=besides)
