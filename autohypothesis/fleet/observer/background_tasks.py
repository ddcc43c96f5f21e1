"""The noise figure, which the observer has a tool work out in the background."""

from __future__ import annotations

import time
from collections import Counter
from threading import Thread
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.files import file_stamp
from autohypothesis.records.history import LiveHistory

NOISE = "noise"
PROBLEM = "how far two runs of one commit lie apart, so that a difference can be told from noise"
FIGURE_S = 15.0
"""Between two calls of the tool."""
TRIES = 3
"""Calls for the same repeated runs: one that fails, or counts fewer of them than we, is made again
when the ledger has had time to catch up."""
REGISTRY_S = 2.0


class BackgroundTasks:
    """Requests the tool `noise` and calls it in a thread; a turn never waits for it."""

    def __init__(self, project: Project, history: LiveHistory) -> None:
        self.project = project
        self.history = history
        self.noise: dict[str, Any] | None = None
        """The last answer of the tool; None before it is published."""
        self.problem = ""
        self._thread: Thread | None = None
        self._asked = False
        self._figure_of = 0
        self._tries = 0
        self._about: tuple[object, ...] = ()
        self._due = self._look = 0.0

    def turn(self) -> None:
        """Start the tool if it is due, unless it runs.

        Raises:
            LockError, RecordError: the registry cannot be written.
        """
        now = time.monotonic()
        if (self._thread is not None and self._thread.is_alive()) or now < self._look:
            return
        self._look = now + REGISTRY_S
        layout, repeats = self.project.layout, self._count_repeated_runs()
        if (about := (repeats, file_stamp(layout.registry))) != self._about:
            self._about, self._tries = about, 0
        if repeats in (0, self._figure_of) or self._tries >= TRIES or now < self._due:
            return
        if not self._asked:
            tools.request(layout, NOISE, problem=PROBLEM, requested_by="observer")
            self._asked = True
        self._thread = Thread(
            target=self._run, args=(repeats,), name="background tasks", daemon=True
        )
        self._thread.start()

    def _count_repeated_runs(self) -> int:
        valued = (each for each in self.history.latest.values() if each.metric_value is not None)
        counts = Counter((each.commit, each.platform_key) for each in valued)
        return sum(count for count in counts.values() if count > 1)

    def _run(self, repeats: int) -> None:
        """Have the noise worked out from `repeats` runs, if the tool is published."""
        layout = self.project.layout
        try:
            found = (tool for tool in tools.registry(layout).tools if tool.tool_id == NOISE)
            if not any(tool.status in ("published", "adopted") for tool in found):
                return
            self._tries += 1
            self._due = time.monotonic() + FIGURE_S
            self.noise = tools.figure(layout, NOISE)
            self.problem = ""
            if self.noise.get("runs", repeats) == repeats:
                self._figure_of = repeats
        except (AutohypothesisError, OSError, ValueError) as error:
            self.problem = f"the tool {NOISE}: {error}"
