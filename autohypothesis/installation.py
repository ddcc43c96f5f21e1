"""How this project is installed: as a clone or as a package, and with which extras."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

IN_CLONE = "python orchestrator.py"
"""The command line, as messages spell it; see `as_called`."""
EXTRAS = dict.fromkeys(("fastapi", "markdown_it", "nh3", "sqlalchemy", "uvicorn"), "hub")
"""Module -> the extra of this package that installs it."""
given: dict[str, str] = {}
"""`--repo` and `--tag` of this command line, where they were given; the script it was called by."""
TAKES_TAG = frozenset(
    (
        "adopt", "best", "bootstrap", "briefing", "decide", "digest", "hypotheses",
        "init-fleet", "prune", "record", "restore", "run-experiment", "run-loop", "runs",
        "show-results", "status",
    )
)  # fmt: skip
"""Commands with an option `--tag`."""
_COMMAND = re.compile(
    rf"(?P<before>{re.escape(IN_CLONE)} )(?P<word>[a-z][a-z-]*)"
    rf"(?P<rest>(?:(?!{re.escape(IN_CLONE)})[^`;\n])*)"
)
_PACKAGE = Path(__file__).resolve().parent


@cache
def is_clone() -> bool:
    """Return whether this code runs from a clone, with `orchestrator.py` beside the package."""
    return (_PACKAGE.parent / "orchestrator.py").is_file()


def program_script() -> Path:
    """Return the script that another process runs to call a command of ours from anywhere."""
    return _PACKAGE.parent / "orchestrator.py" if is_clone() else _PACKAGE / "__main__.py"


def as_called(text: str) -> str:
    """Return `text` with the command line under the name that it has in this installation."""
    if is_clone():
        return text
    return text.replace(IN_CLONE, "autohypothesis").replace("orchestrator.py", "autohypothesis")


def note_call() -> None:
    """Begin a command line: note how it was called where messages cannot say just that."""
    given.clear()
    script = sys.argv[0]
    with suppress(OSError):  # the current directory is gone
        elsewhere = os.path.realpath("orchestrator.py") != str(program_script())
        if is_clone() and elsewhere and os.path.realpath(script) == str(program_script()):
            given["script"] = script


def program_name() -> str:
    """Return the words that call this command line from the current directory."""
    if Path(sys.argv[0]).name in ("autohypothesis", "__main__.py"):
        return "autohypothesis"
    script = given.get("script")
    return f"python {shlex.quote(script)}" if script else as_called(IN_CLONE)


def suggested(text: str) -> str:
    """Return `text` with its commands as they have to be typed after this one.

    They repeat the repository and the search that this command was given, and its script where
    that is not in the current directory.
    """

    def repeated(match: re.Match[str]) -> str:
        before, word, rest = match["before"], match["word"], match["rest"]
        of_one = "--tag" not in rest and "--all" not in rest
        if of_one and (tag := given.get("--tag")) and word in TAKES_TAG:
            word = f"{word} --tag {shlex.quote(tag)}"
        if (repo := given.get("--repo")) and "--repo" not in rest:
            before = f"{before}--repo {shlex.quote(repo)} "
        return f"{before}{word}{rest}"

    text = _COMMAND.sub(repeated, text) if given else text
    return text.replace(IN_CLONE, program_name()) if "script" in given else as_called(text)


def missing_extra(module: str | None) -> str:
    """Return the command that installs the extra with `module`; empty where no extra has it."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    return f"pip install 'autohypothesis[{extra}]'" if extra else ""
