"""`knowledge_base.json` and `search_model.md`: what was learnt, made from the decisions.

Both are bounded however long the search is, and can be made again at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autohypothesis.engine.project import Project
from autohypothesis.fleet.knowledge.brief import change_of
from autohypothesis.fleet.knowledge.warm_start import carried
from autohypothesis.plain import plain, templates
from autohypothesis.records.files import write_atomic, write_json
from autohypothesis.records.history import DecisionHistory, is_lost
from autohypothesis.records.locks import hold
from autohypothesis.records.rows import NOT_EVIDENCE
from autohypothesis.schema import (
    Decision,
    Finding,
    Hypothesis,
    KnowledgeBase,
    PlannedHypothesis,
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
    """What the decisions of a search up to now say.

    Attributes:
        planned: experiment -> its hypothesis as it was planned.
        hypotheses: by id, open and done.
        settings: of the reference.
        noise: the noise figure in words; empty where there is none.
    """

    project: Project
    history: DecisionHistory
    planned: Mapping[str, PlannedHypothesis]
    hypotheses: Mapping[str, Hypothesis]
    settings: Mapping[str, Setting]
    steering: Steering
    noise: str

    def write(self) -> None:
        """Write both files.

        Raises:
            RecordError: the disk is full.
        """
        layout = self.project.layout
        with hold(layout, "knowledge", doing="what was learnt"):
            write_json(layout.knowledge_base, self._knowledge(), durable=False)
        write_atomic(layout.search_model, self._page(), durable=False)

    @property
    def _decided(self) -> list[Decision]:
        return [each for each in self.history.latest.values() if not is_lost(each)]

    def _knowledge(self) -> KnowledgeBase:
        decided = self._decided
        kept = [each for each in decided if each.decision_status == "keep" and each.base_commit]
        confirmed = [each for each in kept if each.confirmation == "confirmed"]
        provisional = [each for each in kept if each.confirmation != "confirmed"]
        near = [
            each
            for each in decided
            if each.reason == "within_noise" and (each.improvement or 0) > 0
        ]
        failed = [each for each in decided if each.decision_status == "crash"]
        tentative = [
            *self._findings(provisional, "provisional"),
            *self._findings(near, "within the noise"),
        ]
        earlier, anchors = carried(self.project.layout)
        return KnowledgeBase(
            updated_at=now(),
            repository=str(self.project.layout.root),
            confirmed_findings=self._findings(confirmed, "confirmed"),
            tentative_findings=[*earlier, *tentative[-MOST_FINDINGS:]],
            contradictions=self._contradictions(),
            invalid_regions=[
                f"{self._change(each)}: {each.reason} ({each.experiment_id})"[:TEXT]
                for each in failed[-MOST_REGIONS:]
            ],
            experiment_history=[
                {
                    "title": self._title(each),
                    **each.model_dump(
                        include={
                            "experiment_id", "decision_status", "reason", "metric_value",
                            "improvement",
                        }
                    ),
                }
                for each in decided[-MOST_HISTORY:]
            ],
            meta_research={**self._meta(decided), **({"anchors": anchors} if anchors else {})},
        )  # fmt: skip

    def _findings(self, decisions: Sequence[Decision], confidence: str) -> list[Finding]:
        return [
            Finding(
                finding_id=f"f-{each.experiment_id}"[:63],
                title=self._title(each),
                evidence=f"{each.experiment_id}: {each.detail or each.reason}"[:TEXT],
                confidence=confidence,
                implication=self._change(each),
            )
            for each in decisions[-MOST_FINDINGS:]
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

    def _meta(self, decided: Sequence[Decision]) -> dict[str, Any]:
        changes = [each for each in decided if each.base_commit]
        kept = sum(each.decision_status == "keep" for each in changes)
        counted = sum(each.reason not in NOT_EVIDENCE for each in changes)
        return {
            "experiments": len(decided),
            "changes_kept": kept,
            "keep_rate": round(kept / counted, 4) if counted else None,
            "reasons": dict(Counter(each.reason for each in changes).most_common(20)),
            "proposers": self._proposers(changes),
        }

    def _page(self) -> str:
        changes = [each for each in self._decided if each.base_commit]
        best = self.history.best_decision()
        template = templates(Path(__file__).parent / "templates").get_template("search_model.md.j2")
        text = template.render(
            tag=self.project.active(),
            metric=self.project.task.objective.metric,
            runs=len(self.history.latest),
            tried=len(changes),
            kept=sum(each.decision_status == "keep" for each in changes),
            lost=len(self.history.latest) - len(self._decided),
            best=best,
            best_title=self._title(best) if best else "",
            noise=self.noise,
            steering=self.steering,
            knobs=self._knobs(changes),
            proposers=self._proposers(changes),
        )
        return plain(text).rstrip() + "\n"

    def _proposers(self, changes: Iterable[Decision]) -> list[dict[str, Any]]:
        tried: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for decision in changes:
            known = self.hypotheses.get(decision.hypothesis_id)
            name = known.proposer if known is not None else "by hand"
            tried[name] += 1
            kept[name] += decision.decision_status == "keep"
        return [
            {"name": name, "tried": count, "kept": kept[name]}
            for name, count in tried.most_common(20)
        ]

    def _knobs(self, changes: Iterable[Decision]) -> list[dict[str, Any]]:
        """Return the constants that were tried alone, the most fruitful first."""
        tries: dict[str, list[tuple[Decision, Setting]]] = {}
        for decision in changes:
            planned = self.planned.get(decision.experiment_id)
            if planned is not None and len(planned.config_overrides) == 1:
                ((name, value),) = planned.config_overrides.items()
                tries.setdefault(name.upper(), []).append((decision, value))
        settings = {name.upper(): value for name, value in self.settings.items()}
        table = [_knob(name, several, settings.get(name)) for name, several in tries.items()]
        table.sort(
            key=lambda knob: (knob["better"] is None, -(knob["better"] or 0.0), knob["name"])
        )
        return table[:MOST_KNOBS]

    def _title(self, decision: Decision) -> str:
        known = self.hypotheses.get(decision.hypothesis_id)
        return (known.title if known is not None else self._change(decision))[:TEXT]

    def _change(self, decision: Decision) -> str:
        planned = self.planned.get(decision.experiment_id)
        return (change_of(planned) if planned is not None else "") or decision.experiment_id


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
