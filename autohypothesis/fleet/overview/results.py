"""The results of a search in numbers: from the rows of a ledger, or from anybody's results.tsv.

Only experiments that say something about a hypothesis count, as in results.tsv: no repeats, no
failures of the machine. What a table cannot tell is None, never zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from autohypothesis.engine.policy import better_by
from autohypothesis.fleet.knowledge import warm_start
from autohypothesis.records.files import read_object
from autohypothesis.records.history import best_kept
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.rows import DECIDED, NOT_EVIDENCE, is_baseline
from autohypothesis.schema import Direction, finite, utc

DeviceInterval = tuple[str, datetime, datetime]
"""Worker, start and end of one experiment on its device."""


def device_intervals(
    layout: Layout, rows: Iterable[Mapping[str, Any]], since: datetime | None, until: datetime
) -> list[DeviceInterval]:
    """Return when the experiments of `rows` held their devices, cut to the window."""
    intervals = []
    for row in rows:
        start, end = _interval(layout, row) or (until, until)
        start, end = max(start, since) if since else start, min(end, until)
        if start < end:
            intervals.append((str(row.get("worker_id") or "–"), start, end))
    return intervals


def _interval(layout: Layout, row: Mapping[str, Any]) -> tuple[datetime, datetime] | None:
    """From the exec of the training to the end of its scoring, by the shim, else by the row."""
    if not ID.fullmatch(str(row["id"])):
        return None
    record = read_object(layout.run(str(row["id"])).exit)
    start, end = moment(record.get("started_at")), moment(record.get("ended_at"))
    if start is not None and end is not None:
        return start, end
    end = end or moment(row.get("timestamp"))
    values = (record.get("wall_seconds"), row.get("total_seconds"), row.get("training_seconds"))
    numbers = (finite(value) for value in values)
    seconds = next((number for number in numbers if number and 0 < number < 1e8), None)
    return (end - timedelta(seconds=seconds), end) if end and seconds else None


def moment(value: object) -> datetime | None:
    try:
        at = utc(value)
    except (ValueError, OverflowError):
        return None
    return at if isinstance(at, datetime) else None


Row = Mapping[str, Any]
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class ResultTrial:
    """One decided experiment."""

    experiment_id: str | None
    commit: str
    value: float | None
    memory_gb: float | None
    status: str
    """keep, discard or crash; damaged where the bundle says something else than was decided."""
    description: str
    baseline: bool = False
    failure_kind: str | None = None
    confirmation: str | None = None
    platform_key: str = ""
    direction: Direction = "minimize"


@dataclass(frozen=True, slots=True)
class KeptTrial(ResultTrial):
    """One step of the reference. Gains are positive where it got better."""

    gain: float | None = None
    """Against the kept one before it, on its platform; None for the first."""
    total_gain: float | None = None
    """Against the first kept one of its platform."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a search. What its source cannot tell is None."""

    source: str
    tag: str | None
    metric: str
    experiments: int
    kept: int
    discarded: int
    crashed: int
    repeats: int | None
    undecided: int | None
    keep_rate: float | None
    """Of what was tried, the baseline left out."""
    start: ResultTrial | None
    best: ResultTrial | None
    gain: float | None
    """From start to best."""
    keeps: Sequence[KeptTrial]
    crashes: Mapping[str, int] | None
    """By kind, the most frequent first."""
    device_hours: float | None
    """Spent in experiments, on all devices together."""
    hours: float | None
    """From the first start to the last end."""
    per_hour: float | None
    trials: Sequence[ResultTrial] = field(repr=False, default=())
    notes: Sequence[str] = ()

    def top(self, count: int, *, kept_only: bool = False) -> list[ResultTrial]:
        """Return the best measured trials, best first; of equal ones the earlier first.

        What is damaged has no rank: it comes last.
        """
        chosen = [trial for trial in self.trials if not kept_only or trial.status == "keep"]
        ranked = [
            (trial.status == DAMAGED, -better_by(trial.value, 0.0, trial.direction), index, trial)
            for index, trial in enumerate(chosen)
            if trial.value is not None
        ]
        return [trial for *_, trial in sorted(ranked, key=lambda entry: entry[:3])[:count]]

    def as_dict(self, count: int, *, kept_only: bool = False) -> dict[str, Any]:
        document = asdict(self)
        del document["trials"]
        return {**document, "top": list(map(asdict, self.top(count, kept_only=kept_only)))}


