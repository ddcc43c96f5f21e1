"""The digest of a search: the page of the morning.

It reads the ledger as the last sync left it, the decisions, each run's `exit.json`, and of each
hypothesis who proposed it and what was predicted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean

from autohypothesis.engine.reference import read_reference
from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.fleet.overview.overview import RUN, Notice, Overview, overview
from autohypothesis.fleet.overview.results import (
    DeviceInterval,
    Row,
    busy_and_present,
    device_intervals,
    says_something,
)
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.installation import suggested
from autohypothesis.records.comparison import Comparison, NearMiss, comparison_of, near_misses
from autohypothesis.records.files import load_or_none
from autohypothesis.records.git import Repository
from autohypothesis.records.history import DecisionHistory, of_search
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.ledger import read_ledger
from autohypothesis.records.outcomes import DAMAGED, counted_as, ended, tally, tried, word_of
from autohypothesis.records.rows import IMPORTED, is_baseline
from autohypothesis.schema import Decision, Plan, now, rfc3339


@dataclass(frozen=True, slots=True)
class KeptStep:
    """One kept experiment."""

    experiment_id: str
    title: str
    value: float | None
    gain: float | None
    """Over the base on which it was decided, positive is better; None of a baseline."""
    compared: Comparison | None
    gain_share: float | None
    confirmation: str
    reason: str
    at: datetime
    worker_id: str
    notes: tuple[str, ...] = ()
    """Remarks of the engine: a metric that was printed wrongly, a very long line of source."""


@dataclass(frozen=True, slots=True)
class CrashKind:
    """Failures of one kind."""

    kind: str
    count: int
    example: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """The use of one worker's device."""

    worker_id: str
    experiments: int
    device_hours: float
    busy_share: float | None
    """Busy share of the time from the start of its first experiment to the end of its last."""
    idle_share: float | None
    busy_share_now: float | None
    """Busy share since it was started, from its own heartbeat."""


@dataclass(frozen=True, slots=True)
class ProposerRecord:
    """The record of one proposer; replicates, baselines and faults of the machine left out."""

    proposer: str
    tried: int
    kept: int
    hit_rate: float
    predictions: int
    """Number of experiments with a prediction and a value."""
    right_direction: float | None
    """Share of the predicted changes that went the way that was foreseen."""
    mean_error: float | None
    """Mean of |predicted - measured change|, in the metric's unit."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Everything that `digest` shows."""

    tag: str
    metric: str
    since: datetime | None
    until: datetime
    hours: float
    """Hours from the first start in the window to the last decision or end."""
    decided: dict[str, int]
    """Word of `records.outcomes` -> number of those that were decided in the window, or that began
    in it and are not decided."""
    experiments_per_hour: float | None
    kept: list[KeptStep]
    confirmed: list[str]
    """Kept, since runs at further seeds were better too."""
    provisional: list[str]
    taken_back: dict[str, str]
    """Kept, and decided otherwise since -> the reason."""
    not_confirmed: list[str]
    """Better on one seed, and not kept, since runs at further seeds were no better."""
    near_misses: list[NearMiss]
    crashes: list[CrashKind]
    lost: list[CrashKind]
    """Crashes by a fault of the machine; they are run again."""
    device_hours: float
    idle_share: float | None
    workers: list[DeviceUse]
    proposers: list[ProposerRecord]
    overview: Overview
    first: list[Notice] = field(default_factory=list)
    """Notices for the user, the most pressing first."""


Decided = tuple[Row, Decision]
"""A row and the latest decision about it."""

MANY_CRASHES = 0.2
"""A share of the experiments that is worth a look."""
MUCH_IDLE = 0.2
FEW = 10
"""Fewer experiments say nothing about who proposed them."""


