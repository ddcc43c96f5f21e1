"""From an ended run to `result.json`: what happened, judged from evidence, written once.

Whoever looks first collects: the process that started the run, its successor after a kill, or a
sync. The answer is made from the run folder alone, so each of them writes the same one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autohypothesis.engine import guard, process_limit, shim, strays
from autohypothesis.engine.executor import RunSpec, identity_of
from autohypothesis.engine.failures import Failure, classify
from autohypothesis.engine.pump import read_tail
from autohypothesis.engine.scorer import Score, scorer_for
from autohypothesis.errors import LaunchError, RecordError
from autohypothesis.records import bundles, locks
from autohypothesis.records.files import read_json, to_json, write_atomic
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from schema import ExitRecord, Metadata, Metrics, Result, Runtime, finite, now

TAIL_BYTES = 4_096
LOCAL_LIMIT = 256 << 20
"""Bytes of local.json, which holds about a hundred of each tracked file."""
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
        local = read_json(run.local, LOCAL_LIMIT)
        killed = strays.end_strays(str(run.folder), finite(local.get("started_at")) or 0.0)
        process_limit.sweep()
        result = judge(repository, spec, run, local, killed)
        if not run.metadata.exists():
            bundles.write_metadata(run, _from_spec(spec))
        bundles.write_result(run, result)
        shutil.rmtree(run.home, ignore_errors=True)
        rest = {name: value for name, value in local.items() if name != "before"}
        write_atomic(run.local, to_json(rest), durable=False)
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
    gone = _lost(repository, checkout, before.commit)
    touched = [] if gone else guard.inspect(repository, checkout, before)
    touched += [] if gone else guard.planted(spec.task, checkout, before)
    score = _score(spec, run, record, None if gone else checkout)
    tail = log_tail(run)
    failure = gone or _failure(document, tail, score, touched, spec)
    evidence = {
        **{name: document[name] for name in EVIDENCE_OF_RUN if document and name in document},
        "scorer": dict(score.evidence),
        "touched": touched,
        "strays_found": killed,
    }
    if spec.mutation is not None:
        evidence["mutation"] = spec.mutation
    if failure is not None and failure.kind == "contended":
        evidence["voided_value"] = score.value
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


def _from_spec(spec: RunSpec) -> Metadata:
    """Who asked for a run whose starter was killed before it wrote that down: it never began, and
    without a name nobody could decide it."""
    return Metadata(
        recorded_at=now(),
        run=identity_of(spec),
        runtime=Runtime(
            commit=spec.commit,
            parent_commit=spec.parent_commit,
            diff_stat=spec.diff_stat,
            diff_hash=spec.diff_hash,
            lines_added=spec.lines_added,
            lines_removed=spec.lines_removed,
        ),
    )


def _exit_document(run: RunPaths) -> dict[str, Any] | None:
    """exit.json as the shim wrote it; None when it died first."""
    try:
        value = read_json(run.exit)
    except (FileNotFoundError, RecordError):
        return None
    return value if isinstance(value, dict) else None


def _lost(repository: Repository, checkout: Path, commit: str) -> Failure | None:
    """The failure of a run whose checkout was deleted, or given to another run, before this."""
    at = repository.read_ref("HEAD", checkout) if (checkout / ".git").is_file() else None
    if at == commit:
        return None
    now_at = f"it stands on {at[:12]}, the run was of {commit[:12]}" if at else str(checkout)
    return Failure("infra", f"its checkout is gone: {now_at}")


def _score(spec: RunSpec, run: RunPaths, record: ExitRecord | None, checkout: Path | None) -> Score:
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
    if elsewhere := _other_device(document or {}):
        return Failure("invalid", elsewhere)
    if score.kind is not None and (failure is None or failure.kind == "no_metric"):
        return Failure(score.kind, score.problem)
    return failure


def _other_device(document: Mapping[str, Any]) -> str:
    """How the GPU that the training says it used is not the leased one; else empty."""
    device = document.get("device") or {}
    said = (document.get("metrics") or {}).get("device_uuid")
    leased = str(device.get("uuid"))
    if device.get("kind") != "cuda" or said is None:
        return ""
    if str(said).strip().lower() == leased.lower():
        return ""
    return f"the training reports device {said!s:.60}, leased was {leased}"


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
        values["printed_peak_vram_mb"] = finite(values.get("peak_vram_mb"))
        values["peak_vram_mb"] = _peak_mb(spec, values["printed_peak_vram_mb"], record)
        values["peak_rss_mb"] = record.peak_rss_mb
        values["cpu_seconds"] = record.cpu_seconds
        values["wall_seconds"] = record.wall_seconds
        values["energy_joules"] = record.energy_joules
    return Metrics.model_validate(values)


def _peak_mb(spec: RunSpec, printed: float | None, record: ExitRecord) -> float | None:
    """The peak as the shim measured it: on a GPU its memory, on a CPU the resident set.

    Of a script on a CPU of which nothing is known but its log, the printed value stands, as it
    always has; unless a limit of the task is held against it.
    """
    on_gpu = record.device.get("kind") == "cuda"
    measured = record.peak_vram_mb if on_gpu else record.peak_rss_mb
    limited = "peak_vram_mb" in spec.task.constraints
    if printed is None or limited:
        return measured
    as_printed = spec.task.scorer.type == "log" and not on_gpu
    return printed if as_printed or measured is None else measured


def log_tail(run: RunPaths) -> str:
    """The end of run.log, for a person who wants to know why."""
    return read_tail(str(run.log), TAIL_BYTES)
