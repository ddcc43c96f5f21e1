"""A read-only view of a search, from which proposals are made, and against which they are checked.

Two ideas are equal if they make the same files of the reference, or the same settings on the same
code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from autohypothesis.engine.candidate import python_sources, settings_of, tree_of
from autohypothesis.engine.code_hash import ArtifactHashes, artifact_hashes
from autohypothesis.engine.constants import (
    check_kind,
    same,
    settable_names,
    setting_names,
    value_texts,
)
from autohypothesis.engine.duplicates import DuplicateCheck
from autohypothesis.engine.experiment import Change
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import protected_blobs, task_hash
from autohypothesis.errors import AutohypothesisError, ChangeError, RecordError
from autohypothesis.fleet.knowledge.knowledge_base import RunChange
from autohypothesis.fleet.live.steering import narrowed_knobs, violation
from autohypothesis.fleet.proposing import Situation, Trial
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.bundles import flat_settings
from autohypothesis.records.files import PAGE_LIMIT, load, read_json, read_text
from autohypothesis.records.history import LiveHistory, is_lost
from autohypothesis.schema import (
    Brief,
    Hypothesis,
    Metadata,
    Plan,
    Proposal,
    Runtime,
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
    runtime: Runtime

    @property
    def commit(self) -> str:
        return self.runtime.commit


class ExperimentIndex:
    """Every experiment of one tag that was submitted; each bundle is read once."""

    def __init__(self, project: Project, history: LiveHistory) -> None:
        self.project = project
        self.history = history
        self.runs: dict[str, IndexedRun] = {}
        self.platforms: dict[str, str] = {}
        """Worker -> the key of the platform that it ran on last."""
        self.reference: Reference | None = None
        """The one that was read last, see `Reference.of`."""
        self._last: dict[str, datetime] = {}
        self._skipped: set[str] = set()
        self._version = -1
        self._by_commit: dict[str, IndexedRun] = {}
        """The first run of each commit."""
        self._changes: dict[str, RunChange] = {}
        self._hashes: dict[str, ArtifactHashes | None] = {}
        """Commit -> its artifacts, of runs that an older version recorded; None: not in git."""

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
        return self._by_commit.get(commit)

    def code_of(self, run: IndexedRun) -> str:
        """Return the `code_hash` of a run, empty where it is not known.

        Records of older versions lack it: it is made of what git has.
        """
        runtime = run.runtime
        # What was refused before it ran has no record of its change: it is no earlier run.
        was_run = runtime.diff_hash or runtime.parent_commit is None
        if not runtime.code_hash and was_run and (found := self._artifacts(run)):
            return found.code
        return runtime.code_hash

    def change_of(self, run: IndexedRun) -> RunChange:
        """Return what a run changed in its base."""
        name = run.plan.experiment_id
        if name not in self._changes:
            self._changes[name] = self._changed(run, run.plan.hypothesis.config_overrides)
        return self._changes[name]

    def _changed(self, run: IndexedRun, overrides: Settings) -> RunChange:
        runtime, code = run.runtime, self.code_of(run)
        base = self._by_commit.get(runtime.parent_commit or "")
        settings = {name.upper(): value for name, value in overrides.items()}
        is_edit = runtime.parent_commit is not None and not overrides
        if base is not None:
            before = self.code_of(base)
            is_edit = code != before if code and before else is_edit
            if not settings and base.settings != run.settings:
                found = self._artifacts(run)  # a constant that follows others is no change
                settings = {
                    name.upper(): value
                    for name, value in run.settings.items()
                    if (found is None or name in found.settings)
                    and not (name in base.settings and same(base.settings[name], value))
                }
        title = run.plan.hypothesis.title
        return RunChange(title, settings, is_edit, code, runtime.diff_stat)

    def _artifacts(self, run: IndexedRun) -> ArtifactHashes | None:
        """Return code and settings of a run's artifacts; None where git does not have them.

        To read a script takes some 20 ms. A run that set constants of its base alone has its code,
        so the chain of bases is followed to a run of which more is not known.
        """
        chain = [run]
        while (
            last := chain[-1]
        ).commit not in self._hashes and last.plan.hypothesis.config_overrides:
            base = self._by_commit.get(last.runtime.parent_commit or "")
            if base is None or base.commit in {each.commit for each in chain}:
                break
            chain.append(base)
        found: ArtifactHashes | None = None
        for each in reversed(chain):
            if each.commit not in self._hashes:
                names = {name.lower() for name in each.plan.hypothesis.config_overrides}
                is_same_code = found is not None and names and names <= found.settings
                self._hashes[each.commit] = found if is_same_code else self._from_git(each)
            found = self._hashes[each.commit]
        return found

    def _from_git(self, run: IndexedRun) -> ArtifactHashes | None:
        project = self.project
        with suppress(AutohypothesisError):
            return artifact_hashes(project.repository, project.task, run.commit, run.settings)
        return None

    def _add(self, name: str) -> None:
        paths = self.project.layout.run(name)
        if not paths.metadata.exists():
            return  # planned, and not submitted yet
        try:
            plan = load(Plan, self.project.layout.plan(name))
            metadata, config = load(Metadata, paths.metadata), read_json(paths.config)
        except (FileNotFoundError, RecordError):
            self._skipped.add(name)
            return
        if plan.tag != self.project.tag or not isinstance(config, dict):
            self._skipped.add(name)
            return
        worker, runtime = metadata.run.worker_id, metadata.runtime
        self.runs[name] = run = IndexedRun(plan, flat_settings(config), runtime)
        self._by_commit.setdefault(runtime.commit, run)
        if runtime.platform_key and plan.created_at >= self._last.get(worker, plan.created_at):
            self.platforms[worker], self._last[worker] = runtime.platform_key, plan.created_at


class Candidate(NamedTuple):
    """What an idea makes of the reference: a git tree, with its settings in lower case."""

    tree: str
    hashes: ArtifactHashes
    settings: Settings

    def has_settings(self, settings: Settings) -> bool:
        """Return whether these are its settings, as far as they are no code."""
        return all(
            name in settings and same(settings[name], self.settings[name])
            for name in self.hashes.settings
        )


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
    code_hash: str = ""
    task_hash: str = ""
    """Of the task as it is, with what this commit protects."""
    _candidates: dict[str, Candidate] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, index: ExperimentIndex, commit: str) -> Reference:
        """Return the reference at `commit`; it is read until its settings are known."""
        run, known = index.of_commit(commit), index.reference
        if known and known.commit == commit and (known.settings is not None or run is None):
            return known
        index.reference = cls._read(index, commit, run)
        return index.reference

    @classmethod
    def _read(cls, index: ExperimentIndex, commit: str, run: IndexedRun | None) -> Reference:
        sources = _sources(index.project, commit)
        task, entries = index.project.task, index.project.repository.entries(commit)
        unnamed = cls(
            commit,
            sources,
            None,
            names=_constants(sources, task.knobs),
            task_hash=task_hash(task, protected_blobs(task, entries)),
        )
        if run is None:
            return unnamed
        settings, name = unnamed.by_name(run.settings), run.plan.experiment_id
        code_hash = index.code_of(run)
        return replace(unnamed, settings=settings, experiment_id=name, code_hash=code_hash)

    def by_name(self, settings: Settings) -> dict[str, Setting]:
        """Return the settings of a config.json by the constants' names."""
        spelled = {name.lower(): name for name in (*self.names, *(self.settings or {}))}
        return {spelled.get(key.lower(), key.upper()): value for key, value in settings.items()}

    def candidate(self, project: Project, idea: Proposal) -> Candidate | None:
        """Return what an idea makes of the reference.

        None where that is not known before it is made: of instructions, and of a change that does
        not apply, which the worker refuses with the reason.
        """
        key = idea.model_dump_json(include=_CHANGE)
        with suppress(AutohypothesisError):
            if key not in self._candidates:
                self._candidates[key] = self._made(project, self.change(idea))
        return self._candidates.get(key)

    def change(self, idea: Proposal) -> Change:
        """Return the change of an idea, without constants that have the values already."""
        change, before = Change.of(idea), self.settings or {}
        if change.overrides is None:
            return change
        wanted = self.by_name(change.overrides).items()
        kept = {n: value for n, value in wanted if n not in before or not same(before[n], value)}
        return replace(change, overrides=kept)

    def _made(self, project: Project, change: Change) -> Candidate:
        repository, task = project.repository, project.task
        tree = tree_of(repository, task, self.commit, change)
        texts, now_are = _value_texts(project, self.commit), _value_texts(project, tree)
        # What an expression was is known as long as its text is the same.
        kept = {
            name.lower(): value
            for name, value in (self.settings or {}).items()
            if name in now_are and texts.get(name) == now_are[name]
        }
        settings = {**kept, **settings_of(repository, task, tree)}
        return Candidate(tree, artifact_hashes(repository, task, tree, settings), settings)


