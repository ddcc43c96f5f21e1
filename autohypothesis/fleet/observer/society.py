"""A fleet among others: what it tells them after each decision, and what of theirs its brief says.

Nothing here speaks to anybody. What is to be told goes into the outbox; what was heard lies in a
file; whether anybody can be asked is what the courier says of itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.fleet.hub_sync.incoming import (
    FeedReader,
    HubConnection,
    hub_connection,
    quote_feed,
)
from autohypothesis.fleet.hub_sync.outbox import DiskOutbox
from autohypothesis.fleet.hub_sync.outgoing import HubReporter
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.schema import Others

LOOK_S = 2.0


class Society:
    """The others, as the observer of one search sees them."""

    def __init__(self, project: Project, queue: Queue) -> None:
        self._layout = project.layout
        self._telling = HubReporter(project, queue, DiskOutbox(project.layout))
        self._feed = FeedReader(project.layout)
        self._rows: Sequence[Mapping[str, Any]] | None = None
        self._contact = HubConnection(False)
        self._look_at = 0.0

    @property
    def problems(self) -> list[str]:
        return self._telling.problems

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Puts what was decided since into the outbox.

        Raises:
            RecordError: the disk is full.
        """
        if rows is not self._rows and self._telling.turn(rows):
            self._rows = rows

    def said(self) -> Others | None:
        """For the brief."""
        return quote_feed(self._feed.heard())

    def is_alone(self) -> bool:
        """Whether nobody can be asked now who tries what."""
        if time.monotonic() >= self._look_at:
            self._contact = hub_connection(self._layout)
            self._look_at = time.monotonic() + LOOK_S
        return not self._contact.is_open
