"""Makes `result.json` of an ended run: judged from evidence, written once.

The first process that looks collects: the one that started the run, its successor after a kill, or
a sync. The answer is made from the run folder alone, so each of them writes the same one.

The shim keeps the deadline of its run; here is the deadline of those who wait for it. A stopped
shim is named while it is stopped, and ended when it is far past its limits, so that no process
waits for ever. Times are monotonic: a machine that is suspended makes no run late.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from autohypothesis import system
from autohypothesis.engine import processes, shim
from autohypothesis.engine.attestation import attest
from autohypothesis.engine.environment import compile_cache_folder, keep_compile_cache
from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.facts import (
    known_metrics,
    long_lines,
    untrue_metrics,
    untrue_score,
    work_outside,
)
from autohypothesis.engine.failures import Failure, classify, part_of
from autohypothesis.engine.logs import read_tail
from autohypothesis.engine.scoring import TAIL_BYTES, Score, scorer_for
from autohypothesis.engine.workspace import (
    CheckoutBaseline,
    Export,
    changes_since,
    find_importable_additions,
)
from autohypothesis.errors import (
    RECOVERABLE_ERRORS,
    AutohypothesisError,
    LaunchError,
    RecordError,
)
from autohypothesis.records import ids, locks
from autohypothesis.records.bundles import uncollected
from autohypothesis.records.comparison import fixed
from autohypothesis.records.files import (
    load,
    load_or_none,
    read_bytes,
    read_json,
    read_object,
    remove_folder,
    to_json,
    write_atomic,
    write_json,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.schema import NO_SANDBOX, ExitRecord, Metadata, Metrics, Result, finite, now

LOCAL_LIMIT = 256 << 20
"""Bytes of local.json, which holds about a hundred of each tracked file."""
KILLED_S = 5.0
"""Seconds that a killed shim may take to be gone."""
RESULT_HASH = "judged"
"""Key in local.json: the SHA-256 of the result that is about to be written."""
EVIDENCE_OF_RUN = (
    "clock",
    "contention",
    "device",
    "log",
    "strays_killed",
    "utilisation",
    "score",
    "machine",
)


def collect(repository: Repository, layout: Layout, experiment_id: str) -> Result:
    """Return the result of one experiment, made and written now if it is not there yet.

    Raises:
        LaunchError: it is still running, or never started.
    """
    run = layout.run(experiment_id)
    with locks.hold(layout, "collect", doing=f"collecting {experiment_id}"):
        if is_collected(run):
            _clean_up(run, _local(run) if run.local.exists() else {})
            return load(Result, run.result)
        state = shim.status(run)
        if state == "running":
            raise LaunchError(
                f"{experiment_id} is still running",
                hint=f"see `python orchestrator.py show {experiment_id}`",
            )
        spec = load(RunSpec, run.run_spec)
        local = _local(run)
        began = finite(local.get("started_at")) or 0.0
        killed = processes.end_marked(processes.run_mark(run), began)
        processes.remove_stale_cgroups()
        anomalies = _move_out_files(run)
        result = judge(repository, spec, run, local, killed, anomalies)
        content = to_json(result, indent=2) + "\n"
        write_atomic(
            run.local, to_json({**local, RESULT_HASH: _hash(content.encode())}), durable=False
        )
        attest(repository, layout, run, result, local.get("before"))
        write_atomic(run.result, content)
        metadata = load_or_none(Metadata, run.metadata)
        is_baseline = spec.hypothesis_id == ids.baseline_id(spec.tag)
        if metadata is not None and is_baseline and result.status == "completed":
            key = metadata.runtime.platform_key
            keep_compile_cache(run.home, compile_cache_folder(repository.common_dir, key))
        _clean_up(run, local)
        return result


def finish_collection(layout: Layout, experiment_id: str) -> bool:
    """Return whether the run is collected, and clean up after a collector that was killed.

    A decision changes `result.json`: while the evidence remains, it would be collected again.
    """
    run = layout.run(experiment_id)
    with locks.hold(layout, "collect", doing=f"cleaning up {experiment_id}"):
        if not is_collected(run):
            return False
        _clean_up(run, _local(run) if run.local.exists() else {})
        return True


def is_collected(run: RunPaths) -> bool:
    """Return whether `result.json` is there and is the one that `collect` wrote.

    The evidence in local.json goes once it was; until then local.json names the result's hash, so
    that a kill in between loses nothing, and a result that the run wrote itself is not taken.
    """
    try:
        local = read_json(run.local, LOCAL_LIMIT)
        content = read_bytes(run.result)
    except (FileNotFoundError, RecordError):
        return run.result.exists() and not run.local.exists()
    if not isinstance(local, dict) or "before" not in local:
        return True
    return bool(local.get(RESULT_HASH) == _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _clean_up(run: RunPaths, local: Mapping[str, Any]) -> None:
    """Delete what a run with a result needs no more: its home, its /tmp, the evidence."""
    if "before" not in local:
        return
    remove_folder(run.home)
    remove_folder(run.scoring_home)
    temporary = Path(str(local.get("temporary") or ""))
    if temporary.parent == Path(tempfile.gettempdir()) and temporary.name.startswith("ah-"):
        remove_folder(temporary)
    rest = {name: value for name, value in local.items() if name not in ("before", RESULT_HASH)}
    write_atomic(run.local, to_json(rest), durable=False)


def _move_out_files(run: RunPaths) -> list[str]:
    """Move weights and clock record from `out/` to the bundle; return what makes the run invalid.

    A link could stand for a file that is none of the run's.
    """
    anomalies = [
        f"{name} in its out/, as if that were its record"
        for name in (run.result.name, run.exit.name)
        if os.path.lexists(run.out / name)
    ]
    for source, target in ((run.weights_in_out, run.weights), (run.clock_in_out, run.clock)):
        if os.path.lexists(source):
            status = os.lstat(source)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                os.replace(source, target)
            else:
                anomalies.append(f"{source.name} in its out/, which is no file of its own")
        if target.is_symlink():
            target.unlink()
    if run.out.is_dir() and not any(run.out.iterdir()):
        run.out.rmdir()
    return anomalies


def _forged(run: RunPaths, document: Mapping[str, Any] | None) -> list[str]:
    """Return parts of the record that neither the starter nor the shim wrote."""
    forged = ["result.json of its record, which it made"] if run.result.exists() else []
    if document is not None:
        forged += map(str, document.get("tampered") or ())
        seal = str(read_object(run.launch).get("seal") or "")  # none by earlier versions
        ours = document.get("status") == "infra"  # also written in place of a shim that hung
        if seal and not ours and shim.sealed(str(document.get("seal"))) != seal:
            forged.append("exit.json of its record")
    return forged


def judge(
    repository: Repository,
    spec: RunSpec,
    run: RunPaths,
    local: Mapping[str, Any],
    killed: list[int],
    anomalies: list[str],
) -> Result:
    """Return the result of an ended run. Reads its folder and its checkout, and changes nothing.

    Args:
        anomalies: found in `out/`; any makes the run invalid.
    """
    document = read_object(run.exit) or None
    record = ExitRecord.model_validate(document) if document else None
    checkout, missing, touched = _inspect_checkout(repository, spec, local)
    touched = [*_forged(run, document), *anomalies, *touched]
    score = _score(spec, run, record, checkout)
    tail = read_tail(str(run.log), TAIL_BYTES)
    failure = missing or _failure(document, tail, score, touched, spec, _is_held(run))
    outside = work_outside(run, record, _baselines(spec, run)) if record else ""
    if outside and failure is None and record and record.clock.clock == "cpu":
        failure = Failure("invalid", f"the training took {outside}")
    evidence = {
        **{name: document[name] for name in EVIDENCE_OF_RUN if document and name in document},
        "scorer": dict(score.evidence),
        "touched": touched,
        "strays_found": killed,
    }
    known = known_metrics(spec, run, record) if record else {}
    printed = record.metrics if record else {}
    evidence["remarks"] = [*untrue_metrics(printed, known), *long_lines(spec.diff)]
    if outside and failure is None:
        evidence["remarks"].append(f"it took {outside}")
    if spec.mutation is not None:
        evidence["mutation"] = spec.mutation
    if failure is not None and failure.kind == "contended":
        evidence["voided_value"] = score.value
    attested = score.attested and not _is_unconfined(spec, run)
    metrics = _metrics(spec, score, record, failure, known)
    return result_of(spec, score.value, failure, tail, evidence, metrics, attested=attested)


def result_of(
    spec: RunSpec,
    value: float | None,
    failure: Failure | None,
    tail: str,
    evidence: dict[str, Any],
    metrics: Metrics | None = None,
    *,
    attested: bool = False,
) -> Result:
    """Return the result of a run that failed with `failure`, or has `value`."""
    objective = spec.task.objective
    return Result(
        status="failed" if failure else "completed",
        recorded_at=now(),
        commit=spec.commit,
        parent_commit=spec.parent_commit,
        title=spec.title,
        outcome=f"{failure.kind}: {failure.detail}"
        if failure
        else f"{objective.metric} {fixed(value, 6)}",
        failure_kind=failure.kind if failure else None,
        failure_detail=failure.detail if failure else "",
        log_tail=tail if failure else "",
        attested=attested and failure is None,
        metric_name=objective.metric,
        metric_value=None if failure else value,
        direction=objective.direction,
        evidence=evidence,
        metrics=metrics or Metrics(),
    )


def _local(run: RunPaths) -> dict[str, Any]:
    """Return local.json; empty where the run destroyed it, which the shim has seen.

    Raises:
        RecordError, FileNotFoundError: it is damaged or gone, and the run did not do it.
    """
    try:
        local = read_json(run.local, LOCAL_LIMIT)
        return local if isinstance(local, dict) else {}
    except (FileNotFoundError, RecordError):
        if read_object(run.exit).get("tampered"):
            return {}
        raise


def _inspect_checkout(
    repository: Repository, spec: RunSpec, local: Mapping[str, Any]
) -> tuple[Path | None, Failure | None, list[str]]:
    """Return the checkout of a run, or why it is missing; and what was changed in it."""
    if "before" not in local:
        return None, None, ["local.json of its record"]
    checkout = Path(str(local["checkout"]))
    before = CheckoutBaseline.model_validate(local["before"])
    at = Export(repository, checkout.name).holds()
    if at != before.commit:  # it was deleted, or given to another run
        why = f"it holds {at[:12]}, the run was of {before.commit[:12]}" if at else str(checkout)
        return None, Failure("infra", f"its checkout is gone: {why}"), []
    touched = changes_since(repository, checkout, before)
    return checkout, None, touched + find_importable_additions(spec.task, checkout, before)


def _is_unconfined(spec: RunSpec, run: RunPaths) -> bool:
    """Return whether the task asks for a strict sandbox and the run had none."""
    metadata = load_or_none(Metadata, run.metadata)
    is_strict = spec.task.isolation_level == "strict"
    return metadata.runtime.is_unconfined if metadata else is_strict


def _baselines(spec: RunSpec, run: RunPaths) -> Iterator[RunPaths]:
    """Yield the runs of the unchanged script in the same search, without this one; they are looked
    for when the first is asked for."""
    if spec.parent_commit is not None:
        stem = ids.experiment_stem(ids.baseline_id(spec.tag))
        yield from map(RunPaths, run.folder.parent.glob(f"{stem}-*"))


def _is_held(run: RunPaths) -> bool:
    """Return whether the run had a sandbox."""
    metadata = load_or_none(Metadata, run.metadata)
    return metadata is not None and metadata.runtime.sandbox not in ("", *NO_SANDBOX)


def _score(spec: RunSpec, run: RunPaths, record: ExitRecord | None, checkout: Path | None) -> Score:
    """Return the scorer's answer; no value after a training that did not end by itself."""
    if record is None or record.status != "exited" or record.exit_code != 0:
        return Score(None, record.metrics if record else {})
    return scorer_for(spec.task).score(run, record, checkout)


