"""A person's edits as a change: what is in the checkout, against the reference of the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autohypothesis.engine.change import Change
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError
from autohypothesis.records.git import Repository


def working_tree(repository: Repository, task: Task, reference: str, checkout: Path) -> Change:
    """The artifacts as they are in `checkout`, on `reference`; no change when they are equal.

    Nobody's index or working tree is touched. Files that are neither artifacts nor protected (a
    README, say) are left as the reference has them.

    Raises:
        ChangeError: a protected file differs, an artifact is gone, or the checkout lacks what was
            kept since it was made, so that running it would silently undo that.
    """
    present = [path for path in task.artifacts if (checkout / path).is_file()]
    tree = repository.snapshot_tree(also=present, worktree=checkout)
    seen, kept = repository.entries(tree), repository.entries(reference)
    _refuse_protected(
        task, [path for path in {*seen, *kept} if seen.get(path) != kept.get(path)], reference
    )
    gone = [path for path in task.artifacts_in(kept) if path not in seen]
    if gone:
        raise ChangeError(f"{', '.join(gone)} is gone", hint=f"git checkout -- {gone[0]}")
    files = {
        path: repository.show_file(tree, path)
        for path in task.artifacts_in(seen)
        if seen[path] != kept.get(path)
    }
    if not files:
        return Change.none()
    _refuse_undoing(repository, reference, checkout, files)
    return Change.from_tree(repository.tree_with(reference, files))


def _refuse_protected(task: Task, paths: list[str], reference: str) -> None:
    protected = sorted(path for path in paths if task.is_protected(path))
    if protected:
        raise ChangeError(
            f"{', '.join(protected[:8])} may not differ from the reference {reference[:7]}",
            hint="undo that, or commit it and begin another search: --tag NAME",
        )


def _refuse_undoing(
    repository: Repository, reference: str, checkout: Path, files: Mapping[str, bytes]
) -> None:
    """Refuse a checkout that is older than the reference and does not hold what was kept since."""
    head = repository.head_of(checkout)
    if head == reference or not repository.is_ancestor(head, reference):
        return
    for path, content in files.items():
        before = _lines(repository.show_file(head, path))
        kept = _lines(repository.show_file(reference, path))
        if _lacks(before, kept, _lines(content)):
            raise ChangeError(
                f"{path} in this checkout ({head[:7]}) lacks what was kept since, up to"
                f" {reference[:7]}",
                hint="git stash, then `python orchestrator.py adopt`, then git stash pop",
            )


def _lacks(before: set[bytes], kept: set[bytes], now: set[bytes]) -> bool:
    """Whether lines that a keep removed are back; or, if it only added some, none of them is in."""
    removed, added = before - kept, kept - before
    return bool(removed & now) if removed else bool(added) and not added & now


def _lines(content: bytes) -> set[bytes]:
    return {line.strip() for line in content.splitlines()} - {b""}
