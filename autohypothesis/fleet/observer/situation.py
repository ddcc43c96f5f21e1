"""What a proposer is told: made from the project, the queue and every run so far; all copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.steering import narrowed_knobs
from autohypothesis.fleet.observer.tried import Library, Reference, Run
from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.fleet.queue.chronicle import Chronicle, is_lost
from autohypothesis.schema import Brief, Hypothesis, Setting, Steering


def situation(
    project: Project,
    chronicle: Chronicle,
    library: Library,
    reference: Reference,
    *,
    steering: Steering,
    waiting: Sequence[Hypothesis],
    closed: Sequence[Hypothesis],
    brief: Brief,
) -> Situation:
    """How the search stands.

    Args:
        waiting: hypotheses that are not done.
    """
    objective = project.task.objective
    return Situation(
        tag=project.active(),
        metric=objective.metric,
        direction=objective.direction,
        min_delta=objective.min_delta,
        reference=dict(reference.settings or {}),
        sources=dict(reference.sources),
        knobs=narrowed_knobs(project.task.knobs, steering),
        steering=steering.model_copy(deep=True),
        trials=tuple(_trials(project, chronicle, library, reference)),
        open=tuple(one.model_copy(deep=True) for one in waiting),
        closed=tuple(closed),
        brief=brief.model_copy(deep=True),
    )


def _trials(
    project: Project, chronicle: Chronicle, library: Library, reference: Reference
) -> Iterator[Trial]:
    spelled = {name.lower(): name for name in reference.names}
    for run in sorted(library.runs.values(), key=lambda one: (one.begun, one.experiment_id)):
        decision = chronicle.latest.get(run.experiment_id)
        if decision is not None and is_lost(decision):
            continue  # it says nothing, and its hypothesis is in the queue again
        status, value = _outcome(project, chronicle, run)
        yield Trial(
            experiment_id=run.experiment_id,
            hypothesis_id=run.hypothesis_id,
            settings=named(run.settings, spelled),
            value=value,
            status=status,
            seed=run.seed,
            replicates=run.replicates,
        )


def named(settings: Mapping[str, Setting], spelled: Mapping[str, str]) -> dict[str, Setting]:
    """Settings of a config.json by the constants' names."""
    return {spelled.get(key, key.upper()): value for key, value in settings.items()}


def _outcome(project: Project, chronicle: Chronicle, run: Run) -> tuple[str, float | None]:
    """Its decision and its value, where there are any."""
    decision = chronicle.latest.get(run.experiment_id)
    if decision is not None:
        return decision.decision_status, decision.metric_value
    ended = project.layout.run(run.experiment_id).result.exists()
    return "review_pending" if ended else "running", None
