"""Snapshots: what a search knows, kept in git on a ref that no checkout shows.

`refs/autohypothesis/ledger/<tag>` grows by a commit whenever something changed. It holds bundles
(logs as their last 64 KB, no weights), plans, hypotheses, decisions, what people wrote and what a
hub was told, at the paths they have in the repository. Results so survive `git clean -xdf` and
travel with a push:
`git push REMOTE 'refs/autohypothesis/*' 'refs/experiments/*'`, which takes the reference along. A
snapshot never forgets: what has gone from the disk stays in it, hypotheses that moved excepted.

Files are read whole and never parsed, so a damaged one is kept as it is and stops nothing. What
was seen is remembered beside the repository's objects; without it everything is read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import BaseModel

from autohypothesis.engine.attestation import read_end, tail_limits
from autohypothesis.engine.reference import LEDGERS, REFSPECS, move_reference, read_reference
from autohypothesis.errors import FleetError, RecordError
from autohypothesis.fleet.hub_sync.outgoing import REFUSED, SENT
from autohypothesis.fleet.roster.moved import manifest_here
from autohypothesis.records import git_bundle
from autohypothesis.records.files import (
    JSON_LIMIT,
    FileStamp,
    file_stamp,
    load_or_none,
    opened,
    read_bytes,
    write_atomic,
    write_json,
)
from autohypothesis.records.git import Repository, blob_id
from autohypothesis.records.jsonl import FILE_LIMIT
from autohypothesis.records.layout import Layout, RunPaths, checked_id
from autohypothesis.records.locks import hold

LEDGER_LIMIT = 4 * 1024 * 1024
"""Bytes. A longer ledger can be folded from the rest, and goes in with the last snapshot only."""
BATCH_BYTES = 32 * 1024 * 1024
"""Maximum size of one commit: the first snapshot of a long search is several."""
PACK_EVERY = 100
"""Snapshots between two packings of what they left behind."""
_SETTLED_NS = 1_000_000_000
"""A file or folder that changed within the last second may change again unseen."""
_STATE_LIMIT = 256 * 1024 * 1024
_LOCK_S = 120.0


STATES = ("pending", "dispatched", "running", "done")


def ledger_ref(tag: str) -> str:
    return LEDGERS + checked_id(tag)


class _Memory(BaseModel):
    """File stamps at the last snapshot; kept beside the repository's objects."""

    commit: str | None = None
    count: int = 0
    """Snapshots since the last packing."""
    seen: dict[str, FileStamp] = {}


class KeptFile(NamedTuple):
    """A file to keep; of one longer than `tail` only its last bytes, from the start of a line."""

    path: str
    limit: int = JSON_LIMIT
    tail: bool = False


def snapshot(
    repository: Repository, layout: Layout, tag: str, *, everything: bool = False
) -> str | None:
    """Keep what changed since the last snapshot; return the new commit, None where nothing did.

    Args:
        everything: the ledger too, however long it is: for the end of a search.

    Raises:
        GitError: git refused, or another process moved the ref.
        LockError: another snapshot has run for two minutes.
    """
    with hold(layout, "snapshot", doing=f"a snapshot of {tag}", timeout=_LOCK_S):
        return _Snapshot(repository, layout, tag, everything).take()