def _failure(
    document: Mapping[str, Any] | None,
    tail: str,
    score: Score,
    touched: list[str],
    spec: RunSpec,
    confined: bool,
) -> Failure | None:
    """Return the first thing that is wrong; infrastructure first, since it is no evidence."""
    metric = spec.task.objective.metric
    failure = classify(document, tail, score.value, metric_name=metric, confined=confined)
    if failure is not None and failure.kind in ("infra", "cancelled"):
        return failure
    if touched:
        return Failure("invalid", f"the training changed {', '.join(touched)}")
    if elsewhere := _other_device(document or {}):
        return Failure("invalid", elsewhere)
    printed = failure is not None and failure.kind == "nan" and score.kind != "no_metric"
    if score.kind is not None and (failure is None or failure.kind == "no_metric" or printed):
        return Failure(score.kind, score.problem)
    if failure is None and not confined and spec.task.scorer.type == "model":
        on_gpu = part_of(document, "device").get("kind") == "cuda"
        said = untrue_score(score.evidence.get("printed"), score.value, on_gpu=on_gpu)
        return Failure("invalid", f"{said}, and no sandbox held it") if said else None
    return failure


def _other_device(document: Mapping[str, Any]) -> str:
    """Return how the GPU that the training reports is not the leased one; else empty."""
    device = document.get("device") or {}
    reported = (document.get("metrics") or {}).get("device_uuid")
    leased = str(device.get("uuid"))
    if device.get("kind") != "cuda" or reported is None:
        return ""
    # CUDA names a MIG device by its own UUID or by that of its GPU, and neither with its prefix.
    if _plain_uuid(reported) in map(_plain_uuid, filter(None, (leased, device.get("parent")))):
        return ""
    return f"the training reports device {reported!s:.60}, leased was {leased}"


