"""The loop over a task's artifacts: a round of changes side by side, decided best first.

The state is on disk, so a kill costs the round that was on its way, and what ran is collected and
decided by the next loop. What is kept goes to the user's branch as a fast-forward, or is named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import Any, Protocol

from autohypothesis.engine import devices, runner
from autohypothesis.engine.code_hash import tree_hash
from autohypothesis.engine.collect import collect_ended
from autohypothesis.engine.decide import NeedsRuns, repair, settle
from autohypothesis.engine.experiment import Change, Executor, Experiment, RunSpec
from autohypothesis.engine.failures import part_of
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.mutator import RecordedRefusalError
from autohypothesis.engine.policy import better_by
from autohypothesis.engine.project import Project
from autohypothesis.engine.reference import move_reference
from autohypothesis.engine.runner import ProgressListener, make_missing_runs
from autohypothesis.engine.task import protected_blobs, task_hash
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    GitError,
    RecordError,
    SettleError,
)
from autohypothesis.fleet.live.steering import SteeringFiles, steering_limits
from autohypothesis.fleet.observer.scheduling import StopCriteria
from autohypothesis.fleet.observer.search_state import ExperimentIndex, Reference, SearchState
from autohypothesis.fleet.proposing import Proposer
from autohypothesis.fleet.queue import inbox
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sync import sync
from autohypothesis.fleet.worker.preparation import STEERING_HINT, violation_by
from autohypothesis.plain import some_of
from autohypothesis.records import jsonl, locks
from autohypothesis.records.bundles import uncollected
from autohypothesis.records.chain import DecisionChain
from autohypothesis.records.files import load_or_none, read_bytes, read_object
from autohypothesis.records.git import Repository
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.records.outcomes import shown_as
from autohypothesis.records.outputs import refuse_foreign_lines
from autohypothesis.schema import Decision, Metadata, finite

MAX_LOST_ROUNDS = 5
"""Rounds in a row that told nothing, each lost to the machine; then a person has to look."""
PAUSE_S = 0.25
"""Pause after a lost round; each further one doubles it."""
LONGEST_PAUSE_S = 30.0
ASKED = 3
"""Number of times that a proposer is asked when no answer could be used."""
DIFF_LIMIT = 64 << 20
SEED_STRIDE = 1_000_003
"""Distance between the seeds of two searches, so that they share none of the first million."""


# ── the user's branch ───────────────────────────────────────────────────────────────────────


def import_user_commits(project: Project) -> Iterator[str]:
    """Take in what the user has committed on top of the reference; a line for what to know.

    A branch that has gone another way is left alone, and so is the reference.
    """
    repository = project.repository
    head = repository.head()
    if changed := [change.path for change in repository.changes(head, repository.snapshot_tree())]:
        yield f"not committed, so no part of this: {some_of(changed)}"
    with locks.hold(project.layout, "settle", doing="following your branch"):
        repair(project)  # a keep whose move a kill has prevented comes first
        reference = project.reference()
        if head == reference:
            return
        if repository.is_ancestor(reference, head):
            DecisionChain(repository, project.layout).take_in(head)
            move_reference(repository, project.active(), head, reference)
            yield f"the search goes on from your commit {head[:7]}"
            return
    yield (
        f"the search goes on from {reference[:7]}, which your branch is not built on;"
        f" take it home: python orchestrator.py adopt --tag {project.active()}"
    )


def fast_forward_user_branch(project: Project, decision: Decision) -> str:
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


# ── where changes come from ────────────────────────────────────────────────────────────────


class ChangeSource(Protocol):
    """Has changes to try, a round at a time."""

    def next(self, count: int, say: Callable[[str], None]) -> Sequence[Experiment]:
        """Return at most `count` requests; none when there is nothing left to try.

        Args:
            say: takes a remark about each idea that was refused.
        """

    def check(self, project: Project, spec: RunSpec) -> None:
        """Raise ChangeError for a candidate that may not run. Called in several threads."""

    def tidy(self) -> None:
        """Called after decisions."""


@dataclass
class MutatorSource:
    """The task's own program: each time it is asked it makes one change, whatever that is."""

    project: Project
    history: LiveHistory
    seed: int

    def next(self, count: int, say: Callable[[str], None]) -> list[Experiment]:
        """Run first again what told nothing yet; seeds go on where the tag has come to."""
        again = list(self._again())[:count]
        first = SEED_STRIDE * self.seed + sum(1 for _ in self.history.experiments())
        return again + [
            Experiment(Change(instructions=""), mutation_seed=first + number)
            for number in range(count - len(again))
        ]

    def check(self, project: Project, spec: RunSpec) -> None: ...

    def tidy(self) -> None: ...

    def _again(self) -> Iterator[Experiment]:
        """Yield changes whose run was disturbed, or that won against an older reference."""
        for decision in list(self.history.latest.values()):
            name = decision.hypothesis_id
            if not decision.requeue or self.history.decision_about(name) is not decision:
                continue
            run = self.project.layout.run(decision.experiment_id)
            try:
                diff = read_bytes(run.diff, DIFF_LIMIT).decode("utf-8", "surrogateescape")
            except (FileNotFoundError, RecordError):
                continue  # it was lost before there was a change
            if diff:
                title = self.project.repository.subject(decision.commit)
                yield Experiment(Change(patch=diff), title=title, hypothesis_id=name)


