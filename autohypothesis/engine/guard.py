"""Only the artifacts change: in a candidate before it runs, in its checkout while it runs.

`check_candidate` looks at a commit. `look` and `inspect` look at a checkout before and after a
training: every tracked file, and the distributions that the training's Python has installed.
`check_sources` and `run_preflight` refuse a hopeless candidate in seconds: what can be read from
it, then the task's own test, in a checkout of the candidate but with the evaluator as it was
committed. That test may import the candidate; without one a script is parsed, never imported.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autohypothesis.engine import program
from autohypothesis.engine.constants import parse, read_constants
from autohypothesis.engine.environment import (
    INHERITED,
    THREAD_VARIABLES,
    differences,
    installed,
    resolved,
)
from autohypothesis.engine.failures import CRASHES, signal_of, why_unjudged
from autohypothesis.engine.isolation import Surroundings
from autohypothesis.engine.task import Task
from autohypothesis.errors import ChangeError, PreflightError, UnjudgedError
from autohypothesis.records import git_export
from autohypothesis.records.files import FileStamp, file_stamp, shown
from autohypothesis.records.git import Entry, FileChange, Repository
from autohypothesis.records.git_export import SUBMODULE
from autohypothesis.schema import nearest

_KINDS = {"120000": "a symbolic link", SUBMODULE: "a submodule"}
MAX_NAMED = 8
TIMEOUT_S = 120.0
TRIES = 3
"""How often a preflight is run that could not judge."""
PAUSE_S = 0.5
"""Before the second try; each later pause is longer by as much."""
TAIL = 64 * 1024
"""Bytes of what the preflight printed that are looked at."""


# ── a commit ────────────────────────────────────────────────────────────────────────────────


def check_candidate(
    repository: Repository, task: Task, commit: str, changes: Sequence[FileChange]
) -> None:
    """Refuse a candidate that touches more than the artifacts, or more of them than it may.

    Raises:
        ChangeError: naming every file that is in the way.
    """
    outside = [one.path for one in changes if not task.is_artifact(one.path)]
    if outside:
        rest = f" and {len(outside) - MAX_NAMED} more" if len(outside) > MAX_NAMED else ""
        raise ChangeError(
            f"{', '.join(outside[:MAX_NAMED])}{rest} may not change; the artifacts of"
            f" task {task.id} are {', '.join(task.artifacts)}",
            hint="propose a change of those alone",
        )
    odd = [problem for one in changes if (problem := _odd(task, one))]
    if odd:
        raise ChangeError("; ".join(odd[:MAX_NAMED]), hint="an artifact stays a plain file")
    for problem in _over_limits(repository, task, commit, changes):
        raise ChangeError(problem, hint="propose a smaller change")


def _odd(task: Task, change: FileChange) -> str:
    """What a change does to a file beside its content; empty when nothing."""
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
    lines = sum((one.added or 0) + (one.removed or 0) for one in changes)
    if lines > limits.max_lines:
        yield f"{lines} lines change, mutation.max_lines is {limits.max_lines}"
    for one in changes:
        size = len(repository.show_file(commit, one.path)) if one.status != "D" else 0
        if size > limits.max_bytes:
            most = f"mutation.max_bytes is {limits.max_bytes:,}"
            yield f"{one.path} grows to {size:,} bytes, {most}"


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


# ── a checkout ──────────────────────────────────────────────────────────────────────────────


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
        """`files` by their paths."""
        return {_path(name): stamp for name, stamp in self.files.items()}


def _latin(path: str) -> str:
    return os.fsencode(path).decode("latin-1")


def _path(latin: str) -> str:
    return os.fsdecode(latin.encode("latin-1"))


def look(
    checkout: Path,
    commit: str,
    entries: Mapping[str, Entry],
    site_folders: Iterable[Path],
    copies: Mapping[str, str] | None = None,
    links: Iterable[str] = (),
) -> Before:
    """Note the state of a fresh checkout of `commit`, whose files are `entries`.

    Beside them are `copies` (path -> SHA-256) of the user's files, and `links` to such.
    """
    files = {}
    for path in (*entries, *(copies or {}), *links):
        stamp = file_stamp(checkout / path)
        if stamp is not None and not (path in entries and entries[path].mode == SUBMODULE):
            files[_latin(path)] = stamp
    folders = [str(folder) for folder in site_folders]
    return Before(
        commit=commit,
        files=files,
        distributions=installed(folders),
        site_folders=folders,
        copies={_latin(path): digest for path, digest in (copies or {}).items()},
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
        if now != stamp:
            problem = _replaced(checkout, path, stamp, now)
            problems += [problem] if problem else []
            rewritten += [] if problem else [path]
    problems += _contents(repository, checkout, before, rewritten)
    changed = differences(before.distributions, installed(before.site_folders))
    return _at_most(problems) + _at_most(changed)


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
    return _at_most(
        [
            f"{folder / name} was made beside the scorer, which could import it"
            for folder in sorted(folders)
            for name in sorted(_names_in(checkout / folder))
            if str(folder / name) not in files and _is_importable(checkout / folder / name)
            and not any(path.startswith(f"{folder / name}/") for path in files)
        ]
    )  # fmt: skip


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_importable(path: Path) -> bool:
    return path.suffix in (".py", ".pyc", ".so") or (path / "__init__.py").exists()


def _replaced(checkout: Path, path: str, before: FileStamp, now: FileStamp | None) -> str:
    """How `path` is another thing than it was; empty when only its content can be."""
    for parent in PurePosixPath(path).parents:
        if (checkout / parent).is_symlink() and parent != PurePosixPath("."):
            return f"the folder {parent} of {path} was replaced by a symbolic link"
    if now is None:
        return f"{path} was deleted"
    if stat.S_IFMT(now.mode) != stat.S_IFMT(before.mode):
        return f"{path} was replaced by {_kind(now.mode)}"
    if stat.S_ISLNK(now.mode):
        return f"the symbolic link {path} was replaced"
    return f"{path} was changed" if now.size != before.size else ""


def _contents(
    repository: Repository, checkout: Path, before: Before, paths: Sequence[str]
) -> list[str]:
    """Which of `paths` have another content than a checkout of the commit gave them."""
    copies = {_path(name): digest for name, digest in before.copies.items()}
    committed = [path for path in paths if path not in copies]
    changed = git_export.changed(repository, before.commit, checkout, committed)
    changed += [
        path
        for path, digest in copies.items()
        if path in paths and git_export.digest(checkout / path) != digest
    ]
    return [f"{path} was changed" for path in sorted(changed)]


def _kind(mode: int) -> str:
    names = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFREG: "a plain file",
    }
    return names.get(stat.S_IFMT(mode), "a special file")


def _at_most(problems: list[str]) -> list[str]:
    rest = len(problems) - MAX_NAMED
    more = [f"and {rest} more"] if rest > 0 else []
    return [shown(problem) for problem in problems[:MAX_NAMED]] + more


# ── a preflight ─────────────────────────────────────────────────────────────────────────────


class PreflightVerdict(BaseModel):
    """The last line that a preflight command prints.

    Attributes:
        constants: values of the script's constants, expressions evaluated.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    ok: bool
    problem: str = ""
    constants: dict[str, Any] | None = None


