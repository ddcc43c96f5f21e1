"""What the observer has done in the background: the noise figure, and edits of registry.json."""

from __future__ import annotations

import time
from collections import Counter
from threading import Thread
from typing import Any

from autohypothesis.engine.lab import Lab
from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.observer.chronicle import Chronicle
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.bundles import Signature, signature_of

NOISE = "noise"
PROBLEM = "how far two runs of one commit lie apart, so that a difference can be told from noise"
FIGURE_S = 15.0
"""Between two calls of the tool."""
REGISTRY_S = 2.0


class Errands:
    """Looks after both; a turn never waits for either."""

    def __init__(self, lab: Lab, chronicle: Chronicle) -> None:
        self.lab = lab
        self.chronicle = chronicle
        self.noise: dict[str, Any] | None = None
        """What the tool answered last; None before it is published."""
        self.notes: list[str] = []
        """Edits of registry.json that were refused."""
        self.problem = ""
        self._thread: Thread | None = None
        self._asked = False
        self._figure_of = -1
        self._due = self._look = 0.0
        self._registry: Signature | None = None

    def turn(self) -> None:
        """Starts what is due, unless something is under way.

        Raises:
            LockError, RecordError: the registry cannot be written.
        """
        now = time.monotonic()
        if (self._thread is not None and self._thread.is_alive()) or now < self._look:
            return
        self._look = now + REGISTRY_S
        wants = self._figure_of != self.chronicle.version and now >= self._due and self._repeated()
        if wants and not self._asked:
            tools.request(self.lab, NOISE, problem=PROBLEM, requested_by="observer")
            self._asked = True
        registry = signature_of(str(self.lab.layout.registry))
        if wants or registry != self._registry:
            self._registry = registry
            self._thread = Thread(target=self._run, args=(wants,), name="errands", daemon=True)
            self._thread.start()

    def _repeated(self) -> bool:
        """Whether a commit has two values."""
        counts = Counter(
            (one.commit, one.platform_key)
            for one in self.chronicle.latest.values()
            if one.metric_value is not None
        )
        return any(count > 1 for count in counts.values())

    def _run(self, wants_figure: bool) -> None:
        try:
            if refused := tools.take_registry_edits(self.lab):
                self.notes = [*self.notes, *refused][-20:]
            if wants_figure and self._is_published():
                version = self.chronicle.version
                self._due = time.monotonic() + FIGURE_S
                self.noise = tools.figure(self.lab, NOISE)
                self._figure_of, self.problem = version, ""
        except (AutohypothesisError, OSError, ValueError) as error:
            self.problem = f"the tool {NOISE}: {error}"

    def _is_published(self) -> bool:
        found = tools.registry(self.lab).tools
        return any(one.tool_id == NOISE and one.status in ("published", "adopted") for one in found)
