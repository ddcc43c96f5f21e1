"""The settings that each experiment had, and whether an idea was tried before.

An idea is the settings that it leads to, on the code that it leads to. Constants that are computed
from others follow them, so they tell nothing; a patch makes other code, and so does a commit of
unknown origin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autohypothesis.engine.constants import computed_names, same, settable_names
from autohypothesis.engine.project import Project
from autohypothesis.errors import AutohypothesisError, RecordError
from autohypothesis.records.files import load, read_json
from autohypothesis.records.history import LiveHistory
from autohypothesis.schema import Metadata, Plan, PlannedHypothesis, Proposal, Setting

Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """One experiment as it was begun: its plan, its settings, its commit."""

    experiment_id: str
    hypothesis_id: str
    begun: datetime
    settings: Settings
    """Lower case, as in config.json."""
    commit: str
    parent: str | None
    overrides: Mapping[str, Any]
    key: str
    """Of its patch, its instructions or the commit it was taken from; empty where it has none."""
    seed: int | None
    replicates: str | None


class ExperimentIndex:
    """Every experiment of one tag that was submitted; each bundle is read once."""

    def __init__(self, project: Project, history: LiveHistory) -> None:
        self.project = project
        self.history = history
        self.runs: dict[str, IndexedRun] = {}
        self.platforms: dict[str, str] = {}
        """Worker -> the key of the platform that it ran on last."""
        self._last: dict[str, datetime] = {}
        self._not_ours: set[str] = set()
        self._version = -1
        self._parents: dict[str, str] = {}
        """Commit -> an ancestor with the same code: its parent, or one further back."""

    def refresh(self) -> None:
        """Take in the experiments that were submitted since."""
        names = self.history.undecided
        if self._version != self.history.version:
            self._version = self.history.version
            names = set(self.history.experiments())
        for name in sorted(names):
            if name not in self.runs and name not in self._not_ours:
                self._take(name)

    def of_commit(self, commit: str) -> IndexedRun | None:
        """Return a run of `commit`, which has its settings."""
        return next((run for run in self.runs.values() if run.commit == commit), None)

    def code_ancestor(self, commit: str) -> str:
        """Return the ancestor in which the code of `commit` was written.

        Commits that differ in their settings only have the same one. It is looked up when it is
        asked for, not when a run is taken in: after a restart, the runs are read in the order of
        their names, and a child may come before its parent.
        """
        passed: dict[str, None] = {}
        while (earlier := self._parents.get(commit)) is not None and commit not in passed:
            passed[commit] = None
            commit = earlier
        for descendant in passed:  # the next time it is one step
            if descendant != commit:
                self._parents[descendant] = commit
        return commit

    def _take(self, name: str) -> None:
        run = self.project.layout.run(name)
        if not run.metadata.exists():
            return  # planned, and not submitted yet
        try:
            plan = load(Plan, self.project.layout.plan(name))
            metadata = load(Metadata, run.metadata)
            config = read_json(run.config)
        except (FileNotFoundError, RecordError):
            self._not_ours.add(name)
            return
        if plan.tag != self.project.tag or not isinstance(config, dict):
            self._not_ours.add(name)
            return
        idea = plan.hypothesis
        runtime = metadata.runtime
        self.runs[name] = IndexedRun(
            experiment_id=name,
            hypothesis_id=idea.hypothesis_id,
            begun=plan.created_at,
            settings=config,
            commit=runtime.commit,
            parent=runtime.parent_commit,
            overrides=idea.config_overrides,
            key=key_of(idea),
            seed=plan.seed,
            replicates=plan.replicates,
        )
        worker = metadata.run.worker_id
        if runtime.platform_key and plan.created_at >= self._last.get(worker, plan.created_at):
            self.platforms[worker], self._last[worker] = runtime.platform_key, plan.created_at
        if runtime.parent_commit and idea.config_overrides:
            self._parents[runtime.commit] = runtime.parent_commit


@dataclass(frozen=True)
class Reference:
    """The commit that ideas start from: its text, and the settings that its run had."""

    commit: str
    sources: Mapping[str, str]
    """Path -> text of each artifact."""
    settings: Settings | None
    """By the constants' names; None before its first run was submitted."""
    experiment_id: str | None = None
    names: tuple[str, ...] = ()
    """Constants that can be set."""
    derived: frozenset[str] = frozenset()
    """Lower case: computed from other constants of the script."""

    @classmethod
    def of(cls, project: Project, index: ExperimentIndex, commit: str) -> Reference:
        """Read the reference at `commit`, with what is known of its settings."""
        sources = _sources(project, commit)
        names, derived = _constants(sources)
        run = index.of_commit(commit)
        if run is None:
            return cls(commit, sources, None, None, names, derived)
        spelled = {name.lower(): name for name in names}
        settings = {spelled.get(key, key.upper()): value for key, value in run.settings.items()}
        return cls(commit, sources, settings, run.experiment_id, names, derived)

    def with_overrides(self, overrides: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the settings that `overrides` lead to, by the constants' names."""
        settings = dict(self.settings or {})
        spelled = {name.lower(): name for name in (*self.names, *settings)}
        for key, value in overrides.items():
            settings[spelled.get(key.lower(), key.upper())] = value
        return settings


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
    """Return the settable upper-case names of all scripts, and those computed from others."""
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


# ── what was tried before ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DuplicateCheck:
    """Compares ideas with the runs there were and with the queue, on one reference."""

    index: ExperimentIndex
    reference: Reference

    def before(self, idea: Proposal, *, besides: str = "") -> IndexedRun | None:
        """Return the experiment that was this very idea, not counting those of `besides`.

        A replicate does not count: its first experiment does. Else a win that was contaminated
        after its replicates had run would be refused as a duplicate of them when it comes back.
        """
        key = key_of(idea)
        if key:
            found = [run for run in self.index.runs.values() if run.key == key]
        elif idea.config_overrides:
            found = self._with_settings(idea.config_overrides)
        else:
            return None
        others = [run for run in found if run.hypothesis_id != besides and not run.replicates]
        return others[0] if others else None

    def equal(self, one: Proposal, other: Proposal) -> bool:
        """Return whether two ideas, both of the queue, lead to the same."""
        keys = [key_of(one), key_of(other)]
        if any(keys):
            return keys[0] == keys[1]
        if not (one.config_overrides and other.config_overrides):
            return False
        first, second = (
            _lower(self.reference.with_overrides(idea.config_overrides)) for idea in (one, other)
        )
        return _equal(first, second, self._ignored(one.config_overrides, other.config_overrides))

    def changes_nothing(self, idea: Proposal) -> bool:
        """Return whether its overrides are what the reference has already."""
        now = _lower(self.reference.settings or {})
        return bool(idea.config_overrides) and all(
            key.lower() in now and same(now[key.lower()], value)
            for key, value in idea.config_overrides.items()
        )

    def _with_settings(self, overrides: Mapping[str, Setting]) -> list[IndexedRun]:
        wanted = _lower(self.reference.with_overrides(overrides))
        code = self.index.code_ancestor(self.reference.commit)
        keys = [key.lower() for key in overrides]
        return [
            run
            for run in self.index.runs.values()
            if all(key in run.settings and same(wanted[key], run.settings[key]) for key in keys)
            and self.index.code_ancestor(run.commit) == code
            and _equal(wanted, run.settings, self._ignored(overrides, run.overrides))
        ]

    def _ignored(self, *overrides: Mapping[str, Any]) -> set[str]:
        """Return the computed constants that neither side sets itself."""
        by_hand = {key.lower() for one in overrides for key in one}
        return set(self.reference.derived - by_hand)


def _lower(settings: Settings) -> dict[str, Setting]:
    return {key.lower(): value for key, value in settings.items()}


def _equal(one: Settings, other: Settings, ignored: set[str]) -> bool:
    return all(
        key in ignored or (key in one and key in other and same(one[key], other[key]))
        for key in {*one, *other}
    )


def key_of(idea: Proposal | PlannedHypothesis) -> str:
    """Hash what a text does: blank ends, blob ids and line numbers tell nothing."""
    text = idea.patch or idea.instructions or idea.artifacts_from
    if not text or not text.strip():
        return ""
    lines = [
        line.rstrip() if not line.startswith("@@") else "@@"
        for line in text.strip().splitlines()
        if not line.startswith("index ")
    ]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()
