"""What the search has learnt, made from its decisions: knowledge_base.json and search_model.md.

Both are bounded however long the search is, and both can be made again at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autohypothesis.engine.experiment import one_line
from autohypothesis.fleet.observer.tried import Library, Reference
from autohypothesis.fleet.queue.chronicle import Chronicle, is_lost
from autohypothesis.fleet.queue.warm_start import carried
from autohypothesis.plain import plain
from autohypothesis.records.files import write_atomic, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.records.standings import Kept, best_of
from autohypothesis.schema import (
    Decision,
    Finding,
    Hypothesis,
    KnowledgeBase,
    Setting,
    Steering,
    now,
)

MOST_FINDINGS = 40
MOST_REGIONS = 40
MOST_HISTORY = 100
MOST_KNOBS = 40
TEXT = 300
"""Characters of a title or a detail."""


@dataclass(frozen=True)
class Learnt:
    """One search up to now."""

    layout: Layout
    tag: str
    metric: str
    chronicle: Chronicle
    library: Library
    reference: Reference
    hypotheses: Mapping[str, Hypothesis]
    """By id, open and done."""
    steering: Steering
    noise: str = ""

    def write(self) -> None:
        """Writes both files.

        Raises:
            RecordError: the disk is full.
        """
        with hold(self.layout, "knowledge", doing="what was learnt"):
            write_json(self.layout.knowledge_base, self.knowledge(), durable=False)
        write_atomic(self.layout.search_model, self.page(), durable=False)

    # ── knowledge_base.json ───────────────────────────────────────────────────────────────

    def knowledge(self) -> KnowledgeBase:
        decided = [one for one in self.chronicle.latest.values() if not is_lost(one)]
        kept = [one for one in decided if one.decision_status == "keep" and one.base_commit]
        near = [
            one for one in decided if one.reason == "within_noise" and (one.improvement or 0) > 0
        ]
        failed = [one for one in decided if one.decision_status == "crash"]
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
                f"{self._change(one)}: {one.reason} ({one.experiment_id})"[:TEXT]
                for one in failed[-MOST_REGIONS:]
            ],
            experiment_history=[self._history(one) for one in decided[-MOST_HISTORY:]],
            meta_research={**self._meta(decided), **({"anchors": anchors} if anchors else {})},
        )

    def _findings(self, kept: Sequence[Decision], word: str, confirmed: bool) -> list[Finding]:
        chosen = [one for one in kept if (one.confirmation == "confirmed") == confirmed]
        return [
            Finding(
                finding_id=f"f-{one.experiment_id}"[:63],
                title=self._title(one),
                evidence=f"{one.experiment_id}: {one.detail or one.reason}"[:TEXT],
                confidence=word,
                implication=self._change(one),
            )
            for one in chosen[-MOST_FINDINGS:]
        ]

    def _contradictions(self) -> list[str]:
        """Keeps that were taken back or refuted."""
        first: dict[str, Decision] = {}
        said = []
        for one in self.chronicle.decisions:
            before = first.setdefault(one.experiment_id, one)
            if before.decision_status == "keep" and one.decision_status != "keep":
                said.append(
                    f"{one.experiment_id} was kept, then {one.decision_status}: {one.reason}"
                )
            elif one.confirmation == "refuted":
                said.append(f"{one.experiment_id} was refuted: {one.detail}")
        return [line[:TEXT] for line in said[-MOST_REGIONS:]]

    def _history(self, one: Decision) -> dict[str, Any]:
        return {
            "experiment_id": one.experiment_id,
            "title": self._title(one),
            "decision_status": one.decision_status,
            "reason": one.reason,
            "metric_value": one.metric_value,
            "improvement": one.improvement,
        }

    def _meta(self, decided: Sequence[Decision]) -> dict[str, Any]:
        changes = [one for one in decided if one.base_commit]
        kept = sum(one.decision_status == "keep" for one in changes)
        counted = sum(one.reason not in NOT_EVIDENCE for one in changes)
        return {
            "experiments": len(decided),
            "changes_kept": kept,
            "keep_rate": round(kept / counted, 4) if counted else None,
            "reasons": dict(Counter(one.reason for one in changes).most_common(20)),
            "proposers": self._proposers(changes),
        }

    def _proposers(self, changes: Sequence[Decision]) -> list[dict[str, Any]]:
        tried: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for one in changes:
            known = self.hypotheses.get(one.hypothesis_id)
            name = known.proposer if known is not None else "by hand"
            tried[name] += 1
            kept[name] += one.decision_status == "keep"
        return [{"name": n, "tried": c, "kept": kept[n]} for n, c in tried.most_common(20)]

    # ── search_model.md ───────────────────────────────────────────────────────────────────

    def page(self) -> str:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            undefined=StrictUndefined,
            autoescape=False,  # markdown, not HTML; `one_line` keeps texts in their place
            trim_blocks=True,
        )
        environment.filters["one_line"] = one_line
        every = list(self.chronicle.latest.values())
        changes = [one for one in every if one.base_commit and not is_lost(one)]
        text = environment.get_template("search_model.md.j2").render(
            tag=self.tag,
            metric=self.metric,
            runs=len(every),
            tried=len(changes),
            kept=sum(one.decision_status == "keep" for one in changes),
            lost=sum(is_lost(one) for one in every),
            best=self._best(),
            noise=self.noise,
            steering=self.steering,
            knobs=self._knobs(changes),
            proposers=self._proposers(changes),
        )
        return plain(text).rstrip() + "\n"

    def _best(self) -> dict[str, Any] | None:
        kept = {
            one.experiment_id: Kept(
                one.experiment_id, place, one.platform_key, one.direction or "", one.metric_value
            )
            for place, one in enumerate(self.chronicle.latest.values())
            if one.decision_status == "keep"
            and one.metric_value is not None
            and one.confirmation != "refuted"
        }
        best = best_of(list(kept.values()))
        if best is None:
            return None
        title = self._title(self.chronicle.latest[best])
        return {"id": best, "value": kept[best].value, "title": title}

    def _knobs(self, changes: Sequence[Decision]) -> list[dict[str, Any]]:
        """Constants that were tried alone, the most fruitful first."""
        tries: dict[str, list[tuple[Decision, Setting]]] = {}
        for one in changes:
            run = self.library.runs.get(one.experiment_id)
            if run is not None and len(run.overrides) == 1:
                ((name, value),) = run.overrides.items()
                tries.setdefault(name.upper(), []).append((one, value))
        settings = {k.upper(): v for k, v in (self.reference.settings or {}).items()}
        table = [_knob(name, found, settings.get(name)) for name, found in tries.items()]
        table.sort(
            key=lambda knob: (knob["better"] is None, -(knob["better"] or 0.0), knob["name"])
        )
        return table[:MOST_KNOBS]

    # ── words ─────────────────────────────────────────────────────────────────────────────

    def _title(self, one: Decision) -> str:
        known = self.hypotheses.get(one.hypothesis_id)
        return (known.title if known is not None else self._change(one))[:TEXT]

    def _change(self, one: Decision) -> str:
        run = self.library.runs.get(one.experiment_id)
        if run is None or not run.overrides:
            return "a patch" if run is not None and run.key else one.experiment_id
        return ", ".join(f"{name} = {value!r}" for name, value in run.overrides.items())[:TEXT]


def _knob(name: str, found: Sequence[tuple[Decision, Setting]], now_at: Setting) -> dict[str, Any]:
    measured = [(one.improvement, value) for one, value in found if one.improvement is not None]
    better, best = max(measured, key=lambda pair: pair[0], default=(None, None))
    return {
        "name": name,
        "tries": len(found),
        "kept": sum(one.decision_status == "keep" for one, _ in found),
        "failed": sum(one.decision_status == "crash" for one, _ in found),
        "best": "" if better is None else f"{best!r}",
        "better": better,
        "now": "" if now_at is None else f"{now_at!r}",
    }
