"""One experiment: asked for, planned, submitted to whatever runs it, and its outcome.

A `RunSpec` holds no path of this machine, so another executor (a cluster's queue) can take the
same value. The executor makes the checkout, takes the lease, and leaves a bundle; the local one
is the shim (local_executor.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field

from autohypothesis.engine.inputs import Inputs
from autohypothesis.engine.shim import Status
from autohypothesis.engine.task import Task
from autohypothesis.plain import plain, templates
from autohypothesis.schema import (
    Hypothesis,
    Metadata,
    Plan,
    PlannedHypothesis,
    Prediction,
    Proposal,
    Result,
    RunIdentity,
    Runtime,
    Setting,
    Strict,
    now,
)
from autohypothesis.system import host_name

RunState = Status
FIRST_SEED = 42
"""The seed of every first run of a hypothesis, so that values are compared at the same seed.
Replicates have the seeds that follow, see `replicate_seed`."""


def replicate_seed(first: int | None, number: int) -> int:
    """Return the seed of the `number`-th replicate, from 1; the same for change and base."""
    return (FIRST_SEED if first is None else first) + number


ChangeKind = Literal["none", "overrides", "patch", "instructions", "tree", "commit"]


@dataclass(frozen=True)
class Change:
    """At most one field is set; none: the base is run unchanged, as a baseline or a replicate."""

    overrides: Mapping[str, Setting] | None = None
    patch: str | None = None
    instructions: str | None = None
    """Instructions for the mutator; empty: it chooses the change itself."""
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
    """Seed of the program that makes the change; None: derived from the experiment's id."""

    experiment_id: str = ""
    tag: str = ""
    worker_id: str = ""
    base: str = ""
    """The commit that the change is applied to."""

    @classmethod
    def of(cls, hypothesis: Hypothesis, *, label: str = "") -> Experiment:
        """Return the experiment that a hypothesis asks for; `label` is put before its title."""
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
        """Return the file of a planned experiment."""
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


def plan_page(plan: Plan) -> str:
    """Make `plans/<experiment_id>.md`. Foreign text is quoted: it cannot forge a heading."""
    environment = templates(Path(__file__).parent / "templates")
    # As a block quote, every line of it.
    environment.filters["quoted"] = lambda text: "\n".join(
        f"> {line}".rstrip() for line in text.splitlines()
    )
    page = environment.get_template("plan.md.j2").render(plan=plan.model_dump(mode="json"))
    return plain(page).rstrip() + "\n"


class Resources(Strict):
    """The device that a training asks for, where its inputs do not say."""

    kind: Literal["cpu", "cuda"] | None = None
    """None: a GPU where there is one."""
    device: str | None = None
    """One GPU's UUID, or `cpu-<core>`; None: whichever is free."""


class RunSpec(Strict):
    """One experiment: what to run, on what, and under which names to record it."""

    experiment_id: str
    task: Task
    commit: str
    parent_commit: str | None = None
    """None for a baseline: the reference as it stands."""
    seed: int | None
    """None for a run made by hand."""
    resources: Resources = Resources()
    tag: str
    hypothesis_id: str = ""
    worker_id: str = ""
    title: str = ""
    rationale: str = ""
    replicates: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    diff: str = ""
    diff_stat: str = ""
    diff_hash: str = ""
    tree_hash: str = ""
    code_hash: str = ""
    lines_added: int = 0
    lines_removed: int = 0
    mutation: dict[str, Any] | None = None
    """Record of the program that made the change; None: none did."""


def spec_for(experiment: Experiment, task: Task, commit: str, **more: Any) -> RunSpec:
    """Return the run of `commit` for an experiment; `more` are the fields that it does not have."""
    asked = {name: getattr(experiment, name, None) for name in RunSpec.model_fields}
    known = {name: value for name, value in asked.items() if value is not None}
    return RunSpec(**{"seed": None, **known, "task": task, "commit": commit, **more})


def metadata_of(spec: RunSpec, gpu_id: str = "", **measured: Any) -> Metadata:
    """Return the metadata of a run; `gpu_id` and what was `measured` once a device was chosen."""

    def common(model: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in spec if name in model.model_fields}

    identity = {**common(RunIdentity), "gpu_id": gpu_id, "node_id": host_name()}
    return Metadata(
        recorded_at=now(),
        run=RunIdentity(**identity),
        runtime=Runtime(**{**common(Runtime), **measured}),
        hyperparameters={key.lower(): value for key, value in spec.config.items()},
    )


class Executor(Protocol):
    """Runs experiments. Subclass it: wait, stall and check_device_free have defaults."""

    def submit(self, spec: RunSpec) -> str:
        """Start it; return its experiment id once the training's owner is alive and cannot be lost.

        Raises:
            LeaseError: no device of that kind is free.
            LaunchError: the checkout or the command cannot be made.
        """

    def poll(self, experiment_id: str) -> RunState:
        """Return its state, by liveness, never by age."""

    def cancel(self, experiment_id: str) -> None:
        """Ask it to end; `collect` then finds a cancelled experiment.

        It works after an interrupted `submit` too; without a run folder it does nothing.
        """

    def collect(self, experiment_id: str) -> Result:
        """Return the finished bundle's result, written exactly once however often this is called.

        Raises:
            LaunchError: it is still running.
        """

    def wait(self, experiment_id: str, timeout: float) -> None:
        """Return after `timeout` seconds, or earlier if the experiment has ended."""
        time.sleep(timeout)

    def stall(self, experiment_id: str) -> str:
        """Return what a person should do about a run that stands still; empty while all is well."""
        return ""

    def check_device_free(self, resources: Resources, inputs: Inputs) -> None:
        """See that a device is free now; another process may take it before `submit`.

        Raises:
            LeaseError: none is.
        """
        return
