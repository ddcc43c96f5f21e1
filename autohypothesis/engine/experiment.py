"""One experiment on its way: asked for, planned, prepared; and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.engine.change import Change
from autohypothesis.engine.executor import Resources, RunSpec
from autohypothesis.engine.task import Task
from autohypothesis.plain import plain, templates
from autohypothesis.schema import Hypothesis, Plan, PlannedHypothesis, Prediction, Result, now
from autohypothesis.system import host_name

FIRST_SEED = 42
"""Every first run of a hypothesis has this seed, so that it meets the reference's equal. What is
run again to confirm it has the seeds that follow, see `further_seed`."""


def further_seed(first: int | None, number: int) -> int:
    """The seed of the `number`-th run again, from 1: the same for a change and for its base."""
    return (FIRST_SEED if first is None else first) + number


@dataclass(frozen=True, slots=True)
class Experiment:
    """A value that is completed step by step: `runner.plan` fills in the second part, and
    `candidate.prepare` the third."""

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

    commit: str = ""
    """`base` itself where nothing is changed."""
    config: Mapping[str, Any] = field(default_factory=dict)
    diff: str = ""
    diff_stat: str = ""
    diff_hash: str = ""
    lines_added: int = 0
    lines_removed: int = 0

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

    @property
    def parent_commit(self) -> str | None:
        """None where nothing is changed: the base as it stands."""
        return self.base if self.commit != self.base else None

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
                config_overrides=dict(change.overrides),
                patch=change.text if change.kind == "patch" else None,
                instructions=change.text if change.kind == "instructions" else None,
                artifacts_from=change.commit or None,
                prediction=self.prediction,
            ),
        )

    def spec(
        self, task: Task, resources: Resources, mutation: dict[str, Any] | None = None
    ) -> RunSpec:
        """The value that an executor takes, of a prepared experiment."""
        return RunSpec(
            task=task,
            resources=resources,
            seed=self.seed or 0,
            parent_commit=self.parent_commit,
            config=dict(self.config),
            mutation=mutation,
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
        )


_AS_THEY_ARE = (
    "experiment_id", "tag", "worker_id", "hypothesis_id", "title", "rationale", "replicates",
    "commit", "diff", "diff_stat", "diff_hash", "lines_added", "lines_removed",
)  # fmt: skip
"""Fields of an experiment that its `RunSpec` has under the same name."""


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
