"""A read-only view of a search, which proposals are validated against.

Proposals are made from it and validated against it. Two ideas are equal if they result in the same
settings on the same code. Constants that are computed from others are left out, since they follow
them; a patch makes other code, and so does a commit of unknown origin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from autohypothesis.engine.constants import computed_names, same, settable_names
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.fleet.live.steering import narrowed_knobs, violation
from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.bundles import flat_settings
from autohypothesis.records.files import load, read_json
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.schema import (
    Brief,
    Hypothesis,
    Metadata,
    Plan,
    PlannedHypothesis,
    Proposal,
    Setting,
    Steering,
    did_you_mean,
    now,
)

RECENT = 200
"""Closed hypotheses that a proposer is told of."""

Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """One experiment as it was begun."""

    plan: Plan
    settings: Settings
    """Lower case, as in config.json."""
    commit: str
    key: str
    """`change_key` its hypothesis."""


class ExperimentIndex:
    """Every experiment of one tag that was submitted; each bundle is read once."""

    def __init__(self, project: Project, history: LiveHistory) -> None:
        self.project = project
        self.history = history
        self.runs: dict[str, IndexedRun] = {}
        self.platforms: dict[str, str] = {}
        """Worker -> the key of the platform that it ran on last."""
        self._last: dict[str, datetime] = {}
        self._skipped: set[str] = set()
        self._version = -1
        self._parents: dict[str, str] = {}
        """Commit -> its parent, where that has the same code."""

    def refresh(self) -> None:
        """Take in the experiments that were submitted since."""
        names = self.history.undecided
        if self._version != self.history.version:
            self._version = self.history.version
            names = set(self.history.experiments())
        for name in sorted(names - self.runs.keys() - self._skipped):
            self._add(name)

    def of_commit(self, commit: str) -> IndexedRun | None:
        """Return a run of `commit`, which has its settings."""
        return next((run for run in self.runs.values() if run.commit == commit), None)

    def code_ancestor(self, commit: str) -> str:
        """Return the ancestor in which the code of `commit` was written.

        Commits that differ in their settings only have the same one. It is looked up when it is
        asked for, not when a run is taken in: after a restart, the runs are read in the order of
        their names, and a child may come before its parent.
        """
        passed = set()
        while commit in self._parents and commit not in passed:
            passed.add(commit)
            commit = self._parents[commit]
        return commit

    def _add(self, name: str) -> None:
        run = self.project.layout.run(name)
        if not run.metadata.exists():
            return  # planned, and not submitted yet
        try:
            plan = load(Plan, self.project.layout.plan(name))
            metadata, config = load(Metadata, run.metadata), read_json(run.config)
        except (FileNotFoundError, RecordError):
            self._skipped.add(name)
            return
        if plan.tag != self.project.tag or not isinstance(config, dict):
            self._skipped.add(name)
            return
        worker, runtime = metadata.run.worker_id, metadata.runtime
        settings = flat_settings(config)
        self.runs[name] = IndexedRun(plan, settings, runtime.commit, change_key(plan.hypothesis))
        if runtime.platform_key and plan.created_at >= self._last.get(worker, plan.created_at):
            self.platforms[worker], self._last[worker] = runtime.platform_key, plan.created_at
        if runtime.parent_commit and plan.hypothesis.config_overrides:
            self._parents[runtime.commit] = runtime.parent_commit


@dataclass(frozen=True)
class Reference:
    """The commit that ideas start from: its text, and the settings that its run had."""

    commit: str
    sources: Mapping[str, str]
    """Path -> text of each artifact."""
    settings: Settings | None
    """Constant -> value; None before its first run was submitted."""
    experiment_id: str | None = None
    names: tuple[str, ...] = ()
    """Constants that can be set."""
    derived: frozenset[str] = frozenset()
    """Lower case: computed from other constants of the script."""

    @classmethod
    def of(cls, index: ExperimentIndex, commit: str) -> Reference:
        """Read the reference at `commit`, with what is known of its settings."""
        sources = _sources(index.project, commit)
        names, derived = _constants(sources)
        unnamed = cls(commit, sources, None, None, names, derived)
        if (run := index.of_commit(commit)) is None:
            return unnamed
        settings, name = unnamed.by_name(run.settings), run.plan.experiment_id
        return replace(unnamed, settings=settings, experiment_id=name)

    def by_name(self, settings: Settings) -> dict[str, Setting]:
        """Return the settings of a config.json by the constants' names."""
        spelled = {name.lower(): name for name in (*self.names, *(self.settings or {}))}
        return {spelled.get(key.lower(), key.upper()): value for key, value in settings.items()}

    def with_overrides(self, overrides: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the settings that `overrides` lead to, by the constants' names."""
        return {**(self.settings or {}), **self.by_name(overrides)}


def _sources(project: Project, commit: str) -> dict[str, str]:
    repository = project.repository
    paths = project.task.artifacts_in(repository.entries(commit))
    found = {}
    for path in paths:
        try:
            found[path] = repository.show_file(commit, path).decode("utf-8-sig")
        except (AutohypothesisError, UnicodeDecodeError):
            continue  # a picture, or too large: nothing to propose by name
    return found


def _constants(sources: Mapping[str, str]) -> tuple[tuple[str, ...], frozenset[str]]:
    names: list[str] = []
    derived: set[str] = set()
    for path, text in sources.items():
        if not path.endswith(".py"):
            continue
        try:
            settable = settable_names(text.encode())
            own = [name for name in settable if name.isupper()] or settable
            derived |= {name.lower() for name in computed_names(text.encode()) if name in own}
        except AutohypothesisError:
            continue
        names += own
    return tuple(dict.fromkeys(name for name in names if name != "SEED")), frozenset(derived)


@dataclass(frozen=True)
class SearchState:
    """A search as proposers are told of it, and as their proposals are validated."""

    index: ExperimentIndex
    reference: Reference
    steering: Steering

    @property
    def is_ready(self) -> bool:
        """Whether the settings of the reference are known."""
        return self.reference.settings is not None

    def situation(self, queue: Queue, brief: Brief | None = None) -> Situation:
        """Return what a proposer is told; all of it are copies."""
        project, steering = self.index.project, self.steering
        objective = project.task.objective
        return Situation(
            tag=project.active(),
            metric=objective.metric,
            direction=objective.direction,
            min_delta=objective.min_delta,
            reference=dict(self.reference.settings or {}),
            sources=dict(self.reference.sources),
            knobs=narrowed_knobs(project.task.knobs, steering),
            steering=steering.model_copy(deep=True),
            trials=tuple(self._trials()),
            open=tuple(hypothesis.model_copy(deep=True) for hypothesis in queue.open()),
            closed=tuple(each.model_copy(deep=True) for each in queue.done()[-RECENT:]),
            brief=brief.model_copy(deep=True) if brief else Brief(generated_at=now()),
        )

    def _trials(self) -> Iterator[Trial]:
        begun = sorted(
            self.index.runs.values(), key=lambda run: (run.plan.created_at, run.plan.experiment_id)
        )
        for run in begun:
            name = run.plan.experiment_id
            decision = self.index.history.latest.get(name)
            if decision is None:
                ended = self.index.project.layout.run(name).result.exists()
                status, value = "review_pending" if ended else "running", None
            elif is_lost(decision):
                continue  # it is no evidence, and its hypothesis is in the queue again
            else:
                status, value = str(decision.decision_status), decision.metric_value
            yield Trial(
                experiment_id=name,
                hypothesis_id=run.plan.hypothesis.hypothesis_id,
                settings=self.reference.by_name(run.settings),
                value=value,
                status=status,
                seed=run.plan.seed,
                replicates=run.plan.replicates,
            )

    def reason_against(
        self, idea: Proposal, others: Iterable[Hypothesis], *, besides: str = ""
    ) -> str:
        """Return why a proposal is not to be run; empty when it may.

        Args:
            others: of the queue, those that came before it.
            besides: its own id, where it has one: its own runs are no duplicates.
        """
        if not (idea.config_overrides or change_key(idea)):
            nothing = "it changes nothing, and names no experiment to repeat in `replicates`"
            return "" if idea.replicates else nothing
        reason = self._against_settings(idea.config_overrides)
        if reason or idea.replicates:
            return reason
        if (run := self.earlier_run(idea, besides=besides)) is not None:
            name, outcome = run.plan.experiment_id, "not decided yet"
            if (decision := self.index.history.latest.get(name)) is not None:
                words = [decision.decision_status, decision.reason, decision.detail]
                outcome = ", ".join(filter(None, words))[:300]
            return f"it was run before, as {name}: {outcome}"
        for other in others:
            if other.hypothesis_id != besides and self._are_equivalent(idea, other):
                return f"the same is in the queue already, as {other.hypothesis_id}"
        return ""

    def _against_settings(self, overrides: Mapping[str, Setting]) -> str:
        if not overrides:
            return ""  # what a patch sets is seen once it is applied: the worker looks again
        before = self.reference.settings or {}
        known = {name.lower() for name in (*self.reference.names, *before)}
        for name in overrides:
            if known and name.lower() not in known:
                near = did_you_mean(name, list(self.reference.names))
                return f"the script has no constant {name!r} to set{near}"
        wanted = self.reference.by_name(overrides)
        if all(name in before and same(before[name], value) for name, value in wanted.items()):
            return "the reference has these settings already"
        return violation(self.steering, before, {**before, **wanted})

    def earlier_run(self, idea: Proposal, *, besides: str = "") -> IndexedRun | None:
        """Return the experiment that was this very idea, not counting those of `besides`.

        A run that was lost to the machine does not count: it tells nothing of the idea.
        A replicate does not count: its first experiment does. Else a win that was contaminated
        after its replicates had run would be refused as a duplicate of them when it comes back.
        """
        key, latest = change_key(idea), self.index.history.latest
        for name, run in self.index.runs.items():
            if run.plan.replicates or run.plan.hypothesis.hypothesis_id == besides:
                continue
            if name in latest and is_lost(latest[name]):
                continue
            if run.key == key if key else self._has_settings(run, idea.config_overrides):
                return run
        return None

    def _has_settings(self, run: IndexedRun, overrides: Mapping[str, Setting]) -> bool:
        if not overrides:
            return False
        wanted = _lower(self.reference.with_overrides(overrides))
        code_of = self.index.code_ancestor
        keys = [key.lower() for key in overrides]
        return (
            all(key in run.settings and same(wanted[key], run.settings[key]) for key in keys)
            and code_of(run.commit) == code_of(self.reference.commit)
            and self._equal(wanted, run.settings, overrides, run.plan.hypothesis.config_overrides)
        )

    def _are_equivalent(self, idea: Proposal, other: Proposal) -> bool:
        keys = [change_key(idea), change_key(other)]
        if any(keys) or not (idea.config_overrides and other.config_overrides):
            return any(keys) and keys[0] == keys[1]
        overrides = (idea.config_overrides, other.config_overrides)
        first, second = (_lower(self.reference.with_overrides(each)) for each in overrides)
        return self._equal(first, second, *overrides)

    def _equal(self, first: Settings, second: Settings, *overrides: Mapping[str, Any]) -> bool:
        """Compare settings, but for computed constants that none of `overrides` sets."""
        ignored = self.reference.derived - {key.lower() for each in overrides for key in each}
        return all(
            key in ignored or (key in first and key in second and same(first[key], second[key]))
            for key in {*first, *second}
        )


def _lower(settings: Settings) -> dict[str, Setting]:
    return {key.lower(): value for key, value in settings.items()}


def change_key(idea: Proposal | PlannedHypothesis) -> str:
    """Hash a change, without trailing blanks, blob ids and line numbers."""
    text = idea.patch or idea.instructions or idea.artifacts_from
    if not text or not text.strip():
        return ""
    lines = [
        line.rstrip() if not line.startswith("@@") else "@@"
        for line in text.strip().splitlines()
        if not line.startswith("index ")
    ]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()
