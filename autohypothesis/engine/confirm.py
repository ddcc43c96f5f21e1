"""Deciding one experiment to its end: the runs that confirm a win are made where they are missing.

Every front end that runs experiments one after another goes through `confirm`; the fleet's observer
orders the same runs from its workers. Nothing is kept in memory that a successor could not derive
from decisions and run folders, so a kill costs the run that it met at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from autohypothesis.engine import iteration, recovery
from autohypothesis.engine.change import Change
from autohypothesis.engine.confirmation import Repeat, UnconfirmedError
from autohypothesis.engine.evidence import finished, read_model
from autohypothesis.engine.executor import Executor
from autohypothesis.engine.iteration import Finished, Request, Unwatched, Watch
from autohypothesis.engine.project import Project, is_running, run_ids
from autohypothesis.engine.settle import settle, waits_for
from autohypothesis.errors import AutohypothesisError, SettleError
from autohypothesis.schema import Decision, Metadata

POLL_S = 1.0
"""Between two looks while somebody else makes the runs that are missing."""

Ran = Callable[[Repeat, Finished, UnconfirmedError], None]


def confirm(
    project: Project,
    experiment_id: str,
    *,
    decided_by: str,
    watch: Callable[[], Watch] = Unwatched,
    executor: Executor | None = None,
    ran: Ran = lambda repeat, finished, awaits: None,
) -> list[Decision]:
    """Decide an experiment; a win is run again first, as often as its task wants it.

    Returns the decisions that were taken, the experiment's own last; none when it was decided
    already. The runs are made one after another, with the task that the experiment was made with.

    Args:
        watch: makes a watch for each run.
        ran: is told of each run that was made for this.

    Raises:
        SettleError: it cannot be decided; or a run was made on another platform and says nothing.
        ChangeError, PreflightError, LeaseError: a run cannot be made.
    """
    own = replace(project, task=finished(project, experiment_id).task)
    decisions: list[Decision] = []
    while True:
        try:
            return [*decisions, *settle(project, [experiment_id], decided_by=decided_by)]
        except UnconfirmedError as waits:
            awaits = waits
        repeat = next(_not_under_way(project, awaits), None)
        if repeat is None:
            time.sleep(POLL_S)
            recovery.collect_ended(project.repository, project.layout)
            continue
        made = iteration.run(own, request_of(repeat), watch=watch(), executor=executor)
        ran(repeat, made, awaits)
        _check(project, experiment_id, repeat, made)
        decisions += settle(project, [made.experiment_id], decided_by=decided_by)


def missing(project: Project, experiment_id: str) -> list[Request]:
    """What is to be run before an experiment can be decided, for who runs several at a time.

    Nothing is decided or run here. What runs now is left out; what has ended counts once it is
    decided. Empty when nothing is missing.

    Raises:
        SettleError: it cannot be decided, whatever is run.
    """
    awaits = waits_for(project, experiment_id)
    return [] if awaits is None else [request_of(one) for one in _not_under_way(project, awaits)]


def request_of(repeat: Repeat) -> Request:
    """A missing run, as `iteration` takes it."""
    return Request(
        Change.none(),
        title=repeat.title,
        rationale=repeat.rationale,
        hypothesis_id=repeat.hypothesis_id,
        seed=repeat.seed,
        replicates=repeat.first,
    )


def _not_under_way(project: Project, awaits: UnconfirmedError) -> Iterator[Repeat]:
    """Missing runs that nobody, a fleet beside this process say, makes at this moment."""
    running = set(_running(project)) if awaits.repeats else set()
    for repeat in awaits.repeats:
        if (repeat.commit, repeat.seed) not in running:
            yield repeat


def _running(project: Project) -> Iterator[tuple[str, int | None]]:
    for name in run_ids(project.layout):
        run = project.layout.run(name)
        if run.result.exists() or not run.metadata.exists():
            continue
        with suppress(AutohypothesisError):
            metadata = read_model(Metadata, run.metadata)
            if metadata.run.replicates and is_running(project.layout, name):
                yield metadata.runtime.commit, metadata.run.seed


def _check(project: Project, experiment_id: str, repeat: Repeat, made: Finished) -> None:
    """A run that is no pair of anything would be made again and again."""
    metadata = read_model(Metadata, project.layout.run(made.experiment_id).metadata)
    key, commit = metadata.runtime.platform_key, made.result.commit
    if key and (key, commit) != (repeat.platform_key, repeat.commit):
        raise SettleError(
            f"{made.experiment_id} ran on another platform than {experiment_id}, and says nothing"
            " about it: another device, data or budget",
            hint=f"decide it by hand: python orchestrator.py decide {experiment_id} keep, "
            "or discard",
        )
