"""What a search has begun and decided: kept up to date by what was appended, never read twice.

At ten thousand experiments a look at nothing new costs two `stat` calls, and one for each
experiment that is not decided yet. It only reads.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable

from autohypothesis.records import jsonl
from autohypothesis.records.bundles import ABSENT, Signature, signature_of
from autohypothesis.records.ids import experiment_stem
from autohypothesis.records.layout import ID, Layout
from autohypothesis.schema import Decision

SETTLING_NS = 100_000_000
"""A folder changed this recently may change again within one tick of the file system's clock."""
_NUMBERED = re.compile(r"(.+)-(0|[1-9]\d{0,8})")


class Chronicle:
    """Experiments and decisions of one tag, in the order of decisions.jsonl."""

    def __init__(self, layout: Layout, tag: str) -> None:
        self.layout = layout
        self.tag = tag
        self.decisions: list[Decision] = []
        self.latest: dict[str, Decision] = {}
        """Experiment -> the decision that stands; in the order in which those were taken."""
        self.undecided: set[str] = set()
        """Experiments with a plan or a run folder and no decision, of whatever tag."""
        self.version = 0
        """Grows with every decision."""
        self._offset = 0
        self._decided: set[str] = set()
        self._folders: dict[str, tuple[int, list[str]]] = {}
        self._attempts: dict[str, list[int]] = {}
        self._looked_at: dict[str, Signature] = {}
        """Undecided experiment -> its result.json when settle last had a look at it."""

    def refresh(self) -> bool:
        """Takes in what is new; whether anything is.

        Raises:
            RecordError: decisions.jsonl is no regular file, or far too large.
        """
        decided = self._read_decisions()
        begun = self._list_experiments()
        return decided or begun

    # ── questions ─────────────────────────────────────────────────────────────────────────

    def attempts(self, hypothesis_id: str) -> list[str]:
        """The experiments of one hypothesis, first one first."""
        stem = experiment_stem(hypothesis_id)
        return [f"{stem}-{number}" for number in self._attempts.get(stem, [])]

    def verdict(self, hypothesis_id: str) -> Decision | None:
        """The decision about its latest experiment; None while there is none."""
        attempts = self.attempts(hypothesis_id)
        return self.latest.get(attempts[-1]) if attempts else None

    def experiments(self) -> Iterable[str]:
        """Every experiment that has a plan or a run folder, of whatever tag."""
        return (f"{stem}-{n}" for stem, numbers in self._attempts.items() for n in numbers)

    def counted(self) -> int:
        """Decided experiments of the tag, without those that were lost to infrastructure."""
        return sum(not is_lost(decision) for decision in self.latest.values())

    def tally(self) -> dict[str, int]:
        """Of the tag: how many are decided, how many changes were kept, how many runs came back."""
        every = self.latest.values()
        return {
            "decided": len(self.latest),
            "kept": sum(one.decision_status == "keep" and bool(one.base_commit) for one in every),
            "requeued": sum(one.requeue for one in every),
        }

    def has_reference(self) -> bool:
        """Whether an unchanged commit, or a kept one, has a value: only then can a change have one.

        A repeat of the baseline will do, should somebody have decided it first.
        """
        return any(
            one.metric_value is not None
            and (
                one.decision_status == "keep"
                or (one.decision_status == "replicate" and one.base_commit is None)
            )
            for one in self.latest.values()
        )

    # ── what waits for a decision ─────────────────────────────────────────────────────────

    def ended(self) -> list[str]:
        """Undecided experiments that have a result."""
        return [name for name in self.undecided if self._result(name) != ABSENT]

    def fresh(self) -> list[str]:
        """Those of `ended` that settle has not seen as they are now."""
        return [
            name
            for name in self.undecided
            if (there := self._result(name)) != ABSENT and self._looked_at.get(name) != there
        ]

    def results(self) -> dict[str, Signature]:
        """Undecided experiment -> what its result.json is now; see `seen`."""
        return {name: self._result(name) for name in self.undecided}

    def seen(self, results: dict[str, Signature]) -> None:
        """Settle had its look at these."""
        self._looked_at = results

    def _result(self, experiment_id: str) -> Signature:
        return signature_of(str(self.layout.run(experiment_id).result))

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def _read_decisions(self) -> bool:
        news = jsonl.read_new(self.layout.decisions, self._offset)
        if news.restarted:
            self.decisions, self.latest, self._decided = [], {}, set()
            self._folders = {}
        self._offset = news.offset
        for record in news.records:
            try:
                decision = Decision.model_validate(record)
            except ValueError:
                continue  # the fold names it
            self._decided.add(decision.experiment_id)
            self.undecided.discard(decision.experiment_id)
            self._looked_at.pop(decision.experiment_id, None)
            if decision.tag == self.tag:
                self.decisions.append(decision)
                self.latest.pop(decision.experiment_id, None)
                self.latest[decision.experiment_id] = decision
        self.version += bool(news.records or news.restarted)
        return bool(news.records or news.restarted)

    def _list_experiments(self) -> bool:
        plans, runs = self._listed(str(self.layout.plans)), self._listed(str(self.layout.runs))
        if not (plans or runs):
            return False
        names = {name for _, found in self._folders.values() for name in found}
        self._attempts = {}
        for name in names:
            if numbered := _NUMBERED.fullmatch(name):
                self._attempts.setdefault(numbered[1], []).append(int(numbered[2]))
        for numbers in self._attempts.values():
            numbers.sort()
        self.undecided = names - self._decided
        return True

    def _listed(self, folder: str) -> bool:
        """Lists `folder` when it changed; whether it did."""
        before = self._folders.get(folder)
        try:
            changed = os.stat(folder).st_mtime_ns
            if before is not None and before[0] == changed:
                return False
            names = {name.removesuffix(".json").removesuffix(".md") for name in os.listdir(folder)}
        except OSError:
            changed, names = 0, set()
        if time.time_ns() - changed < SETTLING_NS:
            changed = -1  # list it once more
        found = sorted(name for name in names if ID.fullmatch(name))
        self._folders[folder] = (changed, found)
        return before is None or found != before[1]


def is_lost(decision: Decision) -> bool:
    """Whether the run said nothing about its hypothesis: it is queued again and not counted."""
    return decision.decision_status == "crash" and decision.requeue
