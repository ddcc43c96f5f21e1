"""The first run of a search: its reference as it stands, on a device of the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from autohypothesis.engine.change import Change
from autohypothesis.engine.decide import settle
from autohypothesis.engine.executor import Handle, Resources, RunSpec
from autohypothesis.engine.local_executor import LocalExecutor
from autohypothesis.engine.project import Project
from autohypothesis.engine.runner import Finished, Request, Watch, run
from autohypothesis.fleet.sync import sync
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.standings import first_baseline, of_tag
from autohypothesis.schema import Decision


@dataclass(frozen=True)
class OnDevice(LocalExecutor):
    """The local executor, on one device and no other."""

    device: str = ""

    def submit(self, spec: RunSpec) -> Handle:
        pinned = spec.model_copy(update={"resources": Resources(device=self.device)})
        return LocalExecutor.submit(self, pinned)


def has_baseline(project: Project) -> bool:
    """Whether the search has something to compare with."""
    sync(project.layout)
    return first_baseline(of_tag(read_ledger(project.layout), project.active())) is not None


def run_baseline(project: Project, device: str, watch: Watch) -> tuple[Finished, list[Decision]]:
    """Run it, decide it, and bring the ledger up to date.

    Raises:
        LeaseError: the device is held.
    """
    executor = OnDevice(project.repository, project.layout, device=device)
    finished = run(
        project, Request(Change.none(), title="baseline"), watch=watch, executor=executor
    )
    settlement = settle(project, [finished.experiment_id], decided_by="bootstrap")
    decisions = settlement.decisions_or_raise()
    sync(project.layout)
    return finished, decisions
