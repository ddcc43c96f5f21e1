"""Makes the commit of a change, and refuses a change that cannot work.

Nothing here touches the user's checkout, and nothing trains. A change that cannot be applied,
touches more than it may, changes nothing or fails its checks costs no run. Its sources are read
first; then the task's own test, the preflight, runs in a checkout of the candidate, but with the
evaluator as it was committed. It may import the candidate, which nothing else here does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from autohypothesis.engine import constants, program
from autohypothesis.engine.code_hash import artifact_hashes
from autohypothesis.engine.environment import INHERITED, THREAD_VARIABLES, resolved
from autohypothesis.engine.experiment import Change, Experiment, RunSpec, spec_for
from autohypothesis.engine.failures import CRASHES, infra_reason, signal_of
from autohypothesis.engine.inputs import Inputs
from autohypothesis.engine.program import TaskSandbox, sandbox_kind
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import Workspace
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    GitError,
    NothingNewError,
    PreflightError,
    ProgramUnavailableError,
)
from autohypothesis.plain import plain, plain_line, some_of
from autohypothesis.records.git import LINK, FileChange, Repository, experiment_ref
from autohypothesis.records.git_export import SUBMODULE
from autohypothesis.schema import Setting

MAX_TITLE = 100
MAX_NAMED = 8
_CONFLICT = re.compile(rb"^<{7} .*?^={7}\r?$.*?^>{7} ", re.MULTILINE | re.DOTALL)
_KINDS = {LINK: "a symbolic link", SUBMODULE: "a submodule"}
TIMEOUT_S = 120.0
TRIES = 3
"""Number of tries of a preflight that could not judge."""
PAUSE_S = 0.5
"""Pause before the second try; each later pause is longer by as much."""
TAIL = 64 * 1024
"""Bytes of what the preflight printed that are looked at."""

ImplementChange = Callable[[str, Path], str]
"""Turns instructions into edits of a checkout; returns what was done in a line, or nothing.

