"""When a process of the fleet should leave, and how.

SIGTERM and SIGINT ask it to finish its turn. SIGHUP, or the end of the supervisor that started it,
means: leave at once, and leave the training alone, it goes on under its shim and the next worker
takes it over. A second Ctrl-C means that nothing should be waited for any more.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any, Protocol

from autohypothesis.records.locks import Process
from autohypothesis.system import CtrlC, host_name

SUPERVISOR = "AUTOHYPOTHESIS_SUPERVISOR"
"""Environment of a role that a supervisor started: `<pid>:<start>` of that supervisor."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S = 0.1
"""Poll interval of stop requests."""


class StopRequest(Protocol):
    """The questions of a role between two steps; see `Stop`."""

    @property
    def requested(self) -> bool: ...

    @property
    def abandoned(self) -> bool: ...

    @property
    def hard(self) -> bool: ...

    def wait(self, seconds: float) -> bool: ...


class Stop:
    """Installs the handlers; made once, in the main thread. `close` puts the former ones back.

    Nothing here takes a lock, so a signal may arrive at any instant.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Why, in a word or two, for a log: `SIGTERM`, `the supervisor has ended`."""
        self._requested = self._abandoned = False
        self._interrupts = 0
        self._supervisor = _supervisor()
        self._former: dict[int, Any] = {}
        for number in _SIGNALS:
            self._install(number)

    def _install(self, number: signal.Signals) -> None:
        former = signal.getsignal(number)
        if number == signal.SIGHUP and former is signal.SIG_IGN and self._supervisor is None:
            return  # started under nohup
        self._former[number] = former
        signal.signal(number, self._handle)
        if isinstance(former, CtrlC) and former.came:
            self._handle(number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        self._abandoned |= number == signal.SIGHUP
        self.request(signal.Signals(number).name)

    @property
    def requested(self) -> bool:
        """Return whether to leave, for any reason."""
        return self._requested or self.abandoned

    @property
    def abandoned(self) -> bool:
        """Return whether to leave at once, without ending the training."""
        if not self._abandoned and self._supervisor and not self._supervisor.lives():
            self._abandoned = True
            self.request("the supervisor has ended")
        return self._abandoned

    @property
    def hard(self) -> bool:
        """Return whether Ctrl-C was pressed twice: everything ends now."""
        return self._interrupts > 1

    def request(self, reason: str = "asked") -> None:
        """Stop like a SIGTERM; callable from any thread."""
        self._requested = True
        self.reason = self.reason or reason

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`, or until asked to leave; return whether that was asked."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return self.requested

    def close(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)
        self._former.clear()
        self._supervisor = None

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _supervisor() -> Process | None:
    pid, colon, start = os.environ.get(SUPERVISOR, "").partition(":")
    try:
        return Process(int(pid), float(start), host_name()) if colon else None
    except ValueError:
        return None
