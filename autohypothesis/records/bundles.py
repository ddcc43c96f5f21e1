"""One experiment's bundle, `research/runs/<experiment_id>/`, and the record of decisions.

Reading never fails as a whole: a file that is damaged is named in `damage`, one that is absent is
None, and what older tools left (no metadata.json, numbers as text, `hyperparameters` in place of a
flat config) comes out in the shape of today. Writing is whole files, from models only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from autohypothesis.errors import RecordError
from autohypothesis.records import jsonl
from autohypothesis.records.files import JSON_LIMIT, read_with_status, write_json
from autohypothesis.records.ids import slug
from autohypothesis.records.layout import Layout, RunPaths
from autohypothesis.records.usual import Document, canonical, plain_object
from autohypothesis.schema import Decision, ExitRecord, Metadata, Result
from autohypothesis.system import boot_id, is_alive

Signature = tuple[int, int, int]
"""Inode, time of modification in nanoseconds, size: what changes when a file does."""
ABSENT: Signature = (0, 0, 0)

MODELS: tuple[tuple[str, type[BaseModel] | None], ...] = (
    ("config.json", None),
    ("metadata.json", Metadata),
    ("result.json", Result),
    ("exit.json", ExitRecord),
)
"""What a row is made from. shim.json counts while there is no result."""


class Damage(NamedTuple):
    """A file that could not be used. `reason` follows its name in a sentence."""

    path: str
    reason: str


class Bundle(NamedTuple):
    """What is known of one run, each document in the canonical shape of its model."""

    experiment_id: str
    folder: str
    config: Document
    """The hyper-parameters, flat, in lower case."""
    metadata: Document | None = None
    result: Document | None = None
    exit: Document | None = None
    shim_seen: bool = False
    shim_lives: bool = False
    """Whether the shim that wrote shim.json is still there; asked only while there is no result."""
    damage: tuple[Damage, ...] = ()
    signatures: tuple[int, ...] = ()

    @property
    def source_id(self) -> str:
        """The name of the folder, where it is not usable as an id."""
        name = os.path.basename(self.folder)
        return "" if name == self.experiment_id else name

    def as_metadata(self) -> Metadata | None:
        return Metadata.model_validate(self.metadata) if self.metadata else None

    def as_result(self) -> Result | None:
        return Result.model_validate(self.result) if self.result else None

    def as_exit(self) -> ExitRecord | None:
        return ExitRecord.model_validate(self.exit) if self.exit else None


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def read_bundle(run: RunPaths) -> Bundle:
    """The bundle in `run`'s folder, whatever state it is in."""
    return read_folder(str(run.folder))


def read_folder(folder: str) -> Bundle:
    """As `read_bundle`, of a folder whose name need not be an id."""
    damage: list[Damage] = []
    signatures: list[int] = []
    documents: list[Document | None] = []
    for name, model in MODELS:
        documents.append(read_document(f"{folder}/{name}", model, damage, signatures))
    config, metadata, result, exit_record = documents
    seen = lives = False
    if result is None:
        shim = read_document(f"{folder}/shim.json", None, damage, signatures)
        seen, lives = shim is not None, _lives(shim)
    else:
        signatures += ABSENT
    return Bundle(
        experiment_id=slug(os.path.basename(folder)),
        folder=folder,
        config=_flat(config, metadata, result),
        metadata=metadata,
        result=result,
        exit=exit_record,
        shim_seen=seen,
        shim_lives=lives,
        damage=tuple(damage),
        signatures=tuple(signatures),
    )


def read_document(
    path: str, model: type[BaseModel] | None, damage: list[Damage], signatures: list[int]
) -> Document | None:
    """The document at `path`, or None; adds to `damage` what is wrong with it."""
    content = read_content(path, JSON_LIMIT, damage, signatures)
    if content is None:
        return None
    try:
        return plain_object(content) if model is None else canonical(model, content)
    except ValueError as error:
        damage.append(Damage(path, str(error)))
        return None


def read_content(
    path: str, limit: int, damage: list[Damage], signatures: list[int]
) -> bytes | None:
    """What is in the file, or None; notes its signature, and adds what is wrong to `damage`."""
    try:
        content, status = read_with_status(path, limit)
    except FileNotFoundError:
        signatures += ABSENT
        return None
    except RecordError as error:
        damage.append(Damage(path, reason_in(error, path)))
        signatures += signature_of(path)
        return None
    signatures += (status.st_ino, status.st_mtime_ns, status.st_size)
    return content


def reason_in(error: RecordError, path: object) -> str:
    """What is wrong, without the path that the error names as well."""
    return error.problem.removeprefix(f"{path} ")


def signature_of(path: str) -> Signature:
    try:
        status = os.lstat(path)
    except OSError:
        return ABSENT
    return status.st_ino, status.st_mtime_ns, status.st_size


def _lives(shim: Document | None) -> bool:
    if not shim:
        return False
    pid, start = shim.get("pid"), shim.get("start")
    if not isinstance(pid, int) or not isinstance(start, (int, float)):
        return False
    return shim.get("boot") in (None, boot_id()) and is_alive(pid, start)


def _flat(config: Document | None, *elsewhere: Document | None) -> Document:
    """The hyper-parameters, from wherever the tool of that time put them."""
    for document in (config, *elsewhere):
        nested = document.get("hyperparameters") if document else None
        if isinstance(nested, dict):
            rest = config if config and document is config else {}
            flat = {**rest, **nested}
            return {key.lower(): flat[key] for key in flat if key != "hyperparameters"}
    return {key.lower(): value for key, value in config.items()} if config else {}


# ── writing ─────────────────────────────────────────────────────────────────────────────────


def write_config(run: RunPaths, config: Mapping[str, Any]) -> None:
    """The flat hyper-parameters; names are published in lower case."""
    write_json(run.config, {key.lower(): value for key, value in config.items()})


def write_metadata(run: RunPaths, metadata: Metadata) -> None:
    write_json(run.metadata, metadata)


def write_result(run: RunPaths, result: Result) -> None:
    write_json(run.result, result)


# ── decisions ───────────────────────────────────────────────────────────────────────────────


def append_decision(layout: Layout, decision: Decision) -> None:
    """Adds to decisions.jsonl, on the disk when this returns.

    Raises:
        RecordError: the disk is full, or decisions.jsonl is no file.
    """
    jsonl.append(layout.decisions, decision.model_dump(mode="json"), durable=True)


def read_decisions(layout: Layout) -> tuple[list[Decision], list[str]]:
    """Every decision in its order, and what was wrong with lines that hold none.

    Raises:
        RecordError: decisions.jsonl is no regular file, or far too large.
    """
    documents, problems = decision_documents(layout)
    return [Decision.model_validate(document) for document in documents], problems


def decision_documents(layout: Layout) -> tuple[list[Document], list[str]]:
    """As `read_decisions`, in canonical shape; a record that was written twice counts once."""
    try:
        content, _ = read_with_status(layout.decisions, jsonl.FILE_LIMIT)
    except FileNotFoundError:
        return [], []
    documents: list[Document] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            if len(line) > jsonl.LINE_LIMIT:
                raise ValueError(f"has {len(line):,} bytes, more than a record has")
            documents.append(canonical(Decision, line))
        except ValueError as error:
            problems.append(f"line {number} {error}")
    return once(documents), jsonl.at_most(problems)


def once(decisions: Sequence[Document]) -> list[Document]:
    """Without repetitions: a writer that was killed after its record writes it again."""
    seen: dict[tuple[str, str], Document] = {}
    for decision in decisions:
        seen.setdefault((decision["decision_id"], decision["experiment_id"]), decision)
    return list(seen.values())
