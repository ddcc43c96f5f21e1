"""The command line: wires the command groups together, nothing else.

`python orchestrator.py COMMAND`, or `autohypothesis COMMAND` once installed. `--help` imports
nothing but the command line itself: each command imports what it needs when it runs.
"""

from __future__ import annotations

from autohypothesis.commands import (
    decide,
    demo,
    doctor,
    fleet,
    ideas,
    init,
    loop,
    record,
    run,
    show,
    status,
    sync,
    tools,
)
from autohypothesis.commands.app import application, run_and_exit

COMMANDS = (
    doctor, init, loop, fleet, status, ideas, tools, run, record, sync, show, decide, demo,
)  # fmt: skip

app = application(COMMANDS)


def main() -> None:
    """Entry point of `autohypothesis` and of `python orchestrator.py`."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
