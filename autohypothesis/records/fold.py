"""The fold: bundles, plans and decisions in, rows of the ledger out. Pure.

Order is the order of decisions.jsonl, never a time stamp: an ordinal is an experiment's place in
the decisions of its tag, and `delta` its distance from the best that was kept when it was first
decided, on the same platform. A later decision about the same experiment changes its status, not
its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from autohypothesis.records.agreement import disagreements
from autohypothesis.records.bundles import Bundle, once
from autohypothesis.records.ids import slug
from autohypothesis.records.rows import (
    DECIDED,
    Facts,
    Placement,
    Planned,
    RowDocument,
    base_row,
    finish,
    is_baseline,
    real,
)
from autohypothesis.records.usual import Document, canonical_value
from autohypothesis.schema import Decision, Plan, Row


def facts_of(row: RowDocument, bundle: Bundle | None, damage: list[list[str]]) -> Facts:
    """The facts of a row of `base_row`: what the bundle says, before anything was decided."""
    result = bundle.result if bundle else None
    name = row["metric_name"]
    completed = result is not None and result["status"] == "completed"
    return Facts(
        tag=row["tag"],
        platform_key=row["platform_key"],
        metric_name=name,
        metric_value=row["metric_value"],
        recorded_value=real(result["metric_value"], name) if result and completed else None,
        voided_value=real(result["evidence"].get("voided_value"), name) if result else None,
        direction=row["direction"],
        commit=row["commit"],
        parent_commit=row["parent_commit"],
        seed=row["seed"],
        confirmation=row["confirmation"],
        peak_vram_gb=row["peak_vram_gb"],
        description=row["description"],
        execution_status=row["execution_status"],
        failure_kind=row["failure_kind"],
        replicates=row["replicates"],
        timestamp=row["timestamp"] or "",
        baseline=is_baseline(row),
        stamp=result["decision_status"] if result else "",
        stamp_id=result["decision_id"] if result else None,
        stranger=_stranger(bundle) if bundle else None,
        volatile=bool(bundle and bundle.shim_lives),
        damage=damage,
    )


def _stranger(bundle: Bundle) -> list[str] | None:
    """The first file of a bundle that names another experiment than its folder does."""
    run = bundle.metadata["run"] if bundle.metadata else None
    for file, document in (("metadata.json", run), ("exit.json", bundle.exit)):
        name = document["experiment_id"] if document else ""
        if name and slug(name) != bundle.experiment_id:
            return [file, name]
    return None


def undecided_stamp(facts: Facts) -> str:
    """The decision to show where decisions.jsonl has none.

    A stamp with the id of a record is a copy of one that cannot be read; where every record can,
    such a bundle is damaged. A failed run that an older tool called a crash is one. Any other stamp
    is somebody's wish, and decides nothing yet.
    """
    if facts.stamp_id is not None and facts.stamp in (*DECIDED, "replicate"):
        return facts.stamp
    if facts.stamp == "crash" and facts.execution_status == "failed":
        return facts.stamp
    return ""


# ── places ──────────────────────────────────────────────────────────────────────────────────

_FIXED = {
    "commit": "commit",
    "base_commit": "parent_commit",
    "hypothesis_id": "hypothesis_id",
    "seed": "seed",
    "platform_key": "platform_key",
    "metric_name": "metric_name",
    "direction": "direction",
}
"""Of a decision -> of the row; what a record does not say is taken from the bundle."""


@dataclass(slots=True)
class _Kept:
    """The scores that are kept on one platform of one tag, as the decisions go by."""

    sign: int
    """1 where less is better, -1 where more is."""
    scores: dict[str, float] = field(default_factory=dict)
    best: float | None = None

    def put(self, experiment: str, score: float) -> None:
        if experiment in self.scores:
            self.drop(experiment)
        self.scores[experiment] = score
        if self.best is None or self.sign * score < self.sign * self.best:
            self.best = score

    def drop(self, experiment: str) -> None:
        if self.scores.pop(experiment, None) is not None:
            self.best = self._best_of(self.scores.values())

    def _best_of(self, scores: Iterable[float]) -> float | None:
        return min(scores, key=lambda score: self.sign * score, default=None)


def place(decisions: Sequence[Document], facts: Mapping[str, Facts]) -> dict[str, Placement]:
    """Ordinal, delta and last decision of every experiment that was decided, in that order."""
    places: dict[str, Placement] = {}
    ordinals: dict[str, int] = defaultdict(int)
    groups: dict[tuple[str, str], _Kept] = {}
    for decision in decisions:
        experiment, tag = decision["experiment_id"], decision["tag"]
        fact, first = facts.get(experiment), places.get(experiment)
        score = _score(decision, fact)
        group = _group(groups, decision, fact)
        if first is None:
            ordinals[tag] = ordinal = ordinals[tag] + 1
            best = group.best
            delta = None if score is None or best is None else round(score - best, 9)
        else:
            ordinal, delta = first.ordinal, first.delta
        status, confirmation = decision["decision_status"], decision["confirmation"]
        if status == "keep" and score is not None and confirmation != "refuted":
            group.put(experiment, score)
        elif first is not None:
            group.drop(experiment)
        reason = decision["detail"] or decision["reason"]
        fixed = {
            column: decision[name]
            for name, column in _FIXED.items()
            if decision[name] not in ("", None)
        }
        places[experiment] = Placement(
            ordinal, delta, status, confirmation, tag, reason, score, decision["commit"], fixed
        )
    return places


def _score(decision: Document, fact: Facts | None) -> float | None:
    """What was decided on. A bundle that has another value, or has one where none was decided, is
    damaged; its value stands for nothing."""
    named = fact.metric_name if fact is not None else "val_bpb"
    return real(decision["metric_value"], decision["metric_name"] or named)


def _group(groups: dict[tuple[str, str], _Kept], decision: Document, fact: Facts | None) -> _Kept:
    """The kept ones that the experiment is compared with: same tag, same platform."""
    platform = decision["platform_key"] or (fact.platform_key if fact is not None else "")
    key = decision["tag"], platform
    group = groups.get(key)
    if group is None:
        direction = decision["direction"] or (fact.direction if fact is not None else "")
        group = groups[key] = _Kept(-1 if direction == "maximize" else 1)
    return group


def in_order(
    experiments: Iterable[str], places: Mapping[str, Placement], facts: Mapping[str, Facts]
) -> list[str]:
    """The decided in the order of decisions, then the rest by time."""
    waiting = [key for key in experiments if key not in places]
    waiting.sort(key=lambda key: (facts[key].timestamp, key))
    return [*places, *waiting]


# ── the fold of everything at once ──────────────────────────────────────────────────────────


def fold(
    bundles: Iterable[Bundle],
    plans: Mapping[str, Plan | Mapping[str, Any]],
    decisions: Sequence[Decision | Mapping[str, Any]],
    *,
    complete: bool = True,
) -> list[Row]:
    """All rows, in the order of the ledger. The incremental fold must come to the same.

    Args:
        complete: no line of decisions.jsonl is damaged.

    Raises:
        ValueError: a plan or a decision is not one; bundles say themselves what they lack.
    """
    known = {bundle.experiment_id: bundle for bundle in bundles}
    written = {key: canonical_value(Plan, _plain(plan)) for key, plan in plans.items()}
    settled = once([canonical_value(Decision, _plain(decision)) for decision in decisions])
    rows: dict[str, RowDocument] = {}
    facts: dict[str, Facts] = {}
    for key in sorted({*known, *written}):
        bundle = known.get(key)
        rows[key] = base_row(key, bundle, Planned(written.get(key)))
        damage = [list(item) for item in bundle.damage] if bundle else []
        facts[key] = facts_of(rows[key], bundle, damage)
    places = place(settled, facts)
    wrong = disagreements(settled, facts, complete=complete)
    for decision in settled:
        key = decision["experiment_id"]
        if key not in known and key not in written:
            rows[key] = gone_row(decision)
            facts[key] = facts_of(rows[key], None, [])
    for key, row in rows.items():
        unusable, disagreeing = in_words(facts[key].damage), in_words(wrong.get(key, []))
        finish(row, places.get(key), undecided_stamp(facts[key]), unusable, disagreeing)
    return [Row.model_validate(rows[key]) for key in in_order(rows, places, facts)]


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def in_words(damage: list[list[str]]) -> list[str]:
    """Damage as notes of a row: the file's own name is enough there."""
    return [f"{path.rpartition('/')[2]} {reason}" for path, reason in damage]


def gone_row(decision: Document) -> RowDocument:
    """The row of an experiment whose bundle and plan somebody removed: the decision remembers."""
    row = base_row(decision["experiment_id"], None, Planned())
    name = decision["metric_name"] or "val_bpb"
    value = real(decision["metric_value"], name)
    row.update(
        commit=decision["commit"],
        parent_commit=decision["base_commit"],
        timestamp=decision["recorded_at"],
        execution_status="completed" if decision["decision_status"] != "crash" else "failed",
        hypothesis_id=decision["hypothesis_id"],
        description=decision["detail"],
        platform_key=decision["platform_key"],
        direction=decision["direction"] or "minimize",
        metric_name=name,
        metric_value=value,
        val_bpb=value if name == "val_bpb" else None,
        tag=decision["tag"],
        notes=["its bundle and plan are gone; this is what decisions.jsonl remembers"],
    )
    return row
