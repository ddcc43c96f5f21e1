"""Only the artifacts change: in a candidate before it runs, in its checkout while it runs.

`check_candidate` looks at a commit. `look` and `inspect` look at a checkout before and after a
training: every tracked file, and the distributions that the training's Python has installed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from autohypothesis.engine.environment import differences, installed
from autohypothesis.engine.task import Task
from autohypothesis.engine.workspace import Checkout
from autohypothesis.errors import ChangeError
from autohypothesis.records import git_export
from autohypothesis.records.files import FileStamp, file_stamp, kind_of, shown
from autohypothesis.records.git import Entry, FileChange, Repository
from autohypothesis.records.git_export import SUBMODULE
from autohypothesis.schema import nearest

_KINDS = {"120000": "a symbolic link", SUBMODULE: "a submodule"}
MAX_NAMED = 8


def check_candidate(
    repository: Repository, task: Task, commit: str, changes: Sequence[FileChange]
) -> None:
    """Refuse a candidate that touches more than the artifacts, or more of them than it may.

    Raises:
        ChangeError: naming every file that is in the way.
    """
    outside = [change.path for change in changes if not task.is_artifact(change.path)]
    if outside:
        rest = f" and {len(outside) - MAX_NAMED} more" if len(outside) > MAX_NAMED else ""
        raise ChangeError(
            f"{', '.join(outside[:MAX_NAMED])}{rest} may not change; the artifacts of"
            f" task {task.id} are {', '.join(task.artifacts)}",
            hint="propose a change of those alone",
        )
    odd = [problem for change in changes if (problem := _odd(task, change))]
    if odd:
        raise ChangeError("; ".join(odd[:MAX_NAMED]), hint="an artifact stays a plain file")
    for problem in _over_limits(repository, task, commit, changes):
        raise ChangeError(problem, hint="propose a smaller change")


def _odd(task: Task, change: FileChange) -> str:
    """Return what a change does to a file beside its content; empty when nothing."""
    if change.new_mode in _KINDS:
        return f"{change.path} becomes {_KINDS[change.new_mode]}"
    if change.status == "D":
        return f"{change.path} is deleted" if change.path in task.artifacts else ""
    if change.status != "A" and change.old_mode != change.new_mode:
        return f"the mode of {change.path} changes from {change.old_mode} to {change.new_mode}"
    return ""


def _over_limits(
    repository: Repository, task: Task, commit: str, changes: Sequence[FileChange]
) -> Iterator[str]:
    limits = task.mutation
    if len(changes) > limits.max_files:
        yield f"{len(changes)} files change, mutation.max_files is {limits.max_files}"
    lines = sum((change.added or 0) + (change.removed or 0) for change in changes)
    if lines > limits.max_lines:
        yield f"{lines} lines change, mutation.max_lines is {limits.max_lines}"
    for change in changes:
        size = len(repository.show_file(commit, change.path)) if change.status != "D" else 0
        if size > limits.max_bytes:
            limit = f"mutation.max_bytes is {limits.max_bytes:,}"
            yield f"{change.path} grows to {size:,} bytes, {limit}"


def protected_blobs(task: Task, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return path -> blob of the files that make experiments comparable.

    Raises:
        ChangeError: the commit lacks the evaluator.
    """
    evaluator = task.scorer.evaluator
    if evaluator is not None and evaluator not in entries:
        raise ChangeError(
            f"the commit has no {evaluator}, which scores task {task.id}"
            f"{nearest(evaluator, list(entries))}",
            hint="start from a commit that has it",
        )
    return {path: entry.blob for path, entry in entries.items() if task.is_protected(path)}


class Before(BaseModel):
    """A checkout and an environment before a training, kept with its run until it has ended.

    Attributes:
        files: by the bytes of each path, read as Latin-1: JSON keeps no name that is not UTF-8.
        distributions: metadata folder of each installed distribution -> when its list of files
            was written.
        copies: the SHA-256 of files that were copied from the user's checkout; keys as `files`.
    """

    commit: str
    files: dict[str, FileStamp]
    distributions: dict[str, int]
    site_folders: list[str]
    copies: dict[str, str] = {}

    def stamps(self) -> dict[str, FileStamp]:
        return {_path(name): stamp for name, stamp in self.files.items()}


