"""Named locks, `research/locks/<name>.lock`, and who holds them.

The kernel frees a lock with its holder, however that ends, so there are no stale ones. Who holds it
is written beside it for people; only the lock itself decides. Leases on devices are not here: their
descriptor is inherited by the training, and filelock would give it up too early.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from autohypothesis.errors import AutohypothesisError, LockError, UnwritableError
from autohypothesis.records.files import load_or_none, write_json
from autohypothesis.records.layout import Layout
from autohypothesis.system import host_name, is_alive, process_start

DEFAULT_TIMEOUT_S = 30.0


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
        """Return whether it lives; a process of another host counts as living."""
        return self.host != host_name() or is_alive(self.pid, self.start)


class Holder(BaseModel):
    """The process that took a lock, and its purpose, as the note beside the lock has them."""

    model_config = ConfigDict(defer_build=True)

    pid: int
    start: float
    host: str
    doing: str

    @property
    def process(self) -> Process:
        return Process(self.pid, self.start, self.host)

    def __str__(self) -> str:
        state = "" if self.process.lives() else ", which has ended"
        return f"pid {self.pid} on {self.host} ({self.doing}{state})"


@contextmanager
def hold(
    layout: Layout, name: str, *, doing: str, timeout: float = DEFAULT_TIMEOUT_S
) -> Iterator[None]:
    """Holds the lock `name`; `doing` says for what, in a few words.

    Raises:
        LockError: another process has held it for `timeout` seconds; the message names the holder.
        UnwritableError: research/ is read-only, or the disk is full.
    """
    path = layout.lock(name)
    lock = FileLock(path, timeout=timeout, mode=0o644, poll_interval=0.02, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        who, hint = holder(layout, name), f"`fuser -v {path}`"
        raise LockError(
            f"lock {name!r} is held by {who or 'an unknown process'}; waited {timeout:g} s for"
            f" {doing}",
            hint=f"`ps -p {who.pid}` shows it" if who else hint,
        ) from None
    except OSError as error:
        raise UnwritableError(
            f"lock {path} cannot be taken for {doing}: {error.strerror or error}",
            hint=f"see `ls -ld {path}` and `df -h`",
        ) from error
    try:
        with suppress(AutohypothesisError):  # a note for people must not stop the work
            note = {**Process.own()._asdict(), "doing": doing}  # as a `Holder` has it
            write_json(path.with_suffix(".holder.json"), note, durable=False)
        yield
    finally:
        lock.release()


def held(layout: Layout, name: str) -> str:
    """Return the holder of the lock `name`, in words; empty when it is free."""
    path = layout.lock(name)
    if not path.is_file():
        return ""
    lock = FileLock(path, timeout=0, mode=0o644, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return str(holder(layout, name) or "a process that left no name")
    lock.release()
    return ""


def holder(layout: Layout, name: str) -> Holder | None:
    """Return the last holder of the lock `name`; whether it is still held only the lock can say."""
    return load_or_none(Holder, layout.lock(name).with_suffix(".holder.json"), limit=4096)
