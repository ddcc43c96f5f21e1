"""One experiment: asked for, planned, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from autohypothesis.plain import plain, templates
from autohypothesis.schema import (
    Hypothesis,
    Plan,
    PlannedHypothesis,
    Prediction,
    Proposal,
    Result,
    Setting,
    now,
)
from autohypothesis.system import host_name

FIRST_SEED = 42
"""Every first run of a hypothesis has this seed, so that it meets the reference's equal. What is
run again to confirm it has the seeds that follow, see `further_seed`."""


def further_seed(first: int | None, number: int) -> int:
    """The seed of the `number`-th run again, from 1: the same for a change and for its base."""
    return (FIRST_SEED if first is None else first) + number


ChangeKind = Literal["none", "overrides", "patch", "instructions", "tree", "commit"]


@dataclass(frozen=True)
class Change:
    """One kind of change. Without any it is the base as it is: a baseline, or a replicate."""

    overrides: Mapping[str, Setting] | None = None
    patch: str | None = None
    instructions: str | None = None
    """Empty: the idea is the task's own program's as well."""
    tree: str | None = None
    """The files of a working tree, see `Repository.snapshot_tree`."""
    commit: str | None = None
    """Its artifacts, of another fleet as a rule, take the place of the base's."""

    @classmethod
    def of(cls, hypothesis: Proposal | PlannedHypothesis) -> Change:
        """Return the one change that a hypothesis proposes; none for a baseline."""
        return cls(
            overrides=hypothesis.config_overrides or None,
            patch=hypothesis.patch or None,
            instructions=hypothesis.instructions or None,
            commit=hypothesis.artifacts_from or None,
        )

    @property
    def kind(self) -> ChangeKind:
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return names[0] if names else "none"  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A request for a run; `runner.plan` fills in the second part."""

    change: Change
    title: str = ""
    rationale: str = ""
    hypothesis_id: str = ""
    """Empty for a person's change, which is given one."""
    seed: int | None = None
    replicates: str | None = None
    """The experiment that this repeats."""
    prediction: Prediction | None = None
    mutation_seed: int | None = None
    """For the program that makes the change; None: the experiment's id decides it."""

    experiment_id: str = ""
    tag: str = ""
    worker_id: str = ""
    base: str = ""
    """The commit that the change is applied to."""

    @classmethod
    def of(cls, hypothesis: Hypothesis, *, label: str = "") -> Experiment:
        """The experiment that a hypothesis asks for; `label` is put before its title."""
        return cls(
            Change.of(hypothesis),
            title=f"{label}: {hypothesis.title}" if label else hypothesis.title,
            rationale=hypothesis.rationale,
            hypothesis_id=hypothesis.hypothesis_id,
            seed=hypothesis.seed,
            replicates=hypothesis.replicates,
            prediction=hypothesis.prediction,
        )

    @property
    def is_baseline(self) -> bool:
        return self.change.kind == "none" and self.replicates is None

    def plan(self) -> Plan:
        """The file of a planned experiment."""
        change = self.change
        return Plan(
            experiment_id=self.experiment_id,
            created_at=now(),
            based_on_commit=self.base,
            worker_id=self.worker_id,
            tag=self.tag,
            seed=self.seed,
            replicates=self.replicates,
            node_id=host_name(),
            hypothesis=PlannedHypothesis(
                hypothesis_id=self.hypothesis_id,
                title=self.title,
                rationale=self.rationale,
                config_overrides=dict(change.overrides or {}),
                patch=change.patch,
                instructions=change.instructions,
                artifacts_from=change.commit,
                prediction=self.prediction,
            ),
        )


class Outcome(NamedTuple):
    """A collected experiment."""

    experiment_id: str
    result: Result


# ── the page of a plan ──────────────────────────────────────────────────────────────────────


def plan_page(plan: Plan) -> str:
    """Make `plans/<experiment_id>.md`. Foreign text is quoted: it cannot forge a heading."""
    environment = templates(Path(__file__).parent / "templates")
    environment.filters["quoted"] = _quoted
    page = environment.get_template("plan.md.j2").render(plan=plan.model_dump(mode="json"))
    return plain(page).rstrip() + "\n"


def _quoted(text: str) -> str:
    """`text` as a block quote, every line of it."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