def _latin(path: str) -> str:
    return os.fsencode(path).decode("latin-1")


def _path(latin: str) -> str:
    return os.fsdecode(latin.encode("latin-1"))


def look(checkout: Checkout, site_folders: Iterable[Path]) -> Before:
    """Note the state of a fresh checkout, and of what is installed in `site_folders`."""
    tracked = (path for path, entry in checkout.files.items() if entry.mode != SUBMODULE)
    files = {
        _latin(path): stamp
        for path in (*tracked, *checkout.copies, *checkout.links)
        if (stamp := file_stamp(checkout.path / path))
    }
    folders = [str(folder) for folder in site_folders]
    return Before(
        commit=checkout.commit,
        files=files,
        distributions=installed(folders),
        site_folders=folders,
        copies={_latin(path): digest for path, digest in checkout.copies.items()},
    )


def inspect(repository: Repository, checkout: Path, before: Before) -> list[str]:
    """Describe what a training touched that it may not; empty for an honest one.

    A file that was only rewritten with its own content counts as untouched, and so does a new,
    untracked one: it is deleted before the next training.
    """
    problems: list[str] = []
    rewritten: list[str] = []
    for path, stamp in before.stamps().items():
        now = file_stamp(checkout / path)
        if now == stamp:
            continue
        if problem := _replaced(checkout, path, stamp, now):
            problems.append(problem)
        else:
            rewritten.append(path)
    copies = {_path(name): digest for name, digest in before.copies.items()}
    committed = [path for path in rewritten if path not in copies]
    changed = git_export.changed(repository, before.commit, checkout, committed)
    for path in copies.keys() & set(rewritten):
        if git_export.digest(checkout / path) != copies[path]:
            changed.append(path)
    problems += [f"{path} was changed" for path in sorted(changed)]
    packages = differences(before.distributions, installed(before.site_folders))
    return _at_most(problems) + _at_most(packages)


def planted(task: Task, checkout: Path, before: Before) -> list[str]:
    """Describe what a run left where a scoring program would import it.

    Python looks beside a script, or in the folder that it is started in, before it looks anywhere
    else, and in a package beside what belongs to it.
    """
    if task.scorer.command is None:
        return []
    files = before.stamps()
    folders = {PurePosixPath(path).parent for path in files if path.endswith(".py")}
    folders.add(PurePosixPath(os.path.normpath(task.run.cwd)))
    known = {*files, *(str(parent) for path in files for parent in PurePosixPath(path).parents)}
    return _at_most(
        [
            f"{folder / path.name} was made beside the scorer, which could import it"
            for folder in sorted(folders)
            for path in sorted((checkout / folder).glob("*"))
            if str(folder / path.name) not in known and _is_importable(path)
        ]
    )


def _is_importable(path: Path) -> bool:
    return path.suffix in (".py", ".pyc", ".so") or (path / "__init__.py").exists()


def _replaced(checkout: Path, path: str, before: FileStamp, now: FileStamp | None) -> str:
    """Return how `path` is another thing than it was; empty when only its content can be."""
    for parent in PurePosixPath(path).parents:
        if (checkout / parent).is_symlink() and parent != PurePosixPath("."):
            return f"the folder {parent} of {path} was replaced by a symbolic link"
    if now is None:
        return f"{path} was deleted"
    if stat.S_IFMT(now.mode) != stat.S_IFMT(before.mode):
        return f"{path} was replaced by {kind_of(now.mode)}"
    if stat.S_ISLNK(now.mode):
        return f"the symbolic link {path} was replaced"
    return f"{path} was changed" if now.size != before.size else ""


def _at_most(problems: list[str]) -> list[str]:
    rest = len(problems) - MAX_NAMED
    more = [f"and {rest} more"] if rest > 0 else []
    return [shown(problem) for problem in problems[:MAX_NAMED]] + more