What it touched beside the artifacts is refused afterwards. Without instructions the idea is its
own. It raises a `MutatorError` where it failed.
"""


def prepare(
    repository: Repository,
    task: Task,
    experiment: Experiment,
    *,
    workspace: Workspace | None = None,
    inputs: Inputs | None = None,
    implement: ImplementChange | None = None,
    check_tree: Callable[[str], None] = lambda tree: None,
) -> RunSpec:
    """Make the commit of a planned experiment, reachable as `refs/experiments/<experiment_id>`.

    Without a change (a baseline, a replicate, a clean working tree) the commit is the base itself.
    The ref is set before the preflight, so that a refused diff stays in git as well.

    Args:
        workspace: where instructions are implemented, and the task's preflight runs, in its
            export; without it neither is.
        inputs: located inputs, for the preflight.
        check_tree: raises ChangeError for a changed git tree whose artifacts may not run.

    Returns what to run: the commit, its diff and its settings.

    Raises:
        ChangeError: it does not apply, is not allowed, or changes nothing.
        PreflightError: it applies, and can be seen to fail.
    """
    base, change = repository.resolve(experiment.base), experiment.change
    tree, note = _tree(repository, task, base, change, workspace, implement)
    changes = repository.changes(base, tree)
    if not changes and change.kind not in ("none", "tree"):
        names = {
            "overrides": f"overrides of {', '.join(change.overrides or ())}",
            "patch": "lines of the patch",
        }
        raise NothingNewError(
            f"the {names.get(change.kind, change.kind)} change nothing in {base[:12]}",
            hint="propose something else",
        )
    check_candidate(repository, task, tree, changes)
    if changes:
        check_tree(tree)
    experiment = replace(experiment, base=base, title=experiment.title or note)
    commit = base
    if changes:
        commit = repository.commit_tree(tree, [base], commit_message(experiment))
    ref = experiment_ref(experiment.experiment_id)
    if not repository.compare_and_swap(ref, commit, None) and repository.read_ref(ref) != commit:
        raise GitError(
            f"{ref} exists and is another commit",
            hint=f"see `python orchestrator.py show {experiment.experiment_id}`",
        )
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
    hashes = artifact_hashes(repository, task, commit, config)
    return spec_for(
        experiment,
        task,
        commit,
        parent_commit=base if commit != base else None,
        config=config,
        diff=diff,
        diff_stat=diff_stat(changes),
        diff_hash=diff_hash(diff),
        tree_hash=hashes.tree,
        code_hash=hashes.code,
        lines_added=sum(change.added or 0 for change in changes),
        lines_removed=sum(change.removed or 0 for change in changes),
    )


def _tree(
    repository: Repository,
    task: Task,
    base: str,
    change: Change,
    workspace: Workspace | None,
    implement: ImplementChange | None,
) -> tuple[str, str]:
    """Return the tree of the change, and the one-line description that the mutator printed.

    Instructions are implemented in the workspace first, which after an error is left as it was:
    what a program wrote there may have filled the disk.
    """
    if change.instructions is None or workspace is None or implement is None:
        return tree_of(repository, task, base, change), ""
    checkout = workspace.checkout(base)
    try:
        note = implement(change.instructions, checkout)
        try:
            return repository.snapshot_tree(worktree=checkout, untracked=True), note
        except GitError as error:  # a pipe, a repository in it, a name that git refuses
            words = f"what was left in the checkout is no change: {error.problem}"
            raise ChangeError(words) from error
    except AutohypothesisError:
        with suppress(AutohypothesisError):
            repository.clean(checkout)
        with suppress(AutohypothesisError):
            workspace.checkout(base)
        raise


def _settings(
    repository: Repository, task: Task, commit: str, workspace: Workspace | None, inputs: Inputs
) -> dict[str, Any]:
    """Return the settings of a commit, after its sources were read and its preflight has passed."""
    literals: dict[str, Any] = {}
    for path, source in python_sources(repository, task, commit).items():
        try:
            literals = {**constants.read_constants(source, path), **literals}
        except ChangeError as error:
            raise PreflightError(error.problem, hint=error.hint) from error
    if task.run.preflight is None or workspace is None:
        return config_of(literals, None, task.run.options, task.knobs)
    checkout = workspace.export.checkout(commit, task)
    sandbox = TaskSandbox(
        repository,
        task,
        sandbox_kind(task),
        data=inputs.data,
        held_out=inputs.held_out,
        linked=tuple(checkout.links.values()),
    )
    evaluator = workspace.export.evaluator(commit, task)
    verdict = run_preflight(sandbox, checkout.path, evaluator, inputs)
    return config_of(literals, verdict.constants, task.run.options, task.knobs)


def diff_stat(changes: Sequence[FileChange]) -> str:
    """Return `1 file changed, 2 insertions(+)`, as git says it; empty for no change."""
    counts = (
        (len(changes), "file", " changed"),
        (sum(change.added or 0 for change in changes), "insertion", "(+)"),
        (sum(change.removed or 0 for change in changes), "deletion", "(-)"),
    )
    return ", ".join(f"{n} {word}{'s' * (n != 1)}{end}" for n, word, end in counts if n)


def diff_hash(diff: str) -> str:
    """Return one hash for one edit, wherever it lands: of files and changed lines, in order.

    Line numbers, context and blob ids are left out, so the same idea on another base is known
    again. The empty diff hashes too: every baseline has the same.
    """
    return hashlib.sha256("\n".join(_edits(diff)).encode("utf-8", "surrogateescape")).hexdigest()


def _edits(diff: str) -> Iterator[str]:
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


def settings_of(repository: Repository, task: Task, commit: str) -> dict[str, Any]:
    """Return the literal settings of a commit, as far as its scripts can be read."""
    literals: dict[str, Any] = {}
    for source in python_sources(repository, task, commit).values():
        with suppress(ChangeError):
            literals = {**constants.read_constants(source), **literals}
    return config_of(literals, None, task.run.options, task.knobs)


def config_of(
    literals: Mapping[str, Any],
    evaluated: Mapping[str, Any] | None = None,
    given: Collection[str] = (),
    knobs: Collection[str] = (),
) -> dict[str, Any]:
    """Return the flat, lower-case settings of an experiment: what the model is built from.

    Literals come from the script as it is written, all else from the preflight's import. Neither
    the seed nor what the command gives (`given`) is a setting of the script.
    """
    every = {**(evaluated or {}), **literals}
    return {
        name.lower(): every[name]
        for name in constants.setting_names(every, knobs)
        if name.lower() != "seed" and name not in given and _is_plain(every[name])
    }


def commit_message(experiment: Experiment) -> str:
    """Return the title as subject, the rationale, and the ids as trailers."""
    name = f"Experiment {experiment.experiment_id}"
    subject = plain_line(experiment.title)[:MAX_TITLE].strip() or name
    trailers = f"Experiment: {experiment.experiment_id}\n"
    if experiment.hypothesis_id:
        trailers += f"Hypothesis: {experiment.hypothesis_id}\n"
    parts = (subject, plain(experiment.rationale).strip(), trailers)
    return "\n\n".join(part for part in parts if part)


def _is_plain(value: Any) -> bool:
    """Return whether JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


