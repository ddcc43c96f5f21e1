"""A search whose experiments are bundles that a test writes: no training is run."""

from __future__ import annotations

from dataclasses import dataclass

from autohypothesis.engine.attestation import attest
from autohypothesis.engine.decide import settle, settle_by_hand
from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Task
from autohypothesis.records import bundles
from autohypothesis.records.files import load, write_json
from autohypothesis.records.history import DecisionHistory
from autohypothesis.schema import (
    Decision,
    FailureKind,
    Metadata,
    Metrics,
    Result,
    RunIdentity,
    Runtime,
    now,
)

PLATFORM = "one cpu"


@dataclass(frozen=True)
class Search:
    """A project, and the task that its experiments are made with; None: nobody submitted them."""

    project: Project
    task: Task | None = None

    def change(self, base: str, text: str) -> str:
        repository = self.project.repository
        tree = repository.tree_with(base, {"train.py": text.encode()})
        return repository.commit_tree(tree, [base], text)

    def ended(
        self,
        name: str,
        commit: str,
        parent: str | None,
        value: float | None,
        *,
        seed: int | None = 42,
        platform: str = PLATFORM,
        attested: bool = True,
        task: Task | None = None,
        of: str | None = None,
        kind: FailureKind | None = None,
        memory: float | None = None,
    ) -> str:
        """A finished, undecided experiment; with `of`, a repeat of that one."""
        run, tag = self.project.layout.run(name), self.project.active()
        run.folder.mkdir(parents=True)
        identity = RunIdentity(
            experiment_id=name, hypothesis_id=f"of-{name}", tag=tag, seed=seed, replicates=of
        )
        runtime = Runtime(
            commit=commit, parent_commit=parent, platform_key=platform, lines_added=2,
            lines_removed=0,
        )  # fmt: skip
        bundles.write_metadata(run, Metadata(recorded_at=now(), run=identity, runtime=runtime))
        if (task := task or self.task) is not None:
            spec = RunSpec(experiment_id=name, task=task, commit=commit, seed=seed or 0, tag=tag)
            write_json(run.run_spec, spec)
        bundles.write_result(
            run,
            Result(
                status="failed" if kind else "completed", recorded_at=now(), commit=commit,
                parent_commit=parent, metric_value=value, attested=attested, failure_kind=kind,
                failure_detail=f"it was {kind}" if kind else "",
                metrics=Metrics(peak_vram_mb=memory),
            ),
        )  # fmt: skip
        attest(self.project.repository, self.project.layout, run, load(Result, run.result))
        return name

    def decided(
        self, name: str, commit: str, parent: str | None, value: float, *, seed: int | None = 42
    ) -> Decision:
        return self.settled(self.ended(name, commit, parent, value, seed=seed))

    def settled(self, name: str) -> Decision:
        return settle(self.project, [name], decided_by="test").decisions_or_raise()[-1]

    def by_hand(self, name: str, status: str) -> Decision:
        return settle_by_hand(self.project, name, status, reason="", decided_by="me")  # type: ignore[arg-type]

    def past(self) -> DecisionHistory:
        return DecisionHistory.of_tag(self.project.layout, self.project.tag)
