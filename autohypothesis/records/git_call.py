"""The one module that calls git: what a call may not do, who it is, and what it must not see."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from autohypothesis.errors import GitError
from autohypothesis.records.git_facts import Answer

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


def _without_callers_state(ours: Mapping[str, str]) -> list[str]:
    """`env -u NAME ...` where it is needed: GitPython hands git all of our environment."""
    foreign = sorted(
        name
        for name in os.environ
        if name.startswith("GIT_")
        and not name.startswith("GIT_PYTHON_")
        and name not in _INHERITED
        and name not in ours
    )
    return ["env", *(word for name in foreign for word in ("-u", name))] if foreign else []


def _git_python() -> Any:
    """GitPython, which runs git when it is imported: a Ctrl-C waits until that is over."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no git: our error, not an import's
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        import git
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return git


def call(
    words: str,
    args: Sequence[str],
    place: Path,
    settings: Mapping[str, str],
    *,
    stdin: bytes,
    timeout: float,
    accept: tuple[int, ...],
    output: IO[bytes] | None = None,
) -> Answer:
    """Run `git WORDS ARGS` in `place`; `words` is split at blanks, `args` never are.

    With `output`, what git prints goes there piece by piece, and is not in the answer.

    Raises:
        GitError: git is missing, or the exit status is not in `accept`; then the message holds
            the command and git's own words.
    """
    git = _git_python()
    extra = {**ENVIRONMENT, **settings}
    command = [*_without_callers_state(extra), "git", *OPTIONS, *words.split(), *args]
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        try:
            status, out, said = git.Git(str(place)).execute(
                command,
                istream=source,
                output_stream=output,
                env=extra,
                kill_after_timeout=timeout,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                start_new_session=True,  # Ctrl-C is for us: we end when our git has ended
            )
        except git.exc.GitCommandNotFound as error:
            raise GitError(
                "git is not in PATH, so nothing can be searched", hint="install git 2.34+"
            ) from error
    answer = Answer(int(status), bytes(out), str(said))
    if answer.status not in accept:
        shown = " ".join([words, *args])[:200]
        raise GitError(f"`git {shown}` in {place} failed: {answer.reason}")
    return answer
