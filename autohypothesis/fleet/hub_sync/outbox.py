"""What others are to be told, kept on disk until they were told, each thing once.

Whoever has news puts it here and goes on at once: a hub that is slow, down or gone delays nobody.
A courier delivers it later. Before a try the entry says that one is begun; so whoever finds it
after a kill asks first whether that try arrived, and tells it again only where it did not.
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
"""That reached somebody. Then it is set aside, so that it holds up nothing else."""
LOOK_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""After the first round that failed, and after many."""


class Outbox(Protocol):
    """Where a fleet leaves what others are to be told."""

    def put(self, kind: str, name: str, payload: Mapping[str, Any]) -> bool:
        """Take it, once; False where `kind` and `name` were taken before. Never waits."""

    def knows(self, kind: str, name: str) -> bool:
        """Whether they were taken before, whatever became of it."""


class Courier(Protocol):
    """Whoever can deliver entries. Each call may take as long as it needs.

    All of them raise DeliveryError where it did not work just now.
    """

    def mark(self, entry: OutboxEntry) -> Any:
        """How it stands there before the first try, as JSON: for `found`."""

    def found(self, entry: OutboxEntry) -> str | None:
        """The receipt of an earlier try that arrived; None where none did."""

    def deliver(self, entry: OutboxEntry) -> str:
        """Tell it; the receipt. UndeliverableError where it is refused for good."""


class Round(NamedTuple):
    """What became of the entries that were looked at."""

    sent: int
    refused: int
    left: int
    error: str = ""
    """The last thing that stood in the way."""


class DiskOutbox:
    """An outbox under research/: a file for each entry, a folder for each state."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def put(self, kind: str, name: str, payload: Mapping[str, Any]) -> bool:
        if self.knows(kind, name):
            return False
        entry = OutboxEntry(kind=kind, name=name, payload=dict(payload), number=time.time_ns())
        return write_new(self._path(PENDING, entry), to_json(entry, indent=2) + "\n")

    def knows(self, kind: str, name: str) -> bool:
        paths = (self.layout.outbox_entry(one, kind, name) for one in (SENT, REFUSED, PENDING))
        return any(path.exists() for path in paths)

    def receipt(self, kind: str, name: str) -> str:
        """What an entry that was sent is called there; empty where none was."""
        entry = load_or_none(OutboxEntry, self.layout.outbox_entry(SENT, kind, name))
        return entry.receipt if entry else ""

    def pending(self) -> list[OutboxEntry]:
        """In the order in which they were put. What cannot be read is set aside."""
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

    def deliver(self, courier: Courier) -> Round:
        """Deliver what is pending, until there is nobody to deliver it to.

        Raises:
            LockError: another process is at it.
        """
        sent = refused = 0
        error = ""
        with locks.hold(self.layout, "outbox", doing="telling others", timeout=0):
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

    def _delivered(self, courier: Courier, entry: OutboxEntry) -> str:
        """The receipt of this try or an earlier one."""
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
        """Whether it is given up. What reached nobody is no try, and waits as long as it takes."""
        if entry.tries >= MOST_TRIES and error.reached:
            why = f"given up after {entry.tries} tries: {error.problem}"
            self._close(REFUSED, entry, last_error=why)
            return True
        if not error.reached and entry.tries > 1:
            entry.tries -= 1  # never to 0: an earlier one may have arrived
        entry.last_error = error.problem
        write_json(self._path(PENDING, entry), entry)
        return False

    def _close(self, state: str, entry: OutboxEntry, **said: str) -> None:
        """Written where it ends before it is taken from where it was: no kill loses it."""
        closed = entry.model_copy(update={"closed_at": now(), **said})
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
