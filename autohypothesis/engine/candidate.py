"""The first third of an iteration: from a change to a commit that is worth running.

Nothing here touches the user's checkout, and nothing trains. A change that cannot be applied,
touches more than it may, changes nothing or is seen to be hopeless costs no run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autohypothesis.engine.change import Change, Implementer, tree_of
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.experiment import Experiment
from autohypothesis.engine.guard import check_candidate, check_sources, run_preflight
from autohypothesis.engine.inputs import Inputs
from autohypothesis.engine.isolation import Surroundings, sandbox_kind
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import Workspace, evaluator_of
from autohypothesis.errors import AutohypothesisError, ChangeError, GitError, NothingNewError
from autohypothesis.plain import plain, plain_line
from autohypothesis.records.git import FileChange, Repository, experiment_ref


def prepare(
    repository: Repository,
    task: Task,
    experiment: Experiment,
    *,
    workspace: Workspace | None = None,
    inputs: Inputs | None = None,
    implementer: Implementer | None = None,
) -> RunSpec:
    """Make the commit of a planned experiment, reachable as `refs/experiments/<experiment_id>`.

    Without a change (a baseline, a replicate, a clean working tree) the commit is the base itself.
    The ref is set before the preflight, so that a refused diff stays in git as well.

    Args:
        workspace: where an implementer works, and the task's preflight, in its export; without
            it neither runs.
        inputs: located inputs, for the preflight.

    Returns what to run: the commit, its diff and its settings.

    Raises:
        ChangeError: it does not apply, is not allowed, or changes nothing.
        PreflightError: it applies, and can be seen to fail.
    """
    base, change = repository.resolve(experiment.base), experiment.change
    tree, note = _tree(repository, task, base, change, workspace, implementer)
    changes = repository.changes(base, tree)
    if not changes and change.kind not in ("none", "tree"):
        raise NothingNewError(
            f"the {_named(change)} change nothing in {base[:12]}", hint="propose something else"
        )
    check_candidate(repository, task, tree, changes)
    experiment = replace(experiment, base=base, title=experiment.title or note)
    commit = base
    if changes:
        commit = repository.commit_tree(tree, [base], commit_message(experiment))
    _keep(repository, experiment.experiment_id, commit)
    config = _settings(repository, task, commit, workspace, inputs or Inputs())
    return spec_of(repository, task, experiment, commit, config)


def spec_of(
    repository: Repository,
    task: Task,
    experiment: Experiment,
    commit: str,
    config: dict[str, Any],
) -> RunSpec:
    """Return what to run: `commit` with its settings, and its difference from the base."""
    base = experiment.base
    changes = repository.changes(base, commit) if commit != base else []
    diff = repository.diff(base, commit) if changes else ""
    return RunSpec(
        experiment_id=experiment.experiment_id,
        task=task,
        commit=commit,
        parent_commit=base if commit != base else None,
        seed=experiment.seed,
        tag=experiment.tag,
        hypothesis_id=experiment.hypothesis_id,
        worker_id=experiment.worker_id,
        title=experiment.title,
        rationale=experiment.rationale,
        replicates=experiment.replicates,
        config=config,
        diff=diff,
        diff_stat=diff_stat(changes),
        diff_hash=diff_hash(diff),
        lines_added=sum(change.added or 0 for change in changes),
        lines_removed=sum(change.removed or 0 for change in changes),
    )


def _tree(
    repository: Repository,
    task: Task,
    base: str,
    change: Change,
    workspace: Workspace | None,
    implementer: Implementer | None,
) -> tuple[str, str]:
    """The tree of the change, and what its maker says it is.

    Instructions are implemented in the workspace first, which is left as it was: what a program
    wrote there may have filled the disk.
    """
    if change.kind != "instructions" or workspace is None or implementer is None:
        return tree_of(repository, task, base, change), ""
    checkout = workspace.checkout(base)
    try:
        note = implementer.implement(change.text, checkout)
        return _left_in(repository, checkout), note
    except AutohypothesisError:
        with suppress(AutohypothesisError):
            repository.clean(checkout)
        with suppress(AutohypothesisError):
            workspace.checkout(base)
        raise


def _left_in(repository: Repository, checkout: Path) -> str:
    """The tree of what is in a checkout now.

    Raises:
        ChangeError: git does not take it: a pipe, a repository in it, a name that it refuses.
    """
    try:
        return repository.snapshot_tree(worktree=checkout, untracked=True)
    except GitError as error:
        raise ChangeError(f"what was left in the checkout is no change: {error.problem}") from error


def _keep(repository: Repository, experiment_id: str, commit: str) -> None:
    """Make the commit reachable for good; an id is used once."""
    ref = experiment_ref(experiment_id)
    if not repository.compare_and_swap(ref, commit, None) and repository.read_ref(ref) != commit:
        raise GitError(
            f"{ref} exists and is another commit",
            hint=f"see `python orchestrator.py show {experiment_id}`",
        )


def _settings(
    repository: Repository, task: Task, commit: str, workspace: Workspace | None, inputs: Inputs
) -> dict[str, Any]:
    """The settings of a commit, once neither its text nor its preflight speaks against it."""
    scripts = [path for path in task.artifacts_in(repository.entries(commit)) if _is_python(path)]
    sources = {path: repository.show_file(commit, path) for path in scripts}
    literals = check_sources(sources, inputs.constants)
    if task.run.preflight is None or workspace is None:
        return config_of(literals, None)
    files = workspace.export.checkout(commit, task)
    around = Surroundings(
        repository,
        task,
        sandbox_kind(task),
        data=inputs.data,
        held_out=inputs.held_out,
        linked=files.linked,
    )
    verdict = run_preflight(
        task,
        files.path,
        repository.root,
        evaluator=evaluator_of(repository, commit, task),
        inputs=inputs.environment,
        around=around,
    )
    return config_of(literals, verdict.constants)


def _is_python(path: str) -> bool:
    return path.endswith(".py")


def _named(change: Change) -> str:
    if change.kind == "overrides":
        return f"overrides of {', '.join(change.overrides)}"
    return {"patch": "lines of the patch"}.get(change.kind, change.kind)


MAX_TITLE = 100


def diff_stat(changes: Sequence[FileChange]) -> str:
    """`1 file changed, 2 insertions(+), 1 deletion(-)`, as git says it; empty for no change."""
    if not changes:
        return ""
    added = sum(one.added or 0 for one in changes)
    removed = sum(one.removed or 0 for one in changes)
    parts = [f"{len(changes)} file{_s(len(changes))} changed"]
    if added:
        parts.append(f"{added} insertion{_s(added)}(+)")
    if removed:
        parts.append(f"{removed} deletion{_s(removed)}(-)")
    return ", ".join(parts)


def diff_hash(diff: str) -> str:
    """One hash for one edit, wherever in the file it lands: files and changed lines, in order.

    Line numbers, context and blob ids are left out, so the same idea on another base is known
    again. The empty diff hashes too: every baseline has the same.
    """
    return hashlib.sha256("\n".join(_edits(diff)).encode("utf-8", "surrogateescape")).hexdigest()


def _edits(diff: str) -> Iterator[str]:
    """The lines of `diff` that say what is done."""
    inside = False
    for line in diff.splitlines():
        if line.startswith("diff --git "):
            inside = False
            yield line
        elif line.startswith("@@ "):
            inside = True
        elif (inside and line.startswith(("+", "-"))) or line.startswith(
            ("new file", "deleted file", "literal ", "delta ")
        ):
            yield line


def config_of(literals: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> dict[str, Any]:
    """The flat, lower-case settings of an experiment: what the model is built from.

    Literals come from the script as it is written, all else from the preflight's import. The seed
    is not a setting. A script without upper-case names has its literals taken instead.
    """
    every = {**(evaluated or {}), **literals}
    chosen = {name: value for name, value in every.items() if name.isupper()} or every
    return {
        name.lower(): value
        for name, value in chosen.items()
        if name.lower() != "seed" and _is_plain(value)
    }


def commit_message(experiment: Experiment) -> str:
    """The title as subject, the rationale, and the ids as trailers."""
    experiment_id, hypothesis_id = experiment.experiment_id, experiment.hypothesis_id
    subject = plain_line(experiment.title)[:MAX_TITLE].strip() or f"Experiment {experiment_id}"
    trailers = [f"Experiment: {experiment_id}"]
    if hypothesis_id:
        trailers.append(f"Hypothesis: {hypothesis_id}")
    rationale = plain(experiment.rationale).strip()
    body = f"{rationale}\n\n" if rationale else ""
    return f"{subject}\n\n{body}" + "\n".join(trailers) + "\n"


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _s(count: int) -> str:
    return "" if count == 1 else "s"