class _Snapshot:
    """One snapshot, under the lock."""

    def __init__(self, repository: Repository, layout: Layout, tag: str, everything: bool) -> None:
        self.repository = repository
        self.layout = layout
        self.ref = ledger_ref(tag)
        self.everything = everything
        self.tip = repository.read_ref(self.ref)
        self.like = self.tip or repository.head()
        self.made: str | None = None
        self.memory = repository.common_dir / "autohypothesis" / f"snapshot-{checked_id(tag)}.json"
        before = load_or_none(_Memory, self.memory, _STATE_LIMIT) or _Memory()
        self.before = before if self.tip and before.commit == self.tip else _Memory()
        self.seen: dict[str, FileStamp] = {}
        self.queue = _queue(layout)
        self.queue_moved = False

    def take(self) -> str | None:
        batch: dict[str, bytes] = {}
        size = 0
        for path, content in self._changed():
            batch[path] = content
            size += len(content)
            if size > BATCH_BYTES:
                self._commit(batch)
                batch, size = {}, 0
        self._commit(batch, gone=self._left_places() if self.queue_moved else [])
        if self.made or self.seen != self.before.seen:
            self._remember()
        return self.made

    def _commit(self, batch: dict[str, bytes], gone: list[str] | None = None) -> None:
        there = git_bundle.listing(self.repository, self.tip, list(batch)) if self.tip else {}
        files = {
            path: content
            for path, content in batch.items()
            if there.get(path) != blob_id(content, self.like)
        }
        if not files and not gone:
            return
        message = f"{len(files)} files of the search as they are now\n"
        self.tip = self.made = git_bundle.keep(
            self.repository, self.ref, self.tip, files, gone=gone or (), message=message
        )

    def _remember(self) -> None:
        """Write what was seen. A snapshot that is killed before this is made again."""
        count = self.before.count + (self.made is not None)
        if count >= PACK_EVERY:
            self.repository.pack()
            count = 0
        memory = _Memory(commit=self.tip, count=count, seen=self.seen)
        write_json(self.memory, memory, durable=False)

    def _changed(self) -> Iterator[tuple[str, bytes]]:
        """Yield path from the root, and content, of what is not known to be as it was."""
        decisions = self._short(str(self.layout.decisions))
        for source in self._sources():
            name = self._short(source.path)
            if self._as_before(name, source.path):
                continue
            content = self._read(name, source)
            self.queue_moved |= name.startswith(self.queue)
            if content is not None and name == decisions:
                content = joined(self._kept(name), content[: content.rfind(b"\n") + 1])
            if content is not None:
                yield name, content
        for folder in _files(self.layout.runs, folders=True):
            if not self._as_before(self._short(folder), folder):
                yield from self._run(folder)

    def _as_before(self, name: str, path: str) -> bool:
        known = self.before.seen.get(name)
        if known is None or known != file_stamp(path):
            return False
        self.seen[name] = known
        return True

    def _run(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """Yield the files of a bundle; one without a result still grows: its config alone."""
        run, before = RunPaths(Path(folder)), file_stamp(folder)
        whole = run.result.exists()
        for source in _of_run(run) if whole else (KeptFile(str(run.config)),):
            name = self._short(source.path)
            content = self._read(name, source, remember=False)
            if content is not None:
                yield name, content
        if whole:
            self._note(self._short(folder), before)

    def _read(self, name: str, source: KeptFile, *, remember: bool = True) -> bytes | None:
        """Return the file's content; None where there is none that can be kept."""
        with suppress(FileNotFoundError, RecordError, OSError):
            with opened(source.path) as (descriptor, status):
                if status.st_size > source.limit and not source.tail:
                    return None
                content = read_end(descriptor, status.st_size, source.limit)
            if remember:
                self._note(name, FileStamp.of(status))
            return content
        return None

    def _note(self, name: str, signature: FileStamp | None) -> None:
        if signature is not None and time.time_ns() - signature.mtime_ns > _SETTLED_NS:
            self.seen[name] = signature

    def _kept(self, name: str) -> bytes:
        """Return a file as the last snapshot has it."""
        there = git_bundle.listing(self.repository, self.tip, [name]) if self.tip else {}
        return next(git_bundle.blobs(self.repository, [*there.values()]), b"")

    def _left_places(self) -> list[str]:
        """Return the paths in the last snapshot of hypotheses that are in another state by now."""
        if self.tip is None:
            return []
        now = {self._short(path) for path in _hypotheses(self.layout)}
        names = {os.path.basename(path) for path in now}
        there = git_bundle.listing(self.repository, self.tip, [self.queue])
        return [path for path in there if path not in now and os.path.basename(path) in names]

    def _short(self, path: str) -> str:
        return path.removeprefix(f"{self.layout.root}/")

    def _sources(self) -> Iterator[KeptFile]:
        layout = self.layout
        yield KeptFile(str(layout.decisions), FILE_LIMIT)
        registry = (layout.registry, layout.written_copy(layout.registry))
        pages = (layout.manifest, layout.brief, layout.knowledge_base, layout.search_model)
        for path in (*pages, layout.steering, *registry):
            yield KeptFile(str(path))
        folders = (layout.published_tools, layout.plans)
        outbox = (layout.outbox_state(state) for state in (SENT, REFUSED))  # not reported again
        for name in _hypotheses(layout):
            yield KeptFile(name)
        for folder in (*folders, *outbox):
            yield from map(KeptFile, _files(folder))
        yield KeptFile(str(layout.results_tsv), FILE_LIMIT)
        yield KeptFile(str(layout.ledger), FILE_LIMIT if self.everything else LEDGER_LIMIT)


def _of_run(run: RunPaths) -> Iterator[KeptFile]:
    signed = (run.config, run.metadata, run.exit, run.diff, run.run_spec, run.attestation)
    for path in (*signed, run.result):
        yield KeptFile(str(path))
    for path, limit in tail_limits(run).items():
        yield KeptFile(str(path), limit, tail=True)


def joined(older: bytes, newer: bytes) -> bytes:
    """Return `older`, and behind it those lines of `newer` that it has not."""
    if newer.startswith(older):
        return newer
    there = set(older.split(b"\n"))
    since = (line for line in newer.split(b"\n") if line and line not in there)
    return older + b"".join(line + b"\n" for line in since)


def _queue(layout: Layout) -> str:
    return f"{layout.hypotheses('done').parent.relative_to(layout.root)}/"


def _files(folder: Path | str, *, folders: bool = False) -> list[str]:
    """Return the files of a folder, or the folders in it; half-written files begin with a dot."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if entry.is_dir(follow_symlinks=False) is folders
            and not entry.name.startswith(".")
            and "\n" not in entry.name
        )
    return []


def _hypotheses(layout: Layout) -> list[str]:
    given = (layout.hypotheses(state) for state in ("dispatched", "running"))
    workers = (worker for folder in given for worker in _files(folder, folders=True))
    folders = (str(layout.hypotheses("pending")), str(layout.hypotheses("done")), *workers)
    return [path for folder in folders for path in _files(folder)]


MAKE = "python orchestrator.py sync --snapshot"
FETCH = f"git fetch REMOTE {REFSPECS}"


class Restored(NamedTuple):
    """Result of a restore."""

    tag: str
    commit: str
    files: int
    decisions: int
    """Lines that decisions.jsonl lacked."""


def newest_snapshot_tag(repository: Repository) -> str:
    """Return the tag whose snapshot was made last.

    Raises:
        FleetError: there is none.
    """
    refs = git_bundle.kept_refs(repository, LEDGERS)
    if not refs:
        raise FleetError(
            f"{repository.root} has no snapshot of any search",
            hint=f"where it is: {MAKE}; then here: {FETCH}",
        )
    return refs[0].removeprefix(LEDGERS)


def restore(repository: Repository, layout: Layout, tag: str) -> Restored:
    """Put back what the snapshot of `tag` has and `research/` has not. `sync` afterwards.

    Raises:
        FleetError: there is no snapshot of this tag.
        LockError: a process that decides or moves the queue does not end.
        RecordError: the disk is full, or something else lies where a file belongs.
    """
    commit = repository.read_ref(ledger_ref(tag))
    if commit is None:
        raise FleetError(
            f"{repository.root} has no snapshot of the search {tag!r}",
            hint=f"see `git for-each-ref {LEDGERS}`; or where it is: {MAKE}; then here: {FETCH}",
        )
    repository.exclude(layout.git_exclude_patterns)
    research = str(layout.research.relative_to(layout.root))
    there = git_bundle.listing(repository, commit, [f"{research}/"])
    decisions = str(layout.decisions.relative_to(layout.root))
    lines = _join_decisions(repository, layout, there.pop(decisions, None))
    moving = {path: blob for path, blob in there.items() if path.startswith(_queue(layout))}
    rest = {path: blob for path, blob in there.items() if path not in moving}
    with hold(layout, "queue", doing=f"restoring {tag}"):
        files = _put(repository, layout, _not_queued(layout, moving))
    files += _put(repository, layout, rest)
    if left := read_reference(repository, layout, tag):
        move_reference(repository, tag, left, None)
    return Restored(tag, commit, files, lines)


def _not_queued(layout: Layout, kept: Mapping[str, str]) -> dict[str, str]:
    """Return the hypotheses that are in no state here; of one kept in two, the later state's."""
    here = {name for _, _, names in os.walk(layout.root / _queue(layout)) for name in names}
    chosen = {
        os.path.basename(path): path
        for state in STATES
        for path in kept
        if path.startswith(f"{_queue(layout)}{state}/")
    }
    return {path: kept[path] for name, path in chosen.items() if name not in here}


def _put(repository: Repository, layout: Layout, kept: Mapping[str, str]) -> int:
    """Write what is absent; return how many files that were."""
    absent = {path: blob for path, blob in kept.items() if _may_be_put(layout, path)}
    for path, content in zip(absent, git_bundle.blobs(repository, [*absent.values()]), strict=True):
        target = layout.root / path
        if target == layout.manifest:
            content = manifest_here(layout, content)
        write_atomic(target, content, durable=False)
    return len(absent)


def _may_be_put(layout: Layout, path: str) -> bool:
    """Return whether nothing is there; a snapshot that was fetched may hold any path at all."""
    return ".." not in PurePosixPath(path).parts and not os.path.lexists(layout.root / path)


def _join_decisions(repository: Repository, layout: Layout, blob: str | None) -> int:
    """Put the lines of the snapshot before those of decisions.jsonl; return how many it lacked."""
    kept = next(git_bundle.blobs(repository, [blob] if blob else []), b"")
    with hold(layout, "settle", doing="restoring decisions"):
        try:
            here = read_bytes(layout.decisions, FILE_LIMIT)
        except FileNotFoundError:
            here = b""
        lost = set(kept.splitlines()) - set(here.splitlines())
        if lost:
            write_atomic(layout.decisions, joined(kept, here))
        return len(lost)