@dataclass
class QueueSource:
    """Hypotheses of the queue, best first; a proposer fills it when it is empty."""

    project: Project
    history: LiveHistory
    queue: Queue
    proposer: Proposer | None

    def __post_init__(self) -> None:
        self._index = ExperimentIndex(self.project, self.history)
        self._steering = SteeringFiles(self.project.layout)

    def next(self, count: int, say: Callable[[str], None]) -> list[Experiment]:
        inbox.take_inbox(self.queue)
        self.tidy()
        state = self._state()
        for idea in self.queue.pending():
            name = idea.hypothesis_id
            reason = state.reason_against(idea, self.queue.queued_before(idea), besides=name)
            if reason:
                self.queue.abandon(name, reason)
                say(f"{name} ({idea.title}) was refused: {reason}")
        refused: dict[str, str] = {}
        for _ in range(ASKED):
            missing = count - len(self.queue.pending())
            if missing <= 0 or not self.proposer or self._ask(self.proposer, missing, refused):
                break
        return [Experiment.of(hypothesis) for hypothesis in self.queue.pending()[:count]]

    def check(self, project: Project, spec: RunSpec) -> None:
        if problem := violation_by(spec, self._steering.combined(), project):
            raise ChangeError(problem, hint=STEERING_HINT)

    def tidy(self) -> None:
        """Close what was decided for good, also after a kill."""
        for hypothesis in self.queue.pending():
            name = hypothesis.hypothesis_id
            decision = self.history.decision_about(name)
            if decision is not None and not decision.requeue:
                outcome = f"{decision.decision_status}: {decision.reason}"
                self.queue.abandon(name, outcome, closed="completed")

    def _ask(self, proposer: Proposer, count: int, refused: dict[str, str]) -> bool:
        """Ask for proposals, validate and queue them; return whether any was taken."""
        state = self._state()
        situation = replace(state.situation(self.queue), refused=dict(refused))
        taken = 0
        for proposal in proposer.propose(situation, count):
            reason = state.reason_against(proposal, self.queue.open())
            if reason:
                refused[proposal.title] = reason
            else:
                self.queue.add(proposal, proposer=proposer.name)
                taken += 1
        return taken > 0

    def _state(self) -> SearchState:
        self._index.refresh()
        reference = Reference.of(self._index, self.project.reference())
        return SearchState(self._index, reference, self._steering.combined())


# ── the published lines ────────────────────────────────────────────────────────────────────


class ResultLines:
    """The file of one tag's iterations.

    Raises:
        FleetError: a file of the user's has its name.
    """

    def __init__(self, project: Project) -> None:
        refuse_foreign_lines(project.repository, project.layout)
        self._project = project
        self._path = project.layout.task_results
        news = jsonl.read_new(self._path, 0)
        self._written = {(line.get("tag"), line.get("iteration_id")) for line in news.records}

    def lacks(self, decision: Decision) -> bool:
        """Return whether a decided iteration has no line yet; baselines and repeats are none."""
        known = (decision.tag, decision.experiment_id) in self._written
        is_change = decision.base_commit is not None
        return not known and is_change and decision.decision_status != "replicate"

    def write(self, decision: Decision) -> dict[str, Any]:
        """Append the line of one decision, and return it.

        Raises:
            RecordError: the disk is full.
        """
        line = line_of(self._project, decision)
        jsonl.append(self._path, line)
        self._written.add((decision.tag, decision.experiment_id))
        return line