def _plain_uuid(name: object) -> str:
    """Return a UUID without `GPU-` or `MIG-` before it, and instances of a MIG device after it."""
    return str(name).strip().lower().removeprefix("mig-").removeprefix("gpu-").partition("/")[0]


def _metrics(
    spec: RunSpec,
    score: Score,
    record: ExitRecord | None,
    failure: Failure | None,
    known: Mapping[str, float],
) -> Metrics:
    """Return what was printed, with what is `known` instead, the official value and the shim's own
    measurements."""
    metric = spec.task.objective.metric
    values: dict[str, Any] = {**(record.metrics if record else {}), **score.metrics, **known}
    values[f"printed_{metric}"] = values.get(metric)
    values[metric] = None if failure else score.value
    values["score_difference"] = score.evidence.get("score_difference")
    if record is not None:
        on_gpu = record.device.get("kind") == "cuda"
        measured = record.peak_vram_mb if on_gpu else record.peak_rss_mb
        values["measured_peak_mb"] = measured
        if finite(values.get("peak_vram_mb")) is None:
            values["peak_vram_mb"] = measured
        for name in ("peak_rss_mb", "cpu_seconds", "wall_seconds", "energy_joules"):
            values[name] = getattr(record, name)
    return Metrics.model_validate(values)


# ── runs that no process waits for ──────────────────────────────────────────────────────────


