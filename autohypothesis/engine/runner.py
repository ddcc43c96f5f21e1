"""Experiments from end to end: a change in, a collected bundle out, and the runs a win needs.

run-experiment, bootstrap and the runs that confirm a win go through `run`; a worker and the
artifact loop call the steps themselves. A run that a person made by hand becomes a bundle here as
well, from the log that it left.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from autohypothesis.engine.attestation import attest
from autohypothesis.engine.candidate import check_candidate, prepare, settings_of, spec_of
from autohypothesis.engine.collect import busy_workers, collect_ended, result_of
from autohypothesis.engine.decide import NeedsRuns, pairs_of_near_miss, settle
from autohypothesis.engine.duplicates import refuse_duplicate
from autohypothesis.engine.evidence import read_case
from autohypothesis.engine.experiment import (
    FIRST_SEED,
    Change,
    Executor,
    Experiment,
    Outcome,
    Resources,
    RunSpec,
    metadata_of,
    plan_page,
)
from autohypothesis.engine.failures import Failure, classify
from autohypothesis.engine.inputs import Inputs, locate_inputs
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.logs import parse_summary
from autohypothesis.engine.mutator import Mutator, RecordedRefusalError, record_refusal
from autohypothesis.engine.project import Project, is_running, run_ids
from autohypothesis.engine.scoring import TAIL_BYTES, contradiction, value_taken
from autohypothesis.engine.task import BY_HAND
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    LockError,
    SettleError,
    UsageError,
)
from autohypothesis.records import bundles, ids, locks
from autohypothesis.records.files import (
    load,
    load_or_none,
    read_bytes,
    require_writable,
    write_atomic,
)
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.history import DecisionHistory
from autohypothesis.records.layout import ID
from autohypothesis.records.outputs import BY_HAND_WORKER, worktree_obstacle
from autohypothesis.schema import Decision, Metadata, Metrics, Plan, Result
from autohypothesis.system import host_name

POLL_S = 0.2
"""Interval of polling a running experiment: polling takes time from what is measured."""
STALL_CHECK_S = 1.0
"""Interval of checking whether a running experiment has stopped."""
CONFIRM_POLL_S = 1.0
"""Interval of polling while another process makes the runs that confirm a win."""
MAX_RUNS_WITHOUT_PROGRESS = 6
"""Runs in a row that may tell nothing about a win before the user is asked to look."""
LOG_LIMIT = 256 << 20
_SOLO = re.compile(r"solo-\d+")
"""Names that `free_worker` gives."""


class ProgressListener:
    """Receives the progress of a run; the default ignores it."""

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
    resources: Resources | None = None,
) -> Outcome:
    """Prepare `experiment` on the reference, execute it, and collect its bundle.

    Ctrl-C cancels the training and collects what there is before it goes on.

    Args:
        resources: what to run on; default: what the task says, else whichever is free.

    Raises:
        ChangeError, ProgramUnavailableError: the change is refused; nothing was run.
        LeaseError: every device is held.
        UnwritableError: the run could not be recorded; nothing was begun.
    """
    layout = project.layout
    require_writable(layout.research, layout.plans, layout.runs, layout.locks)
    watch = watch or ProgressListener()
    executor = LocalExecutor(project.repository, project.layout)
    collect_ended(project.repository, project.layout)
    forget_unbegun(project)
    with free_worker(project) as worker:
        try:
            watch.preparing(experiment.title)
            spec = plan(project, experiment, worker, executor, resources=resources)
            return execute(project, executor, [spec], watch)[0]
        except RecordedRefusalError as refused:
            name = refused.experiment_id
            return Outcome(name, load(Result, layout.run(name).result))
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
            _cancel_and_collect(project, executor, name)
        raise
    return [Outcome(name, executor.collect(name)) for name in names]


def _cancel_and_collect(project: Project, executor: Executor, experiment_id: str) -> None:
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
    ids.forget_plan(project.layout, experiment_id)


def forget_unbegun(project: Project) -> None:
    """Take back what was planned and never begun, where the process that planned it has gone.

    A worker of a fleet takes back its own.
    """
    layout = project.layout
    names = sorted(filter(ID.fullmatch, set(ids.names_in(layout.plans))))
    unbegun = [name for name in names if not bundles.is_begun(layout.run(name))]
    past = DecisionHistory.of_tag(layout, project.tag) if unbegun else DecisionHistory()
    for name in unbegun:
        plan = load_or_none(Plan, layout.plan(name))
        if plan is None or plan.tag != project.tag or not _SOLO.fullmatch(plan.worker_id):
            continue
        is_gone = not locks.held(layout, f"worktree-{plan.worker_id}")
        # Looked at once more: it may have begun before its process went.
        if is_gone and past.of(name) is None and not bundles.is_begun(layout.run(name)):
            forget(project, name)


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
            look_at = time.monotonic() + STALL_CHECK_S
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
    check: Callable[[RunSpec], None] = lambda spec: None,
) -> RunSpec:
    """Prepare `experiment` under an id of its own, ready to submit.

    A refused change leaves no plan; what it wanted stays in git under `refs/experiments/<id>`.
    With an executor that can tell, nothing is prepared while no device is free.

    Args:
        workspace: the worktree to prepare in; default: the worker's own, which then must be free.
        resources: what to run on; default: what the task says, else whichever is free.
        record_refused: leave a bundle of every refused change, to be decided like any other; else
            only of a candidate that can be seen to fail.
        cancelled: whether a program that makes the change is to be ended, and all forgotten.
        check: raises ChangeError for a candidate that may not run.

    Raises:
        ChangeError, PreflightError: the change is refused (`RecordedRefusalError`: on record, as a
            candidate that does not parse or import always is).
        LeaseError: every device is held.
    """
    resources = resources or Resources()
    if resources.kind is None:
        resources = resources.model_copy(update={"kind": project.task.run.device})
    base = _base(project, experiment)
    side = Workspace(project.repository, workspace or worker, fleet=project.active())
    inputs = Inputs()
    if project.task.inputs:
        checkout = side.export.checkout(base, project.task).path
        inputs = locate_inputs(project.task, checkout, project.repository.root, os.environ)
    if executor is not None:
        executor.check_device_free(resources, inputs)
    tag, hypothesis_id = project.active(), experiment.hypothesis_id
    if not hypothesis_id and experiment.is_baseline:
        hypothesis_id = ids.baseline_id(tag)
    elif not hypothesis_id:
        hypothesis_id = ids.allocate_hypothesis(project.layout, tag)
    seed = experiment.seed
    experiment = replace(
        experiment,
        hypothesis_id=hypothesis_id,
        title=experiment.title or _title(experiment.change),
        seed=FIRST_SEED if seed is None else seed,
        tag=tag,
        worker_id=worker,
        base=base,
    )
    experiment = _planned(project, experiment, page=True)
    mutator = None
    if project.task.mutator.command is not None and experiment.change.instructions is not None:
        mutator = Mutator(project, experiment, cancelled)
    try:
        spec = prepare(
            project.repository, project.task, experiment,
            workspace=side, inputs=inputs, implement=mutator.implement if mutator else None,
            check_tree=partial(refuse_duplicate, project, experiment, seed),
        )  # fmt: skip
        check(spec)
    except BaseException as error:
        if isinstance(error, AutohypothesisError) and (
            refused := record_refusal(project, experiment, error, mutator, every=record_refused)
        ):
            raise refused from error
        forget(project, experiment.experiment_id)
        raise
    mutation = mutator.made if mutator else None
    return spec.model_copy(update={"resources": resources, "mutation": mutation})


def _base(project: Project, experiment: Experiment) -> str:
    """Return the reference; for a repeat the commit that it repeats."""
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


def _planned(project: Project, experiment: Experiment, *, page: bool = False) -> Experiment:
    """Return `experiment` under an id of its own; its plan is written, and its page if wanted."""

    def planned(experiment_id: str) -> Experiment:
        return replace(experiment, experiment_id=experiment_id)

    return planned(
        ids.allocate_experiment(
            project.layout,
            experiment.hypothesis_id,
            project.repository.experiments_before,
            plan=lambda given: planned(given).plan(),
            page=(lambda given: plan_page(planned(given).plan())) if page else None,
        )
    )


def _title(change: Change) -> str:
    """Return the title of a change that was given none; what makes the change may still say one."""
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


@contextmanager
def free_worker(project: Project) -> Iterator[str]:
    """Yield the name of a worker whose worktree is free: `solo-0`, `solo-1` and so on.

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
            if name not in busy_workers(project.layout):
                yield name
                return


