"""A change that was refused before it ran, as a bundle: somebody wants to know what became of it.

Who proposes into a queue is told there, and needs no bundle. A loop over a task's own program has
one record for each time that the program ran, whatever it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autohypothesis.engine.failures import FailureKind, room_in
from autohypothesis.engine.mutator import MutatorError
from autohypothesis.engine.project import Project, node_id
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    ConflictError,
    NothingNewError,
    PreflightError,
    UnjudgedError,
)
from autohypothesis.records import bundles
from autohypothesis.records.git import experiment_ref
from autohypothesis.schema import Metadata, Plan, Result, RunIdentity, Runtime, now


class RefusedError(ChangeError):
    """A change was refused, and has its record."""

    def __init__(self, experiment_id: str, why: AutohypothesisError) -> None:
        super().__init__(f"{experiment_id}: {why.problem}", hint=why.hint)
        self.experiment_id = experiment_id


def kind_of(error: AutohypothesisError) -> FailureKind | None:
    """What a refusal stands for; None for an error that says nothing about the change."""
    if isinstance(error, (NothingNewError, ConflictError)):
        return "nothing_new"
    if isinstance(error, MutatorError):
        return error.kind
    if isinstance(error, UnjudgedError) or room_in(str(error)):
        return "infra"
    if isinstance(error, ChangeError):
        return "invalid"
    return "code_error" if isinstance(error, PreflightError) else None


def record_refusal(
    project: Project, plan: Plan, error: AutohypothesisError, mutation: Mapping[str, Any]
) -> RefusedError | None:
    """Write the bundle of a plan that came to nothing; None if the error does not speak of it.

    Raises:
        RecordError: the disk is full.
    """
    kind = kind_of(error)
    if kind is None:
        return None
    run, base = project.layout.run(plan.experiment_id), plan.based_on_commit
    commit = project.repository.read_ref(experiment_ref(plan.experiment_id)) or base
    objective, hypothesis = project.task.objective, plan.hypothesis
    title = hypothesis.title or str(mutation.get("note") or "")
    run.folder.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity(
        experiment_id=plan.experiment_id,
        worker_id=plan.worker_id,
        hypothesis_id=hypothesis.hypothesis_id,
        rationale=hypothesis.rationale,
        title=title,
        tag=plan.tag,
        seed=plan.seed,
        node_id=node_id(),
    )
    runtime = Runtime(commit=commit, parent_commit=base, sandbox=str(mutation.get("sandbox") or ""))
    bundles.write_metadata(run, Metadata(recorded_at=now(), run=identity, runtime=runtime))
    result = Result(
        status="failed",
        recorded_at=now(),
        commit=commit,
        parent_commit=base,
        title=title,
        outcome=f"{kind}: {error.problem}",
        failure_kind=kind,
        failure_detail=error.problem,
        metric_name=objective.metric,
        direction=objective.direction,
        evidence={"mutation": dict(mutation)},
    )
    bundles.write_result(run, result)
    return RefusedError(plan.experiment_id, error)
