"""The observer's decisions: settle what has ended, then bring the ledger up to date at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from autohypothesis.engine import recovery
from autohypothesis.engine.decide import NeedsRuns, edits_in_results, settle
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import Constraint
from autohypothesis.errors import RECOVERABLE_ERRORS, AutohypothesisError, RecordError, SettleError
from autohypothesis.fleet.queue.chronicle import Chronicle
from autohypothesis.fleet.sync import sync
from autohypothesis.fleet.weights import trim
from autohypothesis.records.files import load
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Decision, Plan

SYNC_S = 1.0
"""The ledger lags by this much at most while runs begin and end."""
LOOK_S = 10.0
"""Between two looks for runs that no process collected."""
SHARE = 50
"""A look that takes a second is taken once in so many."""


class Deciding:
    """Decides for one search, turn after turn."""

    def __init__(self, project: Project, chronicle: Chronicle) -> None:
        self.project = project
        self.chronicle = chronicle
        self.refused: dict[str, AutohypothesisError] = {}
        """Experiment -> why it could not be decided, as of the last try."""
        self.needs_runs: list[NeedsRuns] = []
        """Wins that wait for runs which confirm them, as of the last try."""
        self.edits: list[str] = []
        """Remarks about decisions that were written into a result.json."""
        self._tried_at = -1
        self._last_try = self._last_sync = self._last_look = float("-inf")
        self._pause = LOOK_S
        self._dirty = True
        self._sight = (0, 0)

    def turn(self, limits: Mapping[str, Constraint], *, begun: int) -> list[Decision]:
        """Decide what has ended since.

        Args:
            begun: how many experiments were submitted so far.

        Raises:
            LockError: another process is settling, or syncing, and does not finish.
            RecordError: the disk is full.
        """
        self._dirty |= self._sight != (sight := (begun, len(self.chronicle.undecided)))
        self._sight = sight
        fresh = self.chronicle.fresh()
        decisions = self._settle(limits) if fresh or self._retry_is_due() else []
        self._dirty |= bool(fresh)
        now = time.monotonic()
        if now - self._last_look >= self._pause:
            self._collect_strangers()
            self._sync()
            self._last_look = time.monotonic()
            self._pause = max(LOOK_S, SHARE * (self._last_look - now))
        elif decisions or (self._dirty and now - self._last_sync >= SYNC_S):
            self._sync()
        if any(one.decision_status in ("keep", "replicate") for one in decisions):
            trim(self.project, read_ledger(self.project.layout))
        return decisions

    def waits(self) -> list[str]:
        """Experiments that have ended, of whatever tag, and may still be decided."""
        known = {*self.refused, *(win.experiment_id for win in self.needs_runs)}
        return [name for name in self.chronicle.ended() if name not in known]

    def _retry_is_due(self) -> bool:
        """What was refused may be decided once something else was, or once a file was mended."""
        if not self.refused and not self.needs_runs:
            return False
        later = time.monotonic() - self._last_try >= LOOK_S
        return later or self._tried_at != self.chronicle.version

    def _settle(self, limits: Mapping[str, Constraint]) -> list[Decision]:
        self._last_try = time.monotonic()
        self._tried_at = self.chronicle.version
        seen = self.chronicle.results()
        settlement = settle(self.project, decided_by="observer", may=self._may, limits=limits)
        self.chronicle.seen(seen)
        self.refused = {one.experiment_id: one.error for one in settlement.refused}
        self.needs_runs = settlement.needs_runs
        self.chronicle.refresh()
        return settlement.decisions

    def _may(self, experiment_id: str) -> None:
        """A repeat of the baseline waits for the baseline: it is no baseline itself.

        Raises:
            SettleError: nothing is kept yet, and this repeats something.
        """
        if self.chronicle.has_reference():
            return
        with suppress(FileNotFoundError, RecordError):
            plan = load(Plan, self.project.layout.plan(experiment_id))
            self._refuse_early(plan)

    def _refuse_early(self, plan: Plan) -> None:
        first = plan.replicates
        if first is not None and first not in self._decided_now():
            raise SettleError(f"{plan.experiment_id} repeats {first}, which is not decided yet")

    def _decided_now(self) -> set[str]:
        """What is decided, this very settle included."""
        self.chronicle.refresh()
        return set(self.chronicle.latest)

    def _sync(self) -> None:
        report = sync(self.project.layout, light=True)
        self.edits = edits_in_results(self.project.layout, report.hand_edits)
        self._dirty = False
        self._last_sync = time.monotonic()
        self.chronicle.refresh()

    def _collect_strangers(self) -> None:
        """Collect runs that were begun by hand, and whose starter was killed."""
        layout = self.project.layout
        for name in list(self.chronicle.undecided):
            run = layout.run(name)
            if not run.run_spec.exists() or run.result.exists():
                continue
            with suppress(*RECOVERABLE_ERRORS):
                if not self._is_claimed(name):
                    recovery.recover(self.project.repository, layout, name)

    def _is_claimed(self, experiment_id: str) -> bool:
        """Whether a worker holds its hypothesis: then that worker collects it."""
        layout = self.project.layout
        plan = load(Plan, layout.plan(experiment_id))
        name, worker = plan.hypothesis.hypothesis_id, plan.worker_id
        return bool(worker) and layout.hypothesis(name, "running", worker).exists()
