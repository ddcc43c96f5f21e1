"""The hub's log: a message that repeats itself is counted, and the file is turned over.

Whoever reaches a hub can make it log, so what it writes is bounded: `MOST` messages of a kind in
`WINDOW_S`, then only their number; `FILES` files of `FILE_BYTES`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path

MOST = 5
WINDOW_S = 60.0
KINDS = 200
"""Of messages that are told apart; what comes beyond them in a window counts as one kind."""
FILE_BYTES, FILES = 2 << 20, 5
LINE_LIMIT = 8_000
"""Characters of one message, a traceback among them."""


class Logbook(logging.Handler):
    """Gives each kind of message to `targets` a few times in a window, and then its number."""

    def __init__(self, targets: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._targets = targets
        self._counts: dict[str, int] = {}
        self._until = time.monotonic() + WINDOW_S

    def emit(self, record: logging.LogRecord) -> None:
        self.turn()
        kind = f"{record.name}: {_raised(record)}{str(record.msg)[:200]}"
        if kind not in self._counts and len(self._counts) >= KINDS:
            kind = "other messages"
        self._counts[kind] = count = self._counts.get(kind, 0) + 1
        if count <= MOST:
            self._hand_on(record)

    def turn(self) -> None:
        """Where a window has ended, say what was counted in it."""
        if time.monotonic() >= self._until:
            self.say_counts()

    def say_counts(self) -> None:
        """Tell how often each kind came that was not written every time, and begin anew."""
        self.acquire()
        try:
            counts, self._counts = self._counts, {}
            self._until = time.monotonic() + WINDOW_S
        finally:
            self.release()
        for kind, count in counts.items():
            if count > MOST:
                words = f"{count - MOST} more like this: {kind.strip()}"
                self._hand_on(logging.makeLogRecord({"levelname": "WARNING", "msg": words}))

    def _hand_on(self, record: logging.LogRecord) -> None:
        for target in self._targets:
            target.handle(record)


def _raised(record: logging.LogRecord) -> str:
    kind = record.exc_info[0] if record.exc_info else None
    return f"{kind.__name__}: " if kind is not None else ""


class _Short(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record)[:LINE_LIMIT]


def keep_log(path: Path) -> Logbook:
    """Have all that this process logs go to stderr and to `path`."""
    logging.raiseExceptions = False  # a full disk is not answered with more to write
    file = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8")
    targets: list[logging.Handler] = [logging.StreamHandler(), file]
    for target in targets:
        target.setFormatter(_Short("%(asctime)s %(levelname)s %(message)s"))
    logbook = Logbook(targets)
    logging.getLogger().addHandler(logbook)
    return logbook
