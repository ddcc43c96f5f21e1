"""A change: what a hypothesis wants done to the artifacts, and the tree that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from autohypothesis.engine.constants import set_constants, settable_names
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError
from autohypothesis.records.git import Repository
from autohypothesis.schema import PlannedHypothesis, Proposal, Setting

ChangeKind = Literal["none", "overrides", "patch", "instructions", "tree", "commit"]


class Implementer(Protocol):
    """Turns instructions into edits: a program, an agent, a person."""

    def implement(self, instructions: str, checkout: Path) -> str:
        """Edit the artifacts in `checkout`; what else was touched there is refused afterwards.

        Returns what was done, in a line; empty when nothing was said. Without instructions the
        idea is the implementer's own.

        Raises:
            MutatorError: it failed.
        """


@dataclass(frozen=True)
class Change:
    """One kind of change. Make it with the constructor of its kind."""

    kind: ChangeKind
    overrides: Mapping[str, Setting] = field(default_factory=dict)
    text: str = ""
    """A unified diff, or instructions."""
    tree: str = ""
    """A snapshot of a working tree."""
    commit: str = ""
    """Whose artifacts are taken as they are."""

    @classmethod
    def none(cls) -> Change:
        """The base as it is: a baseline, or a replicate."""
        return cls("none")

    @classmethod
    def from_overrides(cls, overrides: Mapping[str, Setting]) -> Change:
        return cls("overrides", overrides=dict(overrides))

    @classmethod
    def from_patch(cls, patch: str) -> Change:
        return cls("patch", text=patch)

    @classmethod
    def from_instructions(cls, instructions: str) -> Change:
        """Empty: the idea is the task's own program's as well."""
        return cls("instructions", text=instructions)

    @classmethod
    def from_tree(cls, tree: str) -> Change:
        """The files of a working tree, see `Repository.snapshot_tree`."""
        return cls("tree", tree=tree)

    @classmethod
    def from_commit(cls, commit: str) -> Change:
        """The artifacts of a commit, of another fleet as a rule, in place of the base's."""
        return cls("commit", commit=commit)

    @classmethod
    def of(cls, hypothesis: Proposal | PlannedHypothesis) -> Change:
        """The one change that a hypothesis proposes; none for a baseline."""
        if hypothesis.config_overrides:
            return cls.from_overrides(hypothesis.config_overrides)
        if hypothesis.patch:
            return cls.from_patch(hypothesis.patch)
        if hypothesis.instructions:
            return cls.from_instructions(hypothesis.instructions)
        if hypothesis.artifacts_from:
            return cls.from_commit(hypothesis.artifacts_from)
        return cls.none()


def tree_of(repository: Repository, task: Task, base: str, change: Change) -> str:
    """The tree of `base` with `change` applied, made without a checkout.

    Raises:
        ChangeError: it does not apply, or it has to be implemented first.
    """
    if change.kind == "none":
        return repository.tree_of(base)
    if change.kind == "overrides":
        return repository.tree_with(base, _overridden(repository, task, base, change.overrides))
    if change.kind == "patch":
        return repository.patched_tree(base, change.text)
    if change.kind == "tree":
        return change.tree
    if change.kind == "commit":
        return repository.tree_with(base, _artifacts(repository, task, base, change.commit))
    raise ChangeError(
        f"instructions have to be implemented first: {change.text[:80]!r}",
        hint="propose config_overrides or a patch",
    )


def _artifacts(repository: Repository, task: Task, base: str, commit: str) -> dict[str, bytes]:
    """Path -> content of the artifacts that `commit` has otherwise than `base`.

    They are read with `git show` and nothing else of the commit is used. An artifact that only the
    base has stays.

    Raises:
        ChangeError: the commit is not here, has none of the artifacts, or has one that is no file.
    """
    if repository.read_ref(f"{commit}^{{commit}}") is None:
        raise ChangeError(
            f"commit {commit[:12]} is not here",
            hint=f"fetch it: python orchestrator.py hub fetch {commit[:12]}",
        )
    theirs, ours = repository.entries(commit), repository.entries(base)
    paths = task.artifacts_in(theirs)
    if not paths:
        raise ChangeError(f"commit {commit[:12]} has none of {', '.join(task.artifacts)}")
    odd = [path for path in paths if not theirs[path].mode.startswith("100")]
    if odd:
        raise ChangeError(f"{', '.join(odd)} in commit {commit[:12]} is no plain file")
    return {
        path: repository.show_file(commit, path)
        for path in paths
        if path not in ours or ours[path].blob != theirs[path].blob
    }


def _overridden(
    repository: Repository, task: Task, base: str, overrides: Mapping[str, Setting]
) -> dict[str, bytes]:
    """Path -> new content, for the artifacts whose constants are set.

    Raises:
        ChangeError: no artifact has the name, or more than one has it.
    """
    paths = [path for path in task.artifacts_in(repository.entries(base)) if path.endswith(".py")]
    if not paths:
        raise ChangeError(
            f"overrides set constants of Python files, and {', '.join(task.artifacts)} is none",
            hint="propose a patch instead",
        )
    sources = {path: repository.show_file(base, path) for path in paths}
    if len(sources) == 1:
        return {path: set_constants(source, overrides) for path, source in sources.items()}
    chosen: dict[str, dict[str, Setting]] = {}
    for key, value in overrides.items():
        chosen.setdefault(_home_of(key, sources), {})[key] = value
    return {path: set_constants(sources[path], wanted) for path, wanted in chosen.items()}


def _home_of(key: str, sources: Mapping[str, bytes]) -> str:
    """The one artifact that has a constant `key`; the first, whose error says more, if none."""
    homes = [
        path
        for path, source in sources.items()
        if key.lower() in {name.lower() for name in settable_names(source)}
    ]
    if len(homes) > 1:
        raise ChangeError(
            f"{key!r} is in {' and in '.join(homes)}", hint="propose a patch to one of them"
        )
    return homes[0] if homes else next(iter(sources))
