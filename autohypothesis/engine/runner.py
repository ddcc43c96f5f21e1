"""One iteration from end to end: a change in, a collected bundle out.

Nothing here decides; `settle` does. run-experiment, the demo and every loop go through `run`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from typing import Protocol

from autohypothesis.engine import recovery
from autohypothesis.engine.candidate import Candidate, prepare
from autohypothesis.engine.change import Change
from autohypothesis.engine.executor import (
    Executor,
    Handle,
    Notices,
    Offers,
    Resources,
    RunSpec,
    Waits,
)
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.mutator import Mutator, record_refusal, told, tried_before
from autohypothesis.engine.pages import plan_page
from autohypothesis.engine.past import Settled
from autohypothesis.engine.project import Project, node_id
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import AutohypothesisError, ChangeError, LockError, NothingNewError
from autohypothesis.records import ids, locks
from autohypothesis.records.files import require_writable
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.outputs import is_strangers_worktree
from autohypothesis.schema import Plan, PlannedHypothesis, Prediction, Result, now

FIRST_SEED = 42
"""Every first run of a hypothesis has this seed, so that it meets the reference's equal. What is
run again to confirm it has the seeds that follow, see `further_seed`."""
ANY_DEVICE = Resources()
POLL_S = 0.2
"""Between two looks at a running experiment: whoever looks runs beside what is measured."""

NOTICE_S = 1.0
"""Between two looks whether a running experiment stands still."""


def further_seed(first: int | None, number: int) -> int:
    """The seed of the `number`-th run again, from 1: the same for a change and for its base."""
    return (FIRST_SEED if first is None else first) + number


@dataclass(frozen=True, slots=True)
class Request:
    """What to run. Without a hypothesis id the change is a person's, and is given one."""

    change: Change
    title: str = ""
    rationale: str = ""
    hypothesis_id: str | None = None
    seed: int | None = None
    replicates: str | None = None
    prediction: Prediction | None = None
    mutation_seed: int | None = None
    """For the program that makes the change; None: the experiment's id decides it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A collected experiment."""

    experiment_id: str
    result: Result


class Watch(Protocol):
    """Whoever wants to see a run while it lasts."""

    def preparing(self, title: str) -> None: ...

    def tick(self, project: Project, experiment_id: str) -> None:
        """Called about every `POLL_S` seconds while it runs."""

    def notice(self, text: str) -> None:
        """Called when the run stands still, with what a person can do about that."""

    def ended(self) -> None: ...


class Unwatched:
    """Nobody looks."""

    def preparing(self, title: str) -> None: ...

    def tick(self, project: Project, experiment_id: str) -> None: ...

    def notice(self, text: str) -> None: ...

    def ended(self) -> None: ...


def run(
    project: Project,
    request: Request,
    *,
    watch: Watch | None = None,
    executor: Executor | None = None,
) -> Finished:
    """Prepare `request` on the reference, execute it, and collect its bundle.

    Ctrl-C cancels the training and collects what there is before it goes on.

    Raises:
        ChangeError, PreflightError: the change is refused; nothing was run.
        LeaseError: every device is held.
        UnwritableError: the run could not be recorded; nothing was begun.
    """
    layout = project.layout
    require_writable(layout.research, layout.plans, layout.runs, layout.locks)
    watch = watch or Unwatched()
    executor = executor or LocalExecutor(project.repository, project.layout)
    recovery.collect_ended(project.repository, project.layout)
    with free_worker(project) as worker:
        try:
            watch.preparing(request.title)
            spec = plan(project, request, worker, executor)
            return execute(project, executor, [spec], watch)[0]
        finally:
            watch.ended()


def execute(
    project: Project, executor: Executor, specs: Sequence[RunSpec], watch: Watch | None = None
) -> list[Finished]:
    """Run candidates side by side, each on a device of its own, and collect them in their order.

    Whatever ends this early ends the runs too, and leaves their records.

    Raises:
        LeaseError: there are fewer devices free than candidates.
    """
    handles = [Handle(spec.experiment_id) for spec in specs]
    try:
        for spec in specs:
            executor.submit(spec)
        for handle in handles:
            follow(project, executor, handle, watch)
    except BaseException:
        for handle in handles:
            _call_off(project, executor, handle)
        raise
    return [Finished(handle.experiment_id, executor.collect(handle)) for handle in handles]


def _call_off(project: Project, executor: Executor, handle: Handle) -> None:
    if not project.layout.run(handle.experiment_id).run_spec.exists():
        forget(project, handle.experiment_id)
        return
    with suppress(AutohypothesisError):
        executor.cancel(handle)
        follow(project, executor, handle)
        executor.collect(handle)


