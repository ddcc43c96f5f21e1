"""Confirm wins: make the runs without which a win is no decision, and decide again.

Which runs are missing is derived from the decisions each time (`decide.NeedsRuns`), so a kill costs
the run that it met at most. The fleet's observer orders the same runs from its workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from autohypothesis.engine import recovery, runner
from autohypothesis.engine.decide import MissingRun, NeedsRuns, settle
from autohypothesis.engine.evidence import read_case
from autohypothesis.engine.experiment import Outcome
from autohypothesis.engine.project import Project, is_running, run_ids
from autohypothesis.engine.runner import ProgressListener
from autohypothesis.errors import AutohypothesisError, SettleError
from autohypothesis.records.files import load
from autohypothesis.schema import Decision, Metadata

POLL_S = 1.0
"""Between two looks while another process makes the runs that are missing."""
MOST_IN_VAIN = 6
"""How often in a row runs may tell nothing about a win, before a person has to look."""


def confirm(
    project: Project,
    experiment_id: str,
    *,
    decided_by: str,
    watch: Callable[[], ProgressListener] = ProgressListener,
    ran: Callable[[MissingRun, Outcome, NeedsRuns], None] = lambda run, finished, win: None,
) -> list[Decision]:
    """Decide an experiment; a win is run again first, as often as its task wants it.

    Returns the decisions that were taken, the experiment's own last; none when it was decided
    already. The runs are made one after another.

    Args:
        watch: makes a listener for each run.
        ran: is told of each run that was made for this.

    Raises:
        SettleError: it cannot be decided; or a run was made on another platform and says nothing.
        ChangeError, PreflightError, LeaseError: a run cannot be made.
    """
    decisions: list[Decision] = []

    def decide() -> list[NeedsRuns]:
        settlement = settle(project, [experiment_id], decided_by=decided_by)
        if settlement.refused:
            raise settlement.refused[0].error
        decisions.extend(settlement.decisions)
        return settlement.needs_runs

    def make(own: Project, win: NeedsRuns, runs: Sequence[MissingRun]) -> None:
        for run in runs:
            made = runner.run(own, run.experiment, watch=watch())
            ran(run, made, win)
            _check_platform(project, win, run, made)

    make_missing_runs(project, decide(), decide, make)
    return decisions


def make_missing_runs(
    project: Project,
    wins: Sequence[NeedsRuns],
    decide: Callable[[], Sequence[NeedsRuns]],
    make: Callable[[Project, NeedsRuns, Sequence[MissingRun]], None],
    *,
    at_once: int = 1,
    is_over: Callable[[], bool] = lambda: False,
    wait: bool = True,
) -> None:
    """Make what `wins` need, the first win first, until all are decided.

    Args:
        decide: decides what has ended, and returns the wins that still need runs.
        make: makes runs of a win, `at_once` at most, in the project with that win's own task.
        is_over: whether to end before all are decided.
        wait: while another process makes what is missing; otherwise this ends.

    Raises:
        SettleError: run after run tells nothing about a win.
    """
    in_vain = 0
    while wins and not is_over():
        win = wins[0]
        runs = _not_under_way(project, win)
        if runs:
            own = replace(project, task=read_case(project, win.experiment_id).task)
            make(own, win, runs[:at_once])
        elif wait:
            time.sleep(POLL_S)
            recovery.collect_ended(project.repository, project.layout)
        else:
            return
        wins = decide()
        unchanged = wins and wins[0].experiment_id == win.experiment_id
        unchanged = unchanged and len(wins[0].runs) == len(win.runs)
        in_vain = in_vain + 1 if runs and unchanged else 0
        if in_vain >= MOST_IN_VAIN:
            raise SettleError(
                f"{win.experiment_id} was run again {in_vain} times, which said nothing about it",
                hint=f"decide it by hand: python orchestrator.py decide {win.experiment_id}"
                " discard",
            )


def _not_under_way(project: Project, win: NeedsRuns) -> list[MissingRun]:
    """Return the missing runs that no process, of a fleet beside this one say, makes now."""
    running = set()
    for name in run_ids(project.layout):
        run = project.layout.run(name)
        if run.result.exists() or not run.metadata.exists():
            continue
        with suppress(AutohypothesisError):
            metadata = load(Metadata, run.metadata)
            if metadata.run.replicates and is_running(project.layout, name):
                running.add((metadata.runtime.commit, metadata.run.seed))
    return [run for run in win.runs if (run.commit, run.experiment.seed) not in running]


def _check_platform(project: Project, win: NeedsRuns, run: MissingRun, made: Outcome) -> None:
    """Refuse a run that is no pair of anything: it would be made again and again."""
    metadata = load(Metadata, project.layout.run(made.experiment_id).metadata)
    key, name = metadata.runtime.platform_key, win.experiment_id
    if key and (key, made.result.commit) != (run.platform_key, run.commit):
        raise SettleError(
            f"{made.experiment_id} ran on another platform than {name}, and says nothing"
            " about it: another device, data or budget",
            hint=f"decide it by hand: python orchestrator.py decide {name} keep, or discard",
        )