def line_of(project: Project, decision: Decision) -> dict[str, Any]:
    """Return what is known of one iteration; unknown scores and times are null.

    So are commit and hash of a candidate that was refused before it had a commit: what is recorded
    is its base.
    """
    run = project.layout.run(decision.experiment_id)
    result, ended, metadata = map(read_object, (run.result, run.exit, run.metadata))
    runtime = part_of(metadata, "runtime")
    mutation = part_of(result.get("evidence"), "mutation")
    score = part_of(ended, "score")
    changed = _changed(project, decision)
    made = decision.commit if decision.commit != decision.base_commit else None
    return {
        "task_id": project.task.id,
        "iteration_id": decision.experiment_id,
        "tag": decision.tag,
        "status": shown_as(decision.decision_status, decision.reason),
        "reason": decision.reason,
        "detail": decision.detail,
        "description": result.get("title") or "",
        "candidate_score": decision.metric_value,
        "baseline_score": decision.reference_value,
        "baseline_hash": _artifacts_hash(project, str(decision.base_commit)),
        "candidate_hash": _artifacts_hash(project, made) if made else None,
        "commit": made,
        "metrics": {k: v for k, v in part_of(result, "metrics").items() if v is not None},
        "diff_summary": runtime.get("diff_stat") or "",
        "changed_files": sorted(changed),
        "added": sum(added for added, _ in changed.values()),
        "removed": sum(removed for _, removed in changed.values()),
        "durations": {
            "mutator": mutation.get("seconds"),
            "run": ended.get("wall_seconds"),
            "scorer": score.get("seconds"),
        },
        "exit_codes": {
            "mutator": mutation.get("exit_code"),
            "run": ended.get("exit_code"),
            "scorer": score.get("exit_code"),
        },
        "sandbox": runtime.get("sandbox") or mutation.get("sandbox") or "",
        "confirmation": decision.confirmation,
        "started_at": ended.get("started_at") or metadata.get("recorded_at"),
    }


def _artifacts_hash(project: Project, commit: str) -> str:
    try:
        return tree_hash(project.repository, project.task, commit)
    except AutohypothesisError:
        return ""


def _changed(project: Project, decision: Decision) -> dict[str, tuple[int, int]]:
    """Return path -> lines added and removed, of the candidate against its base."""
    if not decision.base_commit or decision.base_commit == decision.commit:
        return {}
    try:
        changes = project.repository.changes(decision.base_commit, decision.commit)
    except AutohypothesisError:
        return {}
    return {change.path: (change.added or 0, change.removed or 0) for change in changes}


