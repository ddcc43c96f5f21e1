"""Diffs for whoever reads pages, who may be anybody: made once each, one at a time, kept a while.

A commit and its parent never change, so neither does their diff. Agents' own diffs are counted
elsewhere, and never wait for these.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from autohypothesis.hub.server.refusals import RefusedError

KEPT_BYTES = 32 << 20
_PATIENCE_S = 2.0


class Part(NamedTuple):
    """Lines of a diff of one kind: "file", "hunk", "added", "removed" or "same"."""

    kind: str
    text: str


@dataclass(slots=True)
class Diffs:
    """The newest ones that were asked for, in memory."""

    kept_bytes: int = KEPT_BYTES
    _kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _size: int = 0
    _access: threading.Lock = field(default_factory=threading.Lock)
    _making: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, count: Callable[[], None], make: Callable[[], bytes]) -> bytes:
        """The diff of commit `name`. Only one that is not here is counted and made.

        Raises:
            RefusedError: what `count` and `make` raise; 503 while another one is made.
        """
        there = self._get(name)
        if there is not None:
            return there
        if not self._making.acquire(timeout=_PATIENCE_S):
            raise RefusedError(503, "another diff is being made", hint="load this page again")
        try:
            there = self._get(name)
            if there is None:
                count()
                there = make()
                self._keep(name, there)
            return there
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


def parts(diff: bytes) -> Iterator[Part]:
    """Runs of lines of one kind."""
    lines = diff.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    for kind, run in groupby(_kinds(lines), key=lambda one: one[0]):
        yield Part(kind, "\n".join(line for _, line in run))


def _kinds(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each line with its kind; only below a hunk's head are `+` and `-` lines of a file."""
    in_hunk = False
    for line in lines:
        if line.startswith("diff --git "):
            in_hunk = False
        elif line.startswith("@@ "):
            in_hunk = True
            yield "hunk", line
            continue
        kind = {"+": "added", "-": "removed"}.get(line[:1], "same") if in_hunk else "file"
        yield kind, line
