"""The seam between an iteration and whatever runs it: a value in, a bundle out.

A `RunSpec` holds no path of this machine, so another executor (a cluster's queue) can take the
same value. The executor makes the checkout, takes the lease, and leaves a bundle; the local one
is the shim (local_executor.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from autohypothesis.engine.inputs import Inputs
from autohypothesis.engine.shim import Status
from autohypothesis.engine.task import Task
from autohypothesis.schema import Metadata, Result, RunIdentity, Runtime, Strict, now
from autohypothesis.system import host_name

RunState = Status


class Resources(Strict):
    """The device that a training asks for, where its inputs do not say."""

    kind: Literal["cpu", "cuda"] | None = None
    """None: a GPU where there is one."""
    device: str | None = None
    """One GPU's UUID, or `cpu-<core>`; None: whichever is free."""


class RunSpec(Strict):
    """One experiment: what to run, on what, and under which names to record it."""

    experiment_id: str
    task: Task
    commit: str
    parent_commit: str | None = None
    """None for a baseline: the reference as it stands."""
    seed: int | None
    """None for a run made by hand."""
    resources: Resources = Resources()
    tag: str
    hypothesis_id: str = ""
    worker_id: str = ""
    title: str = ""
    rationale: str = ""
    replicates: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    diff: str = ""
    diff_stat: str = ""
    diff_hash: str = ""
    lines_added: int = 0
    lines_removed: int = 0
    mutation: dict[str, Any] | None = None
    """How a program made the change, where one did."""


def metadata_of(spec: RunSpec, gpu_id: str = "", **measured: Any) -> Metadata:
    """Return the metadata of a run; `gpu_id` and what was `measured` once a device was chosen."""
    return Metadata(
        recorded_at=now(),
        run=RunIdentity(
            experiment_id=spec.experiment_id,
            worker_id=spec.worker_id,
            gpu_id=gpu_id,
            hypothesis_id=spec.hypothesis_id,
            rationale=spec.rationale,
            title=spec.title,
            tag=spec.tag,
            seed=spec.seed,
            replicates=spec.replicates,
            node_id=host_name(),
        ),
        runtime=Runtime(
            commit=spec.commit,
            parent_commit=spec.parent_commit,
            diff_stat=spec.diff_stat,
            diff_hash=spec.diff_hash,
            lines_added=spec.lines_added,
            lines_removed=spec.lines_removed,
            **measured,
        ),
    )


@dataclass(frozen=True, slots=True)
class Handle:
    """A submitted experiment. It says nothing that a successor could not read from disk."""

    experiment_id: str


class Executor(Protocol):
    """Runs experiments somewhere."""

    def submit(self, spec: RunSpec) -> Handle:
        """Start it; returns once the training's owner is alive and cannot be lost.

        Raises:
            LeaseError: no device of that kind is free.
            LaunchError: the checkout or the command cannot be made.
        """

    def poll(self, handle: Handle) -> RunState:
        """Return where it stands, by liveness, never by age."""

    def cancel(self, handle: Handle) -> None:
        """Ask it to end; `collect` then finds a cancelled experiment.

        One whose `submit` was cut short counts too; one that left nothing is none.
        """

    def collect(self, handle: Handle) -> Result:
        """Return the finished bundle's result, written exactly once however often this is called.

        Raises:
            LaunchError: it is still running.
        """


@runtime_checkable
class Waits(Protocol):
    """An executor that is told when an experiment ends, and need not be asked all the time."""

    def wait(self, handle: Handle, timeout: float) -> None:
        """Return when it has ended, after `timeout` seconds at most."""


@runtime_checkable
class Notices(Protocol):
    """An executor that can say why a run does not go on."""

    def notice(self, handle: Handle) -> str:
        """Return what a person should do about a run that stands still; empty while all is well."""


@runtime_checkable
class Offers(Protocol):
    """An executor that knows beforehand whether there is a device to run on."""

    def offer(self, task: Task, inputs: Inputs) -> None:
        """See that one is free now; another process may take it before `submit`.

        Raises:
            LeaseError: none is.
        """
