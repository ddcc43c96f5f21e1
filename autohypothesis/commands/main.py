"""The command line: every group of commands, and the application made of them.

Imports nothing but the groups, each of which imports what a command needs when it runs.
"""

from __future__ import annotations

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
from autohypothesis.commands.app import application

COMMANDS = (
    hardware, doctor, setup, loop, init, fleet, status, ideas, tools, task, run, record, sync,
    show, results, decide, demo, hub,
)  # fmt: skip

app = application(COMMANDS)
