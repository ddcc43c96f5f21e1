"""The loop over a task's artifacts: a round of changes side by side, decided best first.

Where the changes of a round come from is source.py; the published line of each is results.py. The
state is on disk, so a kill costs the round that was on its way, and what ran is collected and
decided by the next loop. What is kept goes to the user's branch as a fast-forward, or is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from autohypothesis.engine import devices, recovery, runner
from autohypothesis.engine.change import Change
from autohypothesis.engine.decide import MissingRun, NeedsRuns, repair, settle
from autohypothesis.engine.executor import Executor, RunSpec
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.guard import protected_blobs
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.mutator import RecordedRefusalError
from autohypothesis.engine.policy import best_first
from autohypothesis.engine.project import Project, reference_ref, refuse_checked_out
from autohypothesis.engine.replication import make_missing_runs
from autohypothesis.engine.runner import ProgressListener
from autohypothesis.engine.task import task_hash
from autohypothesis.errors import GitError, SettleError, UsageError
from autohypothesis.fleet.artifact.results import ResultLines
from autohypothesis.fleet.artifact.source import ChangeSource
from autohypothesis.fleet.live.steering import SteeringFiles, steering_limits
from autohypothesis.fleet.observer.scheduling import StopCriteria
from autohypothesis.fleet.sync import sync
from autohypothesis.records import locks
from autohypothesis.records.files import load_or_none, read_object
from autohypothesis.records.git import Repository
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.schema import Decision, Metadata, Plan, finite

MAX_NAMED = 4
MOST_LOST = 5
"""Rounds in a row that told nothing, each lost to the machine; then a person has to look."""
PAUSE_S = 0.25
"""After a round that was lost; each further one doubles it."""
LONGEST_PAUSE_S = 30.0


def meet_user(project: Project) -> Iterator[str]:
    """Take in what the user has committed on top of the reference; a line for what to know.

    A branch that has gone another way is left alone, and so is the reference.

    Raises:
        FleetError: the reference would move, and its branch is checked out somewhere.
    """
    repository = project.repository
    head = repository.head()
    if changed := [one.path for one in repository.changes(head, repository.snapshot_tree())]:
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        named = ", ".join(changed[:MAX_NAMED])
        yield f"not committed, so no part of this: {named}{more}"
    with locks.hold(project.layout, "settle", doing="following your branch"):
        repair(project)  # a keep whose move a kill has prevented comes first
        reference = project.reference()
        if head == reference:
            return
        if repository.is_ancestor(reference, head):
            refuse_checked_out(repository, project.active())
            repository.compare_and_swap(reference_ref(project.active()), head, reference)
            yield f"the search goes on from your commit {head[:7]}"
            return
    yield (
        f"the search goes on from {reference[:7]}, which your branch is not built on;"
        f" take it home: python orchestrator.py adopt --tag {project.active()}"
    )


def take_home(project: Project, decision: Decision) -> str:
    """Fast-forward the user's branch to what was kept, if it stands where that was made.

    A line that says where the branch is now, or what to run.
    """
    kept, before = str(decision.reference_after), decision.reference_before
    if decision.decision_status != "keep" or kept == before:
        return ""
    repository = project.repository
    head = repository.head()
    if head == kept:
        return ""
    take = f"take it home: python orchestrator.py adopt --tag {decision.tag}"
    if head != before:
        return f"your branch is at {head[:7]}, not at {str(before)[:7]}; {take}"
    try:
        branch = repository.fast_forward(kept)
    except GitError as error:
        return f"{error.problem}; {take}"
    return f"{branch} moved from {head[:7]} to {kept[:7]}"


@dataclass
class TaskLoop:
    """One call of `task run`. The lock `observer` is held for its life: one of them decides.

    Attributes:
        say: takes remarks for a person; `emit` the line of each decided iteration.
        workers: whose worktrees it uses; a round has as many changes as there are.
    """

    project: Project
    source: ChangeSource
    history: LiveHistory
    ending: StopCriteria
    parallel: int = 1
    say: Callable[[str], None] = lambda text: None
    emit: Callable[[dict[str, Any]], None] = lambda line: None
    watch: ProgressListener = field(default_factory=ProgressListener)
    workers: tuple[str, ...] = ()
    decided: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor: Executor = LocalExecutor(self.project.repository, self.project.layout)
        self._lines = ResultLines(self.project)
        self._wins: list[NeedsRuns] = []
        """Wins that wait for runs which confirm them, the best first."""
        self._steering = SteeringFiles(self.project.layout)
        self._said: set[str] = set()
        self._refused = ""
        """Why something could not be decided, the last time."""

    def run(self, iterations: int) -> list[Decision]:
        """Run at most `iterations` (0: until the search is over), the baseline not counted.

        Return what was decided, oldest first.

        Raises:
            LockError: another loop or a fleet decides here.
            SettleError: the baseline has no score, or round after round is lost.
        """
        doing = f"task run {self.project.task.id}"
        with locks.hold(self.project.layout, "observer", doing=doing, timeout=0.0):
            self._collect_what_runs()
            with self._worktrees() as self.workers:
                for remark in meet_user(self.project):
                    self.say(remark)
                self.decide()
                self._confirm()
                self._measure_reference()
                self._rounds(iterations)
        return self.decided

    def _rounds(self, iterations: int) -> None:
        done = lost = 0
        while (not iterations or done < iterations) and not self._is_over():
            room = self._room() if not iterations else min(self._room(), iterations - done)
            requests = self.source.next(room)
            if not requests:
                self.say("nothing is left to try")
                return
            told, again = self._round(requests)
            done += max(0, len(requests) - len(again))
            lost = 0 if told else lost + 1
            if lost >= MOST_LOST:
                why = self.decided[-1].detail if self.decided else self._refused
                raise SettleError(
                    f"{lost} rounds in a row told nothing: {why}",
                    hint="see `python orchestrator.py doctor`; run the task again when that is"
                    " mended: it goes on where it was",
                )
            if again:
                self._pause(max(lost, 1), again[-1])

    def _room(self) -> int:
        """Return how many changes fit into a round now: some devices may be held."""
        if self.parallel == 1:
            return 1
        return max(1, min(self.parallel, devices.count_free(self.project.task.run.device)))

    def _is_over(self) -> bool:
        return self._steering.combined().stop or bool(self.ending.why_over())

    @contextmanager
    def _worktrees(self) -> Iterator[tuple[str, ...]]:
        with ExitStack() as stack:
            yield tuple(
                stack.enter_context(runner.free_worker(self.project)) for _ in range(self.parallel)
            )

    # ── a round ───────────────────────────────────────────────────────────────────────────

    def _round(self, requests: Sequence[Experiment]) -> tuple[int, list[Decision]]:
        """Make the changes, run them side by side, decide.

        Return how many decisions tell anything, and those about lost runs, which come again.
        """
        before = len(self.decided)
        self.execute(self.make(requests))
        self.decide()
        self._confirm()
        lost = [one for one in self.decided[before:] if is_lost(one)]
        return len(self.decided) - before - len(lost), lost

    def make(self, requests: Sequence[Experiment], own: Project | None = None) -> list[RunSpec]:
        """Return the candidates, made side by side; what is refused has a bundle to decide.

        Args:
            own: the project with the task that they are made with; default: today's.
        """
        project, called_off = own or self.project, Event()

        def make(request: Experiment, worker: str, project: Project) -> RunSpec | None:
            with suppress(RecordedRefusalError):
                return runner.plan(
                    project, request, worker, self.executor, workspace=f"{worker}-next",
                    record_refused=True, cancelled=called_off.is_set,
                )  # fmt: skip
            return None

        several = f"{len(requests)} changes" if len(requests) > 1 else "a change"
        self.watch.preparing(requests[0].title or several)
        if len(requests) == 1:  # in this thread, which Ctrl-C reaches
            made = [make(requests[0], self.workers[0], project)]
        else:
            projects = [
                replace(project, repository=Repository(project.layout.root)) for _ in requests
            ]
            with ThreadPoolExecutor(len(requests)) as pool:
                try:
                    made = list(pool.map(make, requests, self.workers, projects))
                except BaseException:
                    called_off.set()
                    raise
        return [spec for spec in made if spec is not None]

    def execute(self, specs: Sequence[RunSpec]) -> None:
        """Run candidates side by side, and collect them."""
        try:
            runner.execute(self.project, self.executor, specs, self.watch)
        finally:
            self.watch.ended()

    def _measure_reference(self) -> None:
        """Run the reference as it stands, unless that was done with this very task."""
        reference = self.project.reference()
        if self._is_measured(reference):
            return
        self.say(f"measuring {reference[:7]}, which every change is compared with")
        for lost in range(1, MOST_LOST + 1):
            before = len(self.decided)
            spec = runner.plan(self.project, Experiment(Change()), self.workers[0], self.executor)
            self.execute([spec])
            self.decide()
            own = [one for one in self.decided[before:] if one.experiment_id == spec.experiment_id]
            if not own or not is_lost(own[0]) or lost == MOST_LOST:
                break
            self._pause(lost, own[0])
        if not own or own[0].metric_value is None:
            why = f"{own[0].reason}: {own[0].detail}" if own else "it is not decided"
            raise SettleError(
                f"the artifacts as they are have no {self.project.task.objective.metric}: {why}",
                hint=f"see `python orchestrator.py show {spec.experiment_id}`",
            )

    def _pause(self, lost: int, decision: Decision) -> None:
        """Say why a run is repeated, and give what failed some time to come back."""
        self.say(f"run again, {lost} of {MOST_LOST - 1}: {decision.detail}")
        time.sleep(min(PAUSE_S * 2**lost, LONGEST_PAUSE_S))

    def _is_measured(self, commit: str) -> bool:
        """Return whether `commit` has a value that runs of today's task compare with."""
        entries = self.project.repository.entries(commit)
        wanted = task_hash(self.project.task, protected_blobs(self.project.task, entries))
        measured = (
            decision.experiment_id
            for decision in self.history.latest.values()
            if decision.commit == commit
            and decision.metric_value is not None
            and decision.decision_status in ("keep", "replicate")
        )
        runs = (load_or_none(Metadata, self.project.layout.run(name).metadata) for name in measured)
        return any(run is not None and run.runtime.task_hash == wanted for run in runs)

    # ── decisions ─────────────────────────────────────────────────────────────────────────

    def decide(self) -> None:
        """Decide all that has ended, the best first; what was kept goes home, then it is said."""
        steering = self._steering.combined()
        settlement = settle(
            self.project,
            decided_by="task run",
            limits=steering_limits(steering),
            order=self._best_first,
        )
        self.history.refresh()
        self.decided += settlement.decisions
        self._wins = settlement.needs_runs
        for win in self._wins:
            self._once(f"{win.experiment_id} is run again before it is kept: {win.words}")
        for one in settlement.refused:
            self._refused = one.error.problem
            self._once(f"not decided: {one.experiment_id}: {self._refused}")
        for decision in self._lines.missing(list(self.history.latest.values())):
            if remark := take_home(self.project, decision):
                self.say(remark)
            self.emit(self._lines.write(decision))
        self.source.tidy()
        if settlement.decisions:
            sync(self.project.layout, light=True)

    def _once(self, remark: str) -> None:
        if remark not in self._said:
            self._said.add(remark)
            self.say(remark)

    def _confirm(self) -> None:
        """Run wins again where the task asks for that, the best first, until all are decided."""

        def decide() -> list[NeedsRuns]:
            self.decide()
            return self._wins

        def make(own: Project, win: NeedsRuns, runs: Sequence[MissingRun]) -> None:
            self.execute(self.make([run.experiment for run in runs], own))

        make_missing_runs(
            self.project, self._wins, decide, make, at_once=self.parallel, wait=False,
            is_over=lambda: self._steering.combined().stop,
        )  # fmt: skip

    def _best_first(self, names: Sequence[str]) -> list[str]:
        results = {name: read_object(self.project.layout.run(name).result) for name in names}
        values = {name: finite(result.get("metric_value")) for name, result in results.items()}
        return best_first(values, self.project.task.objective.direction)

    # ── what a killed loop left ───────────────────────────────────────────────────────────

    def _collect_what_runs(self) -> None:
        """Wait for what still runs, collect it, and forget what was never begun."""
        layout = self.project.layout
        for name in recovery.uncollected(layout):
            if self.executor.poll(name) == "running":
                self.say(f"waiting for {name}, which an earlier loop began")
                runner.follow(self.project, self.executor, name, self.watch)
        self.watch.ended()
        recovery.collect_ended(self.project.repository, layout)
        self.history.refresh()
        for name in list(self.history.undecided):
            if not layout.run(name).folder.is_dir() and self._is_orphan(name):
                runner.forget(self.project, name)

    def _is_orphan(self, name: str) -> bool:
        """Return whether no process is about to begin what was planned under a name of this tag."""
        layout = self.project.layout
        with suppress(UsageError):
            plan = load_or_none(Plan, layout.plan(name))
            if plan is not None and plan.tag == self.project.tag:
                return not locks.held(layout, f"worktree-{plan.worker_id}")
        return False