def digest(layout: Layout, tag: str | None = None, *, since_hours: float | None = None) -> Digest:
    """Return what happened under `tag` (default: the active one), ever or in `since_hours`."""
    standing = overview(layout)
    tag = tag or standing.tag
    until = now()
    since = until - timedelta(hours=since_hours) if since_hours is not None else None
    rows, history, unread = list[Row](), DecisionHistory(), list[Notice]()
    with _noting(unread):
        rows = of_search(read_ledger(layout), tag)
    with _noting(unread):
        history = DecisionHistory.of_tag(layout, tag)
    reference = standing.reference
    if tag != standing.tag:
        with suppress(AutohypothesisError):
            reference = read_reference(Repository(layout.root), layout, tag)
    by_id = {str(row["id"]): row for row in rows}
    decided = [
        (by_id[name], decision)
        for name, decision in history.latest.items()
        if name in by_id and (since is None or decision.recorded_at >= since)
    ]
    spans = device_intervals(layout, rows, since, until)
    moments = [at for _, *span in spans for at in span]
    moments += [decision.recorded_at for _, decision in decided]
    hours = (max(moments) - min(moments)).total_seconds() / 3600 if moments else 0.0
    workers = _use(spans, standing)
    names = {str(row["id"]) for row, _ in decided}
    others = [
        (word_of(row), row)
        for name, row in by_id.items()
        if name not in history.latest
        and (row.get("ordinal") is None or row.get("decided_by") == IMPORTED)
        and (since is None or str(row.get("timestamp")) >= rfc3339(since))
    ]
    words = [*((_word(*each), each[0]) for each in decided), *others]
    outcomes = tally((word, is_baseline(row)) for word, row in words).outcomes

    def decided_as(status: str, word: str) -> list[str]:
        return [
            str(row["id"])
            for row, _ in decided
            if row.get("confirmation") == word and row.get("status") == status
        ]

    page = Digest(
        tag=tag,
        metric=str(rows[0].get("metric_name") or "val_bpb") if rows else "val_bpb",
        since=since,
        until=until,
        hours=round(hours, 4),
        decided=outcomes,
        experiments_per_hour=round(ended(outcomes) / hours, 2) if hours > 0 else None,
        kept=[
            _step(row, decision)
            for row, decision in decided
            # A damaged bundle disagrees with its decision: that is no step.
            if decision.decision_status == "keep" and row.get("status") != "damaged"
        ],
        confirmed=decided_as("keep", "confirmed"),
        provisional=decided_as("keep", "provisional"),
        taken_back={
            name: decision.detail or decision.reason
            for name, decision in history.taken_back().items()
            if name in names
        },
        not_confirmed=decided_as("discard", "refuted"),
        near_misses=[each for each in near_misses(rows, reference) if each.experiment_id in names],
        crashes=_failures(decided, "crash"),
        lost=_failures(decided, "lost"),
        device_hours=round(sum(use.device_hours for use in workers), 4),
        idle_share=_idle(workers),
        workers=workers,
        proposers=_records(layout, decided),
        overview=standing,
    )
    page.first.extend([*unread, *_first(page)])
    return page


@contextmanager
def _noting(unread: list[Notice]) -> Iterator[None]:
    """Add a file that cannot be read to `unread`, and go on."""
    try:
        yield
    except RecordError as error:
        unread.append(Notice(error.problem, error.hint))


def _step(row: Row, decision: Decision) -> KeptStep:
    gain, before = decision.improvement, decision.reference_value
    return KeptStep(
        experiment_id=str(row["id"]),
        title=str(row.get("description") or ""),
        value=decision.metric_value,
        gain=gain,
        compared=comparison_of(vars(decision)),
        gain_share=gain / abs(before) if gain is not None and before else None,
        confirmation=str(row.get("confirmation") or "none"),
        reason=str(decision.reason or ""),
        at=decision.recorded_at,
        worker_id=str(row.get("worker_id") or ""),
        notes=tuple(map(str, row.get("notes") or ())),
    )


def _word(row: Row, decision: Decision) -> str:
    """Return the word that it is counted under, by its decision: the row may be older."""
    damaged, kind = word_of(row) == DAMAGED, row.get("failure_kind") or decision.reason
    status = DAMAGED if damaged else decision.decision_status
    return counted_as(status, kind, row.get("replicates"), is_decided=True)


def _failures(decided: Iterable[Decided], word: str) -> list[CrashKind]:
    by_kind: dict[str, list[Row]] = defaultdict(list)
    for row, decision in decided:
        if _word(row, decision) == word:
            by_kind[str(row.get("failure_kind") or "unknown")].append(row)
    found = [
        CrashKind(kind, len(rows), str(rows[-1]["id"]), str((rows[-1].get("notes") or [""])[0]))
        for kind, rows in by_kind.items()
    ]
    return sorted(found, key=lambda crash: (-crash.count, crash.kind))


def _use(spans: Iterable[DeviceInterval], standing: Overview) -> list[DeviceUse]:
    by_worker: dict[str, list[DeviceInterval]] = defaultdict(list)
    for span in spans:
        by_worker[span[0]].append(span)
    now_shares = {worker.worker_id: worker.busy_share for worker in standing.workers}
    found = []
    for name, mine in sorted(by_worker.items()):
        busy, present = busy_and_present(mine)
        share = min(1.0, busy / present) if present else None
        found.append(
            DeviceUse(
                worker_id=name,
                experiments=len(mine),
                device_hours=round(busy, 4),
                busy_share=_rounded(share),
                idle_share=_rounded(None if share is None else 1 - share),
                busy_share_now=_rounded(now_shares.get(name)),
            )
        )
    return found


