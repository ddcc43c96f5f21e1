"""Start the command line: `python -m autohypothesis`, `autohypothesis`, `orchestrator.py`."""

from __future__ import annotations

import atexit
import gc
import signal
import sys

GARBAGE_THRESHOLD = 100_000
"""New objects before the collector looks for cycles. With Python's 700 it looks at what is imported
again and again, a quarter of the time of a start."""

if not __package__:  # started by its path: what lies in the package is no top-level module
    del sys.path[0]


def main() -> None:
    """Run the command of `sys.argv` and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun yet: Ctrl-C just ends this
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)  # the last collection would free what goes with the process anyway
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        from autohypothesis.installation import is_clone

        remedy = (
            "run `make venv` (or `uv sync`) in the clone, then `. .venv/bin/activate`"
            if is_clone()
            else "run `pip install autohypothesis`"
        )
        sys.exit(f"error: {sys.executable} lacks what this needs; {remedy}")
    from autohypothesis.commands.app import run_and_exit
    from autohypothesis.commands.main import app

    run_and_exit(app)


if __name__ == "__main__":
    main()
