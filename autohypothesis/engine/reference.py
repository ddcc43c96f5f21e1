"""The reference of a search, which new changes start from, and the branch that shows it to people.

`refs/autohypothesis/reference/<tag>` is the reference: only `move_reference` moves it, by
compare-and-swap. The branch `autoresearch/<tag>` belongs to people, who may stand on it, commit to
it or delete it. It moves in the same transaction as the reference, unless it is checked out or has
commits of its own. A branch that was left behind is fast-forwarded at the next move or settle.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from autohypothesis.errors import GitError, RecordError
from autohypothesis.records import locks
from autohypothesis.records.bundles import read_decisions
from autohypothesis.records.chain import DecisionChain
from autohypothesis.records.files import load_or_none
from autohypothesis.records.git import Repository
from autohypothesis.records.layout import Layout
from autohypothesis.schema import Decision, Manifest

if TYPE_CHECKING:
    from autohypothesis.engine.task import Task

REFERENCES = "refs/autohypothesis/reference/"
BRANCHES = "refs/heads/autoresearch/"
LEDGERS = "refs/autohypothesis/ledger/"
"""Snapshots of the records of each search."""
MARKERS = "refs/autohypothesis/fleet/"
"""What tells a branch that a fleet made from one of the user's: `<tag>/<worker>`."""
_ELSEWHERE = re.compile(r"refs/remotes/([^/]+)/autoresearch/(.+)")
REFSPECS = "'refs/autohypothesis/*:refs/autohypothesis/*' 'refs/experiments/*:refs/experiments/*'"


def reference_branch(tag: str) -> str:
    return f"autoresearch/{tag}"


def reference_ref(tag: str) -> str:
    """Return the ref that holds the reference commit of a search."""
    return REFERENCES + tag


def read_reference(repository: Repository, layout: Layout, tag: str) -> str | None:
    """Return the reference of a search; None where nothing was searched under `tag`.

    Where its ref is gone, it is where the decisions left it, until a command that writes makes the
    ref again. A search of an earlier version had the branch only: commits of a person on top of
    what was decided belong to its reference.
    """
    if commit := repository.read_ref(reference_ref(tag)):
        return commit
    branch, decisions = repository.read_ref(BRANCHES + tag), list[Decision]()
    with suppress(RecordError):
        decisions = [each for each in read_decisions(layout)[0] if each.tag == tag]
    moves = [each.reference_after for each in decisions if each.reference_after]
    left = repository.read_ref(f"{moves[-1]}^{{commit}}") if moves else None
    if left is None:
        return branch if branch and _was_searched(repository, layout, tag) else None
    is_own = branch not in {each.commit for each in decisions}
    return branch if branch and is_own and repository.is_ancestor(left, branch) else left


def _was_searched(repository: Repository, layout: Layout, tag: str) -> bool:
    """Return whether the manifest or a ref of ours names the tag, so that its branch is ours."""
    manifest = load_or_none(Manifest, layout.manifest)
    if manifest is not None and tag in (manifest.tag, *manifest.earlier):
        return True
    if repository.refs(f"{MARKERS}{tag}", f"{LEDGERS}{tag}"):
        return True
    named = re.compile(rf"(?:baseline-{re.escape(tag)}|h-{re.escape(tag)}-\d+)-\d+")
    return any(named.fullmatch(name) for name in repository.experiments())


def move_reference(repository: Repository, tag: str, new: str, old: str | None) -> bool:
    """Move the reference from `old` (None: it must not exist) to `new`, and its branch with it.

    Returns False, with nothing moved, when the reference was elsewhere. A branch that cannot be
    moved (checked out, locked, no room for its name) holds up no search.
    """
    ref, branch = reference_ref(tag), BRANCHES + tag
    with suppress(GitError):
        at = repository.read_ref(branch)
        # A command that begins a search may be undone: it only makes the branch.
        follows = at is None if old is None else at == old or _is_behind(repository, at, new)
        follows = follows and not repository.is_checked_out(branch)
        if follows and repository.move_refs({ref: (new, old), branch: (new, at)}):
            return True
    return repository.compare_and_swap(ref, new, old)


def catch_up(repository: Repository, tag: str, reference: str) -> None:
    """Fast-forward the branch to the reference where it stayed behind; make one that was deleted.

    A search of an earlier version gets its ref. Call it under the lock `settle`: the reference may
    not move meanwhile.
    """
    ref, branch = reference_ref(tag), BRANCHES + tag
    refs = repository.refs(ref, branch)
    if ref not in refs:
        move_reference(repository, tag, reference, None)
    at = refs.get(branch)
    with suppress(GitError):
        if at == reference or not _is_behind(repository, at, reference):
            return
        if not repository.is_checked_out(branch):
            repository.move_refs({branch: (reference, at)})


def take_in_task_commits(
    repository: Repository, layout: Layout, task: Task, tag: str, reference: str
) -> str | None:
    """Move the reference to the user's commit where that adds the task file alone; that commit.

    Without it a search that was begun before its task file was committed, as `init` begins it,
    could not be adopted. Every file that a run is scored by or may change is the same in both.
    """
    head = repository.head()
    if head == reference or not repository.is_ancestor(reference, head):
        return None
    changed = [change.path for change in repository.changes(reference, head)]
    if any(path != task.source for path in changed):
        return None
    with locks.hold(layout, "settle", doing="taking in your commit"):
        DecisionChain(repository, layout).take_in(head)
        return head if move_reference(repository, tag, head, reference) else None


def _is_behind(repository: Repository, at: str | None, commit: str) -> bool:
    return at is None or repository.is_ancestor(at, commit)


def own_commits(repository: Repository, tag: str, reference: str) -> tuple[str, str] | None:
    """Return what keeps the branch of a search from following, and the command that helps.

    It is commits of a person that the reference does not have; None where there are none.
    """
    name, ref = reference_branch(tag), reference_ref(tag)
    at = repository.read_ref(BRANCHES + tag)
    if at is None or at == reference:
        return None
    own, lacking = repository.count_apart(at, reference)
    if not own:
        return None
    commits = f"{own} commit{'s' * (own != 1)}"
    return (
        f"branch {name} has {commits} that the search {tag} does not have, so it does not follow"
        f" the reference; to leave them out: git branch -m {name} NAME; to take them in:",
        f"git rebase {ref} {name}" if lacking else f"git update-ref {ref} {name} {reference[:12]}",
    )


def fetch_command(repository: Repository, tag: str | None = None) -> str:
    """Return the command that fetches a search which a remote has; empty where none is known.

    `git clone` brings its branch, and neither its reference nor its records.

    Args:
        tag: of this search only.
    """
    heads = repository.refs(f"refs/remotes/*/autoresearch/{tag or '*'}")
    names = (_ELSEWHERE.fullmatch(ref) for ref in heads)
    remote = next((match[1] for match in names if match), None)
    restore = "python orchestrator.py restore"
    return f"git fetch {remote} {REFSPECS}, then {restore}" if remote else ""
