"""`research/inbox/*.json`: the safe way in for people and programs that write files.

A file holds one proposal or a list of them. It is taken by rename; then an id is reserved for each
proposal and written down beside it, then they are added, then it is removed. So a kill at any
instant loses none and doubles none: the next look goes on where this one stopped. What cannot be
taken, an idea or a field of one, goes to `refused/`, with the reason in `<name>.reason`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autohypothesis.errors import QueueError, RecordError, faults_in
from autohypothesis.fleet.queue.states import Queue
from autohypothesis.records.bundles import reason_in
from autohypothesis.records.files import (
    JSON_LIMIT,
    load,
    read_json,
    remove_stale_temporaries,
    write_atomic,
    write_json,
)
from autohypothesis.records.locks import hold
from autohypothesis.schema import Hypothesis, Proposal
from autohypothesis.system import rename_exclusive

WRITING_S = 2.0
"""A file that is no JSON and changed more recently may still be being written."""
DROPPED = ("hypothesis_id", "tag", "status", "created_at")
"""Keys that other tools' hypotheses have, and that are given anew here."""
_NAME_BYTES = 180
_TAKEN, _IDS = ".taken", ".ids"


def take_inbox(queue: Queue) -> list[Hypothesis]:
    """Queue everything in the inbox that can be taken; return it.

    Raises:
        LockError: another process takes it.
        RecordError: the disk is full; nothing is lost.
    """
    inbox = queue.layout.inbox
    if not _names(inbox):
        return []
    with hold(queue.layout, "inbox", doing="taking the inbox"):
        return _Inbox(queue).take()


def _names(inbox: Path) -> list[str]:
    """Return new files, and those that a killed look has taken already."""
    try:
        names = sorted(os.listdir(inbox))
    except OSError:
        return []
    return [
        name
        for name in names
        if (name.endswith(".json") and not name.startswith("."))
        or (name.startswith(".") and name.endswith((_TAKEN, _IDS, ".tmp")))
    ]


class _ReservedIds(BaseModel):
    """Ids reserved for the proposals of one inbox file."""

    file: str
    claims: dict[str, Proposal] = {}
    refused: list[tuple[Any, str]] = []
    """Entries that are no proposal, and fields that a proposal lost, each with the reason."""


