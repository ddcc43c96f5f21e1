"""Runs that a person made by hand, from the log they left: recorded, never attested."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from autohypothesis.engine.candidate import check_candidate, settings_of, spec_of
from autohypothesis.engine.collect import result_of
from autohypothesis.engine.executor import RunSpec, metadata_of
from autohypothesis.engine.experiment import Change, Experiment
from autohypothesis.engine.failures import classify
from autohypothesis.engine.logs import parse_summary
from autohypothesis.engine.project import Project
from autohypothesis.engine.task import BY_HAND
from autohypothesis.errors import ChangeError, UsageError
from autohypothesis.records import bundles, ids
from autohypothesis.records.files import read_bytes, write_atomic
from autohypothesis.records.git import experiment_ref
from autohypothesis.schema import Metrics, Result, finite
from autohypothesis.system import host_name

LOG_LIMIT = 256 << 20
TAIL = 4_096
WORKER = "by-hand"


def record_log(project: Project, log: Path, *, commit: str, title: str) -> tuple[str, Result]:
    """Make a bundle of the run that printed `log`, as a change of `commit` against the reference.

    Its platform is unknown, so it is compared with other recorded runs only.

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
    experiment = _planned(project, title or f"by hand: {project.repository.subject(sha)}", base)
    experiment_id = experiment.experiment_id
    project.repository.compare_and_swap(experiment_ref(experiment_id), sha, None)
    run = project.layout.run(experiment_id)
    run.folder.mkdir(parents=True)
    shutil.copyfile(log, run.log)
    spec = spec_of(
        project.repository,
        project.task,
        experiment,
        sha,
        settings_of(project.repository, project.task, sha),
    )
    write_atomic(run.diff, spec.diff.encode("utf-8", "surrogateescape"))
    bundles.write_config(run, spec.config)
    platform = f"{BY_HAND}{host_name()}"
    bundles.write_metadata(run, metadata_of(spec, platform_key=platform, home="kept"))
    result = result_of_log(spec, text)
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


def _planned(project: Project, title: str, base: str) -> Experiment:
    """Return the experiment under ids of its own; its plan is written."""
    hypothesis_id = ids.allocate_hypothesis(project.layout, project.active())
    planned = Experiment(
        Change(),
        title=title,
        hypothesis_id=hypothesis_id,
        tag=project.active(),
        worker_id=WORKER,
        base=base,
    )
    experiment_id = ids.allocate_experiment(
        project.layout,
        hypothesis_id,
        project.repository.experiments(),
        plan=lambda given: replace(planned, experiment_id=given).plan(),
    )
    return replace(planned, experiment_id=experiment_id)


def result_of_log(spec: RunSpec, text: str) -> Result:
    """Return what the log says: completed with a finite metric, else failed as it shows."""
    metric = spec.task.objective.metric
    summary = parse_summary(text + "\n", metric)
    value = finite(summary.metrics.get(metric))
    ended = {"status": "exited", "exit_code": 0 if value is not None else 1}
    failure = classify(ended, text[-TAIL:], value, metric_name=metric)
    evidence = {"summaries_seen": summary.blocks}
    metrics = Metrics.model_validate(summary.metrics)
    return result_of(spec, value, failure, text[-TAIL:], evidence, metrics)
