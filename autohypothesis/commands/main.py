"""The command line: every group of commands, and the application made of them.

Imports nothing but the groups, each of which imports what a command needs when it runs.
"""

from __future__ import annotations

from autohypothesis.commands import (
    doctor,
    fleet,
    hub,
    ideas,
    init,
    loop,
    run,
    setup,
    show,
    status,
    sync,
    task,
    tools,
)
from autohypothesis.commands.app import application

COMMANDS = (doctor, setup, loop, init, fleet, status, ideas, tools, task, run, sync, show, hub)

app = application(COMMANDS)
