"""Diffs for readers of pages, which may be anybody: made once each, one at a time, kept a while.

A commit and its parent never change, so neither does their diff. Agents' own diffs are counted
elsewhere, and never wait for these.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from autohypothesis.hub.server.refusals import HubRefusalError

KEPT_BYTES = 32 << 20
_PATIENCE_S = 2.0


@dataclass(slots=True)
class DiffCache:
    """The diffs that were asked for last, in memory."""

    kept_bytes: int = KEPT_BYTES
    _kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _size: int = 0
    _access: threading.Lock = field(default_factory=threading.Lock)
    _making: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, count: Callable[[], None], make: Callable[[], bytes]) -> bytes:
        """The diff of commit `name`. Only one that is not kept is counted and made.

        Raises:
            HubRefusalError: what `count` and `make` raise; 503 while another one is made.
        """
        kept = self._get(name)
        if kept is not None:
            return kept
        if not self._making.acquire(timeout=_PATIENCE_S):
            raise HubRefusalError(503, "another diff is being made", hint="load this page again")
        try:
            diff = self._get(name)
            if diff is None:
                count()
                diff = make()
                self._keep(name, diff)
            return diff
        finally:
            self._making.release()

    def _get(self, name: str) -> bytes | None:
        with self._access:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _keep(self, name: str, diff: bytes) -> None:
        with self._access:
            self._kept[name] = diff
            self._size += len(diff)
            while self._size > self.kept_bytes:
                self._size -= len(self._kept.popitem(last=False)[1])
