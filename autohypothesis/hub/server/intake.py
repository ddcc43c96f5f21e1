"""A push, from its bytes to an entry in the index; or nothing of it is left.

A push is unpacked and looked at in a quarantine folder of its own, in the data folder, so that what
is taken moves by rename. One push is taken in at a time: what the next one builds on is then either
there for good, or was never seen. The SQL transaction at the end makes a push true; all before it
is undone, at once after an error and at the next start after a kill, which finds in
`publishing.json` what a publication touched.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autohypothesis.errors import AutohypothesisError, GitError
from autohypothesis.hub.server import commits
from autohypothesis.hub.server.database import Database
from autohypothesis.hub.server.inspection import (
    PACK_HEADER,
    NewCommit,
    PushHeader,
    PushInspection,
    parse_header,
)
from autohypothesis.hub.server.refusals import (
    BundleError,
    HubRefusalError,
    disk_full,
    disk_trouble,
)
from autohypothesis.hub.server.settings import MB, DataFolder, HubLimits
from autohypothesis.hub.server.store import CommitStore
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git_limited import Bounds, Ended, objects, run

_UNSYNCED = "-c core.fsync=none"
"""Objects in quarantine need not outlive the machine; published ones are flushed."""
_WAIT_S = 60.0
log = logging.getLogger("autohypothesis.hub")

# ── quarantine ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PushQuarantine:
    """The folder of one push; objects of the repository are visible from it, not the reverse."""

    folder: Path
    repository: Path

    @classmethod
    def make(cls, incoming: Path, repository: Path) -> PushQuarantine:
        made = cls(incoming / secrets.token_hex(16), repository)
        made.packs.mkdir(parents=True)
        return made

    @property
    def push(self) -> str:
        """The name of this push."""
        return self.folder.name

    @property
    def body(self) -> Path:
        return self.folder / "body"

    @property
    def packs(self) -> Path:
        return self.folder / "objects" / "pack"

    @property
    def _note(self) -> Path:
        return self.folder / "publishing.json"

    def environment(self, *, alone: bool = False) -> Mapping[str, str]:
        """For a git that writes here, and reads here and (unless `alone`) in the repository."""
        own = {
            "GIT_OBJECT_DIRECTORY": str(self.folder / "objects"),
            "GIT_QUARANTINE_PATH": str(self.folder / "objects"),
        }
        shared = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.repository / "objects")}
        return own if alone else {**own, **shared}

    def header(self, limits: HubLimits) -> PushHeader:
        with self.body.open("rb") as body:
            return parse_header(body.read(limits.header_bytes + PACK_HEADER + 2), limits)

    def unpack(self, header: PushHeader, limits: HubLimits) -> None:
        """Run index-pack on what follows the header.

        Raises:
            BundleError: git refuses the pack, or it is a bomb.
        """
        size = self.body.stat().st_size
        seconds = 1 + size // (8 * MB) + header.objects // 25_000
        bounds = Bounds(
            seconds=5 + 4 * seconds, cpu_seconds=seconds, file=2 * limits.bundle_bytes + MB
        )
        with self.body.open("rb") as body:
            os.lseek(body.fileno(), header.pack_at, os.SEEK_SET)
            answer = run(
                f"{_UNSYNCED} index-pack --stdin --fix-thin --strict --threads=1",
                [f"--max-input-size={limits.bundle_bytes}"],
                repository=self.repository, bounds=bounds, stdin=body,
                environment=self.environment(),
            )  # fmt: skip
        if answer.status:
            raise _refused(answer)

    def listing(self, limits: HubLimits) -> set[str]:
        """Every object in quarantine.

        Raises:
            BundleError: there are too many, or they are too large.
        """
        answer = run(
            "cat-file --batch-check --batch-all-objects --unordered --buffer",
            repository=self.repository, bounds=Bounds(cpu_seconds=4),
            environment=self.environment(alone=True),
        )  # fmt: skip
        if answer.status:
            raise _refused(answer)
        facts = (line.split() for line in answer.text.splitlines())
        sizes = {name: int(size) for name, _, size in facts}
        if len(sizes) > 2 * limits.objects:
            raise BundleError(f"it unpacks to {len(sizes):,} objects")
        largest, total = max(sizes.values(), default=0), sum(sizes.values())
        if largest > limits.object_bytes or total > limits.new_bytes:
            raise BundleError(
                f"its largest object has {largest:,} bytes, all of them {total:,};"
                f" at most {limits.object_bytes:,} and {limits.new_bytes:,} are taken"
            )
        return set(sizes)

    def pack(self, names: Iterable[str], everything: bool) -> str:
        """The name of the pack that holds exactly `names`; `everything`: it is the one that came.

        Raises:
            GitError: git could not make it.
        """
        if everything:
            return next(self.packs.glob("*.pack")).stem
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        answer = run(
            f"{_UNSYNCED} pack-objects --quiet --threads=1", [str(new / "pack")],
            repository=self.repository, bounds=Bounds(file=256 * MB),
            stdin="".join(f"{name}\n" for name in sorted(names)).encode(),
            environment=self.environment(),
        )  # fmt: skip
        if answer.disk_full:
            raise disk_full()
        if answer.status:
            raise GitError(f"the new objects could not be packed: {answer.cut or answer.reason}")
        shutil.rmtree(self.packs)
        new.rename(self.packs)
        return f"pack-{answer.text}"

    def announce(self, pack: str | None, refs: Sequence[str]) -> None:
        """Write down, durably, what will be published."""
        write_json(self._note, {"pack": pack, "refs": list(refs)})

    def announced(self) -> tuple[str | None, list[str]] | None:
        """Pack and refs that are being published; None: nothing is yet."""
        try:
            note: Any = read_json(self._note)
        except FileNotFoundError:
            return None
        return note["pack"], list(note["refs"])

    def withdraw(self) -> None:
        """Nothing of what was announced is half-done any more."""
        self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _refused(answer: Ended) -> HubRefusalError:
    if answer.cut:
        return BundleError(f"unpacking it takes more {answer.cut} than is given to one push")
    if answer.disk_full:
        return disk_full()
    hint = ""
    if "did not receive expected object" in answer.words or "unresolved delta" in answer.words:
        hint = "its history is not complete: push from a clone that is not shallow"
    return BundleError(answer.reason, hint=hint)


# ── publication ─────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Intake:
    """Takes pushes into `store` and `database`."""

    folder: DataFolder
    store: CommitStore
    database: Database
    limits: HubLimits
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _loose: int = 0
    """Packs since the last common index."""

    def quarantine(self) -> PushQuarantine:
        return PushQuarantine.make(self.folder.incoming, self.store.path)

    def take(self, quarantine: PushQuarantine, agent: str) -> list[str]:
        """The heads of the bundle in `quarantine`, now indexed as pushed by `agent`.

        Raises:
            HubRefusalError: nothing of it was taken, and nothing of it is left.
        """
        try:
            header = quarantine.header(self.limits)
            if not self._turn.acquire(timeout=_WAIT_S):
                raise HubRefusalError(
                    503, "too many pushes at one time; nothing was stored", wait=5
                )
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

    def _take(self, quarantine: PushQuarantine, header: PushHeader, agent: str) -> None:
        for folder in self._left():
            if folder != quarantine.folder and PushQuarantine(folder, self.store.path).announced():
                self._settle(folder)
        self._check_prerequisites(header)
        quarantine.unpack(header, self.limits)
        pack = quarantine.listing(self.limits)
        environment = quarantine.environment()
        with objects(self.store.path, Bounds(seconds=30, cpu_seconds=20), environment) as reader:
            inspection = PushInspection(reader, self._known, pack, self.limits)
            found = inspection.commits(header.heads)
        if not found:
            return
        fresh = inspection.reached - self.store.present(inspection.reached)
        name = quarantine.pack(fresh, everything=fresh == pack) if fresh else None
        self._publish(quarantine, name, found, agent)
        self._loose += name is not None
        if self._loose >= self.limits.loose_packs:
            self._index_packs()

    def _check_prerequisites(self, header: PushHeader) -> None:
        lacking = set(header.prerequisites) - self._known(header.prerequisites)
        if lacking:
            raise BundleError(
                f"parent not found: it builds on commit {min(lacking)}, which is not here",
                hint="push that one first, or a bundle of the full history",
            )

    def _known(self, names: Iterable[str]) -> set[str]:
        return commits.known(self.database, names)

    def _publish(
        self, quarantine: PushQuarantine, pack: str | None, found: Sequence[NewCommit], agent: str
    ) -> None:
        refs = [commit.hash for commit in found]
        quarantine.announce(pack, refs)
        try:
            if pack:
                self._move(quarantine, pack)
            self.store.anchor(refs)
            commits.record(self.database, quarantine.push, agent, found)
        except BaseException:
            self._take_back(pack, refs)
            quarantine.withdraw()
            raise
        quarantine.withdraw()

    def _move(self, quarantine: PushQuarantine, pack: str) -> None:
        """Move the pack, then its index: git looks for the index first."""
        for suffix in ("pack", "idx"):
            source = quarantine.packs / f"{pack}.{suffix}"
            source.chmod(0o444)
            _flush(source)
            source.rename(self.store.packs / source.name)
        _flush(self.store.packs)

    def _index_packs(self) -> None:
        """Each push leaves a pack; without this git would look through all of them each time."""
        self._loose = 0
        try:
            self.store.index_packs()
        except AutohypothesisError as error:  # the push is true; only the next ones are slower
            log.warning("%s", error)

    def _take_back(self, pack: str | None, refs: Sequence[str]) -> None:
        self.store.release(refs)
        for suffix in ("idx", "pack") if pack else ():
            (self.store.packs / f"{pack}.{suffix}").unlink(missing_ok=True)

    # ── after a kill ──────────────────────────────────────────────────────────────────────

    def sweep(self) -> list[str]:
        """At a start: undo what a killed server left half-done; returns what was done, in words.

        A push that the database knows is whole, since it is recorded last. Refs that are missing
        for indexed commits are made again; a commit whose objects are gone is reported.
        """
        notes = [line for folder in self._left() for line in self._settle(folder)]
        self._remove_locks()
        self._loose = sum(1 for _ in self.store.packs.glob("*.idx"))
        indexed, anchored = commits.every(self.database), self.store.anchored()
        bare = indexed - anchored
        here = self.store.present(sorted(bare))
        if here:
            self.store.anchor(sorted(here))
            notes.append(f"{len(here)} commits had lost their refs, and have them again")
        notes += [f"commit {name} is indexed, but its objects are gone" for name in bare - here]
        if foreign := anchored - indexed:
            notes.append(
                f"{len(foreign)} commits in the repository are not indexed: push them anew"
            )
        for line in notes:
            log.warning("%s", line)
        return notes

    def _left(self) -> list[Path]:
        return [folder for folder in self.folder.incoming.iterdir() if folder.is_dir()]

    def _settle(self, folder: Path) -> list[str]:
        """Take back what was announced in `folder` and did not become true."""
        quarantine = PushQuarantine(folder, self.store.path)
        notes = []
        announced = quarantine.announced()
        if announced and not commits.recorded(self.database, folder.name):
            pack, refs = announced
            known = self._known(refs)
            self._remove_locks()
            self._take_back(None if known else pack, [name for name in refs if name not in known])
            notes.append(f"push {folder.name} had not become true, and was taken back")
        quarantine.withdraw()
        quarantine.remove()
        return notes

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
