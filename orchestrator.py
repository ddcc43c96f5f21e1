"""The command line: wires the command groups together, nothing else.

`python orchestrator.py COMMAND`, or `autohypothesis COMMAND` once installed. `--help` imports
nothing but the command line itself: each command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun yet, so Ctrl-C just ends this

try:
    import typer  # noqa: F401
except ModuleNotFoundError:
    sys.exit(
        f"error: {sys.executable} lacks what this needs; run `make venv` (or `uv sync`)"
        " in the clone, then `. .venv/bin/activate`"
    )

from autohypothesis.commands import (
    decide,
    demo,
    doctor,
    fleet,
    hardware,
    hub,
    ideas,
    init,
    loop,
    record,
    results,
    run,
    setup,
    show,
    status,
    sync,
    task,
    tools,
)
from autohypothesis.commands.app import application, run_and_exit

COMMANDS = (
    hardware, doctor, setup, loop, init, fleet, status, ideas, tools, task, run, record, sync,
    show, results, decide, demo, hub,
)  # fmt: skip

app = application(COMMANDS)


def main() -> None:
    """Entry point of `autohypothesis` and of `python orchestrator.py`."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
