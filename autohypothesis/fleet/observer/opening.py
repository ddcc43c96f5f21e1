"""How a search begins: the baseline first, and beside it, on devices with nothing to do, repeats.

The repeats tell how far two runs of one commit lie apart. A baseline that fails ends the search:
every idea would fail the same way, or be compared with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autohypothesis.errors import RecordError
from autohypothesis.fleet.observer.handout import FOR
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.files import load
from autohypothesis.records.ids import baseline_id
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Metadata, Proposal, Result, Setting

MOST_REPEATS = 2
REPEAT_PRIORITY = 900.0
TAIL_LINES = 20
LOWER: Mapping[str, tuple[str, ...]] = {
    "oom": ("DEVICE_BATCH_SIZE", "BATCH_SIZE", "TOTAL_BATCH_SIZE", "DEPTH", "MAX_SEQ_LEN"),
    "timeout": ("DEPTH", "ASPECT_RATIO", "TOTAL_BATCH_SIZE", "BATCH_SIZE"),
    "nan": ("MATRIX_LR", "LEARNING_RATE", "LR", "EMBEDDING_LR"),
}
"""Failure -> constants of which one is to be lowered, the likeliest first."""
OTHERWISE = {
    "oom": "lower the batch size, or the size of the model",
    "timeout": "make the model smaller, or raise run.deadline_seconds in the task",
    "nan": "lower the learning rate",
    "no_metric": "the script has to print its metric at the end, as the task's objective names it",
    "invalid": "the run is not valid as it is: the detail above says what to change",
    "code_error": "mend the script at the line above",
}


@dataclass(frozen=True)
class Opening:
    """The beginning of one search, asked about turn after turn."""

    layout: Layout
    queue: Queue
    chronicle: Chronicle
    command: str = "init-fleet"
    """What begins another search, for hints."""

    def queue_baseline(self) -> bool:
        """Puts the baseline in front of everything, unless it is somewhere already."""
        return not self.chronicle.has_reference() and self.queue.add_baseline() is not None

    def queue_repeats(self, idle: int) -> int:
        """Repeats of a baseline that runs now, for devices with nothing to do; how many are new."""
        if self.chronicle.has_reference() or idle <= 0:
            return 0
        first, added = self._running_baseline(), 0
        for number in range(1, MOST_REPEATS + 1):
            source = f"{baseline_id(self.queue.tag)}-repeat-{number}"
            if first is None or added >= idle or source in self.queue.sources():
                continue
            repeat = Proposal(
                title="the baseline again",
                rationale="two runs of one commit tell what a difference is worth",
                priority=REPEAT_PRIORITY,
                source_id=source,
                replicates=first,
            )
            self.queue.add(repeat, proposer="observer")
            added += 1
        return added

    def queue_references(
        self, undecided: Iterable[str], first: str | None, commit: str
    ) -> list[str]:
        """A run of the reference for each platform and seed that has none, on that very worker.

        An experiment that nothing there can be compared with is decided after that.

        Args:
            first: an experiment of the reference.
        """
        said = []
        for experiment_id in undecided:
            metadata = _with_value(self.layout, experiment_id)
            if metadata is None or first is None or metadata.run.replicates:
                continue
            run, key = metadata.run, metadata.runtime.platform_key
            if self._has_value(commit, key, run.seed):
                continue
            source = f"reference-{commit[:12]}-{key[:12]}-{run.seed}{FOR}{run.worker_id}"
            if source in self.queue.sources():
                continue
            again = Proposal(
                title=f"the reference again, for {run.gpu_id or run.worker_id}",
                rationale=f"{experiment_id} has nothing there to be compared with",
                priority=REPEAT_PRIORITY,
                source_id=source,
                replicates=first,
                seed=run.seed,
            )
            added = self.queue.add(again, proposer="observer")
            said.append(f"{added.hypothesis_id} runs {again.title}: {again.rationale}")
        return said

    def _has_value(self, commit: str, key: str, seed: int | None) -> bool:
        return any(
            one.commit == commit
            and one.platform_key == key
            and one.seed in (seed, None)
            and one.metric_value is not None
            for one in self.chronicle.latest.values()
        )

    def _running_baseline(self) -> str | None:
        """The experiment of the baseline that was submitted, and has no result yet."""
        name = baseline_id(self.queue.tag)
        attempts = self.chronicle.attempts(name)
        runs = any(
            one.hypothesis_id == name for each in self.queue.running().values() for one in each
        )
        if not runs or not attempts or attempts[-1] in self.chronicle.latest:
            return None
        run = self.layout.run(attempts[-1])
        return attempts[-1] if run.metadata.exists() and not run.result.exists() else None

    def failure(self, settings: Mapping[str, Setting]) -> list[str]:
        """Why the baseline failed, the setting to lower, and the tail of its log; else empty."""
        if self.chronicle.has_reference():
            return []
        found = self.queue.read(baseline_id(self.queue.tag))
        if found is None or found[0].state != "done":
            return []
        if found[1].closed == "abandoned":
            return [f"the baseline was refused: {found[1].outcome}", _begin_again(self.command)]
        decision = self.chronicle.verdict(found[1].hypothesis_id)
        if decision is None or decision.requeue or decision.decision_status != "crash":
            return []
        return explained(self.layout, decision.experiment_id, settings, self.command)


def _with_value(layout: Layout, experiment_id: str) -> Metadata | None:
    """Who ran it where, of an experiment that has a value."""
    run = layout.run(experiment_id)
    try:
        result = load(Result, run.result)
        metadata = load(Metadata, run.metadata)
    except (FileNotFoundError, RecordError):
        return None
    return metadata if result.status == "completed" and result.metric_value is not None else None


def _begin_again(command: str) -> str:
    return (
        f"then commit it and begin again: `python orchestrator.py {command} --tag NAME`; if the"
        " machine was at fault: `python orchestrator.py run-experiment --baseline --settle`"
    )


def explained(
    layout: Layout,
    experiment_id: str,
    settings: Mapping[str, Setting],
    command: str = "init-fleet",
) -> list[str]:
    """What a failed baseline tells a person, line by line."""
    try:
        result = load(Result, layout.run(experiment_id).result)
    except (FileNotFoundError, RecordError):
        return [f"the baseline {experiment_id} failed, and its result cannot be read"]
    kind = result.failure_kind or "code_error"
    tail = [line.rstrip() for line in result.log_tail.splitlines() if line.strip()]
    return [
        f"the baseline {experiment_id} failed: {kind}: {result.failure_detail}",
        advice(kind, settings),
        _begin_again(command),
        *(f"log: {line[:300]}" for line in tail[-TAIL_LINES:]),
    ]


def advice(kind: str, settings: Mapping[str, Setting]) -> str:
    """The setting to lower, as the script has it."""
    for name in LOWER.get(kind, ()):
        if name in settings:
            return f"lower {name}, which is {settings[name]!r}"
    return OTHERWISE.get(kind, "see the log below")
