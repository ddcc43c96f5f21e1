"""What a worker says about a run that stands still."""

from __future__ import annotations

import time

from autohypothesis.engine.executor import Executor, Handle, Notices

LOOK_S = 1.0
"""Between two looks."""


class Standstill:
    """Looks at the run of one worker now and then."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._look_at = 0.0
        self._stands = False

    def news(self, handle: Handle) -> str | None:
        """What to say from now on: why it stands still, or nothing once it goes on; else None."""
        if not isinstance(self._executor, Notices) or time.monotonic() < self._look_at:
            return None
        self._look_at = time.monotonic() + LOOK_S
        text = self._executor.notice(handle)
        is_news = bool(text) or self._stands
        self._stands = bool(text)
        return text if is_news else None