def from_rows(rows: Sequence[Row], tag: str | None, spans: Iterable[DeviceInterval]) -> Results:
    """Return the results of a search from its rows in the ledger, and the times of its runs."""
    counted = [row for row in rows if _counts(row)]
    decided = [row for row in rows if row.get("ordinal") is not None]
    kinds = (row.get("failure_kind") for row in counted if row["status"] == "crash")
    return _results(
        "experiments.jsonl",
        counted,
        tag=tag,
        metric=str(rows[0].get("metric_name") or "val_bpb") if rows else "val_bpb",
        repeats=sum(row.get("replicates") is not None for row in decided),
        undecided=len(rows) - len(decided),
        crashes=dict(Counter(kind or "unknown" for kind in kinds).most_common()),
        notes=[
            f"{row['id']} is damaged, and not ranked: {note}"
            for row in rows
            if row.get("status") == DAMAGED
            for note in row.get("notes") or []
        ],
        **_hours(list(spans)),
    )


def from_table(table: warm_start.WarmStart) -> Results:
    """Return the results that a results.tsv tells: no kinds of crashes, and no times."""
    rows = [
        {
            "id": number,  # no name of an experiment
            "ordinal": number,
            "tag": "",
            "hypothesis_id": "baseline" if line is table.first and number == 0 else "",
            "status": line.status,
            "commit": line.commit,
            "metric_value": line.value,
            "peak_vram_gb": line.memory_gb,
            "description": line.description,
        }
        for number, line in enumerate(table.tried)
    ]
    unknown = dict.fromkeys(("tag", "repeats", "undecided", "crashes"))
    known = {"metric": "val_bpb", "notes": table.problems}
    return _results(table.path.name, rows, **known, **unknown, **_hours([]))


def _counts(row: Row) -> bool:
    return (
        row.get("ordinal") is not None
        and row.get("status") in (*DECIDED, DAMAGED)
        and row.get("replicates") is None
        and not (row["status"] == "crash" and row.get("failure_kind") in NOT_EVIDENCE)
    )


def _trial(row: Row) -> ResultTrial:
    crashed = row.get("decision_status", row["status"]) == "crash"
    return ResultTrial(
        experiment_id=row["id"] if isinstance(row["id"], str) else None,
        commit=str(row.get("commit") or ""),
        value=None if crashed else row.get("metric_value"),
        memory_gb=row.get("peak_vram_gb"),
        status=str(row["status"]),
        description=str(row.get("description") or ""),
        baseline=is_baseline(dict(row)),
        failure_kind=row.get("failure_kind"),
        confirmation=row.get("confirmation"),
        platform_key=str(row.get("platform_key") or ""),
        direction="maximize" if row.get("direction") == "maximize" else "minimize",
    )


def _results(source: str, rows: Sequence[Row], **known: Any) -> Results:
    """Return the results that follow from rows that count, with what else is known."""
    trials = [_trial(row) for row in rows]
    counts = Counter(trial.status for trial in trials)
    tried = [trial for trial in trials if not trial.baseline and trial.status != DAMAGED]
    kept = [trial for trial in trials if trial.status == "keep" and trial.value is not None]
    best_row = best_kept([dict(row) for row in rows])
    best = _trial(best_row) if best_row is not None else None
    start = _start(kept, best)
    return Results(
        source=source,
        experiments=len(trials),
        kept=counts["keep"],
        discarded=counts["discard"],
        crashed=counts["crash"],
        keep_rate=sum(trial.status == "keep" for trial in tried) / len(tried) if tried else None,
        start=start,
        best=best,
        gain=_gain(best, start) if best and start else None,
        keeps=_steps(kept),
        trials=trials,
        **known,
    )


def _steps(kept: Iterable[ResultTrial]) -> list[KeptTrial]:
    """Return each keep with its gain over those before it on its platform."""
    by_platform: dict[str, list[ResultTrial]] = {}
    steps = []
    for trial in kept:
        before = by_platform.setdefault(trial.platform_key, [])
        gains = (_gain(trial, before[-1]), _gain(trial, before[0])) if before else (None, None)
        steps.append(KeptTrial(*astuple(trial), *gains))
        before.append(trial)
    return steps


def _start(kept: Iterable[ResultTrial], best: ResultTrial | None) -> ResultTrial | None:
    """Return where the platform of the best began: its baseline, else its first keep."""
    if best is None:
        return None
    same = [trial for trial in kept if trial.platform_key == best.platform_key]
    return next((trial for trial in same if trial.baseline), same[0])


def _gain(trial: ResultTrial, over: ResultTrial) -> float:
    """Return how much better `trial` is; negative where it is worse."""
    return better_by(trial.value or 0.0, over.value or 0.0, trial.direction)


def _hours(spans: Sequence[DeviceInterval]) -> dict[str, float | None]:
    """Return the hours in experiments, those that went by, and experiments an hour."""
    if not spans:
        return {"device_hours": None, "hours": None, "per_hour": None}
    seconds = sum((end - start).total_seconds() for _, start, end in spans)
    first, last = min(start for _, start, _ in spans), max(end for *_, end in spans)
    hours = (last - first).total_seconds() / 3600
    per_hour = len(spans) / hours if hours else None
    return {"device_hours": seconds / 3600, "hours": hours, "per_hour": per_hour}
