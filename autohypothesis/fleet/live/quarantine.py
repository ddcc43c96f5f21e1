"""Devices that are not used: two failures in a row quarantine it; or it is gone, or held.

`research/live/benched.json` lists quarantined devices, and how many such failures each device has
had in a row. A damaged file is an empty one, and a time in the future counts as long past, so that
no device is blocked for ever.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from autohypothesis.engine import devices
from autohypothesis.engine.failures import is_device_evidence
from autohypothesis.errors import LeaseError
from autohypothesis.records.files import load_or_none, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Result, Time, Tolerant, Worker, now

QUARANTINE_FOR = timedelta(minutes=10)
IN_A_ROW = 2
_LIMIT = 1 << 20
_REASON = 500


class DeviceQuarantine(Tolerant):
    """The entry of one device."""

    since: Time
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return not timedelta(0) <= now() - self.since < QUARANTINE_FOR


class QuarantineFile(Tolerant):
    """The content of the file; devices are named by UUID, or `cpu-<core>`."""

    devices: dict[str, DeviceQuarantine] = Field(default_factory=dict)
    in_a_row: dict[str, Annotated[int, Field(gt=0, lt=IN_A_ROW)]] = Field(default_factory=dict)
    """Device -> failures that spoke against it since its last good run."""

    def put(self, device: str, reason: str) -> None:
        """Quarantine `device` from now on, and forget those whose time is over."""
        self.devices = {name: entry for name, entry in self.devices.items() if not entry.is_over}
        self.devices[device] = DeviceQuarantine(since=now(), reason=reason[:_REASON])


def quarantine(layout: Layout, device: str, reason: str) -> None:
    """Leave `device` alone for `QUARANTINE_FOR`.

    Raises:
        LockError, RecordError: it cannot be written down.
    """
    with hold(layout, "bench", doing=f"quarantining {device}"):
        state = _read(layout)
        state.put(device, reason)
        _write(layout, state)


def quarantined(layout: Layout) -> dict[str, str]:
    """Return device -> reason of those that are in quarantine now. Only reads."""
    devices = _read(layout).devices
    return {name: entry.reason for name, entry in devices.items() if not entry.is_over}


def clear_quarantine(layout: Layout) -> None:
    """End the quarantine of all devices.

    Raises:
        LockError, RecordError: it cannot be written down.
    """
    if _read(layout) != QuarantineFile():
        with hold(layout, "bench", doing="clearing the quarantine"):
            _write(layout, QuarantineFile())


def count_device_failure(layout: Layout, device: str, result: Result) -> str:
    """Count a run that speaks against its device; return why that quarantines it, else "".

    A run that completed clears the count; one that failed for another reason leaves it.

    Raises:
        LockError, RecordError: it cannot be written down.
    """
    against = is_device_evidence(result)
    known = _read(layout).in_a_row.get(device, 0)
    if not against and (not known or result.status != "completed"):
        return ""
    reason = result.failure_detail or "its last runs speak against it"
    with hold(layout, "bench", doing=f"judging {device}"):
        state = _read(layout)
        before = state.in_a_row.pop(device, 0)
        count = before + 1 if against else 0
        if count >= IN_A_ROW:
            state.put(device, reason)
        elif count:
            state.in_a_row[device] = count
        _write(layout, state)
    return reason if count >= IN_A_ROW else ""


def _write(layout: Layout, state: QuarantineFile) -> None:
    write_json(layout.benched, state, durable=False)


def _read(layout: Layout) -> QuarantineFile:
    return load_or_none(QuarantineFile, layout.benched, _LIMIT) or QuarantineFile()


class DeviceProblem(NamedTuple):
    """Why a worker cannot use its device. `gone`: it is quarantined. `held`: its holder may end."""

    kind: Literal["gone", "held"]
    reason: str


def device_problem(worker: Worker) -> DeviceProblem | None:
    """Return what keeps `worker` from its device; None where it is there and free.

    A worker made for a GPU that no driver has named yet has none: it never takes another device.
    """
    kind = device_kind(worker)
    if kind is None:
        return None
    if not worker.device:
        never = f"GPU {worker.gpu_id} was never seen by a driver: init-fleet again"
        return DeviceProblem("gone", never)
    try:
        every = devices.devices(kind)
    except LeaseError as error:
        return DeviceProblem("gone", f"{worker.device} does not answer: {error.problem}")
    own = [device for device in every if device.id == worker.device]
    if not own:
        return DeviceProblem("gone", f"{worker.device} is no longer a device of this machine")
    try:
        devices.first_free(own)
    except LeaseError as error:
        return DeviceProblem("held", error.problem)
    return None


def device_kind(worker: Worker) -> Literal["cpu", "cuda"] | None:
    """Return the kind a worker was made for; None for one that takes whatever is free."""
    if worker.kind is not None or not worker.device:
        return worker.kind
    return "cpu" if worker.device.startswith("cpu-") else "cuda"
