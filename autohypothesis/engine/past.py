"""The past of one tag, replayed from decisions.jsonl: what stands, what it is worth, what moved.

A later decision about an experiment replaces the earlier one. Every question here is asked of the
decisions that stand, except where the reference went, which is asked of all.
"""

from __future__ import annotations

from collections.abc import Iterable

from autohypothesis.engine.failures import is_nobodys_fault
from autohypothesis.errors import SettleError
from autohypothesis.records import bundles
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Decision


class Settled:
    """The decisions of one tag, in their order."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self.decisions: list[Decision] = []
        self.reference = ""
        """Where the reference stands, for whoever holds the lock that moves it; "" is unknown."""
        self._latest: dict[str, Decision] = {}
        for decision in decisions:
            self.add(decision)

    @classmethod
    def of_tag(cls, layout: Layout, tag: str | None) -> Settled:
        """What decisions.jsonl says about one tag.

        Raises:
            RecordError: decisions.jsonl is no regular file, or far too large.
        """
        decisions, _ = bundles.read_decisions(layout)
        return cls(decision for decision in decisions if decision.tag == tag)

    def add(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self._latest.pop(decision.experiment_id, None)
        self._latest[decision.experiment_id] = decision

    def without(self, experiment_id: str) -> Settled:
        """The past as the others made it: nothing is compared with itself."""
        return Settled(one for one in self.decisions if one.experiment_id != experiment_id)

    def of(self, experiment_id: str) -> Decision | None:
        """The latest decision about one experiment."""
        return self._latest.get(experiment_id)

    def keeps(self, platform_key: str) -> list[Decision]:
        """The keeps that stand on one platform and have a value, oldest first."""
        return [one for one in self._valued(platform_key) if one.decision_status == "keep"]

    def value_of(self, commit: str, platform_key: str, seed: int | None) -> float | None:
        """The metric of a kept commit on one platform, at one seed; nothing else compares.

        Its replicates count where the kept run had another seed. A record without a seed, or a run
        without one, meets every seed.
        """
        runs = self.runs_of(commit, platform_key)
        met = [one for one in runs if one.seed == seed] or [
            one for one in runs if seed is None or one.seed is None
        ]
        return met[0].metric_value if met else None

    def runs_of(self, commit: str, platform_key: str) -> list[Decision]:
        """The valued keeps and replicates of one commit on one platform; keeps first."""
        runs = [one for one in self._valued(platform_key) if one.commit == commit]
        return [
            one for status in ("keep", "replicate") for one in runs if one.decision_status == status
        ]

    def again_at(self, commit: str, platform_key: str, seed: int) -> Decision | None:
        """The run of a commit at this very seed that says something about it, if there is one.

        A value, or a failure by its own fault. What was lost, and a value that nobody vouches for,
        say nothing. A change's own replicates are found before the change itself is decided.
        """
        for one in self._latest.values():
            here = (one.commit, one.platform_key, one.seed) == (commit, platform_key, seed)
            if here and (_failed_itself(one) or _is_value(one)):
                return one
        return None

    def lost_at(self, commit: str, seed: int) -> str | None:
        """The hypothesis of a run of a commit as it stands, at one seed, that was lost."""
        for one in reversed(self._latest.values()):
            if (one.commit, one.seed, one.base_commit) == (commit, seed, None) and one.requeue:
                return one.hypothesis_id or None
        return None

    def first_of(self, commit: str, platform_key: str) -> str:
        """The experiment that others of a commit repeat: where it was kept, else run first."""
        runs = [one for one in self._latest.values() if one.commit == commit]
        kept = [one for one in runs if one.decision_status == "keep"]
        return [*kept, *self.runs_of(commit, platform_key)][0].experiment_id

    def _valued(self, platform_key: str) -> list[Decision]:
        return [
            one
            for one in self._latest.values()
            if one.platform_key == platform_key and one.metric_value is not None
        ]

    def on_slot(self, platform_key: str, lane: str) -> list[Decision]:
        """The latest decision about each run on one device, oldest first."""
        return [
            one
            for one in self._latest.values()
            if one.platform_key == platform_key and one.lane == lane
        ]

    def voided(self, hypothesis_id: str) -> int:
        """How many runs of a hypothesis were voided because somebody else disturbed them."""
        return sum(
            one.hypothesis_id == hypothesis_id and one.reason == "contended"
            for one in self._latest.values()
        )

    def lost(self, hypothesis_id: str) -> int:
        """How many runs of a hypothesis were lost, but for those that were cancelled or killed."""
        return sum(
            one.hypothesis_id == hypothesis_id
            and one.reason == "infra"
            and not is_nobodys_fault(one.detail)
            for one in self._latest.values()
        )

    def anchor(self, platform_key: str, seed: int | None) -> float | None:
        """The metric of the last keep that was no simplification: what a chain may not undo.

        A baseline of a commit that was no longer the reference is no part of the chain.
        """
        for keep in reversed(self.keeps(platform_key)):
            if not keep.simplification and keep.reference_after in (None, keep.commit):
                same = self.value_of(keep.commit, platform_key, seed)
                return keep.metric_value if same is None else same
        return None

    def best(self, platform_key: str, direction: str) -> float | None:
        """The best kept value so far on one platform."""
        values = [
            one.metric_value for one in self.keeps(platform_key) if one.metric_value is not None
        ]
        if not values:
            return None
        return min(values) if direction == "minimize" else max(values)

    def dangling_move(self, reference: str) -> Decision | None:
        """The last decision that moves the reference, when the reference has not moved yet."""
        moves = [one for one in self.decisions if _moves(one)]
        return moves[-1] if moves and moves[-1].reference_before == reference else None

    def reference_without(self, keep: Decision, reference: str) -> str:
        """Where the reference goes when `keep` is overruled: back, if `keep` brought it there.

        Raises:
            SettleError: another keep was built on it since.
        """
        if not _moves(keep):
            return reference
        if reference == keep.reference_after:
            return str(keep.reference_before)
        for later in self._latest.values():
            built_on_it = _moves(later) and later.reference_before == keep.reference_after
            if later.decision_status == "keep" and built_on_it:
                raise SettleError(
                    f"{later.experiment_id} was kept on top of {keep.experiment_id}",
                    hint="overrule the later one first: python orchestrator.py decide"
                    f" {later.experiment_id} discard",
                )
        return reference


def _failed_itself(decision: Decision) -> bool:
    return decision.decision_status == "crash" and not decision.requeue


def _is_value(decision: Decision) -> bool:
    counts = decision.decision_status in ("keep", "replicate")
    return counts and decision.metric_value is not None and decision.reason != "unattested"


def _moves(decision: Decision) -> bool:
    before, after = decision.reference_before, decision.reference_after
    return before is not None and after is not None and before != after
