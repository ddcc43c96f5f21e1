"""What was running when somebody was killed: found by liveness, collected once."""

from __future__ import annotations

from collections.abc import Iterator

from autohypothesis import system
from autohypothesis.engine import guard, overdue, shim
from autohypothesis.engine.collect import LOCAL_LIMIT, collect
from autohypothesis.engine.executor import RunSpec
from autohypothesis.errors import RECOVERABLE_ERRORS, LaunchError, RecordError
from autohypothesis.records.files import load, read_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import ID, Layout, RunPaths


def uncollected(layout: Layout) -> Iterator[str]:
    """Yield the experiments that `is_to_be_collected` holds for."""
    if not layout.runs.is_dir():
        return
    for folder in sorted(layout.runs.iterdir()):
        if ID.fullmatch(folder.name) and is_to_be_collected(layout.run(folder.name)):
            yield folder.name


def is_to_be_collected(run: RunPaths) -> bool:
    """Return whether a run that was begun has no result, or one that may be its own.

    `collect` deletes the homes of a run last: a result beside them was written by the run, or by
    a process that was killed before it had cleaned up.
    """
    homes = (run.scoring_home, run.home)
    return run.run_spec.exists() and (
        not run.result.exists() or any(home.exists() for home in homes)
    )


def is_over(run: RunPaths) -> bool:
    """Whether nobody works on a run any more: no shim lives, and nobody is about to start one.

    A shim that is past all its limits is ended.
    """
    state = shim.status(str(run.folder))
    if state != "absent":
        return state != "running" or overdue.end(run)
    if _starter_lives(run):
        return False
    # Its starter was killed; a shim that it may have begun finds the folder taken and goes.
    return shim.forbid(str(run.folder))


def _starter_lives(run: RunPaths) -> bool:
    try:
        starter = read_json(run.local, LOCAL_LIMIT)["starter"]
        return system.is_alive(int(starter["pid"]), float(starter["start"]))
    except (FileNotFoundError, RecordError, KeyError, TypeError, ValueError, OverflowError):
        return False


def is_readable(run: RunPaths) -> bool:
    """Whether a result can be made of a run that has ended: else no waiting helps."""
    try:
        load(RunSpec, run.run_spec)
        local = read_json(run.local, LOCAL_LIMIT)
        guard.Before.model_validate(local["before"])
        return bool(local["checkout"])
    except (FileNotFoundError, RecordError, ValueError, KeyError, TypeError):
        return False


def busy_workers(layout: Layout) -> set[str]:
    """Workers whose worktree is needed: by a run that lives, or to judge one that has ended.

    The evidence of an ended run lies in its worktree until it is collected. One that can never be
    collected, since its record is damaged, keeps nobody waiting.
    """
    busy = set()
    for experiment_id in uncollected(layout):
        run = layout.run(experiment_id)
        try:
            worker = load(RunSpec, run.run_spec).worker_id
        except (FileNotFoundError, RecordError):
            continue
        if _may_live(run) or is_readable(run):
            busy.add(worker)
    return busy


def _may_live(run: RunPaths) -> bool:
    """Whether a shim lives, as far as that can be told from this machine."""
    try:
        return shim.status(str(run.folder)) == "running"
    except LaunchError:
        return True


def collect_ended(repository: Repository, layout: Layout) -> list[str]:
    """Collect every experiment that ended without anybody there; their ids.

    One that cannot be collected (its folder is damaged, or read-only) stays for the fold to name.
    """
    collected = []
    for experiment_id in uncollected(layout):
        try:
            if is_over(layout.run(experiment_id)):
                collect(repository, layout, experiment_id)
                collected.append(experiment_id)
        except RECOVERABLE_ERRORS:
            continue
    return collected
