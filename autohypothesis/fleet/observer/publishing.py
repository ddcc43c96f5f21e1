"""Writes the observer's files, each at its own interval, and prints news.

All of it is bounded however long the search is, and can be made again at any time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError
from autohypothesis.fleet.knowledge.brief import BriefPublisher, noise_words
from autohypothesis.fleet.knowledge.knowledge_base import KnowledgeReport
from autohypothesis.fleet.live.presence import read_manifest
from autohypothesis.fleet.observer.scheduling import AvailableWorkers
from autohypothesis.fleet.observer.search_state import ExperimentIndex, SearchState
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.roster.prompts import write_assignments
from autohypothesis.fleet.toolbuilder import tools
from autohypothesis.records.files import FileStamp, file_stamp, read_object, write_json
from autohypothesis.records.history import LiveHistory, best_kept, of_tag
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.schema import Brief, LiveSummary, Others, Steering, now

NOISE = "noise"
PROBLEM = "how far two runs of one commit lie apart, so that a difference can be told from noise"
FIGURE_S = 15.0
"""Interval of calling the tool."""
TRIES = 3
"""Calls for the same repeated runs: one that fails, or counts fewer of them than we, is made again
when the ledger has had time to catch up."""
REGISTRY_S = 2.0
PAUSES_S = {"brief": 1.0, "summary": 1.0, "learnt": 10.0}
"""Intervals of checking whether each is to be written."""
WRITE_EVERY = 20
"""Writing takes one part in so many of the time."""
BEST = ("id", "commit", "description", "metric_name", "metric_value", "confirmation")
"""Columns of the best row for the status; the leaderboard has the others."""
BEST_IN_SUMMARY = (
    "id", "commit", "metric_name", "metric_value", "val_bpb", "peak_vram_gb", "description",
)  # fmt: skip


class Publishing:
    """Writes the brief, the assignments, the summary, the knowledge base and the search model."""

    def __init__(self, project: Project, queue: Queue, index: ExperimentIndex) -> None:
        self.project = project
        self.queue = queue
        self.index = index
        self.counts: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        """Rows of the tag; a new list whenever the ledger was written."""
        self._best: Mapping[str, Any] | None = None
        self._brief = BriefPublisher(project, queue)
        self._is_complete = False
        self._ledger: FileStamp | None = None
        self._due = dict.fromkeys(PAUSES_S, 0.0)
        self._learnt_from: tuple[object, ...] = ()

    @property
    def complete_brief(self) -> Brief | None:
        """Return the last one that was published; None before there is a reference to tell of."""
        return self._brief.brief if self._is_complete else None

    def best(self, fields: Sequence[str] = BEST) -> dict[str, Any] | None:
        """Return the best kept experiment, as the status shows it."""
        return {key: self._best.get(key) for key in fields} if self._best else None

    def turn(
        self,
        state: SearchState | None,
        *,
        steering: Steering,
        available: AvailableWorkers,
        noise: Mapping[str, Any] | None,
        notes: Sequence[str],
        others: Others | None = None,
        all: bool = False,
    ) -> None:
        """Write what is due; with `all`, everything.

        Raises:
            LockError, RecordError: something cannot be written now.
        """
        settings = (state.reference.settings if state is not None else None) or {}
        has_reference = self.index.history.has_reference()
        if has_reference and not self._is_complete:
            self._due["brief"] = 0.0  # proposers wait for it
        due = [name for name, at in self._due.items() if all or time.monotonic() >= at]
        for name in due:
            started = time.monotonic()
            if name == "brief":
                self.counts = self.queue.counts()
                self._read_ledger()
                if self._brief.publish(
                    rows=self.rows,
                    steering=steering,
                    settings=settings,
                    notes=notes,
                    noise=noise,
                    others=others,
                ) and (manifest := read_manifest(self.project.layout)):
                    write_assignments(self.project, self.queue, manifest)
                self._is_complete = has_reference
            elif name == "summary":
                best = self.best(BEST_IN_SUMMARY)
                write_summary(self.project.layout, available, best)
            elif state is not None:
                self._publish_learnt(state, noise)
            ended = time.monotonic()
            self._due[name] = ended + max(PAUSES_S[name], WRITE_EVERY * (ended - started))

    def _publish_learnt(self, state: SearchState, noise: Mapping[str, Any] | None) -> None:
        history, reference = self.index.history, state.reference
        learnt_from = (history.version, reference.commit, state.steering, noise)
        if learnt_from == self._learnt_from or not history.latest:
            return
        known = [*self.queue.open(), *self.queue.done()]
        KnowledgeReport(
            project=self.project,
            history=history,
            changes={name: self.index.change_of(run) for name, run in self.index.runs.items()},
            hypotheses={hypothesis.hypothesis_id: hypothesis for hypothesis in known},
            settings=reference.settings or {},
            steering=state.steering,
            noise=noise_words(noise or {}),
            code_hash=reference.code_hash,
        ).write()
        self._learnt_from = learnt_from

    def _read_ledger(self) -> None:
        signature = file_stamp(self.project.layout.ledger)
        if signature != self._ledger:
            rows = of_tag(read_ledger(self.project.layout), self.project.tag)
            self.rows = [dict(row) for row in rows]
            self._best = best_kept(self.rows)
            self._ledger = signature


def write_summary(
    layout: Layout, available: AvailableWorkers, best: Mapping[str, Any] | None
) -> None:
    """Write live/summary.json, unless it says nothing new.

    Raises:
        RecordError: the disk is full.
    """
    living = [beat for beat in available.heartbeats if beat.worker_id in available.alive]
    summary = LiveSummary(
        generated_at=now(),
        workers=available.heartbeats,
        active_runs=[beat.run_id for beat in living if beat.run_id],
        free_workers=[beat.worker_id for beat in living if beat.state == "idle"],
        best_result=dict(best) if best else None,
        paths={
            "ledger": str(layout.ledger),
            "leaderboard": str(layout.leaderboard),
            "brief": str(layout.brief),
        },
    )
    document = summary.model_dump(mode="json")
    before = read_object(layout.live_summary)
    if {**before, "generated_at": None} != {**document, "generated_at": None}:
        write_json(layout.live_summary, document, durable=False)


class NoiseEstimator:
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
        every = (each for each in self.history.latest.values() if each.metric_value is not None)
        counts = Counter((each.commit, each.platform_key) for each in every)
        repeats = sum(count for count in counts.values() if count > 1)
        layout = self.project.layout
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