# ── runs that confirm a win ──────────────────────────────────────────────────────────────────


def confirm(
    project: Project,
    experiment_id: str,
    *,
    decided_by: str,
    watch: Callable[[], ProgressListener] = ProgressListener,
    ran: Callable[[Experiment, Outcome, NeedsRuns], None] = lambda run, finished, win: None,
    seeds: int = 0,
) -> list[Decision]:
    """Decide an experiment; a win is run again first, as often as its task wants it.

    Returns the decisions that were taken, the experiment's own last; none when it was decided
    already. The runs are made one after another.

    Args:
        watch: makes a listener for each run.
        ran: is told of each run that was made for this.
        seeds: run a near miss at so many more seeds, and decide it again.

    Raises:
        SettleError: it cannot be decided, or is no near miss; or a run was made on another
            platform and says nothing.
        ChangeError, PreflightError, LeaseError: a run cannot be made.
    """
    decisions: list[Decision] = []
    again = {experiment_id: pairs_of_near_miss(project, experiment_id, seeds)} if seeds else {}

    def decide() -> list[NeedsRuns]:
        settlement = settle(project, [experiment_id], decided_by=decided_by, again=again)
        for error in settlement.refused.values():
            raise error
        decisions.extend(settlement.decisions)
        return settlement.needs_runs

    def make(own: Project, win: NeedsRuns, runs: Sequence[Experiment]) -> None:
        for wanted in runs:
            made = run(own, wanted, watch=watch())
            ran(wanted, made, win)
            _check_platform(project, win, wanted, made)

    make_missing_runs(project, decide(), decide, make)
    return decisions


