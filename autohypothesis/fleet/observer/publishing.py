"""What the observer writes for others: the brief, the summary, the search model, the knowledge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.presence import read_manifest
from autohypothesis.fleet.observer.crew import Crew
from autohypothesis.fleet.observer.findings import Learnt
from autohypothesis.fleet.observer.summary import write_summary
from autohypothesis.fleet.observer.tried import Library, Reference
from autohypothesis.fleet.queue import brief as briefs
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.roster.prompts import write_assignments
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.standings import best_kept, of_tag
from autohypothesis.schema import Brief, Others, Steering

BRIEF_S = 1.0
SUMMARY_S = 1.0
LEARNT_S = 10.0
SHARE = 20
"""What takes a second to write is written once in so many."""
BEST = ("id", "commit", "description", "metric_name", "metric_value", "confirmation")


class Publishing:
    """Each of the four at its own pace, and only when it says something new."""

    def __init__(
        self, project: Project, queue: Queue, chronicle: Chronicle, library: Library
    ) -> None:
        self.project = project
        self.queue = queue
        self.chronicle = chronicle
        self.library = library
        self.brief: Brief | None = None
        """The last one that was published."""
        self.best_row: Mapping[str, Any] | None = None
        self.counts: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        """Of the tag; another list whenever the ledger was written."""
        self._ledger: Signature | None = None
        self._said: Any = None
        self._written: Signature | None = None
        self._due = {"brief": 0.0, "summary": 0.0, "learnt": 0.0}
        self._learnt_at: tuple[object, ...] = ()

    @property
    def best(self) -> dict[str, Any] | None:
        """The best kept experiment, as the status shows it."""
        return {key: self.best_row.get(key) for key in BEST} if self.best_row else None

    def turn(
        self,
        *,
        reference: Reference | None,
        steering: Steering,
        crew: Crew,
        noise: Mapping[str, Any] | None,
        notes: Sequence[str],
        others: Others | None = None,
        all: bool = False,
    ) -> None:
        """Writes what is due; with `all`, everything.

        Raises:
            LockError, RecordError: something cannot be written now.
        """
        if self._is_due("brief", all):
            started = time.monotonic()
            self.counts = self.queue.counts()
            self._read_ledger()
            self._publish_brief(reference, steering, noise, list(notes), others)
            self._wait("brief", started, BRIEF_S)
        if self._is_due("summary", all):
            started = time.monotonic()
            best = self.best_row
            write_summary(self.project.layout, crew.heartbeats, alive=crew.alive, best=best)
            self._wait("summary", started, SUMMARY_S)
        if reference is not None and self._is_due("learnt", all):
            started = time.monotonic()
            self._publish_learnt(reference, steering, noise)
            self._wait("learnt", started, LEARNT_S)

    def _publish_brief(
        self,
        reference: Reference | None,
        steering: Steering,
        noise: Mapping[str, Any] | None,
        notes: list[str],
        others: Others | None,
    ) -> None:
        settings = (reference.settings if reference is not None else None) or {}
        opened = [one.model_dump(mode="json") for one in self.queue.open()]
        saying = (
            self._ledger, opened, self.counts, steering, dict(settings), noise, notes, others,
        )  # fmt: skip
        if saying == self._said and signature_of(str(self.project.layout.brief)) == self._written:
            return
        self.brief = briefs.publish(
            self.project,
            self.queue,
            rows=self.rows,
            steering=steering,
            reference_settings=settings,
            notes=notes,
            noise=noise,
            others=others,
        )
        self._said = saying
        self._written = signature_of(str(self.project.layout.brief))
        if (manifest := read_manifest(self.project.layout)) is not None:
            write_assignments(self.project, self.queue, manifest)

    def _publish_learnt(
        self, reference: Reference, steering: Steering, noise: Mapping[str, Any] | None
    ) -> None:
        about = (self.chronicle.version, reference.commit, steering, noise)
        if about == self._learnt_at or not self.chronicle.latest:
            return
        known = [*self.queue.open(), *self.queue.done()]
        Learnt(
            layout=self.project.layout,
            tag=self.project.active(),
            metric=self.project.task.objective.metric,
            chronicle=self.chronicle,
            library=self.library,
            reference=reference,
            hypotheses={one.hypothesis_id: one for one in known},
            steering=steering,
            noise=briefs.noise_words(noise or {}),
        ).write()
        self._learnt_at = about

    def _read_ledger(self) -> None:
        """The rows of the tag; read when the ledger was written."""
        signature = signature_of(str(self.project.layout.ledger))
        if signature == self._ledger:
            return
        self.rows = [
            dict(row) for row in of_tag(read_ledger(self.project.layout), self.project.tag)
        ]
        self.best_row = best_kept(self.rows)
        self._ledger = signature

    def _is_due(self, what: str, all: bool) -> bool:
        return all or time.monotonic() >= self._due[what]

    def _wait(self, what: str, started: float, pause: float) -> None:
        ended = time.monotonic()
        self._due[what] = ended + max(pause, SHARE * (ended - started))
