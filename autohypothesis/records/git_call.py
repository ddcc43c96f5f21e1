"""The one module that calls git: its rights, its identity, its limits, and what it must not see.

`call` is for the user's repository, under the user's configuration. `run` and `objects` are for
what strangers sent: no configuration, limits that the kernel holds, and files instead of pipes, so
that no answer is larger than what was allowed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autohypothesis.errors import GitError

TIMEOUT_S = 60.0
CHECKOUT_TIMEOUT_S = 600.0
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "GIT_AUTHOR_NAME": "Autohypothesis",
    "GIT_AUTHOR_EMAIL": "fleet@autohypothesis.invalid",
    "GIT_COMMITTER_NAME": "Autohypothesis",
    "GIT_COMMITTER_EMAIL": "fleet@autohypothesis.invalid",
}
NO_CONFIGURATION = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}
_INHERITED = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"}
"""Which configuration and which git: the user's choice. All else is one caller's state."""
_LIMITED_ENVIRONMENT = {
    **NO_CONFIGURATION,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_ALLOC_LIMIT": "256m",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


def _options(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("-c", setting))


_COMMON = _options(
    "gc.auto=0",
    "maintenance.auto=false",
    "core.hooksPath=/dev/null",
    "core.filesRefLockTimeout=5000",
    "core.packedRefsTimeout=5000",
)
OPTIONS = _COMMON + _options(
    "core.fsmonitor=false",
    "core.quotePath=false",
    "core.splitIndex=false",
    "commit.gpgSign=false",
    "merge.verifySignatures=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
)
_LIMITED_OPTIONS = _COMMON + _options(
    "core.attributesFile=/dev/null",
    "core.logAllRefUpdates=false",
    "core.bigFileThreshold=1m",
    "core.packedGitWindowSize=8m",
    "core.packedGitLimit=64m",
    "core.deltaBaseCacheLimit=16m",
    "pack.threads=1",
    "pack.writeReverseIndex=false",
    "pack.windowMemory=32m",
    "pack.deltaCacheSize=16m",
    "protocol.allow=never",
)
_LIMITED = (
    'ulimit -c 0; ulimit -v "$1" 2>/dev/null || :; ulimit -t "$2"; ulimit -f "$3"; shift 3;'
    ' exec "$@"'
)
"""A shell sets the limits: nothing of ours may run between fork and exec where there are threads.
Memory cannot be limited on macOS; git's own limit on one allocation still holds there."""
_FULL_DISK = re.compile(r"No space left|quota exceeded|write error", re.IGNORECASE)
_TRUST = "git config --global --add safe.directory "
_TO_TIDY_UP_S = 5.0
_BLOCK = 512
_WORDS_LIMIT = 4096
"""Bytes of standard error that are kept of a limited call."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one call of git."""

    status: int
    out: bytes
    words: str
    """Standard error."""
    cut: str = ""
    """The limit that ended a call: "time" or "size", else empty."""

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def records(self) -> list[str]:
        """The parts of an answer to `-z`."""
        return [part.decode("utf-8", "surrogateescape") for part in self.out.split(b"\0") if part]

    @property
    def reason(self) -> str:
        """git's last words, on one line, without a cure that it names."""
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        if self.cure:
            lines = [line for line in lines if line.startswith("fatal:")]
        return "; ".join(lines[-3:])[:500] or f"exit code {self.status}"

    @property
    def cure(self) -> str:
        """The command that git names for a repository of another owner; else empty."""
        lines = (line.strip() for line in self.words.splitlines())
        return next((line for line in lines if line.startswith(_TRUST)), "")

    @property
    def disk_full(self) -> bool:
        return bool(self.status and _FULL_DISK.search(self.words))


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one call."""

    seconds: float = 20.0
    """Wall-clock limit in seconds."""
    cpu_seconds: int = 10
    memory: int = 290 << 20
    """Bytes of address space."""
    file: int = 64 << 20
    """Bytes of any file that is written, the answer among them."""


def call(
    words: str,
    args: Sequence[str],
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    stdin: bytes = b"",
    timeout: float = TIMEOUT_S,
    accept: tuple[int, ...] = (0,),
    output: IO[bytes] | None = None,
    lock: IO[bytes] | None = None,
) -> Answer:
    """Run `git WORDS ARGS` in `folder`; `words` is split at blanks, `args` never are.

    Args:
        settings: environment variables.
        timeout: seconds after which git is ended, as it is when this call is interrupted.
        output: a file that takes what git prints, which then is not in the answer.
        lock: a locked file that git inherits, so that it stays locked until git has ended, should
            this process be killed.

    Raises:
        GitError: git or `folder` is missing, or the exit status is not in `accept`; then the
            message holds the command and git's own words.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _INHERITED
    }
    command = ["git", *OPTIONS, *words.split(), *args]
    environment = {**inherited, **ENVIRONMENT, **(settings or {})}
    if output is not None:
        output.flush()
    pipe = subprocess.PIPE
    target = pipe if output is None else output
    with (
        _source(stdin) as source,
        _start(command, folder, environment, source, target, pipe, lock) as process,
    ):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGTERM, signal.SIGKILL)
            out, err = b"", f"it did not complete in {timeout:g} s".encode()
        except BaseException:
            _end(process, signal.SIGTERM, signal.SIGKILL)
            raise
    answer = Answer(process.returncode, out or b"", err.decode("utf-8", "replace"))
    if answer.status not in accept:
        shown = " ".join([words, *args])[:200]
        raise GitError(f"`git {shown}` in {folder} failed: {answer.reason}", hint=answer.cure)
    return answer


