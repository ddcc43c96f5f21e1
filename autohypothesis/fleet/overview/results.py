"""What a search found, in numbers: from the rows of a ledger, or from anybody's results.tsv. Pure.

Only experiments that say something about a hypothesis count, as in results.tsv: no repeats, no
failures of the machine. What a table cannot tell is None, never zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from autohypothesis.fleet.overview.spans import Span
from autohypothesis.fleet.queue import warm_start
from autohypothesis.records.rows import DECIDED, NOT_EVIDENCE, is_baseline
from autohypothesis.records.standings import Kept, best_of

Row = Mapping[str, Any]
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Trial:
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
    direction: str = "minimize"


@dataclass(frozen=True, slots=True)
class Keep:
    """One step of the reference. Gains are positive where it got better."""

    trial: Trial
    gain: float | None
    """Against the kept one before it, on its platform; None for the first."""
    total: float | None
    """Against the first kept one of its platform."""


@dataclass(frozen=True, slots=True)
class Results:
    """The whole of it. Hours are None where no experiment says when it ran."""

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
    start: Trial | None
    best: Trial | None
    gain: float | None
    """From start to best."""
    keeps: Sequence[Keep]
    crashes: Mapping[str, int] | None
    """By kind, the most frequent first."""
    device_hours: float | None
    """Spent in experiments, on all devices together."""
    hours: float | None
    """From the first start to the last end."""
    per_hour: float | None
    trials: Sequence[Trial] = field(repr=False, default=())
    notes: Sequence[str] = ()

    def top(self, count: int, *, kept_only: bool = False) -> list[Trial]:
        """The best measured ones, the best first; of equal ones the earlier first.

        What is damaged has no rank: it comes last.
        """
        measured = [one for one in self.trials if one.value is not None]
        chosen = [one for one in measured if not kept_only or one.status == "keep"]
        return sorted(chosen, key=lambda one: (one.status == DAMAGED, _rank(one)))[:count]

    def as_dict(self, count: int, *, kept_only: bool = False) -> dict[str, Any]:
        document = asdict(self)
        del document["trials"]
        document["keeps"] = [
            {**step["trial"], "gain": step["gain"], "total_gain": step["total"]}
            for step in document["keeps"]
        ]
        top = self.top(count, kept_only=kept_only)
        return {**document, "top": [asdict(one) for one in top]}


def from_rows(rows: Sequence[Row], tag: str | None, spans: Iterable[Span]) -> Results:
    """From the ledger's rows of one search, and the times of its experiments."""
    trials = [_trial(row) for row in rows if _counts(row)]
    decided = [row for row in rows if row.get("ordinal") is not None]
    return _results(
        "experiments.jsonl",
        trials,
        tag=tag,
        metric=str(rows[0].get("metric_name") or "val_bpb") if rows else "val_bpb",
        repeats=sum(row.get("replicates") is not None for row in decided),
        undecided=len(rows) - len(decided),
        crashes=Counter(one.failure_kind or "unknown" for one in trials if one.status == "crash"),
        spans=list(spans),
        notes=[
            f"{row['id']} is damaged, and not ranked: {note}"
            for row in rows
            if row.get("status") == DAMAGED
            for note in row.get("notes") or []
        ],
    )


def from_table(table: warm_start.WarmStart) -> Results:
    """From a results.tsv alone, which knows no kinds of crashes and no times."""
    first = table.first
    trials = [
        Trial(
            experiment_id=None,
            commit=one.commit,
            value=one.value,
            memory_gb=one.memory_gb,
            status=one.status,
            description=one.description,
            baseline=one is first and one is table.tried[0],
        )
        for one in table.tried
    ]
    return _results(table.path.name, trials, notes=table.problems)


def _counts(row: Row) -> bool:
    return (
        row.get("ordinal") is not None
        and row.get("status") in (*DECIDED, DAMAGED)
        and row.get("replicates") is None
        and not (row["status"] == "crash" and row.get("failure_kind") in NOT_EVIDENCE)
    )


