"""Runs that somebody made by hand, from the log they left: recorded, never attested."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from autohypothesis.engine.candidate import config_of, diff_hash, diff_stat
from autohypothesis.engine.constants import read_constants
from autohypothesis.engine.failures import classify
from autohypothesis.engine.guard import check_candidate
from autohypothesis.engine.logs import parse_summary
from autohypothesis.engine.project import Project, node_id
from autohypothesis.engine.task import BY_HAND
from autohypothesis.errors import ChangeError, UsageError
from autohypothesis.records import bundles, ids
from autohypothesis.records.files import read_bytes, write_atomic
from autohypothesis.records.git import experiment_ref
from autohypothesis.records.layout import RunPaths
from autohypothesis.schema import (
    Metadata,
    Metrics,
    Plan,
    PlannedHypothesis,
    Result,
    RunIdentity,
    Runtime,
    finite,
    now,
)
from autohypothesis.system import host_name

LOG_LIMIT = 256 << 20
TAIL = 4_096
WORKER = "by-hand"


def record_log(project: Project, log: Path, *, commit: str, title: str) -> tuple[str, Result]:
    """A bundle of the run that printed `log`, as a change of `commit` against the reference.

    Its platform is unknown, so it is compared with other hand-made runs only.

    Raises:
        UsageError: there is no such log.
        GitError: there is no such commit.
        ChangeError: it is not built on the reference, or changes more than a candidate may.
    """
    if not log.is_file():
        raise UsageError(
            f"there is no log at {log}", hint="make one: python train.py > run.log 2>&1"
        )
    text = read_bytes(log.resolve(), LOG_LIMIT).decode("utf-8", "replace")
    sha, base = project.repository.resolve(commit), project.reference()
    _check(project, sha, base)
    title = title or f"by hand: {project.repository.subject(sha)}"
    hypothesis_id = ids.allocate_hypothesis(project.layout, project.active())
    experiment_id = ids.allocate_experiment(
        project.layout,
        hypothesis_id,
        project.repository.experiments(),
        plan=lambda given: _plan(project, given, hypothesis_id, base, title),
    )
    project.repository.compare_and_swap(experiment_ref(experiment_id), sha, None)
    run = project.layout.run(experiment_id)
    run.folder.mkdir(parents=True)
    shutil.copyfile(log, run.log)
    parent = base if sha != base else None
    _write_head(project, run, experiment_id, hypothesis_id, sha, parent, title)
    result = _result(project, text, sha, parent, title)
    bundles.write_result(run, result)
    return experiment_id, result


def _check(project: Project, commit: str, base: str) -> None:
    """A keep of it would become the reference: it is held to what every candidate is held to."""
    if commit == base:
        return
    if not project.repository.is_ancestor(base, commit):
        raise ChangeError(
            f"{commit[:12]} is not built on the reference {base[:12]}",
            hint=f"make its change on that one: git rebase {base[:12]}",
        )
    check_candidate(
        project.repository, project.task, commit, project.repository.changes(base, commit)
    )


def _plan(project: Project, experiment_id: str, hypothesis_id: str, base: str, title: str) -> Plan:
    return Plan(
        experiment_id=experiment_id,
        created_at=now(),
        based_on_commit=base,
        worker_id=WORKER,
        tag=project.active(),
        node_id=node_id(),
        hypothesis=PlannedHypothesis(hypothesis_id=hypothesis_id, title=title),
    )


def _write_head(
    project: Project,
    run: RunPaths,
    experiment_id: str,
    hypothesis_id: str,
    commit: str,
    parent: str | None,
    title: str,
) -> None:
    """Settings, change and metadata: what the commit says about the run."""
    repository = project.repository
    changes = repository.changes(parent, commit) if parent else []
    diff = repository.diff(parent, commit) if parent else ""
    literals: dict[str, Any] = {}
    for path in project.task.artifacts_in(repository.entries(commit)):
        if path.endswith(".py"):
            try:
                literals |= read_constants(repository.show_file(commit, path))
            except ChangeError:
                continue  # a script that does not parse still has a log
    write_atomic(run.diff, diff.encode("utf-8", "surrogateescape"))
    bundles.write_config(run, config_of(literals, None))
    runtime = Runtime(
        commit=commit,
        parent_commit=parent,
        diff_stat=diff_stat(changes),
        diff_hash=diff_hash(diff),
        lines_added=sum(change.added or 0 for change in changes),
        lines_removed=sum(change.removed or 0 for change in changes),
        platform_key=f"{BY_HAND}{node_id()}",
        home="kept",
    )
    identity = RunIdentity(
        experiment_id=experiment_id,
        worker_id=WORKER,
        hypothesis_id=hypothesis_id,
        title=title,
        tag=project.active(),
        node_id=host_name(),
    )
    bundles.write_metadata(run, Metadata(recorded_at=now(), run=identity, runtime=runtime))


def _result(project: Project, text: str, commit: str, parent: str | None, title: str) -> Result:
    """What the log says: completed with a finite metric, else failed for the reason it shows."""
    objective = project.task.objective
    summary = parse_summary(text + "\n", objective.metric)
    value = finite(summary.metrics.get(objective.metric))
    ended = {"status": "exited", "exit_code": 0 if value is not None else 1}
    failure = classify(ended, text[-TAIL:], value, metric_name=objective.metric)
    return Result(
        status="failed" if failure else "completed",
        recorded_at=now(),
        commit=commit,
        parent_commit=parent,
        title=title,
        outcome=f"{failure.kind}: {failure.detail}" if failure
        else f"{objective.metric} {value:.6f}",
        failure_kind=failure.kind if failure else None,
        failure_detail=failure.detail if failure else "",
        log_tail=text[-TAIL:] if failure else "",
        attested=False,
        metric_name=objective.metric,
        metric_value=None if failure else value,
        direction=objective.direction,
        evidence={"summaries_seen": summary.blocks},
        metrics=Metrics.model_validate(summary.metrics),
    )  # fmt: skip
