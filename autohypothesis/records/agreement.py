"""Whether bundles say what was decided about them. Pure.

decisions.jsonl is the truth. A result.json that gives another value, commit or status than the
record of its decision was edited, or copied from another run: the decided value is shown, the file
is named with both values, and the experiment is ranked nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autohypothesis.records.rows import Facts, real
from autohypothesis.records.usual import Document
from autohypothesis.schema import FAILURE_KINDS

Fault = list[str]
"""[file of the bundle, reason]: a list, as the index keeps it."""


def disagreements(
    decisions: Iterable[Document], facts: Mapping[str, Facts], *, complete: bool
) -> dict[str, list[Fault]]:
    """What each bundle says that decisions.jsonl does not; experiments that agree are absent.

    Args:
        complete: every line of decisions.jsonl could be read. Else a stamp whose record is not
            among `decisions` may be the copy of a record that is damaged.
    """
    about: dict[str, list[Document]] = defaultdict(list)
    subject: dict[str, str] = {}
    for decision in decisions:
        about[decision["experiment_id"]].append(decision)
        subject[decision["decision_id"]] = decision["experiment_id"]
    wrong: dict[str, list[Fault]] = {}
    for key, fact in facts.items():
        faults = [["metadata.json", reason] for reason in _platform(about.get(key, []), fact)]
        faults += [["result.json", reason] for reason in _result(about.get(key, []), fact)]
        if fact.stamp_id is not None and not _names(about.get(key, []), fact.stamp_id):
            faults += _unknown_record(fact.stamp_id, subject, complete=complete)
        if fact.stranger:
            file, name = fact.stranger
            faults.append([file, f"is of experiment {name!r}, and lies in the folder of {key}"])
        if faults:
            wrong[key] = faults
    return wrong


def _names(records: Sequence[Document], decision_id: str) -> bool:
    return any(record["decision_id"] == decision_id for record in records)


def _unknown_record(decision_id: str, subject: Mapping[str, str], *, complete: bool) -> list[Fault]:
    other = subject.get(decision_id)
    if other is not None:
        return [["result.json", f"names the decision {decision_id!r}, which is about {other}"]]
    if not complete:
        return []
    return [["result.json", f"names the decision {decision_id!r}, which decisions.jsonl lacks"]]


def _platform(records: Sequence[Document], fact: Facts) -> list[str]:
    """What metadata.json says of the run, against the latest record; silence is no fault."""
    if not records:
        return []
    latest = records[-1]
    said = (("platform_key", fact.platform_key), ("tag", fact.tag), ("seed", fact.seed))
    return [
        _both(name, value, latest[name])
        for name, value in said
        if value not in ("", None) and latest[name] not in ("", None) and value != latest[name]
    ]


def _result(records: Sequence[Document], fact: Facts) -> list[str]:
    """What result.json says, against the record that it names, and against the latest one."""
    if not fact.stamp or not records:
        return []
    latest = records[-1]
    said: list[tuple[str, Any, Any]] = [
        ("commit", fact.commit, latest["commit"]),
        ("parent_commit", fact.parent_commit, latest["base_commit"]),
        ("direction", fact.direction, latest["direction"]),
        ("metric_name", fact.metric_name, latest["metric_name"]),
    ]
    faults = [_both(name, a, b) for name, a, b in said if b not in ("", None) and a != b]
    return [*faults, *_value(latest, fact), *_stamp(records, fact)]


def _value(latest: Document, fact: Facts) -> list[str]:
    """The number and the kind of failure. What is disturbed is voided only after its record."""
    decided = real(latest["metric_value"], fact.metric_name)
    if latest["reason"] == "contended" and fact.stamp_id != latest["decision_id"]:
        return []
    if fact.failure_kind == "contended" and decided is not None and fact.voided_value == decided:
        return []
    if fact.recorded_value != decided:
        return [_both("metric_value", fact.recorded_value, decided)]
    crashed = latest["decision_status"] == "crash" and latest["reason"] in FAILURE_KINDS
    if crashed and latest["reason"] != "no_metric":
        kind = (fact.failure_kind or "code_error") if fact.execution_status == "failed" else None
        return [] if kind == latest["reason"] else [_both("failure_kind", kind, latest["reason"])]
    return []


def _stamp(records: Sequence[Document], fact: Facts) -> list[str]:
    """The decision in result.json. It may lag behind a later record, never differ from its own."""
    named = [record for record in records if record["decision_id"] == fact.stamp_id]
    if fact.stamp_id is None:
        known = {"review_pending", *(record["decision_status"] for record in records)}
        if fact.stamp in known:
            return []
        return [_both("decision_status", fact.stamp, records[-1]["decision_status"])]
    faults = []
    for record in named[-1:]:
        if record["decision_status"] != fact.stamp:
            faults.append(_both("decision_status", fact.stamp, record["decision_status"]))
        if fact.confirmation not in ("none", record["confirmation"]):
            faults.append(_both("confirmation", fact.confirmation, record["confirmation"]))
    return faults


def _both(name: str, said: object, decided: object) -> str:
    return f"says {name} {_shown(said)}, and {_shown(decided)} was decided"


def _shown(value: object) -> str:
    return "null" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
