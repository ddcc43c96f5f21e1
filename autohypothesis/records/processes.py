"""Whether a process that wrote its name down is still the same, living one.

A pid alone proves nothing: it is given to somebody else in time. Pid and start time together do,
on one machine; so the host is written down with them.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from autohypothesis.system import host_name, is_alive, process_start


class Process(NamedTuple):
    """A process as it names itself in a file."""

    pid: int
    start: float
    """Seconds since boot on Linux, since the epoch elsewhere: to compare, not to show."""
    host: str

    @classmethod
    def own(cls) -> Process:
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0.0, host_name())

    def lives(self) -> bool:
        """A process of another host counts as living: nobody here can know better."""
        return self.host != host_name() or is_alive(self.pid, self.start)