def check_sources(sources: Mapping[str, bytes], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the literal constants of Python `sources`, when they parse and fit together.

    Args:
        sources: the artifacts of the candidate, by path.
        known: constants of the profile, by lower-case name.

    Raises:
        PreflightError: with file and line, or the rule that is broken.
    """
    constants: dict[str, Any] = {}
    for path, source in sources.items():
        try:
            parse(source, path)
        except ChangeError as error:
            raise PreflightError(error.problem, hint=error.hint) from error
        constants = {**read_constants(source), **constants}
    problem = _shape_problem({name.lower(): value for name, value in constants.items()}, known)
    if problem:
        raise PreflightError(problem, hint="propose other sizes")
    return constants


def _shape_problem(constants: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The rule of the published recipe that literal `constants` break."""
    for name in ("depth", "head_dim", "total_batch_size", "device_batch_size"):
        value = constants.get(name)
        if isinstance(value, (int, float)) and (isinstance(value, bool) or not value > 0):
            return f"{name.upper()} = {value} is not a positive number"
    total, rows = constants.get("total_batch_size"), constants.get("device_batch_size")
    length = constants.get("max_seq_len", known.get("max_seq_len"))
    sizes = (total, rows, length)
    are_sizes = all(type(size) is int and size > 0 for size in sizes)
    if are_sizes and total % (rows * length):
        return (
            f"TOTAL_BATCH_SIZE = {total} is not a multiple of DEVICE_BATCH_SIZE x MAX_SEQ_LEN"
            f" = {rows} x {length}"
        )
    return ""


def run_preflight(
    task: Task,
    checkout: Path,
    root: Path,
    *,
    evaluator: Path | None = None,
    inputs: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    around: Surroundings | None = None,
) -> PreflightVerdict:
    """Run the task's preflight command in `checkout`, without any GPU.

    A command that could not judge is run again, `TRIES` times in all.

    Args:
        evaluator: the pristine file that stands for `scorer.evaluator` in the command.
        inputs: variable -> path of each located input.
        around: what the command may see and change; None: as this process.

    Raises:
        PreflightError: the candidate is refused, or the command gave no verdict in time.
        UnjudgedError: the command could not judge, each time.
    """
    words = [
        str(evaluator) if evaluator is not None and word == task.scorer.evaluator else word
        for word in resolved(task.run.preflight or (), root)
    ]
    see, environment = f"run `{' '.join(words)}` in {checkout}", _environment(task, inputs)
    environment = around.environment(environment, None) if around else environment
    confined = around.bound(around.preflight(checkout, evaluator)) if around else None
    why = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        try:
            ended = program.run(
                words, cwd=checkout / task.run.cwd, environment=environment, confined=confined,
                timeout_s=timeout_s, out_limit=TAIL, tail=True,
            )  # fmt: skip
        except OSError as error:
            raise PreflightError(
                f"the preflight does not start: {error}", hint="correct run.preflight of the task"
            ) from error
        verdict = _verdict(ended.out)
        # The command may import the candidate, so one that crashes was crashed by it.
        could_judge = not ended.exit_code or signal_of(ended.exit_code) in CRASHES
        if verdict is None and not could_judge:
            why = why_unjudged(ended.exit_code, None, ended.err or ended.out)
        if verdict is not None or could_judge or not why:
            return _judged(ended, verdict, timeout_s, see)
    raise UnjudgedError(f"the preflight could not judge, {TRIES} times: {why}", hint=see)


def _judged(
    ended: program.ProgramEnd, verdict: PreflightVerdict | None, timeout_s: float, see: str
) -> PreflightVerdict:
    """The verdict of a command that could judge; `see` shows a person why there is none."""
    if ended.exit_code is None:
        limit = ended.limit(timeout_s)
        raise PreflightError(f"the preflight {limit}", hint="propose a smaller model")
    if verdict is None:
        reason = ended.err.strip().splitlines()[-1:] or [f"exit code {ended.exit_code}"]
        raise PreflightError(f"the preflight gave no verdict: {reason[0][:300]}", hint=see)
    if not verdict.ok:
        problem = verdict.problem or "the preflight refused it"
        raise PreflightError(problem, hint="propose something else")
    return verdict


def _environment(task: Task, inputs: Mapping[str, str] | None) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name in INHERITED},
        "HOME": os.path.expanduser("~"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SEED": "0",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        **task.run.env,
        **(inputs or {}),
    }


def _verdict(out: str) -> PreflightVerdict | None:
    lines = out.strip().splitlines()
    try:
        return PreflightVerdict.model_validate(json.loads(lines[-1])) if lines else None
    except (ValueError, ValidationError, RecursionError):
        return None
