"""Bringing a search back from its snapshot; nothing that is there is overwritten.

Every file is put where it is absent. Decisions are joined: those of the snapshot first, for their
order says what was best when; then those that were taken since. A hypothesis that is in any state
stays there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from autohypothesis.engine.project import reference_ref
from autohypothesis.errors import FleetError
from autohypothesis.fleet.supervisor.snapshot import LEDGERS, ledger_ref
from autohypothesis.records import git_keep
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.files import parse_json, read_bytes, to_json, write_atomic
from autohypothesis.records.git import Repository
from autohypothesis.records.jsonl import FILE_LIMIT
from autohypothesis.records.layout import Layout
from autohypothesis.records.locks import hold

FETCH = (
    "git fetch REMOTE 'refs/autohypothesis/*:refs/autohypothesis/*'"
    " 'refs/experiments/*:refs/experiments/*'"
)


class Restored(NamedTuple):
    """What came back."""

    tag: str
    commit: str
    files: int
    decisions: int
    """Lines that decisions.jsonl had not."""


def newest_tag(repository: Repository) -> str:
    """The tag whose snapshot was made last.

    Raises:
        FleetError: there is none.
    """
    refs = git_keep.kept_refs(repository, LEDGERS)
    if not refs:
        raise FleetError(
            f"{repository.root} has no snapshot of any search",
            hint=f"from where there is one: {FETCH}",
        )
    return refs[0].removeprefix(LEDGERS)


def restore(repository: Repository, layout: Layout, tag: str) -> Restored:
    """Put back what the snapshot of `tag` has and `research/` has not. `sync` afterwards.

    Raises:
        FleetError: there is no snapshot of this tag.
        LockError: decisions are taken or the queue is moved by somebody who does not end.
        RecordError: the disk is full, or something else lies where a file belongs.
    """
    commit = repository.read_ref(ledger_ref(tag))
    if commit is None:
        raise FleetError(
            f"{repository.root} has no snapshot of the search {tag!r}",
            hint=f"see `git for-each-ref {LEDGERS}`, or fetch it: {FETCH}",
        )
    repository.exclude(layout.made_on_use)
    research = str(layout.research.relative_to(layout.root))
    there = git_keep.listing(repository, commit, [f"{research}/"])
    decisions = str(layout.decisions.relative_to(layout.root))
    lines = _join_decisions(repository, layout, there.pop(decisions, None))
    queue = str(layout.hypotheses("done").parent.relative_to(layout.root)) + "/"
    moving = {path: blob for path, blob in there.items() if path.startswith(queue)}
    rest = {path: blob for path, blob in there.items() if path not in moving}
    with hold(layout, "queue", doing=f"restoring {tag}"):
        files = _put(repository, layout, _not_queued(layout, moving))
    files += _put(repository, layout, rest)
    _restore_reference(repository, layout, tag)
    return Restored(tag, commit, files, lines)


def _not_queued(layout: Layout, kept: Mapping[str, str]) -> dict[str, str]:
    """Hypotheses that are in no state here; of one that is kept in two, the later state's."""
    root = layout.hypotheses("done").parent
    here = {name for _, _, names in os.walk(root) for name in names}
    later = ("pending", "dispatched", "running", "done")
    chosen: dict[str, str] = {}
    for path in sorted(kept, key=lambda path: later.index(_state(path, later))):
        if os.path.basename(path) not in here:
            chosen[os.path.basename(path)] = path
    return {path: kept[path] for path in chosen.values()}


def _state(path: str, states: tuple[str, ...]) -> str:
    return next((part for part in PurePosixPath(path).parts if part in states), states[0])


def _put(repository: Repository, layout: Layout, kept: Mapping[str, str]) -> int:
    """Writes what is absent; how many files that were."""
    absent = {path: blob for path, blob in kept.items() if _may_be_put(layout, path)}
    for path, content in zip(absent, git_keep.contents(repository, absent.values()), strict=True):
        place = layout.root / path
        write_atomic(place, _at_home(layout, place, content), durable=False)
    return len(absent)


def _may_be_put(layout: Layout, path: str) -> bool:
    """Whether nothing is there. A snapshot that was fetched may hold any path at all."""
    return ".." not in PurePosixPath(path).parts and not os.path.lexists(layout.root / path)


def _at_home(layout: Layout, place: Path, content: bytes) -> bytes:
    """The manifest with the paths of this repository: it may have been made in another place."""
    if place != layout.manifest:
        return content
    try:
        manifest = parse_json(content)
    except ValueError:
        return content
    root = str(manifest.get("repository_root") or "") if isinstance(manifest, dict) else ""
    if not root or root == str(layout.root):
        return content
    return to_json(_moved(manifest, root, str(layout.root)), indent=2).encode()


def _moved(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def _join_decisions(repository: Repository, layout: Layout, blob: str | None) -> int:
    """decisions.jsonl with the lines of the snapshot in front; how many it had not."""
    kept = next(git_keep.contents(repository, [blob] if blob else []), b"")
    with hold(layout, "settle", doing="restoring decisions"):
        try:
            here = read_bytes(layout.decisions, FILE_LIMIT)
        except FileNotFoundError:
            here = b""
        there = _lines(kept)
        lost = there - _lines(here)
        if not lost:
            return 0
        since = [line for line in here.split(b"\n") if line and line not in there]
        write_atomic(layout.decisions, kept + b"".join(line + b"\n" for line in since))
        return len(lost)


def _restore_reference(repository: Repository, layout: Layout, tag: str) -> None:
    """The commit that the last decision left as the reference, where the branch is missing."""
    if repository.read_ref(reference_ref(tag)) is not None:
        return
    decisions, _ = read_decisions(layout)
    left = [one.reference_after for one in decisions if one.tag == tag and one.reference_after]
    if left and (commit := repository.read_ref(f"{left[-1]}^{{commit}}")):
        repository.compare_and_swap(reference_ref(tag), commit, None)


def _lines(content: bytes) -> set[bytes]:
    return {line for line in content.split(b"\n") if line}
