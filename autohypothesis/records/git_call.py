"""The one module that calls git: what a call may not do, who it is, and what it must not see."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autohypothesis.errors import GitError

_SETTINGS = (
    "gc.auto=0",
    "maintenance.auto=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "core.splitIndex=false",
    "core.filesRefLockTimeout=5000",
    "core.packedRefsTimeout=5000",
    "commit.gpgSign=false",
    "merge.verifySignatures=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
)
OPTIONS = tuple(word for setting in _SETTINGS for word in ("-c", setting))
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "GIT_AUTHOR_NAME": "Autohypothesis",
    "GIT_AUTHOR_EMAIL": "fleet@autohypothesis.invalid",
    "GIT_COMMITTER_NAME": "Autohypothesis",
    "GIT_COMMITTER_EMAIL": "fleet@autohypothesis.invalid",
}
_INHERITED = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"}
"""Which configuration and which git: the user's choice. All else is one caller's state."""
TIMEOUT_S = 60.0
CHECKOUT_TIMEOUT_S = 600.0
_TO_TIDY_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one call of git."""

    status: int
    out: bytes
    words: str
    """Standard error."""

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def records(self) -> list[str]:
        """The parts of an answer to `-z`."""
        return [part.decode("utf-8", "surrogateescape") for part in self.out.split(b"\0") if part]

    @property
    def reason(self) -> str:
        """git's last words, on one line."""
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        return "; ".join(lines[-3:])[:500] or f"exit code {self.status}"


def call(
    words: str,
    args: Sequence[str],
    place: Path,
    settings: Mapping[str, str] | None = None,
    *,
    stdin: bytes = b"",
    timeout: float = TIMEOUT_S,
    accept: tuple[int, ...] = (0,),
    output: IO[bytes] | None = None,
) -> Answer:
    """Run `git WORDS ARGS` in `place`; `words` is split at blanks, `args` never are.

    Args:
        settings: environment variables.
        timeout: seconds after which git is ended, as it is when this call is interrupted.
        output: a file that takes what git prints, which then is not in the answer.

    Raises:
        GitError: git or `place` is missing, or the exit status is not in `accept`; then the
            message holds the command and git's own words.
    """
    if output is not None:
        output.flush()
    with tempfile.TemporaryFile() as source:  # whole, should this process be killed meanwhile
        source.write(stdin)
        source.seek(0)
        process = _start([*words.split(), *args], place, settings, source, output)
        try:
            out, words_of_git = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _end_group(process)
            out, words_of_git = b"", f"it did not complete in {timeout:g} s".encode()
        except BaseException:
            _end_group(process)
            raise
    answer = Answer(process.returncode, out or b"", words_of_git.decode("utf-8", "replace"))
    if answer.status not in accept:
        shown = " ".join([words, *args])[:200]
        raise GitError(f"`git {shown}` in {place} failed: {answer.reason}")
    return answer


def _start(
    words: list[str],
    place: Path,
    settings: Mapping[str, str] | None,
    source: IO[bytes],
    output: IO[bytes] | None,
) -> subprocess.Popen[bytes]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _INHERITED
    }
    try:
        return subprocess.Popen(
            ["git", *OPTIONS, *words],
            cwd=place,
            env={**inherited, **ENVIRONMENT, **(settings or {})},
            stdin=source,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: we end git
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == "git":
            raise GitError(
                "git is not in PATH, so nothing can be searched", hint="install git 2.34+"
            ) from error
        raise GitError(f"git cannot be started in {place}: {error.strerror or error}") from error


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask git and what it started to end, so that lock files are removed; kill what does not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TO_TIDY_UP_S)
            break
    for stream in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):
            if stream:
                stream.close()
