"""Errors that a hub answers with, and their HTTP statuses."""

from __future__ import annotations

import errno

from autohypothesis.errors import AutohypothesisError


class HubRefusalError(AutohypothesisError):
    """A request is refused: the HTTP status, and the text of `{"error": ...}`."""

    def __init__(self, status: int, problem: str, *, hint: str = "", wait: int = 0) -> None:
        super().__init__(problem, hint=hint)
        self.status = status
        self.wait = wait
        """Seconds until the same request may succeed; 0: waiting does not help."""


class BundleError(HubRefusalError):
    """400: a push is no bundle, or holds something that this hub does not take."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(400, f"invalid bundle: {problem}", hint=hint)


def bad(problem: str, *, hint: str = "") -> HubRefusalError:
    """400: the request itself is wrong."""
    return HubRefusalError(400, problem, hint=hint)


def missing(problem: str) -> HubRefusalError:
    return HubRefusalError(404, problem)


def disk_full() -> HubRefusalError:
    return HubRefusalError(507, "the hub's disk is full; nothing was stored")


def disk_trouble(error: OSError) -> HubRefusalError:
    """507 for any error of the hub's file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    return HubRefusalError(507, f"the hub's disk cannot take it: {error.strerror or error}")
