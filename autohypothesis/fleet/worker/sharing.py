"""A worker asks whether another fleet tries the same already, and writes down what it was told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from autohypothesis.engine import runner
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, ChangeError
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.sharing.claims import Answer, Claims, Idea, tree_of_commit
from autohypothesis.records.files import load, write_json
from autohypothesis.schema import Hypothesis, Metadata, Plan, Runtime

LEASE_RUNS = 6
"""A right is asked for so many budgets: the run before it, its own, and what it takes to tell."""
LEAST_LEASE_S, LONGEST_LEASE_S = 900.0, 86_400.0
_LOOK_BACK = 50


class Sharing:
    """The claims of one worker."""

    def __init__(self, worker: str, claims: Claims) -> None:
        self._worker = worker
        self._claims = claims

    def claim(self, project: Project, hypothesis: Hypothesis, spec: RunSpec) -> None:
        """Get the right to run a candidate; a baseline, a repeat and a verification need none.

        Raises:
            ChangeError: another fleet has tried it, or does now; its plan is taken back.
        """
        if spec.parent_commit is None or spec.replicates or hypothesis.artifacts_from:
            return
        answer = self._ask(project, spec)
        if answer.said == "refused":
            runner.forget(project, spec.experiment_id)
            raise ChangeError(f"another fleet has it: {answer.reason}")
        self._note(project, hypothesis, spec, claimed=answer.said == "granted")

    def _ask(self, project: Project, spec: RunSpec) -> Answer:
        last = self._last_run(project)
        if not last.platform_key or not last.task_hash:
            return Answer("unknown", "this worker has run nothing yet")
        seconds = LEASE_RUNS * (last.budget_seconds or 0.0)
        return self._claims.claim(
            Idea(
                platform_key=last.platform_key,
                task_hash=last.task_hash,
                tree=tree_of_commit(project, spec.commit),
                title=spec.title,
                lease_seconds=min(max(seconds, LEAST_LEASE_S), LONGEST_LEASE_S),
            )
        )

    def _note(
        self, project: Project, hypothesis: Hypothesis, spec: RunSpec, *, claimed: bool
    ) -> None:
        """In the plan, for the ledger, and in the queue, for who looks what to run first."""
        path = project.layout.plan(spec.experiment_id)
        with suppress(FileNotFoundError, AutohypothesisError):
            plan = load(Plan, path)
            write_json(path, plan.model_copy(update={"claimed": claimed}))
        with suppress(AutohypothesisError):
            Queue(project.layout, project.active()).note_claim(
                hypothesis.hypothesis_id, self._worker, claimed
            )

    def _last_run(self, project: Project) -> Runtime:
        """Of this worker, the newest first; of another one of this search where it has none."""
        other = Runtime()
        for run in self._newest(project):
            with suppress(FileNotFoundError, AutohypothesisError):
                found = load(Metadata, project.layout.run(run).metadata)
                if found.run.tag != project.active() or not found.runtime.platform_key:
                    continue
                if found.run.worker_id == self._worker:
                    return found.runtime
                other = other if other.platform_key else found.runtime
        return other

    def _newest(self, project: Project) -> Iterator[str]:
        """Names of runs, the latest folder first; a few are enough to find one's own."""
        try:
            with os.scandir(project.layout.runs) as entries:
                found = [(one.stat(follow_symlinks=False).st_mtime_ns, one.name) for one in entries]
        except OSError:
            return
        yield from (name for _, name in sorted(found, reverse=True)[:_LOOK_BACK])
