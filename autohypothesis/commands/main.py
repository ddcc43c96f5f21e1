"""The command line: importing a module of commands registers them.

Each of them imports what a command needs when it runs.
"""

from __future__ import annotations

from autohypothesis.commands import (  # noqa: F401
    doctor,
    fleet,
    hub,
    hub_serve,
    ideas,
    init,
    loop,
    run,
    setup,
    show,
    sync,
    task,
    tools,
)
from autohypothesis.commands.app import app, arrange

arrange()
__all__ = ["app"]
