"""One iteration from end to end: a change in, a collected bundle out.

Nothing here decides; `settle` does. run-experiment, the demo and every loop go through `run`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count

from autohypothesis.engine import recovery
from autohypothesis.engine.candidate import prepare
from autohypothesis.engine.executor import Executor, Resources, RunSpec
from autohypothesis.engine.experiment import FIRST_SEED, Change, Experiment, Outcome, plan_page
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.mutator import Mutator, record_refusal
from autohypothesis.engine.project import Project
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import AutohypothesisError, ChangeError, LockError
from autohypothesis.records import ids, locks
from autohypothesis.records.files import require_writable
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.outputs import worktree_obstacle

POLL_S = 0.2
"""Between two looks at a running experiment: a look takes time from what is measured."""
NOTICE_S = 1.0
"""Between two looks whether a running experiment stands still."""


class ProgressListener:
    """Is told of a run while it lasts; this one ignores it."""

    def preparing(self, title: str) -> None: ...

    def tick(self, project: Project, experiment_id: str) -> None:
        """Called about every `POLL_S` seconds while it runs."""

    def stalled(self, text: str) -> None:
        """Called when the run stands still, with what a person can do about that."""

    def ended(self) -> None: ...


def run(
    project: Project,
    experiment: Experiment,
    *,
    watch: ProgressListener | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Prepare `experiment` on the reference, execute it, and collect its bundle.

    Ctrl-C cancels the training and collects what there is before it goes on.

    Raises:
        ChangeError, PreflightError: the change is refused; nothing was run.
        LeaseError: every device is held.
        UnwritableError: the run could not be recorded; nothing was begun.
    """
    layout = project.layout
    require_writable(layout.research, layout.plans, layout.runs, layout.locks)
    watch = watch or ProgressListener()
    executor = executor or LocalExecutor(project.repository, project.layout)
    recovery.collect_ended(project.repository, project.layout)
    with free_worker(project) as worker:
        try:
            watch.preparing(experiment.title)
            spec = plan(project, experiment, worker, executor)
            return execute(project, executor, [spec], watch)[0]
        finally:
            watch.ended()


def execute(
    project: Project,
    executor: Executor,
    specs: Sequence[RunSpec],
    watch: ProgressListener | None = None,
) -> list[Outcome]:
    """Run candidates side by side, each on a device of its own, and collect them in their order.

    Whatever ends this early ends the runs too, and leaves their records.

    Raises:
        LeaseError: there are fewer devices free than candidates.
    """
    names = [spec.experiment_id for spec in specs]
    try:
        for spec in specs:
            executor.submit(spec)
        for name in names:
            follow(project, executor, name, watch)
    except BaseException:
        for name in names:
            _call_off(project, executor, name)
        raise
    return [Outcome(name, executor.collect(name)) for name in names]


def _call_off(project: Project, executor: Executor, experiment_id: str) -> None:
    if not project.layout.run(experiment_id).run_spec.exists():
        forget(project, experiment_id)
        return
    with suppress(AutohypothesisError):
        executor.cancel(experiment_id)
        follow(project, executor, experiment_id)
        executor.collect(experiment_id)


def forget(project: Project, experiment_id: str) -> None:
    """Take back the plan of an experiment that was never begun; its id stays taken."""
    shutil.rmtree(project.layout.run(experiment_id).folder, ignore_errors=True)
    project.layout.plan_page(experiment_id).unlink(missing_ok=True)
    project.layout.plan(experiment_id).unlink(missing_ok=True)


def follow(
    project: Project,
    executor: Executor,
    experiment_id: str,
    watch: ProgressListener | None = None,
) -> None:
    """Wait until an experiment has ended."""
    watch = watch or ProgressListener()
    look_at, is_stalled = 0.0, False
    while executor.poll(experiment_id) == "running":
        watch.tick(project, experiment_id)
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + NOTICE_S
            stall = executor.stall(experiment_id)
            if stall and not is_stalled:
                watch.stalled(f"{experiment_id}: {stall}")
            is_stalled = bool(stall)
        executor.wait(experiment_id, POLL_S)