_CHANGE = {"config_overrides", "patch", "instructions", "artifacts_from"}


def _value_texts(project: Project, commit: str) -> dict[str, bytes]:
    """Return constant -> the text of its value, of the scripts that can be read."""
    texts: dict[str, bytes] = {}
    for source in python_sources(project.repository, project.task, commit).values():
        with suppress(ChangeError):
            texts |= value_texts(source)
    return texts


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


def _constants(sources: Mapping[str, str], knobs: Collection[str]) -> tuple[str, ...]:
    names: list[str] = []
    for path, text in sources.items():
        if not path.endswith(".py"):
            continue
        try:
            settable = settable_names(text.encode())
        except AutohypothesisError:
            continue
        names += setting_names(settable, knobs)
    return tuple(dict.fromkeys(name for name in names if name != "SEED"))


class Repeats(str):
    """Why an idea is not run that is no fault of its proposer: it is known."""

    __slots__ = ()


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
            code_hash=self.reference.code_hash,
            sources=dict(self.reference.sources),
            knobs=narrowed_knobs(project.task.knobs, steering),
            steering=steering.model_copy(deep=True),
            trials=tuple(self._trials()),
            open=tuple(hypothesis.model_copy(deep=True) for hypothesis in queue.open()),
            closed=tuple(each.model_copy(deep=True) for each in queue.done()[-RECENT:]),
            brief=brief.model_copy(deep=True) if brief else Brief(generated_at=now()),
            charter=read_text(project.layout.program, PAGE_LIMIT),
        )

    def _trials(self) -> Iterator[Trial]:
        begun = sorted(
            self.index.runs.values(), key=lambda run: (run.plan.created_at, run.plan.experiment_id)
        )
        for run in begun:
            name = run.plan.experiment_id
            decision, reason = self.index.history.latest.get(name), ""
            if decision is None:
                ended = self.index.project.layout.run(name).result.exists()
                status, value = "review_pending" if ended else "running", None
            elif is_lost(decision):
                continue  # it is no evidence, and its hypothesis is in the queue again
            else:
                status, value = str(decision.decision_status), decision.metric_value
                reason = decision.reason
            yield Trial(
                experiment_id=name,
                hypothesis_id=run.plan.hypothesis.hypothesis_id,
                settings=self.reference.by_name(run.settings),
                value=value,
                status=status,
                seed=run.plan.seed,
                replicates=run.plan.replicates,
                title=run.plan.hypothesis.title,
                description=run.plan.hypothesis.rationale,
                diff_hash=run.runtime.diff_hash,
                code_hash=self.index.code_of(run),
                reason=reason,
            )

    def reason_against(
        self, idea: Proposal, others: Iterable[Hypothesis], *, besides: str = ""
    ) -> str:
        """Return why a proposal is not to be run; empty when it may.

        Args:
            others: of the queue, those that came before it.
            besides: its own id, where it has one: its own runs are no duplicates.
        """
        if Change.of(idea) == Change():
            nothing = "it changes nothing, and names no experiment to repeat in `replicates`"
            return "" if idea.replicates else nothing
        reason = self._against_settings(idea.config_overrides)
        if reason or idea.replicates:
            return reason
        if (name := self.earlier_run(idea, besides=besides)) is not None:
            outcome = self._duplicates(besides).outcome(name)
            return Repeats(f"it was run before, as {name}: {outcome}")
        for other in others:
            if other.hypothesis_id != besides and self._are_equal(idea, other):
                return Repeats(f"the same is in the queue already, as {other.hypothesis_id}")
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
            return Repeats("the reference has these settings already")
        try:
            for name, value in wanted.items():
                check_kind(name, before.get(name), value)
        except ChangeError as error:
            return error.problem
        return violation(self.steering, before, {**before, **wanted})

    def earlier_run(self, idea: Proposal, *, besides: str = "") -> str | None:
        """Return the experiment that ran what this idea makes, not counting those of `besides`.

        That is the same files, or else the same settings on the same code. A replicate does not
        count: its first experiment does. Else a win that was contaminated after its replicates had
        run would be refused as a duplicate of them when it comes back.
        """
        made, check = self.reference.candidate(self.index.project, idea), self._duplicates(besides)
        if made is not None and (name := check.run_of(made.tree, made.hashes.tree)) is not None:
            return name
        for name, run in self.index.runs.items():
            if made is None:
                is_equal = self._is_change(run, idea)
            else:
                is_equal = made.has_settings(run.settings)
                is_equal = is_equal and self.index.code_of(run) == made.hashes.code
            if is_equal and check.counts(name):
                return name
        return None

    def _duplicates(self, besides: str) -> DuplicateCheck:
        index = self.index
        return DuplicateCheck(index.project, index.history, self.reference.commit, besides)

    def _is_change(self, run: IndexedRun, idea: Proposal) -> bool:
        """Return whether a run was asked for in the same words, on this reference."""
        is_based_here = run.plan.based_on_commit == self.reference.commit
        return is_based_here and Change.of(run.plan.hypothesis) == Change.of(idea)

    def _are_equal(self, idea: Proposal, other: Proposal) -> bool:
        overrides = [self.reference.change(each).overrides for each in (idea, other)]
        if None not in overrides:
            return same(*overrides)
        first, second = (
            self.reference.candidate(self.index.project, each) for each in (idea, other)
        )
        if first is None or second is None or Change.of(other) == Change():
            return Change.of(idea) == Change.of(other)
        is_code = first.hashes.code == second.hashes.code
        is_tree = first.hashes.tree == second.hashes.tree
        return is_tree or (is_code and first.has_settings(second.settings))
