"""The fold: what the sequence of decisions says about each experiment. Pure.

Order is the order of decisions.jsonl, never a time stamp: an ordinal is an experiment's place in
the decisions of its tag, and `delta` its distance from the best that was kept when it was first
decided, on the same platform. A later decision about the same experiment changes its status, not
its place. What another tool made and decided is placed by its times, under a tag of its own.

decisions.jsonl is the truth. A bundle that gives another value, commit or status than the record
of its decision was edited, or copied from another run: the decided value is shown, the file is
named with both values, and the experiment is ranked nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autohypothesis.records.bundles import Damage, Document, Records
from autohypothesis.records.ids import slug
from autohypothesis.records.rows import (
    DECIDED,
    IMPORTED,
    VALUELESS,
    Facts,
    Placement,
    RowDocument,
    base_row,
    is_baseline,
    is_import,
    real,
)
from autohypothesis.schema import FAILURE_KINDS

_OF_ROW = (
    "tag", "platform_key", "metric_name", "metric_value", "direction", "commit", "parent_commit",
    "seed", "confirmation", "peak_vram_gb", "description", "execution_status", "failure_kind",
    "replicates",
)  # fmt: skip

DECIDED_OTHERWISE = "decided otherwise"


def facts_of(row: RowDocument, records: Records) -> Facts:
    """The facts of a row of `base_row`: what the bundle says, before anything was decided."""
    result, name = records.result, row["metric_name"]
    completed = result is not None and result["status"] == "completed"
    stamp = result["decision_status"] if result else ""
    return Facts(
        **{key: row[key] for key in _OF_ROW},
        recorded_value=real(result["metric_value"], name) if result and completed else None,
        lost_value=real(result["evidence"].get("voided_value"), name) if result else None,
        timestamp=row["timestamp"] or "",
        baseline=is_baseline(row),
        stamp=stamp,
        stamp_id=result["decision_id"] if result else None,
        imported=is_import(stamp, result["decision_id"] if result else None, row["tag"]),
        stranger=_stranger(records),
        damage=list(records.damage),
    )


def _stranger(records: Records) -> list[str] | None:
    run = records.metadata["run"] if records.metadata else None
    for file, document in (("metadata.json", run), ("exit.json", records.exit)):
        name = document["experiment_id"] if document else ""
        if name and slug(name) != records.experiment_id:
            return [file, name]
    return None


def undecided_stamp(facts: Facts) -> str:
    """The decision to show where decisions.jsonl has none.

    A stamp with the id of a record is a copy of one that cannot be read; where every record can,
    such a bundle is damaged. A failed run that an older tool called a crash is one. Any other stamp
    is a person's wish, and decides nothing yet.
    """
    if facts.stamp_id is not None and facts.stamp in (*DECIDED, "replicate"):
        return facts.stamp
    if facts.stamp == "crash" and facts.execution_status == "failed":
        return facts.stamp
    return ""


_FIXED = {
    "commit": "commit",
    "base_commit": "parent_commit",
    "hypothesis_id": "hypothesis_id",
    "seed": "seed",
    "platform_key": "platform_key",
    "metric_name": "metric_name",
    "direction": "direction",
    "reason": "reason",
    "reference_value": "reference_value",
    "improvement": "improvement",
    "min_delta": "min_delta",
    "pairs": "pairs",
}
"""Field of a decision -> column of the row; empty fields are taken from the bundle."""


@dataclass(slots=True)
class _Kept:
    """The scores that are kept on one platform of one tag, as the decisions go by."""

    sign: int
    """1 where less is better, -1 where more is."""
    scores: dict[str, float] = field(default_factory=dict)
    best: float | None = None

    @classmethod
    def of(cls, direction: str) -> _Kept:
        return cls(-1 if direction == "maximize" else 1)

    def delta(self, score: float | None, keeps: bool) -> float | None:
        """Return the distance from the best; 0.0 of the first that is kept, which is compared with
        itself."""
        if score is None or self.best is None:
            return 0.0 if keeps and score is not None else None
        return round(score - self.best, 9)

    def put(self, experiment: str, score: float) -> None:
        if experiment in self.scores:
            self.drop(experiment)
        self.scores[experiment] = score
        if self.best is None or self.sign * score < self.sign * self.best:
            self.best = score

    def drop(self, experiment: str) -> None:
        if self.scores.pop(experiment, None) is not None:
            best = min if self.sign > 0 else max
            self.best = best(self.scores.values(), default=None)


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
        status, confirmation = decision["decision_status"], decision["confirmation"]
        keeps = status == "keep" and confirmation != "refuted"
        if first is None:
            ordinals[tag] = ordinal = ordinals[tag] + 1
            delta = group.delta(score, keeps)
        else:
            ordinal, delta = first.ordinal, first.delta
        if keeps and score is not None:
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
            ordinal, delta, status, confirmation, tag, reason, score, decision["commit"],
            decision["decided_by"], fixed,
        )  # fmt: skip
    return places


def place_imported(
    facts: Mapping[str, Facts], kept: Iterable[list[Any]] = (), count: int = 0
) -> dict[str, Placement]:
    """Return the places of what another tool decided and no record is about, by their times.

    Args:
        kept: platform, direction and value of those that were kept before these, in their order.
        count: how many places there are before.
    """
    names = [key for key, fact in facts.items() if fact.imported]
    names.sort(key=lambda key: (facts[key].timestamp, key))
    places: dict[str, Placement] = {}
    groups: dict[str, _Kept] = {}
    for number, (platform, direction, value) in enumerate(kept):
        groups.setdefault(platform, _Kept.of(direction)).put(f"#{number}", value)
    for ordinal, key in enumerate(names, count + 1):
        fact = facts[key]
        status, score = fact.stamp, fact.metric_value
        group, delta = groups.get(fact.platform_key), None
        if status == "keep" and score is not None:
            group = group or groups.setdefault(fact.platform_key, _Kept.of(fact.direction))
            delta = group.delta(score, keeps=True)
            group.put(key, score)
        elif group is not None:
            delta = group.delta(score, keeps=False)
        if score is None and status in ("keep", "discard"):
            status = "crash"  # 0.0 and its kind stand for a crash
        places[key] = Placement(
            ordinal, delta, status, "none", IMPORTED, "", score, fact.commit, IMPORTED, {}
        )
    return places


def _score(decision: Document, fact: Facts | None) -> float | None:
    """Return the decided value; a bundle with another one is damaged, and its value is not used."""
    named = fact.metric_name if fact is not None else "val_bpb"
    return real(decision["metric_value"], decision["metric_name"] or named)


def _group(groups: dict[tuple[str, str], _Kept], decision: Document, fact: Facts | None) -> _Kept:
    """The kept ones that the experiment is compared with: same tag, same platform."""
    platform = decision["platform_key"] or (fact.platform_key if fact is not None else "")
    key = decision["tag"], platform
    group = groups.get(key)
    if group is None:
        direction = decision["direction"] or (fact.direction if fact is not None else "")
        group = groups[key] = _Kept.of(direction)
    return group


def in_order(places: Iterable[str], waiting: Mapping[str, str]) -> list[str]:
    """Return the decided in the order of decisions, then the rest by their times in `waiting`."""
    return [*places, *sorted(waiting, key=lambda key: (waiting[key], key))]


def row_without_bundle(decision: Document) -> RowDocument:
    """Return the row of an experiment whose bundle and plan were removed, from its decision."""
    row = base_row(Records(decision["experiment_id"]))
    name = decision["metric_name"] or "val_bpb"
    value = real(decision["metric_value"], name)
    row.update(
        commit=decision["commit"],
        parent_commit=decision["base_commit"],
        timestamp=decision["recorded_at"],
        execution_status="failed" if decision["decision_status"] in VALUELESS else "completed",
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


def decision_conflicts(
    decisions: Iterable[Document], facts: Mapping[str, Facts], *, complete: bool
) -> dict[str, list[Damage]]:
    """Return what bundles say against decisions.jsonl, by experiment; those that agree are absent.

    Each is [file of the bundle, reason, `DECIDED_OTHERWISE` where it states another value].

    Args:
        complete: every line of decisions.jsonl could be read. Else a stamp whose record is not
            among `decisions` may be the copy of a record that is damaged.
    """
    about: dict[str, list[Document]] = defaultdict(list)
    subject: dict[str, str] = {}
    for decision in decisions:
        about[decision["experiment_id"]].append(decision)
        subject[decision["decision_id"]] = decision["experiment_id"]
    wrong: dict[str, list[Damage]] = {}
    for key, fact in facts.items():
        records, stamp = about.get(key, []), fact.stamp_id
        stated = [("metadata.json", reason) for reason in _platform(records, fact)]
        stated += [("result.json", reason) for reason in _result(records, fact)]
        faults = [[*fault, DECIDED_OTHERWISE] for fault in stated]
        if stamp is not None and not any(record["decision_id"] == stamp for record in records):
            other = subject.get(stamp)
            why = f"is about {other}" if other is not None else "decisions.jsonl lacks"
            if other is not None or complete:
                faults.append(["result.json", f"names the decision {stamp!r}, which {why}", ""])
        if fact.stranger:
            file, name = fact.stranger
            faults.append([file, f"is of experiment {name!r}, and lies in the folder of {key}", ""])
        if faults:
            wrong[key] = faults
    return wrong


def _platform(records: Sequence[Document], fact: Facts) -> list[str]:
    """Compare metadata.json with the latest record; a missing value is no fault."""
    if not records:
        return []
    stated = (("platform_key", fact.platform_key), ("tag", fact.tag), ("seed", fact.seed))
    return _differing(
        *((n, value, records[-1][n]) for n, value in stated if value not in ("", None))
    )


def _result(records: Sequence[Document], fact: Facts) -> list[str]:
    """Compare result.json with the record that it names, and with the latest one."""
    if not fact.stamp or not records:
        return []
    latest = records[-1]
    faults = _differing(
        ("commit", fact.commit, latest["commit"]),
        ("parent_commit", fact.parent_commit, latest["base_commit"]),
        ("direction", fact.direction, latest["direction"]),
        ("metric_name", fact.metric_name, latest["metric_name"]),
    )
    return [*faults, *_value(latest, fact), *_stamp(records, fact)]


def _value(latest: Document, fact: Facts) -> list[str]:
    """The number and the kind of failure; a contaminated run loses its value after its record."""
    decided = real(latest["metric_value"], fact.metric_name)
    if latest["reason"] == "contended" and fact.stamp_id != latest["decision_id"]:
        return []
    if fact.failure_kind == "contended" and decided is not None and fact.lost_value == decided:
        return []
    if fact.recorded_value != decided:
        return [_says("metric_value", fact.recorded_value, decided)]
    failed = latest["decision_status"] in VALUELESS and latest["reason"] in FAILURE_KINDS
    if not failed or latest["reason"] == "no_metric":
        return []
    kind = (fact.failure_kind or "code_error") if fact.execution_status == "failed" else None
    return _differing(("failure_kind", kind, latest["reason"]))


def _stamp(records: Sequence[Document], fact: Facts) -> list[str]:
    """The decision in result.json. It may lag behind a later record, never differ from its own."""
    if fact.stamp_id is None:
        known = {"review_pending", *(record["decision_status"] for record in records)}
        latest = fact.stamp if fact.stamp in known else records[-1]["decision_status"]
        return _differing(("decision_status", fact.stamp, latest))
    named = [record for record in records if record["decision_id"] == fact.stamp_id]
    if not named:
        return []
    faults = _differing(("decision_status", fact.stamp, named[-1]["decision_status"]))
    if fact.confirmation != "none":
        faults += _differing(("confirmation", fact.confirmation, named[-1]["confirmation"]))
    return faults


def _differing(*pairs: tuple[str, Any, Any]) -> list[str]:
    """Name, value of the bundle, decided value; what was not recorded differs from nothing."""
    return [
        _says(name, stated, decided)
        for name, stated, decided in pairs
        if decided not in ("", None) and stated != decided
    ]


def _says(name: str, stated: object, decided: object) -> str:
    return f"says {name} {_shown(stated)}, and {_shown(decided)} was decided"


def _shown(value: object) -> str:
    return "null" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
