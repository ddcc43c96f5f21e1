"""What the hub answers when it does not do what was asked."""

from __future__ import annotations

import errno

from autohypothesis.errors import AutohypothesisError


class RefusedError(AutohypothesisError):
    """An answer other than success: the HTTP status, and what `{"error": ...}` says."""

    def __init__(self, status: int, problem: str, *, hint: str = "", wait: int = 0) -> None:
        super().__init__(problem, hint=hint)
        self.status = status
        self.wait = wait
        """Seconds until the same request may succeed; 0: not by waiting."""


def bad(problem: str, *, hint: str = "") -> RefusedError:
    """400: the request itself is wrong."""
    return RefusedError(400, problem, hint=hint)


def missing(problem: str) -> RefusedError:
    """404."""
    return RefusedError(404, problem)


def disk_full() -> RefusedError:
    """507."""
    return RefusedError(507, "the hub's disk is full; nothing was stored")


def disk_trouble(error: OSError) -> RefusedError:
    """507 for whatever the hub's file system refuses."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    return RefusedError(507, f"the hub's disk cannot take it: {error.strerror or error}")


class BundleError(RefusedError):
    """400: what was pushed is no bundle, or holds what this hub does not take."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(400, f"invalid bundle: {problem}", hint=hint)
