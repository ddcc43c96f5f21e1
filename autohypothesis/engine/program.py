"""A program of the user's as a process: its input, its time, and how much it may print.

It leads a session of its own and carries a mark in its environment, so that all it starts is
ended with it. It dies with the thread that asked. Nothing of it survives an answer.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

from autohypothesis import sandbox
from autohypothesis.engine import processes
from autohypothesis.engine.environment import resolved
from autohypothesis.engine.processes import ProcessLimit
from autohypothesis.engine.task import Task
from autohypothesis.sandbox import UNCONFINED, SandboxSpec

OUT_LIMIT = 4 * 1024 * 1024
"""Bytes of an answer; `--json` of a helper script over 10,000 experiments has a tenth."""
ERR_LIMIT = 64 * 1024
"""Bytes at the end of standard error that are kept."""
MARK = "AUTOHYPOTHESIS_ASKED"
"""In the environment of a program and of all that it starts: a word of this run's own."""
MOST_PROCESSES = 512
"""Processes that a program may have at once; `run.max_processes` is for trainings alone."""
_LOOK_S = 0.1
_DRAIN_S = 2.0


class ProgramEnd(NamedTuple):
    """How a program ended, and what it printed."""

    exit_code: int | None
    """None: it was ended, for its time, its output or its processes, or was cancelled."""
    out: str
    err: str
    seconds: float
    overflow: bool = False
    """It said more than it may; `out` is what came first."""
    too_many: str = ""
    """How many processes it had at once, where that was too many."""

    def limit(self, timeout_s: float) -> str:
        """Return which limit a program without an exit code went over, after "the program"."""
        if self.too_many:
            return f"had {self.too_many}"
        return f"took over {timeout_s:g} s"

    def last_words(self) -> str:
        """Return the last line that it printed, for an error message."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else "it printed nothing"


def run(
    words: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    stdin: bytes = b"",
    capture: bool = True,
    out_limit: int = OUT_LIMIT,
    tail: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    confined: SandboxSpec = UNCONFINED,
) -> ProgramEnd:
    """Run a program to its end, or to `timeout_s`, or until `cancelled`.

    Args:
        words: a program from the PATH or a file seen from `cwd`, and its arguments. No shell.
        capture: without it the program prints where this process prints.
        tail: keep the end of what it says, however much that is, and let it go on.

    Raises:
        OSError: there is no such program, or it may not be run.
    """
    mark, began, too_many = uuid.uuid4().hex, time.monotonic(), ""
    limit = ProcessLimit()
    with (
        _own_temporary(confined, {**environment, MARK: mark}) as (spec, inside),
        _process(words, cwd, inside, spec, has_input=bool(stdin), capture=capture) as process,
    ):
        out = _Output(process.stdout, out_limit, tail=tail)
        err = _Output(process.stderr, ERR_LIMIT, tail=True)
        if process.stdin is not None:
            threading.Thread(target=_tell, args=(process.stdin, stdin), daemon=True).start()
        limit.hold(MOST_PROCESSES, lambda: len(processes.find_marked(f"{MARK}={mark}")))
        code: int | None = None
        while code is None and (left := began + timeout_s - time.monotonic()) > 0:
            too_many = limit.excess()
            if too_many or out.overflow or cancelled():
                break
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(min(left, _LOOK_S))
    code = None if out.overflow else code
    seconds = time.monotonic() - began
    return ProgramEnd(code, out.text(), err.text(), seconds, out.overflow, too_many)


@contextmanager
def _own_temporary(
    spec: SandboxSpec, environment: Mapping[str, str]
) -> Iterator[tuple[SandboxSpec, Mapping[str, str]]]:
    """Make a folder for temporary files of a program in a sandbox; bubblewrap makes it its /tmp."""
    if spec.kind == "none" or spec.temporary is not None or Path("/tmp") in spec.read:
        yield spec, environment
        return
    with tempfile.TemporaryDirectory(prefix="ah-", ignore_cleanup_errors=True) as name:
        inside = "/tmp" if spec.kind == "bwrap" else name
        yield replace(spec, temporary=Path(name)), {**environment, "TMPDIR": inside}


@contextmanager
def _process(
    words: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    spec: SandboxSpec,
    *,
    has_input: bool,
    capture: bool,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program with `MARK` in its environment; the block ends it and all it started."""
    pipe = subprocess.PIPE if capture else None
    program = [resolve(words[0], cwd), *words[1:]]
    alive, ours = os.pipe()
    try:
        process = subprocess.Popen(
            sandbox.confined(program, spec, parent=os.getpid(), alive=alive),
            cwd=cwd, env=environment, start_new_session=True, pass_fds=(alive,),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(alive)
    try:
        yield process
    finally:
        os.close(ours)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        processes.end_marked(f"{MARK}={environment[MARK]}")


def resolve(word: str, cwd: Path) -> str:
    """Return the file of a program: a missing one is known before anything starts.

    Raises:
        FileNotFoundError: there is no such program, neither in the PATH nor as seen from `cwd`.
    """
    file = shutil.which(word if os.sep not in word else cwd / os.path.expanduser(word))
    if file is None:
        raise FileNotFoundError(f"there is no program {word!r}")
    return str(file)


def _tell(stream: IO[bytes], content: bytes) -> None:
    with suppress(OSError, ValueError), stream:  # a program need not read what it is told
        stream.write(content)


class _Output:
    """The beginning or the end of a stream, read as fast as it is written."""

    def __init__(self, stream: IO[bytes] | None, limit: int, *, tail: bool = False) -> None:
        self.overflow = False
        self._limit, self._tail, self._kept = limit, tail, bytearray()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes] | None) -> None:
        if stream is None:
            return
        with suppress(OSError, ValueError), stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept += chunk
                self.overflow |= not self._tail and len(self._kept) > self._limit
                del self._kept[slice(-self._limit) if self._tail else slice(self._limit, None)]

    def text(self) -> str:
        """Return what was kept. An escaped process may hold the stream open."""
        self._reader.join(_DRAIN_S)
        return bytes(self._kept).decode("utf-8", "replace")


SUFFIXES = (".py", ".sh", ".js", ".rb", ".pl")
"""A word that ends like this is a script, which has to be there as well."""


class Named(NamedTuple):
    """One program of a task; `problem` says what is missing."""

    role: str
    command: str
    problem: str = ""


def programs_of(task: Task, root: Path, tracked: Collection[str]) -> list[Named]:
    """Return every program that the task names, in the order in which they run.

    They run in a checkout of a commit, so a script has to be one of the `tracked` files.
    """
    named = (
        ("mutator", task.mutator.command, root),
        ("preflight", task.run.preflight, root / task.run.cwd),
        ("run", task.run.command, root / task.run.cwd),
        ("scorer", task.scorer.command, root / task.run.cwd),
    )
    return [
        Named(role, shlex.join(words), "; ".join(_missing(words, root, cwd, tracked)))
        for role, words, cwd in named
        if words is not None
    ]


def _missing(
    words: Sequence[str], root: Path, cwd: Path, tracked: Collection[str]
) -> Iterator[str]:
    try:
        resolve(resolved(words, root)[0], cwd)
    except FileNotFoundError as error:
        yield str(error)
    for word in words[1:]:
        if not word.endswith(SUFFIXES) or Path(word).is_absolute():
            continue
        if not (cwd / word).is_file():
            yield f"there is no script {word!r} in {cwd}"
        elif os.path.relpath(cwd / word, root) not in tracked:
            yield f"{word} is not committed, and is missing where it is run: git add {word}"