class _Inbox:
    """One look, under the lock."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.folder = queue.layout.inbox
        self.added: list[Hypothesis] = []
        self._sources: dict[str, str] | None = None

    def take(self) -> list[Hypothesis]:
        remove_stale_temporaries(self.folder)
        for name in _names(self.folder):
            path = self.folder / name
            if name.endswith(".json") and self._read(path, name) is not None:
                taken = f".{_short(name)}.{os.urandom(4).hex()}{_TAKEN}"
                with suppress(OSError):  # it was taken back meanwhile, or cannot be moved
                    rename_exclusive(path, self.folder / taken)
        for suffix, go_on in ((_IDS, self._add), (_TAKEN, self._reserve)):
            for name in _names(self.folder):
                if name.endswith(suffix):
                    go_on(self.folder / name)
        return self.added

    def _read(self, path: Path, name: str) -> list[Any] | None:
        """Return the proposals in a file, not validated; None if it is being written or refused."""
        try:
            value = read_json(path, exact=True)
        except FileNotFoundError:
            return None
        except RecordError as error:
            if not _just_written(path):
                self._refuse(name, reason_in(error, path), path=path)
            return None
        if isinstance(value, dict):
            return [value]
        if isinstance(value, list) and value:
            return value
        self._refuse(name, "holds no hypothesis, and no list of them", path=path)
        return None

    def _reserve(self, taken: Path) -> None:
        """Write down which proposal gets which id, and why others get none."""
        name = taken.name[1:].removesuffix(_TAKEN).rpartition(".")[0]
        ideas = self._read(taken, name)
        if ideas is None:
            return
        reserved = _ReservedIds(file=name)
        for idea in ideas:
            try:
                proposal = self._proposal(idea)
            except ValueError as error:
                reserved.refused.append((idea, str(error)))
                continue
            identifier = self.queue.reserve()
            reserved.claims[identifier] = proposal
            if left_out := proposal.left_out:
                lost = {name: idea[name] for name in idea if name in left_out}
                reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
                without = f"is queued as {identifier}, without what is wrong ({reasons})"
                reserved.refused.append((lost or idea, without))
            self._known().setdefault(proposal.source_id, identifier)
        ids = taken.with_suffix(_IDS)
        write_json(ids, reserved)
        taken.unlink(missing_ok=True)
        self._add(ids)

    def _add(self, ids: Path) -> None:
        """Add what is not in the queue yet, set aside what was refused, and forget both."""
        ids.with_suffix(_TAKEN).unlink(missing_ok=True)
        try:
            reserved = load(_ReservedIds, ids, 8 * JSON_LIMIT)
        except RecordError as error:
            why = f"was damaged after it was taken: {error}"
            self._refuse(ids.name.lstrip("."), why, path=ids)
            return
        for identifier, proposal in reserved.claims.items():
            with suppress(QueueError):  # it was added before the kill
                self.added.append(
                    self.queue.add(proposal, proposer="inbox", hypothesis_id=identifier)
                )
        if reserved.refused:
            ideas, reasons = zip(*reserved.refused, strict=True)
            self._refuse(reserved.file, *reasons, ideas=ideas)
        ids.unlink(missing_ok=True)

    def _proposal(self, idea: object) -> Proposal:
        """Return the proposal; raise ValueError with the reason where it cannot be taken."""
        if not isinstance(idea, dict):
            raise ValueError(f"is {type(idea).__name__}, no hypothesis")
        try:
            proposal = Proposal.read(_without_foreign_keys(idea))
        except ValidationError as error:
            raise ValueError(faults_in(error)) from error
        first = self._known().get(proposal.source_id) if proposal.source_id else None
        if first is not None:
            raise ValueError(f"{proposal.source_id!r} is in the queue already, as {first}")
        return proposal

    def _known(self) -> dict[str, str]:
        if self._sources is None:
            queue = self.queue
            names = (*(hypothesis.hypothesis_id for hypothesis in queue.open()), *queue.done_ids())
            self._sources = {**{name: name for name in names}, **queue.sources()}
        return self._sources

    def _refuse(
        self, name: str, *reasons: str, path: Path | None = None, ideas: Sequence[object] = ()
    ) -> None:
        """Move the file `path`, or write `ideas`, to refused/, under a name that is free."""
        folder = self.queue.layout.inbox_refused
        folder.mkdir(parents=True, exist_ok=True)
        stem, number = _short(name.removesuffix(".json")), 1
        target = folder / f"{stem}.json"
        while os.path.lexists(target):
            number += 1
            target = folder / f"{stem}-{number}.json"
        if path is None:
            write_json(target, ideas if len(ideas) > 1 else ideas[0])
        else:
            try:
                os.rename(path, target)  # a folder has no second link; the lock keeps the name free
            except OSError:
                return
        write_atomic(target.with_name(f"{target.name}.reason"), "\n".join(reasons) + "\n")


def _without_foreign_keys(idea: Mapping[str, Any]) -> dict[str, Any]:
    """Return a hypothesis of another tool as a proposal; its id is kept as `source_id`."""
    kept = {key: value for key, value in idea.items() if key not in DROPPED}
    foreign = idea.get("hypothesis_id")
    if foreign not in (None, "") and not kept.get("source_id"):
        kept["source_id"] = str(foreign)
    return kept


def _just_written(path: Path) -> bool:
    try:
        return abs(time.time() - os.lstat(path).st_mtime) < WRITING_S
    except OSError:
        return False


def _short(name: str) -> str:
    """Return a name with room for what is put around it: it has 255 bytes at most."""
    return os.fsencode(name)[:_NAME_BYTES].decode("utf-8", "ignore")