def _trial(row: Row) -> Trial:
    crashed = row.get("decision_status", row["status"]) == "crash"
    return Trial(
        experiment_id=str(row["id"]),
        commit=str(row.get("commit") or ""),
        value=None if crashed else row.get("metric_value"),
        memory_gb=row.get("peak_vram_gb"),
        status=str(row["status"]),
        description=str(row.get("description") or ""),
        baseline=is_baseline(dict(row)),
        failure_kind=row.get("failure_kind"),
        confirmation=row.get("confirmation"),
        platform_key=str(row.get("platform_key") or ""),
        direction=str(row.get("direction") or "minimize"),
    )


def _results(
    source: str,
    trials: list[Trial],
    *,
    tag: str | None = None,
    metric: str = "val_bpb",
    repeats: int | None = None,
    undecided: int | None = None,
    crashes: Counter[str] | None = None,
    spans: Sequence[Span] = (),
    notes: Sequence[str] = (),
) -> Results:
    counts = Counter(one.status for one in trials)
    tried = [one for one in trials if not one.baseline and one.status != DAMAGED]
    keeps = _keeps(trials)
    best = _best(keeps)
    start = _start(keeps, best)
    hours = _between(spans)
    return Results(
        source=source,
        tag=tag,
        metric=metric,
        experiments=len(trials),
        kept=counts["keep"],
        discarded=counts["discard"],
        crashed=counts["crash"],
        repeats=repeats,
        undecided=undecided,
        keep_rate=sum(one.status == "keep" for one in tried) / len(tried) if tried else None,
        start=start,
        best=best,
        gain=_better(best, start) if best and start else None,
        keeps=keeps,
        crashes=None if crashes is None else dict(crashes.most_common()),
        device_hours=sum(_seconds(span) for span in spans) / 3600 if spans else None,
        hours=hours,
        per_hour=len(spans) / hours if hours else None,
        trials=trials,
        notes=notes,
    )


def _keeps(trials: Iterable[Trial]) -> list[Keep]:
    """Each against those before it on its platform: others do not compare."""
    before: dict[str, tuple[Trial, Trial]] = {}
    found = []
    for one in trials:
        if one.status != "keep" or one.value is None:
            continue
        first, last = before.get(one.platform_key, (None, None))
        gain = None if last is None else _better(one, last)
        found.append(Keep(one, gain, None if first is None else _better(one, first)))
        before[one.platform_key] = (first or one, one)
    return found


def _best(keeps: Sequence[Keep]) -> Trial | None:
    """The best that nobody has refuted, on the platform that was kept on last."""
    standing = {str(n): k.trial for n, k in enumerate(keeps) if k.trial.confirmation != "refuted"}
    name = best_of(
        [
            Kept(name, int(name), one.platform_key, one.direction, one.value)
            for name, one in standing.items()
            if one.value is not None
        ]
    )
    return standing[name] if name is not None else None


def _start(keeps: Sequence[Keep], best: Trial | None) -> Trial | None:
    """Where the platform of the best began: its baseline, else the first that was kept there."""
    if best is None:
        return None
    same = [step.trial for step in keeps if step.trial.platform_key == best.platform_key]
    return next((one for one in same if one.baseline), same[0])


def _better(one: Trial, other: Trial) -> float:
    """How much better `one` is; negative where it is worse."""
    change = (one.value or 0.0) - (other.value or 0.0)
    return change if one.direction == "maximize" else -change


def _rank(one: Trial) -> float:
    value = one.value or 0.0
    return -value if one.direction == "maximize" else value


def _seconds(span: Span) -> float:
    return (span[2] - span[1]).total_seconds()


def _between(spans: Sequence[Span]) -> float | None:
    if not spans:
        return None
    first, last = min(span[1] for span in spans), max(span[2] for span in spans)
    return (last - first).total_seconds() / 3600
