"""Devices that are left alone for a while: two failures in a row that speak against one bench it.

`research/live/benched.json` holds who sits out, since when and why, and how many such failures
each device has had in a row. It is a convenience, not a truth: a damaged file is an empty one, and
a time in the future counts as long past, so that no device is blocked for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import Field, ValidationError

from autohypothesis.engine.failures import is_device_evidence
from autohypothesis.errors import RecordError
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.schema import Result, Time, Tolerant, now

BENCH_FOR = timedelta(minutes=10)
IN_A_ROW = 2
_LIMIT = 1 << 20
_REASON = 500


class Benched(Tolerant):
    """One device that sits out."""

    since: Time
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return not timedelta(0) <= now() - self.since < BENCH_FOR


class Bench(Tolerant):
    """The file: devices by UUID, or `cpu-<core>`."""

    devices: dict[str, Benched] = Field(default_factory=dict)
    in_a_row: dict[str, int] = Field(default_factory=dict)
    """Device -> failures that spoke against it since its last good run."""


def bench(layout: Layout, device: str, reason: str) -> None:
    """Leave `device` alone for `BENCH_FOR`.

    Raises:
        LockError, RecordError: it cannot be written down.
    """
    with hold(layout, "bench", doing=f"benching {device}"):
        known = _read(layout)
        _write(layout, _with(known, device, reason))


def benched(layout: Layout) -> dict[str, str]:
    """Device -> reason, of those that sit out now. Only reads."""
    return {name: one.reason for name, one in _read(layout).devices.items() if not one.is_over}


def clear(layout: Layout) -> None:
    """Every device gets another chance.

    Raises:
        LockError, RecordError: it cannot be written down.
    """
    if _read(layout) != Bench():
        with hold(layout, "bench", doing="clearing the bench"):
            _write(layout, Bench())


def judge(layout: Layout, device: str, result: Result) -> str:
    """Count what a run says about its device; the reason when that benches it, else empty.

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
        count = state.in_a_row.get(device, 0) + 1 if against else 0
        benches = count >= IN_A_ROW
        counts = {name: number for name, number in state.in_a_row.items() if name != device}
        if count and not benches:
            counts[device] = count
        state = _with(state, device, reason) if benches else state
        _write(layout, state.model_copy(update={"in_a_row": counts}))
    return reason if benches else ""


def _with(state: Bench, device: str, reason: str) -> Bench:
    """`state` with `device` benched from now on; those whose time is over are forgotten."""
    sitting = {name: one for name, one in state.devices.items() if not one.is_over}
    sitting[device] = Benched(since=now(), reason=reason[:_REASON])
    return state.model_copy(update={"devices": sitting})


def _write(layout: Layout, state: Bench) -> None:
    write_json(layout.benched, state.model_dump(mode="json"), durable=False)


def _read(layout: Layout) -> Bench:
    try:
        value: Any = read_json(layout.benched, _LIMIT)
    except (FileNotFoundError, RecordError):
        return Bench()
    if not isinstance(value, Mapping):
        return Bench()
    return Bench(devices=_devices(value.get("devices")), in_a_row=_counts(value.get("in_a_row")))


def _devices(value: object) -> dict[str, Benched]:
    found = {}
    for name, entry in value.items() if isinstance(value, dict) else ():
        try:
            found[str(name)] = Benched.model_validate(entry)
        except ValidationError:
            continue
    return found


def _counts(value: object) -> dict[str, int]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(name): n for name, n in pairs if isinstance(n, int) and 0 < n < IN_A_ROW}
