"""A task's own program as the maker of changes: its input, its run, the record of a refusal.

It works in a checkout of the reference that no run uses. Where bubblewrap works it sees the rest
of the disk read-only; elsewhere the user's checkout is compared with what it was. What it did to
its checkout is judged afterwards, by the guard, like any other change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from autohypothesis.engine import program
from autohypothesis.engine.attestation import attest
from autohypothesis.engine.candidate import settings_of, spec_of
from autohypothesis.engine.collect import result_of
from autohypothesis.engine.environment import program_environment, resolved
from autohypothesis.engine.experiment import Experiment, metadata_of, spec_for
from autohypothesis.engine.failures import Failure, infra_reason, room_in
from autohypothesis.engine.program import TaskSandbox, sandbox_kind
from autohypothesis.engine.project import Project
from autohypothesis.errors import (
    AutohypothesisError,
    ChangeError,
    ConflictError,
    NothingNewError,
    PreflightError,
    ProgramUnavailableError,
)
from autohypothesis.plain import some_of
from autohypothesis.records import bundles
from autohypothesis.records.files import PAGE_LIMIT, read_object, read_text, write_atomic
from autohypothesis.records.git import SALVAGE, experiment_ref
from autohypothesis.records.history import DecisionHistory
from autohypothesis.sandbox import Kind
from autohypothesis.schema import Decision, FailureKind, Metrics

TITLE_LIMIT = 200
MAX_TRIALS = 20
MAX_DIFF = 8_000
"""Characters of one diff: a program may be a language model, whose context is bounded."""
EXTRA_ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
"""Files that it leaves in the checkout are its change, so it writes no compiled Python."""


class MutatorError(ChangeError):
    """The program failed to make a change; `kind` is what that says about the change."""

    def __init__(self, problem: str, *, kind: FailureKind, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.kind = kind


class Mutator:
    """The program of one task, run once for one experiment.

    Attributes:
        past: what was decided before it is asked.
        made: how its run went, failed or not.
    """

    def __init__(
        self, project: Project, experiment: Experiment, cancelled: Callable[[], bool]
    ) -> None:
        self.project, self.repository, self.task = project, project.repository, project.task
        self.experiment, self.cancelled = experiment, cancelled
        self.past = DecisionHistory.of_tag(project.layout, project.tag)
        self.seed = experiment.mutation_seed
        if self.seed is None:
            digest = hashlib.sha256(experiment.experiment_id.encode()).digest()
            self.seed = int.from_bytes(digest[:4], "big")
        self.made = {"note": "", "exit_code": None, "seconds": 0.0, "sandbox": "none"}

    def implement(self, instructions: str, checkout: Path) -> str:
        """Have the program edit `checkout`, see `candidate.ImplementChange`.

        Raises:
            MutatorError: it failed, took too long, printed too much, or touched the user's
                checkout.
        """
        kind = sandbox_kind(self.task)
        link = (checkout / ".git").read_bytes()
        before = self._users_checkout() if kind == "none" else None
        ended = self._run(kind, instructions, checkout)
        note = ended.out.partition("\n")[0].strip()[:TITLE_LIMIT]
        seconds = round(ended.seconds, 3)
        self.made |= {
            "note": note, "exit_code": ended.exit_code, "seconds": seconds, "sandbox": kind,
        }  # fmt: skip
        problems = self._changed(*before) if before else []
        if not _is_link_to_git(checkout / ".git", link):
            problems.append("replaced the .git of its checkout")
            if (checkout / ".git").is_dir() and not (checkout / ".git").is_symlink():
                shutil.rmtree(checkout / ".git", ignore_errors=True)
            write_atomic(checkout / ".git", link, durable=False)
        if problems:
            raise MutatorError(f"the mutator {' and '.join(problems)}", kind="invalid")
        self._check(ended)
        return note

    def _run(self, kind: Kind, instructions: str, checkout: Path) -> program.ProgramEnd:
        environment = {
            **program_environment(os.environ),
            **EXTRA_ENVIRONMENT,
            "SEED": str(self.seed),
        }
        document = json.dumps(self.document(instructions), default=str)
        sandbox = TaskSandbox(self.repository, self.task, kind)
        try:
            return program.run(
                resolved(self.task.mutator.command or (), self.repository.root),
                cwd=checkout / self.task.mutator.cwd,
                environment=sandbox.environment(environment, None),
                confined=sandbox.mutator(checkout),
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
        limit = self.task.mutator.timeout_seconds
        kind: FailureKind = "code_error"
        if ended.overflow:
            problem = f"printed more than {program.OUT_LIMIT:,} bytes"
        elif ended.exit_code is None and self.cancelled():
            raise AutohypothesisError("the mutator was called off")
        elif ended.exit_code is None and ended.too_many:
            problem = ended.limit(limit)
        elif ended.exit_code is None:
            problem, kind = f"took longer than {limit:g} s", "timeout"
        elif not ended.exit_code:
            return
        elif why := infra_reason(ended.exit_code, None, ended.err or ended.out):
            problem, kind = f"could not make a change: {why}", "infra"
        else:
            problem = f"exited {ended.exit_code}: {ended.last_words()}"
        raise MutatorError(f"the mutator {problem}", kind=kind)

    def _users_checkout(self) -> tuple[str, str]:
        return self.repository.head(), self.repository.snapshot_tree()

    def _changed(self, head: str, tree: str) -> list[str]:
        """Describe what happened to the user's tracked files; what was deleted is put back.

        An edit may be the user's own, so it stays; the state before is kept in git.
        """
        repository, (head_now, tree_now) = self.repository, self._users_checkout()
        changes = repository.changes(tree, tree_now) if head_now == head else []
        if not changes:
            return []  # nothing happened, or the user works there
        ref = SALVAGE + self.experiment.experiment_id
        salvaged = repository.commit_tree(tree, [head], "Your checkout, as it was\n")
        repository.compare_and_swap(ref, salvaged, repository.read_ref(ref))
        deleted = [change.path for change in changes if change.status == "D"]
        with suppress(AutohypothesisError):
            repository.restore(deleted, tree)
        names = some_of([change.path for change in changes])
        back = " (what was deleted is back)" if deleted else ""
        return [f"or another process changed {names} of your checkout{back}; before: {ref}"]

    def document(self, instructions: str) -> dict[str, Any]:
        """Return what the program reads on its standard input, see docs/tasks.md."""
        base, objective = self.experiment.base, self.task.objective
        measured = self._measured(base)
        return {
            "task_id": self.task.id,
            "iteration_id": self.experiment.experiment_id,
            "seed": self.seed,
            "artifacts": [
                os.path.relpath(path, self.task.mutator.cwd)
                for path in self.task.artifacts_in(self.repository.entries(base))
            ],
            "objective": {
                "metric": objective.metric,
                "direction": objective.direction,
                "min_delta": objective.min_delta,
            },
            "charter": read_text(self.project.layout.program, PAGE_LIMIT),
            "reference": {
                "commit": base,
                "score": measured.metric_value if measured else None,
                "metrics": self._metrics(measured) if measured else {},
            },
            "trials": list(self._trials()),
            "instructions": instructions,
        }

    def _measured(self, commit: str) -> Decision | None:
        latest_first = (past for past in reversed(self.past.decisions) if past.commit == commit)
        return next((past for past in latest_first if past.decision_status == "keep"), None)

    def _metrics(self, measured: Decision) -> dict[str, Any]:
        result = self.project.layout.run(measured.experiment_id).result
        metrics = read_object(result).get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        decided = {measured.metric_name: measured.metric_value} if measured.metric_name else {}
        return {name: value for name, value in {**metrics, **decided}.items() if value is not None}

    def _trials(self) -> Iterator[dict[str, Any]]:
        changes = [decision for decision in self.past.decisions if decision.base_commit is not None]
        for decision in changes[-MAX_TRIALS:]:
            run = self.project.layout.run(decision.experiment_id)
            yield {
                "experiment_id": decision.experiment_id,
                "status": decision.decision_status,
                "score": decision.metric_value,
                "reason": decision.reason,
                "description": str(read_object(run.result).get("title") or ""),
                "diff": read_text(run.diff, 64 << 20)[:MAX_DIFF],
            }


def _is_link_to_git(path: Path, content: bytes) -> bool:
    with suppress(OSError):
        return not path.is_symlink() and path.read_bytes() == content
    return False


class RecordedRefusalError(ChangeError):
    """A change was refused before it ran, and has its record under `experiment_id`."""

    def __init__(self, experiment_id: str, refusal: AutohypothesisError) -> None:
        super().__init__(f"{experiment_id}: {refusal.problem}", hint=refusal.hint)
        self.experiment_id = experiment_id


def record_refusal(
    project: Project,
    experiment: Experiment,
    error: AutohypothesisError,
    mutator: Mutator | None,
    *,
    every: bool,
) -> RecordedRefusalError | None:
    """Write the bundle of a change that was refused before it ran.

    A candidate that can be seen to fail, by its syntax or at its import, has crashed like one that
    failed in its run. With `every` other refusals are recorded too: a loop over a task's own
    program has one record for each time that the program ran. None where nothing is recorded, or
    the error says nothing about the change.

    Raises:
        RecordError: the disk is full.
    """
    kind = _kind_of_refusal(error)
    has_crashed = kind == "code_error" and isinstance(error, PreflightError)
    if kind is None or not (every or has_crashed):
        return None
    name, base, repository = experiment.experiment_id, experiment.base, project.repository
    mutation = mutator.made if mutator else {}
    run = project.layout.run(name)
    commit = repository.read_ref(experiment_ref(name)) or base
    title = experiment.title or str(mutation.get("note") or "")
    spec = spec_for(experiment, project.task, commit, parent_commit=base, title=title)
    # Without a diff: what was refused once may come again, and is no duplicate then.
    unknown: dict[str, Any] = {"lines_added": None, "lines_removed": None}
    run.folder.mkdir(parents=True, exist_ok=True)
    if has_crashed:
        config = settings_of(repository, project.task, commit)
        spec, unknown = spec_of(repository, project.task, experiment, commit, config), {}
        write_atomic(run.diff, spec.diff.encode("utf-8", "surrogateescape"))
        bundles.write_config(run, spec.config)
        write_atomic(run.log, f"{error.problem}\n".encode("utf-8", "replace"))
    sandbox = str(mutation.get("sandbox") or "")
    bundles.write_metadata(run, metadata_of(spec, sandbox=sandbox, **unknown))
    failure, evidence = Failure(kind, error.problem), {"mutation": dict(mutation)}
    nothing = Metrics.model_validate({"wall_seconds": 0.0, "cpu_seconds": 0.0})
    result = result_of(spec, None, failure, "", evidence, nothing)
    attest(repository, project.layout, run, result)
    bundles.write_result(run, result)
    return RecordedRefusalError(name, error)


def _kind_of_refusal(error: AutohypothesisError) -> FailureKind | None:
    """Return what a refusal stands for; None where it says nothing about the change."""
    if isinstance(error, (NothingNewError, ConflictError)):
        return "nothing_new"
    if isinstance(error, MutatorError):
        return error.kind
    if isinstance(error, ProgramUnavailableError) or room_in(str(error)):
        return "infra"
    if isinstance(error, ChangeError):
        return "invalid"
    return "code_error" if isinstance(error, PreflightError) else None
