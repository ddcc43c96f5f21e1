"""One push before it is true: a folder of its own, in which git unpacks and we look.

The folder is in the data folder, so that what is taken moves by rename. `publishing.json` names
what a publication touches; whoever finds the folder after a kill knows what to take back.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autohypothesis.errors import GitError
from autohypothesis.hub.server.bundle_header import PACK_HEADER, Header, parse
from autohypothesis.hub.server.refusals import BundleError, RefusedError, disk_full
from autohypothesis.hub.server.settings import MB, Limits
from autohypothesis.records.files import read_json, write_json
from autohypothesis.records.git_limited import Bounds, Ended, run

_UNSYNCED = "-c core.fsync=none"
"""What lies here need not outlive the machine; what is published is flushed on its way out."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A push on its way in; `objects` of the repository are visible from it, not the reverse."""

    folder: Path
    repository: Path

    @classmethod
    def make(cls, incoming: Path, repository: Path) -> Quarantine:
        found = cls(incoming / secrets.token_hex(16), repository)
        found.packs.mkdir(parents=True)
        return found

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
        """git that writes here, and reads here and (unless `alone`) in the repository."""
        own = {
            "GIT_OBJECT_DIRECTORY": str(self.folder / "objects"),
            "GIT_QUARANTINE_PATH": str(self.folder / "objects"),
        }
        shared = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.repository / "objects")}
        return own if alone else {**own, **shared}

    def header(self, limits: Limits) -> Header:
        with self.body.open("rb") as body:
            return parse(body.read(limits.header_bytes + PACK_HEADER + 2), limits)

    def unpack(self, header: Header, limits: Limits) -> None:
        """index-pack on what follows the header.

        Raises:
            BundleError: git refuses the pack, or it is a bomb.
        """
        size = self.body.stat().st_size
        seconds = 1 + size // (8 * MB) + header.objects // 25_000
        bounds = Bounds(
            seconds=5 + 4 * seconds, cpu_seconds=seconds, file=2 * limits.bundle_bytes + MB
        )
        words = f"{_UNSYNCED} index-pack --stdin --fix-thin --strict --threads=1"
        args = [f"--max-input-size={limits.bundle_bytes}"]
        with self.body.open("rb") as body:
            os.lseek(body.fileno(), header.pack_at, os.SEEK_SET)
            answer = run(
                words, args, repository=self.repository, bounds=bounds, stdin=body,
                environment=self.environment(),
            )  # fmt: skip
        if answer.status:
            raise _refused(answer)

    def listing(self, limits: Limits) -> dict[str, tuple[str, int]]:
        """Every object in quarantine, with kind and size.

        Raises:
            BundleError: there are too many, or they are too large.
        """
        words = "cat-file --batch-check --batch-all-objects --unordered --buffer"
        answer = run(
            words, repository=self.repository, bounds=Bounds(cpu_seconds=4),
            environment=self.environment(alone=True),
        )  # fmt: skip
        if answer.status:
            raise _refused(answer)
        facts = (line.split() for line in answer.text.splitlines())
        found = {name: (kind, int(size)) for name, kind, size in facts}
        if len(found) > 2 * limits.objects:
            raise BundleError(f"it unpacks to {len(found):,} objects")
        largest = max((size for _, size in found.values()), default=0)
        total = sum(size for _, size in found.values())
        if largest > limits.object_bytes or total > limits.new_bytes:
            raise BundleError(
                f"its largest object has {largest:,} bytes, all of them {total:,};"
                f" at most {limits.object_bytes:,} and {limits.new_bytes:,} are taken"
            )
        return found

    def pack(self, names: Iterable[str], everything: bool) -> str:
        """The name of the pack that holds exactly `names`; `everything`: it is the one that came.

        Raises:
            GitError: git could not make it.
        """
        if everything:
            return next(self.packs.glob("*.pack")).stem
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        (self.folder / "new").mkdir()
        answer = run(
            f"{_UNSYNCED} pack-objects --quiet --threads=1", [str(self.folder / "new" / "pack")],
            repository=self.repository, bounds=Bounds(file=256 * MB),
            stdin="".join(f"{name}\n" for name in sorted(names)).encode(),
            environment=self.environment(),
        )  # fmt: skip
        if answer.disk_full:
            raise disk_full()
        if answer.status:
            raise GitError(f"the new objects could not be packed: {answer.cut or answer.reason}")
        shutil.rmtree(self.packs)
        (self.folder / "new").rename(self.packs)
        return f"pack-{answer.text}"

    def announce(self, pack: str | None, refs: Sequence[str]) -> None:
        """Write down, durably, what will be published."""
        write_json(self._note, {"pack": pack, "refs": list(refs)})

    def announced(self) -> tuple[str | None, list[str]] | None:
        """What was being published here; None: nothing yet."""
        try:
            note: Any = read_json(self._note)
        except FileNotFoundError:
            return None
        return note["pack"], list(note["refs"])

    def withdraw(self) -> None:
        """Nothing of what was written down is half-done any more."""
        self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _refused(answer: Ended) -> RefusedError:
    if answer.cut:
        return BundleError(f"unpacking it takes more {answer.cut} than is given to one push")
    if answer.disk_full:
        return disk_full()
    hint = ""
    if "did not receive expected object" in answer.words or "unresolved delta" in answer.words:
        hint = "its history is not complete: push from a clone that is not shallow"
    return BundleError(answer.reason, hint=hint)
