"""From an ended run to `result.json`: what happened, judged from evidence, written once.

Whoever looks first collects: the process that started the run, its successor after a kill, or a
sync. The answer is made from the run folder alone, so each of them writes the same one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autohypothesis.engine import guard, shim, strays
from autohypothesis.engine.executor import RunSpec
from autohypothesis.engine.failures import Failure, classify
from autohypothesis.engine.pump import read_tail
from autohypothesis.engine.scorer import Score, scorer_for
from autohypothesis.errors import LaunchError, RecordError
from autohypothesis.records import bundles, locks
from autohypothesis.records.files import read_json
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from schema import ExitRecord, Metrics, Result, finite, now

TAIL_BYTES = 4_096
EVIDENCE_OF_RUN = ("clock", "contention", "device", "log", "strays_killed", "utilisation", "score")


def collect(repository: Repository, layout: Layout, experiment_id: str) -> Result:
    """The result of one experiment, made and written now if nobody has yet.

    Raises:
        LaunchError: it is still running, or never started.
    """
    run = layout.run(experiment_id)
    with locks.hold(layout, "collect", doing=f"collecting {experiment_id}"):
        if run.result.exists():
            return Result.model_validate(read_json(run.result))
        state = shim.status(str(run.folder))
        if state == "running":
            raise LaunchError(
                f"{experiment_id} is still running",
                hint=f"see `python orchestrator.py show {experiment_id}`",
            )
        spec = RunSpec.model_validate(read_json(run.run_spec))
        local = read_json(run.local)
        killed = strays.end_strays(str(run.folder), finite(local.get("started_at")) or 0.0)
        result = judge(repository, spec, run, local, killed)
        bundles.write_result(run, result)
        shutil.rmtree(run.home, ignore_errors=True)
        return result


def judge(
    repository: Repository,
    spec: RunSpec,
    run: RunPaths,
    local: Mapping[str, Any],
    killed: list[int],
) -> Result:
    """The result of an ended run. Reads its folder and its checkout, and changes nothing."""
    document = _exit_document(run)
    record = ExitRecord.model_validate(document) if document else None
    checkout = Path(str(local["checkout"]))
    before = guard.Before.model_validate(local["before"])
    touched = guard.inspect(repository, checkout, before)
    score = _score(spec, run, record, checkout)
    tail = log_tail(run)
    failure = _failure(document, tail, score, touched, spec)
    evidence = {
        **{name: document[name] for name in EVIDENCE_OF_RUN if document and name in document},
        "scorer": dict(score.evidence),
        "touched": touched,
        "strays_found": killed,
    }
    return Result(
        status="failed" if failure else "completed",
        recorded_at=now(),
        commit=spec.commit,
        parent_commit=spec.parent_commit,
        title=spec.title,
        outcome=_outcome(failure, spec, score),
        failure_kind=failure.kind if failure else None,
        failure_detail=failure.detail if failure else "",
        log_tail=tail if failure else "",
        attested=score.attested and failure is None,
        metric_name=spec.task.objective.metric,
        metric_value=None if failure else score.value,
        direction=spec.task.objective.direction,
        evidence=evidence,
        metrics=_metrics(spec, score, record, failure),
    )


def _exit_document(run: RunPaths) -> dict[str, Any] | None:
    """exit.json as the shim wrote it; None when it died first."""
    try:
        value = read_json(run.exit)
    except (FileNotFoundError, RecordError):
        return None
    return value if isinstance(value, dict) else None


def _score(spec: RunSpec, run: RunPaths, record: ExitRecord | None, checkout: Path) -> Score:
    """The scorer's answer; nothing to score after a training that did not end by itself."""
    if record is None or record.status != "exited" or record.exit_code != 0:
        return Score(None, record.metrics if record else {})
    return scorer_for(spec.task).score(run, record, checkout)


def _failure(
    document: Mapping[str, Any] | None,
    tail: str,
    score: Score,
    touched: list[str],
    spec: RunSpec,
) -> Failure | None:
    """The first thing that is wrong; infrastructure first, since it is no evidence at all."""
    metric = spec.task.objective.metric
    failure = classify(document, tail, score.value, metric_name=metric)
    if failure is not None and failure.kind == "infra":
        return failure
    if touched:
        return Failure("invalid", f"the training changed {', '.join(touched)}")
    if score.kind is not None and (failure is None or failure.kind == "no_metric"):
        return Failure(score.kind, score.problem)
    return failure


def _outcome(failure: Failure | None, spec: RunSpec, score: Score) -> str:
    if failure is not None:
        return f"{failure.kind}: {failure.detail}"
    return f"{spec.task.objective.metric} {score.value:.6f}"


def _metrics(
    spec: RunSpec, score: Score, record: ExitRecord | None, failure: Failure | None
) -> Metrics:
    """What was printed, with the official value in its place and the shim's own measurements."""
    metric = spec.task.objective.metric
    values: dict[str, Any] = {**(record.metrics if record else {}), **score.metrics}
    values[f"printed_{metric}"] = values.get(metric)
    values[metric] = None if failure else score.value
    values["score_difference"] = score.evidence.get("score_difference")
    if record is not None:
        peak = record.peak_vram_mb if record.peak_vram_mb is not None else record.peak_rss_mb
        if finite(values.get("peak_vram_mb")) is None:
            values["peak_vram_mb"] = peak
        values["peak_rss_mb"] = record.peak_rss_mb
        values["cpu_seconds"] = record.cpu_seconds
        values["wall_seconds"] = record.wall_seconds
        values["energy_joules"] = record.energy_joules
    return Metrics.model_validate(values)


def log_tail(run: RunPaths) -> str:
    """The end of run.log, for a person who wants to know why."""
    return read_tail(str(run.log), TAIL_BYTES)