def plan(
    project: Project,
    experiment: Experiment,
    worker: str,
    executor: Executor | None = None,
    *,
    workspace: str | None = None,
    resources: Resources | None = None,
    record_refused: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> RunSpec:
    """Prepare `experiment` under an id of its own, ready to submit.

    A refused change leaves no plan; what it wanted stays in git under `refs/experiments/<id>`.
    With an executor that can tell, nothing is prepared while no device is free.

    Args:
        workspace: the worktree to prepare in; default: the worker's own, which then must be free.
        resources: what to run on; default: what the task says, else whichever is free.
        record_refused: leave a bundle of a refused change, to be decided like any other.
        cancelled: whether a program that makes the change is to be ended, and all forgotten.

    Raises:
        ChangeError, PreflightError: the change is refused (`RecordedRefusalError`: on record).
        LeaseError: every device is held.
    """
    base = _base(project, experiment)
    side = Workspace(project.repository, workspace or worker, fleet=project.active())
    inputs = _inputs(project, side, base)
    if executor is not None:
        executor.check_device_free(project.task, inputs)
    experiment = _planned(project, experiment, worker, base)
    experiment_id = experiment.experiment_id
    has_program = project.task.mutator.command is not None
    is_asked = has_program and experiment.change.instructions is not None
    mutator = Mutator(project, experiment, cancelled) if is_asked else None
    try:
        spec = prepare(
            project.repository, project.task, experiment,
            workspace=side, inputs=inputs, implement=mutator.implement if mutator else None,
        )  # fmt: skip
        if mutator:
            mutator.refuse_duplicate(spec.diff_hash)
    except BaseException as error:
        if (
            record_refused
            and isinstance(error, AutohypothesisError)
            and (refused := record_refusal(project, experiment, error, mutator))
        ):
            raise refused from error
        forget(project, experiment_id)
        raise
    resources = resources or Resources()
    if resources.kind is None:
        resources = resources.model_copy(update={"kind": project.task.run.device})
    mutation = mutator.made if mutator else None
    return spec.model_copy(update={"resources": resources, "mutation": mutation})


def _base(project: Project, experiment: Experiment) -> str:
    """The reference; for a repeat the commit that it repeats, wherever the reference is by now."""
    if experiment.replicates is not None and experiment.change.kind == "none":
        repeated = project.repository.read_ref(experiment_ref(experiment.replicates))
        if repeated is not None:
            return repeated
        if not project.layout.plan(experiment.replicates).exists():
            raise ChangeError(
                f"there is no experiment {experiment.replicates!r} to repeat",
                hint="run `python orchestrator.py runs` for the ids there are",
            )
    return project.reference()


def _planned(project: Project, experiment: Experiment, worker: str, base: str) -> Experiment:
    """`experiment` with its ids, a title and a seed; its plan is written."""
    layout, tag = project.layout, project.active()
    hypothesis_id = experiment.hypothesis_id
    if not hypothesis_id and experiment.is_baseline:
        hypothesis_id = ids.baseline_id(tag)
    elif not hypothesis_id:
        hypothesis_id = ids.allocate_hypothesis(layout, tag)
    planned = replace(
        experiment,
        hypothesis_id=hypothesis_id,
        title=experiment.title or _title(experiment.change),
        seed=FIRST_SEED if experiment.seed is None else experiment.seed,
        tag=tag,
        worker_id=worker,
        base=base,
    )
    experiment_id = ids.allocate_experiment(
        layout,
        hypothesis_id,
        project.repository.experiments_before,
        plan=lambda given: replace(planned, experiment_id=given).plan(),
        page=lambda given: plan_page(replace(planned, experiment_id=given).plan()),
    )
    return replace(planned, experiment_id=experiment_id)


def _title(change: Change) -> str:
    """The title of a change that was given none; what makes the change may still say one."""
    if change.overrides is not None:
        return ", ".join(f"{name.upper()} = {value}" for name, value in change.overrides.items())
    words = {
        "none": "baseline",
        "tree": "the working tree",
        "patch": "a patch",
        "commit": f"the artifacts of {(change.commit or '')[:7]}",
    }
    first_line = (change.instructions or "").strip().splitlines()[:1]
    return words.get(change.kind) or "".join(first_line)[:100]


def _inputs(project: Project, workspace: Workspace, base: str) -> Inputs:
    if not project.task.inputs:
        return Inputs()
    checkout = workspace.export.checkout(base, project.task).path
    return locate_inputs(project.task, checkout, project.repository.root, os.environ)


@contextmanager
def free_worker(project: Project) -> Iterator[str]:
    """The name of a worker whose worktree is free: `solo-0`, `solo-1` and so on.

    The lock is this process's; a run that outlived its starter still uses its worktree. Only who
    has the lock can tell, since its last holder may have started one until then.
    """
    for number in count():
        name = f"solo-{number}"
        places = (project.layout.worktree(name), project.layout.worktree(f"{name}-next"))
        if any(worktree_obstacle(project.repository, path) for path in places):
            continue
        with ExitStack() as stack:
            try:
                stack.enter_context(
                    locks.hold(project.layout, f"worktree-{name}", doing="an experiment", timeout=0)
                )
            except LockError:
                continue
            if name not in recovery.busy_workers(project.layout):
                yield name
                return
