"""The checkouts of a repository: which has the records, which the user works in, where they moved.

The records of a repository lie in its main checkout. Where it has none (a bare repository with
worktrees beside it), they lie in the worktree that the first search was begun in.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from autohypothesis.errors import GitError, RecordError
from autohypothesis.records.files import is_utf8, read_bytes, shown, write_atomic
from autohypothesis.records.git_call import call
from autohypothesis.records.layout import Layout


class Worktree(NamedTuple):
    path: Path
    head: str | None
    branch: str | None
    lock_reason: str | None
    """None: not locked; "initializing": an `add` that is at work, or was killed."""
    is_bare: bool = False
    """True: the repository itself, which has no files."""


def list_worktrees(folder: Path) -> list[Worktree]:
    """Return all checkouts of the repository that `folder` is in, the main one first."""
    worktrees = []
    for block in call("worktree list --porcelain", (), folder).text.split("\n\n"):
        facts = dict(line.partition(" ")[::2] for line in block.split("\n"))
        if path := facts.get("worktree"):
            head, branch, locked = (facts.get(key) for key in ("HEAD", "branch", "locked"))
            worktrees.append(Worktree(Path(path), head, branch, locked, "bare" in facts))
    return worktrees


def locate(path: Path) -> tuple[Path, Path]:
    """Return the checkout that has the records of the repository at `path`, and the user's.

    The user's is the one that `path` is in; one that a fleet made is none of the user's.

    Raises:
        GitError: `path` is in no repository, or in one without a checkout; or git does not read it.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise GitError(f"{shown(path)} is not a folder", hint="name a repository: --repo PATH")
    words = "rev-parse --path-format=absolute --git-dir --git-common-dir --show-toplevel"
    answer = call(words, (), path, accept=(0, 128))
    if answer.status:
        what = "is refused by git" if answer.cure else "is not in a git checkout"
        raise GitError(
            f"{shown(path)} {what}: {answer.reason}",
            hint=answer.cure or _moved_hint(path) or _bare_hint(path),
        )
    lines = answer.text.split("\n")  # three paths, each of several lines if it has breaks
    top = refuse_path(Path("\n".join(lines[len(lines) // 3 * 2 :])))
    if lines[0] == lines[1]:
        return top, top
    main, *linked = list_worktrees(top)
    if main.is_bare or not (main.path / ".git").exists():
        root = next((tree.path for tree in linked if Layout(tree.path).manifest.exists()), top)
        root = refuse_path(top if Layout(top).manifest.exists() else root)
    else:
        root = refuse_path(main.path)
    return root, root if top.is_relative_to(Layout(root).worktrees) else top


def _moved_hint(path: Path) -> str:
    """Return the cure of a worktree whose repository is elsewhere by now; empty for none."""
    for top in (path, *path.parents):
        if (entry := worktree_entry(top)) is not None and not entry.exists():
            former = entry.parent.parent
            beside = top.parent / former.name  # a bare one that was moved with its checkouts
            where = shlex.quote(str(beside)) if beside.is_dir() else "REPOSITORY"
            return (
                f"{former} is not there any more; name where it is now:"
                f" git -C {where} worktree repair {shlex.quote(str(top))}"
            )
    return ""


def _bare_hint(path: Path) -> str:
    if call("rev-parse --is-bare-repository", (), path, accept=(0, 128)).text == "true":
        names = [
            f"--repo {shlex.quote(str(tree.path))}"
            for tree in list_worktrees(path)
            if not tree.is_bare
        ]
        if names:
            return f"it is bare; name one of its checkouts: {' or '.join(names[:3])}"
        where = shlex.quote(str(path))
        return f"it is bare; clone it, or make a checkout: git -C {where} worktree add ../main"
    return "run `git init` there, or name another: --repo PATH"


def refuse_path(path: Path) -> Path:
    """Return `path`, when it can be written into JSON, and is one line of what git answers.

    Raises:
        GitError: it is not UTF-8, or has a line break.
    """
    name = str(path)
    if is_utf8(name) and "\n" not in name:
        return path
    what = "has a line break in it" if "\n" in name else "is not UTF-8"
    raise GitError(
        f"the path of the repository, '{shown(name)}', {what}",
        hint="records could not name it; move the folder to another name, or clone it there",
    )


# ── links between a worktree and its repository ─────────────────────────────────────────────


def worktree_entry(path: Path) -> Path | None:
    """Return where the `.git` of a worktree says that git keeps its index and HEAD."""
    with suppress(OSError, RecordError):
        content = os.fsdecode(read_bytes(path / ".git")).removeprefix("gitdir:").strip()
        return path / content if content and "\0" not in content else None
    return None


def is_entry_of(common_dir: Path, path: Path) -> bool:
    """Return whether the `.git` of a worktree leads into the repository in `common_dir`."""
    entry = worktree_entry(path)
    inside = os.path.realpath(common_dir / "worktrees") + os.sep
    return entry is not None and os.path.realpath(entry).startswith(inside)


def moved_worktrees(common_dir: Path, room: Path) -> list[Path]:
    """Return the worktrees in the folder `room` that were moved, or copied, with the repository.

    Their links, or those of the repository to them, lead to where they were.
    """
    with suppress(OSError):
        return [path for path in sorted(room.iterdir()) if _is_moved(common_dir, path)]
    return []


def _is_moved(common_dir: Path, path: Path) -> bool:
    entry = worktree_entry(path)
    if entry is None:
        return False
    own = common_dir / "worktrees" / entry.name
    with suppress(OSError, RecordError):
        place = (own / os.fsdecode(read_bytes(own / "gitdir")).strip()).parent
        is_same_place = (place.parent.name, place.name) == (path.parent.name, path.name)
        leads_here = os.path.realpath(place) == os.path.realpath(path)
        return is_same_place and not (leads_here and is_entry_of(common_dir, path))
    return False


def repair_links(root: Path, common_dir: Path, moved: list[Path], *, others: bool) -> None:
    """Link each of `moved_worktrees` and its repository again.

    Args:
        others: those of other folders as well, by `git worktree repair`. In a copy it would take
            the worktrees of the original.
    """
    for path in moved:
        entry = common_dir / "worktrees" / str(worktree_entry(path)).rpartition("/")[2]
        write_atomic(entry / "gitdir", os.fsencode(path / ".git") + b"\n")
        write_atomic(path / ".git", b"gitdir: " + os.fsencode(entry) + b"\n")
    if others:
        call("worktree repair", (), root, accept=(0, 1, 128))
