"""A change: what a hypothesis wants done to the artifacts, and the tree that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from autohypothesis.engine.constants import set_constants, settable_names
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError
from autohypothesis.records.git import Repository
from autohypothesis.schema import PlannedHypothesis, Proposal, Setting

ChangeKind = Literal["none", "overrides", "patch", "instructions", "tree", "commit"]


@dataclass(frozen=True)
class Change:
    """One kind of change. Without any it is the base as it is: a baseline, or a replicate."""

    overrides: Mapping[str, Setting] | None = None
    patch: str | None = None
    instructions: str | None = None
    """Empty: the idea is the task's own program's as well."""
    tree: str | None = None
    """The files of a working tree, see `Repository.snapshot_tree`."""
    commit: str | None = None
    """Its artifacts, of another fleet as a rule, take the place of the base's."""

    @classmethod
    def of(cls, hypothesis: Proposal | PlannedHypothesis) -> Change:
        """Return the one change that a hypothesis proposes; none for a baseline."""
        return cls(
            overrides=hypothesis.config_overrides or None,
            patch=hypothesis.patch or None,
            instructions=hypothesis.instructions or None,
            commit=hypothesis.artifacts_from or None,
        )

    @property
    def kind(self) -> ChangeKind:
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return names[0] if names else "none"  # type: ignore[return-value]


def tree_of(repository: Repository, task: Task, base: str, change: Change) -> str:
    """Return the tree of `base` with `change` applied, made without a checkout.

    Raises:
        ChangeError: it does not apply, or it has to be implemented first.
    """
    if change.overrides is not None:
        return repository.tree_with(base, _overridden(repository, task, base, change.overrides))
    if change.patch is not None:
        return repository.patched_tree(base, change.patch)
    if change.tree is not None:
        return change.tree
    if change.commit is not None:
        return repository.tree_with(base, _artifacts(repository, task, base, change.commit))
    if change.instructions is None:
        return repository.tree_of(base)
    raise ChangeError(
        f"instructions have to be implemented first: {change.instructions[:80]!r}",
        hint="propose config_overrides or a patch",
    )


def _artifacts(repository: Repository, task: Task, base: str, commit: str) -> dict[str, bytes]:
    """Return path -> content of the artifacts that `commit` has otherwise than `base`.

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


def python_sources(repository: Repository, task: Task, commit: str) -> dict[str, bytes]:
    """Return path -> content of the artifacts of `commit` that are Python."""
    paths = task.artifacts_in(repository.entries(commit))
    return {path: repository.show_file(commit, path) for path in paths if path.endswith(".py")}


def _overridden(
    repository: Repository, task: Task, base: str, overrides: Mapping[str, Setting]
) -> dict[str, bytes]:
    """Return path -> new content, for the artifacts whose constants are set.

    Raises:
        ChangeError: no artifact has the name, or more than one has it.
    """
    sources = python_sources(repository, task, base)
    if not sources:
        raise ChangeError(
            f"overrides set constants of Python files, and {', '.join(task.artifacts)} is none",
            hint="propose a patch instead",
        )
    chosen: dict[str, dict[str, Setting]] = {}
    for name, value in overrides.items():
        chosen.setdefault(_path_of(name, sources), {})[name] = value
    return {path: set_constants(sources[path], wanted) for path, wanted in chosen.items()}


def _path_of(constant: str, sources: Mapping[str, bytes]) -> str:
    """Return the one artifact that has a constant; the first, whose error says more, if none."""
    if len(sources) == 1:
        return next(iter(sources))
    paths = [
        path
        for path, source in sources.items()
        if constant.lower() in map(str.lower, settable_names(source))
    ]
    if len(paths) > 1:
        raise ChangeError(
            f"{constant!r} is in {' and in '.join(paths)}", hint="propose a patch to one of them"
        )
    return paths[0] if paths else next(iter(sources))


# ── the user's working tree ─────────────────────────────────────────────────────────────────


def working_tree(repository: Repository, task: Task, reference: str, checkout: Path) -> Change:
    """Return the artifacts as they are in `checkout`, as a change of `reference`, or no change.

    No index or working tree is touched. Files that are neither artifacts nor protected (a
    README, say) are left as the reference has them.

    Raises:
        ChangeError: a protected file differs, an artifact is gone, or the checkout lacks what was
            kept since it was made, so that running it would silently undo that.
    """
    present = [path for path in task.artifacts if (checkout / path).is_file()]
    tree = repository.snapshot_tree(also=present, worktree=checkout)
    seen, kept = repository.entries(tree), repository.entries(reference)
    differing = [path for path in {*seen, *kept} if seen.get(path) != kept.get(path)]
    if protected := sorted(path for path in differing if task.is_protected(path)):
        raise ChangeError(
            f"{', '.join(protected[:8])} may not differ from the reference {reference[:7]}",
            hint="undo that, or commit it and begin another search: --tag NAME",
        )
    gone = [path for path in task.artifacts_in(kept) if path not in seen]
    if gone:
        raise ChangeError(f"{', '.join(gone)} is gone", hint=f"git checkout -- {gone[0]}")
    files = {
        path: repository.show_file(tree, path)
        for path in task.artifacts_in(seen)
        if seen[path] != kept.get(path)
    }
    if not files:
        return Change()
    _refuse_undoing(repository, reference, checkout, files)
    return Change(tree=repository.tree_with(reference, files))


def _refuse_undoing(
    repository: Repository, reference: str, checkout: Path, files: Mapping[str, bytes]
) -> None:
    """Refuse a checkout that is older than the reference and does not hold what was kept since."""
    head = Repository(checkout).head()
    if head == reference or not repository.is_ancestor(head, reference):
        return
    for path, content in files.items():
        before = _lines(repository.show_file(head, path))
        kept = _lines(repository.show_file(reference, path))
        if _lacks(before, kept, _lines(content)):
            raise ChangeError(
                f"{path} in this checkout ({head[:7]}) lacks what was kept since, up to"
                f" {reference[:7]}",
                hint="git stash, then `python orchestrator.py adopt`, then git stash pop",
            )


def _lacks(before: set[bytes], kept: set[bytes], now: set[bytes]) -> bool:
    """Return whether lines that a keep removed are back; if it only added some, all miss."""
    removed, added = before - kept, kept - before
    return bool(removed & now) if removed else bool(added) and not added & now


def _lines(content: bytes) -> set[bytes]:
    return {line.strip() for line in content.splitlines()} - {b""}
