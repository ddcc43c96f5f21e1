"""Files that are made from others: an edit of one is moved aside and named, never overwritten.

The content written last is kept beside the file as `.NAME`, so that an edit is seen by its content.
It goes to `research/conflicts/`, with the commands to use instead in `<name>.reason`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from autohypothesis.errors import RecordError
from autohypothesis.installation import as_called
from autohypothesis.records.files import (
    load_or_none,
    read_bytes,
    sweep,
    write_atomic,
    write_json,
    write_new,
)
from autohypothesis.records.layout import Layout
from autohypothesis.schema import now
from autohypothesis.system import rename_exclusive

REMEMBERED = 4
"""Versions that may still lie at the path, or where it was moved from, without being an edit."""
STATE_LIMIT = 16 * 1024 * 1024


class Written(BaseModel):
    """The document `.NAME`."""

    marks: list[str] = []
    """SHA-256 of the versions that were written last, the newest first."""
    content: str = ""


class DerivedFile:
    """A file that only we write. All but `content` need the lock of its writer.

    Args:
        remedy: the commands that do what an edit of the file was meant to do.
    """

    def __init__(self, layout: Layout, path: Path, *, remedy: str) -> None:
        self.layout = layout
        self.path = path
        self._remedy = remedy
        self._state = layout.written_copy(path)
        self._before = layout.replaced_version(path)

    def content(self) -> bytes | None:
        """Return what was written last, whatever became of the file; None if that is unknown."""
        content = self._written().content
        return content.encode() if content else None

    def move_edits(self) -> list[Path]:
        """Move each version that is not ours to `research/conflicts/`; return where they are."""
        marks = self._written().marks
        return [
            self._set_aside(path)
            for path in (self.path, self._before)
            if _mark(path) not in (None, *marks)
        ]

    def write(self, content: bytes, *, durable: bool = True) -> None:
        """Replace the file, after `move_edits`.

        An edit that arrives meanwhile stays where it is until the next call. The replaced version
        stays for as long, since an editor that has it open may still write into it.

        Raises:
            RecordError: the disk is full.
        """
        self.move_edits()
        marks = [sha256(content).hexdigest(), *self._written().marks][:REMEMBERED]
        write_json(self._state, Written(marks=marks, content=content.decode()), durable=durable)
        with suppress(FileNotFoundError):
            os.rename(self.path, self._before)
            if _mark(self._before) not in marks:
                with suppress(FileExistsError):
                    rename_exclusive(self._before, self.path)
                return
        write_new(self.path, content, durable=durable)
        sweep(self.path.parent)

    def _written(self) -> Written:
        return load_or_none(Written, self._state, limit=STATE_LIMIT) or Written()

    def _set_aside(self, path: Path) -> Path:
        """Move `path`, after its reason was written: a kill in between leaves the edit in place."""
        stamp = f"{now():%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
        kept = self.layout.conflicts / f"{stamp}-{self.path.name}"
        reason = f"{self.path.name} is made from other files, so an edit has no effect: "
        write_atomic(kept.with_name(f"{kept.name}.reason"), as_called(f"{reason}{self._remedy}\n"))
        with suppress(FileNotFoundError):
            os.rename(path, kept)
        return kept


def _mark(path: Path) -> str | None:
    try:
        return sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        return None
    except RecordError:
        return "no file"
