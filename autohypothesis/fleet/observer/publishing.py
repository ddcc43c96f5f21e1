"""What the observer writes for others: the brief, the summary, what was learnt, news for the hub.

All of it is bounded however long the search is, and can be made again at any time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.fleet.hub_sync.incoming import (
    FeedReader,
    HubConnection,
    hub_connection,
    quote_feed,
)
from autohypothesis.fleet.hub_sync.outbox import Outbox
from autohypothesis.fleet.hub_sync.outgoing import HubReporter
from autohypothesis.fleet.live.presence import read_manifest
from autohypothesis.fleet.observer.experiment_index import ExperimentIndex, Reference
from autohypothesis.fleet.observer.scheduling import AvailableWorkers
from autohypothesis.fleet.queue import brief as briefs
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.fleet.queue.warm_start import carried
from autohypothesis.fleet.roster.prompts import write_assignments
from autohypothesis.plain import plain, templates
from autohypothesis.records.bundles import Signature, signature_of
from autohypothesis.records.files import read_object, write_atomic, write_json
from autohypothesis.records.history import LiveHistory, best_kept, is_lost, of_tag
from autohypothesis.records.layout import Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.locks import hold
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import (
    Brief,
    Decision,
    Finding,
    Heartbeat,
    Hypothesis,
    KnowledgeBase,
    LiveSummary,
    Others,
    Setting,
    Steering,
    now,
)

BRIEF_S = 1.0
SUMMARY_S = 1.0
LEARNT_S = 10.0
HUB_LOOK_S = 2.0
SHARE = 20
"""What takes a second to write is written once in so many."""
BEST = ("id", "commit", "description", "metric_name", "metric_value", "confirmation")
"""Of the best row, for the status; the rest is in the leaderboard."""
BEST_IN_SUMMARY = (
    "id", "commit", "metric_name", "metric_value", "val_bpb", "peak_vram_gb", "description",
)  # fmt: skip
MOST_FINDINGS = 40
MOST_REGIONS = 40
MOST_HISTORY = 100
MOST_KNOBS = 40
TEXT = 300
"""Characters of a title or a detail."""


class Publishing:
    """Writes each file at its own pace, and only when it says something new."""

    def __init__(
        self, project: Project, queue: Queue, history: LiveHistory, index: ExperimentIndex
    ) -> None:
        self.project = project
        self.queue = queue
        self.history = history
        self.index = index
        self.brief: Brief | None = None
        """The last one that was published."""
        self.best_row: Mapping[str, Any] | None = None
        self.counts: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        """Of the tag; another list whenever the ledger was written."""
        self._ledger: Signature | None = None
        self._published: Any = None
        self._written: Signature | None = None
        self._due = {"brief": 0.0, "summary": 0.0, "learnt": 0.0}
        self._learnt_at: tuple[object, ...] = ()

    @property
    def best(self) -> dict[str, Any] | None:
        """The best kept experiment, as the status shows it."""
        return {key: self.best_row.get(key) for key in BEST} if self.best_row else None

    def turn(
        self,
        *,
        reference: Reference | None,
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
        if self._is_due("brief", all):
            started = time.monotonic()
            self.counts = self.queue.counts()
            self._read_ledger()
            self._publish_brief(reference, steering, noise, list(notes), others)
            self._wait("brief", started, BRIEF_S)
        if self._is_due("summary", all):
            started = time.monotonic()
            best = self.best_row
            write_summary(
                self.project.layout, available.heartbeats, alive=available.alive, best=best
            )
            self._wait("summary", started, SUMMARY_S)
        if reference is not None and self._is_due("learnt", all):
            started = time.monotonic()
            self._publish_learnt(reference, steering, noise)
            self._wait("learnt", started, LEARNT_S)

    def _publish_brief(
        self,
        reference: Reference | None,
        steering: Steering,
        noise: Mapping[str, Any] | None,
        notes: list[str],
        others: Others | None,
    ) -> None:
        settings = (reference.settings if reference is not None else None) or {}
        opened = [hypothesis.model_dump(mode="json") for hypothesis in self.queue.open()]
        contents = (
            self._ledger, opened, self.counts, steering, dict(settings), noise, notes, others,
        )  # fmt: skip
        if (
            contents == self._published
            and signature_of(str(self.project.layout.brief)) == self._written
        ):
            return
        self.brief = briefs.publish(
            self.project,
            self.queue,
            rows=self.rows,
            steering=steering,
            reference_settings=settings,
            notes=notes,
            noise=noise,
            others=others,
        )
        self._published = contents
        self._written = signature_of(str(self.project.layout.brief))
        if (manifest := read_manifest(self.project.layout)) is not None:
            write_assignments(self.project, self.queue, manifest)

    def _publish_learnt(
        self, reference: Reference, steering: Steering, noise: Mapping[str, Any] | None
    ) -> None:
        about = (self.history.version, reference.commit, steering, noise)
        if about == self._learnt_at or not self.history.latest:
            return
        known = [*self.queue.open(), *self.queue.done()]
        LearntPages(
            layout=self.project.layout,
            tag=self.project.active(),
            metric=self.project.task.objective.metric,
            history=self.history,
            index=self.index,
            reference=reference,
            hypotheses={hypothesis.hypothesis_id: hypothesis for hypothesis in known},
            steering=steering,
            noise=briefs.noise_words(noise or {}),
        ).write()
        self._learnt_at = about

    def _read_ledger(self) -> None:
        """Read the rows of the tag when the ledger was written."""
        signature = signature_of(str(self.project.layout.ledger))
        if signature == self._ledger:
            return
        self.rows = [
            dict(row) for row in of_tag(read_ledger(self.project.layout), self.project.tag)
        ]
        self.best_row = best_kept(self.rows)
        self._ledger = signature

    def _is_due(self, what: str, all: bool) -> bool:
        return all or time.monotonic() >= self._due[what]

    def _wait(self, what: str, started: float, pause: float) -> None:
        ended = time.monotonic()
        self._due[what] = ended + max(pause, SHARE * (ended - started))


def write_summary(
    layout: Layout,
    heartbeats: Sequence[Heartbeat],
    *,
    alive: Sequence[str],
    best: Mapping[str, Any] | None,
) -> None:
    """Write live/summary.json, unless it says nothing new.

    Args:
        alive: the workers whose process lives.

    Raises:
        RecordError: the disk is full.
    """
    living = [beat for beat in heartbeats if beat.worker_id in alive]
    summary = LiveSummary(
        generated_at=now(),
        workers=list(heartbeats),
        active_runs=[beat.run_id for beat in living if beat.run_id],
        free_workers=[beat.worker_id for beat in living if beat.state == "idle"],
        best_result={key: best.get(key) for key in BEST_IN_SUMMARY} if best else None,
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


# ── what was learnt ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LearntPages:
    """knowledge_base.json and search_model.md of one search up to now."""

    layout: Layout
    tag: str
    metric: str
    history: LiveHistory
    index: ExperimentIndex
    reference: Reference
    hypotheses: Mapping[str, Hypothesis]
    """By id, open and done."""
    steering: Steering
    noise: str = ""

    def write(self) -> None:
        """Write both files.

        Raises:
            RecordError: the disk is full.
        """
        with hold(self.layout, "knowledge", doing="what was learnt"):
            write_json(self.layout.knowledge_base, self.knowledge(), durable=False)
        write_atomic(self.layout.search_model, self.page(), durable=False)

    # ── knowledge_base.json ───────────────────────────────────────────────────────────────

    def knowledge(self) -> KnowledgeBase:
        decided = [decision for decision in self.history.latest.values() if not is_lost(decision)]
        kept = [
            decision
            for decision in decided
            if decision.decision_status == "keep" and decision.base_commit
        ]
        near = [
            decision
            for decision in decided
            if decision.reason == "within_noise" and (decision.improvement or 0) > 0
        ]
        failed = [decision for decision in decided if decision.decision_status == "crash"]
        findings, anchors = carried(self.layout)
        return KnowledgeBase(
            updated_at=now(),
            repository=str(self.layout.root),
            confirmed_findings=self._findings(kept, "confirmed" if kept else "", True),
            tentative_findings=[
                *findings,
                *[
                    *self._findings(kept, "provisional", False),
                    *self._findings(near[-MOST_FINDINGS:], "within the noise", False),
                ][-MOST_FINDINGS:],
            ],
            contradictions=self._contradictions(),
            invalid_regions=[
                f"{self._change(decision)}: {decision.reason} ({decision.experiment_id})"[:TEXT]
                for decision in failed[-MOST_REGIONS:]
            ],
            experiment_history=[self._history(decision) for decision in decided[-MOST_HISTORY:]],
            meta_research={**self._meta(decided), **({"anchors": anchors} if anchors else {})},
        )

    def _findings(self, kept: Sequence[Decision], word: str, confirmed: bool) -> list[Finding]:
        chosen = [
            decision for decision in kept if (decision.confirmation == "confirmed") == confirmed
        ]
        return [
            Finding(
                finding_id=f"f-{decision.experiment_id}"[:63],
                title=self._title(decision),
                evidence=f"{decision.experiment_id}: {decision.detail or decision.reason}"[:TEXT],
                confidence=word,
                implication=self._change(decision),
            )
            for decision in chosen[-MOST_FINDINGS:]
        ]

    def _contradictions(self) -> list[str]:
        """Return the keeps that were taken back or refuted."""
        first: dict[str, Decision] = {}
        lines = []
        for decision in self.history.decisions:
            before = first.setdefault(decision.experiment_id, decision)
            if before.decision_status == "keep" and decision.decision_status != "keep":
                now_is = f"{decision.decision_status}: {decision.reason}"
                lines.append(f"{decision.experiment_id} was kept, then {now_is}")
            elif decision.confirmation == "refuted":
                lines.append(f"{decision.experiment_id} was refuted: {decision.detail}")
        return [line[:TEXT] for line in lines[-MOST_REGIONS:]]

    def _history(self, decision: Decision) -> dict[str, Any]:
        return {
            "experiment_id": decision.experiment_id,
            "title": self._title(decision),
            "decision_status": decision.decision_status,
            "reason": decision.reason,
            "metric_value": decision.metric_value,
            "improvement": decision.improvement,
        }

    def _meta(self, decided: Sequence[Decision]) -> dict[str, Any]:
        changes = [decision for decision in decided if decision.base_commit]
        kept = sum(decision.decision_status == "keep" for decision in changes)
        counted = sum(decision.reason not in NOT_EVIDENCE for decision in changes)
        return {
            "experiments": len(decided),
            "changes_kept": kept,
            "keep_rate": round(kept / counted, 4) if counted else None,
            "reasons": dict(Counter(decision.reason for decision in changes).most_common(20)),
            "proposers": self._proposers(changes),
        }

    def _proposers(self, changes: Sequence[Decision]) -> list[dict[str, Any]]:
        tried: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for decision in changes:
            known = self.hypotheses.get(decision.hypothesis_id)
            name = known.proposer if known is not None else "by hand"
            tried[name] += 1
            kept[name] += decision.decision_status == "keep"
        return [{"name": n, "tried": c, "kept": kept[n]} for n, c in tried.most_common(20)]

    # ── search_model.md ───────────────────────────────────────────────────────────────────

    def page(self) -> str:
        environment = templates(Path(__file__).parent / "templates")
        every = list(self.history.latest.values())
        changes = [decision for decision in every if decision.base_commit and not is_lost(decision)]
        text = environment.get_template("search_model.md.j2").render(
            tag=self.tag,
            metric=self.metric,
            runs=len(every),
            tried=len(changes),
            kept=sum(decision.decision_status == "keep" for decision in changes),
            lost=sum(is_lost(decision) for decision in every),
            best=self._best(),
            noise=self.noise,
            steering=self.steering,
            knobs=self._knobs(changes),
            proposers=self._proposers(changes),
        )
        return plain(text).rstrip() + "\n"

    def _best(self) -> dict[str, Any] | None:
        best = self.history.best_decision()
        if best is None:
            return None
        return {
            "id": best.experiment_id,
            "value": best.metric_value,
            "title": self._title(best),
        }

    def _knobs(self, changes: Sequence[Decision]) -> list[dict[str, Any]]:
        """Return the constants that were tried alone, the most fruitful first."""
        tries: dict[str, list[tuple[Decision, Setting]]] = {}
        for decision in changes:
            run = self.index.runs.get(decision.experiment_id)
            if run is not None and len(run.overrides) == 1:
                ((name, value),) = run.overrides.items()
                tries.setdefault(name.upper(), []).append((decision, value))
        settings = {k.upper(): v for k, v in (self.reference.settings or {}).items()}
        table = [_knob(name, several, settings.get(name)) for name, several in tries.items()]
        table.sort(
            key=lambda knob: (knob["better"] is None, -(knob["better"] or 0.0), knob["name"])
        )
        return table[:MOST_KNOBS]

    # ── words ─────────────────────────────────────────────────────────────────────────────

    def _title(self, decision: Decision) -> str:
        known = self.hypotheses.get(decision.hypothesis_id)
        return (known.title if known is not None else self._change(decision))[:TEXT]

    def _change(self, decision: Decision) -> str:
        run = self.index.runs.get(decision.experiment_id)
        if run is None or not run.overrides:
            return "a patch" if run is not None and run.key else decision.experiment_id
        return ", ".join(f"{name} = {value!r}" for name, value in run.overrides.items())[:TEXT]


def _knob(name: str, tries: Sequence[tuple[Decision, Setting]], now_at: Setting) -> dict[str, Any]:
    measured = [
        (decision.improvement, value)
        for decision, value in tries
        if decision.improvement is not None
    ]
    better, best = max(measured, key=lambda pair: pair[0], default=(None, None))
    return {
        "name": name,
        "tries": len(tries),
        "kept": sum(decision.decision_status == "keep" for decision, _ in tries),
        "failed": sum(decision.decision_status == "crash" for decision, _ in tries),
        "best": "" if better is None else f"{best!r}",
        "better": better,
        "now": "" if now_at is None else f"{now_at!r}",
    }


# ── the hub ─────────────────────────────────────────────────────────────────────────────────


class HubSync:
    """What a fleet with a hub tells others after each decision, and what of theirs it is told.

    Nothing here calls the hub: news go into the outbox, the feed lies in a file, and the courier
    notes whether the hub answers.
    """

    def __init__(self, project: Project, queue: Queue) -> None:
        self._layout = project.layout
        self._telling = HubReporter(project, queue, Outbox(project.layout))
        self._feed = FeedReader(project.layout)
        self._rows: Sequence[Mapping[str, Any]] | None = None
        self._contact = HubConnection(False)
        self._look_at = 0.0

    @property
    def problems(self) -> list[str]:
        return self._telling.problems

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put what was decided since into the outbox.

        Raises:
            RecordError: the disk is full.
        """
        if rows is not self._rows and self._telling.turn(rows):
            self._rows = rows

    def others(self) -> Others | None:
        """Return the news of others, for the brief."""
        return quote_feed(self._feed.heard())

    def is_alone(self) -> bool:
        """Return whether the hub cannot be asked now which fleet tries what."""
        if time.monotonic() >= self._look_at:
            self._contact = hub_connection(self._layout)
            self._look_at = time.monotonic() + HUB_LOOK_S
        return not self._contact.is_open