# ── the loop ───────────────────────────────────────────────────────────────────────────────


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
            self._take_over()
            with ExitStack() as stack:
                free = (runner.free_worker(self.project) for _ in range(self.parallel))
                self.workers = tuple(map(stack.enter_context, free))
                for remark in import_user_commits(self.project):
                    self.say(remark)
                self.decide()
                self._confirm()
                self._measure_reference()
                self._rounds(iterations)
        return self.decided

    def _rounds(self, iterations: int) -> None:
        done = lost = 0
        while not iterations or done < iterations:
            if self._steering.combined().stop or self.ending.why_over():
                return
            room = self.parallel
            if room > 1:  # some devices may be held
                room = max(1, min(room, devices.count_free(self.project.task.run.device)))
            if iterations:
                room = min(room, iterations - done)
            requests = self.source.next(room, self.say)
            if not requests:
                self.say("nothing is left to try")
                return
            informative, again = self._round(requests)
            done += max(0, len(requests) - len(again))
            lost = 0 if informative else lost + 1
            if lost >= MAX_LOST_ROUNDS:
                why = self.decided[-1].detail if self.decided else self._refused
                raise SettleError(
                    f"{lost} rounds in a row told nothing: {why}",
                    hint="see `python orchestrator.py doctor`; run the task again when that is"
                    " mended: it goes on where it was",
                )
            if again:
                self._pause(max(lost, 1), again[-1])

    # ── a round ───────────────────────────────────────────────────────────────────────────

    def _round(self, requests: Sequence[Experiment]) -> tuple[int, list[Decision]]:
        """Make the changes, run them side by side, decide.

        Return how many decisions tell anything, and those about lost changes, which come again.
        """
        before = len(self.decided)
        self.execute(self.make(requests))
        self.decide()
        self._confirm()
        lost = [decision for decision in self.decided[before:] if is_lost(decision)]
        # A repeat, of a commit as it stands, was run again by `_confirm` already.
        again = [decision for decision in lost if decision.base_commit is not None]
        return len(self.decided) - before - len(lost), again

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
                    check=partial(self.source.check, project),
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
        try:
            runner.execute(self.project, self.executor, specs, self.watch)
        finally:
            self.watch.ended()

    def _measure_reference(self) -> None:
        """Run the reference as it stands, unless that was done with this very task."""
        reference = self.project.reference()
        if self._is_measured(reference):
            return
        decision: Decision | None = None
        self.say(f"measuring {reference[:7]}, which every change is compared with")
        for lost in range(MAX_LOST_ROUNDS):
            if lost and decision is not None:
                self._pause(lost, decision)
            spec = runner.plan(self.project, Experiment(Change()), self.workers[0], self.executor)
            self.execute([spec])
            self.decide()
            decision = self.history.of(spec.experiment_id)
            if decision is None or not is_lost(decision):
                break
        if decision is None or decision.metric_value is None:
            why = f"{decision.reason}: {decision.detail}" if decision else "it is not decided"
            raise SettleError(
                f"the artifacts as they are have no {self.project.task.objective.metric}: {why}",
                hint=f"see `python orchestrator.py show {spec.experiment_id}`",
            )

    def _pause(self, lost: int, decision: Decision) -> None:
        """Say why a run is repeated, and give what failed some time to come back."""
        self.say(f"run again, {lost} of {MAX_LOST_ROUNDS - 1}: {decision.detail}")
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
        remarks = [
            f"{win.experiment_id} is run again before it is kept: {win.words}" for win in self._wins
        ]
        for name, error in settlement.refused.items():
            self._refused = error.problem
            remarks.append(f"not decided: {name}: {self._refused}")
        for remark in remarks:
            if remark not in self._said:
                self._said.add(remark)
                self.say(remark)
        for decision in filter(self._lines.lacks, list(self.history.latest.values())):
            if remark := fast_forward_user_branch(self.project, decision):
                self.say(remark)
            self.emit(self._lines.write(decision))
        self.source.tidy()
        if settlement.decisions:
            sync(self.project.layout, light=True)

    def _confirm(self) -> None:
        """Run wins again where the task asks for that, the best first, until all are decided."""

        def decide() -> list[NeedsRuns]:
            self.decide()
            return self._wins

        def make(own: Project, win: NeedsRuns, runs: Sequence[Experiment]) -> None:
            self.execute(self.make(runs, own))

        make_missing_runs(
            self.project, self._wins, decide, make, at_once=self.parallel, wait=False,
            is_over=lambda: self._steering.combined().stop,
        )  # fmt: skip

    def _best_first(self, names: list[str]) -> list[str]:
        """Sort by value: the first keep takes the place that all of them were made for."""
        direction = self.project.task.objective.direction

        def rank(name: str) -> float:
            value = finite(read_object(self.project.layout.run(name).result).get("metric_value"))
            return math.inf if value is None else better_by(0.0, value, direction)

        return sorted(names, key=rank)

    # ── what a killed loop left ───────────────────────────────────────────────────────────

    def _take_over(self) -> None:
        """Wait for what still runs, collect it, and forget what was never begun."""
        layout = self.project.layout
        for name in uncollected(layout):
            if self.executor.poll(name) == "running":
                self.say(f"waiting for {name}, which an earlier loop began")
                runner.follow(self.project, self.executor, name, self.watch)
        self.watch.ended()
        collect_ended(self.project.repository, layout)
        runner.forget_unbegun(self.project)
        self.history.refresh()