def run(
    words: str,
    args: Sequence[str] = (),
    *,
    repository: Path,
    bounds: Bounds,
    stdin: bytes | IO[bytes] = b"",
    into: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run `git WORDS ARGS` in the bare `repository` under `bounds`, without any configuration.

    Whatever the exit status, it is returned: here a refusal is news, not a mistake of ours.

    Args:
        stdin: a file is read from where its owner left it.
        into: a file that takes what git prints, which then is not in the answer.

    Raises:
        GitError: git or the shell is missing.
    """
    command, variables = _limited([*words.split(), *args], repository, bounds, environment)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _source(stdin) as source:
            process = _start(command, Path("/"), variables, source, into or out, err)
            try:
                process.wait(bounds.seconds)
            except subprocess.TimeoutExpired:
                _end(process, signal.SIGKILL)
        status = process.returncode
        late = status in (-signal.SIGXCPU, -signal.SIGKILL)
        cut = "time" if late else "size" if status == -signal.SIGXFSZ else ""
        err.seek(max(0, err.seek(0, os.SEEK_END) - _WORDS_LIMIT))
        out.seek(0)
        content = b"" if into else out.read()
        return Answer(status, content, err.read().decode("utf-8", "replace"), cut)


class Objects:
    """Reads objects one by one from a single git, which ends with the `with` block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self._ask = process.stdin
        self._answers = process.stdout

    def read(self, name: str, most: int) -> tuple[str, bytes] | None:
        """Return kind and content of `name`; None where there is no such object.

        Raises:
            GitError: git ended, or the object has more than `most` bytes. Read no more then.
        """
        self._ask.write(name.encode("ascii") + b"\n")
        self._ask.flush()
        facts = self._answers.readline(_WORDS_LIMIT).split()
        if len(facts) == 2 and facts[1] == b"missing":
            return None
        if len(facts) != 3:
            raise GitError(f"git ended while object {name[:12]} was read")
        kind, size = facts[1].decode(), int(facts[2])
        if size > most:
            raise GitError(f"{kind} {name[:12]} has {size:,} bytes; at most {most:,} are allowed")
        content = self._answers.read(size + 1)
        if len(content) != size + 1:
            raise GitError(f"git ended while object {name[:12]} was read")
        return kind, content[:-1]


@contextmanager
def objects(
    repository: Path, bounds: Bounds, environment: Mapping[str, str] | None = None
) -> Iterator[Objects]:
    """Give the objects that `repository` sees, for as long as `bounds` allows."""
    command, variables = _limited(["cat-file", "--batch"], repository, bounds, environment)
    pipe = subprocess.PIPE
    process = _start(command, Path("/"), variables, pipe, pipe, subprocess.DEVNULL)
    clock = threading.Timer(bounds.seconds, _end, (process, signal.SIGKILL))
    clock.daemon = True
    clock.start()
    try:
        yield Objects(process)
    except BrokenPipeError as error:
        raise GitError("git ended while objects were read") from error
    finally:
        clock.cancel()
        _end(process, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream:
                    stream.close()


def batch(answer: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Yield id, kind and content of each object in an answer of `cat-file --batch`.

    The kind of one that is not there is "missing".
    """
    at = 0
    while at < len(answer):
        end = answer.index(b"\n", at)
        name, kind, *size = answer[at:end].decode().split(" ")
        at = end + 1
        yield name, kind, answer[at : at + int(size[0])] if size else b""
        at += int(size[0]) + 1 if size else 0


def _limited(
    words: list[str], repository: Path, bounds: Bounds, environment: Mapping[str, str] | None
) -> tuple[list[str], dict[str, str]]:
    limits = (bounds.memory >> 10, bounds.cpu_seconds, max(1, bounds.file // _BLOCK))
    shell = ["/bin/sh", "-c", _LIMITED, "sh", *map(str, limits)]
    own = {"PATH": os.environ.get("PATH", os.defpath), "GIT_DIR": str(repository.absolute())}
    command = [*shell, "git", *_LIMITED_OPTIONS, *words]
    return command, {**_LIMITED_ENVIRONMENT, **own, **(environment or {})}


@contextmanager
def _source(stdin: bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    """A file for git's standard input: whole, should this process be killed meanwhile."""
    if not isinstance(stdin, bytes):
        yield stdin
        return
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        yield source


def _start(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    lock: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr,
            pass_fds=[lock.fileno()] if lock else [],
            start_new_session=True,  # Ctrl-C is for us: we end git
        )  # fmt: skip
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == "git":
            raise GitError(
                "git is not in PATH, so nothing can be searched", hint="install git 2.34+"
            ) from error
        raise GitError(f"git cannot be started in {folder}: {error.strerror or error}") from error


def _end(process: subprocess.Popen[bytes], *signals: signal.Signals) -> None:
    """End git and what it started: asked first, it removes its lock files; killed, it does not."""
    for number in signals:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TO_TIDY_UP_S)
            return
