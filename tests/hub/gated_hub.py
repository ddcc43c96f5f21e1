"""Hubs that kill themselves after a step of a push, one after another, each at the next step:
`python -m tests.hub.gated_hub --data DATA`. Each is a fork, so that what it imports is there.

The server has no such hook. Here its functions are wrapped before it is started, so that the kill
comes at the step, as `kill -9` from outside would at that instant.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autohypothesis.hub.server import commit_index, inspection, intake, serving
from autohypothesis.hub.server.settings import Settings
from autohypothesis.hub.server.store import CommitStore

STEPS: dict[str, tuple[Any, str]] = {
    "received": (intake.PushQuarantine, "header"),
    "unpacked": (intake.PushQuarantine, "unpack"),
    "inspected": (inspection.PushInspection, "commits"),
    "announced": (intake.PushQuarantine, "announce"),
    "pack": (Path, "rename"),
    "idx": (Path, "rename"),
    "refs": (CommitStore, "anchor"),
    "recorded": (commit_index, "record"),
}


def kill_after(step: str) -> None:
    """Wrap the function of `step`, so that the process ends when it returns."""
    place, name = STEPS[step]
    wrapped: Callable[..., Any] = getattr(place, name)

    def killing(*args: Any, **options: Any) -> Any:
        result = wrapped(*args, **options)
        if name != "rename" or str(args[0]).endswith(f".{step}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, killing)


if __name__ == "__main__":
    settings = Settings(Path(sys.argv[2]), port=0)
    for step in STEPS:
        hub = os.fork()
        if not hub:
            kill_after(step)
            serving.serve(settings, lambda line: print(line, file=sys.stderr, flush=True))
        status = os.waitstatus_to_exitcode(os.waitpid(hub, 0)[1])
        print(f"ended with {status} after {step}", file=sys.stderr, flush=True)