# ── from a change to a tree ──────────────────────────────────────────────────────────────


def tree_of(repository: Repository, task: Task, base: str, change: Change) -> str:
    """Return the tree of `base` with `change` applied, made without a checkout.

    Raises:
        ChangeError: it does not apply, or it has to be implemented first.
    """
    if change.overrides is not None:
        return overridden_tree(repository, task, base, change.overrides)
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
        raise ChangeError(f"commit {commit[:12]} has none of {task.artifact_words}")
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


def overridden_tree(
    repository: Repository, task: Task, base: str, overrides: Mapping[str, Setting]
) -> str:
    """Return the tree of `base`, a commit or a tree, with its constants set.

    Raises:
        ChangeError: a constant is in no artifact, or in several.
    """
    sources = python_sources(repository, task, base)
    if not sources:
        raise ChangeError(
            f"overrides set constants of Python files, and {task.artifact_words} is none",
            hint="propose a patch instead",
        )
    chosen: dict[str, dict[str, Setting]] = {}
    for name, value in overrides.items():
        if name in task.run.options:
            raise ChangeError(
                f"{name} is what `run.command` of the task gives, whatever the script says",
                hint=f"take --{name} out of the command",
            )
        chosen.setdefault(_path_of(name, sources), {})[name] = value
    new = {path: constants.set_constants(sources[path], wanted) for path, wanted in chosen.items()}
    return repository.tree_with(base, new)


def _path_of(constant: str, sources: Mapping[str, bytes]) -> str:
    """Return the one artifact that has a constant; the first, whose error says more, if none."""
    if len(sources) == 1:
        return next(iter(sources))
    paths = [
        path
        for path, source in sources.items()
        if constant.lower() in map(str.lower, constants.settable_names(source))
    ]
    if len(paths) > 1:
        raise ChangeError(
            f"{constant!r} is in {' and in '.join(paths)}", hint="propose a patch to one of them"
        )
    return paths[0] if paths else next(iter(sources))


def working_tree(repository: Repository, task: Task, reference: str, checkout: Path) -> Change:
    """Return the artifacts as they are in `checkout`, as a change of `reference`, or no change.

    No index or working tree is touched. Files that are neither artifacts nor protected (a
    README, say) are left as the reference has them.

    Raises:
        ChangeError: a protected file differs, an artifact is gone or half merged, or the checkout
            lacks what was kept since it was made, so that running it would silently undo that.
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
    if torn := [path for path, content in files.items() if _CONFLICT.search(content)]:
        raise ChangeError(f"{torn[0]} holds both sides of a merge", hint="resolve it first")
    _refuse_stale_checkout(repository, reference, checkout, files)
    return Change(tree=repository.tree_with(reference, files))


def _refuse_stale_checkout(
    repository: Repository, reference: str, checkout: Path, files: Mapping[str, bytes]
) -> None:
    """Refuse a checkout that does not hold what was kept since its line left the reference's."""
    head = Repository(checkout).head()
    shared = repository.merge_base(head, reference)
    if shared is None or shared == reference:
        return
    old, new = repository.entries(shared), repository.entries(reference)
    move = "`python orchestrator.py adopt`" if shared == head else f"`git rebase {reference[:12]}`"
    for path in files.keys() & old.keys() & new.keys():
        before, kept = (_lines(repository.show_file(at, path)) for at in (shared, reference))
        if _undoes_keep(before, kept, _lines(files[path])):
            raise ChangeError(
                f"{path} in this checkout ({head[:7]}) lacks what was kept since, up to"
                f" {reference[:7]}",
                hint=f"git stash, then {move}, then git stash pop",
            )


def _undoes_keep(before: set[bytes], kept: set[bytes], now: set[bytes]) -> bool:
    """Return whether lines that a keep removed are back, or all that it added are missing."""
    removed, added = before - kept, kept - before
    return bool(removed & now) if removed else bool(added) and not added & now


def _lines(content: bytes) -> set[bytes]:
    return {line.strip() for line in content.splitlines()} - {b""}


# ── a preflight ─────────────────────────────────────────────────────────────────────────────


