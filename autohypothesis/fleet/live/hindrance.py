"""Why a worker's device cannot be used now: it is gone, or somebody else holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autohypothesis.engine import devices
from autohypothesis.errors import LeaseError
from autohypothesis.schema import Worker


@dataclass(frozen=True, slots=True)
class Hindrance:
    """`gone`: nothing to wait for, the device is benched. `held`: its holder may end."""

    kind: Literal["gone", "held"]
    reason: str


def hindrance(worker: Worker) -> Hindrance | None:
    """What keeps `worker` from its device; None if it is there and free.

    A worker made for a GPU that no driver has named yet has none: it never takes another device.
    """
    kind = kind_of(worker)
    if kind is None:
        return None
    if not worker.device:
        return Hindrance(
            "gone", f"GPU {worker.gpu_id} was never seen by a driver: init-fleet again"
        )
    try:
        every = devices.devices(kind)
    except LeaseError as error:
        return Hindrance("gone", f"{worker.device} does not answer: {error.problem}")
    own = [one for one in every if devices.name_of(one) == worker.device]
    if not own:
        return Hindrance("gone", f"{worker.device} is no longer a device of this machine")
    try:
        devices.first_free(own)
    except LeaseError as error:
        return Hindrance("held", error.problem)
    return None


def kind_of(worker: Worker) -> Literal["cpu", "cuda"] | None:
    """What it was made for; None for one that takes whatever is free."""
    if worker.kind is not None:
        return worker.kind
    if worker.device:
        return "cpu" if worker.device.startswith("cpu-") else "cuda"
    return None