def end_overdue(run: RunPaths) -> bool:
    """Kill the shim of a run that is past all its limits, and record that; return whether it was.

    The kernel ends the training with it, and the collector what the training has started.
    """
    living = shim.living_shim(run)
    if living is None or time.monotonic() < living[0].began + living[1]:
        return False
    owner, limit = living
    why = "was stopped (state T)" if system.is_stopped(owner.pid) else "hung"
    system.signal_process(owner.pid, owner.start, signal.SIGKILL)
    until = time.monotonic() + KILLED_S
    while system.is_alive(owner.pid, owner.start):
        if time.monotonic() >= until:
            return False  # the kernel does not let it go, out of a write to a lost disk say
        system.wait_for_end(owner.pid, 0.1)
    if run.exit.exists():
        return True
    error = (
        f"its owner process {owner.pid} {why} and did not end the run"
        f" {limit:.0f} s after its begin, so it was killed"
    )
    document = {"status": "infra", "ended_at": shim.utc_now(), "error": error}
    with suppress(AutohypothesisError):  # on a full disk the run is one without a record
        write_json(run.exit, {"experiment_id": run.folder.name, **document})
    return True


def is_over(run: RunPaths) -> bool:
    """Return whether a run has ended: no shim lives, and no process is about to start one.

    A shim that is past all its limits is ended. Raises LaunchError if it is on another machine.
    """
    state = shim.status(run)
    if state != "absent":
        return state != "running" or end_overdue(run)
    if _starter_lives(run):
        return False
    # Its starter was killed; a shim that it may have begun finds the folder taken and goes.
    return shim.claim(run)


def _starter_lives(run: RunPaths) -> bool:
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        starter = read_object(run.local, LOCAL_LIMIT)["starter"]
        return system.is_alive(int(starter["pid"]), float(starter["start"]))
    return False


def is_readable(run: RunPaths) -> bool:
    """Return whether a result can be made of a run that has ended: else no waiting helps."""
    local = read_object(run.local, LOCAL_LIMIT)
    try:
        CheckoutBaseline.model_validate(local.get("before"))
    except ValueError:
        return False
    return bool(local.get("checkout")) and load_or_none(RunSpec, run.run_spec) is not None


def busy_workers(layout: Layout) -> set[str]:
    """Return the workers whose checkout is needed: by a run that lives, or to judge one.

    The evidence of an ended run lies in its checkout until it is collected. One that can never be
    collected, since its record is damaged, makes no worker wait.
    """
    busy = set()
    for run in map(layout.run, uncollected(layout)):
        spec = load_or_none(RunSpec, run.run_spec)
        if spec is not None and (_may_live(run) or is_readable(run)):
            busy.add(spec.worker_id)
    return busy


def unattended(layout: Layout) -> dict[str, bool]:
    """Return run -> whether it still runs, of those without a result whose starter is gone."""
    runs = {name: layout.run(name) for name in uncollected(layout)}
    return {
        name: _may_live(run)
        for name, run in runs.items()
        if is_readable(run) and not _starter_lives(run)
    }


def _may_live(run: RunPaths) -> bool:
    try:
        return shim.status(run) == "running"
    except LaunchError:
        return True  # on another machine


def collect_ended(
    repository: Repository, layout: Layout, experiment_ids: Iterable[str] | None = None
) -> list[str]:
    """Collect every experiment that ended while no process waited for it; return their ids.

    One that cannot be collected (its folder is damaged, or read-only) stays for the fold to name.

    Args:
        experiment_ids: those to look at; default: all.
    """
    collected = []
    for experiment_id in uncollected(layout) if experiment_ids is None else experiment_ids:
        with suppress(*RECOVERABLE_ERRORS):
            if is_over(layout.run(experiment_id)):
                collect(repository, layout, experiment_id)
                collected.append(experiment_id)
    return collected
