"""git on what strangers sent: no configuration, no hook, and an end in time, memory and bytes.

`git_call.py` runs git with the user's configuration, this module with none.
Each call gets a fresh environment, limits that the kernel holds, a clock that kills the whole
group, and files instead of pipes, so that no answer is larger than what was allowed. The folders
are the caller's, and absolute.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from autohypothesis.errors import GitError
from autohypothesis.records.git_call import Answer

_SETTINGS = (
    "gc.auto=0",
    "maintenance.auto=false",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.logAllRefUpdates=false",
    "core.bigFileThreshold=1m",
    "core.packedGitWindowSize=8m",
    "core.packedGitLimit=64m",
    "core.deltaBaseCacheLimit=16m",
    "core.filesRefLockTimeout=5000",
    "core.packedRefsTimeout=5000",
    "pack.threads=1",
    "pack.writeReverseIndex=false",
    "pack.windowMemory=32m",
    "pack.deltaCacheSize=16m",
    "protocol.allow=never",
)
_OPTIONS = tuple(word for setting in _SETTINGS for word in ("-c", setting))
_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_ALLOC_LIMIT": "256m",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_LIMITED = (
    'ulimit -c 0; ulimit -v "$1" 2>/dev/null || :; ulimit -t "$2"; ulimit -f "$3"; shift 3;'
    ' exec "$@"'
)
"""A shell sets the limits: nothing of ours may run between fork and exec where there are threads.
Memory cannot be limited on macOS; git's own limit on one allocation still holds there."""
_FULL_DISK = re.compile(r"No space left|quota exceeded|write error", re.IGNORECASE)
_BLOCK = 512
_SAID = 4096
"""Bytes of standard error that are kept."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one call."""

    seconds: float = 20.0
    """By the clock on the wall."""
    cpu_seconds: int = 10
    memory: int = 290 << 20
    """Bytes of address space."""
    file: int = 64 << 20
    """Bytes of any file that is written, the answer among them."""

    def but(self, **changes: float) -> Bounds:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Ended(Answer):
    """An answer, and what cut it short: "time" or "size", else empty."""

    cut: str = ""

    @property
    def disk_full(self) -> bool:
        return bool(self.status and _FULL_DISK.search(self.words))


def run(
    words: str,
    args: Sequence[str] = (),
    *,
    repository: Path,
    bounds: Bounds,
    stdin: bytes | IO[bytes] = b"",
    into: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """`git WORDS ARGS` in the bare `repository`; the answer goes `into` a file where one is given.

    Whatever the exit status, it is returned: here a refusal is news, not a mistake of ours.

    Raises:
        GitError: git or the shell is missing.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        target = into or out
        with _source(stdin) as source:
            process = _start(words, args, repository, bounds, environment, source, target, said)
            late = _wait(process, bounds.seconds)
        content = b"" if into else _content(out)
        status = process.returncode
        return Ended(status, content, _last(said), _cut(late, status))


@contextmanager
def _source(stdin: bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    """A file for git's standard input, at the place where its owner left it."""
    if not isinstance(stdin, bytes):
        yield stdin
        return
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.flush()
        source.seek(0)
        yield source


def _start(
    words: str,
    args: Sequence[str],
    repository: Path,
    bounds: Bounds,
    environment: Mapping[str, str] | None,
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
) -> subprocess.Popen[bytes]:
    limits = (bounds.memory >> 10, bounds.cpu_seconds, max(1, bounds.file // _BLOCK))
    command = ["/bin/sh", "-c", _LIMITED, "sh", *map(str, limits)]
    command += ["git", *_OPTIONS, *words.split(), *args]
    own = {"PATH": os.environ.get("PATH", os.defpath), "GIT_DIR": str(repository.absolute())}
    try:
        return subprocess.Popen(
            command, cwd="/", env={**_ENVIRONMENT, **own, **(environment or {})},
            stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise GitError(f"git cannot be started: {error.strerror or error}") from error


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it had to be killed."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        kill(process)
        return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cut(late: bool, status: int) -> str:
    if late or status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"
    return "size" if status == -signal.SIGXFSZ else ""


def _content(out: IO[bytes]) -> bytes:
    out.seek(0)
    return out.read()


def _last(said: IO[bytes]) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SAID))
    return said.read().decode("utf-8", "replace")


class Objects:
    """Reads objects one by one from a single git, which ends with the `with` block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self._ask = process.stdin
        self._answers = process.stdout

    def read(self, name: str, most: int) -> tuple[str, bytes] | None:
        """Kind and content of `name`; None where there is no such object.

        Raises:
            GitError: git ended, or the object has more than `most` bytes. Read no more then.
        """
        self._ask.write(name.encode("ascii") + b"\n")
        self._ask.flush()
        facts = self._answers.readline(_SAID).split()
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
    """The objects that `repository` sees, for as long as `bounds` allows."""
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = _start(
        "cat-file --batch", (), repository, bounds, environment, pipe, pipe, nowhere
    )  # fmt: skip
    clock = threading.Timer(bounds.seconds, kill, (process,))
    clock.daemon = True
    clock.start()
    try:
        yield Objects(process)
    except BrokenPipeError as error:
        raise GitError("git ended while objects were read") from error
    finally:
        clock.cancel()
        kill(process)
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream:
                    stream.close()