def make_missing_runs(
    project: Project,
    wins: Sequence[NeedsRuns],
    decide: Callable[[], Sequence[NeedsRuns]],
    make: Callable[[Project, NeedsRuns, Sequence[Experiment]], None],
    *,
    at_once: int = 1,
    is_over: Callable[[], bool] = lambda: False,
    wait: bool = True,
) -> None:
    """Make what `wins` need, the first win first, until all are decided.

    Which runs are missing is derived from the decisions each time, so a kill costs the run that it
    met at most. The fleet's observer orders the same runs from its workers.

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
            time.sleep(CONFIRM_POLL_S)
            collect_ended(project.repository, project.layout)
        else:
            return
        wins = decide()
        unchanged = wins and wins[0].experiment_id == win.experiment_id
        unchanged = unchanged and len(wins[0].runs) == len(win.runs)
        in_vain = in_vain + 1 if runs and unchanged else 0
        if in_vain >= MAX_RUNS_WITHOUT_PROGRESS:
            raise SettleError(
                f"{win.experiment_id} was run again {in_vain} times, which said nothing about it",
                hint=f"decide it by hand: python orchestrator.py decide {win.experiment_id}"
                " discard",
            )


def _not_under_way(project: Project, win: NeedsRuns) -> list[Experiment]:
    """Return the missing runs that no process, of a fleet beside this one say, makes now."""
    running = set()
    for name in run_ids(project.layout):
        paths = project.layout.run(name)
        if paths.result.exists():
            continue
        metadata = load_or_none(Metadata, paths.metadata)
        with suppress(AutohypothesisError):
            if metadata and metadata.run.replicates and is_running(project.layout, name):
                running.add((metadata.runtime.commit, metadata.run.seed))
    return [wanted for wanted in win.runs if (wanted.base, wanted.seed) not in running]


def _check_platform(project: Project, win: NeedsRuns, wanted: Experiment, made: Outcome) -> None:
    """Refuse a replicate that cannot be used as a pair: it would be made again and again."""
    metadata = load(Metadata, project.layout.run(made.experiment_id).metadata)
    key, name = metadata.runtime.platform_key, win.experiment_id
    if key and (key, made.result.commit) != (win.platform_key, wanted.base):
        raise SettleError(
            f"{made.experiment_id} ran on another platform or commit than {name}, and says nothing"
            " about it: another device, data or budget, or another base",
            hint=f"decide it by hand: python orchestrator.py decide {name} keep, or discard",
        )


# ── runs by hand ─────────────────────────────────────────────────────────────────────────────


def record_log(project: Project, log: Path, *, commit: str, title: str) -> Outcome:
    """Make a bundle of the run that printed `log`, as a change of `commit` against the reference.

    It is recorded, never attested. Its platform is unknown, so it is compared with other recorded
    runs only.

    Raises:
        UsageError: there is no such log.
        GitError: there is no such commit.
        ChangeError: it is not built on the reference, or changes more than a candidate may.
    """
    if not log.is_file():
        raise UsageError(
            f"there is no log at {log}", hint="make one: python train.py > run.log 2>&1"
        )
    text = read_bytes(log.resolve(), LOG_LIMIT).decode("utf-8", "replace")
    repository, task = project.repository, project.task
    sha, base = repository.resolve(commit), project.reference()
    if sha != base:  # a keep of it would become the reference, so it is held to the same
        if not repository.is_ancestor(base, sha):
            raise ChangeError(
                f"{sha[:12]} is not built on the reference {base[:12]}",
                hint=f"make its change on that one: git rebase {base[:12]}",
            )
        check_candidate(repository, task, sha, repository.changes(base, sha))
    experiment = _planned(
        project,
        Experiment(
            Change(),
            title=title or f"by hand: {repository.subject(sha)}",
            hypothesis_id=ids.allocate_hypothesis(project.layout, project.active()),
            tag=project.active(),
            worker_id=BY_HAND_WORKER,
            base=base,
        ),
    )
    experiment_id = experiment.experiment_id
    repository.compare_and_swap(experiment_ref(experiment_id), sha, None)
    paths = project.layout.run(experiment_id)
    paths.folder.mkdir(parents=True)
    shutil.copyfile(log, paths.log)
    spec = spec_of(repository, task, experiment, sha, settings_of(repository, task, sha))
    write_atomic(paths.diff, spec.diff.encode("utf-8", "surrogateescape"))
    bundles.write_config(paths, spec.config)
    platform = f"{BY_HAND}{host_name()}"
    bundles.write_metadata(paths, metadata_of(spec, platform_key=platform, home="kept"))
    result = result_of_log(spec, text)
    attest(repository, project.layout, paths, result)
    bundles.write_result(paths, result)
    return Outcome(experiment_id, result)


def result_of_log(spec: RunSpec, text: str) -> Result:
    """Return what the log says: completed with one finite metric, else failed as it shows."""
    metric, take = spec.task.objective.metric, spec.task.scorer.parse.take
    summary = parse_summary(text + "\n", metric)
    value = value_taken(spec.task, summary.values)
    if len(summary.values) > 1 and take == "only":
        failure: Failure | None = Failure("invalid", contradiction(metric, summary.values))
    else:
        ended = {"status": "exited", "exit_code": 0 if value is not None else 1}
        failure = classify(ended, text[-TAIL_BYTES:], value, metric_name=metric)
    evidence = {"summaries_seen": summary.blocks}
    metrics = Metrics.model_validate(summary.metrics)
    return result_of(spec, value, failure, text[-TAIL_BYTES:], evidence, metrics)
