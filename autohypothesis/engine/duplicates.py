"""Whether a change was run before: the same artifacts are not measured twice by mistake.

What counts is the tree that a change makes, not how the change was written down. A replicate asks
for a repeat, a hypothesis that comes back is not stopped by its own runs, and a person who names
another seed gets that run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from threading import Lock

from autohypothesis.engine.candidate import diff_hash
from autohypothesis.engine.code_hash import tree_hash
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import BY_HAND, protected_blobs, task_hash
from autohypothesis.errors import GitError, NothingNewError
from autohypothesis.records.files import load_or_none
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.records.layout import Layout
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import Metadata, Result, Runtime

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
    history: LiveHistory
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

    def run_of(self, tree: str, wanted: str) -> str | None:
        """Return the experiment that ran the artifacts of a git tree; None: none did.

        Args:
            wanted: their hash.
        """
        repository, task = self.project.repository, self.project.task
        change = cache(lambda: diff_hash(repository.diff(self.base, tree)))

        def ran_it(commit: str) -> bool:
            try:
                return tree_hash(repository, task, commit) == wanted
            except GitError:
                return False

        for name, decision in self.history.latest.items():
            # A record of an older version has no hash of its tree. One tree on one base is one
            # change, so git is asked about runs of this change alone.
            is_old = decision.diff_hash and not decision.tree_hash
            if is_old and decision.base_commit == self.base and decision.diff_hash == change():
                is_equal = ran_it(decision.commit)
            else:
                is_equal = decision.tree_hash == wanted
            if is_equal and self.counts(name):
                return name
        for name in sorted(self.history.undecided):
            metadata = load_or_none(Metadata, self.project.layout.run(name).metadata)
            if metadata and metadata.runtime.tree_hash == wanted and self.counts(name):
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

    def _result(self, experiment_id: str) -> Result | None:
        return load_or_none(Result, self.project.layout.run(experiment_id).result)


_preparing = Lock()
"""Held during a look: a loop prepares several changes at once."""


@lru_cache(maxsize=8)
def _history(layout: Layout, tag: str) -> LiveHistory:
    """Return the history that this process follows: a worker asks while its device trains."""
    return LiveHistory(layout, tag)


def refuse_duplicate(project: Project, experiment: Experiment, seed: int | None, tree: str) -> None:
    """Refuse a change whose artifacts, those of a git tree, were run before.

    Args:
        seed: the one that was asked for; None: none was.

    Raises:
        NothingNewError: they were; the message says what came of it.
    """
    if experiment.replicates is not None:
        return
    with _preparing:
        history = _history(project.layout, project.active())
        history.refresh()
        check = DuplicateCheck(project, history, experiment.base, experiment.hypothesis_id, seed)
        name = check.run_of(tree, tree_hash(project.repository, project.task, tree))
        outcome = check.outcome(name) if name is not None else ""
    if name is not None:
        raise NothingNewError(
            f"it was run before, as {name}: {outcome}",
            hint=f"see it: python orchestrator.py show {name}; to draw it again, name another seed:"
            " run-experiment --seed N",
        )
