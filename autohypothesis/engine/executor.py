"""The seam between an iteration and whatever runs it: a value in, a bundle out.

A `RunSpec` holds no path of this machine, so another executor (a cluster's queue) can take the
same value. The executor makes the checkout, takes the lease, and leaves a bundle; the local one
is the shim (local_executor.py).
"""

from __future__ import annotations

import time
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field

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

    def common(model: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in spec if name in model.model_fields}

    identity = {**common(RunIdentity), "gpu_id": gpu_id, "node_id": host_name()}
    return Metadata(
        recorded_at=now(),
        run=RunIdentity(**identity),
        runtime=Runtime(**{**common(Runtime), **measured}),
    )


class Executor(Protocol):
    """Runs experiments somewhere. An executor inherits this class for what it does not define."""

    def submit(self, spec: RunSpec) -> str:
        """Start it; return its experiment id once the training's owner is alive and cannot be lost.

        Raises:
            LeaseError: no device of that kind is free.
            LaunchError: the checkout or the command cannot be made.
        """

    def poll(self, experiment_id: str) -> RunState:
        """Return its state, by liveness, never by age."""

    def cancel(self, experiment_id: str) -> None:
        """Ask it to end; `collect` then finds a cancelled experiment.

        One whose `submit` was cut short counts too; one that left nothing is none.
        """

    def collect(self, experiment_id: str) -> Result:
        """Return the finished bundle's result, written exactly once however often this is called.

        Raises:
            LaunchError: it is still running.
        """

    def wait(self, experiment_id: str, timeout: float) -> None:
        """Return after `timeout` seconds, or earlier if the experiment has ended."""
        time.sleep(timeout)

    def stall(self, experiment_id: str) -> str:
        """Return what a person should do about a run that stands still; empty while all is well."""
        return ""

    def check_device_free(self, task: Task, inputs: Inputs) -> None:
        """See that a device is free now; another process may take it before `submit`.

        Raises:
            LeaseError: none is.
        """
        return
