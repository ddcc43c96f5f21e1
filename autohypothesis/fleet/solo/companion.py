"""The worker of a loop, in a thread of its own, and what it is told of the end."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from autohypothesis.engine.project import Project
from autohypothesis.fleet.live.presence import SOLO
from autohypothesis.fleet.live.stop import Stopping
from autohypothesis.fleet.worker.worker import Worker
from autohypothesis.records.git import Repository
from autohypothesis.schema import Worker as Entry

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
"""A worker that lived so long begins anew with the first pause."""


def entry(project: Project) -> Entry:
    """The one worker: on whichever device is free; its worktree is made when a change needs one."""
    place = project.layout.worktree(SOLO)
    return Entry(worker_id=SOLO, gpu_id="any", worktree_path=str(place))


class Companion:
    """Works beside the observer until one of them is asked to stop.

    A worker that fails is made anew after a pause that doubles, as a fleet's would be: it finds
    on disk what the one before it left.
    """

    def __init__(self, project: Project, stop: Stopping, *, label: str) -> None:
        self.problem = ""
        """How the last worker failed; empty while it works."""
        self._project = project
        self._label = label
        self._stop = stop
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name=SOLO, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def leave(self) -> None:
        """As a SIGTERM would; `join` waits for the end."""
        self._left.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most; whether it has come."""
        self._thread.join(seconds)
        return not self.lives

    # ── what the worker asks ──────────────────────────────────────────────────────────────

    @property
    def requested(self) -> bool:
        return self._left.is_set() or self._stop.requested

    @property
    def abandoned(self) -> bool:
        return self._stop.abandoned

    @property
    def hard(self) -> bool:
        return self._stop.hard

    def wait(self, seconds: float) -> bool:
        """A little late where only `leave` was called: nobody waits for longer than a look."""
        return self._stop.wait(seconds) or self.requested

    # ── in the thread ─────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        failures = 0
        while not self.requested:
            began = time.monotonic()
            try:
                # A repository object is one thread's.
                project = replace(self._project, repository=Repository(self._project.layout.root))
                self.problem = ""
                Worker(project, entry(project), label=self._label).run(self)
            except Exception as error:
                # The boundary of the thread: whatever it was, the search goes on.
                failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
                self.problem = f"the worker ended by {error!r}, and is made anew"
                self._left.wait(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 30)))
