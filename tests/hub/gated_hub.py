"""A hub that kills itself after a step of a push: `python -m tests.hub.gated_hub STEP DATA`.

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

from autohypothesis.hub.server import commits, inspection, intake, serving
from autohypothesis.hub.server.settings import Settings
from autohypothesis.hub.server.store import CommitStore

STEPS: dict[str, tuple[Any, str]] = {
    "received": (intake.PushQuarantine, "header"),
    "unpacked": (intake.PushQuarantine, "unpack"),
    "walked": (inspection.PushInspection, "commits"),
    "announced": (intake.PushQuarantine, "announce"),
    "pack": (Path, "rename"),
    "idx": (Path, "rename"),
    "refs": (CommitStore, "anchor"),
    "recorded": (commits, "record"),
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
    kill_after(sys.argv[1])
    settings = Settings(Path(sys.argv[2]), port=0, admin_key=sys.argv[3])
    serving.serve(settings, lambda line: print(line, file=sys.stderr, flush=True))
