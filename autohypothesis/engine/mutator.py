"""A task's own program as the maker of changes: what it is told, what it may do, how it ended.

It works in a checkout of the reference that no run uses. Where bubblewrap works it sees the rest
of the disk read-only; elsewhere the user's checkout is compared with what it was.
What it did to the checkout is judged afterwards, by the guard, like any other change.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.engine import program
from autohypothesis.engine.environment import program_environment, resolved
from autohypothesis.engine.failures import FailureKind, room_in, why_unjudged
from autohypothesis.engine.isolation import Surroundings, sandbox_kind
from autohypothesis.engine.past import Settled
from autohypothesis.engine.project import Project, node_id
from autohypothesis.engine.task import Task
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    ConflictError,
    NothingNewError,
    PreflightError,
    RecordError,
    UnjudgedError,
)
from autohypothesis.records import bundles
from autohypothesis.records.files import read_bytes, read_object
from autohypothesis.records.git import SALVAGE, FileChange, Repository, experiment_ref
from autohypothesis.sandbox import Kind
from autohypothesis.schema import Decision, Metadata, Plan, Result, RunIdentity, Runtime, now

TITLE_LIMIT = 200
OWN = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
"""What it leaves in the checkout is its change, so it leaves no compiled Python there."""
MAX_NAMED = 4


class MutatorError(ChangeError):
    """The program that was to make a change failed; `kind` is what that says about the change."""

    def __init__(self, problem: str, *, kind: FailureKind, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.kind = kind


class Look(NamedTuple):
    """A checkout at one moment: its commit, and its tracked files as a tree."""

    head: str
    tree: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """How a change was made, for its record.

    Attributes:
        note: the first line that the program printed: what it says it did.
        seconds: from start to end, wall clock.
    """

    note: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    sandbox: Kind = "none"

    def to_json(self) -> dict[str, Any]:
        return {
            "note": self.note,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "sandbox": self.sandbox,
        }


@dataclass(slots=True)
class Mutator:
    """The program of one task, run once; `made` then says how that went, failed or not."""

    repository: Repository
    task: Task
    seed: int
    told: Mapping[str, Any]
    """What it reads on its standard input, as JSON."""
    past: Settled
    """What was decided before it is asked."""
    cancelled: Callable[[], bool] = lambda: False
    made: Mutation = field(default_factory=Mutation)

    def implement(self, instructions: str, checkout: Path) -> str:
        """See `Implementer.implement`.

        Raises:
            MutatorError: it failed, took too long, said too much, or touched the user's checkout.
        """
        kind = sandbox_kind(self.task)
        link = (checkout / ".git").read_bytes()
        before = self._look() if kind == "none" else None
        ended = self._run(kind, instructions, checkout)
        note = ended.out.partition("\n")[0].strip()[:TITLE_LIMIT]
        self.made = Mutation(note, ended.exit_code, ended.seconds, kind)
        problems = self._changed(before) if before else []
        if not _same_file(checkout / ".git", link):
            problems.append("replaced the .git of its checkout")
            _replace(checkout / ".git", link)
        if problems:
            raise MutatorError(f"the mutator {' and '.join(problems)}", kind="invalid")
        self._check(ended)
        return note

    def _run(self, kind: Kind, instructions: str, checkout: Path) -> program.ProgramEnd:
        words = resolved(self.task.mutator.command or (), self.repository.root)
        environment = {**program_environment(os.environ), **OWN, "SEED": str(self.seed)}
        document = json.dumps({**self.told, "instructions": instructions}, default=str)
        try:
            around = Surroundings(self.repository, self.task, kind)
            return program.run(
                words,
                cwd=checkout,
                environment=around.environment(environment, None),
                confined=around.bound(around.mutator(checkout)),
                timeout_s=self.task.mutator.timeout_seconds,
                stdin=document.encode() + b"\n",
                cancelled=self.cancelled,
            )
        except OSError as error:
            raise MutatorError(
                f"the mutator does not start: {error}",
                kind="code_error",
                hint=f"see mutator.command in {self.task.source or 'the task'}",
            ) from error

    def _check(self, ended: program.ProgramEnd) -> None:
        if ended.overflow:
            raise MutatorError(
                f"the mutator printed more than {program.OUT_LIMIT:,} bytes", kind="code_error"
            )
        if ended.exit_code is None:
            if self.cancelled():
                raise AutohypothesisError("the mutator was called off")
            limit = self.task.mutator.timeout_seconds
            if ended.crowd:
                raise MutatorError(f"the mutator {ended.limit(limit)}", kind="code_error")
            raise MutatorError(f"the mutator took longer than {limit:g} s", kind="timeout")
        if ended.exit_code:
            if why := why_unjudged(ended.exit_code, None, ended.err or ended.out):
                raise MutatorError(f"the mutator could not make a change: {why}", kind="infra")
            raise MutatorError(
                f"the mutator exited {ended.exit_code}: {ended.last_words()}", kind="code_error"
            )

    # ── without a sandbox ─────────────────────────────────────────────────────────────────

    def _look(self) -> Look:
        """The user's checkout, as far as git follows it."""
        return Look(self.repository.head(), self.repository.snapshot_tree())

    def _changed(self, before: Look) -> list[str]:
        """What happened to the user's tracked files meanwhile, in words; what was deleted is back.

        An edit may be the user's own, so it stays; what was there before is kept in git.
        """
        repository, after = self.repository, self._look()
        if after.head != before.head:
            return []  # somebody works there
        changes = repository.changes(before.tree, after.tree)
        if not changes:
            return []
        ref = SALVAGE + str(self.told.get("iteration_id", "checkout"))
        found = repository.commit_tree(before.tree, [before.head], "Your checkout, as it was\n")
        repository.compare_and_swap(ref, found, repository.read_ref(ref))
        for change in changes:
            if change.status == "D":
                _restore(repository, before.tree, change)
        names = ", ".join(change.path for change in changes[:MAX_NAMED])
        deleted = " (what was deleted is back)" if any(one.status == "D" for one in changes) else ""
        return [f"or somebody else changed {names} of your checkout{deleted}; before: {ref}"]


