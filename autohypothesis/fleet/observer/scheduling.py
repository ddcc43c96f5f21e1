"""Which hypothesis goes to which worker, how a search begins, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.policy import better_by
from autohypothesis.engine.scoring import metric_advice
from autohypothesis.errors import QueueError
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.fleet.observer.deciding import RequeuePolicy, queue_repeat
from autohypothesis.fleet.observer.search_state import ExperimentIndex, Reference
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import load_or_none
from autohypothesis.records.history import LiveHistory
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.layout import Layout
from autohypothesis.schema import (
    Heartbeat,
    Hypothesis,
    Manifest,
    Metadata,
    Result,
    Setting,
    Worker,
    now,
)

MAX_REPEATS = 2
TAIL_LINES = 20
ALL_RUN = "all that were to be run are run"
SETTINGS_TO_LOWER: Mapping[str, tuple[str, ...]] = {
    "oom": ("DEVICE_BATCH_SIZE", "BATCH_SIZE", "TOTAL_BATCH_SIZE", "DEPTH", "MAX_SEQ_LEN"),
    "timeout": ("DEPTH", "ASPECT_RATIO", "TOTAL_BATCH_SIZE", "BATCH_SIZE"),
    "nan": ("MATRIX_LR", "LEARNING_RATE", "LR", "EMBEDDING_LR"),
}
"""Failure -> constants of which one is to be lowered, the likeliest first."""
ADVICE = {
    "oom": "lower the batch size, or the size of the model",
    "timeout": "make the model smaller, or raise run.deadline_seconds in the task",
    "nan": "lower the learning rate",
    "no_metric": "the script has to print its metric at the end, as the task's objective names it",
    "invalid": "the run is not valid as it is: the detail above says what to change",
    "code_error": "mend the script at the line above",
}
"""Failure -> what to do where the script has none of those constants."""


# ── workers ─────────────────────────────────────────────────────────────────────────────────


class AvailableWorkers:
    """The workers of a fleet, as `look` saw them last.

    Args:
        workers: the workers, where the manifest does not name them.

    Attributes:
        workers: of the manifest, in its order.
        ready: alive, and with a device that is not quarantined: they can be given work.
    """

    def __init__(self, layout: Layout, tag: str, workers: Sequence[Worker] = ()) -> None:
        self.layout = layout
        self.tag = tag
        self.workers = list(workers)
        self.alive: list[str] = []
        self.ready: list[str] = []
        self.heartbeats: list[Heartbeat] = []
        self._reads_manifest = not workers

    def look(self) -> None:
        """Read manifest, heartbeats and quarantine again."""
        # A manifest that is damaged or another tag's leaves the last good one in force.
        manifest = load_or_none(Manifest, self.layout.manifest) if self._reads_manifest else None
        if manifest is not None and manifest.tag == self.tag:
            self.workers = manifest.workers
        self.heartbeats = presence.read_heartbeats(self.layout)
        living = {beat.worker_id for beat in self.heartbeats if presence.worker_lives(beat)}
        resting = {beat.worker_id for beat in self.heartbeats if beat.state == "benched"}
        quarantined = quarantine.quarantined(self.layout)
        alive = [worker for worker in self.workers if worker.worker_id in living]
        self.alive = [worker.worker_id for worker in alive]
        self.ready = [
            worker.worker_id
            for worker in alive
            if worker.worker_id not in resting and worker.device not in quarantined
        ]

    def device_of(self, worker_id: str) -> str | None:
        """Return the device of a worker; None where it is none of ours."""
        devices = {worker.worker_id: worker.device for worker in self.workers}
        return devices.get(worker_id)

    @property
    def capacity(self) -> int:
        """Return the number of workers to have proposals for; all, before the first has started."""
        return len(self.ready) or len(self.workers)


# ── dispatching ─────────────────────────────────────────────────────────────────────────────


@dataclass
class Dispatcher:
    """Gives out work: one hypothesis waits for each worker."""

    queue: Queue
    requeue: RequeuePolicy
    available: AvailableWorkers
    platforms: Mapping[str, str]
    """Worker -> the key of the platform that it ran on last."""
    hub_unreachable: bool = False
    """The fleet shares, and the hub cannot be asked: what no other fleet tries comes first."""

    def give(self, may_begin: Callable[[Hypothesis], bool], room: int | None) -> list[str]:
        """Dispatch to every ready worker that nothing waits for; return a line for each.

        Args:
            room: how many more may begin; None: as many as there are workers.
        """
        pending = [idea for idea in self.queue.pending() if may_begin(idea)]
        if self.hub_unreachable:
            pending.sort(key=_claim_rank)
        running, waiting = self.queue.running(), self.queue.dispatched()
        free = [name for name in self.available.ready if name not in waiting]
        lines: list[str] = []
        for worker in sorted(free, key=lambda name: len(running.get(name, ()))):
            if room is not None and len(lines) >= room:
                break
            chosen = next((idea for idea in pending if self.suits(idea, worker)), None)
            if chosen is None:
                continue
            pending.remove(chosen)
            try:
                self.queue.dispatch(chosen.hypothesis_id, worker)
            except QueueError:
                continue  # a person's `dispatch` was quicker
            lines.append(f"{chosen.hypothesis_id} is dispatched to {worker}")
        return lines

    def take_back(self, *, all: bool = False) -> list[str]:
        """Withdraw what waits for a worker that cannot take it, or everything; a line for each."""
        lines = []
        for worker, waiting in self.queue.dispatched().items():
            if worker in self.available.ready and not all:
                continue
            for hypothesis in waiting:
                try:
                    self.queue.withdraw(hypothesis.hypothesis_id)
                except QueueError:
                    continue  # it was claimed this very moment
                lines.append(f"{hypothesis.hypothesis_id} is taken back from {worker}")
        return lines

    def idle(self) -> list[str]:
        """Return the ready workers that run nothing and have nothing waiting."""
        busy = {*self.queue.running(), *self.queue.dispatched()}
        return [name for name in self.available.ready if name not in busy]

    def has_taker(self, hypothesis: Hypothesis) -> bool:
        """Return whether a ready worker can be given it; true before the first has come."""
        ready = self.available.ready
        return not ready or any(self.suits(hypothesis, worker) for worker in ready)

    def suits(self, hypothesis: Hypothesis, worker: str) -> bool:
        """Return whether a worker may run it: its own worker or platform, where it has one.

        The device that it was lost with is avoided while there is another.
        """
        available = self.available
        if available.device_of(hypothesis.worker_id) is not None:
            return hypothesis.worker_id == worker
        if hypothesis.platform_key and not self._is_on(worker, hypothesis.platform_key):
            return False
        device = self.requeue.avoided_device(hypothesis.hypothesis_id)
        blamed = [name for name in available.ready if device in (name, available.device_of(name))]
        return device is None or worker not in blamed or blamed == available.ready

    def _is_on(self, worker: str, key: str) -> bool:
        """Return whether a worker runs on a platform, as far as is known.

        One that has run nothing yet may be on it, unless the others are on several.
        """
        if worker in self.platforms:
            return self.platforms[worker].startswith(key)
        known = [self.platforms[name] for name in self.available.ready if name in self.platforms]
        are_on_it = [platform.startswith(key) for platform in known]
        return all(are_on_it) or not any(are_on_it)


def _claim_rank(hypothesis: Hypothesis) -> int:
    """Sort the claimed before what needs no claim, and that before what others may be trying."""
    if hypothesis.claimed:
        return 0
    is_new = hypothesis.config_overrides or hypothesis.patch or hypothesis.instructions
    return 2 if is_new and not hypothesis.replicates else 1


# ── the beginning ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class BaselineSchedule:
    """The baseline first, and repeats of it on devices with nothing to do.

    The repeats tell how far two runs of one commit lie apart. A baseline that fails ends the
    search: every idea would fail the same way, or be compared with nothing.
    """

    layout: Layout
    queue: Queue
    history: LiveHistory
    command: str = "init-fleet"
    """The command that begins another search, for hints."""

    def queue_baseline(self) -> bool:
        """Put the baseline in front of everything, unless it is somewhere already."""
        return not self.history.has_reference() and self.queue.add_baseline() is not None

    def queue_unmeasured(self, index: ExperimentIndex, reference: Reference) -> list[str]:
        """Queue a run of a reference that none was begun of under the task as it is; a line.

        So it is where a person moved the reference or edited the task: what is tried on it could
        not be decided.
        """
        commit, wanted = reference.commit, reference.task_hash
        source = f"reference-{commit[:12]}-{wanted[:12]}"
        if not self.history.has_reference() or any(
            run.commit == commit and run.runtime.task_hash in ("", wanted)
            for run in index.runs.values()
        ):
            return []
        if source in self.queue.sources():
            return []
        again = Experiment(
            Change(),
            title=f"the reference {commit[:7]} as it is now",
            rationale="nothing of this task was measured there",
            replicates=reference.experiment_id,
        )
        return [queue_repeat(self.queue, source, again)]

    def queue_repeats(self, idle: int) -> int:
        """Queue repeats of a baseline that runs now, for idle devices; return how many are new."""
        first = self._running_baseline() if idle > 0 and not self.history.has_reference() else None
        if first is None:
            return 0
        name, known = baseline_id(self.queue.tag), self.queue.sources()
        sources = [f"{name}-repeat-{number}" for number in range(1, MAX_REPEATS + 1)]
        new = [source for source in sources if source not in known][:idle]
        again = Experiment(
            Change(),
            title="the baseline again",
            rationale="two runs of one commit tell what a difference is worth",
            replicates=first,
        )
        for source in new:
            queue_repeat(self.queue, source, again)
        return len(new)

    def queue_references(
        self, undecided: Iterable[str], first: str | None, commit: str
    ) -> list[str]:
        """Queue a run of the reference for each platform and seed that has none; a line for each.

        An experiment that nothing there can be compared with is decided after that, so its very
        worker runs it.

        Args:
            first: an experiment of the reference.
        """
        lines = []
        for experiment_id in undecided:
            metadata = _metadata_of_value(self.layout, experiment_id)
            if metadata is None or first is None or metadata.run.replicates:
                continue
            run, key = metadata.run, metadata.runtime.platform_key
            source = f"reference-{commit[:12]}-{key[:12]}-{run.seed}@{run.worker_id}"
            if self._has_value(commit, key, run.seed) or source in self.queue.sources():
                continue
            again = Experiment(
                Change(),
                title=f"the reference again, for {run.gpu_id or run.worker_id}",
                rationale=f"{experiment_id} has nothing there to be compared with",
                seed=run.seed,
                replicates=first,
            )
            lines.append(queue_repeat(self.queue, source, again, worker_id=run.worker_id))
        return lines

    def _has_value(self, commit: str, key: str, seed: int | None) -> bool:
        return any(
            (decision.commit, decision.platform_key) == (commit, key)
            and decision.seed in (seed, None)
            and decision.metric_value is not None
            for decision in self.history.latest.values()
        )

    def _running_baseline(self) -> str | None:
        name = baseline_id(self.queue.tag)
        placed, attempts = self.queue.read(name), self.history.attempts(name)
        if placed is None or placed[0].state != "running" or not attempts:
            return None
        run = self.layout.run(attempts[-1])
        submitted = run.metadata.exists() and not run.result.exists()
        return attempts[-1] if submitted and attempts[-1] not in self.history.latest else None

    def failure(self, settings: Mapping[str, Setting]) -> list[str]:
        """Return why the baseline failed, the setting to lower, the tail of its log; else empty."""
        if self.history.has_reference():
            return []
        placed = self.queue.read(baseline_id(self.queue.tag))
        if placed is None or placed[0].state != "done":
            return []
        again = (
            f"then commit it and begin again: `python orchestrator.py {self.command} --tag NAME`;"
            " if the machine was at fault: `python orchestrator.py run-experiment --baseline"
            " --decide`"
        )
        if placed[1].closed == "abandoned":
            return [f"the baseline was refused: {placed[1].outcome}", again]
        decision = self.history.decision_about(placed[1].hypothesis_id)
        if decision is None or decision.requeue or decision.decision_status != "crash":
            return []
        name = decision.experiment_id
        result = load_or_none(Result, self.layout.run(name).result)
        if result is None:
            return [f"the baseline {name} failed, and its result cannot be read"]
        kind = result.failure_kind or "code_error"
        log = [line.rstrip() for line in result.log_tail.splitlines() if line.strip()]
        lower = (name for name in SETTINGS_TO_LOWER.get(kind, ()) if name in settings)
        advice = (f"lower {name}, which is {settings[name]!r}" for name in lower)
        return [
            f"the baseline {name} failed: {kind}: {result.failure_detail}",
            next(advice, ADVICE.get(kind, "see the log below")),
            *(metric_advice(self.layout.run(name)) if kind == "no_metric" else ()),
            again,
            *(f"log: {line[:300]}" for line in log[-TAIL_LINES:]),
        ]


def _metadata_of_value(layout: Layout, experiment_id: str) -> Metadata | None:
    run = layout.run(experiment_id)
    result = load_or_none(Result, run.result)
    if result is None or result.status != "completed" or result.metric_value is None:
        return None
    return load_or_none(Metadata, run.metadata)


# ── the end ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """When the search ends by itself."""

    max_experiments: int | None = None
    """Maximum experiments of the tag with the baseline, without those lost to infrastructure."""
    until: datetime | None = None
    ideas: bool = False
    """Also when no proposer has an idea left; else it waits, for a person may have one."""


@dataclass
class StopCriteria:
    """The limits of one search: those it was started with, and those of its task."""

    limits: SearchLimits
    queue: Queue
    index: ExperimentIndex

    def __post_init__(self) -> None:
        self._task, self._history = self.index.project.task, self.index.history

    @property
    def max_experiments(self) -> int | None:
        """Return the maximum number of experiments of the tag; None: no limit."""
        given = (self.limits.max_experiments, self._task.budget.runs)
        return min((limit for limit in given if limit is not None), default=None)

    def why_over(self) -> str:
        """Return why nothing new is to begin for good; empty while it may."""
        most, task = self.max_experiments, self._task
        if self.limits.until is not None and now() >= self.limits.until:
            return "its time is over"
        if most is not None and self._history.counted() >= most:
            return ALL_RUN
        if self._target_is_met():
            return f"the task's target of {task.objective.target:g} is met"
        if self._patience_is_over():
            return f"the task's patience is over: nothing kept in {task.policy.patience} runs"
        return ""

    def room(self) -> int | None:
        """Return how many more may begin beside those that have; None: no limit."""
        if self.why_over():
            return 0
        if self.max_experiments is None:
            return None
        # The queue first, then the runs: what moves on meanwhile is seen in the one or the other.
        given = [*self.queue.dispatched().values(), *self.queue.running().values()]
        names = {hypothesis.hypothesis_id for several in given for hypothesis in several}
        self._history.refresh()
        self.index.refresh()
        ended = [
            name
            for name in self._history.ended()
            if (run := self.index.runs.get(name)) is not None
            and run.plan.hypothesis.hypothesis_id not in names
        ]
        begun = self._history.counted() + len(names) + len(ended)
        return max(0, self.max_experiments - begun)

    def has_assigned_work(self) -> bool:
        """Return whether a worker has a hypothesis, or has one waiting."""
        return bool(self.queue.running() or self.queue.dispatched())

    def _target_is_met(self) -> bool:
        objective = self._task.objective
        if objective.target is None:
            return False
        return any(
            decision.decision_status == "keep"
            and decision.metric_value is not None
            and better_by(decision.metric_value, objective.target, objective.direction) >= 0
            for decision in self._history.latest.values()
        )

    def _patience_is_over(self) -> bool:
        patience = self._task.policy.patience
        if patience is None:
            return False
        since = 0
        for decision in reversed(self._history.latest.values()):
            if decision.decision_status == "keep":
                break
            failed = decision.decision_status in ("discard", "crash") and not decision.requeue
            since += failed and decision.base_commit is not None  # a replicate is no idea
        return since >= patience
