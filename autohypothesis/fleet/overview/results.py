"""The results of a search in numbers.

They come from the rows of a ledger, or from anybody's results.tsv. Only experiments that say
something about a hypothesis count, as in results.tsv: no repeats, no failures of the machine, none
that was cancelled. What a table cannot tell is None, never zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from autohypothesis.engine.policy import better_by
from autohypothesis.fleet.knowledge import knowledge_base
from autohypothesis.records.comparison import Comparison, comparison_of
from autohypothesis.records.files import read_object
from autohypothesis.records.history import best_kept
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.outcomes import DAMAGED, Tally, ended, tally, tally_rows, tried, word_of
from autohypothesis.records.rows import DECIDED, IMPORTED, is_baseline
from autohypothesis.schema import Direction, finite, utc

Row = Mapping[str, Any]
DeviceInterval = tuple[str, datetime, datetime]
"""Worker, start and end of one experiment on its device."""


def device_intervals(
    layout: Layout, rows: Iterable[Row], since: datetime | None, until: datetime
) -> list[DeviceInterval]:
    """Return when the experiments of `rows` held their devices, cut to the window."""
    intervals = []
    for row in rows:
        start, end = _interval(layout, row) or (until, until)
        start, end = max(start, since) if since else start, min(end, until)
        if start < end:
            intervals.append((str(row.get("worker_id") or "–"), start, end))
    return intervals


def _interval(layout: Layout, row: Row) -> tuple[datetime, datetime] | None:
    """Return the times of the exec of the training and of the end of its scoring."""
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


@dataclass(frozen=True, slots=True)
class DecidedExperiment:
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
    compared: Comparison | None = None
    """With the base on which it was decided; None where that is not known."""


@dataclass(frozen=True, slots=True)
class KeptTrial(DecidedExperiment):
    """One step of the reference. Gains are positive where it got better."""

    gain: float | None = None
    """As it was decided; in a table of another loop against the kept one before it, on its
    platform. None for the first."""
    total_gain: float | None = None
    """Against the baseline before it, or else the first kept one, of its platform."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a search. What its source cannot tell is None."""

    source: str
    tag: str | None
    metric: str
    experiments: int
    """Kept, discarded or crashed."""
    outcomes: Mapping[str, int]
    """Word of `records.outcomes` -> number; a table knows keep, discard and crash only."""
    keep_rate: float | None
    """Kept share of the decided experiments, without the baseline."""
    start: DecidedExperiment | None
    best: DecidedExperiment | None
    gain: float | None
    """Improvement from the start to the best."""
    keeps: Sequence[KeptTrial]
    crashes: Mapping[str, int] | None
    """Kind of failure -> number, the most frequent first."""
    device_hours: float | None
    """Spent in experiments, on all devices together."""
    hours: float | None
    """Hours from the first start to the last end."""
    per_hour: float | None
    trials: Sequence[DecidedExperiment] = field(repr=False, default=())
    notes: Sequence[str] = ()

    def top(self, count: int, *, kept_only: bool = False) -> list[DecidedExperiment]:
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
    counted = [row for row in rows if says_something(row)]
    best = best_kept(counted) or best_kept(counted, imported=True)
    kinds = (row.get("failure_kind") for row in counted if word_of(row) == "crash")
    counts = tally_rows(rows)
    return _results(
        "experiments.jsonl",
        [_trial(row) for row in counted],
        None if best is None else _trial(best),
        counts,
        tag=tag,
        metric=str(rows[0].get("metric_name") or "val_bpb") if rows else "val_bpb",
        crashes=dict(Counter(kind or "unknown" for kind in kinds).most_common()),
        notes=[*_notes(rows)],
        **_hours(list(spans), ended(counts.outcomes)),
    )


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    if imported := sum(row.get("decided_by") == IMPORTED for row in rows):
        yield f"another tool made and decided {imported:,} of these runs, and nobody attests them"
    for row in rows:
        for note in row.get("notes") or () if row.get("status") == DAMAGED else ():
            yield f"{row['id']} is damaged, and not ranked: {note}"


def from_table(table: knowledge_base.WarmStart) -> Results:
    """Return the results that a results.tsv tells: no kinds of crashes, and no times."""
    trials = {
        line.line: DecidedExperiment(
            None, line.commit, line.value, line.memory_gb, line.status, line.description,
            baseline=line is table.first is table.tried[0],
        )
        for line in table.tried
    }  # fmt: skip
    best = None if table.best is None else trials[table.best.line]
    known = {"tag": None, "metric": "val_bpb", "crashes": None, "notes": table.problems}
    counts = tally((trial.status, trial.baseline) for trial in trials.values())
    return _results(table.path.name, list(trials.values()), best, counts, **known, **_hours([], 0))