def _idle(workers: Iterable[DeviceUse]) -> float | None:
    """Return the idle share over all devices, each by the time that it was there."""
    used = [use for use in workers if use.busy_share]
    present = sum(use.device_hours / (use.busy_share or 1.0) for use in used)
    return _rounded(1 - sum(use.device_hours for use in used) / present) if present else None


def _records(layout: Layout, decided: Iterable[Decided]) -> list[ProposerRecord]:
    by_proposer: dict[str, list[tuple[Decision, float | None]]] = defaultdict(list)
    for row, decision in decided:
        if says_something(row) and not is_baseline(row):  # of one search, so it has a tag
            proposer, predicted = _proposed(layout, row)
            by_proposer[proposer].append((decision, predicted))
    records = [_record(name, tried) for name, tried in by_proposer.items()]
    return sorted(records, key=lambda record: (-record.tried, record.proposer))


def _record(proposer: str, tried: Sequence[tuple[Decision, float | None]]) -> ProposerRecord:
    kept = sum(decision.decision_status == "keep" for decision, _ in tried)
    pairs = []
    for decision, predicted in tried:
        value, before = decision.metric_value, decision.reference_value
        if predicted is not None and value is not None and before is not None:
            pairs.append((predicted, value - before))
    # A prediction of no change names no direction that could be right.
    right = [(a > 0) == (b > 0) and b != 0 for a, b in pairs if a]
    return ProposerRecord(
        proposer=proposer,
        tried=len(tried),
        kept=kept,
        hit_rate=round(kept / len(tried), 4),
        predictions=len(pairs),
        right_direction=_rounded(fmean(right)) if right else None,
        mean_error=fmean(abs(a - b) for a, b in pairs) if pairs else None,
    )


def _proposed(layout: Layout, row: Row) -> tuple[str, float | None]:
    """Return the proposer of a hypothesis, and the change that was predicted."""
    name, hypothesis, prediction = str(row.get("hypothesis_id") or ""), None, None
    if ID.fullmatch(name):
        placed = Queue(layout, str(row["tag"])).read(name)  # at a worker too: it comes back
        hypothesis = placed[1] if placed else None
        prediction = hypothesis.prediction if hypothesis else None
    if prediction is None and ID.fullmatch(str(row["id"])):
        plan = load_or_none(Plan, layout.plan(str(row["id"])))
        planned = plan.hypothesis.prediction if plan else None
        prediction = None if isinstance(planned, str) else planned
    if hypothesis is not None:
        proposer = hypothesis.proposer or "by hand"
    else:  # a change that is run again is a patch; its first plan says who made it
        first = load_or_none(Plan, layout.plan(f"{name}-1")) if ID.fullmatch(name) else None
        is_mutated = first is not None and first.hypothesis.instructions is not None
        proposer = "mutator" if is_mutated else "by hand"
    return proposer, prediction.delta if prediction else None


def _first(page: Digest) -> list[Notice]:
    """Return what to look at first, the most pressing first."""
    notices = list(page.overview.needs)

    def note(what: str, command: str) -> None:
        notices.append(Notice(what, suggested(f"{RUN} {command}")))

    for name, why in page.taken_back.items():
        note(f"{name} was kept, and taken back: {why}", f"show {name}")
    for step in page.kept:
        if step.notes:
            note(f"{step.experiment_id} was kept: {step.notes[0]}", f"show {step.experiment_id}")
    best = page.overview.best
    if best is not None and best.improvement and page.tag == page.overview.tag:
        note(f"the best, {best.experiment_id}, changes this against the baseline", "best --diff")
    gains = [step for step in page.kept if step.gain is not None and step.gain > 0]
    if gains:
        most = max(gains, key=lambda step: step.gain or 0.0)
        note(f"the largest gain of one step: {most.title}", f"show {most.experiment_id}")
    if page.provisional:
        count = len(page.provisional)
        note(f"{count} kept, not confirmed at further seeds", f"show {page.provisional[-1]}")
    crashes, decided = page.decided.get("crash", 0), tried(page.decided)
    if page.crashes and crashes >= MANY_CRASHES * decided:
        worst = page.crashes[0]
        most_often = f"{worst.kind} ({worst.count})"
        note(f"{crashes} of {decided} crashed, most often: {most_often}", f"show {worst.example}")
    for use in page.workers:
        if (use.idle_share or 0.0) > MUCH_IDLE and use.experiments >= FEW:
            note(f"{use.worker_id} was idle for {use.idle_share:.0%} of its time", "status")
    for record in page.proposers:
        if not record.kept and record.tried >= FEW:
            note(f"none of {record.tried} ideas of {record.proposer} was kept", "briefing")
    return notices


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
