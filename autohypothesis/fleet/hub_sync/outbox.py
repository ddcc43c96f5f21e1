"""The outbox: entries for a hub, kept on disk until each was delivered once.

A hub that is slow, down or gone delays no search: a courier delivers the entries later. Before a
try the entry says that one is begun; so after a kill the courier asks first whether that try
arrived, and delivers again only where it did not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from autohypothesis.errors import DeliveryError, RecordError, UndeliverableError
from autohypothesis.records import locks
from autohypothesis.records.files import load, load_or_none, sweep, to_json, write_json, write_new
from autohypothesis.records.layout import Layout
from autohypothesis.schema import OutboxEntry, now

PENDING, SENT, REFUSED = "pending", "sent", "refused"
MOST_TRIES = 20
"""Tries that reached the hub. Then the entry is set aside, and holds up nothing else."""
LOOK_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""After the first round that failed, and after many."""


class EntryCourier(Protocol):
    """Delivers entries. Each call may take as long as it needs.

    All of them raise DeliveryError where it did not work just now.
    """

    def mark(self, entry: OutboxEntry) -> Any:
        """Return the state of the hub before the first try, as JSON: for `found`."""

    def found(self, entry: OutboxEntry) -> str | None:
        """Return the receipt of an earlier try that arrived; None where none did."""

    def deliver(self, entry: OutboxEntry) -> str:
        """Deliver it and return the receipt. UndeliverableError where it is refused for good."""


class Round(NamedTuple):
    """The outcome of one round of deliveries."""

    sent: int
    refused: int
    left: int
    error: str = ""
    """The last thing that stood in the way."""


class Outbox:
    """An outbox under research/: a file for each entry, a folder for each state."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def put(self, kind: str, name: str, payload: Mapping[str, Any]) -> bool:
        """Take an entry without waiting; return False where it was taken before."""
        if self.knows(kind, name):
            return False
        entry = OutboxEntry(kind=kind, name=name, payload=dict(payload), number=time.time_ns())
        return write_new(self._path(PENDING, entry), to_json(entry, indent=2) + "\n")

    def knows(self, kind: str, name: str) -> bool:
        """Return whether an entry was taken before, delivered or not."""
        states = (SENT, REFUSED, PENDING)
        return any(self.layout.outbox_entry(state, kind, name).exists() for state in states)

    def receipt(self, kind: str, name: str) -> str:
        """Return the name that the hub gave an entry; empty where it was not sent."""
        entry = load_or_none(OutboxEntry, self.layout.outbox_entry(SENT, kind, name))
        return entry.receipt if entry else ""

    def pending(self) -> list[OutboxEntry]:
        """Return entries in the order in which they were put; a damaged one is set aside."""
        found = []
        folder = self.layout.outbox_state(PENDING)
        for path in sorted(folder.glob("[!.]*.json")):
            try:
                found.append(load(OutboxEntry, path))
            except FileNotFoundError:
                continue
            except RecordError:
                aside = self.layout.outbox_state(REFUSED) / path.name
                aside.parent.mkdir(parents=True, exist_ok=True)
                path.replace(aside)
        return sorted(found, key=lambda entry: entry.number)

    def deliver(self, courier: EntryCourier) -> Round:
        """Deliver what is pending, until the hub cannot be reached.

        Raises:
            LockError: another process is at it.
        """
        sent = refused = 0
        error = ""
        with locks.hold(self.layout, "outbox", doing="delivering", timeout=0):
            sweep(self.layout.outbox_state(PENDING))
            waiting = self.pending()
            for entry in waiting:
                try:
                    receipt = self._delivered(courier, entry)
                except UndeliverableError as no:
                    self._close(REFUSED, entry, last_error=no.problem)
                    refused += 1
                except DeliveryError as no:
                    error = no.problem
                    refused += self._failed(entry, no)
                    if not no.reached:
                        break
                else:
                    self._close(SENT, entry, receipt=receipt)
                    sent += 1
        return Round(sent, refused, len(waiting) - sent - refused, error)

    def _delivered(self, courier: EntryCourier, entry: OutboxEntry) -> str:
        if self._path(SENT, entry).exists():  # a kill came before it was taken out of the queue
            return load(OutboxEntry, self._path(SENT, entry)).receipt
        if entry.tries:
            receipt = courier.found(entry)
            if receipt is not None:
                return receipt
        else:
            entry.mark = courier.mark(entry)
        entry.tries += 1
        write_json(self._path(PENDING, entry), entry)
        return courier.deliver(entry)

    def _failed(self, entry: OutboxEntry, error: DeliveryError) -> bool:
        """Return whether it is given up. What did not reach the hub is no try, and waits."""
        if entry.tries >= MOST_TRIES and error.reached:
            why = f"given up after {entry.tries} tries: {error.problem}"
            self._close(REFUSED, entry, last_error=why)
            return True
        if not error.reached and entry.tries > 1:
            entry.tries -= 1  # never to 0: an earlier one may have arrived
        entry.last_error = error.problem
        write_json(self._path(PENDING, entry), entry)
        return False

    def _close(self, state: str, entry: OutboxEntry, **changes: str) -> None:
        """Written where it ends before it is taken from where it was: no kill loses it."""
        closed = entry.model_copy(update={"closed_at": now(), **changes})
        if not self._path(state, entry).exists():
            write_json(self._path(state, entry), closed)
        self._path(PENDING, entry).unlink(missing_ok=True)

    def _path(self, state: str, entry: OutboxEntry) -> Path:
        return self.layout.outbox_entry(state, entry.kind, entry.name)


def pause_s(failures: int) -> float:
    """Before the next round, after so many in a row that delivered nothing."""
    if not failures:
        return LOOK_S
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 20)))