def says_something(row: Row) -> bool:
    """Return whether an experiment says something about a hypothesis."""
    return (
        word_of(row) in (*DECIDED, DAMAGED)
        and row.get("ordinal") is not None
        and row.get("replicates") is None
    )


def _trial(row: Row) -> DecidedExperiment:
    crashed = row.get("decision_status", row["status"]) == "crash"
    return DecidedExperiment(
        experiment_id=str(row["id"]),
        commit=str(row.get("commit") or ""),
        value=None if crashed else row.get("metric_value"),
        memory_gb=row.get("peak_vram_gb"),
        status=DAMAGED if word_of(row) == DAMAGED else str(row["status"]),
        description=str(row.get("description") or ""),
        baseline=is_baseline(row),
        failure_kind=row.get("failure_kind"),
        confirmation=row.get("confirmation"),
        platform_key=str(row.get("platform_key") or ""),
        direction="maximize" if row.get("direction") == "maximize" else "minimize",
        compared=comparison_of(row),
    )


def _results(
    source: str,
    trials: Sequence[DecidedExperiment],
    best: DecidedExperiment | None,
    counts: Tally,
    **known: Any,
) -> Results:
    """Return the results that follow from trials that count, with what else is known."""
    kept = [trial for trial in trials if trial.status == "keep" and trial.value is not None]
    start = _start(kept, best)
    return Results(
        source=source,
        experiments=tried(counts.outcomes),
        outcomes=counts.outcomes,
        keep_rate=counts.keep_rate,
        start=start,
        best=best,
        gain=_gain(best, start) if best and start else None,
        keeps=_steps(kept),
        trials=trials,
        **known,
    )


def _steps(kept: Iterable[DecidedExperiment]) -> list[KeptTrial]:
    """Return each keep with its gain over those before it on its platform."""
    by_platform: dict[str, list[DecidedExperiment]] = {}
    steps = []
    for trial in kept:
        before = by_platform.setdefault(trial.platform_key, [])
        if trial.baseline:
            before.clear()  # a reference that a person moved is another start, and no gain
        compared = trial.compared
        if compared is None and before:
            compared = Comparison(_gain(trial, before[-1]), maximize=trial.direction == "maximize")
        known = {each.name: getattr(trial, each.name) for each in fields(trial)}
        steps.append(
            KeptTrial(
                **{**known, "compared": compared},
                gain=compared.improvement if compared else None,
                total_gain=_gain(trial, before[0]) if before else None,
            )
        )
        before.append(trial)
    return steps


def _start(
    kept: Iterable[DecidedExperiment], best: DecidedExperiment | None
) -> DecidedExperiment | None:
    """Return where the best began: the last baseline before it, else the first keep, of its
    platform. There are several baselines where a person moved the reference."""
    if best is None:
        return None
    same = [trial for trial in kept if trial.platform_key == best.platform_key]
    before = same[: same.index(best) + 1] if best in same else same
    return next((trial for trial in reversed(before) if trial.baseline), same[0])


def _gain(trial: DecidedExperiment, over: DecidedExperiment) -> float:
    """Return how much better `trial` is; negative where it is worse."""
    return better_by(trial.value or 0.0, over.value or 0.0, trial.direction)


def _hours(spans: Sequence[DeviceInterval], made: int) -> dict[str, float | None]:
    """Return the hours in experiments, those that went by, and experiments an hour.

    Args:
        made: the experiments that make the rate: none that was lost or cancelled.
    """
    if not spans:
        return {"device_hours": None, "hours": None, "per_hour": None}
    busy, hours = busy_and_present(spans)
    per_hour = min(made, len(spans)) / hours if hours else None
    return {"device_hours": busy, "hours": hours, "per_hour": per_hour}


def busy_and_present(spans: Sequence[DeviceInterval]) -> tuple[float, float]:
    """Return the hours in experiments, and those from the first start to the last end."""
    busy = sum((end - start).total_seconds() for _, start, end in spans)
    present = max(end for *_, end in spans) - min(start for _, start, _ in spans)
    return busy / 3600, present.total_seconds() / 3600