def _restore(repository: Repository, tree: str, change: FileChange) -> None:
    place = repository.root / change.path
    with suppress(OSError, AutohypothesisError):
        content = repository.show_file(tree, change.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if change.old_mode == "120000":
            place.symlink_to(os.fsdecode(content))
            return
        place.write_bytes(content)
        place.chmod(0o755 if change.old_mode == "100755" else 0o644)


def _replace(path: Path, content: bytes) -> None:
    """Put a plain file in the place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _same_file(path: Path, content: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == content
    except OSError:
        return False


MAX_TRIALS = 20
MAX_DIFF = 8_000
"""Bytes of one diff: a program may be a language model, whose context is bounded."""


def told(
    project: Project, past: Settled, experiment_id: str, base: str, seed: int
) -> dict[str, Any]:
    """The document for one run of the mutator, see docs/tasks.md; `instructions` come with it."""
    objective = project.task.objective
    measured = _measured(past, base)
    return {
        "task_id": project.task.id,
        "iteration_id": experiment_id,
        "seed": seed,
        "artifacts": project.task.artifacts_in(project.repository.entries(base)),
        "objective": {
            "metric": objective.metric,
            "direction": objective.direction,
            "min_delta": objective.min_delta,
        },
        "reference": {
            "commit": base,
            "score": measured.metric_value if measured else None,
            "metrics": _metrics(project, measured) if measured else {},
        },
        "trials": list(_trials(project, past)),
    }


def tried_before(past: Settled, base: str, diff_hash: str) -> Decision | None:
    """The decision about the same change of the same base; one that is to be run again is none.

    What was measured by another task, or on another platform than the base was last, says nothing.
    """
    measured = _measured(past, base)
    keys = ("", measured.platform_key if measured is not None else "")
    for one in past.decisions:
        same = one.base_commit == base and one.diff_hash == diff_hash
        if (
            same
            and one.platform_key in keys
            and not one.requeue
            and one.decision_status != "replicate"
        ):
            return one
    return None


def _measured(past: Settled, commit: str) -> Decision | None:
    """The latest decision that says what a commit is worth."""
    return next(
        (
            one
            for one in reversed(past.decisions)
            if one.commit == commit and one.decision_status == "keep"
        ),
        None,
    )


def _metrics(project: Project, measured: Decision) -> dict[str, Any]:
    metrics = read_object(project.layout.run(measured.experiment_id).result).get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    decided = {measured.metric_name: measured.metric_value} if measured.metric_name else {}
    return {k: v for k, v in {**metrics, **decided}.items() if v is not None}


def _trials(project: Project, past: Settled) -> Iterator[dict[str, Any]]:
    for one in [one for one in past.decisions if one.base_commit is not None][-MAX_TRIALS:]:
        run = project.layout.run(one.experiment_id)
        title = str(read_object(run.result).get("title") or "")
        try:
            diff = read_bytes(run.diff, 64 << 20)[:MAX_DIFF].decode("utf-8", "replace")
        except (FileNotFoundError, RecordError):
            diff = ""
        yield {
            "experiment_id": one.experiment_id,
            "status": one.decision_status,
            "score": one.metric_value,
            "reason": one.reason,
            "description": title,
            "diff": diff,
        }


class RefusedError(ChangeError):
    """A change was refused, and has its record."""

    def __init__(self, experiment_id: str, why: AutohypothesisError) -> None:
        super().__init__(f"{experiment_id}: {why.problem}", hint=why.hint)
        self.experiment_id = experiment_id


def kind_of(error: AutohypothesisError) -> FailureKind | None:
    """What a refusal stands for; None for an error that says nothing about the change."""
    if isinstance(error, (NothingNewError, ConflictError)):
        return "nothing_new"
    if isinstance(error, MutatorError):
        return error.kind
    if isinstance(error, UnjudgedError) or room_in(str(error)):
        return "infra"
    if isinstance(error, ChangeError):
        return "invalid"
    return "code_error" if isinstance(error, PreflightError) else None


def record_refusal(
    project: Project, plan: Plan, error: AutohypothesisError, mutation: Mapping[str, Any]
) -> RefusedError | None:
    """Write the bundle of a plan that came to nothing; None if the error does not speak of it.

    Raises:
        RecordError: the disk is full.
    """
    kind = kind_of(error)
    if kind is None:
        return None
    run, base = project.layout.run(plan.experiment_id), plan.based_on_commit
    commit = project.repository.read_ref(experiment_ref(plan.experiment_id)) or base
    objective, hypothesis = project.task.objective, plan.hypothesis
    title = hypothesis.title or str(mutation.get("note") or "")
    run.folder.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity(
        experiment_id=plan.experiment_id,
        worker_id=plan.worker_id,
        hypothesis_id=hypothesis.hypothesis_id,
        rationale=hypothesis.rationale,
        title=title,
        tag=plan.tag,
        seed=plan.seed,
        node_id=node_id(),
    )
    runtime = Runtime(commit=commit, parent_commit=base, sandbox=str(mutation.get("sandbox") or ""))
    bundles.write_metadata(run, Metadata(recorded_at=now(), run=identity, runtime=runtime))
    result = Result(
        status="failed",
        recorded_at=now(),
        commit=commit,
        parent_commit=base,
        title=title,
        outcome=f"{kind}: {error.problem}",
        failure_kind=kind,
        failure_detail=error.problem,
        metric_name=objective.metric,
        direction=objective.direction,
        evidence={"mutation": dict(mutation)},
    )
    bundles.write_result(run, result)
    return RefusedError(plan.experiment_id, error)
