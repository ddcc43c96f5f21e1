"""A push, from its bytes to an entry in the index; or nothing of it is left.

One push is taken in at a time: what the next one builds on is then either there for good, or was
never seen. The SQL transaction at the end is what makes a push true; what comes before it is
undone, at once after an error and at the next start after a kill.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autohypothesis.errors import AutohypothesisError
from autohypothesis.hub.server import commits
from autohypothesis.hub.server.bundle_header import Header
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.quarantine import Quarantine
from autohypothesis.hub.server.refusals import BundleError, RefusedError, disk_trouble
from autohypothesis.hub.server.settings import Home, Limits
from autohypothesis.hub.server.store import Store
from autohypothesis.hub.server.walk import NewCommit, Walk
from autohypothesis.records.git_limited import Bounds, objects

CRASH = "AUTOHYPOTHESIS_HUB_CRASH_AT"
"""For tests: the step after which the server kills itself as `kill -9` would."""
STEPS = ("received", "unpacked", "walked", "announced", "pack", "idx", "refs", "recorded")
_WAIT_S = 60.0
log = logging.getLogger("autohypothesis.hub")


def reached(step: str) -> None:
    """Where a test may end the process."""
    if os.environ.get(CRASH) == step:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class Intake:
    """Takes pushes into `store` and `database`."""

    home: Home
    store: Store
    database: Database
    limits: Limits
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _loose: int = 0
    """Packs since the last common index."""

    def quarantine(self) -> Quarantine:
        return Quarantine.make(self.home.incoming, self.store.path)

    def take(self, quarantine: Quarantine, agent: str) -> list[str]:
        """The heads of the bundle in `quarantine`, now indexed as pushed by `agent`.

        Raises:
            RefusedError: nothing of it was taken, and nothing of it is left.
        """
        try:
            reached("received")
            header = quarantine.header(self.limits)
            if not self._turn.acquire(timeout=_WAIT_S):
                raise RefusedError(503, "too many pushes at one time; nothing was stored", wait=5)
            try:
                self._take(quarantine, header, agent)
            finally:
                self._turn.release()
            return list(header.heads)
        except OSError as error:
            raise disk_trouble(error) from error
        finally:
            if quarantine.announced() is None:  # else the next push or start settles it first
                quarantine.remove()

    def _take(self, quarantine: Quarantine, header: Header, agent: str) -> None:
        for folder in self._left():
            if folder != quarantine.folder and Quarantine(folder, self.store.path).announced():
                self._settle(folder)
        self._check_prerequisites(header)
        quarantine.unpack(header, self.limits)
        reached("unpacked")
        pack = quarantine.listing(self.limits)
        environment = quarantine.environment()
        with objects(self.store.path, Bounds(seconds=30, cpu_seconds=20), environment) as reader:
            walk = Walk(reader, self._known, pack.keys(), self.limits)
            found = walk.commits(header.heads)
        reached("walked")
        if found:
            fresh = walk.reached - self.store.present(walk.reached)
            name = quarantine.pack(fresh, everything=fresh == pack.keys()) if fresh else None
            self._publish(quarantine, name, found, agent)
            self._loose += name is not None
            if self._loose >= self.limits.loose_packs:
                self._index_packs()

    def _check_prerequisites(self, header: Header) -> None:
        lacking = set(header.prerequisites) - self._known(header.prerequisites)
        if lacking:
            raise BundleError(
                f"parent not found: it builds on commit {min(lacking)}, which is not here",
                hint="push that one first, or a bundle of the full history",
            )

    def _known(self, names: Iterable[str]) -> set[str]:
        return commits.known(self.database, names)

    def _publish(
        self, quarantine: Quarantine, pack: str | None, found: Sequence[NewCommit], agent: str
    ) -> None:
        refs = [commit.hash for commit in found]
        quarantine.announce(pack, refs)
        reached("announced")
        try:
            if pack:
                self._move(quarantine, pack)
            self.store.anchor(refs)
            reached("refs")
            commits.record(self.database, quarantine.push, agent, found)
        except BaseException:
            self._take_back(pack, refs)
            quarantine.withdraw()
            raise
        reached("recorded")
        quarantine.withdraw()

    def _move(self, quarantine: Quarantine, pack: str) -> None:
        """The pack, then its index: git looks for the index first."""
        for suffix in ("pack", "idx"):
            source = quarantine.packs / f"{pack}.{suffix}"
            source.chmod(0o444)
            _flush(source)
            source.rename(self.store.packs / source.name)
            reached(suffix)
        _flush(self.store.packs)

    def _index_packs(self) -> None:
        """Each push leaves a pack; without this git would look through all of them each time."""
        self._loose = 0
        try:
            self.store.index_packs()
        except AutohypothesisError as error:  # the push is true; only the next ones are slower
            log.warning("%s", error)

    def _take_back(self, pack: str | None, refs: Sequence[str]) -> None:
        """Undo a publication that did not become true."""
        self.store.release(refs)
        for suffix in ("idx", "pack") if pack else ():
            (self.store.packs / f"{pack}.{suffix}").unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        """After a start: undo what a killed server left half-done; what was done, in words.

        A push that the database knows is whole, since it is recorded last. Refs that are missing
        for indexed commits are made again; a commit whose objects are gone is reported.
        """
        said = [line for folder in self._left() for line in self._settle(folder)]
        self._remove_locks()
        self._loose = sum(1 for _ in self.store.packs.glob("*.idx"))
        indexed, anchored = commits.every(self.database), self.store.anchored()
        bare = indexed - anchored
        here = self.store.present(sorted(bare))
        if here:
            self.store.anchor(sorted(here))
            said.append(f"{len(here)} commits had lost their refs, and have them again")
        said += [f"commit {name} is indexed, but its objects are gone" for name in bare - here]
        foreign = anchored - indexed
        if foreign:
            said.append(f"{len(foreign)} commits in the repository are not indexed: push them anew")
        for line in said:
            log.warning("%s", line)
        return said

    def _left(self) -> list[Path]:
        return [folder for folder in self.home.incoming.iterdir() if folder.is_dir()]

    def _settle(self, folder: Path) -> list[str]:
        """Take back what was announced in `folder` and did not become true."""
        quarantine = Quarantine(folder, self.store.path)
        said = []
        note = quarantine.announced()
        if note and not commits.recorded(self.database, folder.name):
            pack, refs = note
            known = self._known(refs)
            self._remove_locks()
            self._take_back(None if known else pack, [name for name in refs if name not in known])
            said.append(f"push {folder.name} had not become true, and was taken back")
        quarantine.withdraw()
        quarantine.remove()
        return said

    def _remove_locks(self) -> None:
        """Locks of a git that died with the server; no other process writes here."""
        for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/*.lock"):
            for lock in self.store.path.glob(pattern):
                lock.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
