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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autohypothesis.errors import AutohypothesisError, GitError
from autohypothesis.hub.server import commit_index
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
from autohypothesis.records.git_bundle import HEADER_LIMIT
from autohypothesis.records.git_call import Answer, Bounds, objects, run

_UNSYNCED = "-c core.fsync=none"
"""Objects in quarantine need not outlive the machine; published ones are flushed."""
_WAIT_S = 60.0
log = logging.getLogger("autohypothesis.hub")


@dataclass(frozen=True, slots=True)
class PushQuarantine:
    """The folder of one push; objects of the repository are visible from it, not the reverse."""

    folder: Path
    repository: Path
    limits: HubLimits

    @property
    def body(self) -> Path:
        return self.folder / "body"

    @property
    def packs(self) -> Path:
        return self.folder / "objects" / "pack"

    @property
    def note(self) -> Path:
        """Names what is being published; while it is there, the publication may be half-done."""
        return self.folder / "publishing.json"

    def environment(self, *, alone: bool = False) -> Mapping[str, str]:
        """Return that of a git that writes here, and reads here and in the repository."""
        own = {
            "GIT_OBJECT_DIRECTORY": str(self.folder / "objects"),
            "GIT_QUARANTINE_PATH": str(self.folder / "objects"),
        }
        shared = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.repository / "objects")}
        return own if alone else {**own, **shared}

    def header(self) -> PushHeader:
        with self.body.open("rb") as body:
            start = body.read(HEADER_LIMIT + PACK_HEADER + 2)
        return parse_header(start, self.limits)

    def unpack(self, header: PushHeader) -> None:
        """Run index-pack on what follows the header.

        Raises:
            BundleError: git refuses the pack, or it is a bomb.
        """
        largest = self.limits.bundle_bytes
        seconds = 1 + self.body.stat().st_size // (8 * MB) + header.objects // 25_000
        bounds = Bounds(seconds=5 + 4 * seconds, cpu_seconds=seconds, file=2 * largest + MB)
        with self.body.open("rb") as body:
            os.lseek(body.fileno(), header.pack_at, os.SEEK_SET)
            answer = run(
                f"{_UNSYNCED} index-pack --stdin --fix-thin --strict --threads=1",
                [f"--max-input-size={largest}"],
                repository=self.repository, bounds=bounds, stdin=body,
                environment=self.environment(),
            )  # fmt: skip
        _check(answer)

    def listing(self) -> set[str]:
        """Return every object in quarantine.

        Raises:
            BundleError: there are too many, or they are too large.
        """
        answer = run(
            "cat-file --batch-check --batch-all-objects --unordered --buffer",
            repository=self.repository, bounds=Bounds(cpu_seconds=4),
            environment=self.environment(alone=True),
        )  # fmt: skip
        _check(answer)
        limits, facts = self.limits, (line.split() for line in answer.text.splitlines())
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

    def pack(self, names: Iterable[str]) -> str:
        """Replace the pack that came by one that holds exactly `names`; return its name."""
        new = self.folder / "new"
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
        write_json(self.note, {"pack": pack, "refs": list(refs)})

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _check(answer: Answer) -> None:
    """Raise where git refused what came."""
    if not answer.status:
        return
    if answer.cut:
        raise BundleError(f"unpacking it takes more {answer.cut} than is given to one push")
    if answer.disk_full:
        raise disk_full()
    hint = ""
    if "did not receive expected object" in answer.words or "unresolved delta" in answer.words:
        hint = "its history is not complete: push from a clone that is not shallow"
    raise BundleError(answer.reason, hint=hint)


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

    def quarantine(self, name: str = "") -> PushQuarantine:
        """Return the quarantine of a push by its name; without one that of a new push."""
        folder = self.folder.incoming / (name or secrets.token_hex(16))
        made = PushQuarantine(folder, self.store.path, self.limits)
        if not name:
            made.packs.mkdir(parents=True)
        return made

    def take(self, quarantine: PushQuarantine, agent: str) -> list[str]:
        """Return the heads of the bundle in `quarantine`, now indexed as pushed by `agent`.

        Raises:
            HubRefusalError: nothing of it was taken, and nothing of it is left.
        """
        try:
            header = quarantine.header()
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
            if not quarantine.note.exists():  # else the next push or start settles it first
                quarantine.remove()

    def _take(self, quarantine: PushQuarantine, header: PushHeader, agent: str) -> None:
        for other in self._left():
            if other.folder != quarantine.folder and other.note.exists():
                self._settle(other)
        lacking = set(header.prerequisites) - self._known(header.prerequisites)
        if lacking:
            raise BundleError(
                f"parent not found: it builds on commit {min(lacking)}, which is not here",
                hint="push that one first, or a bundle of the full history",
            )
        quarantine.unpack(header)
        came = quarantine.listing()
        environment = quarantine.environment()
        with objects(self.store.path, Bounds(seconds=30, cpu_seconds=20), environment) as reader:
            inspection = PushInspection(reader, self._known, came, self.limits)
            new = inspection.commits(header.heads)
        if not new:
            return
        fresh, pack = inspection.reached - self.store.present(inspection.reached), None
        if fresh == came:
            pack = next(quarantine.packs.glob("*.pack")).stem
        elif fresh:
            pack = quarantine.pack(fresh)
        self._publish(quarantine, pack, new, agent)
        self._loose += pack is not None
        if self._loose >= self.limits.loose_packs:  # git would look through all of them each time
            self._loose = 0
            try:
                self.store.index_packs()
            except AutohypothesisError as error:  # the push is true; only the next ones are slower
                log.warning("%s", error)

    def _known(self, names: Iterable[str]) -> set[str]:
        with self.database.read() as connection:
            return commit_index.known(connection, names)

    def _publish(
        self, quarantine: PushQuarantine, pack: str | None, new: Sequence[NewCommit], agent: str
    ) -> None:
        refs = [commit.hash for commit in new]
        quarantine.announce(pack, refs)
        try:
            # git looks for the index first, so it is moved last.
            for suffix in ("pack", "idx") if pack else ():
                source = quarantine.packs / f"{pack}.{suffix}"
                source.chmod(0o444)
                _flush(source)
                source.rename(self.store.packs / source.name)
            _flush(self.store.packs)
            self.store.anchor(refs)
            commit_index.record(self.database, quarantine.folder.name, agent, new)
        except BaseException:
            self._take_back(pack, refs)
            quarantine.note.unlink()
            raise
        quarantine.note.unlink()

    def _take_back(self, pack: str | None, refs: Sequence[str]) -> None:
        self.store.release(refs)
        for suffix in ("idx", "pack") if pack else ():
            (self.store.packs / f"{pack}.{suffix}").unlink(missing_ok=True)

    # ── after a kill ──────────────────────────────────────────────────────────────────────

    def sweep(self) -> None:
        """Undo at a start what a killed server left half-done; the log says what.

        A push that the database knows is whole, since it is recorded last. Refs that are missing
        for indexed commits are made again; a commit whose objects are gone is reported.
        """
        for quarantine in self._left():
            self._settle(quarantine)
        self._remove_locks()
        self._loose = sum(1 for _ in self.store.packs.glob("*.idx"))
        indexed, anchored = commit_index.every(self.database), self.store.anchored()
        bare = indexed - anchored
        here = self.store.present(sorted(bare))
        if here:
            self.store.anchor(sorted(here))
            log.warning("%d commits had lost their refs, and have them again", len(here))
        for name in bare - here:
            log.warning("commit %s is indexed, but its objects are gone", name)
        if foreign := anchored - indexed:
            log.warning(
                "%d commits in the repository are not indexed: push them anew", len(foreign)
            )

    def _left(self) -> list[PushQuarantine]:
        folders = (folder for folder in self.folder.incoming.iterdir() if folder.is_dir())
        return [self.quarantine(folder.name) for folder in folders]

    def _settle(self, quarantine: PushQuarantine) -> None:
        """Take back what was announced and did not become true."""
        name = quarantine.folder.name
        note: Any = None
        with suppress(FileNotFoundError):
            note = read_json(quarantine.note)
        if note is not None and not commit_index.recorded(self.database, name):
            known = self._known(note["refs"])
            self._remove_locks()
            refs = [ref for ref in note["refs"] if ref not in known]
            self._take_back(None if known else note["pack"], refs)
            log.warning("push %s had not become true, and was taken back", name)
        quarantine.note.unlink(missing_ok=True)
        quarantine.remove()

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
