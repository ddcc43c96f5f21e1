"""`attestation.json`: what the collector of a run found, signed with the fleet's key.

It is an in-toto statement in a DSSE envelope. Its subject are the files of the bundle by SHA-256.
`result.json` is not among them, since a decision is stamped into it later: what the collector wrote
there is in the predicate. A predicate holds what the record has; nothing is invented for it.

Files are compared by inode, size and times with what was signed, and hashed where these differ; the
files of a bundle that was copied are hashed. Who can set the clock of the machine can set these.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from autohypothesis.engine.experiment import RunSpec
from autohypothesis.engine.task import canonical_hash
from autohypothesis.errors import RecordError, SignatureError
from autohypothesis.records.chain import last_link
from autohypothesis.records.files import (
    JSON_LIMIT,
    load_or_none,
    opened,
    read_bytes,
    read_object,
    write_atomic,
)
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.signing import Keys, open_envelope, own_signer, sealed_envelope
from autohypothesis.schema import Metadata, Result, now

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:autohypothesis:experiment:1"
_OF_DECISION = {
    "decision_status", "decision_id", "confirmation", "outcome", "analysis", "log_tail",
}  # fmt: skip
"""Fields of a result that a decision changes, or that repeat a file."""
_PIECE = 1 << 20
LOG_TAIL = 64 * 1024
EVENTS_TAIL = 1024 * 1024
SMALL = 1 << 20
"""Bytes of a file that is hashed again whatever its times say, where a whole check is asked for."""


class Attestation(NamedTuple):
    """An attestation whose signature fits."""

    hash: str
    """SHA-256 of the file."""
    digests: Mapping[str, str]
    """File of the bundle -> SHA-256."""
    predicate: Mapping[str, Any]

    @property
    def result(self) -> Result:
        """What the collector said."""
        return Result.model_validate(self.predicate.get("result") or {})

    @property
    def stamps(self) -> Mapping[str, list[int]]:
        return self.predicate.get("stamps") or {}


def attest(
    repository: Repository,
    layout: Layout,
    run: RunPaths,
    result: Result,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Write the attestation of a run that is being collected; nothing without a key.

    It comes before result.json, so that no result is ever there that nobody vouches for. It names
    the last decision there was, so that none before it can be taken away, and so that it fits no
    other repository.

    Args:
        before: the state of the checkout and the environment before the run, as local.json has it.

    Raises:
        RecordError: the disk is full.
    """
    signer = own_signer()
    if signer is None:
        return
    files = {path.name: _measured(path) for path in _subjects(run)}
    subject = [{"name": name, "digest": {"sha256": hashed}} for name, (hashed, _) in files.items()]
    predicate = {
        **_predicate(repository, run, before or {}),
        "journal": last_link(layout).hash,
        "result": collected_fields(result),
        "stamps": {name: stamp for name, (_, stamp) in files.items()},
        "tails": _tails(run),
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    # Not flushed by itself, which would cost more than all the rest: a power cut within seconds may
    # leave a run that a person has to look at.
    content = sealed_envelope(signer, PAYLOAD_TYPE, statement)
    write_atomic(run.attestation, content, durable=False)


def _subjects(run: RunPaths) -> Iterator[Path]:
    """Yield the files of a bundle that nothing writes to once it was collected."""
    of_here = {run.local, run.launch, run.shim, run.shim_log}  # no use to any other machine
    changing = {path.name for path in (*of_here, run.result, run.attestation)}
    for entry in sorted(os.scandir(run.folder), key=lambda entry: entry.name):
        is_file = entry.is_file(follow_symlinks=False) and entry.name[0] != "."
        if is_file and entry.name not in changing:
            yield Path(entry.path)


def _measured(path: Path) -> tuple[str, list[int]]:
    """Return the SHA-256 of a file, and its inode, size and times."""
    digest = hashlib.sha256()
    with opened(path) as (descriptor, status):
        while piece := os.read(descriptor, _PIECE):
            digest.update(piece)
    return digest.hexdigest(), _stamp(status)


def tail_limits(run: RunPaths) -> dict[Path, int]:
    """Return the files of which a snapshot keeps the end only -> bytes of that."""
    logs = dict.fromkeys((run.log, run.score_log), LOG_TAIL)
    return {**dict.fromkeys((run.events, run.clock), EVENTS_TAIL), **logs}


def read_end(descriptor: int, size: int, limit: int) -> bytes:
    """Return a file of `size` bytes; of one longer than `limit` the last of it, in whole lines."""
    start = max(0, size - limit)
    content = os.pread(descriptor, size - start, start)
    return content[content.find(b"\n") + 1 :] if start else content


def _tails(run: RunPaths) -> dict[str, str]:
    """Return the SHA-256 of what a snapshot keeps of each long file."""
    ends = {}
    for path, limit in tail_limits(run).items():
        with suppress(FileNotFoundError), opened(path) as (descriptor, status):
            if status.st_size > limit:
                end = read_end(descriptor, status.st_size, limit)
                ends[path.name] = hashlib.sha256(end).hexdigest()
    return ends


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _predicate(
    repository: Repository, run: RunPaths, before: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what the record knows of a run; what it does not know is absent."""
    # A run without a sandbox may have damaged what was written before it.
    metadata = load_or_none(Metadata, run.metadata) or Metadata(recorded_at=now())
    record = read_object(run.exit)
    spec = load_or_none(RunSpec, run.run_spec)
    identity, runtime = metadata.run, metadata.runtime
    score = record.get("score") or {}
    values = {
        "experiment_id": run.folder.name,
        "tag": identity.tag,
        "seed": identity.seed,
        "replicates": identity.replicates,
        "commit": runtime.commit,
        "parent_commit": runtime.parent_commit,
        "artifacts_hash": runtime.tree_hash,
        "diff_hash": runtime.diff_hash,
        "platform_key": runtime.platform_key,
        "profile": runtime.profile,
        "data_hash": runtime.data_hash,
        "task_hash": runtime.task_hash,
        **(_of_task(repository, spec) if spec else {"recorded_by_hand": True}),
        "distributions_hash": _distributions(before),
        "torch": runtime.torch_version,
        "device": record.get("device"),
        "budget_seconds": runtime.budget_seconds,
        "clock": runtime.clock,
        "started_at": record.get("started_at"),
        "ended_at": record.get("ended_at"),
        "scoring_seconds": score.get("seconds"),
        "sandbox": runtime.sandbox,
        "isolation": runtime.isolation,
    }
    return {name: value for name, value in values.items() if value not in (None, "", {}, [])}


def _of_task(repository: Repository, spec: RunSpec) -> Mapping[str, Any]:
    """Return the hashes of what makes the run comparable, as git names them."""
    task, entries = spec.task, repository.entries(spec.commit)
    blobs = {path: entry.blob for path, entry in entries.items() if task.is_protected(path)}
    return {
        "task": task.id,
        "scorer": task.scorer.type,
        "evaluator": blobs.get(task.scorer.evaluator or ""),
        "protected": blobs if task.protected is not None else {},
        "protected_hash": canonical_hash(blobs),
    }


def _distributions(before: Mapping[str, Any]) -> str:
    """Return the hash of the names and versions of what was installed."""
    installed = before.get("distributions") or {}
    return canonical_hash(sorted(map(os.path.basename, installed))) if installed else ""


def collected_fields(result: Result) -> dict[str, Any]:
    """Return what the collector says in result.json, as it is signed."""
    return result.model_dump(mode="json", exclude=_OF_DECISION)


# ── checking ────────────────────────────────────────────────────────────────────────────────


def read_attestation(run: RunPaths, keys: Keys) -> Attestation:
    """Return the attestation of a bundle.

    Raises:
        FileNotFoundError: it has none.
        SignatureError: it is damaged, edited, signed by a key that is not trusted, or of another
            run; in words that follow its name.
    """
    try:
        content = read_bytes(run.attestation, JSON_LIMIT)
    except RecordError as error:
        raise SignatureError(error.problem.removeprefix(f"{run.attestation} ")) from None
    statement = open_envelope(content, PAYLOAD_TYPE, keys)
    try:
        if statement["predicateType"] != PREDICATE_TYPE:
            raise ValueError
        digests = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        predicate = statement["predicate"]
        name = predicate["experiment_id"]
    except (TypeError, KeyError, ValueError):
        raise SignatureError("is no statement of this version about a run") from None
    if name != run.folder.name:
        raise SignatureError(f"is of experiment {name}: it was copied from that run")
    return Attestation(hashlib.sha256(content).hexdigest(), digests, predicate)


def hash_of(run: RunPaths) -> str:
    """Return the SHA-256 of a bundle's attestation; empty where there is none."""
    try:
        return hashlib.sha256(read_bytes(run.attestation, JSON_LIMIT)).hexdigest()
    except (FileNotFoundError, RecordError):
        return ""


def is_where_it_was(run: RunPaths, attestation: Attestation) -> bool:
    """Return whether the bundle lies where it was signed: no copy, and not brought back by git."""
    try:
        stamp = _stamp(os.lstat(run.metadata))
    except FileNotFoundError:
        return True
    return stamp == attestation.stamps.get(run.metadata.name)


def changed_files(
    run: RunPaths, attestation: Attestation, *, whole: bool
) -> Iterator[tuple[str, str]]:
    """Yield [file, reason] of each that is not as it was signed.

    Weights may be gone: only those of keeps are needed.

    Args:
        whole: hash small files whatever their times say.
    """
    for name, signed in attestation.digests.items():
        path = run.folder / os.path.basename(name)
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                yield name, "is no file any more"
                continue
            same = _stamp(status) == attestation.stamps.get(name)
            if same and not (whole and status.st_size <= SMALL):
                continue
            found, _ = _measured(path)
        except FileNotFoundError:
            if path != run.weights:
                yield name, f"is gone; its attestation has SHA-256 {signed[:12]}"
            continue
        except RecordError as error:
            yield name, error.problem.removeprefix(f"{path} ")
            continue
        tail = (attestation.predicate.get("tails") or {}).get(name)
        if found != signed and (found != tail or is_where_it_was(run, attestation)):
            yield name, f"has SHA-256 {found[:12]}, its attestation {signed[:12]}: replaced"
