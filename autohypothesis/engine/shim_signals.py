"""Signals to the shim."""

from __future__ import annotations

import contextlib
import os
import signal


class Interrupts:
    """Signals to the shim as a readable descriptor; SIGTERM and SIGINT mean cancel."""

    def __init__(self) -> None:
        self.cancelled = False
        self.fd, write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGINT, self._cancel)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Whoever started the shim has blocked it, so that a cancel cannot come too early.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _cancel(self, number: int, frame: object) -> None:
        self.cancelled = True

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 512):
                pass