class PreflightVerdict(BaseModel):
    """The last line that a preflight command prints.

    Attributes:
        constants: values of the script's constants, expressions evaluated.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    ok: bool
    problem: str = ""
    constants: dict[str, Any] | None = None


def run_preflight(
    sandbox: TaskSandbox,
    checkout: Path,
    evaluator: Path | None,
    inputs: Inputs,
) -> PreflightVerdict:
    """Run the task's preflight command in `checkout`, without any GPU.

    A command that could not judge is run again, `TRIES` times in all.

    Args:
        sandbox: what the command may see and change.
        evaluator: the pristine file that stands for `scorer.evaluator` in the command.

    Raises:
        PreflightError: the candidate is refused, or the command gave no verdict in time.
        ProgramUnavailableError: the command could not judge, each time.
    """
    task = sandbox.task
    words = [
        str(evaluator) if evaluator is not None and word == task.scorer.evaluator else word
        for word in resolved(task.run.preflight or (), sandbox.repository.root)
    ]
    hint = f"run `{' '.join(words)}` in {checkout}"
    environment = sandbox.environment(_environment(task, inputs), None)
    confined = sandbox.preflight(checkout, evaluator)
    why = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        try:
            ended = program.run(
                words, cwd=checkout / task.run.cwd, environment=environment, confined=confined,
                timeout_s=TIMEOUT_S, out_limit=TAIL, tail=True,
            )  # fmt: skip
        except OSError as error:
            raise PreflightError(
                f"the preflight does not start: {error}", hint="correct run.preflight of the task"
            ) from error
        verdict = _verdict(ended.out)
        # The command may import the candidate, so a crash is attributed to the candidate.
        could_judge = verdict or not ended.exit_code or signal_of(ended.exit_code) in CRASHES
        why = infra_reason(ended.exit_code, None, ended.err or ended.out)
        if could_judge or not why:
            break
    else:
        raise ProgramUnavailableError(
            f"the preflight could not judge, {TRIES} times: {why}", hint=hint
        )
    if ended.exit_code is None:
        problem = f"the preflight {ended.limit(TIMEOUT_S)}"
        raise PreflightError(problem, hint="propose a smaller model")
    if verdict is None:
        reason = ended.err.strip().splitlines()[-1:] or [f"exit code {ended.exit_code}"]
        raise PreflightError(f"the preflight gave no verdict: {reason[0][:300]}", hint=hint)
    if not verdict.ok:
        problem = verdict.problem or "the preflight refused it"
        raise PreflightError(problem, hint="propose something else")
    return verdict


def _environment(task: Task, inputs: Inputs) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name in INHERITED},
        "HOME": os.path.expanduser("~"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SEED": "0",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        **task.run.env,
        **inputs.environment,
    }


def _verdict(out: str) -> PreflightVerdict | None:
    try:
        return PreflightVerdict.model_validate(json.loads(out.strip().splitlines()[-1]))
    except (ValueError, IndexError, RecursionError):
        return None


def check_candidate(
    repository: Repository, task: Task, commit: str, changes: Sequence[FileChange]
) -> None:
    """Refuse a candidate that touches more than the artifacts, or more of them than it may.

    Raises:
        ChangeError: naming every file that is in the way.
    """
    outside = [change.path for change in changes if not task.is_artifact(change.path)]
    if outside:
        raise ChangeError(
            f"{some_of(outside, MAX_NAMED)} may not change; the artifacts of task {task.id} are"
            f" {task.artifact_words}",
            hint="propose a change of those alone",
        )
    odd = [problem for change in changes if (problem := _odd(task, change))]
    if odd:
        raise ChangeError("; ".join(odd[:MAX_NAMED]), hint="an artifact stays a plain file")
    for problem in _over_limits(repository, task, commit, changes):
        raise ChangeError(problem, hint="propose a smaller change")


def _odd(task: Task, change: FileChange) -> str:
    """Return what a change does to a file beside its content; empty when nothing."""
    if change.new_mode in _KINDS:
        return f"{change.path} becomes {_KINDS[change.new_mode]}"
    if change.status == "D":
        return f"{change.path} is deleted" if change.path in task.artifacts else ""
    if change.status != "A" and change.old_mode != change.new_mode:
        return f"the mode of {change.path} changes from {change.old_mode} to {change.new_mode}"
    return ""


def _over_limits(
    repository: Repository, task: Task, commit: str, changes: Sequence[FileChange]
) -> Iterator[str]:
    limits = task.mutation
    if len(changes) > limits.max_files:
        yield f"{len(changes)} files change, mutation.max_files is {limits.max_files}"
    lines = sum((change.added or 0) + (change.removed or 0) for change in changes)
    if lines > limits.max_lines:
        yield f"{lines} lines change, mutation.max_lines is {limits.max_lines}"
    for change in changes:
        size = len(repository.show_file(commit, change.path)) if change.status != "D" else 0
        if size > limits.max_bytes:
            limit = f"mutation.max_bytes is {limits.max_bytes:,}"
            yield f"{change.path} grows to {size:,} bytes, {limit}"
