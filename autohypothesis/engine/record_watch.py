"""Whether a run changed its own record: seen by the shim, from the outside.

In a sandbox nothing but `out/` and the home of a run can be written by it. Where there is none, or
should one fail, a file of the record that the shim and the starter did not write is found here, is
moved to `out/`, where nobody reads a result, and makes the run invalid.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from autohypothesis.engine.launch import Launch

MOST_NAMED = 8


class FileStamp(NamedTuple):
    """What changes with a file: inode, size, times of change in nanoseconds, kind."""

    inode: int
    size: int
    modified: int
    changed: int
    mode: int


class RecordWatch:
    """The files of one run folder and the records `launch.watched`, from before the run began."""

    def __init__(self, launch: Launch) -> None:
        self._run, self._others = launch.run, launch.watched
        self._before = {path: self._stamp(path) for path in (*self._kept_files(), *self._others)}
        self._events: tuple[int, int] | None = None
        self._events_changed = False

    def event_expected(self) -> None:
        """To be called before the shim appends to events.jsonl."""
        if self._events is not None and self._events != self._events_now():
            self._events_changed = True

    def event_written(self) -> None:
        """To be called after it has."""
        self._events = self._events_now()

    def findings(self, *, log_is_ours: bool) -> list[str]:
        """Return what the run did to its record, in words that follow "the training changed".

        Files that it made are moved to `out/`. To be called when all its processes have ended.
        """
        self.event_expected()
        found = [] if log_is_ours else ["run.log of its record"]
        found += ["events.jsonl of its record"] if self._events_changed else []
        for path, before in self._before.items():
            if self._stamp(path) != before:
                found.append(f"{os.path.basename(path)} of its record")
        for path in self._kept_files():
            if path not in self._before:
                found.append(f"{os.path.basename(path)} of its record, which it made")
                self._set_aside(path)
        rest = len(found) - MOST_NAMED
        return found[:MOST_NAMED] + ([f"and {rest} more"] if rest > 0 else [])

    def _kept_files(self) -> Iterator[str]:
        """What lies in the run folder and is not written while the run lasts."""
        run = self._run
        written = {
            run.out,
            run.home,
            run.scoring_home,
            run.events,
            run.log,
            run.score_log,
            run.shim_log,
            run.reserve,
        }
        names = {path.name for path in written}
        logs = tuple(f"{path.name}.tail" for path in (run.log, run.score_log))
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(run.folder)):
                # The starter writes shim.json.PID beside shim.json while the shim begins.
                if name not in names and not name.startswith((*logs, f"{run.shim.name}.")):
                    yield str(run.folder / name)

    def _stamp(self, path: str) -> FileStamp | None:
        try:
            found = os.lstat(path)
        except OSError:
            return None
        # shim.json is linked into place, and its other name is removed while the run begins.
        changed = 0 if path == str(self._run.shim) else found.st_ctime_ns
        return FileStamp(found.st_ino, found.st_size, found.st_mtime_ns, changed, found.st_mode)

    def _set_aside(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.makedirs(self._run.out, exist_ok=True)
            os.rename(path, self._run.out / f"from-the-record-{os.path.basename(path)}")

    def _events_now(self) -> tuple[int, int]:
        with contextlib.suppress(OSError):
            status = os.lstat(self._run.events)
            return status.st_ino, status.st_size
        return 0, 0
