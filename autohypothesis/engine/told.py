"""What a task's mutator is told: the objective, the reference, and what was tried lately."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autohypothesis.engine.past import Settled
from autohypothesis.engine.project import Project
from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_bytes, read_object
from autohypothesis.schema import Decision

MAX_TRIALS = 20
MAX_DIFF = 8_000
"""Bytes of one diff: a program may be a language model, whose context is bounded."""


def told(
    project: Project, past: Settled, experiment_id: str, base: str, seed: int
) -> dict[str, Any]:
    """The document for one run of the mutator, see docs/tasks.md; `instructions` come with it."""
    objective = project.task.objective
    measured = _measured(past, base)
    return {
        "task_id": project.task.id,
        "iteration_id": experiment_id,
        "seed": seed,
        "artifacts": project.task.artifacts_in(project.repository.entries(base)),
        "objective": {
            "metric": objective.metric,
            "direction": objective.direction,
            "min_delta": objective.min_delta,
        },
        "reference": {
            "commit": base,
            "score": measured.metric_value if measured else None,
            "metrics": _metrics(project, measured) if measured else {},
        },
        "trials": list(_trials(project, past)),
    }


def tried_before(past: Settled, base: str, diff_hash: str) -> Decision | None:
    """The decision about the same change of the same base; one that is to be run again is none.

    What was measured by another task, or on another platform than the base was last, says nothing.
    """
    measured = _measured(past, base)
    keys = ("", measured.platform_key if measured is not None else "")
    for one in past.decisions:
        same = one.base_commit == base and one.diff_hash == diff_hash
        if (
            same
            and one.platform_key in keys
            and not one.requeue
            and one.decision_status != "replicate"
        ):
            return one
    return None


def _measured(past: Settled, commit: str) -> Decision | None:
    """The latest decision that says what a commit is worth."""
    return next(
        (
            one
            for one in reversed(past.decisions)
            if one.commit == commit and one.decision_status == "keep"
        ),
        None,
    )


def _metrics(project: Project, measured: Decision) -> dict[str, Any]:
    metrics = read_object(project.layout.run(measured.experiment_id).result).get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    decided = {measured.metric_name: measured.metric_value} if measured.metric_name else {}
    return {k: v for k, v in {**metrics, **decided}.items() if v is not None}


def _trials(project: Project, past: Settled) -> Iterator[dict[str, Any]]:
    for one in [one for one in past.decisions if one.base_commit is not None][-MAX_TRIALS:]:
        run = project.layout.run(one.experiment_id)
        title = str(read_object(run.result).get("title") or "")
        try:
            diff = read_bytes(run.diff, 64 << 20)[:MAX_DIFF].decode("utf-8", "replace")
        except (FileNotFoundError, RecordError):
            diff = ""
        yield {
            "experiment_id": one.experiment_id,
            "status": one.decision_status,
            "score": one.metric_value,
            "reason": one.reason,
            "description": title,
            "diff": diff,
        }