def forget(project: Project, experiment_id: str) -> None:
    """Take back the plan of an experiment that was never begun; its id stays taken."""
    shutil.rmtree(project.layout.run(experiment_id).folder, ignore_errors=True)
    project.layout.plan_page(experiment_id).unlink(missing_ok=True)
    project.layout.plan(experiment_id).unlink(missing_ok=True)


def follow(
    project: Project, executor: Executor, handle: Handle, watch: Watch | None = None
) -> None:
    """Wait until an experiment has ended."""
    watch = watch or Unwatched()
    wait: Callable[[Handle, float], None] = (
        executor.wait if isinstance(executor, Waits) else lambda _, timeout: time.sleep(timeout)
    )
    look_at, said = 0.0, False
    while executor.poll(handle) == "running":
        watch.tick(project, handle.experiment_id)
        if isinstance(executor, Notices) and time.monotonic() >= look_at:
            look_at = time.monotonic() + NOTICE_S
            text = executor.notice(handle)
            if text and not said:
                watch.notice(f"{handle.experiment_id}: {text}")
            said = bool(text)
        wait(handle, POLL_S)


def plan(
    project: Project,
    request: Request,
    worker: str,
    executor: Executor | None = None,
    *,
    workspace: str | None = None,
    resources: Resources = ANY_DEVICE,
    record_refused: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> RunSpec:
    """The candidate of `request` under an id of its own, ready to submit.

    A refused change leaves no plan; what it wanted stays in git under `refs/experiments/<id>`.
    With an executor that can tell, nothing is prepared while no device is free.

    Args:
        workspace: the worktree to prepare in; default: the worker's own, which then must be free.
        resources: what to run on, where it is not to be whichever is free.
        record_refused: leave a bundle of a refused change, to be decided like any other.
        cancelled: whether a program that makes the change is to be ended, and all forgotten.

    Raises:
        ChangeError, PreflightError: the change is refused; RefusedError when that is recorded.
        LeaseError: every device is held.
    """
    base = _base(project, request)
    side = Workspace.named(project.repository, workspace or worker, fleet=project.active())
    inputs = _inputs(project, side, base)
    if isinstance(executor, Offers):
        executor.offer(project.task, inputs)
    is_baseline = request.change.kind == "none" and request.replicates is None
    request = _complete(project, request, is_baseline)
    experiment_id = ids.allocate_experiment(
        project.layout,
        str(request.hypothesis_id),
        project.repository.experiments_before,
        plan=lambda given: _plan(project, request, worker, base, given),
        page=lambda given: plan_page(_plan(project, request, worker, base, given)),
    )
    mutator = _mutator(project, request, base, experiment_id, cancelled)
    try:
        candidate = _candidate(project, request, side, base, experiment_id, inputs, mutator)
        _refuse_what_was_tried(candidate, mutator)
    except BaseException as error:
        if record_refused and isinstance(error, AutohypothesisError):
            made = mutator.made.to_json() if mutator else {}
            planned = _plan(project, request, worker, base, experiment_id)
            if refused := record_refusal(project, planned, error, made):
                raise refused from error
        forget(project, experiment_id)
        raise
    spec = _spec(project, request, worker, candidate, resources)
    return spec.model_copy(update={"mutation": mutator.made.to_json()}) if mutator else spec


def _base(project: Project, request: Request) -> str:
    """The reference; for a repeat the commit that it repeats, wherever the reference is by now."""
    if request.replicates is not None and request.change.kind == "none":
        repeated = project.repository.read_ref(experiment_ref(request.replicates))
        if repeated is not None:
            return repeated
        if not project.layout.plan(request.replicates).exists():
            raise ChangeError(
                f"there is no experiment {request.replicates!r} to repeat",
                hint="run `python orchestrator.py runs` for the ids there are",
            )
    return project.reference()


def _complete(project: Project, request: Request, is_baseline: bool) -> Request:
    """`request` with an id, a title and a seed."""
    hypothesis_id = request.hypothesis_id
    if hypothesis_id is None and is_baseline and request.replicates is None:
        hypothesis_id = ids.baseline_id(project.active())
    elif hypothesis_id is None:
        hypothesis_id = ids.allocate_hypothesis(project.layout, project.active())
    return replace(
        request,
        hypothesis_id=hypothesis_id,
        title=request.title or _title(request.change),
        seed=FIRST_SEED if request.seed is None else request.seed,
    )


def _title(change: Change) -> str:
    """What a person who said nothing would have said."""
    if change.kind == "overrides":
        return ", ".join(f"{name.upper()} = {value}" for name, value in change.overrides.items())
    # Without instructions the maker of the change says what it is.
    words = {
        "none": "baseline",
        "tree": "the working tree",
        "patch": "a patch",
        "commit": f"the artifacts of {change.commit[:7]}",
    }
    said = change.text.strip().splitlines()[:1]
    return words.get(change.kind) or "".join(said)[:100]


def _inputs(project: Project, workspace: Workspace, base: str) -> Inputs:
    if not project.task.inputs:
        return Inputs()
    checkout = workspace.export.checkout(base, project.task).path
    return locate_inputs(project.task, checkout, project.repository.root, os.environ)


def _candidate(
    project: Project,
    request: Request,
    workspace: Workspace,
    base: str,
    experiment_id: str,
    inputs: Inputs,
    mutator: Mutator | None,
) -> Candidate:
    return prepare(
        project.repository,
        project.task,
        base,
        request.change,
        experiment_id,
        title=request.title,
        rationale=request.rationale,
        hypothesis_id=str(request.hypothesis_id),
        workspace=workspace,
        inputs=inputs,
        implementer=mutator,
    )


def _mutator(
    project: Project, request: Request, base: str, experiment_id: str, cancelled: Callable[[], bool]
) -> Mutator | None:
    """The task's program, for a change that somebody has to make."""
    if request.change.kind != "instructions" or project.task.mutator.command is None:
        return None
    past = Settled.of_tag(project.layout, project.tag)
    seed = request.mutation_seed
    if seed is None:
        seed = int.from_bytes(sha256(experiment_id.encode()).digest()[:4], "big")
    return Mutator(
        project.repository,
        project.task,
        seed,
        told(project, past, experiment_id, base, seed),
        past,
        cancelled,
    )


def _refuse_what_was_tried(candidate: Candidate, mutator: Mutator | None) -> None:
    """A program forgets; the same change of the same commit is not measured until it is lucky."""
    before = tried_before(mutator.past, candidate.base, candidate.diff_hash) if mutator else None
    if before is not None:
        raise NothingNewError(
            f"the same change was tried as {before.experiment_id}:"
            f" {before.decision_status}, {before.reason}"
        )


def _plan(project: Project, request: Request, worker: str, base: str, experiment_id: str) -> Plan:
    change = request.change
    return Plan(
        experiment_id=experiment_id,
        created_at=now(),
        based_on_commit=base,
        worker_id=worker,
        tag=project.active(),
        seed=request.seed,
        replicates=request.replicates,
        node_id=node_id(),
        hypothesis=PlannedHypothesis(
            hypothesis_id=str(request.hypothesis_id),
            title=request.title,
            rationale=request.rationale,
            config_overrides=dict(change.overrides),
            patch=change.text if change.kind == "patch" else None,
            instructions=change.text if change.kind == "instructions" else None,
            artifacts_from=change.commit or None,
            prediction=request.prediction,
        ),
    )


def _spec(
    project: Project, request: Request, worker: str, candidate: Candidate, resources: Resources
) -> RunSpec:
    if resources.kind is None:
        resources = resources.model_copy(update={"kind": project.task.run.device})
    return RunSpec(
        resources=resources,
        experiment_id=candidate.experiment_id,
        task=project.task,
        commit=candidate.commit,
        parent_commit=candidate.parent_commit,
        seed=int(request.seed or 0),
        tag=project.active(),
        hypothesis_id=str(request.hypothesis_id),
        worker_id=worker,
        title=candidate.title,
        rationale=request.rationale,
        replicates=request.replicates,
        config=dict(candidate.config),
        diff=candidate.diff,
        diff_stat=candidate.diff_stat,
        diff_hash=candidate.diff_hash,
        lines_added=candidate.lines_added,
        lines_removed=candidate.lines_removed,
    )


@contextmanager
def free_worker(project: Project) -> Iterator[str]:
    """A worker's name whose worktree nobody uses: `solo-0`, `solo-1` and so on.

    The lock is this process's; a run that outlived its starter still uses its worktree. Only who
    has the lock can tell, since its last holder may have started one until then.
    """
    for number in count():
        name = f"solo-{number}"
        places = (project.layout.worktree(name), project.layout.worktree(f"{name}-next"))
        if any(is_strangers_worktree(project.repository, path) for path in places):
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
