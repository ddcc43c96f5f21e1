"""The decisions of a search: which stand, what they are worth, where the reference went.

`DecisionHistory` is one tag's part of decisions.jsonl; a later decision about an experiment
replaces the earlier one. `LiveHistory` follows the files of a running search as well: it is fed
with what was appended, and reads nothing twice. The functions at the end do the same for rows.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from autohypothesis.errors import SettleError
from autohypothesis.records import jsonl
from autohypothesis.records.bundles import canonical, is_of_no_search, read_decisions
from autohypothesis.records.files import MTIME_GRANULARITY_NS, FileStamp, file_stamp
from autohypothesis.records.ids import experiment_stem
from autohypothesis.records.layout import ID, Layout
from autohypothesis.records.rows import IMPORTED, is_baseline
from autohypothesis.schema import Decision

_NUMBERED = re.compile(r"(.+)-(0|[1-9]\d{0,8})")
_DECISION_ID = re.compile(r"d-(\d{1,12})-")

K = TypeVar("K")
Row = Mapping[str, Any]


class DecisionHistory:
    """The decisions of one tag, in their order."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self.decisions: list[Decision] = []
        self.latest: dict[str, Decision] = {}
        """Experiment -> the decision that stands; in the order in which those were taken."""
        self.reference = ""
        """The commit of the reference, set by the holder of its lock; empty: unknown."""
        for decision in decisions:
            self.add(decision)

    @classmethod
    def of_tag(cls, layout: Layout, tag: str | None) -> DecisionHistory:
        """Read what decisions.jsonl says about one tag.

        Raises:
            RecordError: decisions.jsonl is no regular file, or far too large.
        """
        decisions, _ = read_decisions(layout)
        return DecisionHistory(decision for decision in decisions if decision.tag == tag)

    def add(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self.latest.pop(decision.experiment_id, None)
        self.latest[decision.experiment_id] = decision

    def without(self, experiment_id: str) -> DecisionHistory:
        """Return the history of all other experiments: nothing is compared with itself."""
        return DecisionHistory(d for d in self.decisions if d.experiment_id != experiment_id)

    def of(self, experiment_id: str) -> Decision | None:
        """Return the latest decision about one experiment."""
        return self.latest.get(experiment_id)

    def keeps(self, platform_key: str) -> list[Decision]:
        """Return the keeps on one platform that stand and have a value, oldest first."""
        return [d for d in self._valued(platform_key) if d.decision_status == "keep"]

    def runs_of(self, commit: str, platform_key: str) -> list[Decision]:
        """Return the valued keeps and replicates of a commit on one platform; keeps first."""
        runs = [d for d in self._valued(platform_key) if d.commit == commit]
        return [d for status in ("keep", "replicate") for d in runs if d.decision_status == status]

    def value_of(self, commit: str, platform_key: str, seed: int | None) -> float | None:
        """Return the metric of a kept commit on one platform, at one seed; nothing else compares.

        Its replicates count where the kept run had another seed. A record without a seed, or a run
        without one, meets every seed.
        """
        runs = self.runs_of(commit, platform_key)
        met = [d for d in runs if d.seed == seed] or [
            d for d in runs if seed is None or d.seed is None
        ]
        return met[0].metric_value if met else None

    def replicate_at(self, commit: str, platform_key: str, seed: int) -> Decision | None:
        """Return the run of a commit at this very seed that is evidence about it.

        That is a value, or a failure by its own fault; not a lost run, nor an unattested value.
        Replicates of a change may be there before the change itself is decided.
        """
        for decision in self.latest.values():
            here = (decision.commit, decision.platform_key, decision.seed)
            if here == (commit, platform_key, seed) and _is_evidence(decision):
                return decision
        return None

    def lost_hypothesis_at(self, commit: str, seed: int) -> str | None:
        """Return the hypothesis of a lost run of an unchanged commit at one seed."""
        for decision in reversed(self.latest.values()):
            here = (decision.commit, decision.seed, decision.base_commit)
            if here == (commit, seed, None) and decision.requeue:
                return decision.hypothesis_id or None
        return None

    def original_of(self, commit: str, platform_key: str) -> str:
        """Return the experiment that others of a commit repeat: the kept one, else the first."""
        runs = [d for d in self.latest.values() if d.commit == commit]
        kept = [d for d in runs if d.decision_status == "keep"]
        return [*kept, *self.runs_of(commit, platform_key)][0].experiment_id

    def on_slot(self, platform_key: str, lane: str) -> list[Decision]:
        """Return the latest decision about each run on one device, oldest first."""
        every = self.latest.values()
        return [d for d in every if (d.platform_key, d.lane) == (platform_key, lane)]

    def with_reason(self, hypothesis_id: str, reason: str) -> list[Decision]:
        """Return the decisions about runs of one hypothesis that have this reason."""
        every = self.latest.values()
        return [d for d in every if (d.hypothesis_id, d.reason) == (hypothesis_id, reason)]

    def _valued(self, platform_key: str) -> list[Decision]:
        every = self.latest.values()
        return [d for d in every if d.platform_key == platform_key and d.metric_value is not None]

    def anchor(self, platform_key: str, seed: int | None) -> float | None:
        """Return the metric of the last keep that was no simplification, the bound for those.

        A baseline of a commit that was no longer the reference is no part of the chain.
        """
        for keep in reversed(self.keeps(platform_key)):
            if not keep.simplification and keep.reference_after in (None, keep.commit):
                same = self.value_of(keep.commit, platform_key, seed)
                return keep.metric_value if same is None else same
        return None

    def best_value(self, platform_key: str, direction: str) -> float | None:
        """Return the best kept value on one platform."""
        values = [d.metric_value for d in self.keeps(platform_key) if d.metric_value is not None]
        return (min if direction == "minimize" else max)(values, default=None)

    def best_decision(self) -> Decision | None:
        """Return the best keep that was not refuted, on the platform that was kept on last."""
        kept = {
            name: (place, d.platform_key, d.direction, d.metric_value)
            for place, (name, d) in enumerate(self.latest.items())
            if d.decision_status == "keep"
            and d.metric_value is not None
            and d.confirmation != "refuted"
        }
        best = best_of(kept)
        return None if best is None else self.latest[best]

    def taken_back(self) -> dict[str, Decision]:
        """Return experiment -> the decision that took its keep back, where that stands."""
        kept: set[str] = set()
        found: dict[str, Decision] = {}
        for decision in self.decisions:
            name = decision.experiment_id
            if decision.decision_status == "keep":
                kept.add(name)
                found.pop(name, None)
            elif name in kept:
                found.setdefault(name, decision)
        return found

    def has_gained(self, reference: str, is_ancestor: Callable[[str, str], bool]) -> bool:
        """Return whether a kept change that was not refuted is part of the reference."""
        return any(
            d.decision_status == "keep"
            and bool(d.base_commit)
            and d.confirmation != "refuted"
            and is_ancestor(d.commit, reference)
            for d in reversed(self.latest.values())
        )

    def has_reference(self) -> bool:
        """Return whether an unchanged commit, or a kept one, has a value to compare with.

        A repeat of the baseline will do, where it was decided first.
        """
        return any(
            d.metric_value is not None
            and (
                d.decision_status == "keep"
                or (d.decision_status == "replicate" and d.base_commit is None)
            )
            for d in self.latest.values()
        )

    def counted(self) -> int:
        """Return how many experiments are decided, without those that were lost or cancelled."""
        return sum(not is_lost(decision) for decision in self.latest.values())

    def tally(self) -> dict[str, int]:
        """Return how many are decided, how many changes were kept, how many runs came back."""
        every = self.latest.values()
        return {
            "decided": self.counted(),
            "kept": sum(d.decision_status == "keep" and bool(d.base_commit) for d in every),
            "requeued": sum(d.requeue for d in every),
        }

    def highest_number(self) -> int:
        """Return the highest number in the ids of the decisions; 0 where none has one."""
        ids = (_DECISION_ID.match(decision.decision_id) for decision in self.decisions)
        return max((int(numbered[1]) for numbered in ids if numbered), default=0)

    def dangling_move(self, reference: str) -> Decision | None:
        """Return the last decision, if it moves the reference, which stands where it was before.

        Whatever is decided later was decided after that move.
        """
        last = self.decisions[-1] if self.decisions else None
        return last if last and _moves(last) and last.reference_before == reference else None

    def reference_without(
        self, keep: Decision, reference: str, is_ancestor: Callable[[str, str], bool]
    ) -> str:
        """Return where the reference goes when `keep` is overruled: back, if it came by `keep`.

        Raises:
            SettleError: another keep, or a commit of a person, was built on it since.
        """
        if not _moves(keep):
            return reference
        if reference == keep.reference_after:
            return str(keep.reference_before)
        for later in self.latest.values():
            built_on_it = _moves(later) and later.reference_before == keep.reference_after
            if later.decision_status == "keep" and built_on_it:
                raise SettleError(
                    f"{later.experiment_id} was kept on top of {keep.experiment_id}",
                    hint="overrule the later one first: python orchestrator.py decide"
                    f" {later.experiment_id} discard",
                )
        if is_ancestor(str(keep.reference_after), reference):
            raise SettleError(
                f"the reference {reference[:12]} was built on {keep.experiment_id} by commits that"
                " no decision made",
                hint=f"take its change out with one more: git revert {keep.commit[:12]}",
            )
        return reference


def is_lost(decision: Decision) -> bool:
    """Return whether the run is no evidence: its hypothesis is queued again, and not counted."""
    return decision.decision_status in ("crash", "cancelled") and decision.requeue


def _is_evidence(decision: Decision) -> bool:
    if decision.decision_status == "crash":
        return not decision.requeue
    counts = decision.decision_status in ("keep", "replicate")
    return counts and decision.metric_value is not None and decision.reason != "unattested"


def _moves(decision: Decision) -> bool:
    before, after = decision.reference_before, decision.reference_after
    return before is not None and after is not None and before != after


class LiveHistory(DecisionHistory):
    """Experiments and decisions of one tag as its files grow; it only reads.

    At ten thousand experiments a look at nothing new costs two `stat` calls, and one for each
    experiment that is not decided yet.
    """

    def __init__(self, layout: Layout, tag: str) -> None:
        super().__init__()
        self.layout = layout
        self.tag = tag
        self.undecided: set[str] = set()
        """Experiments with a plan or a run folder and no decision, of whatever tag.

        What another tool made is history, and waits for none.
        """
        self.version = 0
        """Grows with every decision."""
        self._offset = 0
        self._decided: set[str] = set()
        self._imported: set[str] = set()
        self._ids: set[tuple[str, str]] = set()
        self._folders: dict[str, tuple[int, list[str]]] = {}
        self._attempts: dict[str, list[int]] = {}
        self._looked_at: dict[str, FileStamp | None] = {}
        """Undecided experiment -> its result.json when settle last had a look at it."""

    def refresh(self) -> bool:
        """Take in what is new; return whether anything is.

        Raises:
            RecordError: decisions.jsonl is no regular file, or far too large.
        """
        decided = self._read_decisions()
        begun = self._list_experiments()
        return decided or begun

    def attempts(self, hypothesis_id: str) -> list[str]:
        """Return the experiments of one hypothesis, in their order."""
        stem = experiment_stem(hypothesis_id)
        return [f"{stem}-{number}" for number in self._attempts.get(stem, [])]

    def decision_about(self, hypothesis_id: str) -> Decision | None:
        """Return the decision about the latest experiment of a hypothesis."""
        attempts = self.attempts(hypothesis_id)
        return self.latest.get(attempts[-1]) if attempts else None

    def experiments(self) -> Iterable[str]:
        """Return every experiment that has a plan or a run folder, of whatever tag."""
        return (f"{stem}-{n}" for stem, numbers in self._attempts.items() for n in numbers)

    def ended(self) -> list[str]:
        """Return the undecided experiments that have a result."""
        return [name for name, seen in self.results().items() if seen is not None]

    def fresh(self) -> list[str]:
        """Return those of `ended` whose result has changed since `seen`."""
        return [
            name
            for name, seen in self.results().items()
            if seen is not None and self._looked_at.get(name) != seen
        ]

    def results(self) -> dict[str, FileStamp | None]:
        """Return undecided experiment -> signature of its result.json; see `seen`."""
        return {name: file_stamp(self.layout.run(name).result) for name in self.undecided}

    def seen(self, results: dict[str, FileStamp | None]) -> None:
        """Note that settle had a look at these."""
        self._looked_at = results

    def _read_decisions(self) -> bool:
        news = jsonl.read_new(self.layout.decisions, self._offset, partial(canonical, Decision))
        if news.restarted:
            self.decisions, self.latest, self._decided, self._ids = [], {}, set(), set()
            self._folders = {}
        self._offset = news.offset
        for record in news.records:
            decision = Decision.model_validate(record)
            self._decided.add(decision.experiment_id)
            self.undecided.discard(decision.experiment_id)
            self._looked_at.pop(decision.experiment_id, None)
            record_id = (decision.decision_id, decision.experiment_id)
            if decision.tag == self.tag and record_id not in self._ids:
                self._ids.add(record_id)  # as `bundles.decision_documents` counts them
                self.add(decision)
        self.version += bool(news.records or news.restarted)
        return bool(news.records or news.restarted)

    def _list_experiments(self) -> bool:
        plans, runs = self._listed(str(self.layout.plans)), self._listed(str(self.layout.runs))
        if not (plans or runs):
            return False
        names = {name for _, listed in self._folders.values() for name in listed}
        self._attempts = {}
        for name in names:
            if numbered := _NUMBERED.fullmatch(name):
                self._attempts.setdefault(numbered[1], []).append(int(numbered[2]))
        for numbers in self._attempts.values():
            numbers.sort()
        self._imported |= {
            name
            for name in names - self._decided - self._imported
            if is_of_no_search(self.layout.run(name))
        }
        self.undecided = names - self._decided - self._imported
        return True

    def _listed(self, folder: str) -> bool:
        """List `folder` if it changed; return whether it did."""
        before = self._folders.get(folder)
        try:
            changed = os.stat(folder).st_mtime_ns
            if before is not None and before[0] == changed:
                return False
            files = os.listdir(folder)
        except OSError:
            changed, files = 0, []
        names = {name.removesuffix(".json").removesuffix(".md") for name in files}
        if time.time_ns() - changed < MTIME_GRANULARITY_NS:
            changed = -1  # list it once more
        listed = sorted(name for name in names if ID.fullmatch(name))
        self._folders[folder] = (changed, listed)
        return before is None or listed != before[1]


def best_of(kept: Mapping[K, tuple[int, str, str | None, float]]) -> K | None:
    """Return the best, on the platform that was kept on last: others do not compare.

    Args:
        kept: id -> place in the decisions, platform, direction, value.
    """
    if not kept:
        return None
    _, platform, direction, _ = max(kept.values(), key=lambda each: each[0])
    sign = -1.0 if direction == "maximize" else 1.0
    same = [name for name, (_, key, _, _) in kept.items() if key == platform]
    return min(same, key=lambda name: sign * kept[name][3])


def of_tag(rows: Iterable[Row], tag: str | None) -> list[Row]:
    """Return the rows of one search; all, when `tag` is None."""
    return [row for row in rows if tag is None or row.get("tag") == tag]


def of_search(rows: Sequence[Row], tag: str | None) -> list[Row]:
    """Return the rows of one search; while it has none, what another tool left here before.

    What that tool did not decide has no tag.
    """
    mine = [row for row in rows if tag is None or (tag and row.get("tag") == tag)]
    return mine or [row for row in rows if row.get("tag") in (IMPORTED, "")]


def kept_rows(rows: Iterable[Row], *, imported: bool = False) -> list[Row]:
    """Return the rows that were kept and have a value.

    A row without a place shows a stamp whose record cannot be read: that ranks nothing. What
    another tool kept is attested by nobody, and counts with `imported` only.
    """
    return [
        row
        for row in rows
        if row.get("status") == "keep"
        and row.get("metric_value") is not None
        and row.get("ordinal") is not None
        and (imported or row.get("decided_by") != IMPORTED)
    ]


def best_kept(rows: Sequence[Row], *, imported: bool = False) -> Row | None:
    """Return the best kept row that was not refuted."""
    kept_ones = kept_rows(rows, imported=imported)
    by_id = {str(row["id"]): row for row in kept_ones if row.get("confirmation") != "refuted"}
    kept = {
        name: (row["ordinal"], row.get("platform_key", ""), row.get("direction"), float(value))
        for name, row in by_id.items()
        if (value := row["metric_value"]) is not None
    }
    best = best_of(kept)
    return None if best is None else by_id[best]


def first_baseline(rows: Sequence[Row]) -> Row | None:
    """Return the first kept run of the unchanged script."""
    return next((row for row in kept_rows(rows) if is_baseline(row)), None)
