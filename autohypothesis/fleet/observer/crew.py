"""Who can be given work: workers of the manifest that live, and whose device is not benched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autohypothesis.errors import RecordError
from autohypothesis.fleet.live import presence, quarantine
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.files import load
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Heartbeat, Manifest, Worker


@dataclass(frozen=True)
class Crew:
    """The workers at one moment."""

    workers: tuple[Worker, ...] = ()
    """Of the manifest, in its order."""
    alive: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    """Alive, and with a device that is not benched: they can be given work."""
    heartbeats: tuple[Heartbeat, ...] = ()

    def worker(self, worker_id: str) -> Worker | None:
        return next((one for one in self.workers if one.worker_id == worker_id), None)

    def has_device(self, worker_id: str, device: str | None) -> bool:
        """Whether `device` is the one that the worker uses."""
        worker = self.worker(worker_id)
        return worker is not None and device is not None and device in (worker.device, worker_id)

    @property
    def capacity(self) -> int:
        """For how many to have ideas; all, before the first has come."""
        return len(self.ready) or len(self.workers)


class CrewWatch:
    """Looks again and again.

    Args:
        workers: who they are, where the manifest does not say.
    """

    def __init__(self, layout: Layout, tag: str, workers: Sequence[Worker] = ()) -> None:
        self.layout = layout
        self.tag = tag
        self._given = tuple(workers)
        self._manifest: tuple[Signature, tuple[Worker, ...]] | None = None

    def look(self) -> Crew:
        workers = self._workers()
        heartbeats = presence.read_heartbeats(self.layout)
        alive = {one.worker_id for one in heartbeats if presence.worker_lives(one)}
        benched = quarantine.quarantined(self.layout)
        resting = {one.worker_id for one in heartbeats if one.state == "benched"}
        return Crew(
            workers=workers,
            alive=_named(workers, alive),
            ready=tuple(
                one.worker_id
                for one in workers
                if one.worker_id in alive - resting and one.device not in benched
            ),
            heartbeats=tuple(heartbeats),
        )

    def _workers(self) -> tuple[Worker, ...]:
        """The manifest's; those of the last good one when it is damaged or another tag's."""
        if self._given:
            return self._given
        signature = signature_of(str(self.layout.manifest))
        if self._manifest is not None and self._manifest[0] == signature:
            return self._manifest[1]
        before = self._manifest[1] if self._manifest is not None else ()
        try:
            manifest = load(Manifest, self.layout.manifest)
            found = tuple(manifest.workers) if manifest.tag == self.tag else before
        except (FileNotFoundError, RecordError):
            found = before
        self._manifest = (signature, found)
        return found


def _named(workers: Sequence[Worker], names: set[str]) -> tuple[str, ...]:
    return tuple(one.worker_id for one in workers if one.worker_id in names)
