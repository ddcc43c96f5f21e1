"""Whether a change was run before: the same artifacts are not measured twice by mistake.

What counts is the tree that a change makes, not how the change was written down. A replicate asks
for a repeat, a hypothesis that comes back is not stopped by its own runs, and a person who names
another seed gets that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autohypothesis.engine.code_hash import tree_hash
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.project import Project, run_ids
from autohypothesis.engine.task import BY_HAND, protected_blobs, task_hash
from autohypothesis.errors import GitError, NothingNewError
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import load_or_none
from autohypothesis.records.history import DecisionHistory, is_lost
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import Decision, Metadata, Result, Runtime

MAX_OUTCOME = 300
"""Characters of what an earlier run came to."""


@dataclass(frozen=True)
class DuplicateCheck:
    """Looks for the earlier run of a change.

    Attributes:
        base: the commit that the change is made to.
        hypothesis_id: of the change; its own runs do not count.
        seed: the one that a person asked for; None: a run at any seed counts.
    """

    project: Project
    history: DecisionHistory
    base: str
    hypothesis_id: str = ""
    seed: int | None = None

    def counts(self, experiment_id: str) -> bool:
        """Return whether a run of the same artifacts makes another one needless.

        One that was lost to the machine, was made by hand, or cannot be compared with the base
        does not.
        """
        metadata = load_or_none(Metadata, self.project.layout.run(experiment_id).metadata)
        if metadata is None or metadata.run.tag not in ("", self.project.tag):
            return False
        run, runtime = metadata.run, metadata.runtime
        if run.replicates or (run.hypothesis_id and run.hypothesis_id == self.hypothesis_id):
            return False
        if self.seed not in (None, run.seed) or not self._is_comparable(runtime):
            return False
        decision = self.history.of(experiment_id)
        if decision is not None:
            return not is_lost(decision)
        result = self._result(experiment_id)
        return result is None or result.failure_kind not in NOT_EVIDENCE

    def _is_comparable(self, runtime: Runtime) -> bool:
        platforms = self._platforms
        return (
            not runtime.platform_key.startswith(BY_HAND)
            and runtime.task_hash in ("", self._task_hash)
            and (not platforms or runtime.platform_key in ("", *platforms))
        )

    def outcome(self, experiment_id: str) -> str:
        """Return what a run came to, in words."""
        decision = self.history.of(experiment_id)
        if decision is not None:
            words = [decision.decision_status, decision.reason, decision.detail]
            return ", ".join(filter(None, words))[:MAX_OUTCOME]
        result = self._result(experiment_id)
        outcome = result.outcome if result is not None else ""
        return f"not decided yet{', ' if outcome else ''}{outcome}"[:MAX_OUTCOME]

    def run_of(self, tree: str, undecided: Sequence[str]) -> str | None:
        """Return the experiment that ran the artifacts with the hash `tree`; None: none did.

        Args:
            undecided: experiments without a decision.
        """
        for decision in self.history.latest.values():
            if self._has_tree(decision, tree) and self.counts(decision.experiment_id):
                return decision.experiment_id
        for name in undecided:
            paths = self.project.layout.run(name)
            # Without a diff it is a run of another tool, of which there may be thousands.
            metadata = load_or_none(Metadata, paths.metadata) if paths.diff.exists() else None
            if metadata and metadata.runtime.tree_hash == tree and self.counts(name):
                return name
        return None

    @cached_property
    def _platforms(self) -> set[str]:
        """The platform that the base was measured on last, of each device.

        What crashed before it had a device has none, and crashes on all.
        """
        latest = {}
        for decision in self.history.latest.values():
            if decision.commit != self.base or decision.metric_value is None:
                continue
            paths = self.project.layout.run(decision.experiment_id)
            metadata = load_or_none(Metadata, paths.metadata)
            if metadata and not metadata.runtime.platform_key.startswith(BY_HAND):
                latest[metadata.runtime.gpu_name] = metadata.runtime.platform_key
        return set(latest.values())

    @cached_property
    def _task_hash(self) -> str:
        task = self.project.task
        return task_hash(task, protected_blobs(task, self.project.repository.entries(self.base)))

    def _has_tree(self, decision: Decision, tree: str) -> bool:
        if decision.tree_hash or not decision.diff_hash or decision.base_commit != self.base:
            return decision.tree_hash == tree
        try:  # a record of an older version
            return tree_hash(self.project.repository, self.project.task, decision.commit) == tree
        except GitError:
            return False

    def _result(self, experiment_id: str) -> Result | None:
        return load_or_none(Result, self.project.layout.run(experiment_id).result)


def refuse_duplicate(project: Project, experiment: Experiment, seed: int | None, tree: str) -> None:
    """Refuse a change whose artifacts, with the hash `tree`, were run before.

    Args:
        seed: the one that was asked for; None: none was.

    Raises:
        NothingNewError: they were; the message says what came of it.
    """
    if experiment.replicates is not None:
        return
    decisions, _ = read_decisions(project.layout)
    history = DecisionHistory(each for each in decisions if each.tag == project.tag)
    undecided = set(run_ids(project.layout)) - {each.experiment_id for each in decisions}
    check = DuplicateCheck(project, history, experiment.base, experiment.hypothesis_id, seed)
    if (name := check.run_of(tree, sorted(undecided))) is not None:
        raise NothingNewError(
            f"it was run before, as {name}: {check.outcome(name)}",
            hint=f"see it: python orchestrator.py show {name}; to draw it again, name another seed:"
            " run-experiment --seed N",
        )
