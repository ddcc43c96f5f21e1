"""Whether a fleet and a hub mean the same: the same task, and the same data under one profile."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from autohypothesis.engine import guard
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.project import Project, reference_ref
from autohypothesis.engine.task import task_hash
from autohypothesis.errors import HubError, LaunchError
from autohypothesis.fleet.hub_sync.outgoing import SharedHistory
from autohypothesis.hub.client.refusals import NotThereError, TakenError
from autohypothesis.hub.client.typed import TypedHub


@dataclass(frozen=True, slots=True)
class Terms:
    """What a project searches, as a hub compares it."""

    task_hash: str
    name: str
    metric: str
    direction: str
    min_delta: float
    profile: str = ""
    data_hash: str = ""
    """Empty where a task has no data of its own, or has none prepared yet."""


def terms_of(project: Project) -> Terms:
    """Those of the active search, else of HEAD. Data that is not prepared is left out."""
    repository, task = project.repository, project.task
    blobs = guard.protected_blobs(task, repository.entries(_start(project)))
    try:
        inputs = locate_inputs(task, project.layout.root, project.layout.root, os.environ)
    except LaunchError:
        inputs = Inputs()
    return Terms(
        task_hash=task_hash(task, blobs),
        name=task.id,
        metric=task.objective.metric,
        direction=task.objective.direction,
        min_delta=task.objective.min_delta,
        profile=inputs.profile,
        data_hash=inputs.data_hash,
    )


def refuse_other_terms(hub: TypedHub, terms: Terms) -> None:
    """For who joins: that what the hub has is no other task of this name, and no other data.

    A hub without typed routes compares nothing.

    Raises:
        HubError: naming what differs.
    """
    try:
        known = hub.tasks()
    except NotThereError:
        return
    for task in known:
        if task.name != terms.name:
            continue
        if task.task_hash != terms.task_hash:
            raise _differs(hub, f"task {terms.name!r}", task.task_hash, terms.task_hash)
        there = task.data.get(terms.profile)
        if terms.data_hash and there and there != terms.data_hash:
            what = f"profile {terms.profile!r} of task {terms.name!r}: its data"
            raise _differs(hub, what, there, terms.data_hash)


def agree(hub: TypedHub, project: Project) -> Terms | None:
    """Tell the hub what is searched here; None where it has no typed routes.

    Raises:
        HubError: it knows a task of this name with other files, terms or data.
    """
    terms = terms_of(project)
    try:
        hub.register_task(
            **asdict(terms), baseline=SharedHistory(project).baseline(_start(project))
        )
    except NotThereError:
        return None
    except TakenError as error:
        raise HubError(
            error.problem,
            hint="results of other tasks or data cannot be compared: use the hub's, or give the"
            " task another id",
        ) from None
    return terms


def _start(project: Project) -> str:
    """Where the search stands, or would begin."""
    begun = project.repository.read_ref(reference_ref(project.tag)) if project.tag else None
    return begun or project.repository.head()


def _differs(hub: TypedHub, what: str, theirs: str, ours: str) -> HubError:
    return HubError(
        f"{what} is {theirs[:12]} on {hub.server}, and {ours[:12]} here",
        hint="the files that the task protects and the prepared data have to be the same; or give"
        " the task another id",
    )
