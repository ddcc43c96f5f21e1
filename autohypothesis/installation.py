"""How this project is installed: as a clone or as a package, and with which extras."""

from __future__ import annotations

from functools import cache
from pathlib import Path

IN_CLONE = "python orchestrator.py"
"""The command line, as messages spell it; see `as_called`."""
EXTRAS = dict.fromkeys(("fastapi", "markdown_it", "nh3", "sqlalchemy", "uvicorn"), "hub")
"""Module -> the extra of this package that installs it."""
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


def missing_extra(module: str | None) -> str:
    """Return the command that installs the extra with `module`; empty where no extra has it."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    return f"pip install 'autohypothesis[{extra}]'" if extra else ""
